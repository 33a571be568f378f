"""Stages as the text of a recipe, with the reason beside each value."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import yaml

WIDTH = 100


class Because(NamedTuple):
    """A value and why it is set."""

    value: Any
    why: str


@dataclass(frozen=True)
class Stage:
    """A stage: what it is there for, and its settings, some of them `Because`."""

    why: str
    settings: Mapping[str, Any]


def recipe_text(head: Sequence[str], top: Mapping[str, Any], stages: Mapping[str, Stage]) -> str:
    """Return a recipe as YAML.

    Args:
        head: paragraphs of the comment that it begins with.
        top: what stands above the stages.
        stages: by name, in their order.
    """
    lines = [line for part in head for line in _comment(part, 0)]
    for name, value in top.items():
        lines += _setting(name, value, 0)
    lines.append("stages:")
    for name, stage in stages.items():
        lines += _comment(stage.why, 2)
        lines.append(f"  {name}:")
        for key, value in stage.settings.items():
            lines += _setting(key, value, 4)
        lines.append("")
    return "\n".join(lines)


def plain(stages: Mapping[str, Stage]) -> dict[str, dict[str, Any]]:
    """Return the settings of stages without their reasons."""
    return {
        name: {
            key: given.value if isinstance(given, Because) else given
            for key, given in stage.settings.items()
        }
        for name, stage in stages.items()
    }


def _setting(name: str, given: Any, margin: int) -> Iterator[str]:
    value, why = given if isinstance(given, Because) else (given, "")
    yield from _comment(why, margin)
    front = " " * margin
    if isinstance(value, list) and len(value) > 1 and isinstance(value[0], Mapping):
        yield f"{front}{name}:"
        yield from (f"{front}  - {_flow(item)}" for item in value)
    else:
        yield f"{front}{name}: {_flow(value)}"


def _flow(value: Any) -> str:
    text: str = yaml.safe_dump(
        value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=float("inf")
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _comment(text: str, margin: int) -> Iterator[str]:
    front = " " * margin + "# "
    for line in textwrap.wrap(text, WIDTH - len(front), break_on_hyphens=False):
        yield front + line
