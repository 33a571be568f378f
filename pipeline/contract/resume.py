"""Resume state: everything a training stage needs to go on as if it had never stopped.

Kept apart from the published model, in `<stage>/resume/step-<n>/`. A state is written into a
temporary folder, flushed, given its completion manifest, and only then renamed; older ones go
after that. So at any moment, inside a save too, the last whole state is on the disk. A state
without its completion manifest, or whose files don't fit it, is passed over for the one before; so
is one with numbers that are NaN or infinite, which nothing good could come of, and that is told.
The attempt that goes on from there counts its steps anew, so that newer is what was written later,
not what has the higher step.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, NonNegativeInt

from data.json_lines import read_json_object
from data.storage import (
    open_file,
    sha256,
    storage_errors,
    sync_folder,
    sync_tree,
    write_atomically,
)

if TYPE_CHECKING:
    import torch

COMPLETE = "complete.json"
CHECKED_AT_ONCE = 2**24
"""Numbers of a tensor that are looked at together."""


@dataclass
class ResumeStore:
    """The resume states of one stage.

    Attributes:
        folder: `<stage>/resume`.
        key: digest of the stage's settings, seed and parents; a state of another key is ignored.
        tracked: append-only logs of the stage (`metrics.jsonl`, `samples.jsonl`). Their lengths
            are part of the state, and a resumed run cuts them back to it.
        keep: number of whole states kept.
        rank: rank of this process; rank 0 writes the manifest.
        barrier: waits for all ranks; a no-op on one process.
        say: takes a line for the reader; called on rank 0.
    """

    folder: Path
    key: str
    tracked: list[Path] = field(default_factory=list)
    keep: int = 2
    rank: int = 0
    barrier: Callable[[], None] = lambda: None
    say: Callable[[str], None] = lambda _: None
    _passed_over: set[Path] = field(default_factory=set, init=False, repr=False)

    def track(self, *logs: Path) -> None:
        """Cut these logs back on resume, too."""
        self.tracked += [log for log in logs if log not in self.tracked]

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """Save a state; when this returns, it is whole and on the disk.

        Args:
            step: number of finished steps, the name of the state.
            write: writes the state's files into the folder it is given. Called on every rank, so
                ranks must choose different names.

        Raises:
            StorageError: no space left, or no permission. Earlier states stay usable.
        """
        final = self._free_name(step)
        temporary = self.folder / f".tmp-step-{step:08d}"
        with storage_errors(self.folder):
            if self.rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
            self.barrier()
            try:
                write(temporary)
                self.barrier()
                if self.rank == 0:
                    self._complete(step, temporary, final)
            except BaseException:
                if self.rank == 0:
                    shutil.rmtree(temporary, ignore_errors=True)
                raise
        self.barrier()
        return final

    def _complete(self, step: int, temporary: Path, final: Path) -> None:
        sync_tree(temporary)
        files: dict[str, dict[str, Any]] = {}
        for path in sorted(p for p in temporary.rglob("*") if p.is_file()):
            name = path.relative_to(temporary).as_posix()
            files[name] = {"size": path.stat().st_size, "sha256": sha256(path)}
        for log in self.tracked:
            if log.exists():
                with log.open("rb") as file:
                    os.fsync(file.fileno())
        logs = {log.name: log.stat().st_size for log in self.tracked if log.exists()}
        written = 1 + max((_written(old)[0] for old in states_of(self.folder)), default=0)
        state = {"step": step, "key": self.key, "written": written, "files": files, "logs": logs}
        write_atomically(temporary / COMPLETE, json.dumps(state))
        os.replace(temporary, final)
        sync_folder(self.folder)
        sync_folder(self.folder.parent)
        self._prune()

    def _free_name(self, step: int) -> Path:
        """Return where a state goes: never where one is, which would be gone for a moment."""
        final, again = self.folder / f"step-{step:08d}", 1
        while final.exists():
            again += 1
            final = self.folder / f"step-{step:08d}-{again}"
        return final

    def _prune(self) -> None:
        """Remove the oldest states, those that nothing can go on from before all others."""
        states = [s for s in states_of(self.folder) if s not in self._passed_over]
        for old in {*states[self.keep :], *self._passed_over}:
            shutil.rmtree(old, ignore_errors=True)
        self._passed_over.clear()

    def latest(self) -> tuple[int, Path] | None:
        """Return step and folder of the newest whole state, logs cut back to it.

        None when there is none; the logs are then emptied, since the stage starts anew.
        """
        if self.rank == 0:
            for half in self.folder.glob(".tmp-step-*"):  # of a process that was killed
                shutil.rmtree(half, ignore_errors=True)
        for folder in states_of(self.folder):
            state = self._read(folder)
            if state is None or not self._is_finite(folder, state["files"]):
                self._passed_over.add(folder)
            else:
                if self.rank == 0:
                    self._rewind(state["logs"])
                self.barrier()
                return int(state["step"]), folder
        if self.rank == 0:
            self._rewind({})
        self.barrier()
        return None

    def _read(self, folder: Path) -> dict[str, Any] | None:
        state = read_manifest(folder)
        if state is None or state.get("key") != self.key:
            return None
        for name, entry in state["files"].items():
            path = folder / name
            try:
                if path.stat().st_size != entry["size"] or sha256(path) != entry["sha256"]:
                    return None
            except (OSError, ValueError):
                return None
        return state

    def _is_finite(self, folder: Path, files: Iterable[str]) -> bool:
        """Tell whether all tensors of a state are finite, and say so where they are not."""
        broken = next((name for name in files if not is_finite(folder / name)), None)
        if broken is not None and self.rank == 0:
            self.say(
                f"{folder} is passed over: {broken} holds numbers that are NaN or infinite; "
                "`rlhf run --force` starts the stage anew instead of from a state before it"
            )
        return broken is None

    def _rewind(self, lengths: dict[str, int]) -> None:
        for log in self.tracked:
            if log.exists():
                os.truncate(log, min(log.stat().st_size, lengths.get(log.name, 0)))


def states_of(folder: Path) -> list[Path]:
    """Return the states in a folder of resume states, whole or not, the newest first."""
    return sorted(folder.glob("step-*"), key=_written, reverse=True)


def _written(state: Path) -> tuple[int, str]:
    """Return what orders states by when they were written; those of no number come first."""
    content = read_manifest(state) or {}
    return content.get("written", 0), f"{state.name:>20}"


class _File(BaseModel):
    size: int
    sha256: str


class _State(BaseModel):
    step: int
    key: str
    written: int = 0
    files: dict[str, _File]
    logs: dict[str, NonNegativeInt]


def read_manifest(state: Path) -> dict[str, Any] | None:
    """Return a state's completion manifest, its files not looked at; None when it has none."""
    try:
        content = read_json_object(state / COMPLETE)
        _State.model_validate(content, strict=True)
    except ValueError:
        return None
    return content


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a nested dictionary of tensors, numbers, strings, lists and tuples.

    Raises:
        StorageError: the disk is full, or the path can't be written.
    """
    import torch

    # Through a file of Python's: torch's own says of a full disk only that a position is off.
    with storage_errors(path), open(path, "wb", opener=open_file) as file:
        torch.save(state, file)


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote, on the CPU; never unpickles code."""
    import torch

    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def is_finite(path: Path) -> bool:
    """Tell whether a file of tensors holds no NaN and nothing infinite.

    True of files that hold no tensors, or that can't be read without running code.
    """
    if path.suffix not in (".pt", ".safetensors"):
        return True
    import torch

    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return all(_all_finite(file.get_tensor(name)) for name in names)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        return True
    return all(_all_finite(tensor) for tensor in _tensors(content))


def _tensors(content: object) -> Iterator[torch.Tensor]:
    """Yield the tensors of a nested dictionary, list or tuple."""
    import torch

    if isinstance(content, torch.Tensor):
        yield content
    elif isinstance(content, Mapping):
        for value in content.values():
            yield from _tensors(value)
    elif isinstance(content, (list, tuple)):
        for value in content:
            yield from _tensors(value)


def _all_finite(tensor: torch.Tensor) -> bool:
    import torch

    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    # Some at a time: the whole would need as much memory again, several times over.
    parts = torch.split(tensor.detach().reshape(-1), CHECKED_AT_ONCE)
    return all(bool(torch.isfinite(part).all()) for part in parts)


def rng_state() -> dict[str, Any]:
    """Return the state of Python's, NumPy's and torch's random number generators."""
    import numpy as np
    import torch

    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": (version, list(internal), gauss),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss),
        "numpy_cached": float(cached),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = [torch.cuda.get_rng_state()]  # of this process's own
    return state


def restore_rng(state: dict[str, Any]) -> None:
    """Set all random number generators to a state that `rng_state` returned."""
    import numpy as np
    import torch

    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss = state["numpy"]
    np.random.set_state(
        (name, keys.numpy().astype(np.uint32), position, has_gauss, state["numpy_cached"])
    )
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        # States of before have one for each GPU there was, which may be more than there are now.
        own = min(torch.cuda.current_device(), len(state["cuda"]) - 1)
        torch.cuda.set_rng_state(state["cuda"][own])
