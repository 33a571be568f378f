from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

PROMPTS = [[60, 61], [70, 71, 72], [80]]


def sampled(ppo: Any) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [sample.token_ids for sample in ppo.engine.sample(PROMPTS, generator=generator)]


def greedy(ppo: Any, prompt: list[int]) -> list[int]:
    """Return the likeliest tokens, each after those before it."""
    ids = list(prompt)
    while len(ids) < len(prompt) + ppo.hyper.max_new_tokens:
        with torch.no_grad():
            ids.append(int(ppo.policy.model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in ppo.engine.end_ids:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("truncation", [{"top_k": 1}, {"top_p": 1e-6}])
def test_a_draw_among_one_token_is_the_likeliest(
    make_ppo: Callable[..., Any], truncation: dict[str, float]
) -> None:
    ppo = make_ppo(**truncation)
    assert sampled(ppo) == [greedy(ppo, prompt) for prompt in PROMPTS]


def test_a_draw_among_all_tokens_is_not(make_ppo: Callable[..., Any]) -> None:
    ppo = make_ppo()
    rows = zip(sampled(ppo), PROMPTS, strict=True)
    assert all(drawn != greedy(ppo, prompt) for drawn, prompt in rows)


def test_responses_have_the_temperature_and_length_of_the_settings(
    make_ppo: Callable[..., Any],
) -> None:
    ppo = make_ppo(temperature=1e-4, max_new_tokens=3)
    assert sampled(ppo) == [greedy(ppo, prompt) for prompt in PROMPTS]
    assert {len(response) for response in sampled(ppo)} == {3}
