"""What the stages before an evaluation read, to compare with what it judges on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import eq
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import SourceError
from data.sources.folders import find_files
from pipeline.contract.settings import (
    SourceSettings,
    StageSettings,
    external_location,
    is_external,
    references,
)
from pipeline.evaluation.judge.inputs import read_prompts
from pipeline.evaluation.judge.overlap import DOINGS, OF_TEXT, Reading, seen_before, seen_lines
from pipeline.evaluation.judge.settings import RewardModelJudge
from pipeline.evaluation.judge.workspace import checkpoint_content
from pipeline.stages.reward.rows import rankings_source

if TYPE_CHECKING:
    from data.records import PromptRow, Record
    from data.sources.source import Source
    from pipeline.contract.handover import HandOver
    from pipeline.stages.evaluate.settings import EvaluateSettings

_WORKED_ON = ("train", "prompts", "rankings", "pretraining_sources")
"""Fields of sources that a stage learns from, samples on, ranks or chooses by."""


_SMALL = 32 * 1024**2
"""Bytes of files that are read before anything is started, at most."""


def readings(hand: HandOver, seed: Callable[[str], int] | None = None) -> dict[str, Reading]:
    """Return what a stage and each that it builds on read, nearest the start first.

    `seed` is that of a stage by the recipe, for those that have not run.
    """
    made = {hand.name, *_before(hand.name, hand)}
    return {
        name: _reading(name, hand, seed)
        for name in hand.stages
        if name in made and hand.stages[name].kind in DOINGS
    }


def made_by(settings: EvaluateSettings, hand: HandOver) -> dict[str, list[str]]:
    """Return the stages that each checkpoint came to be by and that read prompts.

    Stages that read documents do where their beginnings are what is asked.
    """
    asked = [kind for kind in DOINGS if kind not in OF_TEXT or settings.prefix_tokens is not None]
    found = {}
    for checkpoint, target in settings.judged.items():
        stages = set() if is_external(target) else {target, *_before(target, hand)}
        found[checkpoint] = [n for n in hand.stages if n in stages and hand.stages[n].kind in asked]
    return found


def overlap_warning(
    settings: EvaluateSettings, hand: HandOver, seed: Callable[[str], int]
) -> str | None:
    """Return how many prompts the stages before will have seen, as far as small files tell.

    None where they will see none, and where sources are not at hand or large: the run tells then.
    """
    found = readings(hand, seed)
    read = [source for one in found.values() for source in one.sources if one.kind not in OF_TEXT]
    prompts = _few_prompts(settings, seed(hand.name))
    if prompts is None or not _small(read):
        return None
    seen = seen_before(prompts, [], readings=found)
    lines = seen_lines({"seen": seen | {"unread": []}, "prompts": {"n": len(prompts)}, "texts": 0})
    return lines[0] if lines else None


def _few_prompts(settings: EvaluateSettings, seed: int) -> list[PromptRow] | None:
    """Return the prompts where small files hold them, else None."""
    if settings.prefix_tokens is not None:  # takes the reference's tokenizer
        return None
    if any(prompts.stage for prompts in settings.prompts):
        return None
    if not _small([prompts.source() for prompts in settings.prompts]):
        return None
    try:
        return read_prompts(
            settings.prompts, limit=settings.limit, seed=seed, say=lambda line: None
        )
    except SourceError:  # in a later row than those that were looked at; the run names it
        return None


def judge_warnings(
    settings: EvaluateSettings, hand: HandOver, seed: Callable[[str], int]
) -> list[str]:
    """Return which judges are not held out, and how often language models are asked."""
    lines = []
    for name, judge in settings.judges.items():
        if not isinstance(judge, RewardModelJudge):
            continue
        targets = [*settings.checkpoints.values()]
        stages = trained_against(partial(eq, judge.model), targets, hand, is_ours=True)
        if stages:
            why = f"{', '.join(stages)} trains against it or chooses by it"
            lines.append(f"judge {name} is not held out: {why}")
    if settings.call_lines(1):
        prompts = _few_prompts(settings, seed(hand.name))
        most = settings.limit if prompts is None else len(prompts)
        lines += settings.call_lines(most) if most else []
    return lines


def _small(sources: Sequence[Source]) -> bool:
    if any(source.hub is not None for source in sources):
        return False
    try:
        files = [file for one in sources for path in one.paths for file in find_files(path).files]
        return sum(Path(file).stat().st_size for file in set(files)) <= _SMALL
    except (SourceError, OSError):  # what a stage before is to write
        return False


def made_elsewhere(hand: HandOver) -> list[str]:
    """Return the checkpoints that the stages before a stage, or it itself, take from outside."""
    stages = [hand.name, *_before(hand.name, hand)]
    external = [
        target
        for name in stages
        for target, mark in references(hand.stages[name]).values()
        if is_external(target) and mark.provides in ("policy", "reward")
    ]
    return list(dict.fromkeys(external))


def trained_against(
    judge: Callable[[str], bool], checkpoints: Sequence[str], hand: HandOver, *, is_ours: bool
) -> list[str] | None:
    """Return the stages by which checkpoints came to be that a reward model paid, or chose in.

    Args:
        judge: tells whether what a stage refers to is that reward model.
        checkpoints: what is judged, as the recipe refers to it.
        hand: the view of a stage of that recipe.
        is_ours: whether a stage made the reward model, so that no checkpoint of others knew it.

    Returns:
        None where none is found, and one may be hidden in a checkpoint that was made elsewhere.
    """
    ours = [target for target in checkpoints if not is_external(target)]
    made = {name for target in ours for name in (target, *_before(target, hand))}
    found = [
        name
        for name, settings in hand.stages.items()
        if name in made
        and settings.kind in ("ppo", "grpo", "rloo", "select", "rankings")
        and any(
            field.partition(".")[0] in _judged_by(settings) and judge(target)
            for field, (target, _) in references(settings).items()
        )
    ]
    starts = [ref for name in made for ref in references(hand.stages[name]).values()]
    begun = any(is_external(target) and mark.provides == "policy" for target, mark in starts)
    hidden = len(ours) < len(checkpoints) or (begun and not is_ours)
    return None if hidden and not found else found


def _judged_by(settings: StageSettings) -> tuple[str, ...]:
    """Return the fields of the rewards that decide what a stage publishes."""
    # PPO's own evaluations do where an alarm sends it back to the best.
    only_told = getattr(settings, "doctor_only_tells", True)
    return ("reward",) if only_told else ("reward", "evaluation_reward")


def same_checkpoint(content: str, hand: HandOver) -> Callable[[str], bool]:
    """Return what tells whether a reference is to the checkpoint of some content."""

    def is_it(target: str) -> bool:
        folder = hand.folder(target)
        return folder is not None and checkpoint_content(folder) == content

    return is_it


def _before(name: str, hand: HandOver) -> dict[str, StageSettings]:
    """Return the settings of all stages that one builds on, through others too."""
    earlier: dict[str, StageSettings] = {}
    open_names = [name]
    while open_names:
        for target, _ in references(hand.stages[open_names.pop()]).values():
            if not is_external(target) and target not in earlier:
                earlier[target] = hand.stages[target]
                open_names.append(target)
    return earlier


def _reading(name: str, hand: HandOver, seed: Callable[[str], int] | None) -> Reading:
    settings = hand.stages[name]

    def sources(field: str) -> list[Source]:
        value = getattr(settings, field, None)
        items = value if isinstance(value, tuple) else ()
        placed = [hand.placed(item) for item in items if isinstance(item, SourceSettings)]
        return [item.source() for item in placed if item]

    rankings = {
        f: t for f, (t, mark) in references(settings).items() if mark.provides == "rankings"
    }
    files = [target for target in rankings.values() if is_external(target)]
    ranked = [  # what a reward model learns from is what a stage before ranked
        source
        for field, target in rankings.items()
        if field.startswith("rankings") and not is_external(target)
        for source in _reading(target, hand, seed).sources
    ]
    # PPO's own evaluations choose what it publishes where an alarm sends it back to the best.
    chosen_by = (
        [] if getattr(settings, "doctor_only_tells", True) else sources("evaluation_prompts")
    )
    return Reading(
        kind=settings.kind,
        sources=[
            *(source for field in _WORKED_ON for source in sources(field)),
            *ranked,
            *chosen_by,
            *(rankings_source(external_location(target)).source() for target in files),
        ],
        judged_by=sources("heldout"),
        held_out=_held_out(name, hand, seed),
    )


def _held_out(
    name: str, hand: HandOver, seed: Callable[[str], int] | None
) -> Callable[[Record], bool]:
    """Return what tells which rows a stage kept from training, as that stage itself does."""
    from data.records import prompt_of, to_text
    from data.sources.split import is_heldout, is_heldout_text

    settings, artifact = hand.stages[name], hand.finished(name)
    share = float(getattr(settings, "heldout_share", 0.0))
    if getattr(settings, "heldout", ()) or not share:
        return lambda record: False
    if settings.kind in OF_TEXT:
        return lambda record: is_heldout_text(to_text(record), share=share)
    if settings.kind == "sft":
        drawn = seed(name) if seed is not None else None
        drawn = drawn if artifact is None else int(artifact.manifest["seed"])
        if drawn is not None:
            return lambda record: is_heldout(prompt_of(record), share=share, seed=drawn)
    return lambda record: False
