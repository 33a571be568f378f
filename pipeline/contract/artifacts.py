"""What a stage leaves behind: a folder and its manifest, whole or not there at all.

`manifest.json` is written last, through a temporary file, fsync and rename, so a folder with a
manifest is whole and one without is not. It lists every file with size and sha256; they are
verified before the artifact is used. Lineage is by content: a stage depends on the digest of each
parent's files, not on the time they were made.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, JsonValue, NonNegativeInt, ValidationError

from data.errors import ArtifactError, StorageError, in_words, one_line
from data.json_lines import read_json_object
from data.storage import (
    MOST_OF_NAME,
    remove_leftovers,
    require_short_names,
    sha256,
    storage_errors,
    sync_tree,
    write_atomically,
)

MANIFEST = "manifest.json"
FORMAT = 1
# Records of how a stage ran. They hold times, so they are listed but don't enter the digest.
RECORDS = ("metrics.jsonl", "stage.log")
# Never part of an artifact.
SCRATCH = ("resume", "work")
# What file systems and their browsers leave in a folder that is only looked at.
_OF_THE_SYSTEM = re.compile(r"\.nfs[0-9a-f]+|\.DS_Store|Thumbs\.db|desktop\.ini")
_LONGEST = 1000
"""Characters of the relative path of a file."""


def _inside(name: str) -> str:
    """Refuse a name that is none of a file inside a folder."""
    parts = name.encode().split(b"/")
    odd = any(part in (b"", b".", b"..") or len(part) > MOST_OF_NAME for part in parts)
    if odd or one_line(name) != name or len(name) > _LONGEST:
        raise ValueError("it names no file inside the folder")
    return name


def _moment(text: str) -> str:
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("it has no time zone")
    return text


class _File(BaseModel):
    size: NonNegativeInt
    sha256: str


class _Manifest(BaseModel):
    """What is read of a manifest; it may hold more."""

    stage: str
    kind: str
    key: str
    digest: str
    metrics: dict[str, float | str | bool | None]
    files: dict[Annotated[str, AfterValidator(_inside)], _File]
    main_metric: str = ""
    created: Annotated[str, AfterValidator(_moment)] = ""
    inputs: dict[str, JsonValue] = {}
    beside: dict[str, JsonValue] = {}
    follows_from: list[str] = []
    parents: dict[str, str] = {}
    seed: int | None = None
    processes: int | None = None
    seconds: float | None = None
    processor_seconds: float | None = None
    peak_rss_mb: float | None = None
    device: str | None = None


@dataclass(frozen=True)
class Artifact:
    """What a finished stage left in its folder."""

    folder: Path
    manifest: Mapping[str, Any] = field(repr=False)

    @property
    def name(self) -> str:
        """Name of the stage."""
        return str(self.manifest["stage"])

    @property
    def kind(self) -> str:
        """Kind of the stage."""
        return str(self.manifest["kind"])

    @property
    def digest(self) -> str:
        """Digest of the content, the same whenever the same files were made."""
        return str(self.manifest["digest"])

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Final metrics of the stage."""
        metrics: Mapping[str, Any] = self.manifest["metrics"]
        return metrics

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(int(f["size"]) for f in self.manifest["files"].values())


def require_writable_place(folder: Path) -> None:
    """Refuse a folder that can't be: itself or one above it is a file, or its name is too long.

    Or one in a finished stage, which would no longer be what its manifest says.

    Raises:
        StorageError: names it.
    """
    with storage_errors(folder):
        require_short_names(folder)
        place = folder.absolute()
        for path in (place, *place.parents):
            if all((path / name).is_file() for name in (MANIFEST, "stage.log")):
                what = "a finished stage" if path == place else f"in a finished stage, {path}"
                raise StorageError(f"{folder} is {what}; choose another with --out")
        for path in (folder, *folder.parents):
            if path.is_dir():
                return
            if path.exists() or path.is_symlink():
                what = "a link to no folder" if path.is_symlink() else "a file, no folder"
                raise StorageError(f"{path} is {what}; choose another with --out")


def cache_of(folder: Path) -> Path:
    """Return where a stage keeps what it need not compute again, once its folder is begun anew."""
    return folder.parent / ".cache" / folder.name


def list_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return every file of a stage's folder but scratch: relative path -> size and sha256."""
    return {
        name: {"size": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
        for name in _names(folder)
        if (folder / name).is_file()
    }


def _names(folder: Path) -> list[str]:
    """Return the relative paths of what belongs to a stage's folder."""
    names = (
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    )
    return sorted(
        name
        for name in names
        if name != MANIFEST
        and name.split("/")[0] not in SCRATCH
        and not _OF_THE_SYSTEM.fullmatch(name.rpartition("/")[2])
    )


def content_digest(files: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the digest of an artifact's content, records left out."""
    lines = [f"{name} {files[name]['sha256']}" for name in sorted(files) if name not in RECORDS]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@functools.cache
def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that shape a result."""
    names = ("rlhf-pipeline", "torch", "transformers", "trl", "accelerate", "tokenizers")
    versions = {"python": platform.python_version()}
    for name in (*names, "datasets"):
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def publish(folder: Path, **entries: Any) -> Artifact:
    """Write a stage's manifest and so make its folder an artifact.

    Args:
        folder: the stage's folder, all files in place.
        **entries: what the manifest holds beside files, digest, versions and time:
            stage, kind, version, key, parents, settings, seed, device, seconds, metrics ...
    """
    remove_leftovers(folder)
    sync_tree(folder, leave_out=SCRATCH)
    files = list_files(folder)
    manifest = {
        "format": FORMAT,
        **entries,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": library_versions(),
        "digest": content_digest(files),
        "files": files,
    }
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    return Artifact(folder, manifest)


def find(folder: Path) -> Artifact | None:
    """Return the artifact in a folder, or None when the stage has not finished there.

    Raises:
        ArtifactError: the manifest can't be read, or is of another version.
    """
    path, way_out = folder / MANIFEST, f"restore it, or delete {folder} to run the stage again"
    try:
        if not path.exists() and not path.is_symlink():
            return None
        manifest = read_json_object(path)
    except (OSError, ArtifactError) as error:
        raise ArtifactError(f"{in_words(error)}; {way_out}") from error
    if manifest.get("format") != FORMAT:
        raise ArtifactError(
            f"{path} has format {manifest.get('format')!r:.60}, this version reads {FORMAT}; "
            "start a new run folder with --out, or use the version that made it"
        )
    try:
        _Manifest.model_validate(manifest, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        why = f"its {where!a:.100} can't be {first['input']!a:.100} ({first['msg']})"
        if first["type"] == "missing":
            why = f"it has no {where}"
        raise ArtifactError(f"{path} was edited: {why}; {way_out}") from error
    return Artifact(folder, manifest)


def verify(artifact: Artifact) -> Artifact:
    """Check every file of an artifact against its manifest.

    Raises:
        ArtifactError: a file is missing, was changed, or was added.
    """
    way_out = f"restore it, or delete {artifact.folder} to run the stage again"
    expected = artifact.manifest["files"]
    for name, entry in expected.items():
        path = artifact.folder / name
        try:
            if not path.is_file():
                raise ArtifactError(f"{path} is missing though the manifest lists it; {way_out}")
            same = path.stat().st_size == entry["size"] and sha256(path) == entry["sha256"]
        except OSError as error:
            raise ArtifactError(f"{path} can't be read ({error.strerror}); {way_out}") from error
        if not same:
            raise ArtifactError(
                f"{path} is damaged or was edited: its sha256 differs from the manifest's; "
                f"{way_out}"
            )
    if content_digest(expected) != artifact.digest:
        raise ArtifactError(
            f"{artifact.folder / MANIFEST} was edited: its digest does not fit its files; {way_out}"
        )
    # Of a folder that was moved and linked to, the files are listed, and it is not.
    linked = {str(place) for name in expected for place in PurePosixPath(name).parents}
    added = [n for n in _names(artifact.folder) if n not in expected and n not in linked]
    if added:
        more = f" and {len(added) - 1} more" if len(added) > 1 else ""
        raise ArtifactError(
            f"{artifact.folder / one_line(added[0])}{more} was added after the stage had finished: "
            f"the manifest does not list it; move it away, or delete {artifact.folder} to run the "
            "stage again"
        )
    return artifact
