"""What is held out: one split by what rows ask, for all stages, and one of the texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data.errors import SourceError
from data.words import counted
from pipeline.contract.settings import HELDOUT
from pipeline.recipe.draft.material import Material

ENOUGH, ENOUGH_TEXTS = 100, 20
"""Prompts, and texts, that are held out where there are so many."""
_SHARES, _LARGE = (0.02, 0.05, 0.1, 0.2), (0.3, 0.5)
_TEXT_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2)


def places(materials: Iterable[Material]) -> dict[Any, float]:
    """Return the place in the split of each thing that sources ask, each once."""
    return {asked: place for one in materials for asked, place in one.places.items()}


def held(share: float, of: Mapping[Any, float]) -> int:
    """Return how many are held out."""
    return sum(place < share for place in of.values())


def prompt_share(groups: Sequence[Sequence[Material]]) -> float:
    """Return the share of the prompts to hold out: of each group enough, and never all.

    Raises:
        SourceError: a group asks too few things to have both sides.
    """
    asked = [places(group) for group in groups]
    for share in _SHARES:
        if all(held(share, of) >= ENOUGH for of in asked):
            return share
    for share in (_SHARES[-1], *_LARGE):
        if all(0 < held(share, of) < len(of) for of in asked):
            return share
    few, named = min(zip(asked, groups, strict=True), key=lambda pair: len(pair[0]))
    raise SourceError(
        f"--{named[0].kind} {named[0].place}: {counted(len(few), 'different prompt')}, too few to "
        "learn from some and judge by others; give more rows"
    )


def text_share(texts: Sequence[Material]) -> float | None:
    """Return the share of the texts to hold out, None where there are too few."""
    count = sum(len(one.places) for one in texts)
    if count < ENOUGH_TEXTS:
        return None
    for share in _TEXT_SHARES:
        out = sum(held(share, one.places) for one in texts)
        if ENOUGH_TEXTS <= out < count:
            return share
    return _TEXT_SHARES[-1] if any(held(_TEXT_SHARES[-1], one.places) for one in texts) else None


def sides(
    materials: Iterable[Material], part: str, share: float | None, *, limit: int | None = None
) -> list[dict[str, Any]]:
    """Return sources as a recipe has them, of one side of the split; whole where there is none."""
    split: dict[str, Any] = {} if share is None else {"part": part}
    if share not in (None, HELDOUT):
        split["heldout_share"] = share
    if limit is not None:
        split["limit"] = limit
    return [one.source.model_dump(mode="json", exclude_defaults=True) | split for one in materials]
