"""`rlhf show KIND`: every setting of every kind of stage, without a recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.recipe.kinds import NEEDED, described, explain_kind
from pipeline.stages.registry import STAGE_MODULES, stage_kind

Rlhf = Callable[..., Any]


@pytest.mark.parametrize("kind", STAGE_MODULES)
def test_every_setting_of_a_kind_is_shown_with_its_meaning(kind: str) -> None:
    settings = stage_kind(kind).settings
    found = list(described(settings))
    top = [entry.path for entry in found if entry.depth == 0]
    assert top[0] == "kind" and sorted(top) == sorted(settings.model_fields)
    for entry in found:
        assert entry.meaning and "\n" not in entry.value, entry
    needed = {entry.path for entry in found if entry.value == NEEDED and entry.depth == 0}
    assert needed == {name for name, field in settings.model_fields.items() if field.is_required()}
    text = explain_kind(kind)
    assert all(f"{path}: " in text for path in needed)


def test_settings_that_are_left_out_by_default_are_shown_all_the_same() -> None:
    found = {entry.path: entry for entry in described(stage_kind("rankings").settings)}
    for name in ("mode", "guidelines", "overlap", "gold", "conversations.most_turns"):
        assert f"people.{name}" in found
    assert found["people.mode"].choices == ("rate_and_rank", "rank", "pairs")
    assert "prompts.-.path" in found and "rankings.-.path" not in found
    assert found["rankings"].meaning.endswith("Settings as those of prompts.")
    assert "people.annotators.judge.url" in found
    steps = {entry.path: entry for entry in described(stage_kind("evaluate").settings)}
    assert steps["tasks.gsm8k.steps"].choices == ("true", "false", "both")
    assert len(steps["judges.llm.prompt"].value) < 100


def test_a_kind_is_shown_unless_a_recipe_has_its_name(rlhf: Rlhf, tmp_path: Path) -> None:
    told = rlhf("show", "rankings")
    assert (
        told.code == 0 and "\n  mode: rate_and_rank  (rate_and_rank | rank | pairs)\n" in told.out
    )
    assert rlhf("show", "rankings", "--explain").out == told.out
    refused = rlhf("show", "rankings", "--set", "a=b")
    assert (refused.code, "rankings is a kind of stage" in refused.err) == (2, True)
    (tmp_path / "rankings.yaml").write_text("stages: {a: {kind: tokenizer, adopt: ./b}}\n")
    assert rlhf("show", "rankings").out.startswith("name: rankings\n")
