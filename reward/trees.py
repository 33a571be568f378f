"""Sequences that begin alike, computed with their beginning once.

A *tree* is one prefix and the branches that continue it, as a prompt and its K completions. A
*forest* is several trees packed into one row of tokens without padding: first the prefixes, then
the branches. Every token has the position that it has in its own sequence, and attends to what
stands before it there and to nothing else; a branch therefore ends in the state that its sequence
would have in a row of its own.

Only attention needs to know which tokens belong together. It takes the packed tokens apart into
padded blocks (prefixes on themselves; branches on their prefix and themselves), so that a pass
costs what the tokens cost, where one mask over the packed row would be quadratic in its length.
The blocks go to the SDPA function of `transformers`; on GPUs the packed tokens go to flex attention
as they are, where that is found to give the same (see `reward.flex_trees`).

Whether an architecture lets itself be driven so is tried on a few tokens (`can_plant`), not looked
up in a list of names.

Shapes: T packed tokens, N trees, S sequences (one branch each), P longest prefix, C longest branch,
h heads, d size of a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding, pad

from data.errors import ModelError

IMPLEMENTATION = "sdpa_trees"
_PLAIN = "sdpa"
_KEYWORD = "forest"
WIDTHS, TOKENS = 8, 64
"""Multiples that blocks and packed tokens are filled up to where shapes shall be few."""


class Forest(NamedTuple):
    """Trees as tensors.

    Attributes:
        ids_T: their tokens, prefixes first; what fills them up stands behind.
        positions_T: place of each token in its own sequence.
        ends_S: where in T each sequence ends.
        prefix_NP: where in T the tokens of each prefix stand; what fills it up may be any place.
        branch_SC: the same of each branch.
        tree_S: which prefix a branch continues.
        mask_S1CK: True where a token of a branch attends, K = P + C: to its prefix, then to its
            own branch; or the same as numbers to add, 0 and minus infinity. None where no tree
            has a prefix.
        unpack_T: place of each packed token among the N * P + S * C of the blocks.
        tree_T: which tree a token belongs to.
        branch_T: which branch, -1 for prefixes.
        rule: by which packed tokens attend, in place of blocks; None takes the blocks.
    """

    ids_T: Tensor
    positions_T: Tensor
    ends_S: Tensor
    prefix_NP: Tensor
    branch_SC: Tensor
    tree_S: Tensor
    mask_S1CK: Tensor | None
    unpack_T: Tensor
    tree_T: Tensor
    branch_T: Tensor
    rule: Any = None

    def made_rule(self) -> Any:
        """Return the rule of `reward.flex_trees`, on the device where the forest is."""
        from reward.flex_trees import block_mask

        return block_mask(self.tree_T, self.branch_T, self.positions_T)

    def to(self, device: torch.device | str) -> Forest:
        """Return it on a device."""
        tensors = {name: one for name, one in self._asdict().items() if isinstance(one, Tensor)}
        return self._replace(**{name: one.to(device) for name, one in tensors.items()}, rule=None)


def shared_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Return how many first tokens all sequences share; each keeps at least one of its own.

    A single sequence shares nothing.
    """
    if len(sequences) < 2:
        return 0
    first, last = min(map(list, sequences)), max(map(list, sequences))
    longest = min(len(ids) for ids in sequences) - 1
    return next((i for i in range(longest) if first[i] != last[i]), longest)


def tree_tokens(sequences: Sequence[Sequence[int]]) -> int:
    """Return the tokens of a tree: its prefix once, and its branches."""
    return sum(len(ids) for ids in sequences) - (len(sequences) - 1) * shared_prefix(sequences)


def group_by_prefix(sequences: Sequence[Sequence[int]]) -> list[list[int]]:
    """Group sequences into trees such that many tokens are shared; return their indices.

    Neighbours in alphabetic order are joined, those that share most first, as long as the joined
    tree saves more tokens than its two parts do.
    """
    order = sorted(range(len(sequences)), key=lambda i: list(sequences[i]))
    shared = [shared_prefix([sequences[a], sequences[b]]) for a, b in pairwise(order)]
    # A group is a run of `order`: its first place knows its end and its saving, its last its start.
    ends, starts = list(range(len(order))), list(range(len(order)))
    savings = [0] * len(order)
    for place in sorted(range(len(shared)), key=lambda p: (-shared[p], p)):
        start, end = starts[place], ends[place + 1]
        joined = (end - start) * shared[place]
        if joined > savings[start] + savings[place + 1]:
            ends[start], starts[end], savings[start] = end, start, joined
    groups, start = [], 0
    while start < len(order):
        groups.append(order[start : ends[start] + 1])
        start = ends[start] + 1
    return groups


def plant(trees: Sequence[Sequence[Sequence[int]]], *, few_shapes: bool = False) -> Forest:
    """Pack trees, each given as its whole sequences, into a forest.

    Args:
        trees: sequences of at least one token; those of a tree may begin alike.
        few_shapes: fill up tokens and blocks, so that many forests have the same shapes. In bf16 on
            a processor oneDNN makes and keeps a program for each shape of a product.
    """
    multiple = WIDTHS if few_shapes else 1
    cuts = [shared_prefix(tree) for tree in trees]
    prefixes = [list(tree[0][:cut]) for tree, cut in zip(trees, cuts, strict=True)]
    branches = [list(ids[cut:]) for tree, cut in zip(trees, cuts, strict=True) for ids in tree]
    starts = [cut for tree, cut in zip(trees, cuts, strict=True) for _ in tree]
    tree_S = torch.tensor([n for n, tree in enumerate(trees) for _ in tree])
    prefix_NP, prefix_mask_NP = _places(cuts, first=0, multiple=multiple)
    sizes = [len(ids) for ids in branches]
    branch_SC, branch_mask_SC = _places(sizes, first=sum(cuts), multiple=multiple)
    # In no block, so that nothing looks at them; what they see themselves is of no account.
    filling = -(sum(cuts) + sum(sizes)) % TOKENS if few_shapes else 0
    unpack_T = torch.cat([prefix_mask_NP.flatten(), branch_mask_SC.flatten()]).nonzero()[:, 0]
    width = branch_SC.shape[1]
    owners = [n for n, size in zip(tree_S.tolist(), sizes, strict=True) for _ in range(size)]
    mask_S1CK = None
    if prefix_NP.shape[1]:
        # What fills up a branch stands behind its tokens, where they don't look, and has itself
        # to look at.
        own_CC = torch.ones(width, width, dtype=torch.bool).tril()
        prefix_S1CP = prefix_mask_NP[tree_S][:, None, None].expand(-1, 1, width, -1)
        mask_S1CK = torch.cat([prefix_S1CP, own_CC.expand(len(sizes), 1, -1, -1)], dim=-1)
    return Forest(
        ids_T=pad(torch.tensor([i for ids in (*prefixes, *branches) for i in ids]), (0, filling)),
        positions_T=torch.tensor(
            [i for cut in cuts for i in range(cut)]
            + [at + i for at, size in zip(starts, sizes, strict=True) for i in range(size)]
            + [0] * filling
        ),
        ends_S=torch.tensor(sizes).cumsum(0) + (sum(cuts) - 1),
        prefix_NP=prefix_NP,
        branch_SC=branch_SC,
        tree_S=tree_S,
        mask_S1CK=mask_S1CK,
        unpack_T=pad(unpack_T, (0, filling)),
        tree_T=torch.tensor(
            [n for n, cut in enumerate(cuts) for _ in range(cut)] + owners + [len(trees)] * filling
        ),
        branch_T=torch.tensor(
            [-1] * sum(cuts) + [s for s, n in enumerate(sizes) for _ in range(n)] + [-1] * filling
        ),
    )


def _places(sizes: Sequence[int], *, first: int, multiple: int) -> tuple[Tensor, Tensor]:
    """Return where rows of these sizes stand, one after the other, and the mask of what is real."""
    sizes_R = torch.tensor(sizes)
    columns = torch.arange(multiple * math.ceil(max(sizes) / multiple))[None]
    mask_RW = columns < sizes_R[:, None]
    starts_R = first + sizes_R.cumsum(0) - sizes_R
    return torch.where(mask_RW, starts_R[:, None] + columns, 0), mask_RW


def end_states(body: Any, forest: Forest) -> Tensor:
    """Return the last hidden state (S, H) of each sequence.

    Args:
        body: a causal model without its head, switched on by `can_plant`.
        forest: on the same device.

    Raises:
        ModelError: the model is not switched on, and would mix the trees up.
    """
    if body.config._attn_implementation != IMPLEMENTATION:
        raise ModelError(
            f"the attention of {type(body).__name__} is {body.config._attn_implementation}, which "
            "knows no trees; give it rows"
        )
    device = forest.ids_T.device.type
    low = torch.is_autocast_enabled(device)
    forest = _ruled(forest, body)
    if forest.rule is None:
        forest = _additive(forest, torch.get_autocast_dtype(device) if low else body.dtype)
    hidden_TH: Tensor = body(
        input_ids=forest.ids_T[None],
        position_ids=forest.positions_T[None],
        # A mask that is made already; without one, `transformers` would make one of T x T.
        attention_mask=forest.ids_T.new_ones((1, 1, 1, 1), dtype=torch.bool),
        use_cache=False,
        **{_KEYWORD: forest},
    ).last_hidden_state[0]
    return hidden_TH[forest.ends_S]


def _ruled(forest: Forest, body: Any) -> Forest:
    """Give a forest its rule where flex attention serves the device, and gives what blocks do."""
    from reward import flex_trees

    config, device = body.config.get_text_config(), forest.ids_T.device
    if not flex_trees.serves(device) or (body.training and _drops(config)):
        return forest
    heads = int(config.num_attention_heads)
    shared = int(getattr(config, "num_key_value_heads", None) or heads)
    size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    if not flex_trees.works(device, heads, shared, size):
        return forest
    return forest._replace(rule=forest.made_rule())


def _drops(config: Any) -> bool:
    names = ("attention_dropout", "attn_pdrop")
    return any(getattr(config, name, None) or 0 for name in names)


def _additive(forest: Forest, dtype: torch.dtype) -> Forest:
    """Make numbers of the mask: once, where SDPA would make and keep them in every layer."""
    mask = forest.mask_S1CK
    if mask is None:
        return forest
    zeros = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return forest._replace(mask_S1CK=zeros.masked_fill_(~mask, -torch.inf))


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> tuple[Tensor, None]:
    """Attend within trees where a forest is given, as plain SDPA does elsewhere.

    An attention function of `transformers`: query, key and value are (1, h, T, d), the result is
    (1, T, h, d).
    """
    forest: Forest | None = options.pop(_KEYWORD, None)
    if forest is None:
        return _attend(module, query, key, value, attention_mask, **options), None
    if forest.rule is not None:
        from reward.flex_trees import attend

        return attend(query, key, value, forest.rule, options.get("scaling")), None
    packed = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
    q_SChd, k_SKhd, v_SKhd = (_take(t_Thd, forest.branch_SC) for t_Thd in packed)
    blocks = []
    if forest.mask_S1CK is not None:
        q_NPhd, k_NPhd, v_NPhd = (_take(t_Thd, forest.prefix_NP) for t_Thd in packed)
        blocks.append(_attend_rows(module, q_NPhd, k_NPhd, v_NPhd, None, **options))
        k_SKhd = torch.cat([_take(k_NPhd, forest.tree_S), k_SKhd], dim=1)
        v_SKhd = torch.cat([_take(v_NPhd, forest.tree_S), v_SKhd], dim=1)
    blocks.append(_attend_rows(module, q_SChd, k_SKhd, v_SKhd, forest.mask_S1CK, **options))
    flat_hd = torch.cat([block.flatten(0, 1) for block in blocks])
    return _take(flat_hd, forest.unpack_T)[None], None


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
) -> Tensor:
    """Attention of rows (B, h, L, d), causal where there is no mask; returns (B, L, h, d)."""
    from reward.short_attention import attend

    return attend(module, query, key, value, mask, **options)[0]


def _attend_rows(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
) -> Tensor:
    """The same of rows (B, L, h, d)."""
    heads_first = [tensor.transpose(1, 2) for tensor in (query, key, value)]
    return _attend(module, heads_first[0], heads_first[1], heads_first[2], mask, **options)


def _take(values: Tensor, places: Tensor) -> Tensor:
    """Return `values[places]`; an embedding's backward pass is much faster than an index's."""
    rows: Tensor = embedding(places, values.flatten(1))
    return rows.view(*places.shape, *values.shape[1:])


def can_plant(body: Any) -> bool:
    """Switch a model to attention within trees if that gives the states of plain rows.

    Tried on a few tokens; where it fails, or the states differ, the model stays as it was. A model
    that is switched already is tried again: its layers may have changed, as by adapters.

    Args:
        body: a model without its head.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

    before = getattr(body.config, "_attn_implementation", None)
    if before not in (_PLAIN, IMPLEMENTATION):
        return False
    AttentionInterface.register(IMPLEMENTATION, attention)
    AttentionMaskInterface.register(IMPLEMENTATION, ALL_MASK_ATTENTION_FUNCTIONS[_PLAIN])
    training = body.training
    body.eval()
    works = False
    try:
        works = _same_states(body)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        # Whatever an architecture objects to, its plain rows are right.
        works = False
    finally:
        body.train(training)
        if not works:
            body.set_attn_implementation(before)
    return works


def longest_sequence(config: Any) -> int | None:
    """Return how long a sequence may be: no longer than a layer looks back; None for any."""
    config = config.get_text_config()
    limits = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((int(n) for n in limits if n), default=None)


@torch.no_grad()
def _same_states(body: Any) -> bool:
    """Tell whether trees, and padded rows too, end as single rows did before the switch."""
    rows = [[1, 2, 3, 4, 5], [1, 2, 3, 6], [1, 2, 3, 7, 2, 6, 4], [8, 9, 1], [8, 5], [3]]
    n_words = body.get_input_embeddings().weight.shape[0]
    # Spread over the vocabulary: its first tokens are often special ones, whose states are so large
    # that rounding shows.
    rows = [[i * n_words // 10 for i in row] for row in rows]
    device = body.get_input_embeddings().weight.device
    body.set_attn_implementation(_PLAIN)
    expected_SH = torch.cat([_padded_states(body, [row], device) for row in rows])
    body.set_attn_implementation(IMPLEMENTATION)
    forest = plant([rows[:3], rows[3:5], rows[5:]]).to(device)
    exact = next(body.parameters()).dtype == torch.float32
    limit = expected_SH.abs().max() * (1e-3 if exact else 5e-2)
    found = (end_states(body, forest).float(), _padded_states(body, rows, device))
    return all(bool((states_SH - expected_SH).abs().max() < limit) for states_SH in found)


def _padded_states(body: Any, rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Return the last states (S, H) of rows that are padded on the right."""
    sizes_S = torch.tensor([len(row) for row in rows])
    longest = int(sizes_S.max())
    ids_SL = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    mask_SL = (torch.arange(longest)[None] < sizes_S[:, None]).long()
    given = {"input_ids": ids_SL.to(device), "attention_mask": mask_SL.to(device)}
    hidden_SLH: Tensor = body(**given, use_cache=False)[0]
    return hidden_SLH[torch.arange(len(rows)), sizes_S - 1].float()
