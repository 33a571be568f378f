"""Pretraining by other objectives on two processes, with whole or sharded weights, as on one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("spread_objectives.py")
WORDS = ("baker", "miller", "teacher", "river", "mill.", "bread", "bridge.", "school")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory,
    spread_out: Callable[..., Any],
    tiny_tokenizer: Callable[..., Any],
) -> Path:
    """Each objective on one process, and on two with sharded and with whole weights."""
    from data.text.objectives.special_tokens import equip
    from pipeline.models.architectures import Shape, build_policy

    folder = tmp_path_factory.mktemp("objectives")
    objectives: tuple[Any, ...] = ("masked", "span_corruption", "denoising")
    for objective in objectives:
        tokenizer = tiny_tokenizer()
        equip(tokenizer, objective)
        tokenizer.save_pretrained(folder / f"tokenizer-{objective}")
        if objective == "masked":
            tokenizer.save_pretrained(folder / "teacher")
            shape = Shape(16, 4, 2, 2, 32, 32, initializer_range=0.2)
            head = "AutoModelForMaskedLM"
            teacher = build_policy("bert", shape, tokenizer, seed=0, auto_class=head)
            teacher.save_pretrained(folder / "teacher")
    texts = [" ".join((WORDS * 3)[i % 8 : i % 8 + 4 + i // 8 % 10]) for i in range(200)]
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "text.jsonl").write_text(rows)
    alone = spread_out(folder, 1, SCRIPT, folder, "alone")
    spread_out(folder, 2, SCRIPT, folder, "ddp", "fsdp")()
    alone()
    return folder


@pytest.mark.parametrize("objective", ["masked", "span_corruption", "denoising", "distill"])
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_two_processes_give_the_weights_of_one(runs: Path, objective: str, mode: str) -> None:
    alone, together = (
        load_file(runs / how / objective / "model" / "model.safetensors") for how in ("alone", mode)
    )
    assert alone.keys() == together.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, atol=1e-5, rtol=0, msg=name)
    first, last = (
        json.loads((runs / how / objective / "metrics.jsonl").read_text().splitlines()[-1])
        for how in ("alone", mode)
    )
    for name in ("train/loss", "eval/loss", "eval/accuracy"):
        assert last[name] == pytest.approx(first[name], rel=1e-4)
