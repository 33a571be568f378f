"""The best of n in an evaluation: a pool of answers from the reference, chosen by proxy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from data.errors import UsageError
from data.json_lines import read_json_lines
from pipeline.contract.settings import SourceSettings, references
from pipeline.evaluation.judge.over_optimisation import from_pool
from pipeline.evaluation.judge.standalone import Request, evaluate_checkpoints
from pipeline.stages.evaluate.settings import EvaluateSettings
from pipeline.stages.evaluate.stage import run


@pytest.fixture
def settings(tiny_tokenizer: Any, save_policy: Any, tmp_path: Path) -> dict[str, Any]:
    """Return the settings of an evaluation that chooses among eight answers by their length."""
    checkpoint = save_policy(tiny_tokenizer(), tmp_path / "sft", context=256)
    return {
        "checkpoints": {"sft": str(checkpoint)},
        "prompts": [SourceSettings(world="eval_prompts")],
        "limit": 3,
        "gold": True,
        "rule": "length",
        "rule_options": {"target": 40, "unit": "characters"},
        "max_new_tokens": 6,
        "resamples": 50,
        "best_of": 8,
    }


def test_figures_recount_from_the_pool(
    settings: dict[str, Any],
    make_context: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checked = EvaluateSettings.model_validate(settings)
    inputs = {field: target for field, (target, _) in references(checked).items()}
    context = make_context(checked, inputs)
    said: list[str] = []
    monkeypatch.setattr(type(context), "say", lambda self, line: said.append(line))
    run(context)
    told = json.loads((context.folder / "evaluation.json").read_text())["over_optimisation"]
    rows = [*read_json_lines(context.folder / "best_of_n.jsonl")]
    assert [(row["index"], row["sample"]) for row in rows] == [
        (index, sample) for index in range(3) for sample in range(8)
    ]
    assert len({row["response"] for row in rows if row["index"] == 0}) > 1
    assert told == {"checkpoint": "sft", **from_pool(rows, resamples=50, seed=context.seed)}
    assert [point["n"] for point in told["points"]] == [1, 2, 3, 4, 6, 8]
    proxies = [point["proxy"] for point in told["points"]]
    assert proxies == sorted(proxies) and proxies[0] < proxies[-1]
    assert f"best of n from sft: {told['sentence']}" in said


@pytest.mark.parametrize(
    "changes", [{"gold": False}, {"rule": None, "rule_options": {}}, {"temperature": 0}]
)
def test_a_pool_needs_a_proxy_gold_and_a_temperature(
    settings: dict[str, Any], changes: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError, match="best_of chooses by a reward"):
        EvaluateSettings.model_validate(settings | changes)


def test_the_key_holds_the_pool_where_there_is_one(settings: dict[str, Any]) -> None:
    assert EvaluateSettings.model_validate(settings).key_settings()["best_of"] == 8
    plain = EvaluateSettings.model_validate({**settings, "best_of": None})
    assert "best_of" not in plain.key_settings()


def test_the_command_tells_what_it_takes(settings: dict[str, Any], tmp_path: Path) -> None:
    request = Request(settings["checkpoints"], SourceSettings(world="eval_prompts"), best_of=4)
    with pytest.raises(UsageError, match="--best-of chooses by a reward model"):
        evaluate_checkpoints(request, out=tmp_path / "out")
