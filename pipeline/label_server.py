"""Where the label server of a run can be reached: `RUN/labels/server.json` while it serves."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.artifacts import storage_errors, write_atomically


def server_file(run: Path) -> Path:
    """Return the file that holds the address."""
    return run / "labels" / "server.json"


def read_address(run: Path) -> str | None:
    """Return the address of the server of a run, None when none is running."""
    try:
        told = json.loads(server_file(run).read_text(encoding="utf-8"))
        address, process = str(told["address"]), int(told["process"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return address if _alive(process) else None


def _alive(process: int) -> bool:
    """Tell whether a process is there; one that was killed could not remove its file."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def announced(run: Path, address: str) -> Iterator[None]:
    """Keep the address in the file while the block runs."""
    path = server_file(run)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({"address": address, "process": os.getpid()}) + "\n")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
