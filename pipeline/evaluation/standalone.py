"""Evaluates checkpoints outside of a recipe: the body of `rlhf eval`."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import UsageError
from pipeline.artifacts import MANIFEST, require_writable_place
from pipeline.config import SourceSettings
from pipeline.console import Console
from pipeline.evaluation.engine import Desk, Plan, evaluate
from pipeline.evaluation.inputs import read_prompts, read_texts
from pipeline.evaluation.summary import say_results
from pipeline.generation import Sampling
from pipeline.handover import local_checkpoint

if TYPE_CHECKING:
    from reward.scorers import Scorer


def evaluate_checkpoints(
    checkpoints: Mapping[str, str],
    *,
    prompts: SourceSettings,
    out: Path,
    texts: SourceSettings | None = None,
    reward: str | None = None,
    reference: str | None = None,
    plain: Sequence[str] = (),
    gold: bool | None = None,
    limit: int | None = None,
    max_texts: int = 500,
    sampling: Sampling | None = None,
    batch_size: int = 64,
    resamples: int = 2000,
    seed: int = 0,
    console: Console | None = None,
    stop_if_asked: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Evaluate checkpoints as the `evaluate` stage does, with the same code.

    Args:
        checkpoints: name -> a stage's folder, a model's folder, or a hub id.
        prompts: source of the prompts.
        out: gets `samples.jsonl` and `evaluation.json`; a cut off evaluation goes on there.
        texts: source of held-out texts for the perplexity.
        reward: reward model that judges as `proxy`: a stage's folder, a model's folder or hub id.
        reference: checkpoint that KL is measured to; the first when not given.
        plain: checkpoints that are given plain text instead of the chat template.
        gold: judge by the embedded world's annotator; by default where the prompts are its own.
        limit: at most so many prompts, drawn by the seed.
        max_texts: at most so many held-out texts.
        sampling: how tokens are drawn.
        batch_size: responses sampled together.
        resamples: draws of each bootstrap.
        seed: of sampling and bootstrap.
        console: where it speaks.
        stop_if_asked: raises when a signal asked to stop.

    Returns:
        What `evaluation.json` holds.

    Raises:
        UsageError: a name is used that no checkpoint has, or gold on prompts of another origin.
        RlhfError: a checkpoint or source can't be read.
    """
    console = console or Console()
    if (out / MANIFEST).is_file():
        raise UsageError(f"{out} is a finished stage; choose another folder with --out")
    require_writable_place(out)
    sampling = sampling or Sampling()
    if not math.isfinite(sampling.temperature):
        raise UsageError(f"temperature is {sampling.temperature}; it must be 0 or more, and finite")
    for name in [*plain, *([reference] if reference else [])]:
        if name not in checkpoints:
            raise UsageError(f"'{name}' is none of the checkpoints ({', '.join(checkpoints)})")
    gold = prompts.world is not None if gold is None else gold
    if gold and prompts.world is None:
        raise UsageError("the gold annotator judges the embedded world's prompts alone")
    say = console.say
    plan = Plan(
        checkpoints={name: checkpoint_location(given) for name, given in checkpoints.items()},
        prompts=read_prompts([prompts.read_arguments()], limit=limit, seed=seed, say=say),
        texts=read_texts([texts.read_arguments()], limit=max_texts, say=say) if texts else [],
        reference=reference or next(iter(checkpoints)),
        plain=frozenset(plain),
        world_seed=prompts.world_seed if gold else None,
        scorer=None if reward is None else _scorer(checkpoint_location(reward)),
        sampling=sampling,
        batch_size=batch_size,
        resamples=resamples,
        seed=seed,
    )
    desk = Desk(out, _key(plan, reward), console, stop_if_asked)
    results = evaluate(plan, desk)
    desk.clear()
    say_results(results, say)
    return results


def checkpoint_location(given: str) -> str:
    """Return where a checkpoint's model is: in a stage's folder its verified `model/`.

    Raises:
        ModelError: a folder or file is there and is no checkpoint.
        ArtifactError: the stage's files are damaged.
    """
    folder = local_checkpoint(given)
    return given if folder is None else str(folder.resolve())


def _scorer(location: str) -> Callable[[], Scorer]:
    def load() -> Scorer:
        from reward.model import RewardModel

        return RewardModel.load(location)

    return load


def _key(plan: Plan, reward: str | None) -> str:
    """Return the digest of all that the work of an earlier try must share."""
    facts = [
        [[name, str(source), _state(str(source))] for name, source in plan.checkpoints.items()],
        [[row.prompt, row.id] for row in plan.prompts],
        list(plan.texts),
        [reward, _state(checkpoint_location(reward)) if reward else None],
        [plan.reference, sorted(plan.plain), repr(plan.sampling), plan.seed, plan.bf16],
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _state(location: str) -> list[list[str | int]]:
    """Return names, sizes and times of a folder's files, so that a retrained model counts anew."""
    folder = Path(location)
    if not folder.is_dir():
        return []
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
