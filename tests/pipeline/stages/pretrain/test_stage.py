"""The pretraining stage as a recipe's author sees it: what it leaves, refuses and goes on from."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from data.errors import HandOverError, Interrupted, ModelError, SourceError, TrainingError
from data.storage import sha256
from pipeline.contract.handover import HandOver
from pipeline.contract.settings import SourceSettings
from pipeline.stages.pretrain.settings import PretrainSettings
from pipeline.stages.pretrain.stage import KIND, check, run

TINY = {
    "hidden_size": 16,
    "layers": 1,
    "heads": 2,
    "intermediate_size": 32,
    "context_length": 32,
    "batch_size": 4,
    "learning_rate": 1e-2,
}


@pytest.fixture
def tokenizer(tiny_tokenizer: Callable[..., Any], tmp_path: Path) -> Path:
    """Folder of a saved tokenizer."""
    tiny_tokenizer().save_pretrained(tmp_path / "tok")
    return tmp_path / "tok"


@pytest.fixture
def pretrain(
    make_context: Callable[..., Any], corpus: SourceSettings, tokenizer: Path, tmp_path: Path
) -> Callable[..., Any]:
    """Return a builder of contexts: pretrain("folder", stop_after=None, seed=0, **settings)."""

    def build(
        folder: str = "base", *, stop_after: int | None = None, seed: int = 0, **changes: Any
    ) -> Any:
        values = {"train": [corpus], "tokenizer": str(tokenizer), "steps": 6, **TINY, **changes}
        settings = PretrainSettings(**{k: v for k, v in values.items() if v is not None})
        inputs = {"tokenizer": settings.tokenizer, "model": settings.model}
        return make_context(
            settings,
            {k: v for k, v in inputs.items() if v is not None},
            tmp_path / folder,
            seed=seed,
            stop_after=stop_after,
        )

    return build


def rows(context: Any) -> list[dict[str, Any]]:
    """Return the logged metrics but for times."""
    timed = ("seconds", "train/tokens_per_second")
    lines = context.metrics.path.read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


def weights(context: Any) -> str:
    return sha256(context.folder / "model" / "model.safetensors")


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2", "gpt_neox"])
def test_leaves_a_model_that_loads(pretrain: Callable[..., Any], architecture: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    context = pretrain(architecture=architecture, heldout_share=0.2, steps=3)
    metrics = run(context)
    folder = context.folder / "model"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.model_type == architecture
    assert model.config.vocab_size == len(tokenizer) == 320
    assert tokenizer.chat_template and tokenizer.pad_token != tokenizer.eos_token
    assert model.num_parameters() == metrics["parameters"]
    assert {p.suffix for p in folder.iterdir()} <= {".json", ".safetensors", ".jinja"}
    out = model.generate(**tokenizer("The baker", return_tensors="pt"), max_new_tokens=3)
    assert out.shape[1] > 2
    assert KIND.main_metric in metrics


def test_the_perplexity_starts_at_the_vocabulary_and_falls(pretrain: Callable[..., Any]) -> None:
    context = pretrain(heldout_share=0.2, steps=40, evaluate_every=20, log_every=1)
    metrics: dict[str, Any] = run(context)
    assert rows(context)[0]["train/loss"] == pytest.approx(math.log(320), rel=0.03)
    evaluated = [row for row in rows(context) if "eval/perplexity" in row]
    assert [row["step"] for row in evaluated] == [20, 40]
    assert 60 > evaluated[0]["eval/perplexity"] > evaluated[1]["eval/perplexity"]
    assert metrics["eval/loss"] == evaluated[1]["eval/loss"]
    assert metrics["eval/loss"] == pytest.approx(math.log(metrics["eval/perplexity"]))
    bytes_per_token = metrics["eval/loss"] / math.log(2) / metrics["eval/bits_per_byte"]
    assert 1 < bytes_per_token < 4


@pytest.mark.parametrize("stop_after", [0, 4])
def test_an_interrupted_stage_ends_in_the_same_weights(
    pretrain: Callable[..., Any], stop_after: int
) -> None:
    options = {"heldout_share": 0.2, "steps": 8, "log_every": 3, "evaluate_every": 4}
    whole = pretrain("whole", **options)
    expected = run(whole)
    with pytest.raises(Interrupted):
        run(pretrain("cut", stop_after=stop_after, **options))
    again = pretrain("cut", **options)
    metrics = run(again)
    assert weights(again) == weights(whole)
    assert rows(again) == rows(whole)
    assert {k: v for k, v in metrics.items() if k != "train/tokens_per_second"} == {
        k: v for k, v in expected.items() if k != "train/tokens_per_second"
    }


def test_the_packed_text_is_reused_on_resume(
    pretrain: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Interrupted):
        run(pretrain("cut", stop_after=2))
    monkeypatch.setattr("pipeline.contract.sources.read", lambda *_, **__: pytest.fail("again"))
    assert run(pretrain("cut"))["steps"] == 6


def test_text_packed_in_part_is_packed_again(pretrain: Callable[..., Any]) -> None:
    whole = pretrain("whole")
    run(whole)
    with pytest.raises(Interrupted):
        run(pretrain("cut", stop_after=2))
    shard = pretrain("cut").folder / "work" / "train" / "tokens-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    again = pretrain("cut")
    run(again)
    assert weights(again) == weights(whole)


def test_the_seed_varies_weights_and_order(pretrain: Callable[..., Any]) -> None:
    contexts = [pretrain("a", seed=1), pretrain("b", seed=1), pretrain("c", seed=2)]
    for context in contexts:
        run(context)
    a, b, c = map(weights, contexts)
    assert a == b != c


def test_goes_on_from_a_checkpoint(pretrain: Callable[..., Any]) -> None:
    first = pretrain("first", steps=40)
    run(first)
    shape = dict.fromkeys(("hidden_size", "layers", "heads", "intermediate_size"))
    second = pretrain("second", model=str(first.folder / "model"), tokenizer=None, **shape)
    run(second)
    assert rows(second)[0]["train/loss"] < rows(first)[0]["train/loss"] * 0.7


def test_what_is_held_out_is_not_learned(pretrain: Callable[..., Any]) -> None:
    from transformers import AutoTokenizer

    from data.text.packing import PackedShards

    context = pretrain(heldout_share=0.25, steps=1)
    metrics = run(context)
    assert metrics["train_documents"] + metrics["heldout_documents"] == 80
    tokenizer = AutoTokenizer.from_pretrained(context.folder / "model")
    told = {}
    for part in ("train", "heldout"):
        ids = [i for chunk in PackedShards(context.folder / "work" / part) for i in chunk.ids]
        told[part] = set(tokenizer.decode(ids).split("<|endoftext|>")) - {""}
    assert len(told["heldout"]) == metrics["heldout_documents"] > 5
    assert not told["train"] & told["heldout"]


def test_a_held_out_source_of_its_own(
    pretrain: Callable[..., Any], corpus: SourceSettings, tmp_path: Path
) -> None:
    path = tmp_path / "heldout.txt"
    path.write_text("The bridge is old.\n")
    metrics = run(pretrain(heldout=[SourceSettings(path=str(path))], steps=2))
    assert metrics["heldout_documents"] == 1 and metrics["train_documents"] == 80
    assert metrics["eval/perplexity"] > 1


def test_epochs_and_tokens_give_the_steps(pretrain: Callable[..., Any]) -> None:
    by_tokens = run(pretrain("a", steps=None, tokens=300))
    assert by_tokens["steps"] == 3 and by_tokens["tokens"] == 3 * 4 * 32
    by_epochs = run(pretrain("b", steps=None, epochs=0.5))
    chunks = by_epochs["train_tokens"] // 32
    assert by_epochs["steps"] == math.ceil(chunks / 2 / 4)


@pytest.mark.parametrize("option", ["gradient_checkpointing", "attend_across_documents"])
def test_options_that_change_the_step(pretrain: Callable[..., Any], option: str) -> None:
    plain, changed = pretrain("a"), pretrain("b", **{option: option == "gradient_checkpointing"})
    expected, metrics = run(plain), run(changed)
    same = metrics["train/loss"] == pytest.approx(expected["train/loss"], rel=1e-5)
    assert same == (option == "gradient_checkpointing")


def test_nan_stops_the_stage_and_keeps_the_last_state(
    pretrain: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.training.language_model import LmTrainer

    whole = pretrain("whole", steps=6, save_every=2)
    run(whole)
    honest = LmTrainer._backward

    def spoiled(self: LmTrainer, batch: Any, tokens: float) -> float:
        nats = honest(self, batch, tokens)
        steps = self.optimizer.optimizer.state[self.parameters[0]].get("step", torch.tensor(0))
        return nats * float("nan") if int(steps) == 4 else nats

    monkeypatch.setattr(LmTrainer, "_backward", spoiled)
    context = pretrain("cut", steps=6, save_every=2)
    with pytest.raises(TrainingError, match="loss became nan at step 5"):
        run(context)
    found = context.resume.latest()
    assert found is not None and found[0] == 4
    monkeypatch.setattr(LmTrainer, "_backward", honest)
    again = pretrain("cut", steps=6, save_every=2)
    run(again)
    assert weights(again) == weights(whole)


def test_text_that_fills_no_chunk_is_refused(pretrain: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("Ada.\n")
    with pytest.raises(SourceError, match=r"stage pretrain: train: .* fills no context of 32"):
        run(pretrain(train=[SourceSettings(path=str(path))]))


def test_bf16_without_hardware_is_refused(
    pretrain: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.models.load.bf16_supported", lambda device="cpu": False)
    with pytest.raises(ModelError, match=r"bf16: true, but .* has no bf16"):
        run(pretrain(bf16=True))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"epochs": 1.0}, "steps and epochs contradict"),
        ({"heads": 3}, "hidden_size 16 is no multiple of heads 3"),
        ({"kv_heads": 3}, "heads 2 is no multiple of kv_heads 3"),
        ({"hidden_size": 18, "heads": 6}, "rotary"),
        ({"tokenizer": None}, "needs a `tokenizer`"),
        ({"model": "./x"}, "is for a model from scratch"),
        ({"train": []}, "train"),
        ({"learning_rate": "fast"}, "learning_rate"),
        ({"heldout_share": 1.0}, "heldout_share"),
    ],
)
def test_settings_that_make_no_sense(
    corpus: SourceSettings, changes: dict[str, Any], told: str
) -> None:
    values = {"train": [corpus], "tokenizer": "tok", "steps": 6, **TINY, **changes}
    with pytest.raises(ValidationError, match=told):
        PretrainSettings(**values)


def test_numbers_as_yaml_writes_them(corpus: SourceSettings) -> None:
    settings = PretrainSettings(train=[corpus], tokenizer="tok", learning_rate="3e-4")
    assert settings.learning_rate == 3e-4
    assert settings.feed_forward_size == 688  # 8/3 of 256 is 682.7


class TestHandOver:
    def _check(self, settings: PretrainSettings) -> None:
        check(settings, HandOver("base", {"base": settings}, lambda _: None))

    def test_a_context_longer_than_the_checkpoints(
        self, save_policy: Callable[..., Path], tiny_tokenizer: Callable[..., Any], corpus: Any
    ) -> None:
        model = save_policy(tiny_tokenizer(), context=64)
        self._check(PretrainSettings(train=[corpus], model=str(model), context_length=64))
        with pytest.raises(HandOverError, match=r"context_length is 65 tokens.* holds 64"):
            self._check(PretrainSettings(train=[corpus], model=str(model), context_length=65))

    def test_a_tokenizer_larger_than_the_embedding(
        self, save_policy: Callable[..., Path], tiny_tokenizer: Callable[..., Any],
        tokenizer: Path, corpus: Any,
    ) -> None:  # fmt: skip
        model = save_policy(tiny_tokenizer(vocab_size=300))
        settings = PretrainSettings(
            train=[corpus], model=str(model), tokenizer=str(tokenizer), context_length=32
        )
        with pytest.raises(HandOverError, match=r"has 320 tokens, .* embedding of 300"):
            self._check(settings)

    def test_a_pad_token_that_ends_sequences(
        self, tiny_tokenizer: Callable[..., Any], tmp_path: Path, corpus: Any
    ) -> None:
        spoiled = tiny_tokenizer()
        spoiled.pad_token = spoiled.eos_token
        spoiled.save_pretrained(tmp_path / "spoiled")
        with pytest.raises(HandOverError, match="they must differ"):
            self._check(PretrainSettings(train=[corpus], tokenizer=str(tmp_path / "spoiled")))
