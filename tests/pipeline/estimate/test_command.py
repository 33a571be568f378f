"""`rlhf plan` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from data.errors import UsageError
from pipeline.cli.main import app

QUICKSTART = str(Path(__file__).parents[3] / "recipes" / "quickstart.yaml")


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["plan", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_quickstart_is_told_stage_by_stage_and_nothing_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = invoke(QUICKSTART, "--gpus", "24GB@165TFLOPS").splitlines()
    table = [line.split("\t") for line in lines if "\t" in line]
    assert [row[0] for row in table[1:]] == [
        "base", "sft", "rankings", "rankings_heldout", "reward", "ppo", "evaluate",
    ]  # fmt: skip
    base = dict(zip(table[0], table[1], strict=True))
    # 560,000 tokens at 4 chunks of 64 a step.
    assert (base["parameters"], base["steps"], base["fits"]) == ("1.71M", "2,188", "yes")
    assert any("35% of a peak of 165 TFLOP/s" in line for line in lines)
    assert list(tmp_path.iterdir()) == []


def test_json_of_two_nodes() -> None:
    content = json.loads(
        invoke(
            QUICKSTART, "--gpus", "8xH100-80GB", "--nodes", "2", "--utilisation", "0.2", "--json"
        )
    )
    assert content["accelerator"]["count"] == 16
    assert content["assumed"]["utilisation"] == 0.2
    stages = {stage["stage"]: stage for stage in content["stages"]}
    assert stages["ppo"]["gpus"] == 16
    assert stages["evaluate"]["gpus"] == 1
    assert "can't be shared by 16 processes" in stages["base"]["problems"][0]


def test_an_unknown_accelerator_is_a_sentence() -> None:
    with pytest.raises(UsageError, match="Did you mean 'H200-141GB'"):
        invoke(QUICKSTART, "--gpus", "8xH200-140GB")
