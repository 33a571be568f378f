"""A recipe in which a stage learns from the rows that a tool_annotate stage leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from data.errors import RecipeError
from pipeline.contract.console import Console
from pipeline.recipe.load import load_recipe
from pipeline.run.planning import Planner
from pipeline.run.runner import execute

SHAPE = {
    "kind": "pretrain", "hidden_size": 8, "layers": 1, "heads": 2, "context_length": 64,
    "positions": 128, "tokens": 256, "batch_size": 2, "evaluate_every": 0, "heldout_share": 0,
}  # fmt: skip
STAGES = {
    "tokenizer": {"kind": "tokenizer", "train": [{"world": "sums_heldout"}], "vocab_size": 300},
    "base": {**SHAPE, "tokenizer": "tokenizer", "train": [{"world": "sums_heldout"}]},
    "annotated": {
        "kind": "tool_annotate", "model": "base", "train": [{"world": "sums", "limit": 4}],
        "opening_probability": 0.0, "max_call_tokens": 4, "places": 1, "calls": 2,
    },
    "learner": {**SHAPE, "model": "base", "train": [{"stage": "annotated"}]},
}  # fmt: skip
for _key in ("hidden_size", "layers", "heads", "positions"):
    del STAGES["learner"][_key]


def test_rows_of_a_stage_are_learned_and_made_again_when_it_changes(tmp_path: Path) -> None:
    path, run = tmp_path / "recipe.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump({"seed": 0, "stages": STAGES}))
    recipe = load_recipe(path)
    execute(recipe, run, console=Console(quiet=True))
    report = json.loads((run / "report" / "report.json").read_text())
    assert report["stages"]["annotated"]["metrics"]["n_texts"] == 4
    log = (run / "learner" / "stage.log").read_text()
    assert "4 records from 4 rows" in log and "rows.jsonl" in log
    assert [step.action for step in Planner(recipe, run).plan()] == ["up to date"] * 4
    other = load_recipe(path, ["annotated.places=2"])
    actions = [step.action for step in Planner(other, run).plan()]
    assert actions == ["up to date", "up to date", "run", "run"]
    with pytest.raises(RecipeError, match="calculater"):
        Planner(load_recipe(path, ["annotated.tools=[calculater]"]), run).plan()
