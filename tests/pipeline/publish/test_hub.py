"""A published model on a hub: what arrives there, who sees it, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Rlhf = Callable[..., Any]


def published(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_repository_gets_the_files_of_a_folder_in_one_commit(
    finished: Path, rlhf: Rlhf, hub: Any
) -> None:
    typed = rlhf("publish", "runs/tiny/sft", "hub:org/name", "--license", "mit")
    assert typed.code == 0, typed.err
    assert f"{hub.url}/org/name/commit/abc: a causal language model" in typed.out
    assert "its owner alone sees it" in typed.out and hub.private is True
    assert rlhf("publish", "runs/tiny/sft", "there", "--license", "mit").code == 0
    there = published(Path("there"))
    assert there.keys() | {".gitattributes"} == hub.files.keys()
    assert [name for name in there if there[name] != hub.files[name]] == ["README.md"]
    assert b'from_pretrained("org/name")' in hub.files["README.md"]
    assert sum("/commit/" in path for _, path, _ in hub.seen) == 1
    # The token goes to the hub and nowhere else.
    assert "hf_a_secret" not in typed.out + typed.err
    assert not any(b"hf_a_secret" in content for content in hub.files.values())
    assert "Bearer hf_a_secret" in {token for _, path, token in hub.seen if "/commit/" in path}


def test_a_repository_is_shown_to_all_where_that_is_asked_for(
    finished: Path, rlhf: Rlhf, hub: Any
) -> None:
    typed = rlhf("publish", "runs/tiny/sft", "hub:org/name", "--public", "-q")
    assert (typed.code, typed.out) == (0, "") and hub.private is False


def test_a_repository_that_holds_something_is_written_over_on_request_alone(
    finished: Path, rlhf: Rlhf, hub: Any
) -> None:
    hub.files = {".gitattributes": b"", "old.safetensors": b"", "config.json": b"{}"}
    typed = rlhf("publish", "runs/tiny/sft", "hub:org/name")
    assert typed.code == 2 and "holds 2 files already; give --update" in typed.err
    assert not any("/commit/" in path for _, path, _ in hub.seen)
    assert rlhf("publish", "runs/tiny/sft", "hub:org/name", "--update").code == 0
    assert "old.safetensors" not in hub.files and b"Llama" in hub.files["config.json"]


def test_a_hub_that_refuses_is_told_in_a_sentence_and_the_next_try_goes_on(
    finished: Path, rlhf: Rlhf, hub: Any
) -> None:
    hub.refuses = 403
    typed = rlhf("publish", "runs/tiny/sft", "hub:org/name")
    assert typed.code == 2 and "the hub answers 403 (you are not allowed to do this)" in typed.err
    assert "use a token that may write there" in typed.err and "hf_a_secret" not in typed.err
    hub.refuses = 0
    assert rlhf("publish", "runs/tiny/sft", "hub:org/name").code == 0


def test_what_the_hub_can_not_be_asked_for_is_refused_before_anything_is_sent(
    finished: Path, rlhf: Rlhf, hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for target in ("hub:name", "hub:a/b/c", "hub:", "hub:org/na me"):
        typed = rlhf("publish", "runs/tiny/sft", target)
        assert typed.code == 2 and "name" in typed.err, target
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    typed = rlhf("publish", "runs/tiny/sft", "hub:org/name")
    assert typed.code == 2 and "run `hf auth login`, or set HF_TOKEN" in typed.err
    assert {method for method, _, _ in hub.seen} <= {"HEAD"}


def test_a_hub_that_does_not_answer_is_told(finished: Path, rlhf: Rlhf) -> None:
    # The tests work offline.
    typed = rlhf("publish", "runs/tiny/sft", "hub:org/name")
    assert typed.code == 2 and "HF_HUB_OFFLINE is set); publish into a folder instead" in typed.err
