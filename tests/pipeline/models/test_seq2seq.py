"""Encoder-decoders as policies: found, loaded, and given prompts and responses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data.errors import ModelError
from pipeline.models.load import load_policy
from pipeline.models.seq2seq import (
    decoder_opening,
    is_encoder_decoder,
    pair_batch,
    response_room,
)
from pipeline.models.trials import require_causal, require_policy

BOTH = ["t5", "bart"]


@pytest.mark.parametrize("architecture", BOTH)
def test_an_encoder_decoder_loads_as_a_policy(
    save_pair: Callable[..., Path], architecture: str
) -> None:
    model = load_policy(save_pair(architecture))
    assert is_encoder_decoder(model) and model.config.model_type == architecture
    require_policy(model, "it")
    with pytest.raises(ModelError, match=r"it is a .*, an encoder-decoder"):
        require_causal(model, "it")


def test_a_decoder_is_a_policy_and_an_encoder_decoder_that_reads_nothing_is_none(
    tiny_pair: Callable[..., Any], tiny_policy: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    decoder = tiny_policy(tiny_tokenizer())
    assert not is_encoder_decoder(decoder)
    require_policy(decoder, "it")
    model, _ = tiny_pair("bart")
    for layer in model.model.decoder.layers:
        torch.nn.init.zeros_(layer.encoder_attn.v_proj.weight)
    with pytest.raises(ModelError, match=r"it is a BartFor.*does not read a text and write"):
        require_policy(model, "it")


def test_what_generation_forces_opens_the_decoder(tiny_pair: Callable[..., Any]) -> None:
    model, tokenizer = tiny_pair("t5")
    assert decoder_opening(model) == [tokenizer.pad_token_id]
    model, tokenizer = tiny_pair("bart")
    assert decoder_opening(model) == [tokenizer.eos_token_id, tokenizer.bos_token_id]
    model.generation_config.decoder_start_token_id = model.config.decoder_start_token_id = None
    with pytest.raises(ModelError, match="names no decoder_start_token_id"):
        decoder_opening(model)


def test_a_response_has_the_positions_of_the_decoder(tiny_pair: Callable[..., Any]) -> None:
    model, _ = tiny_pair("bart", context=16)
    room = response_room(16, 16, encoder_decoder=True)
    assert room == 15 and response_room(16, 17, encoder_decoder=True) == 0
    batch = pair_batch([[5] * 16], [[6] * room], opening=decoder_opening(model), pad_token_id=0)
    model(**batch.inputs)
    assert response_room(16, 10, encoder_decoder=False) == 6
    assert response_room(None, 10, encoder_decoder=True) is None


@pytest.mark.parametrize("architecture", BOTH)
def test_uneven_rows_are_what_they_are_alone(
    tiny_pair: Callable[..., Any], architecture: str
) -> None:
    model, _ = tiny_pair(architecture)
    opening = decoder_opening(model)
    prompts, responses = [[9, 8, 7, 6], [5], [9, 8]], [[11], [12, 13, 14], []]
    batch = pair_batch(prompts, responses, opening=opening, pad_token_id=0)
    with torch.no_grad():
        logits_BTV = model(**batch.inputs).logits
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            mine = batch.response_mask_BT[row]
            assert batch.targets_BT[row, mine].tolist() == response
            alone_TV = model(
                input_ids=torch.tensor([prompt]),
                decoder_input_ids=torch.tensor([[*opening, *response]]),
            ).logits[0]
            wanted = alone_TV[len(opening) - 1 : -1]
            torch.testing.assert_close(logits_BTV[row, mine], wanted, rtol=1e-4, atol=1e-5)
