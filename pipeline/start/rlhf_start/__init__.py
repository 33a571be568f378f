"""Where the command `rlhf` begins: finds our own package `pipeline`, whatever else has the name.

Installed as the package `rlhf_start`, since a folder of the user's on the path of modules may be
called `pipeline`, and would be taken. From there on each of our packages looks after the next
(`pipeline/__init__.py`).
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def main() -> None:
    """Run the command from the package that this file was installed with."""
    beside = Path(__file__).resolve().parents[1]
    # In a checkout this folder stands inside of the package, else beside it.
    inside = (beside.parent / "cli" / "main.py").is_file()
    folder = beside.parent if inside else beside / "pipeline"
    spec = importlib.util.spec_from_file_location(
        "pipeline", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None, "a file has a loader"
    sys.modules["pipeline"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    from pipeline.cli.main import main as command

    command()
