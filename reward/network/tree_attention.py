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
_KEYWORD = "forest"


def end_states(body: Any, forest: PackedTrees) -> Tensor:
    """Return the last hidden state (S, H) of each sequence.

    Args:
        body: a causal model without its head, switched on by `can_pack_trees`.
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


def _ruled(forest: PackedTrees, body: Any) -> PackedTrees:
    """Give a forest its rule where flex attention serves the device, and gives what blocks do."""
    from reward.network import flex_attention as flex_trees

    config, device = body.config.get_text_config(), forest.ids_T.device
    if not flex_trees.serves(device) or (body.training and _drops(config)):
        return forest
    heads = int(config.num_attention_heads)
    shared = int(getattr(config, "num_key_value_heads", None) or heads)
    size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    if not works(device, heads, shared, size):
        return forest
    return forest._replace(rule=forest.made_rule())


def _drops(config: Any) -> bool:
    names = ("attention_dropout", "attn_pdrop")
    return any(getattr(config, name, None) or 0 for name in names)


def _additive(forest: PackedTrees, dtype: torch.dtype) -> PackedTrees:
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
    forest: PackedTrees | None = options.pop(_KEYWORD, None)
    if forest is None:
        return _attend(module, query, key, value, attention_mask, **options), None
    if forest.rule is not None:
        from reward.network.flex_attention import attend

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
    forest = pack_trees([rows[:3], rows[3:5], rows[5:]]).to(device)
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


@cache
def works(device: torch.device, heads: int, shared_heads: int, size: int) -> bool:
    """Tell whether it gives the result and the gradients of the blocks, on a few tokens.

    Args:
        device: where.
        heads: of queries.
        shared_heads: of keys and values.
        size: of a head.
    """
    from reward.network.packed_trees import pack_trees

    trees = [[[1, 2, 3, 4, 5], [1, 2, 3, 6], [1, 2, 3, 7, 2, 6, 4]], [[8, 9, 1], [8, 5]], [[3]]]
    with torch.inference_mode(False):
        return _tried(pack_trees(trees).to(device), heads, shared_heads, size)


def _tried(forest: PackedTrees, heads: int, shared_heads: int, size: int) -> bool:
    device = forest.ids_T.device
    draw = torch.Generator().manual_seed(0)
    wide = [
        torch.randn(1, count, len(forest.ids_T), size, generator=draw).to(device)
        for count in (heads, shared_heads, shared_heads)
    ]
    try:
        found = _both_ways(forest._replace(rule=forest.made_rule()), wide)
    except (RuntimeError, TypeError, ValueError, AssertionError):
        return False  # a device, head or version that has no such kernel: the blocks are right
    wanted = _both_ways(forest, wide)
    return all(torch.allclose(a, b, atol=1e-3) for a, b in zip(found, wanted, strict=True))


def _both_ways(forest: PackedTrees, wide: list[Tensor]) -> list[Tensor]:
    """Return what attention in a forest gives, and the gradients of what goes in."""
    from reward.network.tree_attention import attention

    module = torch.nn.Module()
    module.num_key_value_groups = wide[0].shape[1] // wide[1].shape[1]  # type: ignore[assignment]
    query, key, value = (tensor.clone().requires_grad_() for tensor in wide)
    with torch.enable_grad(), torch.autocast(query.device.type, enabled=False):
        mixed = attention(module, query, key, value, None, forest=forest, dropout=0.0)[0]
        gradients = torch.autograd.grad(mixed.square().sum(), (query, key, value))
    return [mixed.detach(), *gradients]
