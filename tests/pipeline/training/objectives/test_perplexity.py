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
    text_losses,
)

TEXTS = ["The baker bakes bread.", "Ada", "", "naïve 🙂 emoji\n" * 6]


def judged(model: Any, tokenizer: Any, texts: list[str], **changes: Any) -> dict[str, float]:
    """Return what a model makes of texts together."""
    losses = text_losses(model, tokenizer, texts, **changes)
    tokens, size = sum(loss.tokens for loss in losses), sum(loss.bytes for loss in losses)
    figures = perplexity_figures(sum(loss.nats for loss in losses), tokens, size)
    return {**figures, "tokens": tokens, "bytes": size}


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
    figures = judged(Uniform(len(tokenizer)), tokenizer, TEXTS)
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
    figures = judged(tiny_policy(tokenizer), tokenizer, TEXTS)
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
    expected = judged(model, tokenizer, TEXTS, batch_size=16)
    found = judged(model, tokenizer, order, batch_size=batch_size)
    assert found == pytest.approx(expected, rel=1e-4)


def test_each_text_has_its_own_loss(
    tiny_tokenizer: Callable[..., Any], tiny_policy: Callable[..., Any]
) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_policy(tokenizer, context=16)  # the last text takes several windows
    torch.nn.init.normal_(model.model.embed_tokens.weight)
    together = text_losses(model, tokenizer, TEXTS)
    assert together[2] == (0.0, 0, 0, True)
    for text, loss in zip(TEXTS, together, strict=True):
        if text:
            [alone] = text_losses(model, tokenizer, [text], batch_size=1)
            assert alone == pytest.approx(loss, rel=1e-5)
            assert loss.bytes == len(text.encode())


def test_a_text_begins_as_the_tokenizer_begins_every_text(
    tiny_tokenizer: Callable[..., Any], tiny_policy: Callable[..., Any]
) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    model, seen = tiny_policy(tokenizer), []
    ids = tokenizer(TEXTS[0])["input_ids"]
    model.register_forward_pre_hook(
        lambda _, args, given: seen.append(given["input_ids"][0].tolist()), with_kwargs=True
    )
    first = tokenizer.convert_tokens_to_ids(["<|user|>", "<|assistant|>"])
    text_losses(model, tokenizer, TEXTS[:1])
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|user|> <|assistant|> $A",
        special_tokens=[("<|user|>", first[0]), ("<|assistant|>", first[1])],
    )
    [loss] = text_losses(model, tokenizer, TEXTS[:1])
    assert seen == [[separator_id(tokenizer), *ids], [*first, *ids]]
    assert loss.tokens == len(ids)
    logprobs = model(input_ids=torch.tensor([seen[1]])).logits[0].log_softmax(-1).detach()
    expected = -sum(float(logprobs[at + 1, one]) for at, one in enumerate(ids))
    assert loss.nats == pytest.approx(expected, rel=1e-5)  # of two in front neither is predicted


def test_bytes_are_those_of_the_text_and_not_of_its_tokens(
    tiny_tokenizer: Callable[..., Any],
) -> None:
    from tokenizers import normalizers

    tokenizer = tiny_tokenizer()
    assert all(loss.given_back for loss in text_losses(Uniform(len(tokenizer)), tokenizer, TEXTS))
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("🙂", "")
    losses = text_losses(Uniform(len(tokenizer)), tokenizer, TEXTS)
    assert [loss.given_back for loss in losses] == [True, True, True, False]
    assert losses[3].bytes == len(TEXTS[3].encode()) == 6 * 18


def test_a_model_stays_in_the_mode_it_was_in(tiny_tokenizer: Callable[..., Any]) -> None:
    tokenizer = tiny_tokenizer()
    model = Uniform(len(tokenizer)).train()
    judged(model, tokenizer, TEXTS)
    assert model.training


def test_no_text_is_refused(tiny_tokenizer: Callable[..., Any]) -> None:
    with pytest.raises(SourceError, match="no text to judge"):
        judged(Uniform(320), tiny_tokenizer(), ["", ""])


def test_the_separator_comes_before_the_end_of_a_turn(tiny_tokenizer: Callable[..., Any]) -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer.eos_token == "<|end|>"
    assert separator_id(tokenizer) == tokenizer.convert_tokens_to_ids("<|endoftext|>")
