"""A decode batch that is kept full: rows that end leave it, prompts that wait take their place.

All rows write their newest key and value to the same column of the cache, whatever their length;
a row begins where its prompt does, so one that joins later begins further right:

    column  0 1 2 3 4 5 6 7 8
    row 0     p p p p r r r x     p prompt, r response, x the next token of all rows, at `end`
    row 1           p p p r x     joined later: its prompt was put before the `end` of then
    row 2         p p p p p x     has just joined

What is attended to is the window from the first column that a running row needs to the newest one:
a row waits for no other, and there is no padding but the difference between the lengths of running
rows. Equal prompts are computed once, and their keys and values copied to each of their rows. What
many prompts begin alike with, as with the examples before a question, is computed once, too, and
the rest of each behind it.

Where a model needs a cache of its own kind (sliding windows, recurrent states) rows leave the
batch, but others join only when it is empty. Where its cache does not give what it says without
one (see `pipeline.generation.trial`), whole rows are read again for each token: padded on the
right, where a causal model does not look, and with neither mask nor positions.

Shapes: B running rows, N prompts, T columns, S new columns, H key heads, D head width,
V vocabulary.
"""

from __future__ import annotations

import inspect
import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from reward.network.packed_trees import group_by_prefix, shared_prefix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Draw = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From logits (B, V) and numbers of [0, 1) (B,) to tokens and their log-probabilities (B,)."""

Follow = Callable[[int, list[int], bool, int], Sequence[int]]
"""From a response's place, its tokens, whether the last one ends it, and the tokens that it may
still have, to those that follow; with some it goes on."""

Memory = Literal["window", "own", "none"]
"""Where keys, values and states are kept: in columns of ours, in the model's cache, nowhere."""

Layers = list[tuple[Tensor, Tensor]]
"""Keys and values of every layer."""

Ids = tuple[int, ...]

LEAST_SHARED = 64
"""Tokens that prompts begin alike with from which on these are computed by themselves, before."""


@dataclass
class Response:
    """A response in the making.

    Attributes:
        token_ids: its tokens so far.
        logprobs: their log-probabilities; 0 of a token that was not drawn.
        own: whether each was drawn.
        ended: whether the last token ends it.
    """

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    own: list[bool] = field(default_factory=list)
    ended: bool = False


@dataclass
class Row:
    """A running row: its prompt, the column it begins at, its newest token, those that follow."""

    place: int
    start: int
    token: int
    follow: deque[int] = field(default_factory=deque)


class Decoder:
    """Decodes prompts, some at a time; `step` samples one token for some of the rows.

    Attributes:
        responses: one for each prompt.
        finished: how many of them are ready.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[list[int]],
        *,
        limits: Sequence[int],
        draw: Draw,
        uniforms_NT: Tensor,
        eos_token_ids: Sequence[int],
        pad_token_id: int,
        slots: int,
        memory: Memory = "window",
        stop: Callable[[list[int]], bool] | None = None,
        follow: Follow | None = None,
        least_shared: int = LEAST_SHARED,
        prefill: int | None = None,
    ) -> None:
        """Start with all prompts waiting.

        Args:
            model: a causal model of transformers in evaluation mode, unwrapped.
            prompts: token ids, none empty, the longest first: they are taken in this order.
            limits: most tokens of each response.
            draw: draws tokens.
            uniforms_NT: the random number of each token.
            eos_token_ids: tokens that end a response.
            pad_token_id: fills up short prompts; never attended to.
            slots: most rows in the batch.
            memory: what its rows remember; "window" is "own" where the layers are not plain ones.
            stop: tells of a response's tokens whether the last of them ends it.
            follow: tells which tokens follow one that was drawn, whatever the model would say.
            least_shared: tokens that prompts begin alike with to have them computed once.
            prefill: prompts of a pass over them, among them the next ones, which wait with their
                keys and values; None takes those that are let in, all at once.
        """
        self.model, self.prompts, self.limits, self.draw = model, prompts, limits, draw
        self.uniforms_NT = uniforms_NT.to(model.device)
        self.eos, self.pad, self.stop = frozenset(eos_token_ids), pad_token_id, stop
        self.follow = follow
        self.slots, self.prefill = min(slots, len(prompts)), prefill
        self.responses = [Response() for _ in prompts]
        self.finished = 0
        self.waiting = deque(range(len(prompts)))
        # Equal prompts are prefilled once: rows to come of each, and what was computed of it.
        self.rows_to_come = Counter(map(tuple, prompts))
        self.prefilled: dict[Ids, tuple[Layers, Tensor]] = {}
        self.beginnings = _beginnings(list(self.rows_to_come), least_shared)
        self.begun: dict[Ids, Layers] = {}
        self.to_begin = Counter(self.beginnings.values())  # prompts that are not prefilled yet
        self.rows: list[Row] = []
        self.end = len(prompts[0])  # the column of the next token
        longest = max(len(p) + limit for p, limit in zip(prompts, limits, strict=True))
        # Room to go on for as long as the longest row before the window has to be moved back, so
        # that a column is copied about once in its time.
        refilled = len(prompts) > self.slots
        capacity = longest + (longest if refilled else 0)
        self.cache: _Columns | OwnCache | None
        self.cache = None if memory == "none" else _cache(model, self.slots, capacity, memory)
        self.extra = last_logits(model, 1)
        self.cache_name = _cache_name(model)

    @property
    def done(self) -> bool:
        """Whether all responses are ready."""
        return not self.rows and not self.waiting

    @property
    def most_steps(self) -> int:
        """Tokens that would be sampled one after the other if no response ended by itself."""
        return max(self.limits) * math.ceil(len(self.prompts) / self.slots)

    @torch.no_grad()
    def step(self) -> None:
        """Let waiting prompts in where there is room, else sample the rows' next tokens."""
        if self.cache is None:
            self._decode_without_cache()
            return
        if isinstance(self.cache, _Columns):
            self._move_back(self.cache)
        # Joining comes first, so that each decoding pass is over as full a batch as can be.
        free = self.slots - len(self.rows)
        if not self.waiting or not free or (self.rows and not isinstance(self.cache, _Columns)):
            self._decode()
            return
        places = [self.waiting.popleft() for _ in range(min(free, len(self.waiting)))]
        if isinstance(self.cache, _Columns):
            logits_BV = self._join(places, self.cache)
        else:  # an empty batch, in a cache of its own
            self.cache = OwnCache(self.model)
            self.end = max(len(self.prompts[place]) for place in places)
            logits_BV = self._prefill([self.prompts[place] for place in places], self.cache.layers)
        rows = [Row(p, self.end - len(self.prompts[p]), self.pad) for p in places]
        self.rows += rows
        self._sample(rows, logits_BV)  # their first tokens

    def _decode_without_cache(self) -> None:
        """Let waiting prompts in and sample the next token of every row, without a cache."""
        while self.waiting and len(self.rows) < self.slots:
            self.rows.append(Row(self.waiting.popleft(), 0, self.pad))
        texts = [[*self.prompts[r.place], *self.responses[r.place].token_ids] for r in self.rows]
        width = max(map(len, texts))
        ids_BS = torch.tensor([ids + [self.pad] * (width - len(ids)) for ids in texts])
        # The logits of each row's last token, from those of the positions where any row has one.
        ends = [len(ids) - 1 for ids in texts]
        columns = sorted(set(ends)) if self.extra else list(range(width))
        places_B = torch.tensor([columns.index(end) for end in ends])
        device = self.model.device
        extra = {"logits_to_keep": torch.tensor(columns, device=device)} if self.extra else {}
        logits_BXV = self.model(input_ids=ids_BS.to(device), use_cache=False, **extra).logits
        rows_B = torch.arange(len(texts), device=device)
        self._sample(self.rows, logits_BXV[rows_B, places_B.to(device)])

    def _join(self, places: list[int], cache: _Columns) -> Tensor:
        """Put prompts at the end of the batch; return the logits after each (B, V)."""
        prompts = [tuple(self.prompts[place]) for place in places]
        self._prefill_new(prompts)
        for number, ids in enumerate(prompts, start=len(self.rows)):
            cache.put(number, self.end, self.prefilled[ids][0])
        logits_BV = torch.stack([self.prefilled[ids][1] for ids in prompts])
        # What no prompt that still waits will need is let go.
        self.rows_to_come.subtract(prompts)
        self.prefilled = {
            ids: state for ids, state in self.prefilled.items() if self.rows_to_come[ids]
        }
        return logits_BV

    def _prefill_new(self, prompts: Sequence[Ids]) -> None:
        """Compute those that are not yet, and with them the next ones that wait."""
        new = dict.fromkeys(ids for ids in prompts if ids not in self.prefilled)
        if not new:
            return
        most = self.prefill or len(new)
        waiting = map(tuple, map(self.prompts.__getitem__, self.waiting))
        while len(new) % most and (ids := next(waiting, None)):
            if ids not in self.prefilled:
                new[ids] = None
        by_beginning: dict[Ids, list[Ids]] = {}
        for ids in new:
            by_beginning.setdefault(self.beginnings.get(ids, ()), []).append(ids)
        for beginning, alike in by_beginning.items():
            for at in range(0, len(alike), most):
                self._prefill_behind(beginning, alike[at : at + most])

    def _prefill_behind(self, beginning: Ids, prompts: Sequence[Ids]) -> None:
        """Compute prompts of one beginning, and keep their states."""
        cut, cache = len(beginning), DynamicCache(config=self.model.config)
        if beginning:
            if beginning not in self.begun:
                alone = DynamicCache(config=self.model.config)
                self._prefill([list(beginning)], alone)
                self.begun[beginning] = [(layer.keys, layer.values) for layer in alone.layers]
            for number, both in enumerate(self.begun[beginning]):
                keys, values = (state.expand(len(prompts), -1, -1, -1) for state in both)
                cache.update(keys, values, number)
        logits_NV = self._prefill([list(ids[cut:]) for ids in prompts], cache, behind=cut)
        for number, ids in enumerate(prompts):
            states = [  # [H, S, D], without the padding between the beginning and the rest
                (_without_padding(layer.keys[number], cut, len(ids)),
                 _without_padding(layer.values[number], cut, len(ids)))
                for layer in cache.layers
            ]  # fmt: skip
            self.prefilled[ids] = states, logits_NV[number]
        self.to_begin[beginning] -= len(prompts)
        if self.to_begin[beginning] == 0:
            del self.begun[beginning]

    def _prefill(
        self, prompts: Sequence[list[int]], cache: DynamicCache, behind: int = 0
    ) -> Tensor:
        """Compute prompts into a cache that holds what is before them; return the logits (B, V)."""
        width = max(map(len, prompts))
        ids_BS = torch.full((len(prompts), width), self.pad)  # prompts on the right
        seen_BT = torch.ones((len(prompts), behind + width), dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            ids_BS[row, width - len(prompt) :] = torch.tensor(prompt)
            seen_BT[row, behind : behind + width - len(prompt)] = False
        # 0 at a prompt's first token
        positions_BS = (seen_BT.long().cumsum(1) - 1).clamp(min=0)[:, behind:]
        return self._forward(ids_BS, positions_BS, None if seen_BT.all() else seen_BT, cache)

    def _decode(self) -> None:
        """Sample the next token of every row."""
        assert self.cache is not None
        starts = [row.start for row in self.rows]
        first = self.cache.open(len(starts), min(starts), self.end)  # the window is [first, end]
        start_B1 = torch.tensor(starts)[:, None]
        # A row sees its own columns alone. A purely recurrent model has its past in a state, and no
        # column to look away from.
        masked = max(starts) > first and self.cache_name != "cache_params"
        logits_BV = self._forward(
            torch.tensor([[row.token] for row in self.rows]),  # [B, 1]
            self.end - start_B1,  # positions [B, 1]
            torch.arange(first, self.end + 1) >= start_B1 if masked else None,  # [B, T]
            self.cache.layers,
        )
        self.end += 1
        self._sample(self.rows, logits_BV)

    def _sample(self, rows: list[Row], logits_BV: Tensor) -> None:
        """Draw a token for these rows, the last in the batch; drop the rows that it ends."""
        places = [row.place for row in rows]
        # The random number of a token depends on prompt and position alone, not on the batch.
        counts = [len(self.responses[place].token_ids) for place in places]
        tokens_B, logprobs_B = self.draw(logits_BV.float(), self.uniforms_NT[places, counts])
        drawn = zip(rows, tokens_B.tolist(), logprobs_B.tolist(), strict=True)
        ready = set()
        for row, token, logprob in drawn:
            response = self.responses[row.place]
            own = not row.follow
            row.token = token if own else row.follow.popleft()
            response.token_ids.append(row.token)
            response.logprobs.append(logprob if own else 0.0)
            response.own.append(own)
            if own:
                self._end_or_follow(row, response)
            if response.ended or len(response.token_ids) == self.limits[row.place]:
                ready.add(row.place)
        if ready:
            self.finished += len(ready)
            self._drop(ready)

    def _end_or_follow(self, row: Row, response: Response) -> None:
        """Tell whether the token just drawn ends a response, and which tokens follow it."""
        ids = response.token_ids
        response.ended = row.token in self.eos or (self.stop is not None and self.stop(ids))
        if self.follow is not None:
            room = self.limits[row.place] - len(ids)
            row.follow.extend(self.follow(row.place, ids, response.ended, room))
            response.ended = response.ended and not row.follow

    def _drop(self, places: set[int]) -> None:
        """Take rows out of the batch; the last ones fill the gaps, which copies least."""
        # order[n] is the old number of the row that stands at n from now on.
        left = [number for number, row in enumerate(self.rows) if row.place not in places]
        order = list(range(len(left)))
        movers = iter(number for number in reversed(left) if number >= len(left))
        for number in order:
            if self.rows[number].place in places:
                order[number] = next(movers)
        self.rows = [self.rows[number] for number in order]
        if order and self.cache is not None:
            self.cache.keep(order, slice(min(row.start for row in self.rows), self.end))

    def _move_back(self, cache: _Columns) -> None:
        """Move the window to the front of the cache where it has reached its end."""
        if self.end < cache.capacity:
            return
        # A prompt that joins, of which the next is the longest, ends where the window does.
        behind = self.end - len(self.prompts[self.waiting[0]]) if self.waiting else self.end
        by = min([behind, *(row.start for row in self.rows)])
        cache.move_back(by, len(self.rows), self.end)
        self.end -= by
        for row in self.rows:
            row.start -= by

    def _forward(
        self, ids_BS: Tensor, positions_BS: Tensor, seen_BT: Tensor | None, cache: DynamicCache
    ) -> Tensor:
        device = self.model.device
        output = self.model(
            input_ids=ids_BS.to(device),
            attention_mask=None if seen_BT is None else seen_BT.to(device),
            position_ids=positions_BS.to(device),
            use_cache=True,
            **{self.cache_name: cache},
            **self.extra,
        )
        logits_BV: Tensor = output.logits[:, -1]  # prompts end in the last column, all of them
        return logits_BV


def _beginnings(prompts: Sequence[Ids], least: int) -> dict[Ids, Ids]:
    """Return what prompts begin alike with, by prompt, where it is long enough."""
    prompts = [ids for ids in prompts if len(ids) > least]
    found: dict[Ids, Ids] = {}
    for group in group_by_prefix(prompts):
        alike = [prompts[number] for number in group]
        cut = shared_prefix(alike)
        if cut >= least:
            found |= dict.fromkeys(alike, alike[0][:cut])
    return found


def _without_padding(states_HTD: Tensor, cut: int, size: int) -> Tensor:
    """Return what was computed of a prompt of a size, whose first tokens stand apart."""
    rest_HSD = states_HTD[:, states_HTD.shape[1] - (size - cut) :]
    return torch.cat([states_HTD[:, :cut], rest_HSD], dim=1) if cut else rest_HSD


def last_logits(model: PreTrainedModel, count: int) -> dict[str, Any]:
    """Ask for the last positions' logits alone, where the model can give them."""
    known = inspect.signature(model.forward).parameters
    return {"logits_to_keep": count} if "logits_to_keep" in known else {}


def _cache_name(model: PreTrainedModel) -> str:
    """Return the name of the argument that takes a cache; purely recurrent models have another."""
    known = inspect.signature(model.forward).parameters
    return "cache_params" if "cache_params" in known else "past_key_values"


def _cache(
    model: PreTrainedModel, slots: int, capacity: int, memory: Memory
) -> _Columns | OwnCache:
    """Return an empty cache; sliding and other special layers keep transformers' own."""
    own = OwnCache(model)
    plain = memory == "window" and all(type(layer) is DynamicLayer for layer in own.layers.layers)
    return _Columns(model, slots, capacity) if plain and own.layers.layers else own


class OwnCache:
    """The cache that transformers makes for a model; rows can leave it, but not join."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.layers = DynamicCache(config=model.config)

    def open(self, rows: int, start: int, end: int) -> int:
        """Return the first column that is attended to."""
        return 0

    def keep(self, order: list[int], used: slice) -> None:
        """Keep these rows alone, in this order."""
        # As beams are reordered: `batch_select_indices` passes over recurrent states.
        self.layers.reorder_cache(torch.tensor(order))


class _Columns:
    """Keys and values in memory that is taken once, of which the model sees a window."""

    def __init__(self, model: PreTrainedModel, slots: int, capacity: int) -> None:
        self.slots, self.capacity = slots, capacity
        self.layers = DynamicCache(config=model.config)
        self.layers.layers = [_WindowLayer() for _ in self.layers.layers]

    def open(self, rows: int, start: int, end: int) -> int:
        """Let the model see columns from `start`, and write the next token's at `end`."""
        for layer in self.layers.layers:
            layer.rows, layer.start, layer.end = rows, start, end
        return start

    def put(self, row: int, end: int, states: Layers) -> None:
        """Write the keys and values (H, S, D) of a prompt so that they end before a column."""
        for layer, (keys_HSD, values_HSD) in zip(self.layers.layers, states, strict=True):
            if layer.memory is None:  # a layer's first states tell their shape and type
                heads, _, width = keys_HSD.shape
                # Zeros: what is masked out still is multiplied, by 0.
                taken = keys_HSD.new_zeros((self.slots, heads, self.capacity, width))
                heads, _, width = values_HSD.shape
                layer.memory = taken, values_HSD.new_zeros((*taken.shape[:3], width))
            for memory, new in zip(layer.memory, (keys_HSD, values_HSD), strict=True):
                memory[row, :, end - new.shape[1] : end] = new

    def keep(self, order: list[int], used: slice) -> None:
        """Move rows' used columns to where others stood; those at their place stay."""
        moved = [(to, source) for to, source in enumerate(order) if to != source]
        for layer in self.layers.layers:
            for memory in layer.memory:
                for to, source in moved:
                    memory[to, :, used] = memory[source, :, used]

    def move_back(self, by: int, rows: int, end: int) -> None:
        """Move all columns from `by` to `end` to the front."""
        for layer in self.layers.layers:
            for memory in layer.memory or ():
                # A copy first: the columns come from and go to overlapping ones.
                memory[:rows, :, : end - by] = memory[:rows, :, by:end].clone()


class _WindowLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values (B, H, T, D), of which a window of columns is in use."""

    def __init__(self) -> None:
        super().__init__()
        self.memory: tuple[Tensor, Tensor] | None = None
        self.rows = self.start = self.end = 0

    def get_seq_length(self) -> int:
        """Return the columns that are seen, the new ones not counted; masks are made of it."""
        return self.end - self.start

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the new column and return the window."""
        assert self.memory is not None, "a prompt comes first"
        end = self.end + key_states.shape[-2]
        keys, values = (memory[: self.rows] for memory in self.memory)  # views: no past is copied
        keys[:, :, self.end : end] = key_states
        values[:, :, self.end : end] = value_states
        return keys[:, :, self.start : end], values[:, :, self.start : end]
