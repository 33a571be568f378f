"""Where a model is published: a new folder, or a repository of the hub."""

from __future__ import annotations

from dataclasses import dataclass

from data.errors import UsageError
from data.storage import expand
from pipeline.publish.files import Files
from pipeline.publish.folder import require_new_place, write_folder
from pipeline.publish.hub import require_repository, upload

_HUB = "hub:"


@dataclass(frozen=True)
class Target:
    """A place to publish to.

    Attributes:
        place: a folder, or ORG/NAME.
        on_hub: which of the two it is.
        public: whether all see a repository that is made, else its owner alone.
        update: whether a repository may hold something, whose place the model takes.
    """

    place: str
    on_hub: bool
    public: bool = False
    update: bool = False

    @property
    def name(self) -> str:
        """What a model that is there is called, a folder's name or ORG/NAME."""
        return self.place if self.on_hub else expand(self.place).name

    def require_free(self) -> None:
        """Refuse a place that can't be written, or holds something.

        Raises:
            UsageError: naming it.
            StorageError: it can't be reached or written.
        """
        if self.on_hub:
            require_repository(self.place, update=self.update)
        else:
            require_new_place(expand(self.place))

    def put(self, files: Files, message: str, *, quiet: bool) -> str:
        """Write or commit files there; return where they are now."""
        if not self.on_hub:
            write_folder(files, expand(self.place))
            return self.place
        return upload(files, self.place, public=self.public, message=message, quiet=quiet)


def parse_target(text: str, *, public: bool, update: bool) -> Target:
    """Return the place that `DIR` or `hub:ORG/NAME` names.

    Raises:
        UsageError: it names none, or an option is for the other kind.
    """
    on_hub, place = text.startswith(_HUB), text.removeprefix(_HUB)
    if not place.strip():
        raise UsageError(f"'{text}' names no place; write a new folder, or hub:ORG/NAME")
    for option, given in (("--public", public), ("--update", update)):
        if given and not on_hub:
            raise UsageError(f"{option} is for hub:ORG/NAME; leave it out for the folder {text}")
    return Target(place, on_hub, public, update)
