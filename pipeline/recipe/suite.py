"""Suites: small YAML files of benchmark tasks, for `rlhf eval --suite`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, field_validator

from data.errors import RecipeError, nearest
from pipeline.contract.settings import Settings
from pipeline.evaluation.benchmarks.settings import Task, TaskSettings, require_names_apart
from pipeline.recipe.files import read_merged
from pipeline.recipe.load import validate
from pipeline.recipe.shipped import find_shipped, shipped_files

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
        path = Path(name) if os.path.isfile(name) else find_shipped(FOLDER + name)
        if path is None:
            known = [
                place.removeprefix(FOLDER).removesuffix(".yaml")
                for place in shipped_files()
                if place.startswith(FOLDER)
            ]
            raise RecipeError(
                f"no suite '{name}': it is no file, and those that come with the package are "
                f"{', '.join(known)}.{nearest(name, known)}"
            )
        content, places = read_merged(path)
        problems: list[str] = []
        suite = validate(SuiteSettings, content, (), places, problems)
        if suite is None:
            raise RecipeError("\n".join(problems))
        tasks += suite.tasks
    try:
        require_names_apart(tasks)
    except ValueError as error:
        raise RecipeError(f"--suite: {error}") from error
    return tasks
