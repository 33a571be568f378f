"""TRL's trainers on two processes, with whole or sharded weights, as on one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("spread_trl.py")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory,
    spread_out: Callable[..., Any],
    tiny_tokenizer: Callable[..., Any],
    tiny_policy: Callable[..., Any],
) -> Path:
    """Each kind on one process, and on two with whole weights and, where it can, sharded ones."""
    folder = tmp_path_factory.mktemp("trl")
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder / "policy")
    tiny_policy(tokenizer).save_pretrained(folder / "policy")
    asked = [{"prompt": f"say {n}"} for n in range(11)]
    ranked = [{**row, "completions": ["Yes.", "Hm.", "No."], "ranks": [1, 2, 3]} for row in asked]
    for name, rows in (("prompts", asked), ("rankings", ranked)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    alone = spread_out(folder, 1, SCRIPT, folder, "alone")
    spread_out(folder, 2, SCRIPT, folder, "ddp", "fsdp")()
    alone()
    return folder


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("ddp", "dpo"), ("ddp", "kto"), ("ddp", "grpo"), ("ddp", "rloo"), ("fsdp", "dpo")],
)
def test_two_processes_give_the_weights_of_one(runs: Path, mode: str, kind: str) -> None:
    alone, together = (
        load_file(runs / how / kind / "model" / "model.safetensors") for how in ("alone", mode)
    )
    assert alone.keys() == together.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, atol=1e-5, rtol=0, msg=name)
    first, last = (
        [*map(json.loads, (runs / how / kind / "metrics.jsonl").read_text().splitlines())]
        for how in ("alone", mode)
    )
    assert len(first) == len(last)
    for one, two in zip(first, last, strict=True):
        same = {name for name in one if name != "seconds"}
        assert same == two.keys() - {"seconds"}
        for name in same:
            assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-5), name
