"""What every stage sets that asks people; imports nothing heavy, as a recipe is checked with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from data.errors import RecipeError
from data.storage import expand
from pipeline.contract.settings import PositiveInt, PositiveNumber, SameResult, Settings, Share

LONGEST_TITLE = 100
"""Characters of a campaign's title."""
ENVIRONMENT = "env:"
"""Begins a `database` that is the name of an environment variable."""


class AskingSettings(Settings):
    """How people are asked, and when enough is said."""

    overlap: Share = 0.2
    """Share of the tasks that several people label, so that their agreement can be told."""
    annotators_per_task: PositiveInt = 3
    """How many label each of those."""
    needed: PositiveNumber = 1.0
    """Tasks that need all their labels before the recipe goes on: a share to 1, or a number."""
    guidelines: Annotated[str | None, SameResult()] = None
    """File of the guidelines, Markdown; people read them first."""
    title: Annotated[str | None, Field(max_length=LONGEST_TITLE), SameResult()] = None
    """What the pages call a new campaign, in your words; later they change it themselves."""
    database: Annotated[str | None, SameResult()] = None
    """Where labels are kept: a PostgreSQL address, `env:NAME` of one, or a file; RUN/labels."""
    poll_seconds: Annotated[PositiveNumber, SameResult()] = 2.0
    """Seconds between two looks at how many labels are there."""

    @model_validator(mode="after")
    def _can_be_kept_and_reached(self) -> AskingSettings:
        if self.needed > 1 and self.needed != int(self.needed):
            raise ValueError(
                f"needed {self.needed:g} is neither a share (to 1) nor a whole number of tasks"
            )
        if self.database is not None:
            require_no_password(self.database)
        return self

    def read_guidelines(self) -> str:
        """Return the text of the guidelines.

        Raises:
            RecipeError: the file can't be read.
        """
        if self.guidelines is None:
            return ""
        try:
            return expand(self.guidelines).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "no UTF-8 text"
            raise RecipeError(
                f"people.guidelines: {self.guidelines} can't be read: {reason}"
            ) from None


def require_no_password(database: str) -> None:
    """Refuse a password in a recipe, which is copied into the run folder.

    Raises:
        ValueError: there is one.
    """
    account = database.partition("://")[2].rpartition("@")[0]
    if ":" in account:
        raise ValueError(
            "a password in a recipe would be copied into the run; put the address into an "
            "environment variable and write env:NAME"
        )


def database_place(run: Path, given: str | None) -> str:
    """Return the address of a run's label database.

    Args:
        run: the run folder.
        given: the recipe's or a command's; None for RUN/labels/labels.sqlite.

    Raises:
        RecipeError: the environment variable that it names is not set.
    """
    if given is None:
        return str(run / "labels" / "labels.sqlite")
    if not given.startswith(ENVIRONMENT):
        return given
    name = given.removeprefix(ENVIRONMENT)
    if not os.environ.get(name):
        raise RecipeError(f"database {given}: the environment variable {name} is not set")
    return os.environ[name]
