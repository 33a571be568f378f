"""Writes a first recipe for a user's data and model: looks at both, and decides what they allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from data.errors import UsageError, one_line
from data.plain_yaml import parse
from data.records import to_text
from pipeline.contract.settings import SourceSettings
from pipeline.recipe.draft.material import KINDS, Material, look
from pipeline.recipe.draft.model import Start, from_scratch, start_from
from pipeline.recipe.draft.stages import Drafting, notes, stages_of
from pipeline.recipe.draft.text import plain, recipe_text
from pipeline.recipe.load import Recipe, recipe_of

_VOCABULARIES = ((1_000_000, 2048), (100_000_000, 8192))
_LARGEST = 32_768
"""Tokens of a vocabulary, by the characters of its text, and of one of more text."""


class Draft(NamedTuple):
    """A recipe that is not written yet.

    Attributes:
        text: the file.
        recipe: the same, checked.
        told: lines on what was found and decided.
    """

    text: str
    recipe: Recipe
    told: Sequence[str]


def draft(
    model: str | None, sources: Mapping[str, Sequence[SourceSettings]], *, path: Path, command: str
) -> Draft:
    """Return a recipe for a model and sources.

    Args:
        model: what it starts from; None for a model from scratch, of the texts.
        sources: of each of `KINDS`, none of some.
        path: the file that it is for.
        command: that asked for it.

    Raises:
        UsageError: nothing can be learned of these alone.
        SourceError: a source can't be read, or is not what it is named as.
        ModelError: the model is none to start from.
    """
    _require_enough(model, sources)
    found = [look(kind, source) for kind in KINDS for source in sources.get(kind, ())]
    materials = _told_apart(found)
    asking = [one for one in materials if one.kind != "texts"]
    if model is None:
        start = _scratch(materials)
    else:
        start = _with_template(start_from(model), any(not m.plain or m.source.chat for m in asking))
    drafting = Drafting(start, materials)
    stages = stages_of(drafting)
    head = (
        f"Written by `{one_line(command)}`. Paths are relative to the folder that rlhf is run in.",
        f"`rlhf show {path} --explain` tells every setting, `rlhf plan {path}` what it takes.",
    )
    text = recipe_text(head, {"seed": 0}, stages)
    content, _ = parse(text, lambda line: f"{path}:{line}")
    assert content["stages"] == plain(stages), "what is written is read as it was meant"
    told = [
        *([start.told()] if start.reference else []),
        *(line for one in materials for line in (one.told(), *one.lost())),
        *notes(drafting),
    ]
    return Draft(text, recipe_of(content | {"name": path.stem}, path), told)


def _require_enough(model: str | None, sources: Mapping[str, Sequence[SourceSettings]]) -> None:
    if model is None and not sources.get("texts"):
        raise UsageError(
            "there is nothing to start from: name a --model, or --texts to train one from nothing"
        )
    if not any(sources.get(kind) for kind in KINDS if kind != "prompts"):
        raise UsageError(
            "there is nothing to learn from: name --sft, --pairs, --rankings or --texts"
        )
    if sources.get("prompts") and not (sources.get("pairs") or sources.get("rankings")):
        raise UsageError(
            "--prompts are for PPO, which needs a reward model: name --pairs or --rankings, too"
        )


def _told_apart(found: Sequence[Material]) -> list[Material]:
    """Make plain prompts a user's turns where they are, or where others are chats."""
    asking = [one for one in found if one.kind != "texts"]
    chats = any(not one.plain for one in asking)
    chats = chats or not any(one.continues for one in asking if one.plain)
    return [one.as_chats() if chats and one.kind != "texts" and one.plain else one for one in found]


def _scratch(materials: Sequence[Material]) -> Start:
    texts = [one for one in materials if one.kind in ("texts", "sft")]
    sample = [to_text(record) for record in chain.from_iterable(one.records for one in texts)]
    seen = sum(map(len, sample)) / max(1, len(sample)) * sum(one.rows for one in texts)
    vocabulary = next((size for most, size in _VOCABULARIES if seen <= most), _LARGEST)
    return from_scratch(sample, vocabulary)


def _with_template(start: Start, chats: bool) -> Start:
    from data.text.chat import LINES_TEMPLATE

    if start.lines and chats:
        start.tokenizer.chat_template = LINES_TEMPLATE
        return start
    return replace(start, lines=False)
