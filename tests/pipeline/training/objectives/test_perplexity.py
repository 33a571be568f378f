"""Perplexity: known values, independence of batches and windows."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedConfig

from data.errors import SourceError
from pipeline.training.objectives.perplexity import (
    perplexity_figures,
    separator_id,
    text_perplexity,
)

TEXTS = ["The baker bakes bread.", "Ada", "", "naïve 🙂 emoji\n" * 6]


class Uniform(torch.nn.Module):
    """Gives every token the same probability."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.config = PreTrainedConfig(max_position_embeddings=16)

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, self.vocabulary))


def test_figures_by_hand() -> None:
    figures = perplexity_figures(6 * math.log(2), 3, 4)
    assert figures["loss"] == pytest.approx(2 * math.log(2))
    assert figures["perplexity"] == pytest.approx(4.0)
    assert figures["bits_per_byte"] == pytest.approx(1.5)  # 6 bits over 4 bytes


def test_a_hopeless_model_has_a_finite_perplexity() -> None:
    assert math.isfinite(perplexity_figures(1e6, 1, 1)["perplexity"])


def test_a_uniform_model_has_its_vocabulary_as_perplexity(
    tiny_tokenizer: Callable[..., Any],
) -> None:
    tokenizer = tiny_tokenizer()
    figures = text_perplexity(Uniform(len(tokenizer)), tokenizer, TEXTS)
    expected = sum(len(tokenizer(t)["input_ids"]) for t in TEXTS)
    assert figures["tokens"] == expected  # the first of each text too, whatever the windows
    assert figures["bytes"] == sum(len(t.encode()) for t in TEXTS)
    assert figures["perplexity"] == pytest.approx(len(tokenizer))
    bits = expected * math.log2(len(tokenizer)) / figures["bytes"]
    assert figures["bits_per_byte"] == pytest.approx(bits)


def test_an_untrained_model_is_near_uniform(
    tiny_tokenizer: Callable[..., Any], tiny_policy: Callable[..., Any]
) -> None:
    tokenizer = tiny_tokenizer()
    figures = text_perplexity(tiny_policy(tokenizer), tokenizer, TEXTS)
    assert figures["perplexity"] == pytest.approx(len(tokenizer), rel=0.1)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=10, deadline=None
)
@given(batch_size=st.integers(1, 5), order=st.permutations(TEXTS))
def test_batches_and_order_change_nothing(
    tiny_tokenizer: Callable[..., Any],
    tiny_policy: Callable[..., Any],
    batch_size: int,
    order: list[str],
) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_policy(tokenizer)
    torch.nn.init.normal_(model.model.embed_tokens.weight)  # far from uniform
    expected = text_perplexity(model, tokenizer, TEXTS, batch_size=16)
    found = text_perplexity(model, tokenizer, order, batch_size=batch_size)
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_model_stays_in_the_mode_it_was_in(tiny_tokenizer: Callable[..., Any]) -> None:
    tokenizer = tiny_tokenizer()
    model = Uniform(len(tokenizer)).train()
    text_perplexity(model, tokenizer, TEXTS)
    assert model.training


def test_no_text_is_refused(tiny_tokenizer: Callable[..., Any]) -> None:
    with pytest.raises(SourceError, match="no held-out text"):
        text_perplexity(Uniform(320), tiny_tokenizer(), ["", ""])


def test_the_separator_comes_before_the_end_of_a_turn(tiny_tokenizer: Callable[..., Any]) -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer.eos_token == "<|end|>"
    assert separator_id(tokenizer) == tokenizer.convert_tokens_to_ids("<|endoftext|>")
