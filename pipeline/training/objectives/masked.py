"""Masked language modelling on packed rows: batches, loss and figures.

Logits are made of the hidden tokens alone: a hook on the trunk hands the output head the states
that are asked for, where a trial shows that the logits are the same ones.

With pairs of sentences the label of a pair counts in the loss as much as the hidden tokens of its
row together, so that neither micro-batches nor processes change the weight.

Shapes: B rows of T tokens, N of them hidden, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.errors import ModelError
from data.text.objectives.copying import copy_left
from data.text.objectives.masked import mask_tokens, pair_up
from data.text.objectives.special_tokens import frame
from data.text.objectives.words import token_kinds, word_numbers
from pipeline.models.trials import (
    OBJECTIONS,
    evaluating,
    gap,
    looks_ahead,
    on_trial,
    trial_ids,
)
from pipeline.training.objectives.perplexity import perplexity
from pipeline.training.objectives.rows import IGNORED, Row, on_tensors, seen_mask, stack

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from data.text.packing import Ids

ENOUGH = 20
"""Rows that a partner from another document is looked for in, at most."""


class MaskedBatch(NamedTuple):
    """Rows with tokens hidden.

    Attributes:
        tokens_BT: what goes in.
        targets_BT: the hidden ids, `IGNORED` elsewhere.
        seen_BT: which places hold tokens; None where all do.
        segments_BT: 0 for the first of a pair, 1 for the second; None without pairs.
        follows_B: whether the second goes on from the first.
    """

    tokens_BT: Tensor
    targets_BT: Tensor
    seen_BT: Tensor | None = None
    segments_BT: Tensor | None = None
    follows_B: Tensor | None = None

    def predicted(self) -> int:
        """Return the number of hidden tokens."""
        return int((self.targets_BT != IGNORED).sum())

    def learned(self) -> int:
        """Return the number of tokens read."""
        return self.tokens_BT.numel() if self.seen_BT is None else int(self.seen_BT.sum())

    def to(self, device: torch.device) -> MaskedBatch:
        """Return the batch on a device."""
        return on_tensors(self, lambda part: part.to(device))

    def rows(self, start: int, stop: int) -> MaskedBatch:
        """Return some of the rows."""
        return on_tensors(self, lambda part: part[start:stop])

    def inputs(self) -> dict[str, Tensor]:
        """Return what goes into the model, by name."""
        named = {
            "input_ids": self.tokens_BT,
            "attention_mask": self.seen_BT,
            "token_type_ids": self.segments_BT,
        }
        return {name: value for name, value in named.items() if value is not None}


@dataclass
class Masked:
    """The objective of BERT and its like.

    Attributes:
        model: the bare model; an encoder with a head for masked tokens.
        tokenizer: has a mask token.
        seed: of what is hidden.
        share: of the tokens that are hidden.
        whole_words: hide words, not tokens.
        next_sentence: rows are pairs, and whether they follow each other is learned too.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    seed: int
    share: float = 0.15
    whole_words: bool = False
    next_sentence: bool = False
    picks: bool = field(init=False)

    def __post_init__(self) -> None:
        """Look at vocabulary and model."""
        self.frame, self.kinds = frame(self.tokenizer), token_kinds(self.tokenizer)
        self.others = np.flatnonzero(~self.kinds.special)
        self.mask_id = int(self.tokenizer.mask_token_id)
        self.picks = picks_places(self.model)

    def raw_length(self, row_length: int) -> int:
        """Return the tokens of text in a row."""
        front, middle, end = map(len, self.frame)
        return row_length - front - end - (middle if self.next_sentence else 0)

    def batch(self, rows: Sequence[Row]) -> MaskedBatch:
        """Return rows with tokens hidden, as their seed, number and epoch have it."""
        inputs, targets, segments, follows = [], [], [], []
        for row in rows:
            generator = row.generator(self.seed)
            ids_T, segments_T, follow = self._framed(row, generator)
            hidden = mask_tokens(
                ids_T,
                candidates_T=~self.kinds.special[ids_T],
                mask_id=self.mask_id,
                others=self.others,
                share=self.share,
                generator=generator,
                words_T=word_numbers(ids_T, self.kinds) if self.whole_words else None,
            )
            inputs.append(hidden.ids_T)
            targets.append(np.where(hidden.chosen_T, ids_T, IGNORED))
            segments.append(segments_T)
            follows.append(follow)
        batch = MaskedBatch(
            stack(inputs, fill=self.tokenizer.pad_token_id or 0),
            stack(targets, fill=IGNORED),
            seen_mask(inputs),
        )
        if not self.next_sentence:
            return batch
        return batch._replace(
            segments_BT=stack(segments, fill=0), follows_B=torch.tensor(follows, dtype=torch.bool)
        )

    def _framed(self, row: Row, generator: np.random.Generator) -> tuple[Ids, Ids, bool]:
        """Return a framed row, which of a pair each token is of, and whether the pair follows."""
        front, middle, end = self.frame
        chunk = row.chunk
        if not self.next_sentence:
            ids_T = np.concatenate([front, chunk.ids, end]).astype(np.int64)
            return ids_T, np.zeros_like(ids_T), True
        for _ in range(ENOUGH):
            other = row.shards[int(generator.integers(len(row.shards)))]
            if (
                len(other.ids) >= len(chunk.ids)
                and other.document_ids[-1] not in chunk.document_ids
            ):
                break
        else:
            other = chunk
        pair = pair_up(chunk.ids, chunk.document_ids, other.ids, other.document_ids, generator)
        first = np.concatenate([front, pair.first, middle])
        second = np.concatenate([pair.second, end])
        ids_T = np.concatenate([first, second]).astype(np.int64)
        return ids_T, (np.arange(len(ids_T)) >= len(first)).astype(np.int64), pair.follows

    def copied(self, batch: MaskedBatch) -> Ids:
        """Return what stands in place of each hidden token, where that is no mask."""
        return copy_left(batch.tokens_BT.numpy(), self.mask_id)

    def logits(self, model: Any, batch: MaskedBatch) -> Tensor:
        """Return the logits (N, V) of the hidden tokens."""
        return self._logits(model, batch)[0]

    def summed_loss(self, model: Any, batch: MaskedBatch) -> Tensor:
        """Return the cross-entropy of hidden tokens, and of pairs at the weight of their rows."""
        logits_NV, pairs_B2 = self._logits(model, batch)
        targets_N = batch.targets_BT[batch.targets_BT != IGNORED]
        loss = F.cross_entropy(logits_NV, targets_N, reduction="sum")
        if pairs_B2 is None or batch.follows_B is None:
            return loss
        # transformers' label of a pair that follows is 0
        nats_B = F.cross_entropy(pairs_B2.float(), (~batch.follows_B).long(), reduction="none")
        return loss + (nats_B * (batch.targets_BT != IGNORED).sum(1)).sum()

    def _logits(self, model: Any, batch: MaskedBatch) -> tuple[Tensor, Tensor | None]:
        """Return logits (N, V) of the hidden tokens, and (B, 2) of pairs."""
        places_N = (batch.targets_BT.flatten() != IGNORED).nonzero()[:, 0]
        logits, pairs = _forward(self.model, model, batch.inputs(), places_N, self.picks)
        return logits.float(), pairs if self.next_sentence else None

    @torch.inference_mode()
    def sums(self, model: Any, groups: Iterable[Sequence[Row]], *, bf16: bool) -> list[float]:
        """Return nats, hidden tokens, those told right, pairs told right, and pairs."""
        device = next(model.parameters()).device
        sums = np.zeros(5)
        with evaluating(model), torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            for rows in groups:
                batch = self.batch(rows).to(device)
                logits_NV, pairs_B2 = self._logits(model, batch)
                targets_N = batch.targets_BT[batch.targets_BT != IGNORED]
                nats = F.cross_entropy(logits_NV, targets_N, reduction="sum")
                right = (logits_NV.argmax(1) == targets_N).sum()
                sums[:3] += float(nats), len(targets_N), float(right)
                if pairs_B2 is not None and batch.follows_B is not None:
                    sums[3:] += float((pairs_B2.argmax(1) == (~batch.follows_B)).sum()), len(rows)
        return [float(figure) for figure in sums]

    def figures(self, sums: Sequence[float]) -> dict[str, float]:
        """Return loss, perplexity and accuracy on hidden tokens, and accuracy on pairs."""
        nats, tokens, right, pairs_right, pairs = sums
        figures = {**perplexity(nats / tokens), "accuracy": right / tokens}
        return figures | ({"next_sentence_accuracy": pairs_right / pairs} if pairs else {})


def _forward(
    bare: Any, model: Any, inputs: dict[str, Tensor], places_N: Tensor, picks: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the logits (N, V) at places of the flattened rows, and those of pairs if there are."""
    with _picking(bare, places_N if picks else None):
        output = model(**inputs)
    logits = getattr(output, "prediction_logits", None)
    logits = output.logits if logits is None else logits
    at_places = logits.flatten(0, 1) if picks else logits.flatten(0, 1)[places_N]
    return at_places, getattr(output, "seq_relationship_logits", None)


@contextmanager
def _picking(bare: Any, places_N: Tensor | None) -> Iterator[None]:
    """Have the trunk of a model hand on the states of some places alone, as one row."""
    if places_N is None:
        yield
        return

    def pick(_: torch.nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state.flatten(0, 1)[places_N][None]
        return output

    hook = bare.base_model.register_forward_hook(pick)
    try:
        yield
    finally:
        hook.remove()


def picks_places(model: Any) -> bool:
    """Tell by a trial whether logits of some places can be made without those of the others."""
    inputs = _trial(model)
    places_N = torch.tensor([1, 4, 6], device=inputs["input_ids"].device)
    with on_trial(model):
        whole, _ = _forward(model, model, inputs, places_N, picks=False)
        try:
            picked, _ = _forward(model, model, inputs, places_N, picks=True)
        except OBJECTIONS:
            return False
    return picked.shape == whole.shape and gap(picked, whole) < 1e-4


def has_pairs(model: Any) -> bool:
    """Tell by a trial whether a model has a head for pairs of sentences."""
    with on_trial(model):
        return getattr(model(**_trial(model)), "seq_relationship_logits", None) is not None


def _trial(model: Any) -> dict[str, Tensor]:
    device = model.get_input_embeddings().weight.device
    return {
        "input_ids": torch.tensor([trial_ids(model, 4), trial_ids(model, 4, first=4)]).to(device)
    }


def require_encoder(model: Any, source: str) -> None:
    """Refuse a model that does not see both sides of a token, or that writes.

    Raises:
        ModelError: naming its class.
    """
    if model.config.is_encoder_decoder or not looks_ahead(model):
        raise ModelError(
            f"objective masked: {source} is a {type(model).__name__}, which "
            + ("also decodes" if model.config.is_encoder_decoder else "sees one side of a token")
            + "; it is learned by encoders, such as BERT or RoBERTa"
        )
