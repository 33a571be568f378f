"""Where an evaluation works: what is ready is kept by the content of what it follows from."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.errors import ArtifactError
from data.json_lines import read_json_object
from data.storage import sha256, storage_errors, write_atomically
from pipeline.contract.console import Console, Progress
from pipeline.contract.facts import cached_folder
from pipeline.contract.handover import stage_of_model

_VERSION = 3
"""Of how answers and scores are made; another one makes them anew."""


@dataclass(frozen=True)
class EvaluationWorkspace:
    """Where an evaluation works and who it tells.

    Attributes:
        folder: gets `samples.jsonl` and `evaluation.json`.
        cache: holds what is ready, a file each, named by the digest of what it follows from.
        console: progress bars and lines.
        stop_if_asked: raises when a signal asked to stop.
    """

    folder: Path
    cache: Path
    console: Console
    stop_if_asked: Callable[[], None] = lambda: None
    _used: set[Path] = field(default_factory=set)

    def progress(
        self, total: int | None, label: str, unit: str
    ) -> AbstractContextManager[Progress]:
        """Show a progress bar while the block runs."""
        return self.console.progress(total, label, unit=unit)

    def kept(self, label: str, follows_from: Any, make: Callable[[], Any]) -> Any:
        """Return what was made of the same before, else make it and keep it.

        Args:
            label: what it is, for the console.
            follows_from: all that its content depends on, as JSON.
            make: returns it, as JSON.
        """
        key = _digest([_VERSION, follows_from])
        path = self.cache / f"{key[:32]}.json"
        self._used.add(path)
        with contextlib.suppress(ArtifactError):  # none there, or one that can't be used
            content = read_json_object(path)
            if content.get("key") == key and "value" in content:
                self.console.say(f"  {label}: kept from before, nothing it follows from changed")
                return content["value"]
        self.stop_if_asked()
        value = make()
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps({"key": key, "value": value}))
        return value

    def prune(self) -> None:
        """Remove what was kept of others than this evaluation."""
        for path in self.cache.glob("*.json"):
            if path not in self._used:
                path.unlink(missing_ok=True)


def checkpoint_content(source: str | Path) -> str:
    """Return what tells a checkpoint from others: the digest of its files, a hub's commit.

    Those of a finished stage stand in its manifest, by which they are verified where they are used.
    """
    path = Path(source)
    if path.is_file():
        return sha256(path)
    if not path.is_dir():
        cached = cached_folder(str(source))
        return f"{source}@{cached.name if cached is not None else ''}"
    artifact = stage_of_model(path)
    if artifact is None:
        files = {file.name: sha256(file) for file in path.iterdir() if file.is_file()}
    else:
        listed = {Path(name): entry["sha256"] for name, entry in artifact.manifest["files"].items()}
        files = {file.name: known for file, known in listed.items() if str(file.parent) == "model"}
    return _digest([[name, files[name]] for name in sorted(files)])


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
