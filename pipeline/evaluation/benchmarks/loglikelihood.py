"""How likely a model finds given continuations of given contexts.

Against lm-eval's `HFLM`, which this equals to rounding: what sequences begin alike with is computed
once (the context of a multiple-choice item, the examples before its question), by the attention
within trees of `reward.network.tree_attention`, where a trial finds that a model can; sequences
that differ in their last token alone are one; there is no padding but in attention; and logits are
made where a continuation's tokens are predicted and nowhere else. The distribution is over the
whole vocabulary, as `HFLM` has it.

Shapes: T packed tokens, B rows, L their tokens, N places where a token is predicted, H hidden size,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from data.errors import UsageError
from pipeline.models.batches import MOST_LOGITS
from pipeline.models.load import context_length
from pipeline.models.seq2seq import (
    PairBatch,
    decoder_opening,
    has_room,
    is_encoder_decoder,
    pair_batch,
)
from pipeline.models.trials import evaluating, logits_are_head_of_hidden
from reward.network.packed_trees import PackedTrees, group_by_prefix, pack_trees, shared_prefix
from reward.network.tree_attention import can_pack_trees, end_states, longest_sequence

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Ids = tuple[int, ...]
Trees = list[list[Ids]]
"""Sequences that begin alike, together; one alone is a tree, too."""


class Pair(NamedTuple):
    """A context and what may follow it, as token ids; neither is empty."""

    context: Sequence[int]
    continuation: Sequence[int]


class Likelihood(NamedTuple):
    """What a model makes of a continuation.

    Attributes:
        logprob: its log-probability, summed over its tokens.
        greedy: whether each of its tokens is the likeliest.
        tokens: how many they are.
    """

    logprob: float
    greedy: bool
    tokens: int


class _Asked(NamedTuple):
    """A pair cut to the context: the sequence that is read, and where its predictions begin."""

    sequence: Ids
    first: int
    targets: Ids


@torch.inference_mode()
def loglikelihoods(
    model: PreTrainedModel,
    pairs: Sequence[Pair],
    *,
    batch_size: int = 64,
    advance: Callable[[int], None] | None = None,
) -> list[Likelihood]:
    """Return how likely a model finds each continuation.

    Of a pair longer than the context the last tokens are read, as `HFLM` does; `too_long` counts
    such pairs beforehand.

    Args:
        model: a policy, unwrapped; an encoder reads the context, once for all that follow it.
        pairs: contexts and continuations.
        batch_size: sequences of a forward pass at most.
        advance: called with the number of pairs that are ready.
    """
    if is_encoder_decoder(model):
        return _read_and_written(model, pairs, batch_size, advance)
    room = context_length(model)  # looked for in all modules, so once
    asked = [_asked(pair, room) for pair in pairs]
    readers: dict[Ids, list[int]] = {}
    for number, one in enumerate(asked):
        readers.setdefault(one.sequence, []).append(number)
    results: list[Likelihood | None] = [None] * len(pairs)
    longest = max((len(ids) for ids in readers), default=0)
    with evaluating(model), _packing(model, longest) as passes:
        for batch in passes.batches(list(readers), batch_size):
            numbers = [number for tree in batch for ids in tree for number in readers[ids]]
            scored = passes.read(batch, asked, numbers)
            for number, likelihood in zip(numbers, scored, strict=True):
                results[number] = likelihood
            if advance is not None:
                advance(len(numbers))
    return [one for one in results if one is not None]


def too_long(model: PreTrainedModel, pairs: Sequence[Pair]) -> int:
    """Return how many pairs do not fit into a model's context whole."""
    room = context_length(model)
    if room is None:
        return 0
    if is_encoder_decoder(model):
        return sum(len(pair.context) > room for pair in pairs)
    return sum(len(pair.context) + len(pair.continuation) > room + 1 for pair in pairs)


def _read_and_written(
    model: Any, pairs: Sequence[Pair], batch_size: int, advance: Callable[[int], None] | None
) -> list[Likelihood]:
    """Return what an encoder-decoder makes of each pair; its encoder runs once a context."""
    opening, context = decoder_opening(model), context_length(model)
    longest = max((len(pair.continuation) for pair in pairs), default=0)
    if not has_room(context, 1, longest, encoder_decoder=True):
        raise UsageError(
            f"a continuation has {longest} tokens, and the decoder's context holds {context}; "
            "use a model with a longer context"
        )
    groups: dict[Ids, list[int]] = {}
    for number, pair in enumerate(pairs):
        groups.setdefault(tuple(pair.context)[-(context or len(pair.context)) :], []).append(number)
    results: list[Likelihood | None] = [None] * len(pairs)
    width = model.config.vocab_size * (longest + len(opening))
    most = max(1, min(batch_size, MOST_LOGITS // max(1, width)))
    with evaluating(model):
        for ids, numbers in sorted(groups.items(), key=lambda group: -len(group[0])):
            states_1SH = model.get_encoder()(torch.tensor([ids], device=model.device))[0]
            for at in range(0, len(numbers), most):
                part = numbers[at : at + most]
                written = [pairs[number].continuation for number in part]
                batch = pair_batch([[0]] * len(part), written, opening=opening, pad_token_id=0)
                logits_BTV = model(
                    encoder_outputs=BaseModelOutput(states_1SH.expand(len(part), -1, -1)),
                    decoder_input_ids=batch.inputs["decoder_input_ids"].to(model.device),
                    use_cache=False,
                ).logits.float()
                for number, scored in zip(part, _of_targets(logits_BTV, batch), strict=True):
                    results[number] = scored
                if advance is not None:
                    advance(len(part))
    return [one for one in results if one is not None]


def _of_targets(logits_BTV: Tensor, batch: PairBatch) -> Iterator[Likelihood]:
    """Yield what logits say of each row's response."""
    device = logits_BTV.device
    targets_BT, mask_BT = batch.targets_BT.to(device), batch.response_mask_BT.to(device)
    chosen_BT = logits_BTV.gather(2, targets_BT[:, :, None])[:, :, 0]
    logprobs_BT = (chosen_BT - logits_BTV.logsumexp(dim=-1)).double()
    greedy_BT = logits_BTV.argmax(dim=-1) == targets_BT
    for logprobs_T, greedy_T, mask_T in zip(logprobs_BT, greedy_BT, mask_BT, strict=True):
        total = float(logprobs_T[mask_T].sum())
        yield Likelihood(total, bool(greedy_T[mask_T].all()), int(mask_T.sum()))


def _asked(pair: Pair, room: int | None) -> _Asked:
    ids = (*pair.context, *pair.continuation)
    if room is not None:
        ids = ids[-(room + 1) :]
    count = min(len(pair.continuation), len(ids) - 1)
    return _Asked(ids[:-1], len(ids) - 1 - count, ids[-count:])


@contextmanager
def _packing(model: PreTrainedModel, longest: int) -> Iterator[_Passes]:
    """Switch a model to attention within trees while the block runs, where it can."""
    body: Any = model.base_model
    plain = logits_are_head_of_hidden(model)
    before = getattr(body.config, "_attn_implementation", None)
    window = longest_sequence(model.config)
    trees = plain and (window is None or longest <= window) and can_pack_trees(body)
    try:
        yield _Passes(model, trees=trees, head_apart=plain)
    finally:
        if trees:
            body.set_attn_implementation(before)


class _Passes:
    """The forward passes over one model.

    Attributes:
        trees: whether sequences that begin alike are read as trees.
        head_apart: whether logits are the output head of the last hidden state.
    """

    def __init__(self, model: PreTrainedModel, *, trees: bool, head_apart: bool) -> None:
        self.model, self.trees, self.head_apart = model, trees, head_apart
        self.few_shapes = model.dtype == torch.bfloat16 and model.device.type == "cpu"

    def batches(self, sequences: list[Ids], most: int) -> Iterator[Trees]:
        """Yield all sequences, the longest first, in passes of at most so many.

        A tree of more branches is cut; its beginning is then read once a pass.
        """
        groups = [[number] for number in range(len(sequences))]
        if self.trees:
            groups = group_by_prefix(sequences)
        trees = [
            [sequences[number] for number in group[at : at + most]]
            for group in groups
            for at in range(0, len(group), most)
        ]
        # Alike in length beside each other: blocks of attention and rows are padded to the longest.
        trees.sort(key=lambda tree: (-max(map(len, tree)), -shared_prefix(tree), tree[0]))
        held: Trees = []
        for tree in trees:
            if held and sum(map(len, held)) + len(tree) > most:
                yield held
                held = []
            held.append(tree)
        if held:
            yield held

    def read(
        self, batch: Trees, asked: Sequence[_Asked], numbers: Sequence[int]
    ) -> list[Likelihood]:
        """Return what the model makes of the pairs of these numbers, whose sequences are read."""
        rows = {ids: row for row, ids in enumerate(ids for tree in batch for ids in tree)}
        wanted = [
            (rows[one.sequence], place)
            for one in (asked[number] for number in numbers)
            for place in range(one.first, one.first + len(one.targets))
        ]
        tokens = [token for number in numbers for token in asked[number].targets]
        states_NX, order_N = self._states(batch, wanted)
        logprobs_N, greedy_N = self._scores(states_NX, order_N, tokens)
        likelihoods, at = [], 0
        for number in numbers:
            part = slice(at, at + len(asked[number].targets))
            at = part.stop
            total = float(logprobs_N[part].double().sum())
            likelihoods.append(
                Likelihood(total, bool(greedy_N[part].all()), part.stop - part.start)
            )
        return likelihoods

    def _states(self, batch: Trees, wanted: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Return hidden states (or logits) of each distinct place, and which of them N want."""
        device = self.model.device
        if self.trees:
            packed = pack_trees(batch, few_shapes=self.few_shapes)
            distinct, order_N = _distinct(_packed_places(batch, packed, wanted), device)
            packed = packed.to(device)._replace(ends_S=distinct)
            return end_states(self.model.base_model, packed), order_N
        sequences = [ids for tree in batch for ids in tree]
        longest = max(map(len, sequences))
        distinct, order_N = _distinct([row * longest + place for row, place in wanted], device)
        return self._rows(sequences).flatten(0, 1)[distinct], order_N

    def _rows(self, sequences: Sequence[Ids]) -> Tensor:
        """Return hidden states, or logits where they are not their head's, of padded rows."""
        longest = max(map(len, sequences))
        # Padding stands on the right, where a causal model does not look.
        ids_BL = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in sequences])
        sizes_B = torch.tensor([len(ids) for ids in sequences])
        mask_BL = (torch.arange(longest)[None] < sizes_B[:, None]).long()
        device = self.model.device
        given = {"input_ids": ids_BL.to(device), "attention_mask": mask_BL.to(device)}
        if self.head_apart:
            hidden_BLH: Tensor = self.model.base_model(**given, use_cache=False)[0]
            return hidden_BLH
        logits_BLV: Tensor = self.model(**given, use_cache=False).logits
        return logits_BLV

    def _scores(
        self, states_NX: Tensor, order_N: Tensor, tokens: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Return log-probability and whether it is the likeliest, of each token that is asked for.

        Args:
            states_NX: of the distinct places.
            order_N: the place of each token.
            tokens: what is asked for there.
        """
        head: Any = self.model.get_output_embeddings() if self.head_apart else torch.nn.Identity()
        width = getattr(head, "out_features", None) or states_NX.shape[-1]
        tokens_N = torch.tensor(tokens, device=order_N.device)
        logprobs_N = torch.empty(len(tokens), device=order_N.device)
        greedy_N = torch.empty(len(tokens), dtype=torch.bool, device=order_N.device)
        step = max(1, MOST_LOGITS // width)
        for at in range(0, len(states_NX), step):
            logits_XV = head(states_NX[at : at + step]).float()
            here_N = ((order_N >= at) & (order_N < at + step)).nonzero()[:, 0]
            places_X = order_N[here_N] - at
            chosen_X = logits_XV[places_X, tokens_N[here_N]]
            logprobs_N[here_N] = chosen_X - logits_XV.logsumexp(dim=-1)[places_X]
            greedy_N[here_N] = logits_XV.argmax(dim=-1)[places_X] == tokens_N[here_N]
        return logprobs_N, greedy_N


def _distinct(places: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    distinct, order_N = torch.unique(torch.tensor(places), return_inverse=True)
    return distinct.to(device), order_N.to(device)


def _packed_places(
    batch: Trees, packed: PackedTrees, wanted: Sequence[tuple[int, int]]
) -> list[int]:
    """Return where among packed tokens stand the places of sequences: (sequence, place) each."""
    cuts = [shared_prefix(tree) for tree in batch]
    owners = [number for number, tree in enumerate(batch) for _ in tree]
    prefixes, branches = packed.prefix_NP.tolist(), packed.branch_SC.tolist()
    return [
        prefixes[owners[row]][place]
        if place < cuts[owners[row]]
        else branches[row][place - cuts[owners[row]]]
        for row, place in wanted
    ]
