"""Digests of sources: what changes where their content does."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from data.errors import SourceError
from data.sources.folders import find_files
from data.sources.read import world_module
from data.sources.source import Source
from data.storage import sha256

HASHED_BYTES = 64 << 20
"""Files up to this size are digested whole, larger ones by size and time of change."""


def fingerprint(source: Source) -> str:
    """Return a digest (hex) that changes when the content of a source does.

    Local files count with their bytes, those over 64 MB with size and time of change; a hub data
    set with its id and revision; the world with its part, seed and version.

    Raises:
        SourceError: a file is missing or unreadable, all are empty, or there is no such part of
            the world.
    """
    parts: list[Any]
    hub, world = source.hub, source.world
    if world is not None:
        parts = ["world", world, source.world_seed, world_module(world).VERSION]
    elif hub is not None:
        parts = ["hub", hub, source.hub_name, source.hub_split, source.hub_revision]
        parts.append(source.listed_files)
        if Path(hub).is_dir():
            inside = sorted(file for file in Path(hub).rglob("*") if file.is_file())
            parts += [file_digest(file) for file in inside]
    else:
        files = [f for path in source.paths for f in find_files(path, source.hub_split).files]
        parts = ["path", *(file_digest(file) for file in files)]
        if not any(file.stat().st_size for file in files):
            raise SourceError(f"nothing to read in {source.place}: it is empty")
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
