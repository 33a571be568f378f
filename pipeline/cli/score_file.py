"""Scores a file of responses with a reward model or any other reward: the body of `rlhf score`.

A response to a plain prompt goes on from it as it stands, so that it begins with the space before
its first word. After one that was cut off, `ended: false`, a reward model reads no end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from data.errors import RecipeError, SourceError, UsageError
from data.plain_yaml import parse
from data.records import ENDED
from data.sources.files import capped_lines
from data.sources.values import MAX_ROW, JsonError, json_value
from data.storage import expand, require_file_place, storage_errors, write_atomically
from pipeline.contract.addresses import shown_value
from pipeline.contract.artifacts import require_writable_place
from pipeline.contract.handover import local_checkpoint

if TYPE_CHECKING:
    from data.records import Prompt
    from reward.scorer import Scorer

CHUNK = 2048
"""Rows read, scored and written at a time; sorting by length works within them."""


@dataclass
class ScoreReport:
    """What scoring a file came to.

    Attributes:
        rows: lines of the file.
        texts: responses scored.
        truncated: texts that were longer than the reward model takes.
        mean: mean score.
    """

    rows: int = 0
    texts: int = 0
    truncated: int = 0
    total: float = field(default=0.0, repr=False)

    @property
    def mean(self) -> float:
        """Mean score over all responses."""
        return self.total / self.texts if self.texts else 0.0


def score_file(
    model: str | Path,
    source: str | Path,
    output: str | Path,
    *,
    batch_size: int = 64,
    limit: int | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    options: Mapping[str, Any] | None = None,
    advance: Callable[[int], None] | None = None,
) -> ScoreReport:
    """Score every row of a JSONL file and write the rows with their scores.

    A row has `prompt` (a text, or a list of messages) and either `response` (or `completion`),
    which gets `score`, or `completions`, which get `scores`. `ended` (false, of completions a list)
    says what was cut off. All other keys are kept. The output appears under its name only when it
    is whole.

    Args:
        model: reward model (a folder, a stage's folder, or a hub id), `rule:NAME`,
            `function:NAME` of a loaded plugin, or the http(s) address of a server.
        source: JSONL file.
        output: JSONL file to write; may not be the source.
        batch_size: texts a forward pass.
        limit: at most so many rows.
        device: where to compute; an accelerator when there is one.
        trust_remote_code: run code that the checkpoint carries.
        options: of a rule, function or server.
        advance: called with the number of texts scored since the last call.

    Raises:
        SourceError: the file is not there, or a row can't be scored; names file and line.
        UsageError: output and source are the same file.
        ModelError: the model is no trained reward model.
        RecipeError: there is no such rule or function, or it does not take the options.
        RewardError: a function or server fails.
    """
    path, target = expand(source), expand(output)
    if not path.is_file():
        raise SourceError(f"{source}: no such file; give a JSONL file of prompts and responses")
    if target.exists() and target.samefile(path):
        raise UsageError(f"{output} is the file to score; write the scores to another one")
    if target.is_dir():
        raise UsageError(f"{output} is a folder; name the file to write the scores to")
    require_writable_place(target.parent)
    require_file_place(target)
    scorer = _computed(str(model), dict(options or {}), batch_size)
    if scorer is None:
        from reward.learned.model import RewardModel

        scorer = RewardModel.load(
            local_checkpoint(str(model)) or model,
            device=device,
            batch_size=batch_size,
            trust_remote_code=trust_remote_code,
        )
    report = _write_scores(scorer, source, target, limit=limit, advance=advance)
    report.truncated = getattr(getattr(scorer, "encoder", None), "truncated", 0)
    return report


def _write_scores(
    scorer: Scorer,
    source: str | Path,
    target: Path,
    *,
    limit: int | None,
    advance: Callable[[int], None] | None,
) -> ScoreReport:
    """Write a file's rows with their scores; the target is there when it is whole."""
    report = ScoreReport()

    def lines() -> Iterator[str]:
        rows = islice(_rows(expand(source)), limit)
        while chunk := list(islice(rows, CHUNK)):
            yield from _score_chunk(scorer, chunk, report, advance)
        if report.rows == 0:
            raise SourceError(f"{source} holds no rows; nothing to score")

    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, lines())
    return report


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """Return the options that `--option a=b` gives, their values read as YAML.

    Raises:
        UsageError: one is not written so.
    """
    options = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"--option {text}: write it as a=b")
        try:
            options[name], _ = parse(value, lambda _: "--option")
        except RecipeError:
            options[name] = value  # a regular expression need not be YAML
    return options


def _computed(name: str, options: dict[str, Any], batch_size: int) -> Scorer | None:
    """Return the rule, function or server that a text names; None for a reward model."""
    origin, _, rest = name.partition(":")
    if origin == "rule":
        from reward.computed.rules import rule

        return rule(rest, **options)
    if origin == "function":
        from reward.functions import function

        return function(rest, **options)
    if rest.startswith("//"):
        return _server(name, {"batch_size": batch_size, **options})
    if options:
        raise UsageError(f"{name} is a reward model, which takes no options")
    return None


def _server(url: str, options: dict[str, Any]) -> Scorer | None:
    """Return what asks a server, held to the same as one of a recipe."""
    from pipeline.stages.reward_terms import RewardTerm, computed

    stray = options.keys() - {"timeout", "retries", "batch_size"}
    if stray:
        raise UsageError(f"--option {min(stray)}: a server takes the options timeout and retries")
    try:
        return computed(RewardTerm(**{**options, "url": url}))
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        name = ".".join(map(str, wrong["loc"]))
        raise UsageError(
            f"the reward server's {name} {shown_value(wrong['input'])}: "
            f"{wrong['msg'].removeprefix('Value error, ')}; a server has a url, and the options "
            "timeout and retries"
        ) from None


@dataclass(frozen=True)
class _Row:
    """One line: the object, its prompt, its responses, and whether they ended; None: not told."""

    content: dict[str, Any]
    prompt: Prompt
    responses: list[str]
    ended: list[bool] | None = None


def _rows(path: Path) -> Iterator[_Row]:
    with path.open("rb") as file:
        for number, line in capped_lines(path, file):
            if line is None:
                raise SourceError(f"{path}:{number} is longer than {MAX_ROW:,} bytes; cut it")
            if line.strip():
                yield _parse(line, f"{path}:{number}")


def _parse(line: bytes, place: str) -> _Row:
    try:
        content = json_value(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise SourceError(f"{place} is no UTF-8 text; save the file as UTF-8") from error
    except JsonError as error:
        raise SourceError(f"{place} is no JSON ({error}); one object a line is needed") from error
    if not isinstance(content, dict) or not _is_prompt(content.get("prompt")):
        raise SourceError(f"{place} has no `prompt` that is a text or a list of messages")
    if "completions" in content:
        responses = content["completions"]
    else:
        responses = [content.get("response", content.get("completion"))]
    texts = isinstance(responses, list) and all(isinstance(r, str) for r in responses)
    if not texts or not responses:
        raise SourceError(
            f"{place} has neither a `response` (a text) nor `completions` (a list of texts)"
        )
    try:
        json.dumps(content, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise SourceError(f"{place} holds half a character (a lone surrogate)") from error
    return _Row(content, content["prompt"], responses, _ended(content, len(responses), place))


def _ended(content: dict[str, Any], size: int, place: str) -> list[bool] | None:
    value = content.get(ENDED)
    if value is None:
        return None
    ended = value if isinstance(value, list) else [value]
    if len(ended) != size or not all(isinstance(one, bool) for one in ended):
        raise SourceError(
            f"{place} has `{ENDED}` {value!r:.60}; it is true or false, or a list of that for each "
            "of `completions`"
        )
    return ended


def _is_prompt(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(
            isinstance(turn, dict)
            and isinstance(turn.get("role"), str)
            and isinstance(turn.get("content"), str)
            for turn in value
        )
    return isinstance(value, str)


def _score_chunk(
    scorer: Scorer,
    chunk: Sequence[_Row],
    report: ScoreReport,
    advance: Callable[[int], None] | None,
) -> Iterator[str]:
    """Score rows and yield them as lines."""
    prompts = [row.prompt for row in chunk for _ in row.responses]
    responses = [text for row in chunk for text in row.responses]
    ended = None
    if any(row.ended is not None for row in chunk):
        ended = [one for row in chunk for one in row.ended or [True] * len(row.responses)]
    scores = _scores(scorer, chunk, prompts, responses, ended, advance)
    left = iter(scores)
    for row in chunk:
        mine = [next(left) for _ in row.responses]
        key, value = ("scores", mine) if "completions" in row.content else ("score", mine[0])
        yield json.dumps({**row.content, key: value}, ensure_ascii=False) + "\n"
    report.rows += len(chunk)
    report.texts += len(scores)
    report.total += sum(scores)


def _scores(
    scorer: Scorer,
    chunk: Sequence[_Row],
    prompts: list[Prompt],
    responses: list[str],
    ended: list[bool] | None,
    advance: Callable[[int], None] | None,
) -> list[float]:
    from reward.learned.model import RewardModel
    from reward.scorer import Facts, scores_of

    if isinstance(scorer, RewardModel):
        return scorer.score(prompts, responses, ended=ended, advance=advance)
    facts = Facts(rows=[row.content for row in chunk for _ in row.responses], ended=ended)
    scores = scores_of(scorer, prompts, responses, facts)
    if advance is not None:
        advance(len(scores))
    return scores
