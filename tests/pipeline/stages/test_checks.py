"""What is told of a policy's start before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.contract.handover import HandOver
from pipeline.run import checking
from pipeline.stages.checks import start_warnings
from pipeline.stages.grpo.settings import GrpoSettings
from pipeline.stages.ppo.settings import PpoSettings
from pipeline.stages.rloo.settings import RlooSettings

Build = Callable[..., Any]
TOKENS = 320
EVEN = math.log(TOKENS)


@pytest.fixture
def start(
    tmp_path: Path, save_policy: Build, tiny_tokenizer: Build, make_artifact: Build
) -> Callable[..., HandOver]:
    """Return a builder of the view of a stage whose policy ended in a held-out loss."""

    def build(loss: float | None, kind: str = "sft", stage: str = "sft") -> HandOver:
        save_policy(tiny_tokenizer(TOKENS), tmp_path / stage / "model")
        metrics = {} if loss is None else {"eval/loss": loss}
        made = make_artifact(tmp_path / stage, stage=stage, kind=kind, metrics=metrics)
        return HandOver("ppo", {}, lambda _: made)

    return build


@pytest.mark.parametrize("kind", ["sft", "pretrain"])
def test_a_start_that_answers_with_noise_is_told(start: Build, tmp_path: Path, kind: str) -> None:
    hand = start(0.9 * EVEN, kind)
    (line,) = start_warnings("sft", hand)
    assert "its held-out loss is 5.19 nats a token, 90% of that of guessing evenly" in line
    assert f"among {TOKENS} tokens" in line
    elsewhere = HandOver("ppo", {}, lambda _: None)
    assert start_warnings(str(tmp_path / "sft"), elsewhere) == [
        line.replace("warning: sft", f"warning: {tmp_path / 'sft'}")
    ]


@pytest.mark.parametrize(
    ("loss", "kind"), [(0.6 * EVEN, "sft"), (None, "sft"), (0.9 * EVEN, "distill")]
)
def test_a_start_that_learned_or_of_which_nothing_is_known_is_not(
    start: Build, loss: float | None, kind: str
) -> None:
    assert start_warnings("sft", start(loss, kind)) == []


@pytest.mark.parametrize("settings", [PpoSettings, GrpoSettings, RlooSettings])
def test_a_check_of_the_recipe_tells_it_of_each_method(start: Build, settings: Any) -> None:
    class Recipe:
        stages = {  # noqa: RUF012
            "ppo": settings(policy="sft", reward=[{"rule": "length", "options": {"target": 4}}],
                            prompts=[{"path": "a"}])
        }  # fmt: skip

    (line,) = checking._warnings(Recipe, start(EVEN))  # type: ignore[arg-type]
    assert "100% of that of guessing" in line
