"""Reads recipe files: YAML with `extends`, and the file and line of every key."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.errors import RecipeError, one_line
from data.plain_yaml import MOST_VALUES, Keys, Places, parse
from data.small_files import read_file
from pipeline.recipe.shipped import find_shipped, nearest_recipe

MOST_FILES = 32
"""Of a recipe with all that it extends."""


def keys_of(dotted: str) -> Keys:
    """Return the keys and list places of a dotted place such as `train.0.path`."""
    return tuple(int(key) if is_index(key) else key for key in dotted.split("."))


def is_index(key: str) -> bool:
    """Tell whether a key may be the place of an item in a list."""
    return key.isascii() and key.isdigit() and len(key) < 10


def read_merged(path: Path) -> tuple[dict[str, Any], Places]:
    """Return a recipe's content, what it extends merged in, and where each key stands.

    Raises:
        RecipeError: a file is missing or no mapping in valid YAML, or extends itself.
    """
    return _merged(path, (), {})


def _merged(
    path: Path, stack: tuple[Path, ...], known: dict[Path, tuple[dict[str, Any], Places]]
) -> tuple[dict[str, Any], Places]:
    """Do so for one recipe of several, each of which is read once.

    Args:
        path: the recipe.
        stack: the recipes that extend it.
        known: those that were read before.
    """
    resolved = Path(os.path.realpath(path))
    if resolved in stack:
        chain = " -> ".join(str(p) for p in (*stack, resolved))
        raise RecipeError(f"{path}: extends itself ({chain}); take one of them out")
    if resolved in known:
        return known[resolved]
    if len(known) + len(stack) >= MOST_FILES:
        raise RecipeError(f"{path}: a recipe extends at most {MOST_FILES - 1} others; join some")
    used = sum(len(places) for _, places in known.values())
    content, places = _read(path, MOST_VALUES - used)
    merged: dict[str, Any] = {}
    merged_places: Places = {}
    for target in _bases(path, content.pop("extends", []), places):
        base_content, base_places = _merged(target, (*stack, resolved), known)
        base_content = copy.deepcopy(base_content)  # it may be merged in elsewhere too
        base_content.pop("name", None)
        base_content.pop("description", None)
        merge(merged, base_content)
        merged_places |= base_places
    merge(merged, content)
    known[resolved] = merged, merged_places | places
    return known[resolved]


def _bases(path: Path, bases: Any, places: Places) -> list[Path]:
    """Return the files that a recipe extends, each once, where it stands last."""
    if isinstance(bases, str):
        bases = [bases]
    if not isinstance(bases, list) or not all(isinstance(b, str) for b in bases):
        place = places.get(("extends",), str(path))
        raise RecipeError(f"{place}: extends: {bases!r:.80} is not a path or a list of paths")
    targets: dict[str, Path] = {}
    for index, base in enumerate(bases):
        local = path.parent / base
        target = local if os.path.isfile(local) else find_shipped(base)
        if target is None and os.path.lexists(local):
            target = local  # a folder, a pipe, a link to nowhere: told when it is read
        if target is None:
            place = places.get(("extends", index), places.get(("extends",), str(path)))
            near = nearest_recipe(Path(base), path.parent)
            raise RecipeError(
                f"{place}: extends: {one_line(base)}: no such recipe in {path.parent}, nor among "
                f"those of `rlhf recipes`.{near}"
            )
        real = os.path.realpath(target)
        targets.pop(real, None)
        targets[real] = target
    return list(targets.values())


def merge(base: dict[str, Any], top: Mapping[str, Any]) -> None:
    """Merge mappings deeply: lists are replaced, and `null` over a mapping removes it."""
    for key, value in top.items():
        old = base.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            merge(old, value)
        elif value is None and isinstance(old, dict):
            del base[key]
        else:
            base[key] = value


def _read(path: Path, most: int) -> tuple[dict[str, Any], Places]:
    shown = one_line(str(path))
    try:
        text = read_file(path).decode("utf-8-sig")
    except FileNotFoundError:
        folder = path.parent if os.path.isdir(path.parent) else Path()
        near = nearest_recipe(path, folder)
        raise RecipeError(
            f"{shown}: no such recipe; `rlhf recipes` lists those that come with it.{near}"
        ) from None
    except IsADirectoryError:
        raise RecipeError(f"{shown} is a folder; name the recipe's file in it") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{shown} is no UTF-8 text; name a recipe's YAML file") from error
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise RecipeError(f"{shown} can't be read: {why}; name a recipe's YAML file") from error
    content, places = parse(text, lambda line: f"{shown}:{line}", most)
    if not isinstance(content, dict):
        given = "empty" if content is None else f"{content!r:.60}"
        raise RecipeError(f"{shown}: a recipe is a mapping with `stages:`, this is {given}")
    return content, places
