from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from data.errors import ArtifactError, StorageError
from data.storage import write_atomically
from pipeline.contract.artifacts import (
    MANIFEST,
    Artifact,
    find,
    publish,
    require_writable_place,
    verify,
)


def make(folder: Path, text: str = "weights", log: str = "1\n") -> Artifact:
    (folder / "model").mkdir(parents=True)
    return make_files(folder, text, log)


def make_files(folder: Path, text: str = "weights", log: str = "1\n") -> Artifact:
    (folder / "model" / "w.bin").write_text(text)
    (folder / "metrics.jsonl").write_text(log)
    return publish(folder, stage="base", kind="pretrain", key="k", metrics={"eval/loss": 1.0})


def test_a_folder_without_manifest_is_no_artifact(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert find(tmp_path) is None


def test_a_published_folder_is_found_and_verified(tmp_path: Path) -> None:
    made = make(tmp_path / "base")
    found = find(tmp_path / "base")
    assert found is not None
    assert verify(found).digest == made.digest
    assert found.size == len("weights") + 2
    assert found.metrics == {"eval/loss": 1.0}


def test_nothing_is_put_into_a_finished_stage(tmp_path: Path) -> None:
    made = make(tmp_path / "base")
    require_writable_place(tmp_path / "base" / "new")  # some other program's manifest.json
    (made.folder / "stage.log").touch()
    with pytest.raises(StorageError, match="base is a finished stage; choose"):
        require_writable_place(tmp_path / "base")
    for place in ("base/model", "base/new/run"):
        with pytest.raises(StorageError, match=f"{place} is in a finished stage, .*base; choose"):
            require_writable_place(tmp_path / place)
    require_writable_place(tmp_path / "other")


def test_the_digest_is_of_content_and_leaves_records_out(tmp_path: Path) -> None:
    a = make(tmp_path / "a", log="1\n")
    b = make(tmp_path / "b", log="2\n")
    c = make(tmp_path / "c", text="other")
    assert a.digest == b.digest != c.digest


def test_a_flipped_byte_is_refused_by_name(tmp_path: Path) -> None:
    artifact = make(tmp_path)
    path = tmp_path / "model" / "w.bin"
    path.write_text("weighty")
    with pytest.raises(ArtifactError, match=r"w\.bin is damaged or was edited"):
        verify(artifact)
    path.unlink()
    with pytest.raises(ArtifactError, match=r"w\.bin is missing"):
        verify(artifact)


def test_an_added_file_is_refused_by_name(tmp_path: Path) -> None:
    artifact = make(tmp_path / "base")
    for name in ("resume/step-1", "work/chunks", ".DS_Store", "model/.nfs0001"):
        path = tmp_path / "base" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    verify(artifact)  # scratch, and what systems leave, is nobody's model
    (tmp_path / "base/model/adapter_config.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"model/adapter_config\.json was added.*move it away"):
        verify(artifact)
    (tmp_path / "base/extra").write_text("x")
    with pytest.raises(ArtifactError, match=r"base/extra and 1 more was added"):
        verify(artifact)


def test_what_a_killed_writer_left_is_not_published(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for name in ("model/.config.json.4711.tmp", ".manifest.json.tmp", "model/kept.tmp"):
        (tmp_path / name).write_text("half")
    made = make_files(tmp_path)
    assert set(made.manifest["files"]) == {"model/kept.tmp", "model/w.bin", "metrics.jsonl"}
    assert not list(tmp_path.rglob(".*.tmp"))


def test_published_files_have_the_rights_of_new_ones(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    secret = tmp_path / "model" / "s.bin"
    secret.write_text("x")
    secret.chmod(0o600)
    make_files(tmp_path)
    assert secret.stat().st_mode == (tmp_path / MANIFEST).stat().st_mode


def test_an_edited_manifest_is_refused(tmp_path: Path) -> None:
    make(tmp_path)
    path = tmp_path / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["files"].pop("model/w.bin")
    path.write_text(json.dumps(manifest))
    found = find(tmp_path)
    assert found is not None
    with pytest.raises(ArtifactError, match="was edited"):
        verify(found)
    path.write_text(json.dumps({k: v for k, v in manifest.items() if k != "metrics"}))
    with pytest.raises(ArtifactError, match="was edited: it has no metrics"):
        find(tmp_path)


@pytest.mark.parametrize("text", ["{", '{"format": 0}', "[]"])
def test_a_manifest_of_another_version_or_no_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(ArtifactError, match=MANIFEST):
        find(tmp_path)


def test_a_full_disk_is_told_and_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="no space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
