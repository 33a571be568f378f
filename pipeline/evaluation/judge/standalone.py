"""Evaluates checkpoints outside of a recipe: the body of `rlhf eval`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import UsageError
from pipeline.contract.artifacts import require_writable_place
from pipeline.contract.console import Console
from pipeline.contract.handover import local_checkpoint
from pipeline.contract.retrieval import ReadingSettings, with_readers
from pipeline.contract.settings import SourceSettings, rows_at_most
from pipeline.evaluation.benchmarks.run import check_tasks
from pipeline.evaluation.benchmarks.settings import TaskSettings
from pipeline.evaluation.judge.figures import RESAMPLES
from pipeline.evaluation.judge.inputs import MAX_TEXTS, opening_by, read_prompts, read_texts
from pipeline.evaluation.judge.judge import evaluate
from pipeline.evaluation.judge.judges import Judges, judges_of
from pipeline.evaluation.judge.overlap import seen_lines
from pipeline.evaluation.judge.people import PEOPLE, People, people_judge
from pipeline.evaluation.judge.plan import PairJudge, Plan, ScoreJudge
from pipeline.evaluation.judge.sampling import decodings
from pipeline.evaluation.judge.settings import (
    AnswerSettings,
    JudgeSettings,
    LlmJudge,
    RewardModelJudge,
    default_reference,
    require_free_names,
)
from pipeline.evaluation.judge.summary import say_results
from pipeline.evaluation.judge.workspace import EvaluationWorkspace, checkpoint_content
from pipeline.models.load import pick_device, resolve_bf16

if TYPE_CHECKING:
    from reward.scorer import Scorer


CACHE = "cache"
"""In the folder of an evaluation: answers and scores, so that the next one computes what is new."""


@dataclass(frozen=True)
class Request:
    """What is judged, and how.

    Attributes:
        checkpoints: name -> a stage's folder, a model's folder, or a hub id.
        prompts: source of the prompts; none, where tasks alone are asked.
        texts: source of held-out texts for the perplexity.
        people: how people are asked to compare answers; None asks nobody.
        rewards: reward models that judge as `proxy`, with the weights at which their scores are
            added: a stage's folder, a model's folder or hub id.
        reference: checkpoint that KL is measured to; `sft`, else the first, when not given.
        plain: checkpoints that are given plain text instead of the chat template.
        gold: judge by the embedded world's annotator; by default where the prompts are its own.
        limit: at most so many prompts, drawn by the seed.
        answers: how prompts are made of documents, and answers drawn.
        batch_size: responses sampled together.
        resamples: draws of each bootstrap.
        seed: of sampling and bootstrap.
        tasks: benchmark tasks that each checkpoint is asked.
        seen: `seen_before` of the stages that made them; None where nobody knows.
        made_by: the stages that each checkpoint came to be by, as far as they read prompts.
        judges: further judges by name.
        paid_by: tells by which stages a checkpoint was trained against the reward model at a place;
            None where that is not known.
        retrieve: passages that each checkpoint is given where it is judged a second time.
    """

    checkpoints: Mapping[str, str]
    prompts: SourceSettings | None = None
    texts: SourceSettings | None = None
    people: People | None = None
    rewards: Mapping[str, float] = field(default_factory=dict)
    reference: str | None = None
    plain: Sequence[str] = ()
    gold: bool | None = None
    limit: int | None = None
    answers: AnswerSettings = field(default_factory=AnswerSettings)
    batch_size: int = 64
    resamples: int = RESAMPLES
    seed: int = 0
    tasks: Sequence[TaskSettings] = ()
    seen: Callable[..., dict[str, Any]] | None = None
    made_by: Mapping[str, Sequence[str]] = field(default_factory=dict)
    best_of: int = 0
    judges: Mapping[str, JudgeSettings] = field(default_factory=dict)
    paid_by: Callable[[str], Sequence[str] | None] = lambda place: None
    retrieve: ReadingSettings | None = None

    @property
    def judged(self) -> dict[str, str]:
        """All that is judged: the checkpoints, and those among them that read passages."""
        return with_readers(self.checkpoints, self.retrieve)


def evaluate_checkpoints(
    request: Request,
    *,
    out: Path,
    console: Console | None = None,
    stop_if_asked: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Evaluate checkpoints as the `evaluate` stage does, with the same code.

    Args:
        request: what is judged, and how.
        out: gets `samples.jsonl`, `evaluation.json`, and `cache/`, with which the next evaluation
            there computes what is new alone.
        console: where it speaks.
        stop_if_asked: raises when a signal asked to stop.

    Returns:
        What `evaluation.json` holds.

    Raises:
        UsageError: a name is used that no checkpoint has, or gold on prompts of another origin.
        RlhfError: a checkpoint or source can't be read.
    """
    console = console or Console()
    require_writable_place(out)
    workspace = EvaluationWorkspace(out, out / CACHE, console, stop_if_asked)
    check_tasks(request.tasks)
    plan = _plan(request, workspace)
    results = evaluate(plan, workspace)
    workspace.prune()
    say_results(results, console.say)
    for line in seen_lines(results) if results["seen"] else ():
        console.say(line)
    return results


def _plan(request: Request, workspace: EvaluationWorkspace) -> Plan:
    """Check a request and read what it names."""
    prompts, texts, answers, seed = request.prompts, request.texts, request.answers, request.seed
    say = workspace.console.say
    known, reference = request.checkpoints, request.reference
    for name in [*request.plain, *([reference] if reference else [])]:
        if name not in known:
            raise UsageError(f"'{name}' is none of the checkpoints ({', '.join(known)})")
    asked = request.rewards or request.judges or request.gold
    if prompts is None and (not request.tasks or texts or asked):
        raise UsageError("there are no prompts to answer; name some with --prompts")
    world = None if prompts is None else prompts.world
    gold = world is not None if request.gold is None else request.gold
    if gold and world is None:
        raise UsageError("the gold annotator judges the embedded world's prompts alone")
    rewards = {checkpoint_location(place): w for place, w in request.rewards.items()}
    judges = _judges(request, workspace)
    scoring = _proxy(rewards) | judges.scoring
    judged = gold or judges.scoring
    if request.best_of and not (judged and request.rewards and answers.temperature != 0):
        raise UsageError(
            "--best-of chooses by a reward model, and another judge tells what that is worth: give "
            "--reward, --prompts world:eval_prompts or a --judge that scores, and a temperature "
            "above 0"
        )
    if answers.tools is not None and answers.tools.search is not None:
        answers.tools.search.retriever(say)  # kept, and refused before anything is loaded
    reads = request.retrieve
    checkpoints = {name: checkpoint_location(given) for name, given in request.judged.items()}
    reference = reference or default_reference(known)
    opening = opening_by(checkpoints[reference], answers.prefix_tokens)
    read = partial(read_prompts, limit=request.limit, seed=seed, say=say, opening=opening)
    return Plan(
        checkpoints=checkpoints,
        prompts=read([prompts]) if prompts else [],
        decodings=decodings(answers, checkpoints),
        texts=read_texts([texts], limit=rows_at_most([texts], MAX_TEXTS), say=say) if texts else [],
        reference=reference,
        plain=frozenset(with_readers(dict.fromkeys(request.plain, ""), reads)),
        world_seed=prompts.world_seed if prompts and gold else None,
        score_judges=scoring,
        pair_judges=judges.comparing | _people(request, out=workspace.folder, say=say),
        require_judges=judges.require,
        batch_size=request.batch_size,
        bf16=resolve_bf16(answers.bf16, pick_device()),
        resamples=request.resamples,
        seed=seed,
        tasks=request.tasks,
        seen=request.seen and partial(request.seen, document_prompt=opening),
        made_by=request.made_by,
        best_of=request.best_of,
        retriever=reads.retriever(say) if reads else None,
        readers=frozenset(request.judged.keys() - known.keys()),
    )


def _judges(request: Request, workspace: EvaluationWorkspace) -> Judges:
    """Return the judges that are named, their reward models found."""
    from reward.network.loading import require_reward_model

    require_free_names(request.judges, request.judged)
    if any(isinstance(judge, LlmJudge) for judge in request.judges.values()):
        _require_two(request, "a language model compares")
    models = {
        name: checkpoint_location(judge.model)
        for name, judge in request.judges.items()
        if isinstance(judge, RewardModelJudge)
    }
    for place in models.values():
        require_reward_model(place)
    return judges_of(
        request.judges,
        models=models,
        paid_by=lambda name: request.paid_by(models[name]),
        workspace=workspace,
        batch_size=request.batch_size,
    )


def _require_two(request: Request, who: str) -> None:
    if request.prompts is None or len(request.judged) < 2:
        raise UsageError(f"{who} answers of two checkpoints or more to --prompts")


def _people(request: Request, *, out: Path, say: Callable[[str], None]) -> dict[str, PairJudge]:
    if request.people is None:
        return {}
    _require_two(request, "people compare")
    with request.people.opened():  # refused now, not after all answers are there
        pass
    return {PEOPLE: people_judge(request.people, folder=out, seed=request.seed, say=say)}


def checkpoint_location(given: str) -> str:
    """Return where a checkpoint's model is: in a stage's folder its verified `model/`.

    Raises:
        ModelError: a folder or file is there and is no checkpoint.
        ArtifactError: the stage's files are damaged.
    """
    folder = local_checkpoint(given)
    return given if folder is None else str(folder.resolve())


def _proxy(weights: Mapping[str, float]) -> dict[str, ScoreJudge]:
    """Return one reward model, or the weighted sum of several, as `proxy`; nothing without any."""
    from reward.network.loading import require_reward_model

    for place in weights:
        require_reward_model(place)

    def load() -> Scorer:
        from reward.ensemble import WeightedSum
        from reward.learned.model import RewardModel

        terms = [(RewardModel.load(place), weight, None) for place, weight in weights.items()]
        if [weight for _, weight, _ in terms] == [1.0]:
            return terms[0][0]
        return WeightedSum(terms)

    content = [[checkpoint_content(place), weight] for place, weight in weights.items()]
    told = {"kind": "proxy", "content": content}
    return {"proxy": ScoreJudge(load, content, told)} if weights else {}
