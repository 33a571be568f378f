"""Runs a script as a command in a process that the fixture `fork` started; no test itself.

Run by path with `SCRIPT`, `ARGUMENTS`, `ENVIRONMENT`, `LOG` and `GIVEN`, the script's own globals,
as globals.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import Any


def run(
    script: str, arguments: list[str], environment: dict[str, str], log: str, given: dict[str, Any]
) -> None:
    """Run a script with what it prints in a file, line by line."""
    with Path(log).open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.stdout.reconfigure(line_buffering=True)
    os.environ.update(environment)
    sys.argv = [script, *arguments]
    runpy.run_path(script, given, "__main__")


if __name__ == "__main__":
    own = globals()
    run(own["SCRIPT"], own["ARGUMENTS"], own["ENVIRONMENT"], own["LOG"], own["GIVEN"])
