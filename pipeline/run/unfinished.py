"""What stages that did not finish have left: gone on with, or set aside, never lost without a word.

`RUN/.unfinished/STAGE/` holds for each key that the stage was started with, named by the beginning
of its digest:

    ID.yaml   the recipe, as it was then
    ID.json   the key, the settings beside it, the plugins
    ID/       the stage's folder, once an attempt of another key has taken its place

A start with that key moves the folder back. All go when the stage is done, but for a recipe that
the run at work was started with: the same command has to go on with the stages after it.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import hexdigits
from typing import Any

from pydantic import BaseModel, JsonValue

from data.errors import ArtifactError
from data.json_lines import read_json_object
from data.storage import storage_errors, sync_folder, sync_tree, write_atomically
from pipeline.contract.artifacts import MANIFEST, SCRATCH, Artifact, find
from pipeline.contract.resume import read_manifest, states_of

PLACE = ".unfinished"
LOGS = ("metrics.jsonl", "samples.jsonl", "doctor.jsonl", "evaluation.jsonl")
"""What a stage appends to; a resume state holds how long they were."""
_KEY = "key"
"""File in the stage's `work/`: digest of the key of the attempt that is there."""
_DIGEST = 64


class _Facts(BaseModel):
    key: dict[str, JsonValue] = {}
    beside: dict[str, JsonValue] = {}
    plugins: list[str] = []


@dataclass(frozen=True)
class Attempt:
    """A start of a stage with a certain key.

    Attributes:
        folder: the stage's folder.
        digest: of the key.
    """

    folder: Path
    digest: str

    @property
    def stage(self) -> str:
        """Name of the stage."""
        return self.folder.name

    @property
    def in_place(self) -> bool:
        """Whether what lies in the stage's folder is of this attempt."""
        return _digest_in(self.folder) == self.digest

    @property
    def aside(self) -> Path:
        """Where its folder is set aside."""
        return self.folder.parent / PLACE / self.folder.name / self.digest[:12]

    @property
    def recipe(self) -> Path:
        """The recipe it was started with."""
        return self.aside.with_suffix(".yaml")

    @property
    def step(self) -> int | None:
        """Step of its newest state, wherever that is; None when it has none."""
        for folder in (self.folder, self.aside):
            for state in states_of(folder / "resume"):
                manifest = read_manifest(state)
                if manifest is not None and manifest.get("key") == self.digest:
                    return int(manifest["step"])
        return None

    @property
    def what(self) -> str:
        """What there is of it, in words."""
        return "what it had done" if self.step is None else f"its checkpoint of step {self.step}"

    def record(self, recipe: str, facts: Mapping[str, Any]) -> None:
        """Note what it is started with: the recipe as YAML, and facts.

        They are `key`, `beside` (settings that change no result) and `plugins`.
        """
        with storage_errors(self.aside.parent):
            self.aside.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.recipe, recipe)
        write_atomically(self.aside.with_suffix(".json"), json.dumps(facts))

    def facts(self) -> dict[str, Any]:
        """Return what `record` noted; nothing for an attempt of an earlier version."""
        try:
            content = read_json_object(self.aside.with_suffix(".json"))
            _Facts.model_validate(content, strict=True)
        except ValueError:
            return {}
        return content

    def command(self) -> str | None:
        """Return the command that goes on with it."""
        if not self.recipe.is_file():
            return None
        plugins = [word for path in self.facts().get("plugins", ()) for word in ("--plugin", path)]
        out = str(self.folder.parent)
        return shlex.join(["rlhf", "run", str(self.recipe), "--out", out, *plugins])

    def set_aside(self) -> None:
        """Move the stage's folder to where it waits, in one step."""
        shutil.rmtree(self.aside, ignore_errors=True)
        self.aside.parent.mkdir(parents=True, exist_ok=True)
        os.replace(self.folder, self.aside)
        self._flush()

    def put_back(self) -> None:
        """Move the folder that was set aside to its place, instead of what is there."""
        _remove(self.folder)
        os.replace(self.aside, self.folder)
        self._flush()

    def _flush(self) -> None:
        sync_folder(self.aside.parent)
        sync_folder(self.folder.parent)


def _remove(path: Path) -> None:
    """Remove a folder or file; of a link, not what it names."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def attempt_in(folder: Path) -> Attempt | None:
    """Return the attempt whose work lies in a stage's folder; None when nothing is worth keeping.

    Work is a resume state, or what a stage has made by the way and noted in `work/*.json`.
    """
    digest = _digest_in(folder)
    if digest is None:
        return None
    if not states_of(folder / "resume") and not any((folder / "work").glob("[!.]*.json")):
        return None
    return Attempt(folder, digest)


def _digest_in(folder: Path) -> str | None:
    """Return the digest that is noted in a stage's folder, None where none is.

    Raises:
        ArtifactError: what is noted is no digest; a folder would be named by it.
    """
    path = folder / "work" / _KEY
    if not path.is_file():
        return None
    with path.open("rb") as file:
        digest = file.read(_DIGEST + 1).decode(errors="replace")
    if len(digest) != _DIGEST or not set(digest) <= set(hexdigits):
        raise ArtifactError(
            f"{path} was edited: it holds {digest!a}, no digest of {_DIGEST} digits; restore "
            f"it, or delete {folder} to run the stage again"
        )
    return digest


def prepare_folder(attempt: Attempt, *, anew: bool = False) -> None:
    """Make a stage's folder that of an attempt: as it left it, or empty where it begins anew.

    Args:
        attempt: what the stage goes on with, or begins.
        anew: leave nothing of it.

    Raises:
        ArtifactError: the folder holds files that no stage left there.
        StorageError: it can't be written.
    """
    folder = attempt.folder
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        finished = (folder / MANIFEST).exists()
        ours = finished or any((folder / name).exists() for name in ("work", "stage.log"))
        if not ours and any(folder.iterdir()):
            raise ArtifactError(
                f"{folder} holds files that no stage left there, and would be emptied; choose "
                "another folder with --out, or move them away"
            )
        # First of all: from now on the folder is no artifact, wherever this may be cut off.
        (folder / MANIFEST).unlink(missing_ok=True)
        if attempt.in_place and not anew:
            if not (folder / "resume").is_dir():
                for log in LOGS:
                    (folder / log).unlink(missing_ok=True)
            return
        # What a finished stage leaves in its work folder is not worth keeping.
        former = None if finished else attempt_in(folder)
        if former is not None and former.digest != attempt.digest:
            former.set_aside()
            folder.mkdir()
        if attempt.aside.is_dir() and not anew:
            attempt.put_back()
            return
        for path in folder.iterdir():
            _remove(path)
        (folder / "work").mkdir()
        write_atomically(folder / "work" / _KEY, attempt.digest)


def take_over(artifact: Artifact, attempt: Attempt, *, keep: Path) -> None:
    """Make another run's artifact that of a stage: files are linked, or copied from another disk.

    Files of a finished stage are never written again, so that neither run can change the other's.

    Args:
        artifact: what an attempt of the same key has left.
        attempt: that of this run.
        keep: as in `remove_unfinished`.

    Raises:
        ArtifactError: a run that works there began the stage anew meanwhile.
    """
    folder = attempt.folder
    changed = ArtifactError(
        f"{artifact.folder} changed while it was taken over; wait for the run that works there, "
        "or leave it out of --reuse"
    )
    prepare_folder(attempt, anew=True)
    with storage_errors(folder):
        # Cut off here, the folder is no attempt's to go on in, which would write into the links.
        (folder / "work" / _KEY).unlink()
        for name in artifact.manifest["files"]:
            place, source = folder / name, (artifact.folder / name).resolve()
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, place)
            except FileNotFoundError as error:
                raise changed from error
            except OSError:  # another file system, or one without hard links
                shutil.copy2(source, place)
        if find(artifact.folder) != artifact:
            raise changed
        sync_tree(folder, leave_out=SCRATCH)
        write_atomically(folder / MANIFEST, json.dumps(artifact.manifest, indent=2) + "\n")
        shutil.rmtree(folder / "work")
    remove_unfinished(folder, keep=keep)


def remove_unfinished(folder: Path, *, keep: Path) -> None:
    """Remove all unfinished attempts of a stage that is done.

    Args:
        folder: the stage's.
        keep: a recipe that stays, also where it is that of an attempt.
    """
    place, staying = folder.parent / PLACE, keep.resolve()
    if staying.parent == (place / folder.name).resolve():
        for path in staying.parent.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path != staying:
                path.unlink()
        return
    shutil.rmtree(place / folder.name, ignore_errors=True)
    if place.is_dir() and not any(place.iterdir()):
        place.rmdir()
