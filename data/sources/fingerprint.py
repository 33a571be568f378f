"""Digests of sources: what changes where their content does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.errors import SourceError
from data.sources.folders import find_files
from data.sources.formats import check_format
from data.sources.read import one_origin, paths_of, place_of, world_module
from data.storage import sha256

HASHED_BYTES = 64 << 20
"""Files up to this size are digested whole, larger ones by size and time of change."""


def fingerprint(
    *,
    path: str | Sequence[str] | None = None,
    hub: str | None = None,
    hub_name: str | None = None,
    hub_split: str = "train",
    hub_revision: str | None = None,
    hub_files: str | Sequence[str] | None = None,
    world: str | None = None,
    world_seed: int = 0,
    format: str = "auto",
    **_settings: object,
) -> str:
    """Return a digest (hex) that changes when the content of a source does.

    Local files count with their bytes, those over 64 MB with size and time of change; a hub data
    set with its id and revision; the world with its part, seed and version.

    Args:
        path: as for `read`, like all others.
        hub: see `read`.
        hub_name: see `read`.
        hub_split: see `read`.
        hub_revision: see `read`.
        hub_files: see `read`.
        world: see `read`.
        world_seed: see `read`.
        format: see `read`; it is looked at, but leaves the content as it is.
        _settings: the other settings of `read`, which leave it as it is too.

    Raises:
        SourceError: a file is missing or unreadable, all are empty, or there is no such part of
            the world or format.
    """
    one_origin(path, hub, world)
    check_format(format)
    parts: list[Any]
    if world is not None:
        parts = ["world", world, world_seed, world_module(world).VERSION]
    elif hub is not None:
        listed = [hub_files] if isinstance(hub_files, str) else list(hub_files or [])
        parts = ["hub", hub, hub_name, hub_split, hub_revision, listed]
        if Path(hub).is_dir():
            inside = sorted(file for file in Path(hub).rglob("*") if file.is_file())
            parts += [file_digest(file) for file in inside]
    else:
        files = [file for place in paths_of(path) for file in find_files(place, hub_split).files]
        parts = ["path", *(file_digest(file) for file in files)]
        if not any(file.stat().st_size for file in files):
            raise SourceError(f"nothing to read in {place_of(path, hub, world)}: it is empty")
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def file_digest(file: Path) -> str:
    """Return the sha256 of a file's bytes, or of size and time of change for a large one."""
    try:
        facts = file.stat()
        if facts.st_size > HASHED_BYTES:
            return f"{facts.st_size}:{facts.st_mtime_ns}"
        return sha256(file)
    except OSError as error:
        raise SourceError(f"can't read {file}: {error.strerror or error}") from error
