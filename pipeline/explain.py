"""`rlhf show --explain`: every setting with its meaning, and where its value comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pipeline.config import Settings
from pipeline.recipe import Recipe
from pipeline.recipe_files import Keys

DEFAULT = "default"


class Explained(NamedTuple):
    """One setting.

    Attributes:
        path: its keys, joined by dots.
        value: as YAML.
        origin: "default", `FILE:LINE`, or `--set A=B`.
        meaning: its docstring.
        comment: the comment on it in the recipe.
    """

    path: str
    value: str
    origin: str
    meaning: str
    comment: str


def explain(recipe: Recipe) -> str:
    """Return a recipe as text, every setting under the one it belongs to."""
    lines: list[str] = []
    for entry in explained(recipe):
        depth = entry.path.count(".") if entry.path.startswith("stages.") else 0
        margin = "  " * max(0, depth - 1)
        name = entry.path.rpartition(".")[2] if depth > 1 else entry.path
        lines.append(f"{margin}{name}: {entry.value}  <- {entry.origin}".replace(":   <-", ":  <-"))
        lines += [f"{margin}    {text}" for text in (entry.meaning,) if text]
        lines += [f"{margin}    # {line}" for line in entry.comment.splitlines()]
    return "\n".join(lines) + "\n"


def explained(recipe: Recipe) -> Iterator[Explained]:
    """Yield every setting of a recipe, stages in the order in which they run."""
    yield from _settings(recipe, recipe.top, ())
    for name, stage in recipe.stages.items():
        keys: Keys = ("stages", name)
        yield _entry(recipe, keys, "", f"A stage of kind {stage.kind}.")
        yield from _settings(recipe, stage, keys)


def _settings(recipe: Recipe, settings: Settings, keys: Keys) -> Iterator[Explained]:
    for field, info in type(settings).model_fields.items():
        value = getattr(settings, field)
        here = (*keys, field)
        meaning = " ".join((info.description or "").split())
        plain = settings.model_dump(mode="json", include={field})[field]
        nested = isinstance(value, Settings)
        yield _entry(recipe, here, "" if nested else _text(plain), meaning)
        if nested:
            yield from _settings(recipe, value, here)
        elif isinstance(value, (tuple, list)):
            for place, item in enumerate(value):
                if isinstance(item, Settings):
                    yield _entry(recipe, (*here, place), "", type(item).__doc__ or "")
                    yield from _settings(recipe, item, (*here, place))


def _text(value: Any) -> str:
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return ""  # its items follow
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _entry(recipe: Recipe, keys: Keys, value: str, meaning: str) -> Explained:
    origin = _origin(recipe, keys)
    file, _, line = origin.rpartition(":")
    in_file = line.isdigit() and not origin.startswith("--set")
    comment = comments(Path(file)).get(int(line), "") if in_file else ""
    return Explained(".".join(map(str, keys)), value, origin, meaning, comment)


def _origin(recipe: Recipe, keys: Keys) -> str:
    """Return where a value was given; a key that no file and no --set has is a default."""
    if keys == ("name",) and keys not in recipe.places:
        return "the file's name"
    current: Any = recipe.resolved
    found = str(recipe.path)
    for depth, key in enumerate(keys, start=1):
        if isinstance(current, Mapping):
            present = key in current
        else:
            present = isinstance(current, list) and isinstance(key, int) and key < len(current)
        if not present:
            return DEFAULT
        current = current[key]
        # A value inside one that was given whole, as by --set a=[..], has that one's place.
        found = recipe.places.get(keys[:depth], found)
    return found


@cache
def comments(path: Path) -> Mapping[int, str]:
    """Return the comments of a YAML file by the line of what they stand beside or above.

    A comment belongs to the line it ends, or to the next line that is no comment, if it begins in
    the same column as what stands there and no empty line is between. What begins in the first line
    tells of the whole file and belongs to none.
    """
    text = path.read_text(encoding="utf-8")
    quoted = [
        range(token.start_mark.index, token.end_mark.index)
        for token in yaml.scan(text, Loader=yaml.SafeLoader)
        if isinstance(token, yaml.ScalarToken)
    ]
    found: dict[int, str] = {}
    above: list[tuple[int, str]] = []
    of_file = True
    place = 0
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        start = _comment_start(line, place, quoted)
        body, comment = line[:start], line[start:].strip().removeprefix("#").strip()
        column = len(line) - len(line.lstrip())
        if not body.strip() and start < len(line):
            above += [] if of_file else [(column, comment)]
        else:
            of_file = False
            own = [text for at, text in above if at == column] if body.strip() else []
            notes = [*own, *([comment] if comment else [])]
            if notes:
                found[number] = "\n".join(notes)
            above = []
        place += len(line)
    return found


def _comment_start(line: str, place: int, quoted: list[range]) -> int:
    """Return the column at which a line's comment begins; its length when it has none."""
    for column, character in enumerate(line):
        begins = column == 0 or line[column - 1] in " \t"
        if character == "#" and begins and not any(place + column in span for span in quoted):
            return column
    return len(line)
