"""What is known of checkpoints that are judged outside of their recipe."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.run.origins import origins


def test_stages_of_a_finished_run_tell_what_they_read(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished.parent.parent)
    places = {"sft": str(finished / "sft"), "ppo": str(finished / "ppo" / "model")}
    found = origins(places)
    assert found.made_by == {"sft": ["sft"], "ppo": ["sft", "pairs", "reward", "ppo"]}
    assert found.elsewhere == []
    assert [Path(str(s.path)).name for s in found.readings["ppo"].sources] == ["prompts.jsonl"]

    (finished.parent.parent / "prompts.jsonl").write_text('{"prompt": "Another?"}\n')
    shutil.copytree(finished / "sft" / "model", finished.parent / "copied")
    found = origins({**places, "copied": str(finished.parent / "copied"), "hub": "some/model"})
    # ppo's prompts are others by now, and of mere folders and the hub nothing is known.
    assert found.made_by == {"sft": ["sft"]}
    assert found.elsewhere == ["ppo", "copied", "hub"]


def test_stages_of_two_runs_have_their_runs_name(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished.parent.parent)
    again = finished.parent / "again"
    shutil.copytree(finished, again)
    found = origins({"a": str(finished / "sft"), "b": str(again / "sft")})
    assert found.made_by == {"a": [f"{finished}/sft"], "b": [f"{again}/sft"]}
