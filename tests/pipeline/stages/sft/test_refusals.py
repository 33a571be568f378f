"""What fine-tuning refuses, and a tokenizer beside the model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from data.errors import HandOverError, ModelError, RecipeError, SourceError
from pipeline.stages.sft import stage as sft


def test_refuses_rows_without_answer(
    make_context: Any, sft_settings: Any, policy: Path, tmp_path: Path
) -> None:
    path = tmp_path / "prose.jsonl"
    path.write_text(json.dumps({"text": "Some prose."}) + "\n")
    with pytest.raises(SourceError, match=r"train\.0 holds Document rows; .* answer to imitate"):
        sft.run(make_context(sft_settings(policy, train=[{"path": str(path)}]), {"model": policy}))


def test_refuses_candidates_without_anything_held_out(
    make_context: Any, sft_settings: Any, policy: Path
) -> None:
    chosen = sft_settings(policy, candidates=2, heldout_share=0.0)
    with pytest.raises(RecipeError, match="heldout"):
        sft.run(make_context(chosen, {"model": policy}))


def test_refuses_a_max_length_beyond_the_context(
    make_context: Any, sft_settings: Any, policy: Path
) -> None:
    context = make_context(sft_settings(policy, max_length=1000), {"model": policy})
    with pytest.raises(HandOverError, match="128"):
        sft.check(context.settings, context.hand)


def test_check_refuses_a_model_of_another_kind(
    make_context: Any, sft_settings: Any, policy: Path, tmp_path: Path
) -> None:
    other = tmp_path / "classifier"
    shutil.copytree(policy, other)
    config = json.loads((other / "config.json").read_text())
    config["architectures"] = ["LlamaForSequenceClassification"]
    (other / "config.json").write_text(json.dumps(config))
    context = make_context(sft_settings(other), {"model": other})
    with pytest.raises(HandOverError, match="LlamaForSequenceClassification"):
        sft.check(context.settings, context.hand)


def test_a_tokenizer_beside_the_model_goes_into_the_checkpoint(
    make_context: Any, sft_settings: Any, tiny_tokenizer: Any, save_policy: Any, tmp_path: Path
) -> None:
    # As SmolLM2 comes: padding with the end-of-sequence token.
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    model = save_policy(tokenizer)
    own = make_context(sft_settings(model), {"model": model})
    with pytest.raises(ModelError, match="they must be two tokens"):
        sft.run(own)
    adopted = tmp_path / "adopted"
    tokenizer.pad_token = "<|endoftext|>"
    tokenizer.save_pretrained(adopted)
    changed = sft_settings(model, tokenizer=str(adopted), epochs=1)
    context = make_context(changed, {"model": model, "tokenizer": adopted})
    sft.run(context)
    config = json.loads((context.folder / "model" / "config.json").read_text())
    kept = json.loads((context.folder / "model" / "tokenizer_config.json").read_text())
    assert config["pad_token_id"] == 2
    assert config["eos_token_id"] == 6
    assert kept["pad_token"] == "<|endoftext|>"


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(
    make_context: Any, sft_settings: Any, tiny_tokenizer: Any, policy: Path, tmp_path: Path
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<|extra|>"])
    tokenizer.save_pretrained(tmp_path / "more")
    changed = sft_settings(policy, tokenizer=str(tmp_path / "more"))
    context = make_context(changed, {"model": policy, "tokenizer": tmp_path / "more"})
    with pytest.raises(ModelError, match="has 321 tokens and the model an embedding of 320"):
        sft.run(context)
