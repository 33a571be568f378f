"""What a run of a grid cost: counted by hand, and by its metrics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config, LlamaConfig

from pipeline.evaluation.scaling.measure import heldout_loss, model_counts, training_seconds


def llama(*, tied: bool) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=100,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        tie_word_embeddings=tied,
    )


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_and_flops_are_those_counted_by_hand(tmp_path: Path, tied: bool) -> None:
    llama(tied=tied).save_pretrained(tmp_path)
    found = model_counts(tmp_path, context_length=8)
    matrices = 2 * (4 * 16 * 16 + 3 * 16 * 24)
    norms = (2 * 2 + 1) * 16
    assert found["parameters"] == matrices + norms + (1 if tied else 2) * 100 * 16
    assert found["non_embedding_parameters"] == matrices + norms
    # 2 FLOPs an element forward, twice that backward; attention's two products over 8 positions.
    assert found["flops_per_token"] == 6 * (matrices + 100 * 16) + 3 * 2 * (4 * 16 * 8)


def test_position_embeddings_are_embeddings(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=100, n_embd=16, n_layer=1, n_head=2, n_positions=32)
    config.save_pretrained(tmp_path)
    found = model_counts(tmp_path, context_length=8)
    assert found["parameters"] - found["non_embedding_parameters"] == (100 + 32) * 16


def test_seconds_are_those_of_the_steps_each_counted_once() -> None:
    rows = [
        {"step": 10, "train/tokens_per_second": 500.0},  # 10 steps of 100 tokens: 2 s
        {"step": 20, "train/tokens_per_second": 100.0},  # told before a kill, and again
        {"step": 20, "train/tokens_per_second": 250.0},  # 4 s
        {"step": 25, "train/tokens_per_second": 1000.0},  # half a second
    ]
    assert training_seconds(rows, step_tokens=100) == pytest.approx(6.5)


def test_the_held_out_loss_is_a_token_of_all_texts_and_lies_in_its_interval(
    save_policy: Callable[..., Path], tiny_tokenizer: Callable[..., Any]
) -> None:
    folder = save_policy(tiny_tokenizer())
    texts = ["The baker of Millbrook is Ada Finch.", "What is 3 + 4?", "The miller lives.", "No."]
    found = heldout_loss(folder, texts)
    low, high = found["loss_ci95"]
    assert low <= found["loss"] <= high
    twice = heldout_loss(folder, texts * 2)
    assert twice["loss"] == pytest.approx(found["loss"], rel=1e-5)
    assert twice["loss_ci95"][1] - twice["loss_ci95"][0] < high - low
