"""What a batch that is refilled samples has the model's own distribution."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from scipy.stats import chisquare

from pipeline.generation.decoder import Memory
from pipeline.generation.generate import Sampling, generate

END, LIMIT = 4, 3
PROMPTS = [[1, 3, 2, 1], [2], [3, 3]]


def small(**changes: Any) -> Any:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=5, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=16,
        initializer_range=0.5, **changes,
    )  # fmt: skip
    return MistralForCausalLM(config).eval()


@torch.no_grad()
def exact(model: Any, prompt: list[int], temperature: float) -> dict[tuple[int, ...], float]:
    """Return the probability of every response, by whole rows without a cache."""
    found: dict[tuple[int, ...], float] = {}
    open_: dict[tuple[int, ...], float] = {(): 1.0}
    for place in range(LIMIT):
        longer: dict[tuple[int, ...], float] = {}
        for tokens, share in open_.items():
            logits = model(input_ids=torch.tensor([[*prompt, *tokens]]), use_cache=False).logits
            chances = torch.softmax(logits[0, -1].double() / temperature, dim=-1).tolist()
            for token, chance in enumerate(chances):
                whole = token == END or place == LIMIT - 1
                (found if whole else longer)[(*tokens, token)] = share * chance
        open_ = longer
    return found


@pytest.mark.parametrize("memory", ["window", "own", "none"])
def test_responses_are_drawn_from_the_exact_distribution(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.generation.generate.fitting_memory", lambda *_, **__: memory)
    model = small(sliding_window=None) if memory == "window" else small(sliding_window=3)
    each, temperature = 1500, 0.8
    samples = generate(
        model, PROMPTS * each, sampling=Sampling(LIMIT, temperature), eos_token_ids=[END],
        pad_token_id=0, generator=torch.Generator().manual_seed(1), batch_size=100,
    )  # fmt: skip
    lengths = {len(sample.token_ids) for sample in samples}
    assert lengths == {1, 2, 3}  # rows end at different times, and others take their places
    for place, prompt in enumerate(PROMPTS):
        wanted = exact(model, prompt, temperature)
        assert sum(wanted.values()) == pytest.approx(1)
        mine = samples[place :: len(PROMPTS)]
        counts = Counter(tuple(sample.token_ids) for sample in mine)
        assert set(counts) <= set(wanted)
        common = [tokens for tokens, share in wanted.items() if share * each >= 5]
        observed = [counts[tokens] for tokens in common]
        expected = [wanted[tokens] * each for tokens in common]
        rest = each - sum(expected)
        if rest > 1:
            observed.append(each - sum(observed))
            expected.append(rest)
        expected = [figure * sum(observed) / sum(expected) for figure in expected]
        assert chisquare(observed, expected).pvalue > 1e-3
        for sample in mine[:50]:
            chance = torch.tensor(wanted[tuple(sample.token_ids)]).log()
            assert sum(sample.logprobs) == pytest.approx(float(chance), abs=1e-4)
