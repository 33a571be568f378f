"""Language-model training: the order of chunks, targets, and the gradient of a step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.errors import ModelError, RecipeError, TrainingError
from data.sources.split import is_heldout_text
from data.text.packing import PackedShards, write_shards
from pipeline.training.accelerator import TrainingAccelerator
from pipeline.training.corpus import ChunkOrder, chunk_batch
from pipeline.training.language_model import LmTrainer
from pipeline.training.objectives.causal import (
    Documents,
    document_inputs,
    next_token_batch,
    next_token_logits,
    summed_loss,
)
from pipeline.training.objectives.rows import IGNORED
from pipeline.training.settings import LmSettings


def test_total_steps_by_hand() -> None:
    def steps(**length: Any) -> int:
        size: dict[str, Any] = {"context_length": 8, "batch_size": 4, "learning_rate": 1e-3}
        return LmSettings(kind="lm", **size, **length).total_steps(chunks=10)

    assert steps(steps=7) == 7
    assert steps() == 3
    assert steps(epochs=0.1) == 1
    assert steps(tokens=65) == 3


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**32))
def test_every_epoch_is_a_permutation_whatever_is_asked_first(
    chunks: int, size: int, seed: int
) -> None:
    order = ChunkOrder(chunks, seed=seed)
    places = [order[place] for place in range(3 * chunks)]
    for epoch in range(3):
        assert sorted(places[epoch * chunks : (epoch + 1) * chunks]) == list(range(chunks))
    step = 3 * chunks // size - 1
    if step >= 0:  # a resumed run asks for a late batch first
        again = ChunkOrder(chunks, seed=seed).batch(step, size)
        assert again == places[step * size : (step + 1) * size]


def test_epochs_and_seeds_differ() -> None:
    first = ChunkOrder(100, seed=1)
    assert first.batch(0, 100) != first.batch(1, 100)
    assert first.batch(0, 100) != ChunkOrder(100, seed=2).batch(0, 100)


def test_a_share_is_held_out_by_content() -> None:
    texts = [f"text {i}" for i in range(2000)]
    chosen = [text for text in texts if is_heldout_text(text, share=0.1)]
    assert 130 < len(chosen) < 270
    assert not any(is_heldout_text(text, share=0.0) for text in texts)
    assert all(is_heldout_text(text, share=0.2) for text in chosen)


def test_targets_by_hand() -> None:
    tokens = torch.tensor([[5, 6, 7, 8]])
    assert next_token_batch(tokens).targets_BT.tolist() == [[6, 7, 8, IGNORED]]
    apart = next_token_batch(tokens, torch.tensor([[0, 0, 1, 1]]))
    assert apart.targets_BT.tolist() == [[6, IGNORED, 8, IGNORED]]
    assert apart.predicted() == 2


def test_document_mask_by_hand() -> None:
    numbers = torch.tensor([[3, 3, 4, 4, 4]])
    inputs = document_inputs(numbers, Documents("boolean"))
    assert inputs["position_ids"].tolist() == [[0, 1, 0, 1, 2]]
    assert inputs["attention_mask"][0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 1],
    ]
    assert set(document_inputs(numbers, Documents())) == {"position_ids"}
    added = document_inputs(numbers, Documents("additive"), torch.bfloat16)["attention_mask"]
    assert added.dtype == torch.bfloat16
    assert (
        added[0, 0, 2].tolist()
        == [torch.finfo(torch.bfloat16).min] * 2 + [0] + [torch.finfo(torch.bfloat16).min] * 2
    )
    layers = document_inputs(numbers, Documents("layers", window=2))["attention_mask"]
    assert (layers["full_attention"][0, 0, 4] == 0).tolist() == [False, False, True, True, True]
    assert (layers["sliding_attention"][0, 0, 4] == 0).tolist() == [False] * 3 + [True] * 2


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2", "gpt_neox"])
def test_a_document_does_not_see_its_neighbours(
    architecture: Any, tiny_tokenizer: Callable[..., Any]
) -> None:
    from pipeline.models.architectures import Shape, build_policy

    shape = Shape(16, 2, 2, 2, 32, 32)
    model = build_policy(architecture, shape, tiny_tokenizer(), seed=0).eval()
    document = torch.randint(7, 300, (1, 8))
    before, after = torch.randint(7, 300, (2, 1, 5))
    chunk = torch.cat([before, document, after], dim=1)
    numbers = torch.tensor([[0] * 5 + [1] * 8 + [2] * 5])
    with torch.no_grad():
        alone = next_token_logits(model, next_token_batch(document))
        packed = next_token_logits(model, next_token_batch(chunk, numbers))
        mixed = next_token_logits(model, next_token_batch(chunk))
    torch.testing.assert_close(packed[:, 5:13], alone, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(mixed[:, 5:13], alone, atol=1e-3)


@pytest.fixture
def shards(tmp_path: Path) -> PackedShards:
    """24 chunks of 16 tokens, documents of 5 tokens and a separator."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(7, 300, (70, 5), generator=generator).tolist()
    return write_shards(
        tmp_path / "shards",
        rows,
        context_length=16,
        vocabulary_size=320,
        separator_id=2,
        token_bytes=[3] * 320,
    )


@pytest.fixture
def make_trainer(
    shards: PackedShards, tiny_tokenizer: Callable[..., Any], tiny_policy: Callable[..., Any]
) -> Callable[..., LmTrainer]:
    """Return a builder of trainers of a tiny model: make_trainer(**hyperparameters)."""

    def build(**changes: Any) -> LmTrainer:
        values: dict[str, Any] = {
            "steps": 6,
            "batch_size": 4,
            "learning_rate": 1e-2,
            "warmup_share": 0.0,
            "weight_decay": 0.1,
            "bf16": False,
        }
        settings = LmSettings(kind="lm", **(values | changes))
        model = tiny_policy(tiny_tokenizer(), seed=1)
        return LmTrainer(model, shards, settings, seed=3, heldout=shards)

    return build


def test_an_architecture_that_mixes_documents_is_refused(shards: PackedShards) -> None:
    from transformers import BloomConfig, BloomForCausalLM

    torch.manual_seed(0)
    model = BloomForCausalLM(BloomConfig(vocab_size=320, hidden_size=16, n_layer=2, n_head=2))
    settings = LmSettings(kind="lm", steps=1, batch_size=1, learning_rate=1e-3)
    LmTrainer(model, shards, settings, seed=0)
    apart = settings.model_copy(update={"attend_across_documents": False})
    with pytest.raises(ModelError, match=r"BloomForCausalLM .* attend_across_documents: true"):
        LmTrainer(model, shards, apart, seed=0)


def test_chunks_hold_whole_documents_and_separators(shards: PackedShards) -> None:
    batch = chunk_batch([shards[0], shards[1]], apart=Documents())
    assert batch.tokens_BT[0, 5] == 2 and batch.tokens_BT[0, 11] == 2  # after 5 tokens each
    # 6 + 6 + 4 tokens, then 2 + 6 + 6 + 2: the first of each later document is not predicted.
    assert batch.predicted() == (15 - 2) + (15 - 3)
    assert chunk_batch([shards[0]], apart=None).predicted() == 15


def test_a_short_chunk_is_filled_up_and_not_predicted(tmp_path: Path) -> None:
    short = write_shards(
        tmp_path / "s", [[7, 8, 9, 10, 11, 12]], context_length=4, vocabulary_size=20,
        keep_tail=True,
    )  # fmt: skip
    batch = chunk_batch([short[0], short[1]], apart=None)
    assert batch.tokens_BT.tolist() == [[7, 8, 9, 10], [11, 12, 0, 0]]
    assert batch.targets_BT.tolist() == [[8, 9, 10, IGNORED], [12, IGNORED, IGNORED, IGNORED]]


def test_adafactor_steps_in_shares_of_a_matrix(make_trainer: Callable[..., LmTrainer]) -> None:
    trainer = make_trainer(optimizer="adafactor", learning_rate=1e-2, weight_decay=0.0)
    with torch.no_grad():
        trainer.model.get_output_embeddings().weight.mul_(20)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.step(0)
    for name, p in trainer.model.named_parameters():
        if p.ndim > 1:
            old, new = before[name], p.detach()
            moved = (new - old).square().mean().sqrt() / old.square().mean().sqrt()
            # The step's own size is clipped at 1, and is less where a matrix has unused rows.
            assert 1e-3 < float(moved) <= 1.01e-2, name


def test_adafactor_refuses_sharded_weights(
    make_trainer: Callable[..., LmTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainingAccelerator, "sharded", property(lambda _: True))
    with pytest.raises(RecipeError, match=r"launch.config shards weights; set optimizer: adamw"):
        make_trainer(optimizer="adafactor")


@pytest.mark.parametrize("attend", [True, False])
def test_micro_batches_do_not_change_the_step(
    make_trainer: Callable[..., LmTrainer], attend: bool
) -> None:
    whole = make_trainer(attend_across_documents=attend)
    parts = make_trainer(attend_across_documents=attend, micro_batch_size=1)
    uneven = make_trainer(attend_across_documents=attend, micro_batch_size=3)
    for number in range(3):
        expected = whole.step(number)
        for other in (parts, uneven):
            assert other.step(number) == pytest.approx(expected, rel=1e-4)
    for other in (parts, uneven):
        for a, b in zip(whole.model.parameters(), other.model.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_a_step_without_a_number_leaves_the_weights(
    make_trainer: Callable[..., LmTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer()
    trainer.step(0)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    monkeypatch.setattr(
        "pipeline.training.language_model.summed_loss", lambda *a: summed_loss(*a) * float("nan")
    )
    with pytest.raises(TrainingError, match="loss became nan at step 2"):
        trainer.step(1)
    for old, new in zip(before, trainer.model.parameters(), strict=True):
        assert torch.equal(old, new)


def test_state_goes_on_bit_for_bit(make_trainer: Callable[..., LmTrainer], tmp_path: Path) -> None:
    straight, cut = make_trainer(), make_trainer()
    expected = [straight.step(number) for number in range(6)]
    for number in range(3):
        cut.step(number)
    cut.save(tmp_path, {"note": 5})
    assert {p.suffix for p in tmp_path.glob("*.*")} == {".safetensors", ".pt"}
    resumed = make_trainer()
    assert resumed.load(tmp_path) == {"note": 5}
    assert [resumed.step(number) for number in range(3, 6)] == expected[3:]
    for a, b in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_batch_that_cannot_be_shared_is_refused(
    make_trainer: Callable[..., LmTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import Accelerator

    monkeypatch.setattr(Accelerator, "num_processes", 3)
    with pytest.raises(RecipeError, match="batch_size 4 can't be shared by 3 processes"):
        make_trainer()
