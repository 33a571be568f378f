"""Reads small JSON files that others wrote, such as those of a checkpoint, and checks them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.errors import ModelError

_NAMES = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; empty where there is no file.

    Raises:
        ModelError: it can't be read, is no JSON or holds something else.
    """
    if not path.is_file():
        if path.exists() or path.is_symlink():
            raise ModelError(f"{path} is no file, or a link to none; restore it")
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path} can't be read ({error.strerror}); restore the file") from error
    except RecursionError as error:
        raise ModelError(f"{path} is nested too deeply; restore the file") from error
    except ValueError as error:
        raise ModelError(f"{path} is no JSON ({error}); restore the file") from error
    if not isinstance(content, dict):
        raise ModelError(
            f"{path} holds {_short(content)}, where an object {{...}} belongs; restore the file"
        )
    return content


def require_types(
    path: Path, content: Mapping[str, Any], types: Mapping[str, tuple[type, ...]]
) -> None:
    """Refuse values of another type than a file of its kind has; null and absent ones pass.

    Raises:
        ModelError: naming file, key and value.
    """
    for key, wanted in types.items():
        value = content.get(key)
        if value is None or (isinstance(value, wanted) and type(value) is not bool):
            continue
        if type(value) is bool and bool in wanted:
            continue
        kinds = " or ".join(_NAMES.get(kind, "a number") for kind in wanted)
        raise ModelError(f"{path}: {key} is {_short(value)}; it is {kinds}, restore the file")


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 80 else f"{text[:76]} ..."
