"""The judges that `judges` and `--judge` name, made ready for an evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from data.errors import RewardError, UsageError
from pipeline.evaluation.judge.plan import PairJudge, ScoreJudge
from pipeline.evaluation.judge.settings import HttpJudge, JudgeSettings, LlmJudge, RewardModelJudge
from pipeline.evaluation.judge.workspace import EvaluationWorkspace, checkpoint_content

if TYPE_CHECKING:
    from reward.scorer import Scorer


class Judges(NamedTuple):
    """Judges as a plan has them.

    Attributes:
        scoring: those that score each answer.
        comparing: those that compare two answers.
        require: raises where one can't be had.
    """

    scoring: dict[str, ScoreJudge]
    comparing: dict[str, PairJudge]
    require: Callable[[], None]


def judges_of(
    asked: Mapping[str, JudgeSettings],
    *,
    models: Mapping[str, str | Path],
    paid_by: Callable[[str], Sequence[str] | None],
    workspace: EvaluationWorkspace,
    batch_size: int,
    server_content: Any = None,
    trust_remote_code: bool = False,
) -> Judges:
    """Return judges, none of which is loaded or asked yet.

    Args:
        asked: the judges by name.
        models: where the model of each judge that is one lies.
        paid_by: tells by which stages a checkpoint that is judged was trained against a judge, of
            which it is given the name; None where that is not known.
        workspace: of the evaluation.
        batch_size: texts of a forward pass.
        server_content: tells what servers say from what they said before.
        trust_remote_code: run code that reward models carry.
    """
    scoring: dict[str, ScoreJudge] = {}
    told: dict[str, Any]
    for name, judge in asked.items():
        if isinstance(judge, RewardModelJudge):
            digest = checkpoint_content(models[name])
            load = partial(_reward_model, models[name], name, batch_size, trust_remote_code)
            stages = paid_by(name)
            told = {
                "kind": judge.kind,
                "content": digest,
                "held_out": None if stages is None else not stages,
                "trained_against_by": [*(stages or ())],
            }
            scoring[name] = ScoreJudge(load, digest, told)
        elif isinstance(judge, HttpJudge):
            address = judge.url.partition("?")[0]  # behind it may stand a key
            told = {"kind": judge.kind, "url": address}
            content = [judge.url, server_content]
            scoring[name] = ScoreJudge(partial(_server, judge, name), content, told)
    llms = {name: judge for name, judge in asked.items() if isinstance(judge, LlmJudge)}
    comparing = {name: _language_model(name, judge, workspace) for name, judge in llms.items()}

    @cache
    def require() -> None:
        for name, judge in asked.items():
            if isinstance(judge, HttpJudge):
                _require_scoring(name, judge)
            elif isinstance(judge, LlmJudge):
                _require_answering(name, judge)

    return Judges(scoring, comparing, require)


def second_judge(judges: Mapping[str, ScoreJudge]) -> str:
    """Return the first judge that is neither the proxy nor a reward model of it.

    Raises:
        UsageError: there is none.
    """
    told = json.dumps(judges["proxy"].content)
    for name, judge in judges.items():
        if name != "proxy" and not (isinstance(judge.content, str) and judge.content in told):
            return name
    raise UsageError(
        "choosing the best of n by a reward model needs another judge, and "
        f"{', '.join(name for name in judges if name != 'proxy')} is that same model; name another"
    )


def _reward_model(place: str | Path, name: str, batch_size: int, trust: bool) -> Scorer:
    from pipeline.models.load import pick_device
    from reward.learned.model import RewardModel

    model = RewardModel.load(
        place, device=pick_device(), batch_size=batch_size, trust_remote_code=trust
    )
    model.name = name
    return model


def _language_model(name: str, judge: LlmJudge, workspace: EvaluationWorkspace) -> PairJudge:
    from pipeline.evaluation.judge.llm_judge import llm_judge

    return llm_judge(name, judge, workspace=workspace)


def _require_answering(name: str, judge: LlmJudge) -> None:
    from pipeline.evaluation.judge.llm_judge import require_answering

    require_answering(name, judge)


def _server(judge: HttpJudge, name: str) -> Scorer:
    from reward.computed.http_server import Endpoint

    return Endpoint(
        judge.url,
        timeout=judge.timeout,
        retries=judge.retries,
        batch_size=judge.batch_size,
        name=name,
    )


def _require_scoring(name: str, judge: HttpJudge) -> None:
    """Refuse a server that does not score a small answer."""
    fewer = judge.model_copy(update={"retries": min(1, judge.retries)})
    try:
        _server(fewer, name).score(["What is 1 + 1?"], ["2."])
    except RewardError as error:
        raise RewardError(f"judge {name}: {error}") from error
