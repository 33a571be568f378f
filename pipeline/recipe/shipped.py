"""The recipes and launch configurations that come with the package, by name in any folder."""

from __future__ import annotations

import os
from pathlib import Path

import yaml

from data.errors import nearest

# In a checkout a link to recipes/; a wheel holds the files themselves.
SHIPPED = (Path(__file__).parent / "shipped").resolve()


def shipped_files() -> dict[str, Path]:
    """Return the files that come with the package by their place below recipes/."""
    files = sorted(SHIPPED.rglob("*.yaml"), key=lambda path: (len(path.parts), path))
    return {path.relative_to(SHIPPED).as_posix(): path for path in files}


def headline(path: Path) -> str:
    """Return what a shipped file is in one line: its description, or how its comment begins."""
    text = path.read_text(encoding="utf-8")
    comment = text.partition("\n")[0].removeprefix("# ").partition(". ")[0]
    return str(yaml.safe_load(text).get("description", comment))


def find_shipped(name: str) -> Path | None:
    """Return the shipped file of a name; with `recipes/` and `.yaml` it is the same as without."""
    place = name.removeprefix("recipes/").removesuffix(".yaml")
    return shipped_files().get(f"{place}.yaml")


def find_file(named: Path) -> Path:
    """Return the file that a name means: a local one first, then a shipped one.

    The name itself where there is neither.
    """
    for local in (named, named.parent / f"{named.name}.yaml"):
        if os.path.isfile(local):  # false, too, of a name that no file can have
            return local
    return find_shipped(named.as_posix()) or named


def nearest_recipe(named: Path, folder: Path) -> str:
    """Return " Did you mean 'x'?" for the nearest recipe of a folder or of the package, or ""."""
    local = [path.name for path in folder.glob("*.yaml")]
    ours = [
        name.removesuffix(".yaml")
        for name in shipped_files()
        if not name.startswith(("launch/", "scaling/", "suites/"))
    ]
    return nearest(named.name, local) or nearest(named.as_posix().removesuffix(".yaml"), ours)
