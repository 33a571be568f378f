"""Span corruption and denoising on packed rows, for encoder-decoders: batches, loss and figures.

The encoder reads a row with something hidden, the decoder writes the target. Shapes: B rows of T
tokens read and S written, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.errors import ModelError
from data.text.objectives.copying import copy_on, count_on
from data.text.objectives.denoising import Noise, spoil
from data.text.objectives.span_corruption import hide_spans, raw_length
from data.text.objectives.special_tokens import frame, sentinel_ids
from data.text.objectives.words import token_kinds
from pipeline.models.trials import evaluating, reads_and_writes
from pipeline.training.objectives.perplexity import perplexity
from pipeline.training.objectives.rows import IGNORED, Row, on_tensors, seen_mask, stack

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from data.text.packing import Ids


class Seq2SeqBatch(NamedTuple):
    """What is read and what is written.

    Attributes:
        tokens_BT: ids that the encoder reads.
        targets_BT: ids to write (B, S), `IGNORED` behind their end.
        given_BS: what the decoder reads: the target, one place later.
        seen_BT: which places of the input hold tokens; None where all do.
    """

    tokens_BT: Tensor
    targets_BT: Tensor
    given_BS: Tensor
    seen_BT: Tensor | None = None

    def predicted(self) -> int:
        """Return the number of tokens to write."""
        return int((self.targets_BT != IGNORED).sum())

    def learned(self) -> int:
        """Return the number of tokens read and written."""
        read = self.tokens_BT.numel() if self.seen_BT is None else int(self.seen_BT.sum())
        return read + self.predicted()

    def to(self, device: torch.device) -> Seq2SeqBatch:
        """Return the batch on a device."""
        return on_tensors(self, lambda part: part.to(device))

    def rows(self, start: int, stop: int) -> Seq2SeqBatch:
        """Return some of the rows."""
        return on_tensors(self, lambda part: part[start:stop])


@dataclass
class _Seq2Seq(ABC):
    """What both objectives share.

    Attributes:
        model: the bare model, an encoder-decoder.
        tokenizer: whose frame ends a text.
        seed: of what is hidden.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    seed: int

    def __post_init__(self) -> None:
        """Look at vocabulary and model."""
        self.frame = frame(self.tokenizer)
        self.start = int(self.model.config.decoder_start_token_id)

    @abstractmethod
    def raw_length(self, row_length: int) -> int:
        """Return the tokens of text that a row is made of."""

    @abstractmethod
    def _hide(self, ids_T: Ids, generator: np.random.Generator) -> tuple[Ids, Ids]:
        """Return what is read and what is to be written, without frames."""

    @abstractmethod
    def copied(self, batch: Seq2SeqBatch) -> Ids:
        """Return what a reader that knows no language would write (B, S)."""

    def batch(self, rows: Sequence[Row]) -> Seq2SeqBatch:
        """Return rows with something hidden, as their seed, number and epoch have it."""
        pairs = [self._hide(row.chunk.ids, row.generator(self.seed)) for row in rows]
        read = [self._framed(read) for read, _ in pairs]
        written = [self._framed(target) for _, target in pairs]
        pad = self.tokenizer.pad_token_id or 0
        return Seq2SeqBatch(
            stack(read, fill=pad),
            stack(written, fill=IGNORED),
            stack([np.concatenate([[self.start], row[:-1]]) for row in written], fill=pad),
            seen_mask(read),
        )

    def _framed(self, ids_T: Ids) -> Ids:
        return np.concatenate([self.frame.front, ids_T, self.frame.end]).astype(np.int64)

    def _logits(self, model: Any, batch: Seq2SeqBatch) -> Tensor:
        """Return logits (B * S, V); places behind a target's end follow from none before it."""
        seen = {} if batch.seen_BT is None else {"attention_mask": batch.seen_BT}
        output = model(
            input_ids=batch.tokens_BT, decoder_input_ids=batch.given_BS, use_cache=False, **seen
        )
        logits: Tensor = output.logits.flatten(0, 1).float()
        return logits

    def summed_loss(self, model: Any, batch: Seq2SeqBatch) -> Tensor:
        """Return the cross-entropy of the tokens to write, summed, in nats."""
        targets = batch.targets_BT.flatten()
        logits = self._logits(model, batch)
        return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")

    @torch.inference_mode()
    def sums(self, model: Any, groups: Iterable[Sequence[Row]], *, bf16: bool) -> list[float]:
        """Return nats, tokens to write and those told right."""
        device = next(model.parameters()).device
        sums = np.zeros(3)
        with evaluating(model), torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            for rows in groups:
                batch = self.batch(rows).to(device)
                logits, targets = self._logits(model, batch), batch.targets_BT.flatten()
                nats = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
                right = (logits.argmax(1) == targets).sum()
                sums += float(nats), batch.predicted(), float(right)
        return [float(figure) for figure in sums]

    def figures(self, sums: Sequence[float]) -> dict[str, float]:
        """Return loss, perplexity and accuracy of the tokens to write."""
        nats, tokens, right = sums
        return {**perplexity(nats / tokens), "accuracy": right / tokens}


@dataclass
class SpanCorruption(_Seq2Seq):
    """The objective of T5.

    Attributes:
        share: of the tokens that are hidden, at most a half.
        mean_span: mean tokens of a span.
    """

    share: float = 0.15
    mean_span: float = 3.0

    def __post_init__(self) -> None:
        """Look at vocabulary and model."""
        super().__post_init__()
        self.sentinels = sentinel_ids(self.tokenizer)

    def raw_length(self, row_length: int) -> int:
        """Return the tokens of text whose input fills a row."""
        room = row_length - len(self.frame.front) - len(self.frame.end)
        return raw_length(room, share=self.share, mean_span=self.mean_span)

    def _hide(self, ids_T: Ids, generator: np.random.Generator) -> tuple[Ids, Ids]:
        return hide_spans(
            ids_T,
            sentinels=self.sentinels,
            share=self.share,
            mean_span=self.mean_span,
            generator=generator,
        )

    def copied(self, batch: Seq2SeqBatch) -> Ids:
        """Return the sentinels in their order, which no language tells."""
        read, given = batch.tokens_BT.numpy(), batch.given_BS.numpy()
        return count_on(read, given, self.sentinels, self.frame.end[-1])


@dataclass
class Denoising(_Seq2Seq):
    """The objective of BART.

    Attributes:
        noise: how rows are spoiled.
    """

    noise: Noise = Noise()  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        """Look at vocabulary and model."""
        super().__post_init__()
        kinds = token_kinds(self.tokenizer)
        self.ends, self.mask_id = kinds.ends_sentence | kinds.special, self.tokenizer.mask_token_id

    def raw_length(self, row_length: int) -> int:
        """Return the tokens of text of a row; what is read of it is no longer."""
        return row_length - len(self.frame.front) - len(self.frame.end)

    def _hide(self, ids_T: Ids, generator: np.random.Generator) -> tuple[Ids, Ids]:
        ends_T = self.ends[ids_T]
        spoiled = spoil(
            ids_T, noise=self.noise, ends_T=ends_T, mask_id=self.mask_id, generator=generator
        )
        return spoiled, ids_T

    def copied(self, batch: Seq2SeqBatch) -> Ids:
        """Return what follows, in the row that is read, on what was just written."""
        return copy_on(batch.tokens_BT.numpy(), batch.given_BS.numpy(), self.mask_id)


def require_encoder_decoder(model: Any, source: str, objective: str) -> None:
    """Refuse a model that does not read with one half and write with the other.

    Raises:
        ModelError: naming its class.
    """
    if not reads_and_writes(model):
        raise ModelError(
            f"objective {objective}: {source} is a {type(model).__name__}, which does not read a "
            "text and write another; use an encoder-decoder, such as T5 or BART"
        )
