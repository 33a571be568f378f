"""Flex attention on packed trees gives what the blocks give.

A CPU has no kernel for its backward pass: here torch's own plain computation of it is let through,
so that rule, heads and gradients are tried, and the kernel of a GPU is not.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import flex_attention as torchs

from reward.network import flex_attention as flex_trees
from reward.network import tree_attention
from reward.network.packed_trees import pack_trees
from reward.network.tree_attention import can_pack_trees, end_states

TREES = [
    [[5, 6, 7, 8, 9], [5, 6, 7, 9], [5, 6, 7, 8, 8, 11, 12]],
    [[20, 21]],
    [[30, 31, 32], [33, 31]],
    [[40, 41], [40, 41], [40, 41, 42]],
    [[50] * 20 + [n, n] for n in range(1, 6)],
]
CPU = torch.device("cpu")
pytestmark = [
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
    pytest.mark.filterwarnings("ignore:The .grad attribute"),  # asked for by torch's own compiler
]


@pytest.fixture(autouse=True)
def fresh() -> Any:
    tree_attention.works.cache_clear()
    yield
    tree_attention.works.cache_clear()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let a CPU be served, and note each call of the kernel."""
    calls: list[str] = []
    honest = torchs.flex_attention

    def noting(*given: Any, **options: Any) -> Any:
        calls.append("kernel")
        return honest(*given, **options)

    monkeypatch.setattr(flex_trees, "serves", lambda device: True)
    monkeypatch.setattr(flex_trees, "flex_attention", noting)
    return calls


@pytest.fixture
def backward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchs, "_validate_device", lambda *_: None)


def body(architecture: str, **changes: Any) -> Any:
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0, **changes,
    }  # fmt: skip
    if architecture == "llama":
        sizes["num_key_value_heads"] = 2
    config = AutoConfig.for_model(architecture, **sizes)
    made = AutoModel.from_config(config).eval()
    assert can_pack_trees(made)
    return made


def both_ways(model: Any) -> list[torch.Tensor]:
    states = end_states(model, pack_trees(TREES))
    # Not their squares, whose sum a norm at the end holds nearly constant.
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad((states * weights).sum(), list(model.parameters()))
    return [states.detach(), *gradients]


@pytest.mark.parametrize("architecture", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_packed_trees_have_states_and_gradients_of_blocks(
    architecture: str, served: list[str], backward: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = body(architecture)
    served.clear()
    found = both_ways(model)
    assert len(served) == 2  # a call for each layer
    monkeypatch.setattr(flex_trees, "serves", lambda device: False)
    wanted = both_ways(model)
    assert len(served) == 2
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_kernel_without_a_backward_pass_leaves_the_blocks(served: list[str]) -> None:
    model = body("llama")
    assert not tree_attention.works(CPU, 4, 2, 4)
    tried = len(served)
    both_ways(model)
    assert len(served) == tried


def test_a_kernel_that_is_wrong_leaves_the_blocks(
    served: list[str], backward: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tree_attention.works(CPU, 4, 2, 4)
    tree_attention.works.cache_clear()
    honest = flex_trees.block_mask

    def blind(tree_T: Any, branch_T: Any, positions_T: Any) -> Any:
        return honest(tree_T, torch.full_like(branch_T, -1), positions_T)

    monkeypatch.setattr(flex_trees, "block_mask", blind)
    assert not tree_attention.works(CPU, 4, 2, 4)


def test_it_is_tried_where_gradients_are_off_too(served: list[str], backward: None) -> None:
    model = body("llama")
    tree_attention.works.cache_clear()
    served.clear()
    with torch.inference_mode():
        end_states(model, pack_trees(TREES))
    assert tree_attention.works(CPU, 4, 2, 4)
    assert len(served) == 1 + 2  # the trial, and a call for each layer


def test_dropout_in_attention_leaves_the_blocks(served: list[str], backward: None) -> None:
    model = body("llama", attention_dropout=0.5).train()
    served.clear()
    end_states(model, pack_trees(TREES))
    assert not served
