"""Fine-tuning on two processes gives what one gives."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

HEADS = {"classify": "statements", "span": "passages", "tag": "names"}


@pytest.mark.slow
def test_two_processes_give_the_weights_of_one(tmp_path: Path) -> None:
    corpus: dict[str, Any] = {"world": "corpus", "limit": 200}
    stages: dict[str, Any] = {
        "tokenizer": {"kind": "tokenizer", "objective": "masked", "train": [corpus],
                      "vocab_size": 500},
        "base": {"kind": "pretrain", "objective": "masked", "architecture": "bert",
                 "tokenizer": "tokenizer", "train": [corpus], "hidden_size": 32, "layers": 1,
                 "heads": 2, "context_length": 32, "positions": 128, "steps": 2, "batch_size": 8,
                 "bf16": False},
    }  # fmt: skip
    for head, part in HEADS.items():
        stages[head] = {
            "kind": "finetune", "head": head, "model": "base",
            "train": [{"world": part, "limit": 60}],
            "heldout": [{"world": f"{part}_heldout", "limit": 31}],
            "epochs": 0.8, "batch_size": 8, "micro_batch_size": 3, "learning_rate": 1e-3,
            "epsilon": 1e-5, "bf16": False, "log_every": 1, "evaluate_every": 3,
        }  # fmt: skip
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"stages": stages}))
    rlhf = str(Path(sys.executable).with_name("rlhf"))
    for processes in ("1", "2"):
        command = [rlhf, "run", str(recipe), "--out", str(tmp_path / processes)]
        subprocess.run(
            [*command, "--processes", processes], check=True, capture_output=True, cwd=tmp_path
        )
    for head in HEADS:
        alone, together = (tmp_path / processes / head for processes in ("1", "2"))
        mine, theirs = (load_file(at / "model" / "model.safetensors") for at in (alone, together))
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            torch.testing.assert_close(theirs[name], tensor, atol=1e-5, rtol=0, msg=name)
        one, two = (json.loads((at / "quality.json").read_text()) for at in (alone, together))
        assert one["n"] == two["n"] == 31
        f1_one, f1_two = (each["figures"]["f1"]["value"] for each in (one, two))
        assert f1_two == pytest.approx(f1_one, abs=0.02)
