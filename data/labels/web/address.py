"""Where the label server of a run can be reached: `RUN/labels/server.json` while it serves."""

from __future__ import annotations

import json
import os
from pathlib import Path


def server_file(run: Path) -> Path:
    """Return the file that the server keeps its address in."""
    return run / "labels" / "server.json"


def read_address(run: Path) -> str | None:
    """Return the address of the server of a run, None when none is running."""
    try:
        written = json.loads(server_file(run).read_text(encoding="utf-8"))
        address, process = str(written["address"]), int(written["pid"])
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
