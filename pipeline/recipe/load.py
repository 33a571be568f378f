"""Recipes: YAML files that chain stages. `extends`, `--set`, and errors that name the place.

A recipe is a mapping of stage names to settings; `kind` picks the stage, and a stage refers to
another by its name. Nothing in YAML names Python code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ValidationError, field_validator

from data.errors import RecipeError, nearest, one_line
from data.plain_yaml import DEEPEST, Keys, Places, parse
from pipeline.contract.addresses import shown_value
from pipeline.contract.kind import StageKind
from pipeline.contract.retired import take_out
from pipeline.contract.settings import (
    LaunchSettings,
    Seed,
    Settings,
    StageSettings,
    is_external,
    references,
)
from pipeline.recipe.files import is_index, keys_of, read_merged
from pipeline.recipe.rounds import RoundsSettings, is_copy, write_out
from pipeline.recipe.shipped import find_file
from pipeline.stages.registry import stage_kind

M = TypeVar("M", bound=BaseModel)
TOP = ("name", "description", "seed", "launch", "trackers", "rounds", "extends", "stages")
LONGEST_NAME = 200
"""Bytes of a folder's name; file systems take 255, and files beside it add to it."""
MOST_STAGES = 100
MOST_TOLD = 10
"""Problems of one recipe that are told at once."""


class RecipeSettings(Settings):
    """The top of a recipe, stages apart."""

    name: str
    """Name of the run folder; the file's stem when not given."""
    description: str = ""
    """One line for `rlhf show`."""
    seed: Seed = 0
    """Seed of data order, initialisation and sampling of every stage."""
    launch: LaunchSettings = LaunchSettings()
    """How many processes a training stage runs on."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Where metrics go beside metrics.jsonl; TensorBoard reads `runs/<recipe>/logs`."""
    rounds: RoundsSettings | None = None
    """Stages that run again on what the former round made; `rlhf show` writes them out."""

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if name in ("", ".", "..") or "/" in name or not name.isprintable():
            raise ValueError("it names the run's folder, so no '/' and no '..'; --out takes a path")
        if len(name.encode()) > LONGEST_NAME:
            raise ValueError(f"it names the run's folder, so at most {LONGEST_NAME} bytes")
        return name


@dataclass(frozen=True)
class Recipe:
    """A checked recipe.

    Attributes:
        path: file it was read from.
        top: everything but the stages.
        stages: settings by stage name, in the order in which they run.
        resolved: plain mapping of the whole, `extends` and `--set` applied, defaults left out.
        places: file and line, or `--set`, of each value that was given, by its keys.
    """

    path: Path
    top: RecipeSettings
    stages: Mapping[str, StageSettings]
    resolved: Mapping[str, Any] = field(repr=False)
    places: Mapping[Keys, str] = field(repr=False, default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the recipe and of its run folder."""
        return self.top.name

    def kind(self, stage: str) -> StageKind:
        """Return the kind of a stage."""
        return stage_kind(self.stages[stage].kind)

    def seed(self, stage: str) -> int:
        """Return the seed of a stage."""
        own = self.stages[stage].seed
        return self.top.seed if own is None else own

    def parents(self, stage: str) -> list[str]:
        """Return the stages that a stage refers to, each once."""
        targets = [t for t, _ in references(self.stages[stage]).values() if not is_external(t)]
        return list(dict.fromkeys(targets))

    def to_yaml(self) -> str:
        """Return the resolved recipe with every default written out."""
        return self._text

    @cached_property
    def _text(self) -> str:
        content = {
            **self.top.model_dump(mode="json"),
            "stages": {n: s.model_dump(mode="json") for n, s in self.stages.items()},
        }
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, merge and check a recipe.

    Args:
        path: YAML file, or the name of a recipe that comes with the package.
        overrides: `a.b=value` of `--set`, applied last; `stage.key` is short for
            `stages.stage.key`. The value is read as YAML.

    Raises:
        RecipeError: anything is wrong; names file, path and value.
    """
    path = find_file(path)
    content, places = read_merged(path)
    for override in overrides:
        _apply_override(content, places, override)
    content.setdefault("name", path.stem)
    return _check(path, content, places)


def recipe_of(content: dict[str, Any], path: Path) -> Recipe:
    """Check a recipe that was made of a file of another kind.

    Args:
        content: the recipe, its name too.
        path: the file, which errors name.

    Raises:
        RecipeError: anything is wrong.
    """
    return _check(path, content, {(): str(path)})


def _apply_override(content: dict[str, Any], places: Places, override: str) -> None:
    dotted, equals, text = override.partition("=")
    where = f"--set {one_line(override):.200}"
    if not equals or not all(dotted.split(".")):
        raise RecipeError(f"{where}: write it as a.b=value, such as sft.epochs=2 or seed=1")
    keys = dotted.split(".")
    if len(keys) > DEEPEST:
        raise RecipeError(f"{where}: no setting stands {len(keys)} keys deep")
    value, _ = parse(text, lambda _: where)
    stages = content.get("stages")
    if keys[0] not in TOP and isinstance(stages, dict):
        if is_copy(keys[0], content):
            stages.setdefault(keys[0], {})
        if keys[0] not in stages:
            raise RecipeError(
                f"{where}: '{keys[0]}' is neither a stage nor a setting of the recipe."
                f"{nearest(keys[0], [*stages, *TOP])}"
            )
        keys = ["stages", *keys]
    target: Any = content
    for depth, key in enumerate(keys[:-1]):
        target = _step(target, key, where, ".".join(keys[: depth + 1]))
    last: str | int = keys[-1]
    if isinstance(target, list):
        _step(target, keys[-1], where, ".".join(keys))
        last = int(keys[-1])
    elif not isinstance(target, dict):
        raise RecipeError(f"{where}: {'.'.join(keys[:-1])} is {target!r}, it has no keys")
    target[last] = value
    path = keys_of(".".join(keys))
    for inside in [known for known in places if known[: len(path)] == path]:
        del places[inside]
    places[path] = where


def _step(target: Any, key: str, where: str, dotted: str) -> Any:
    if isinstance(target, dict):
        if target.get(key) is None:
            target[key] = {}
        return target[key]
    if isinstance(target, list):
        if not is_index(key) or int(key) >= len(target):
            raise RecipeError(f"{where}: {dotted}: the list has items 0 to {len(target) - 1}")
        return target[int(key)]
    raise RecipeError(f"{where}: {dotted}: {target!r} has no keys")


def _check(path: Path, content: dict[str, Any], places: Places) -> Recipe:
    stages = content.get("stages")
    if not isinstance(stages, dict) or not stages:
        raise RecipeError(
            f"{path}: stages: a recipe needs at least one stage, this has {stages!r:.80}"
        )
    _require_few(path, stages)
    problems: list[str] = []
    top = validate(
        RecipeSettings, {k: v for k, v in content.items() if k != "stages"}, (), places, problems
    )
    if top is not None and top.rounds is not None:
        for name, settings in stages.items():
            _take_out_retired(name, settings, places, problems)
        try:
            write_out(top.rounds, content, places)
        except RecipeError as error:
            raise RecipeError(f"{places.get(('rounds',), path)}: {error}") from None
        top = top.model_copy(update={"rounds": None})
    checked: dict[str, StageSettings] = {}
    for name, settings in stages.items():
        result = _check_stage(path, name, settings, places, problems)
        if result is not None:
            checked[name] = result
    if top is None or problems:
        more = len(problems) - MOST_TOLD
        shown = [*problems[:MOST_TOLD], *([f"and {more} more like these"] if more > 0 else [])]
        raise RecipeError(*shown)
    _check_references(path, checked, places)
    order = _order(path, checked, places)
    return Recipe(path, top, {name: checked[name] for name in order}, content, places)


def _require_few(path: Path, stages: Mapping[str, Any]) -> None:
    if len(stages) > MOST_STAGES:
        raise RecipeError(
            f"{path}: stages: {len(stages)} stages, at most {MOST_STAGES} make a recipe; split it"
        )


def _check_stage(
    path: Path, name: Any, settings: Any, places: Places, problems: list[str]
) -> StageSettings | None:
    place = places.get(("stages", name), str(path))
    if not isinstance(name, str) or not name.replace("_", "").replace("-", "").isalnum():
        problems.append(
            f"{place}: stages.{one_line(str(name)):.60}: a stage's name is letters, digits, '-' "
            "and '_'; it names its folder"
        )
        return None
    if len(name.encode()) > LONGEST_NAME:
        problems.append(
            f"{place}: stages.{name:.60}...: a stage's name has at most {LONGEST_NAME} bytes; it "
            "names its folder"
        )
        return None
    if name in ("report", "logs"):
        problems.append(f"{place}: stages.{name}: '{name}' is a folder of the run; rename it")
        return None
    if not isinstance(settings, dict) or "kind" not in settings:
        problems.append(f"{place}: stages.{name}: a stage is a mapping with `kind:`")
        return None
    try:
        kind = stage_kind(str(settings["kind"]))
    except RecipeError as error:
        place = places.get(("stages", name, "kind"), place)
        problems.append(f"{place}: stages.{name}.kind: {error}")
        return None
    _take_out_retired(name, settings, places, problems)
    return validate(kind.settings, settings, ("stages", name), places, problems)


def _take_out_retired(name: str, settings: Any, places: Places, problems: list[str]) -> None:
    """Take out of a stage what is no setting any more; note what differs from it."""
    if not isinstance(settings, dict):
        return
    for retired, value, why in take_out(str(settings.get("kind")), settings):
        keys = ("stages", name, *retired.split("."))
        place = _place_of(keys, places)
        problems.append(f"{place}{'.'.join(keys)}: {value!r:.80}: {why}")


def _place_of(keys: Keys, places: Places) -> str:
    """Return the nearest known place of a value, to begin a sentence with."""
    for length in range(len(keys), -1, -1):
        if keys[:length] in places:
            return f"{places[keys[:length]]}: "
    return ""


def validate(
    model: type[M],
    values: Mapping[str, Any],
    prefix: Keys,
    places: Places,
    problems: list[str],
) -> M | None:
    """Return the settings that values make, or None after noting what is wrong with them.

    Args:
        model: the settings.
        values: as they stand in the file.
        prefix: keys that lead to them.
        places: where each key stands.
        problems: gets a sentence for each.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        by_place: dict[Keys, list[Any]] = {}
        for item in error.errors(include_url=False):
            by_place.setdefault(_as_written(item, values), []).append(item)
        for loc, items in by_place.items():
            # A list whose items are wrong counts as empty, or as no text, too; its items tell
            # what is the matter.
            follows = all(item["type"] in _SHAPES for item in items) and any(
                other[: len(loc)] == loc and other != loc for other in by_place
            )
            if not follows:
                problems.append(_problem(model, loc, items, prefix, places))
        return None


def _as_written(item: Any, values: Mapping[str, Any]) -> Keys:
    """Return where an error stands as the recipe has it: without the names of a union's types."""
    keys: list[str | int] = []
    value: Any = values
    for key in item["loc"]:
        listed = isinstance(value, (list, tuple)) and isinstance(key, int) and key < len(value)
        if listed or (isinstance(value, Mapping) and key in value):
            value = value[key]
        elif item["type"] != "missing" or key != item["loc"][-1]:
            continue
        keys.append(key)
    return tuple(keys)


_WORDING = {
    "model_type": "this is a mapping of settings",
    "model_attributes_type": "this is a mapping of settings",
    "dict_type": "this is a mapping",
    "tuple_type": "this is a list",
    "too_short": "this list needs an item",
    "string_type": "this is a text; put a number in quotes",
}
_SHAPES = frozenset(("too_short", "string_type", "tuple_type", "model_type", "dict_type"))


def _problem(
    model: type[BaseModel], location: Keys, items: Sequence[Any], prefix: Keys, places: Places
) -> str:
    item, keys = items[0], (*prefix, *location)
    place = _place_of(keys, places)
    dotted = one_line(".".join(str(k) for k in keys))
    if item["type"] == "extra_forbidden":
        known = _known_keys(model, location[:-1])
        near = nearest(str(location[-1]), known)
        return f"{place}{dotted}: unknown key (value {shown_value(item['input'])}).{near}"
    if item["type"] == "missing":
        return f"{place}{dotted}: this key is needed and not given"
    messages = [_WORDING.get(i["type"]) or i["msg"].removeprefix("Value error, ") for i in items]
    message = ", or ".join(dict.fromkeys(messages))
    # What a check of several keys at once was given is the whole mapping; its words name them.
    value = "" if isinstance(item["input"], Mapping) else f"{shown_value(item['input'])}: "
    return f"{place}{dotted}: {value}{message[:1].lower()}{message[1:]}"


def _known_keys(model: type[BaseModel], location: Keys) -> list[str]:
    """Return the keys of the settings model at a location, through lists and unions."""
    current: list[Any] = [model]
    for key in location:
        following: list[Any] = []
        for candidate in current:
            if isinstance(key, str) and key in candidate.model_fields:
                following += settings_in(candidate.model_fields[key].annotation)
        current = following or current
    return sorted({name for candidate in current for name in candidate.model_fields})


def settings_in(annotation: Any) -> list[type[Settings]]:
    """Return the settings that an annotation holds, through lists, mappings and unions."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [m for part in getattr(annotation, "__args__", ()) for m in settings_in(part)]


def _check_references(path: Path, stages: Mapping[str, StageSettings], places: Places) -> None:
    for name, settings in stages.items():
        for where, (target, mark) in references(settings).items():
            place = places.get(("stages", name, *keys_of(where)), str(path))
            dotted = f"{place}: stages.{name}.{where}"
            if is_external(target):
                continue
            if target not in stages:
                raise RecipeError(
                    f"{dotted}: no stage is named '{target}'; a path has a '/', and a hub id "
                    f"without one is written hub:{target}.{nearest(target, stages)}"
                )
            provides = stage_kind(stages[target].kind).provides
            if mark.provides not in provides:
                raise RecipeError(
                    f"{dotted}: '{target}' is a {stages[target].kind} stage, it gives "
                    f"{' and '.join(sorted(provides)) or 'nothing'}; needed: {mark.provides}"
                )


def _field(settings: StageSettings, target: str) -> str:
    return next(where for where, (named, _) in references(settings).items() if named == target)


def _order(path: Path, stages: Mapping[str, StageSettings], places: Places) -> list[str]:
    """Order stages so that each comes after what it refers to, else as they stand."""
    done: list[str] = []

    def visit(name: str, stack: tuple[str, ...]) -> None:
        if name in stack:
            members = (*stack[stack.index(name) :], name)
            links = [f"{a}.{_field(stages[a], b)}" for a, b in pairwise(members)]
            place = places.get(("stages", *keys_of(links[-1])), str(path))
            raise RecipeError(
                f"{place}: stages refer to each other in a circle: {' -> '.join(members)}; "
                f"let one of {', '.join(links)} name another"
            )
        if name in done:
            return
        for target, _ in references(stages[name]).values():
            if not is_external(target):
                visit(target, (*stack, name))
        done.append(name)

    for name in stages:
        visit(name, ())
    return done
