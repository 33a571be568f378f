"""Suites: small YAML files of benchmark tasks, for `rlhf eval --suite`."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field, field_validator

from data.errors import RecipeError
from pipeline.contract.settings import Settings
from pipeline.evaluation.benchmarks.settings import Task, TaskSettings, require_names_apart
from pipeline.recipe.named import load_named

FOLDER = "suites/"


class SuiteSettings(Settings):
    """A suite: tasks as the evaluate stage has them."""

    description: str = ""
    """One line for who reads it."""
    tasks: tuple[Task, ...] = Field(min_length=1)
    """What is asked."""

    @field_validator("tasks")
    @classmethod
    def _named_apart(cls, tasks: tuple[Task, ...]) -> tuple[Task, ...]:
        require_names_apart(tasks)
        return tasks


def load_suites(names: Sequence[str]) -> list[TaskSettings]:
    """Return the tasks of suites, each a YAML file or the name of one that comes with the package.

    Raises:
        RecipeError: there is no such suite, or something in it is wrong; names file and line.
    """
    tasks: list[TaskSettings] = []
    for name in names:
        _, suite = load_named(SuiteSettings, name, folder=FOLDER, what="suite")
        tasks += suite.tasks
    try:
        require_names_apart(tasks)
    except ValueError as error:
        raise RecipeError(f"--suite: {error}") from error
    return tasks
