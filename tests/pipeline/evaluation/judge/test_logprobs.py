"""The log-probability of what checkpoints answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pipeline.evaluation.judge.logprobs import response_logprobs
from pipeline.generation.generate import Sampling, generate
from pipeline.models import batches

PROMPTS = [[8, 9, 10], [11, 12], [13, 14, 15, 16, 17]]
RESPONSES = [[20, 21, 6], [22], [23, 24]]


def test_logprobs_are_the_sum_over_the_response(
    tiny_tokenizer: Callable[..., Any], tiny_policy: Callable[..., Any]
) -> None:
    model = tiny_policy(tiny_tokenizer())
    found = response_logprobs(model, PROMPTS, RESPONSES, temperature=0.7, batch_size=8)
    for prompt, response, total in zip(PROMPTS, RESPONSES, found, strict=True):
        logits = model(torch.tensor([prompt + response])).logits[0] / 0.7
        logprobs = logits.log_softmax(-1)
        start = len(prompt) - 1
        expected = sum(logprobs[start + i, token].item() for i, token in enumerate(response))
        assert total == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("architecture", [None, "bart"])
def test_tokens_that_are_not_its_own_are_read_and_not_counted(
    architecture: str | None,
    tiny_tokenizer: Callable[..., Any],
    tiny_policy: Callable[..., Any],
    tiny_pair: Callable[..., Any],
) -> None:
    model = tiny_pair(architecture)[0] if architecture else tiny_policy(tiny_tokenizer())
    asked: dict[str, Any] = {"temperature": 1, "batch_size": 8}
    own = [[True, False, True], None, [True, False]]
    found = response_logprobs(model, PROMPTS, RESPONSES, own=own, **asked)
    upto = [
        response_logprobs(model, PROMPTS, [ids[:n] or ids for ids in RESPONSES], **asked)
        for n in (1, 2, 3)
    ]
    assert found[0] == pytest.approx(upto[0][0] + upto[2][0] - upto[1][0], abs=1e-4)
    assert found[1] == pytest.approx(upto[2][1], abs=1e-4)
    assert found[2] == pytest.approx(upto[0][2], abs=1e-4)


def test_neither_batch_nor_padding_changes_a_logprob(
    tiny_tokenizer: Callable[..., Any],
    tiny_policy: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_policy(tiny_tokenizer())
    arguments = (model, PROMPTS, RESPONSES)
    together = response_logprobs(*arguments, temperature=1, batch_size=8)
    done: list[int] = []
    monkeypatch.setattr(batches, "MOST_LOGITS", 1)
    alone = response_logprobs(*arguments, temperature=1, batch_size=8, advance=done.append)
    assert together == pytest.approx(alone, abs=1e-5)
    assert done == [1, 1, 1]


def test_a_model_agrees_with_the_logprobs_it_sampled_with(
    tiny_tokenizer: Callable[..., Any], tiny_policy: Callable[..., Any]
) -> None:
    model = tiny_policy(tiny_tokenizer())
    samples = generate(
        model,
        PROMPTS,
        sampling=Sampling(max_new_tokens=6, temperature=0.7),
        eos_token_ids=[6],
        pad_token_id=0,
        generator=torch.Generator().manual_seed(0),
    )
    tokens = [sample.token_ids for sample in samples]
    again = response_logprobs(model, PROMPTS, tokens, temperature=0.7, batch_size=2)
    assert again == pytest.approx([sum(s.logprobs) for s in samples], abs=1e-4)
