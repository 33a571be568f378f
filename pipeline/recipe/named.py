"""Small YAML files that a command names: the user's, or those that come with the package."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

from data.errors import RecipeError, nearest
from pipeline.contract.settings import Settings
from pipeline.recipe.files import read_merged
from pipeline.recipe.load import validate
from pipeline.recipe.shipped import find_shipped, shipped_files

S = TypeVar("S", bound=Settings)


def load_named(kind: type[S], name: str, *, folder: str, what: str) -> tuple[Path, S]:
    """Return a file and what it sets.

    Args:
        kind: its settings.
        name: a file of the user's, or the name of one that comes with the package.
        folder: where the package has them, with a slash at its end.
        what: such a file is called.

    Raises:
        RecipeError: there is no such file, or something in it is wrong; names file and line.
    """
    path = Path(name) if os.path.isfile(name) else find_shipped(folder + name)
    if path is None:
        known = [
            place.removeprefix(folder).removesuffix(".yaml")
            for place in shipped_files()
            if place.startswith(folder)
        ]
        raise RecipeError(
            f"no {what} '{name}': it is no file, and those that come with the package are "
            f"{', '.join(known)}.{nearest(name, known)}"
        )
    content, places = read_merged(path)
    problems: list[str] = []
    settings = validate(kind, content, (), places, problems)
    if settings is None:
        raise RecipeError("\n".join(problems))
    return path, settings
