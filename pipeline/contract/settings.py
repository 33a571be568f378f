"""Settings: the base of all of them, and references between stages.

Each stage declares its own settings in its package; no default lives anywhere else. They import
nothing heavy, so that `rlhf validate` and `rlhf show` answer without loading torch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from data.errors import SourceError
from data.sources.source import Source
from pipeline.contract.retired import RETIRED, put_back


class Settings(BaseModel):
    """Frozen settings that refuse unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @field_validator("*", mode="wrap")
    @classmethod
    def _is_meant(cls, value: Any, check: ValidatorFunctionWrapHandler) -> Any:
        """Refuse `true` for a number, and a whole number that no library could take."""
        checked = check(value)
        if type(checked) in (int, float):
            if isinstance(value, bool):
                raise ValueError("this is a number, neither true nor false")
            if isinstance(checked, int) and abs(checked) >= 2**63:
                raise ValueError("this number is too large; it must be below 2^63")
        return checked

    def changed_among(self, *names: str) -> list[str]:
        """Return which of these fields differ from their defaults."""
        # Not those that are given: a run's own recipe has every default written out.
        fields = type(self).model_fields
        return [name for name in names if getattr(self, name) != fields[name].default]


@dataclass(frozen=True)
class Ref:
    """Marks a settings field as a reference to another stage, a path, or a hub id.

    Attributes:
        provides: what the referred stage must provide: "tokenizer", "policy", "reward",
            "rankings" or "shards".
    """

    provides: str


@dataclass(frozen=True)
class UserFunction:
    """Marks a settings field as the name of a function in a file that `--plugin` gives."""


@dataclass(frozen=True)
class HashedFolder:
    """Marks a settings field as a folder whose files the result follows from."""


@dataclass(frozen=True)
class SameResult:
    """Marks a settings field that changes how a stage computes, logs or saves, never its result.

    Every other field changes the result. Rounding does not count: sums taken in another order.
    A stage whose marked fields alone change stays up to date, and its resume states are taken up.

    Attributes:
        where: property of the settings that tells whether it holds; always when not given.
    """

    where: str | None = None


def is_external(reference: str) -> bool:
    """Tell whether a reference is a path or a hub id instead of a stage's name."""
    return reference.startswith((".", "/", "~", "hub:")) or "/" in reference


def external_location(reference: str) -> str:
    """Return the path or hub id that an external reference names."""
    return reference.removeprefix("hub:") if reference.startswith("hub:") else reference


Number = Annotated[float, Field(allow_inf_nan=False)]
"""A finite float; PyYAML reads `1e-5` as a string, which pydantic takes for the number."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""A seed, as all random number generators take it."""
PositiveNumber = Annotated[Number, Field(gt=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
NonNegative = Annotated[Number, Field(ge=0)]
PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]


HELDOUT = 0.05
"""Share that a source holds out where it names a part and no share."""


class SourceSettings(Settings):
    """One source of rows: a local path, a hub data set, or a part of the embedded world."""

    path: str | tuple[str, ...] | None = None
    """File, folder or glob, relative to the working folder; .gz and .zst too."""
    hub: str | None = None
    """Id of a data set on the Hugging Face hub, or a local folder in its layout."""
    hub_name: str | None = None
    """Configuration of the hub data set."""
    hub_split: str = "train"
    """Split of the hub data set, or of a folder that holds several."""
    hub_revision: str | None = None
    """Commit, tag or branch of the hub data set."""
    hub_files: str | tuple[str, ...] | None = None
    """Files of the hub data set to read, such as "harmless-base/train.jsonl.gz"."""
    world: str | None = None
    """Part of the embedded world: corpus, register, lists, tongue, instructions, sums, text_tasks,
    closed_book; with labels statements, passages, names ..."""
    world_seed: int = 0
    """Seed of the embedded world."""
    stage: Annotated[str | None, Ref("rows")] = Field(None, exclude_if=lambda given: given is None)
    """Stage of this recipe that leaves rows, such as a tool_annotate stage, or its folder."""
    format: str = "auto"
    """Format of the rows; "auto" tells from the columns."""
    columns: dict[str, str] | None = None
    """Our name of a column -> its name in the source."""
    limit: PositiveInt | None = None
    """At most so many rows; where a stage looks at a certain number of rows, as many if more."""
    skip: NonNegativeInt = 0
    """Rows to pass over at the start."""
    # Left out where it is not given: runs from before there was such a setting go on.
    instruction: str | None = Field(None, min_length=1, exclude_if=lambda given: given is None)
    """Line put below what each row asks, such as "Let's think step by step."."""
    chat: bool = Field(False, exclude_if=lambda given: given is False)
    """Make plain prompts turns of the user, which go through the chat template."""
    part: Literal["train", "heldout"] | None = Field(None, exclude_if=lambda given: given is None)
    """Side of a split by what rows ask, the same in every file and stage; all when not given."""
    heldout_share: Annotated[Number, Field(gt=0, lt=1)] = Field(
        HELDOUT, exclude_if=lambda given: given == HELDOUT
    )
    """With `part`: share of the prompts (of documents, of the texts) that is held out."""
    max_bad_share: Annotated[Share, SameResult()] = 0.01
    """Share of malformed rows above which the stage stops."""
    license: Annotated[str | None, SameResult()] = Field(
        None, min_length=1, max_length=200, exclude_if=lambda given: given is None
    )
    """Licence of the rows, such as "cc-by-4.0", which the card of a published model tells."""

    @model_validator(mode="after")
    def _one_origin(self) -> SourceSettings:
        origins = ("path", "hub", "world", "stage")
        named = [k for k in origins if getattr(self, k) is not None]
        if len(named) != 1:
            raise ValueError(
                f"a source names exactly one of {', '.join(origins)}; this one names "
                f"{named or 'none'}"
            )
        if self.part is None and self.changed_among("heldout_share"):
            raise ValueError("heldout_share is for `part: train` or `part: heldout`; name one")
        return self

    def source(self) -> Source:
        """Return the source to read.

        Raises:
            SourceError: there is no such format, or the rows are those of a stage, which only
                stages that learn from texts or demonstrations read.
        """
        if self.stage is not None:
            raise SourceError(f"rows of stage {self.stage} are not read here; name a file of them")
        return Source(**self.model_dump(exclude={"license"}))

    def with_path(self, path: Path) -> SourceSettings:
        """Return the source with the file of a stage's rows in its place."""
        return self.model_copy(update={"stage": None, "path": str(path)})


def rows_at_most(sources: Sequence[SourceSettings], most: int) -> int:
    """Return how many rows of sources are looked at: `most`, or as many as all of them ask for."""
    limits = [source.limit for source in sources if source.limit is not None]
    return max(most, sum(limits)) if len(limits) == len(sources) else most


class Lora(Settings):
    """A low-rank adapter that is trained instead of the weights (Hu et al. 2021); no dropout."""

    rank: PositiveInt = 16
    """Rank of the adapter's matrices."""
    alpha: PositiveNumber = 32.0
    """The adapter's product counts alpha / rank."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Last parts of the names of the adapted layers; all linear ones but the head (QLoRA)."""


class StageSettings(Settings):
    """What every stage has."""

    kind: str
    """Kind of stage."""
    seed: Seed | None = None
    """Seed of this stage; the recipe's when not given."""

    def applied_settings(self) -> dict[str, Any]:
        """Return all settings that apply, as JSON; the seed apart."""
        return self.model_dump(mode="json", exclude={"seed"})

    def recorded_settings(self) -> dict[str, Any]:
        """Return all settings that apply, and the retired ones, as JSON; the seed apart."""
        return put_back(self.kind, self.applied_settings())

    def key_settings(self) -> dict[str, Any]:
        """Return the settings that the stage's result follows from, as JSON; the seed apart."""
        return without(self.recorded_settings(), same_result(self))

    @property
    def takes_older_states(self) -> bool:
        """Whether resume states go on whose key still held what is marked `SameResult`."""
        return True


class LaunchSettings(Settings):
    """How many processes run a stage, through `accelerate launch`."""

    processes: PositiveInt = 1
    """Number of processes; 1 runs the stage in the process of `rlhf run`."""
    config: str | None = None
    """Path of an accelerate configuration file."""


def by_kind(error_type: str, message: str) -> Discriminator:
    """Return what tells of one of several settings by its `kind` which they are.

    Args:
        error_type: of a kind that there is none of.
        message: then.
    """
    return Discriminator(_kind, custom_error_type=error_type, custom_error_message=message)


def _kind(value: Any) -> str | None:
    """Return the kind of an entry, given as settings or as a mapping."""
    kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
    return kind if isinstance(kind, str) else None


def references(settings: StageSettings) -> dict[str, tuple[str, Ref]]:
    """Return the references a stage's settings hold: field path -> (target, mark).

    A list of references gives one entry an element, `field.0`, `field.1`; a mapping gives
    `field.key`. Nested settings are searched too.
    """
    return {
        place: (value, mark)
        for place, value, marks, _ in walk(settings)
        for mark in marks
        if isinstance(mark, Ref) and isinstance(value, str)
    }


def same_result(settings: Settings) -> list[str]:
    """Return the dotted places of the fields that are marked `SameResult`, and are it here."""
    kind = settings.kind if isinstance(settings, StageSettings) else ""
    return [one.place for one in RETIRED.get(kind, ()) if one.same_result] + [
        place
        for place, _, marks, owner in walk(settings)
        for mark in marks
        if isinstance(mark, SameResult) and (mark.where is None or getattr(owner, mark.where))
    ]


def beside_result(settings: StageSettings) -> dict[str, Any]:
    """Return by their dotted places, as JSON, the settings that the result does not follow from."""
    content = put_back(settings.kind, settings.model_dump(mode="json"))
    found = {place: _at(content, place.split(".")) for place in same_result(settings)}
    # Settings that are left out where they are not given came later than runs that go on.
    return {place: value for place, value in found.items() if value is not _LEFT_OUT}


_LEFT_OUT = object()


def _at(content: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        content = content[int(key)] if isinstance(content, list) else content.get(key, _LEFT_OUT)
    return content


def walk(
    settings: Settings, prefix: str = ""
) -> Iterator[tuple[str, Any, Sequence[Any], Settings]]:
    """Yield every value that settings hold: dotted place, value, its field's marks, its owner.

    Of lists and mappings the items are yielded too.
    """
    for field, marks in _marks_of(type(settings)).items():
        value = getattr(settings, field)
        items: list[tuple[str, Any]] = [(prefix + field, value)]
        if isinstance(value, Mapping):
            items += [(f"{prefix}{field}.{key}", item) for key, item in value.items()]
        elif isinstance(value, (list, tuple)):
            items += [(f"{prefix}{field}.{place}", item) for place, item in enumerate(value)]
        for place, item in items:
            yield place, item, marks, settings
            if isinstance(item, Settings):
                yield from walk(item, f"{place}.")


@cache
def _marks_of(settings: type[Settings]) -> dict[str, Sequence[Any]]:
    """Return the marks of each field."""
    return {
        field: (*info.metadata, *_marks(info.annotation))
        for field, info in settings.model_fields.items()
    }


def _marks(annotation: Any) -> Iterator[Any]:
    """Yield the marks inside an annotation such as `Annotated[str, Ref("policy")] | None`."""
    yield from getattr(annotation, "__metadata__", ())
    for part in get_args(annotation):
        yield from _marks(part)


def without(content: Mapping[str, Any], places: Collection[str]) -> dict[str, Any]:
    """Return nested mappings and lists without the values at some dotted places.

    >>> without({"a": 1, "b": {"c": 2, "d": 3}}, ["a", "b.d"])
    {'b': {'c': 2}}
    """
    rest: dict[str, Any] = _without(content, frozenset(places), "")
    return rest


def _without(value: Any, places: Collection[str], prefix: str) -> Any:
    if isinstance(value, Mapping):
        rest = {k: v for k, v in value.items() if f"{prefix}{k}" not in places}
        return {k: _without(v, places, f"{prefix}{k}.") for k, v in rest.items()}
    if isinstance(value, (list, tuple)):
        return [_without(item, places, f"{prefix}{n}.") for n, item in enumerate(value)]
    return value
