"""Sequences that begin alike, computed with their beginning once.

A *tree* is one prefix and the branches that continue it, as a prompt and its K completions. Several
trees are packed into one row of tokens without padding: first the prefixes, then the branches.
Every token has the position that it has in its own sequence, and attends to what
stands before it there and to nothing else; a branch therefore ends in the state that its sequence
would have in a row of its own.

Only attention needs to know which tokens belong together. It takes the packed tokens apart into
padded blocks (prefixes on themselves; branches on their prefix and themselves), so that a pass
costs what the tokens cost, where one mask over the packed row would be quadratic in its length.
The blocks go to the SDPA function of `transformers`; on GPUs the packed tokens go to flex attention
as they are, where that is found to give the same (see `reward.network.flex_attention`).

Whether an architecture lets itself be driven so is tried on a few tokens (`can_pack_trees`), not
looked up in a list of names.

Shapes: T packed tokens, N trees, S sequences (one branch each), P longest prefix, C longest branch,
h heads, d size of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding

from data.errors import ModelError
from reward.network.packed_trees import PackedTrees, pack_trees

IMPLEMENTATION = "sdpa_trees"
_PLAIN = "sdpa"
_KEYWORD = "packed_trees"
"""Under which a model hands the trees to its attention, untouched."""


def end_states(body: Any, packed: PackedTrees) -> Tensor:
    """Return the last hidden state (S, H) of each sequence.

    Args:
        body: a causal model without its head, switched on by `can_pack_trees`.
        packed: on the same device.

    Raises:
        ModelError: the model is not switched on, and would mix the trees up.
    """
    if body.config._attn_implementation != IMPLEMENTATION:
        raise ModelError(
            f"the attention of {type(body).__name__} is {body.config._attn_implementation}, which "
            "knows no trees; give it rows"
        )
    device = packed.ids_T.device.type
    packed = _ruled(packed, body)
    if packed.rule is None:
        # SDPA wants it in the type of the queries, which under autocast is not that of the weights.
        low = torch.is_autocast_enabled(device)
        packed = _additive(packed, torch.get_autocast_dtype(device) if low else body.dtype)
    hidden_TH: Tensor = body(
        input_ids=packed.ids_T[None],  # one row for all trees: (1, T)
        position_ids=packed.positions_T[None],  # counted in each sequence, prefix included
        # A mask that is made already; without one, `transformers` would make one of T x T.
        attention_mask=packed.ids_T.new_ones((1, 1, 1, 1), dtype=torch.bool),
        use_cache=False,
        **{_KEYWORD: packed},
    ).last_hidden_state[0]
    return hidden_TH[packed.ends_S]


def _ruled(packed: PackedTrees, body: Any) -> PackedTrees:
    """Give trees their rule where flex attention serves the device, and gives what blocks do."""
    from reward.network import flex_attention as flex_trees

    config, device = body.config.get_text_config(), packed.ids_T.device
    # Flex attention has no dropout, so that a model which is trained with some keeps to blocks.
    if not flex_trees.serves(device) or (body.training and _drops(config)):
        return packed
    heads = int(config.num_attention_heads)
    shared = int(getattr(config, "num_key_value_heads", None) or heads)
    size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    if not works(device, heads, shared, size):
        return packed
    return packed._replace(rule=packed.made_rule())


def _drops(config: Any) -> bool:
    names = ("attention_dropout", "attn_pdrop")
    return any(getattr(config, name, None) or 0 for name in names)


def _additive(packed: PackedTrees, dtype: torch.dtype) -> PackedTrees:
    """Make numbers of the mask: once, where SDPA would make and keep them in every layer."""
    mask = packed.mask_S1CK
    if mask is None:
        return packed
    zeros = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return packed._replace(mask_S1CK=zeros.masked_fill_(~mask, -torch.inf))


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> tuple[Tensor, None]:
    """Attend within trees where packed ones are given, as plain SDPA does elsewhere.

    An attention function of `transformers`: query, key and value are (1, h, T, d), the result is
    (1, T, h, d).
    """
    packed: PackedTrees | None = options.pop(_KEYWORD, None)
    if packed is None:
        return _attend(module, query, key, value, attention_mask, **options), None
    if packed.rule is not None:
        from reward.network.flex_attention import attend

        return attend(query, key, value, packed.rule, options.get("scaling")), None
    tokens = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]  # (1, h, T, d): T, h, d
    # 1. The branches as padded rows. K is C as long as a branch sees itself alone.
    q_SChd, k_SKhd, v_SKhd = (_take(t_Thd, packed.branch_SC) for t_Thd in tokens)
    blocks = []
    if packed.mask_S1CK is not None:
        # 2. Prefixes see themselves, each once, however many branches continue it.
        q_NPhd, k_NPhd, v_NPhd = (_take(t_Thd, packed.prefix_NP) for t_Thd in tokens)
        blocks.append(_attend_rows(module, q_NPhd, k_NPhd, v_NPhd, None, **options))
        # 3. A branch sees its prefix, then itself: K = P + C.
        k_SKhd = torch.cat([_take(k_NPhd, packed.tree_S), k_SKhd], dim=1)
        v_SKhd = torch.cat([_take(v_NPhd, packed.tree_S), v_SKhd], dim=1)
    blocks.append(_attend_rows(module, q_SChd, k_SKhd, v_SKhd, packed.mask_S1CK, **options))
    # 4. Back to packed tokens: the padding of the blocks, (N * P + S * C, h, d), is left behind.
    flat_hd = torch.cat([block.flatten(0, 1) for block in blocks])
    return _take(flat_hd, packed.unpack_T)[None], None


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
) -> Tensor:
    """Attention of rows (B, h, L, d), causal where there is no mask; returns (B, L, h, d)."""
    from reward.network.short_attention import attend

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


def can_pack_trees(body: Any) -> bool:
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
    # A switched model also reads padded rows, under the masks that it had before.
    AttentionMaskInterface.register(IMPLEMENTATION, ALL_MASK_ATTENTION_FUNCTIONS[_PLAIN])
    training = body.training
    body.eval()  # dropout would make two passes differ
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
    # Three trees: branches that hold each other's tokens and the prefix's, so that a look at the
    # wrong ones shows; two branches of unlike lengths; a sequence alone.
    rows = [[1, 2, 3, 4, 5], [1, 2, 3, 6], [1, 2, 3, 7, 2, 6, 4], [8, 9, 1], [8, 5], [3]]
    n_words = body.get_input_embeddings().weight.shape[0]
    # Spread over the vocabulary: its first tokens are often special ones, whose states are so large
    # that rounding shows.
    rows = [[i * n_words // 10 for i in row] for row in rows]
    device = body.get_input_embeddings().weight.device
    body.set_attn_implementation(_PLAIN)
    expected_SH = torch.cat([_padded_states(body, [row], device) for row in rows])
    body.set_attn_implementation(IMPLEMENTATION)
    packed = pack_trees([rows[:3], rows[3:5], rows[5:]]).to(device)
    # A share of the largest state: well above what rounding does, in fp32 and in bf16's 2 digits.
    exact = next(body.parameters()).dtype == torch.float32
    limit = expected_SH.abs().max() * (1e-3 if exact else 5e-2)
    both = (end_states(body, packed).float(), _padded_states(body, rows, device))
    return all(bool((states_SH - expected_SH).abs().max() < limit) for states_SH in both)


def _padded_states(body: Any, rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Return the last states (S, H) of rows that are padded on the right."""
    sizes_S = torch.tensor([len(row) for row in rows])
    longest = int(sizes_S.max())
    ids_SL = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    mask_SL = (torch.arange(longest)[None] < sizes_S[:, None]).long()
    given = {"input_ids": ids_SL.to(device), "attention_mask": mask_SL.to(device)}
    hidden_SLH: Tensor = body(**given, use_cache=False)[0]
    return hidden_SLH[torch.arange(len(rows)), sizes_S - 1].float()


@cache
def works(device: torch.device, heads: int, shared_heads: int, size: int) -> bool:
    """Tell whether flex attention gives result and gradients of the blocks, on a few tokens."""
    trees = [[[1, 2, 3, 4, 5], [1, 2, 3, 6], [1, 2, 3, 7, 2, 6, 4]], [[8, 9, 1], [8, 5]], [[3]]]
    with torch.inference_mode(False):  # its tensors take no gradients, and the answer is kept
        return _tried(pack_trees(trees).to(device), heads, shared_heads, size)


def _tried(packed: PackedTrees, heads: int, shared_heads: int, size: int) -> bool:
    device = packed.ids_T.device
    draw = torch.Generator().manual_seed(0)
    wide = [  # query, key, value (1, h, T, d); with grouped heads there are fewer of the latter two
        torch.randn(1, count, len(packed.ids_T), size, generator=draw).to(device)
        for count in (heads, shared_heads, shared_heads)
    ]
    try:
        by_rule = _both_ways(packed._replace(rule=packed.made_rule()), wide)
    except (RuntimeError, TypeError, ValueError, AssertionError):
        return False  # a device, head or version that has no such kernel: the blocks are right
    by_blocks = _both_ways(packed, wide)
    return all(torch.allclose(a, b, atol=1e-3) for a, b in zip(by_rule, by_blocks, strict=True))


def _both_ways(packed: PackedTrees, wide: list[Tensor]) -> list[Tensor]:
    """Return what attention in packed trees gives, and the gradients of what goes in."""
    module = torch.nn.Module()
    module.num_key_value_groups = wide[0].shape[1] // wide[1].shape[1]  # type: ignore[assignment]
    query, key, value = (tensor.clone().requires_grad_() for tensor in wide)
    with torch.enable_grad(), torch.autocast(query.device.type, enabled=False):
        mixed = attention(module, query, key, value, None, **{_KEYWORD: packed}, dropout=0.0)[0]
        gradients = torch.autograd.grad(mixed.square().sum(), (query, key, value))
    return [mixed.detach(), *gradients]
