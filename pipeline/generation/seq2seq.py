"""The decode batch of an encoder-decoder: every prompt is encoded once, and rows begin together.

The encoder runs once a prompt, however many of its rows there are; so do the keys and values that
the decoder's layers make of what was read, which are then copied to each row. Its positions count
from the start of a batch in most architectures (BART's are learned, and none can be given), so rows
that have ended leave the batch, and others begin when it is empty, all with the same opening.

Shapes: B running rows, N distinct prompts, S tokens read, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import BaseModelOutput

from pipeline.generation.decoder import Decoder, Ids, Memory, OwnCache, Row
from pipeline.models.seq2seq import decoder_opening, is_encoder_decoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class _Read(OwnCache):
    """What running rows have read, and the keys and values of it and of their tokens."""

    def __init__(self, states_BSH: Tensor, seen_BS: Tensor) -> None:
        self.states_BSH, self.seen_BS = states_BSH, seen_BS
        self.layers: Any = None

    def keep(self, order: list[int], used: slice) -> None:
        """Keep these rows alone, in this order; one may be kept several times."""
        order_B = torch.tensor(order, device=self.states_BSH.device)
        self.states_BSH, self.seen_BS = self.states_BSH[order_B], self.seen_BS[order_B]
        if self.layers is not None:
            self.layers.reorder_cache(order_B)


class Seq2SeqDecoder(Decoder):
    """Decodes responses to prompts that the encoder reads; without memory, reads them anew."""

    cache: _Read | None

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[list[int]], *, memory: Memory, **given: Any
    ) -> None:
        """Start with all prompts waiting; see `Decoder`."""
        super().__init__(model, prompts, memory="none", **given)
        self.remembers = memory != "none"
        self.opening = decoder_opening(model)
        self.encoded: dict[Ids, Tensor] = {}  # [S, H] of prompts that rows are still to come of

    @torch.no_grad()
    def step(self) -> None:
        """Sample the next token of every row; of the next prompts where there is none."""
        if self.rows:
            self._sample(self.rows, self._logits(self._given()))
            return
        places = [self.waiting.popleft() for _ in range(min(self.slots, len(self.waiting)))]
        prompts = [tuple(self.prompts[place]) for place in places]
        distinct = list(dict.fromkeys(prompts))
        self.cache = self._read(distinct)
        logits_NV = self._logits([self.opening] * len(distinct))
        owners = [distinct.index(ids) for ids in prompts]
        self.cache.keep(owners, slice(0))
        # What no prompt that still waits will need is let go.
        self.rows_to_come.subtract(prompts)
        self.encoded = {ids: s for ids, s in self.encoded.items() if self.rows_to_come[ids]}
        self.rows = [Row(place, 0, self.pad) for place in places]
        self._sample(self.rows, logits_NV[torch.tensor(owners, device=logits_NV.device)])

    def _read(self, prompts: Sequence[Ids]) -> _Read:
        """Return what the encoder makes of prompts, of which it reads those that are new."""
        new, device = [ids for ids in prompts if ids not in self.encoded], self.model.device
        most = self.prefill or max(1, len(new))
        for part in (new[at : at + most] for at in range(0, len(new), most)):
            ids_NS, seen_NS = _filled([torch.tensor(ids) for ids in part], self.pad)
            states_NSH = self.model.get_encoder()(
                input_ids=ids_NS.to(device), attention_mask=seen_NS.to(device)
            )[0]
            for ids, states_SH in zip(part, states_NSH, strict=True):
                self.encoded[ids] = states_SH[: len(ids)].clone()  # lets go of the padding
        states_NSH, seen_NS = _filled([self.encoded[ids] for ids in prompts], 0.0)
        return _Read(states_NSH, seen_NS.to(states_NSH.device))

    def _given(self) -> list[list[int]]:
        """Return what the decoder is given of each row: all it has, or what is new to its cache."""
        if self.remembers:
            return [[row.token] for row in self.rows]
        return [[*self.opening, *self.responses[row.place].token_ids] for row in self.rows]

    def _logits(self, given: list[list[int]]) -> Tensor:
        """Return the logits (B, V) behind tokens that the decoder is given, equally many a row."""
        assert self.cache is not None
        output = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=self.cache.states_BSH),
            attention_mask=self.cache.seen_BS,
            decoder_input_ids=torch.tensor(given, device=self.model.device),
            past_key_values=self.cache.layers,
            use_cache=self.remembers,
        )
        if self.remembers:
            self.cache.layers = output.past_key_values
        logits_BV: Tensor = output.logits[:, -1]
        return logits_BV


def decoder_for(model: PreTrainedModel) -> type[Decoder]:
    """Return the class that decodes with a model."""
    return Seq2SeqDecoder if is_encoder_decoder(model) else Decoder


def _filled(rows: Sequence[Tensor], filling: float) -> tuple[Tensor, Tensor]:
    """Return rows filled up on the right (N, S, ...), and which places are of them (N, S)."""
    sizes_N = torch.tensor([len(row) for row in rows])
    filled = pad_sequence(list(rows), batch_first=True, padding_value=filling)
    return filled, (torch.arange(filled.shape[1]) < sizes_N[:, None]).long()
