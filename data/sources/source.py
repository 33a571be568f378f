"""One source of rows: where it is, and how it is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from data.errors import SourceError
from data.sources.formats import check_format


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source of rows; it names exactly one of path, hub and world.

    Attributes:
        path: file, folder or glob, or several.
        hub: id of a hub data set, or a local folder in its layout.
        hub_name: its configuration.
        hub_split: its split, or that of a folder that holds several.
        hub_revision: its commit, tag or branch.
        hub_files: which of its files to read.
        world: part of the built-in world.
        world_seed: the world's seed.
        format: one of `data.sources.formats.FORMATS`, or "auto" to tell it from the columns.
        columns: our name of a column -> its name, dotted path or template in the source.
        limit: at most so many records.
        skip: pass over so many records at the start.
        instruction: line put below what each record asks.
        chat: make plain prompts turns of the user.
        part: "train" or "heldout", a side of the split by what records ask; all where it is None.
        heldout_share: of the prompts that the split holds out.
        max_bad_share: share of malformed rows above which reading ends in an error.

    Raises:
        SourceError: it names none or several, or there is no such format.
    """

    path: str | Sequence[str] | None = None
    hub: str | None = None
    hub_name: str | None = None
    hub_split: str = "train"
    hub_revision: str | None = None
    hub_files: str | Sequence[str] | None = None
    world: str | None = None
    world_seed: int = 0
    format: str = "auto"
    columns: Mapping[str, str] | None = None
    limit: int | None = None
    skip: int = 0
    instruction: str | None = None
    chat: bool = False
    part: Literal["train", "heldout"] | None = None
    heldout_share: float = 0.05
    max_bad_share: float = 0.01

    def __post_init__(self) -> None:
        """Refuse what can't be read by itself."""
        if sum(origin is not None for origin in (self.path, self.hub, self.world)) != 1:
            raise SourceError("a source names exactly one of path, hub and world")
        check_format(self.format)

    @property
    def paths(self) -> list[str]:
        """The paths as a list, empty where there are none."""
        return [self.path] if isinstance(self.path, str) else list(self.path or [])

    @property
    def listed_files(self) -> list[str]:
        """The files of the hub data set to read as a list, empty for all."""
        return [self.hub_files] if isinstance(self.hub_files, str) else list(self.hub_files or [])

    @property
    def place(self) -> str:
        """What it is called in errors."""
        if self.world is not None:
            return f"world:{self.world}"
        return self.hub or ", ".join(self.paths)
