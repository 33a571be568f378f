"""What is told of a policy's start before anything is trained."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

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


@pytest.mark.parametrize(
    ("stage", "database", "missing", "told"),
    [
        ({"kind": "rankings", "labeler": "people"}, None, "alembic", "rlhf-pipeline[labels]"),
        ({"kind": "rankings", "labeler": "people"}, "postgresql://x/y", "psycopg", "[postgres]"),
        (
            {"kind": "evaluate", "checkpoints": {"a": "./m", "b": "./m"}},
            None,
            "alembic",
            "[labels]",
        ),
    ],
)
def test_what_people_need_is_asked_before_anything_runs(
    rlhf: Build, tmp_path: Path, save_policy: Build, tiny_tokenizer: Build,
    monkeypatch: pytest.MonkeyPatch, stage: dict[str, Any], database: str | None, missing: str,
    told: str,
) -> None:  # fmt: skip
    save_policy(tiny_tokenizer(), tmp_path / "m")
    people = {} if database is None else {"database": database}
    prompts = [{"world": "eval_prompts", "limit": 3}]
    model = {"model": "./m"} if stage["kind"] == "rankings" else {}
    ask = {**stage, **model, "prompts": prompts, "people": people}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"stages": {"ask": ask}}))
    assert rlhf("validate", "r.yaml").code == 0
    there = importlib.util.find_spec
    monkeypatch.setattr("data.extras.find_spec", lambda n: None if n == missing else there(n))
    refused = rlhf("validate", "r.yaml")
    assert (refused.code, told in refused.err, missing in refused.err) == (2, True, True), refused


def test_a_gguf_file_names_what_reads_it(
    rlhf: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("data.extras.find_spec", lambda name: None)
    refused = rlhf("tokenizer", "show", "a.gguf", "hi")
    assert (refused.code, "pip install 'rlhf-pipeline[gguf]'" in refused.err) == (2, True)
