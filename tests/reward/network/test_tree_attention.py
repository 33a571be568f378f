"""Sequences that begin alike score as they do in rows of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.errors import ModelError
from pipeline.stages.reward.settings import RewardSettings
from pipeline.stages.reward.trainer import RankingTrainer
from reward.learned.batching import EncodedRanking, scoring_batches
from reward.learned.model import RewardModel, ScoringModule
from reward.learned.rows import collate
from reward.network.packed_trees import group_by_prefix, pack_trees, shared_prefix, tree_tokens
from reward.network.tree_attention import can_pack_trees

Trees = list[list[list[int]]]
SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0, "num_labels": 1,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**SMALL, "num_key_value_heads": 2},
    "qwen2": {**SMALL, "num_key_value_heads": 2},
    "gpt_neox": SMALL,
    "gpt2": {
        "vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64,
        "pad_token_id": 0, "num_labels": 1,
    },
    "mistral": {**SMALL, "num_key_value_heads": 2, "sliding_window": 8},
    "bloom": {
        "vocab_size": 64, "hidden_size": 16, "n_layer": 2, "n_head": 4, "pad_token_id": 0,
        "num_labels": 1,
    },
    "mamba": {
        "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4,
        "num_labels": 1, "pad_token_id": 0,
    },
}  # fmt: skip
PLANTED = ["llama", "qwen2", "gpt_neox", "gpt2"]
TREES: Trees = [
    [[5, 6, 7, 8, 9], [5, 6, 7, 9], [5, 6, 7, 8, 8, 11, 12]],  # a prompt of 3 tokens
    [[20, 21]],  # nothing to share
    [[30, 31, 32], [33, 31]],  # no prefix in common
    [[40, 41], [40, 41], [40, 41, 42]],  # twins, and one that goes on where they end
    [[50] * 20 + [n, n] for n in range(1, 6)],
]


def build(architecture: str) -> ScoringModule:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **CONFIGS[architecture])
    module = ScoringModule(AutoModelForSequenceClassification.from_config(config)).eval()
    with torch.no_grad():
        module.classifier.score.weight.normal_()
    return module


@pytest.fixture(scope="module")
def modules() -> Callable[[str], ScoringModule]:
    built: dict[str, ScoringModule] = {}
    return lambda name: built.setdefault(name, build(name))


def scores(module: ScoringModule, trees: Trees, *, as_trees: bool) -> torch.Tensor:
    result: torch.Tensor = module(*collate(trees, as_trees=as_trees, pad_id=0))
    return result


def rows_alone(module: ScoringModule, trees: Trees) -> torch.Tensor:
    return torch.cat([scores(module, [[ids]], as_trees=False) for tree in trees for ids in tree])


@pytest.mark.parametrize("architecture", PLANTED)
def test_trees_score_as_rows_do(modules: Callable[[str], ScoringModule], architecture: str) -> None:
    module = modules(architecture)
    assert module.takes_trees
    with torch.no_grad():
        expected = rows_alone(module, TREES)
        torch.testing.assert_close(
            scores(module, TREES, as_trees=True), expected, atol=1e-5, rtol=1e-5
        )
        # A tree does not see what it is packed with.
        one_by_one = [scores(module, [tree], as_trees=True) for tree in TREES]
    torch.testing.assert_close(torch.cat(one_by_one), expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 0.1


@pytest.mark.parametrize("architecture", PLANTED)
def test_trees_have_the_gradients_of_rows(
    modules: Callable[[str], ScoringModule], architecture: str
) -> None:
    module = modules(architecture)
    weights = torch.linspace(-1, 1, sum(len(tree) for tree in TREES))
    found = []
    for as_trees in (True, False):
        module.zero_grad()
        (scores(module, TREES, as_trees=as_trees) * weights).sum().backward()
        found.append(
            {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
        )
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[1].items():
        torch.testing.assert_close(found[0][name], gradient, atol=1e-5, rtol=1e-4, msg=name)


ids = st.integers(1, 63)
ragged_trees = st.lists(
    st.tuples(
        st.lists(ids, max_size=9),
        st.lists(st.lists(ids, min_size=1, max_size=7), min_size=1, max_size=5),
    ),
    min_size=1,
    max_size=4,
)


@given(rows=ragged_trees)
def test_any_shape_of_trees_scores_as_rows_do(
    modules: Callable[[str], ScoringModule], rows: list[tuple[list[int], list[list[int]]]]
) -> None:
    trees = [[prompt + branch for branch in branches] for prompt, branches in rows]
    module = modules("llama")
    with torch.no_grad():
        found = scores(module, trees, as_trees=True)
        together = scores(module, trees, as_trees=False)
        torch.testing.assert_close(found, rows_alone(module, trees), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found, together, atol=1e-5, rtol=1e-5)


def test_what_fills_up_blocks_changes_nothing(modules: Callable[[str], ScoringModule]) -> None:
    module, packed = modules("llama"), pack_trees(TREES)
    real = torch.zeros(packed.prefix_NP.numel() + packed.branch_SC.numel(), dtype=torch.bool)
    real[packed.unpack_T] = True
    prefix_real, branch_real = real.split([packed.prefix_NP.numel(), packed.branch_SC.numel()])
    last = len(packed.ids_T) - 1
    other = packed._replace(
        prefix_NP=packed.prefix_NP.masked_fill(~prefix_real.view_as(packed.prefix_NP), last),
        branch_SC=packed.branch_SC.masked_fill(~branch_real.view_as(packed.branch_SC), last),
    )
    assert not torch.equal(other.branch_SC, packed.branch_SC)
    with torch.no_grad():
        torch.testing.assert_close(module(other), module(packed), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("architecture", ["bloom", "mamba"])
def test_architectures_that_cannot_stay_as_they_were(architecture: str) -> None:
    # Bloom makes its positions of the mask, Mamba has no attention.
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(0)
    body = AutoModel.from_config(AutoConfig.for_model(architecture, **CONFIGS[architecture]))
    before = body.config._attn_implementation
    assert not can_pack_trees(body)
    assert body.config._attn_implementation == before
    assert body.training


def test_a_model_that_mixes_branches_up_is_found_out() -> None:
    # Takes every argument, and lets a token see what stands before it in the packed row.
    module = build("llama")
    body = module.classifier.base_model
    body.set_attn_implementation("sdpa")
    plain = body.forward

    def forward(packed_trees: object = None, attention_mask: Any = None, **inputs: Any) -> Any:
        return plain(**inputs)

    body.forward = forward
    assert not can_pack_trees(body)
    assert body.config._attn_implementation == "sdpa"


def test_attention_that_knows_no_trees_refuses_them() -> None:
    module = build("llama")
    module.classifier.base_model.set_attn_implementation("sdpa")
    with pytest.raises(ModelError, match="LlamaModel is sdpa, which knows no trees"):
        scores(module, TREES, as_trees=True)
    module.try_trees()
    assert module.takes_trees
    assert scores(module, TREES, as_trees=True).shape == (sum(map(len, TREES)),)


def test_an_encoder_takes_no_trees(checkpoint: Callable[[str], Path]) -> None:
    assert not RewardModel.start(checkpoint("bert"), seed=0).module.takes_trees


def test_beyond_a_sliding_window_rows_are_computed(
    modules: Callable[[str], ScoringModule], tokenizer: Any
) -> None:
    module = modules("mistral")
    assert module.longest_in_tree == 8
    short, long = [[5, 6, 7], [5, 6, 8, 9]], [[5] * 12 + [n, 2] for n in range(3)]
    assert module.takes_as_trees(short)
    assert not module.takes_as_trees([*short, *long])
    with torch.no_grad():
        expected = rows_alone(module, [short])
    torch.testing.assert_close(
        scores(module, [short], as_trees=True).detach(), expected, atol=1e-5, rtol=1e-5
    )


def test_the_kernel_is_not_written_into_the_checkpoint(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification

    model = RewardModel.start(checkpoint("llama"), seed=0)
    assert model.module.takes_trees
    model.save(tmp_path / "saved")
    assert "sdpa_trees" not in (tmp_path / "saved" / "config.json").read_text()
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert plain.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_is_close(dtype: torch.dtype) -> None:
    # As weights, and as products under float32 weights.
    module = build("llama").to(dtype)
    with torch.no_grad(), torch.autocast("cpu", enabled=dtype == torch.float32):
        found = scores(module, TREES, as_trees=True)
        expected = rows_alone(module, TREES)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.2, rtol=0.05)
    assert (found - expected).abs().max() > 0


def test_a_step_on_trees_is_the_step_on_rows(checkpoint: Callable[[str], Path]) -> None:
    examples = [
        EncodedRanking(tree, list(range(1, len(tree) + 1))) for tree in (TREES[0], TREES[4])
    ]
    settings = RewardSettings(
        model="m", train=({"path": "rankings.jsonl"},), prompts_per_step=2,
        tokens_per_micro_batch=512, learning_rate=1e-3, bf16=False,
    )  # fmt: skip
    found = []
    for as_trees in (True, False):
        model = RewardModel.start(checkpoint("llama"), seed=0)
        trainer = RankingTrainer(model.module, examples, model.pad_id, settings, seed=0)
        assert trainer.as_trees
        trainer.as_trees = as_trees
        metrics = trainer.step(0)
        found.append((metrics["train/loss"], metrics["train/gradient_norm"]))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_checkpointed_activations_are_computed_on_trees_too(
    checkpoint: Callable[[str], Path],
) -> None:
    found = []
    for checkpointing in (False, True):
        module = RewardModel.start(checkpoint("llama"), seed=0).module
        if checkpointing:
            module.classifier.activation_checkpointing_enable({"use_reentrant": False})
        module.train()
        scores(module, [TREES[0]], as_trees=True).sum().backward()
        found.append(module.classifier.base_model.layers[0].mlp.up_proj.weight.grad)
    torch.testing.assert_close(found[0], found[1])


def test_a_prompt_is_packed_once() -> None:
    # Prefix 5 6, branches 7 and 8 9; then a tree of one sequence.
    packed = pack_trees([[[5, 6, 7], [5, 6, 8, 9]], [[3]]])
    assert packed.ids_T.tolist() == [5, 6, 7, 8, 9, 3]
    assert packed.positions_T.tolist() == [0, 1, 2, 2, 3, 0]
    assert packed.ends_S.tolist() == [2, 4, 5]
    assert packed.tree_S.tolist() == [0, 0, 1]
    assert packed.prefix_NP.shape == (2, 2)
    assert packed.mask_S1CK is not None
    # Two places of the prefix, then two of the branch.
    assert packed.mask_S1CK[:, 0].int().tolist() == [
        [[1, 1, 1, 0], [1, 1, 1, 1]],
        [[1, 1, 1, 0], [1, 1, 1, 1]],
        [[0, 0, 1, 0], [0, 0, 1, 1]],
    ]
    assert pack_trees([[[3]], [[4, 5]]]).mask_S1CK is None


@pytest.mark.parametrize("trees", [TREES, [[[3]], [[4, 5]]]], ids=["prefixes", "none"])
def test_packs_of_few_shapes_give_the_same(
    modules: Callable[[str], ScoringModule], trees: Trees
) -> None:
    module, found = modules("llama"), []
    for few_shapes in (False, True):
        packed = pack_trees(trees, few_shapes=few_shapes)
        module.zero_grad()
        scores_S = module(packed)
        scores_S.square().sum().backward()
        grads = [p.grad.clone() for p in module.parameters() if p.grad is not None]
        found.append([scores_S.detach(), *grads])
    for name in ("ids_T", "positions_T", "unpack_T", "tree_T", "branch_T"):
        assert getattr(packed, name).shape == (64,)
    assert all(blocks.shape[1] % 8 == 0 for blocks in (packed.prefix_NP, packed.branch_SC))
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-5)


def test_shapes_are_few_where_a_processor_computes_in_bf16() -> None:
    def tokens(bf16: bool, device: str) -> int:
        (packed,) = collate(TREES, as_trees=True, pad_id=0, device=device, bf16=bf16)
        return len(packed.ids_T)

    plain = len(pack_trees(TREES).ids_T)
    assert plain % 64
    assert (tokens(True, "cpu"), tokens(False, "cpu"), tokens(True, "meta")) == (64, plain, plain)


@pytest.mark.parametrize(
    ("sequences", "prefix", "tokens"),
    [
        ([[1, 2, 3], [1, 2, 4, 5]], 2, 5),
        ([[1, 2], [1, 2]], 1, 3),
        ([[1, 2], [1, 2, 3], [1, 2, 4]], 1, 6),
        ([[1], [2]], 0, 2),
        ([[1, 2, 3]], 0, 3),
    ],
)
def test_a_tree_holds_its_prefix_once(
    sequences: Sequence[list[int]], prefix: int, tokens: int
) -> None:
    assert shared_prefix(sequences) == prefix
    assert tree_tokens(sequences) == tokens
    assert len(pack_trees([sequences]).ids_T) == tokens


def test_sequences_are_grouped_by_what_they_share() -> None:
    head = [1, 1]  # as a template begins every prompt
    first = [head + [5] * 9 + [n] for n in range(4)]
    second = [head + [6] * 9 + [n] for n in range(2)]
    alone = [[*head, 7, 7, 7], [9]]
    groups = group_by_prefix([second[0], *first, *alone, second[1]])
    assert sorted(map(sorted, groups)) == [[0, 7], [1, 2, 3, 4], [5], [6]]


few = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=8), max_size=14)


@given(few)
def test_grouping_keeps_every_sequence_and_adds_no_token(sequences: list[list[int]]) -> None:
    groups = group_by_prefix(sequences)
    assert sorted(i for group in groups for i in group) == list(range(len(sequences)))
    tokens = sum(tree_tokens([sequences[i] for i in group]) for group in groups)
    assert tokens <= sum(map(len, sequences))


@given(few, st.booleans(), st.integers(1, 30), st.integers(1, 5))
def test_batches_to_score_keep_their_limits(
    sequences: list[list[int]], trees: bool, tokens: int, rows: int
) -> None:
    batches = scoring_batches(sequences, trees=trees, tokens=tokens, rows=rows)
    found = [i for batch in batches for tree in batch for i in tree]
    assert sorted(found) == list(range(len(sequences)))
    for batch in batches:
        members = [[sequences[i] for i in tree] for tree in batch]
        n_rows = sum(map(len, batch))
        assert n_rows <= rows
        padded = n_rows * max(len(ids) for tree in members for ids in tree)
        size = sum(map(tree_tokens, members)) if trees else padded
        assert size <= tokens or n_rows == 1
