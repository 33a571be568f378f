"""`rlhf show KIND`: the settings of a kind of stage, nested ones too, without a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from data.errors import one_line
from pipeline.contract.settings import Settings
from pipeline.recipe.load import settings_in
from pipeline.stages.registry import STAGE_MODULES, stage_kind

NEEDED = "needed"
_FIRST, _LAST = ("kind", "seed"), ("tools", "retrieve")
_LONGEST = 80
"""Characters of a default that are shown."""


class Described(NamedTuple):
    """A setting of a kind of stage.

    Attributes:
        path: its keys, joined by dots; of an item of a list or mapping with the kind of the item.
        value: its default as YAML, "" where its own settings follow.
        choices: the values that it may have, if they are few words.
        meaning: its docstring.
        depth: settings that it stands in.
    """

    path: str
    value: str
    choices: tuple[str, ...]
    meaning: str
    depth: int


def is_kind(name: str) -> bool:
    """Tell whether a name is that of a kind of stage."""
    return name in STAGE_MODULES


def explain_kind(name: str) -> str:
    """Return the settings of a kind as text: each with its default, values and meaning.

    Raises:
        RecipeError: no such kind.
    """
    settings = stage_kind(name).settings
    lines = [f"# {_meaning(settings.__doc__)} In a recipe they stand under `stages: NAME:`."]
    for entry in described(settings):
        margin = "  " * entry.depth
        among = f"  ({' | '.join(entry.choices)})" if len(entry.choices) > 1 else ""
        key = entry.path.rpartition(".")[2]
        lines.append(f"{margin}{key}: {entry.value}{among}".rstrip())
        lines += [f"{margin}    {entry.meaning}"] if entry.meaning else []
    return "\n".join(lines) + "\n"


def described(settings: type[Settings]) -> Iterator[Described]:
    """Yield every setting; those of settings that stand in several places at the first alone."""
    yield from _described(settings, "", 0, {})


def _described(
    settings: type[Settings], prefix: str, depth: int, seen: dict[type[Settings], str]
) -> Iterator[Described]:
    for name, field in sorted(settings.model_fields.items(), key=_place):
        path, inside = prefix + name, settings_in(field.annotation)
        meaning, value = _meaning(field.description), _default(field)
        known = [seen[one] for one in inside if one in seen]
        if known:
            meaning = f"{meaning} Settings as those of {', '.join(dict.fromkeys(known))}."
        new = [one for one in inside if one not in seen]
        yield Described(path, value, _choices(field), meaning, depth)
        for one in new:
            seen[one] = path
            here, deeper = path + ".", depth + 1
            if len(inside) > 1 or _listed(field.annotation):
                kind = one.model_fields.get("kind")
                label = str(kind.default) if kind is not None else "-"
                yield Described(f"{here}{label}", "", (), _meaning(one.__doc__), deeper)
                here, deeper = f"{here}{label}.", depth + 2
            yield from _described(one, here, deeper, seen)


def _place(named: tuple[str, FieldInfo]) -> int:
    """Return what fields are sorted by: what many kinds have stands last, and the kind first."""
    return (named[0] in _LAST) - (named[0] in _FIRST)


def _listed(annotation: Any) -> bool:
    """Tell whether settings stand as items of a list or a mapping."""
    origin = get_origin(annotation)
    if isinstance(origin, type) and issubclass(origin, (tuple, list, Mapping)):
        return True
    return any(_listed(part) for part in get_args(annotation))


def _meaning(text: str | None) -> str:
    return " ".join((text or "").split())


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return NEEDED
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Settings):
        return ""
    text: str = yaml.safe_dump(
        list(value) if isinstance(value, tuple) else value, default_flow_style=True, width=10_000
    )
    line = one_line(" ".join(text.removesuffix("\n").removesuffix("\n...").split()))
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} ..."


def _choices(field: FieldInfo) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_words(field.annotation)))


def _words(annotation: Any) -> Iterator[str]:
    if get_origin(annotation) is Literal:
        yield from (
            str(word).lower() if word in (True, False) else word for word in get_args(annotation)
        )
        return
    for part in get_args(annotation):
        if get_origin(part) is Literal or get_args(part):
            yield from _words(part)
        elif part is bool:
            yield from ("true", "false")
