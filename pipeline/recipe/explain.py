"""`rlhf show --explain`: every setting with its meaning, and where its value comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, get_origin

import yaml

from data.errors import RecipeError
from data.plain_yaml import Keys
from pipeline.contract.settings import Settings
from pipeline.recipe.files import read_merged
from pipeline.recipe.load import Recipe, load_recipe
from pipeline.recipe.shipped import find_file
from pipeline.stages.registry import stage_kind

DEFAULT = "default"
LEFT_OPEN = "needed, and left to what extends this"
_FILLER = "./left-to-what-extends-this"
_EITHER = {
    **dict.fromkeys(("reward", "dpo", "kto"), ("rankings", "train", None)),
    "ppo": ("pretraining", "pretraining_sources", "ptx_coefficient"),
}
"""Two settings of a kind one of which is needed, always or where the third is set."""


class Explained(NamedTuple):
    """One setting.

    Attributes:
        path: its keys, joined by dots.
        value: as YAML.
        origin: "default", `FILE:LINE`, `--set A=B`, or that a base leaves it open.
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


def load_explained(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe to be explained: one to be extended may leave open what a stage needs.

    Args:
        path: as of `load_recipe`.
        overrides: as of `load_recipe`.

    Raises:
        RecipeError: anything else is wrong.
    """
    content, _ = read_merged(find_file(path))
    stages = content.get("stages")
    fillers = [
        f"{name}.{filler}"
        for name, given in (stages.items() if isinstance(stages, dict) else ())
        if isinstance(given, dict)
        for filler in _fillers(given)
    ]
    return load_recipe(path, [*fillers, *overrides])


def _fillers(given: Mapping[str, Any]) -> Iterator[str]:
    """Yield `KEY=VALUE` for what a stage needs and was not given."""
    try:
        kind = stage_kind(str(given.get("kind")))
    except RecipeError:
        return  # which `load_recipe` tells of
    for key, field in kind.settings.model_fields.items():
        if field.is_required() and key not in given:
            listed = get_origin(field.annotation) is tuple
            yield f"{key}=[{{path: {_FILLER}}}]" if listed else f"{key}={_FILLER}"
    one, other, where = _EITHER.get(str(given["kind"]), (None, None, None))
    wanted = one is not None and (where is None or given.get(where))
    if wanted and one not in given and other not in given:
        yield f"{one}={_FILLER}"


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
        # What stands at its default may be left out.
        plain = settings.model_dump(mode="json", include={field}).get(field, value)
        nested = isinstance(value, Settings)
        yield _entry(recipe, here, "" if nested else _text(plain), meaning)
        if _FILLER in _origin(recipe, here):
            continue
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
    if _FILLER in origin:
        return Explained(".".join(map(str, keys)), "", LEFT_OPEN, meaning, "")
    file, _, line = origin.rpartition(":")
    in_file = line.isdigit() and not origin.startswith("--set")
    comment = comments(Path(file)).get(int(line), "") if in_file else ""
    return Explained(".".join(map(str, keys)), value, origin, meaning, comment)


def _origin(recipe: Recipe, keys: Keys) -> str:
    """Return where a value was given; a key that no file and no --set has is a default."""
    if keys == ("name",) and keys not in recipe.places:
        return "the file's name"
    current: Any = recipe.resolved
    place = str(recipe.path)
    for depth, key in enumerate(keys, start=1):
        if isinstance(current, Mapping):
            present = key in current
        else:
            present = isinstance(current, list) and isinstance(key, int) and key < len(current)
        if not present:
            return DEFAULT
        current = current[key]
        # A value inside one that was given whole, as by --set a=[..], has that one's place.
        place = recipe.places.get(keys[:depth], place)
    return place


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
    by_line: dict[int, str] = {}
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
                by_line[number] = "\n".join(notes)
            above = []
        place += len(line)
    return by_line


def _comment_start(line: str, place: int, quoted: list[range]) -> int:
    """Return the column at which a line's comment begins; its length when it has none."""
    for column, character in enumerate(line):
        begins = column == 0 or line[column - 1] in " \t"
        if character == "#" and begins and not any(place + column in span for span in quoted):
            return column
    return len(line)
