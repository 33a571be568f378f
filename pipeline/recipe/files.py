"""Reads recipe files: YAML with `extends`, and the file and line of every key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from data.errors import RecipeError
from pipeline.recipe.shipped import find_shipped, nearest_recipe

Keys = tuple[str | int, ...]
"""Where a value stands: the keys and list places that lead to it."""
Places = dict[Keys, str]
"""The file and line of each key."""


def keys_of(dotted: str) -> Keys:
    """Return the keys and list places of a dotted place such as `train.0.path`."""
    return tuple(int(key) if key.isdigit() else key for key in dotted.split("."))


def read_merged(path: Path, stack: tuple[Path, ...] = ()) -> tuple[dict[str, Any], Places]:
    """Return a recipe's content, what it extends merged in, and where each key stands.

    Args:
        path: the recipe.
        stack: the recipes that extend it.

    Raises:
        RecipeError: a file is missing or no mapping in valid YAML, or extends itself.
    """
    resolved = path.resolve()
    if resolved in stack:
        chain = " -> ".join(str(p) for p in (*stack, resolved))
        raise RecipeError(f"{path}: extends itself ({chain}); take one of them out")
    content, places = _read(path)
    bases = content.pop("extends", [])
    if isinstance(bases, str):
        bases = [bases]
    if not isinstance(bases, list) or not all(isinstance(b, str) for b in bases):
        place = places.get(("extends",), str(path))
        raise RecipeError(f"{place}: extends: {bases!r} is not a path or a list of paths")
    merged: dict[str, Any] = {}
    merged_places: Places = {}
    for index, base in enumerate(bases):
        local = path.parent / base
        target = local if local.is_file() else find_shipped(base)
        if target is None:
            place = places.get(("extends", index), places.get(("extends",), str(path)))
            near = nearest_recipe(Path(base), path.parent)
            raise RecipeError(
                f"{place}: extends: {base}: no such recipe in {path.parent}, nor among those of "
                f"`rlhf recipes`.{near}"
            )
        base_content, base_places = read_merged(target, (*stack, resolved))
        base_content.pop("name", None)
        base_content.pop("description", None)
        merge(merged, base_content)
        merged_places |= base_places
    merge(merged, content)
    return merged, merged_places | places


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


def _read(path: Path) -> tuple[dict[str, Any], Places]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        folder = path.parent if path.parent.is_dir() else Path()
        near = nearest_recipe(path, folder)
        raise RecipeError(
            f"{path}: no such recipe; `rlhf recipes` lists those that come with it.{near}"
        ) from None
    except IsADirectoryError:
        raise RecipeError(f"{path} is a folder; name the recipe's file in it") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is no UTF-8 text; name a recipe's YAML file") from error
    except OSError as error:
        raise RecipeError(f"{path} can't be read: {error.strerror}") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        places: Places = {}
        if node is not None:
            _walk(node, (), path, places)
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise RecipeError(f"{path}{line}: no valid YAML: {problem}") from error
    if not isinstance(content, dict):
        given = "empty" if content is None else f"{content!r:.60}"
        raise RecipeError(f"{path}: a recipe is a mapping with `stages:`, this is {given}")
    return content, places


def _walk(
    node: yaml.Node, keys: Keys, path: Path, places: Places, above: tuple[yaml.Node, ...] = ()
) -> None:
    """Note the file and line of every key; refuse a key that stands twice or is no word.

    Raises:
        RecipeError: it does, or an alias holds itself.
    """
    if any(node is other for other in above):
        line = node.start_mark.line + 1
        raise RecipeError(f"{path}:{line}: an alias in here stands for all of it; write it out")
    above = (*above, node)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                raise RecipeError(f"{path}:{line}: a list or mapping is no key; write a word")
            if key.value in seen and key.value != "<<":
                raise RecipeError(
                    f"{path}:{key.start_mark.line + 1}: key '{key.value}' stands twice in one "
                    "mapping; take one out"
                )
            seen.add(key.value)
            places[(*keys, key.value)] = f"{path}:{key.start_mark.line + 1}"
            _walk(value, (*keys, key.value), path, places, above)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            places[(*keys, index)] = f"{path}:{value.start_mark.line + 1}"
            _walk(value, (*keys, index), path, places, above)
