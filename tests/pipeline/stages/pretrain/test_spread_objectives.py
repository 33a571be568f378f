"""Pretraining by other objectives on two processes gives what one gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

LEARNERS = {"masked": "bert", "span_corruption": "t5", "denoising": "bart"}


@pytest.mark.slow
@pytest.mark.parametrize("objective", LEARNERS)
def test_two_processes_give_the_weights_of_one(objective: str, tmp_path: Path) -> None:
    corpus: dict[str, Any] = {"world": "corpus", "limit": 300}
    base: dict[str, Any] = {
        "kind": "pretrain", "objective": objective, "architecture": LEARNERS[objective],
        "tokenizer": "tokenizer", "train": [corpus], "heldout_share": 0.1, "hidden_size": 32,
        "layers": 2, "heads": 2, "context_length": 32, "steps": 6, "batch_size": 8,
        "micro_batch_size": 3, "bf16": False, "epsilon": 1e-5, "log_every": 1, "evaluate_every": 3,
    }  # fmt: skip
    if objective == "masked":
        base["masking"] = {"next_sentence": True, "whole_words": True}
    tokenizer = {
        "kind": "tokenizer", "objective": objective, "train": [corpus], "vocab_size": 600,
    }  # fmt: skip
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"stages": {"tokenizer": tokenizer, "base": base}}))
    rlhf = str(Path(sys.executable).with_name("rlhf"))
    weights = []
    for processes in ("1", "2"):
        out = tmp_path / processes
        command = [rlhf, "run", str(recipe), "--out", str(out), "--processes", processes]
        subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
        weights.append(load_file(out / "base" / "model" / "model.safetensors"))
    alone, together = weights
    assert alone.keys() == together.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, atol=1e-5, rtol=0, msg=name)
