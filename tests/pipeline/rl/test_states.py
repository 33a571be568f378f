"""Encoder-decoders as policy and value model: what plain transformers says of each row alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import pipeline.rl.policy as modules
from pipeline.models.seq2seq import decoder_opening
from pipeline.models.trials import head_scale
from pipeline.rl.maths.masking import length_mask
from pipeline.rl.policy import Policy, ValueModel

SPECIAL = {"vocab_size": 30, "pad_token_id": 0, "eos_token_id": 1}
# Rows of unlike lengths on both sides; the first and the last share a prompt.
ROWS = [([3, 4, 5], [6, 7, 8, 9]), ([9], [8]), ([0, 11, 12, 0], [13, 0, 14]), ([3, 4, 5], [6, 2])]


def t5() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    shape = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    return T5ForConditionalGeneration(
        T5Config(**SPECIAL, **shape, dropout_rate=0.0, decoder_start_token_id=0)
    )


def plain_t5() -> Any:
    """A T5 of version 1.1, which does not scale what its head is given."""
    model = t5()
    model.config.scale_decoder_outputs = False
    return model


def bart() -> Any:
    from transformers import BartConfig, BartForConditionalGeneration

    shape = {"layers": 2, "attention_heads": 2, "ffn_dim": 24}
    model = BartForConditionalGeneration(
        BartConfig(
            **SPECIAL, **{f"encoder_{name}": n for name, n in shape.items()},
            **{f"decoder_{name}": n for name, n in shape.items()}, d_model=16, init_std=0.5,
            max_position_embeddings=16, dropout=0.0, bos_token_id=2, decoder_start_token_id=1,
        )
    )  # fmt: skip
    model.generation_config.forced_bos_token_id = 2
    return model


def biased() -> Any:
    """A BART whose logits are not its head's output: a bias comes on top."""
    model = bart()
    torch.nn.init.normal_(model.final_logits_bias)
    return model


BUILDS = [t5, plain_t5, bart, biased]


def padded() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    width = max(len(p) + len(r) for p, r in ROWS)
    ids = torch.tensor([p + r + [7] * (width - len(p) - len(r)) for p, r in ROWS])
    lengths = torch.tensor([len(r) for _, r in ROWS])
    return ids, torch.tensor([len(p) for p, _ in ROWS]), length_mask(lengths_B=lengths, size=4)


def alone(model: Any, prompt: list[int], response: list[int], **more: Any) -> Any:
    """Return what transformers says of one row without padding."""
    given = [*decoder_opening(model), *response]
    return model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([given]), **more)


@pytest.mark.parametrize("build", BUILDS)
def test_logprobs_and_entropies_are_those_of_each_row_alone(build: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    model = build().eval()
    policy, opening = Policy(model), len(decoder_opening(model))
    with torch.no_grad():
        found = policy(*padded(), 0.7, True)
        for row, (prompt, response) in enumerate(ROWS):
            logits = alone(model, prompt, response[:-1]).logits[0, opening - 1 :] / 0.7
            told = logits.log_softmax(-1)[range(len(response)), response]
            torch.testing.assert_close(found.logprobs_BT[row, : len(response)], told)
            entropies = torch.distributions.Categorical(logits=logits).entropy()
            torch.testing.assert_close(found.entropies_BT[row, : len(response)], entropies)
            assert not found.logprobs_BT[row, len(response) :].any()


def test_what_the_head_is_given_is_found_by_a_trial() -> None:
    torch.manual_seed(0)
    assert head_scale(t5()) == pytest.approx(0.25, rel=1e-6)
    assert (head_scale(plain_t5()), head_scale(bart()), head_scale(biased())) == (1, 1, None)


@pytest.mark.parametrize("build", [t5, bart])
def test_the_encoder_reads_each_prompt_once(build: Callable[[], Any]) -> None:
    model = build()
    seen = []
    model.get_encoder().register_forward_pre_hook(
        lambda _, __, given: seen.append(given["input_ids"].shape), with_kwargs=True
    )
    policy = Policy(model)
    seen.clear()
    policy(*padded())
    assert seen == [(3, 4)]


@pytest.mark.parametrize("build", [t5, bart])
def test_gradients_are_those_of_the_rows_alone(
    build: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = build()

    def gradients(loss: torch.Tensor) -> torch.Tensor:
        model.zero_grad()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    opening, losses = len(decoder_opening(model)), []
    for prompt, response in ROWS:
        logits = alone(model, prompt, response[:-1]).logits[0, opening - 1 :]
        losses.append(logits.log_softmax(-1)[range(len(response)), response].sum())
    wanted = gradients(torch.stack(losses).sum())
    torch.testing.assert_close(gradients(Policy(model)(*padded()).logprobs_BT.sum()), wanted)
    monkeypatch.setattr(modules, "LOGITS_AT_ONCE", 60)  # two tokens of a vocabulary of 30
    torch.testing.assert_close(gradients(Policy(model)(*padded()).logprobs_BT.sum()), wanted)


@pytest.mark.parametrize("build", [t5, bart])
def test_values_are_those_before_each_token(build: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    model, head = build().eval(), torch.nn.Linear(16, 1)
    ids, starts, mask = padded()
    states = length_mask(lengths_B=mask.sum(1).clamp(max=3) + 1, size=4)  # one past the last
    with torch.no_grad():
        apart = ValueModel(model, head)(ids, starts, states)
        on_policy = Policy(model, head)(ids, starts, mask, only_values=True).values_BT
        for row, (prompt, response) in enumerate(ROWS):
            told = alone(model, prompt, response[:3], output_hidden_states=True)
            hidden = told.decoder_hidden_states[-1][0, len(decoder_opening(model)) - 1 :]
            values = head(hidden)[:, 0]
            torch.testing.assert_close(apart[row][states[row]], values[: int(states[row].sum())])
            assert on_policy is not None
            torch.testing.assert_close(on_policy[row, : len(response)], values[: len(response)])
            assert not apart[row][~states[row]].any()
