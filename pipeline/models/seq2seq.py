"""Encoder-decoders as policies: what the encoder reads, how the decoder begins, batches of both.

A prompt goes to the encoder, its response to the decoder. The decoder is first given the start
token of its configuration, and behind it the token that generation forces to be the first
(`forced_bos_token_id`, which BART's have). The response begins behind these: all of it is sampled,
learned and scored, and nothing of them is.

Shapes: B rows, S tokens that are read, T tokens that the decoder is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from data.errors import ModelError
from data.text.chat import render_input, render_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from data.records import Prompt


def is_encoder_decoder(model: Any) -> bool:
    """Tell whether a policy reads with one half and writes with the other."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def asked_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, *, encoder_decoder: bool
) -> list[int]:
    """Return the ids of a prompt: what an encoder reads, or a decoder goes on from."""
    return (render_input if encoder_decoder else render_prompt)(tokenizer, prompt)


def response_room(context: int | None, size: int, *, encoder_decoder: bool) -> int | None:
    """Return how many tokens a response may have; None where nothing bounds it.

    Args:
        context: positions of the model, of each half of an encoder-decoder.
        size: tokens of the prompt.
        encoder_decoder: whether prompt and response have positions of their own; the decoder is
            given one or two tokens before the response, and never its last.
    """
    if context is None:
        return None
    if not encoder_decoder:
        return context - size
    return context - 1 if size <= context else 0


def has_room(context: int | None, size: int, new: int, *, encoder_decoder: bool) -> bool:
    """Tell whether a prompt leaves room for so many new tokens; see `response_room`."""
    room = response_room(context, size, encoder_decoder=encoder_decoder)
    return room is None or new <= room


def decoder_opening(model: Any) -> list[int]:
    """Return the tokens that a decoder is given before a response.

    Raises:
        ModelError: the configuration names no start token.
    """
    start, forced = (
        next((ids for ids in (_id(source, name) for source in _configs(model)) if ids), [])
        for name in ("decoder_start_token_id", "forced_bos_token_id")
    )
    if not start:
        raise ModelError(
            f"{model.name_or_path or 'the model'}, a {type(model).__name__}, names no "
            "decoder_start_token_id; set it in its config.json"
        )
    return start + forced


def _configs(model: Any) -> list[Any]:
    return [getattr(model, "generation_config", None), model.config]


def _id(source: Any, name: str) -> list[int]:
    number = getattr(source, name, None)
    return [number] if isinstance(number, int) else []


class PairBatch(NamedTuple):
    """Prompts and responses as an encoder-decoder takes them.

    Attributes:
        inputs: `input_ids` and `attention_mask` (B, S), `decoder_input_ids` (B, T).
        targets_BT: the token that the decoder is to write at each of its places.
        response_mask_BT: whether that token is of the response.
    """

    inputs: dict[str, Tensor]
    targets_BT: Tensor
    response_mask_BT: Tensor


def pair_batch(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    opening: Sequence[int],
    pad_token_id: int,
) -> PairBatch:
    """Return prompts and responses as tensors, both filled up on the right.

    Args:
        prompts: ids that the encoder reads, none empty.
        responses: ids to write.
        opening: what `decoder_opening` returned.
        pad_token_id: fills rows up; nothing that counts looks at it.
    """
    written = [[*opening, *response] for response in responses]
    input_ids, given, targets = (
        pad_sequence(list(map(torch.tensor, rows)), batch_first=True, padding_value=pad_token_id)
        for rows in (prompts, [row[:-1] for row in written], [row[1:] for row in written])
    )
    sizes_B, ends_B = (torch.tensor(list(map(len, rows))) for rows in (prompts, written))
    places_T = torch.arange(1, given.shape[1] + 1)  # of the targets in `written`
    return PairBatch(
        {
            "input_ids": input_ids,
            "attention_mask": (torch.arange(input_ids.shape[1]) < sizes_B[:, None]).long(),
            "decoder_input_ids": given,
        },
        targets,
        (places_T >= len(opening)) & (places_T < ends_B[:, None]),
    )
