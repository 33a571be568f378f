"""The estimate of fine-tuning beside what the stage does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenizers.processors import TemplateProcessing

from pipeline.contract.console import Console
from pipeline.estimate.model.hardware import GIB, Accelerator, Cluster
from pipeline.estimate.planner import estimate_recipe
from pipeline.recipe.load import load_recipe
from pipeline.run.planning import Selection
from pipeline.run.runner import execute


@pytest.mark.parametrize("head", ["classify", "span", "tag"])
def test_steps_parameters_and_work_are_those_of_the_stage(
    head: str, tmp_path: Path, tiny_tokenizer: Callable[..., Any], measured: Callable[..., Any]
) -> None:
    from transformers import BertConfig, BertModel

    folder, tokenizer = tmp_path / "bert", tiny_tokenizer()
    ends = [("<|bos|>", tokenizer.bos_token_id), ("<|end|>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|bos|> $A <|end|>", pair="<|bos|> $A <|end|> $B:1 <|end|>:1", special_tokens=ends
    )
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128, max_position_embeddings=200, pad_token_id=0,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    rows: list[dict[str, Any]] = []
    for n in range(40):
        text = f"The baker {n} lives by the river. " + "It was a grey day. " * (n % 7)
        more: dict[str, Any] = {"label": n % 2}
        if head == "span":
            more = {"question": "Who lives there?", "context": text, "answer": "baker"}
        elif head == "tag":
            more = {"spans": [{"start": 4, "end": 9, "label": "job"}]}
        rows.append({"text": text, **more})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = {
        "kind": "finetune", "head": head, "model": str(folder), "epochs": 1, "batch_size": 8,
        "train": [{"path": str(tmp_path / "rows.jsonl")}], "bf16": False, "evaluate_every": 0,
        "max_length": 200 if head == "classify" else 70,
    }  # fmt: skip
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump({"stages": {"ft": stage}}))
    recipe = load_recipe(path)
    cluster = Cluster(Accelerator("cpu", 16 * GIB, 1e11, 1e11, 1e10))
    [verdict] = estimate_recipe(recipe, cluster).verdicts
    found = measured(
        lambda: execute(
            recipe, tmp_path / "out", selection=Selection(), console=Console(quiet=True)
        )
    )
    manifest = json.loads((tmp_path / "out" / "ft" / "manifest.json").read_text())
    # A frame of three tokens is counted, and this tokenizer puts two around a single text.
    assert verdict.cost.steps == pytest.approx(manifest["metrics"]["steps"], rel=0.2)
    assert verdict.cost.flops == pytest.approx(found.flops, rel=0.15)
    assert verdict.cost.peak.total == pytest.approx(found.peak, rel=0.15)
    assert verdict.cost.parameters["ft"] == pytest.approx(
        manifest["metrics"]["parameters"], rel=0.05
    )
