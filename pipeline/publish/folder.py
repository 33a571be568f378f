"""Writes a published model into a new folder, whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from data.errors import ArtifactError, StorageError, UsageError
from data.storage import require_short_names, sha256, storage_errors, sync_folder, sync_tree
from pipeline.contract.artifacts import require_writable_place
from pipeline.publish.files import Files
from pipeline.run.runner import RESOLVED


def require_new_place(target: Path) -> None:
    """Refuse a folder that is there, or that would lie in a run.

    Raises:
        UsageError: names it.
        StorageError: nothing can be written there.
    """
    with storage_errors(target):
        require_short_names(target)
        if target.exists() or target.is_symlink():
            raise UsageError(
                f"{target} is there, and is not written over; name a new folder, or remove it"
            )
        for folder in target.absolute().parents:
            if (folder / RESOLVED).is_file():
                raise UsageError(
                    f"{target} lies in the run {folder}, which holds what its stages leave alone; "
                    "name a folder outside of it"
                )
            if folder.exists() and not folder.is_dir():
                raise UsageError(f"{folder} is a file, no folder; name another place for {target}")
    require_writable_place(target)


def write_folder(files: Files, target: Path) -> None:
    """Write files into a new folder, whose rights are those that the umask gives.

    Raises:
        StorageError: there is no room, or the place can't be written.
        ArtifactError: a file of the stage was changed while it was copied.
    """
    above = next(folder for folder in target.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(above).free
    if files.size > free:
        raise StorageError(
            f"{target} needs {files.size / 1e6:,.1f} MB, and the disk of {above} has "
            f"{free / 1e6:,.1f} MB free; make room, or name a folder on another disk"
        )
    made = above / f".{target.name}.{os.getpid()}.tmp"
    with storage_errors(target):
        try:
            made.mkdir()
            _fill(made, files)
            sync_tree(made)
            target.parent.mkdir(parents=True, exist_ok=True)
            made.rename(target)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
        sync_folder(target.parent)


def _fill(folder: Path, files: Files) -> None:
    for name, (path, known) in files.kept.items():
        copy = folder / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        if sha256(copy) != known:
            raise ArtifactError(f"{path} was changed while it was copied; publish again")
    for name, text in files.texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
