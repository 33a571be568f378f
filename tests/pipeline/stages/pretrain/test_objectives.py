"""Pretraining by other objectives: what it leaves, learns, refuses and goes on from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from data.errors import HandOverError, Interrupted, ModelError
from data.storage import sha256
from pipeline.contract.handover import HandOver
from pipeline.contract.settings import SourceSettings
from pipeline.stages.pretrain.settings import PretrainSettings
from pipeline.stages.pretrain.stage import check, run
from pipeline.stages.sft.settings import SftSettings
from pipeline.stages.sft.stage import check as check_sft
from pipeline.stages.tokenizer.settings import TokenizerSettings

WORDS = ("baker", "miller", "teacher", "river", "mill", "bread", "bridge", "school")
TINY = {
    "hidden_size": 16,
    "layers": 1,
    "heads": 2,
    "intermediate_size": 32,
    "context_length": 32,
    "batch_size": 4,
    "learning_rate": 1e-2,
}
LEARNERS = {
    "bert": ("masked", "AutoModelForMaskedLM"),
    "roberta": ("masked", "AutoModelForMaskedLM"),
    "albert": ("masked", "AutoModelForMaskedLM"),
    "t5": ("span_corruption", "AutoModelForSeq2SeqLM"),
    "bart": ("denoising", "AutoModelForSeq2SeqLM"),
}


@pytest.fixture
def make_tokenizer(corpus: SourceSettings, tmp_path: Path) -> Callable[..., Path]:
    """Return a builder of tokenizers that are saved: make_tokenizer("masked")."""
    from data.text.objectives.special_tokens import equip, special_tokens
    from data.text.tokenizer import train_tokenizer

    def build(objective: Any) -> Path:
        lines = Path(str(corpus.path)).read_text().splitlines()
        texts = [json.loads(line)["text"] for line in lines]
        tokenizer = train_tokenizer(
            texts, vocabulary_size=420, special_tokens=special_tokens(objective)
        )
        equip(tokenizer, objective)
        tokenizer.save_pretrained(tmp_path / f"tokenizer-{objective}")
        return tmp_path / f"tokenizer-{objective}"

    return build


@pytest.fixture
def pretrain(
    make_context: Callable[..., Any],
    corpus: SourceSettings,
    make_tokenizer: Callable[..., Path],
    tmp_path: Path,
) -> Callable[..., Any]:
    """Return a builder of contexts: pretrain("bert", "folder", stop_after=None, **settings)."""

    def build(
        architecture: str, folder: str = "base", *, stop_after: int | None = None,
        from_scratch: bool = True, **changes: Any,
    ) -> Any:  # fmt: skip
        objective, _ = LEARNERS[architecture]
        values = {
            "train": [corpus], "tokenizer": str(make_tokenizer(objective)), "steps": 6,
            "objective": objective, "architecture": architecture if from_scratch else None,
            "heldout_share": 0.2, "bf16": False, **TINY, **changes,
        }  # fmt: skip
        settings = PretrainSettings(**{k: v for k, v in values.items() if v is not None})
        inputs = {"tokenizer": settings.tokenizer, "model": settings.model}
        inputs = {k: v for k, v in inputs.items() if v is not None}
        return make_context(settings, inputs, tmp_path / folder, stop_after=stop_after)

    return build


def weights(context: Any) -> str:
    return sha256(context.folder / "model" / "model.safetensors")


@pytest.mark.parametrize("architecture", LEARNERS)
def test_leaves_a_model_that_loads_whole_in_plain_transformers(
    pretrain: Callable[..., Any], architecture: str
) -> None:
    import transformers

    context = pretrain(architecture, steps=2)
    metrics = run(context)
    folder = context.folder / "model"
    auto = getattr(transformers, LEARNERS[architecture][1])
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.config.model_type == architecture
    assert model.num_parameters() == metrics["parameters"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if LEARNERS[architecture][0] == "masked":
        filled = transformers.pipeline("fill-mask", model=model, tokenizer=tokenizer)
        assert len(filled(f"The {tokenizer.mask_token} is by the mill.")) == 5
        return
    out = model.generate(**tokenizer("The baker", return_tensors="pt"), max_new_tokens=4)
    assert out.shape[1] > 2
    if architecture == "bart":  # as its targets begin
        assert out[0, :2].tolist() == [tokenizer.eos_token_id, tokenizer.bos_token_id]


@pytest.mark.parametrize(
    "architecture",
    [
        *(pytest.param(name, marks=pytest.mark.slow) for name in LEARNERS if name != "t5"),
        "t5",
    ],
)
def test_learns_more_than_frequencies(
    pretrain: Callable[..., Any], architecture: str, tmp_path: Path
) -> None:
    # A word tells the next one. An encoder, of which a step asks so few words, takes some 500
    # steps until it looks at a word's neighbours.
    texts = [" ".join((WORDS * 3)[i % 8 : i % 8 + 4 + i // 8 % 10]) for i in range(1600)]
    path = tmp_path / "circle.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options: dict[str, Any] = {"hidden_size": 32, "layers": 2, "batch_size": 8, "steps": 150}
    if LEARNERS[architecture][0] == "masked":
        options = {"hidden_size": 32, "intermediate_size": 64, "heads": 1, "batch_size": 16}
        options |= {"steps": 1200, "learning_rate": 3e-3, "initializer_range": 0.1}
    options |= {"train": [SourceSettings(path=str(path))], "heldout_share": 0.05}
    metrics = run(pretrain(architecture, **options))
    assert metrics["eval/loss"] < 0.85 * metrics["eval/unigram_loss"]
    assert metrics["eval/accuracy"] > metrics["eval/unigram_accuracy"] + 0.2
    assert metrics["eval/accuracy"] > metrics["eval/copy_accuracy"] + 0.05
    assert metrics["eval/loss"] < metrics["eval/copy_loss"] < metrics["eval/unigram_loss"]


@pytest.mark.parametrize(
    ("architecture", "optimizer"),
    [
        ("bert", "adamw"),
        ("t5", "adafactor"),
        pytest.param("bart", "adamw", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_stage_ends_in_the_same_weights(
    pretrain: Callable[..., Any], architecture: str, optimizer: str
) -> None:
    options: dict[str, Any] = {"log_every": 3, "evaluate_every": 4, "optimizer": optimizer}
    options["steps"] = 30  # more than an epoch
    whole = pretrain(architecture, "whole", **options)
    expected = run(whole)
    with pytest.raises(Interrupted):
        run(pretrain(architecture, "cut", stop_after=16, **options))
    again = pretrain(architecture, "cut", **options)
    metrics = run(again)
    assert weights(again) == weights(whole)
    timed = "train/tokens_per_second"
    assert {k: v for k, v in metrics.items() if k != timed} == {
        k: v for k, v in expected.items() if k != timed
    }


@pytest.mark.parametrize("architecture", ["bert", "albert", "t5", "bart"])
def test_micro_batches_change_nothing_but_rounding(
    pretrain: Callable[..., Any], architecture: str
) -> None:
    # Rows of unlike numbers of hidden tokens, some shorter: a mean of means would differ.
    pair = (
        {"masking": {"next_sentence": True, "whole_words": True}} if architecture == "bert" else {}
    )
    whole = run(pretrain(architecture, "whole", steps=1, **pair))
    parts = run(pretrain(architecture, "parts", steps=1, micro_batch_size=1, **pair))
    for name in ("train/loss", "train/gradient_norm"):
        assert parts[name] == pytest.approx(whole[name], rel=1e-5)
    assert parts["eval/loss"] == pytest.approx(whole["eval/loss"], rel=2e-3)


@pytest.mark.parametrize("architecture", ["bert", "t5", "bart"])
def test_the_loss_of_micro_batches_is_that_of_plain_transformers_on_the_whole_batch(
    pretrain: Callable[..., Any], architecture: str
) -> None:
    # Trainer, which counts no tokens for these classes, adds up the means of its micro-batches.
    import transformers

    from data.text.packing import PackedShards
    from pipeline.stages.pretrain.stage import _model, _objective
    from pipeline.training.corpus import ChunkOrder
    from pipeline.training.objectives.rows import Row

    context = pretrain(architecture, steps=1, micro_batch_size=1, save_every=0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(context.input("tokenizer"))
    model = _model(context, tokenizer)
    asks = _objective(context, model, tokenizer)
    told = run(context)
    shards = PackedShards(context.folder / "work" / "train")
    order = ChunkOrder(len(shards), seed=0).batch(0, 4)
    batch = asks.batch([Row(shards, number, 0) for number in order])
    inputs = {"input_ids": batch.tokens_BT, "labels": batch.targets_BT}
    with torch.no_grad():
        whole = float(model(**inputs, attention_mask=batch.seen_BT).loss)
    assert told["train/loss"] == pytest.approx(whole, rel=1e-5)


def test_goes_on_from_a_checkpoint(pretrain: Callable[..., Any]) -> None:
    first = pretrain("bert", "first", steps=6)
    before = run(first)
    shape = dict.fromkeys(("hidden_size", "layers", "heads", "intermediate_size"))
    model = str(first.folder / "model")
    options = {"model": model, "tokenizer": None, "steps": 1, "learning_rate": 1e-9, **shape}
    context = pretrain("bert", "second", from_scratch=False, **options)
    assert run(context)["eval/loss"] == pytest.approx(before["eval/loss"], rel=1e-4)


def test_pairs_of_sentences_are_learned_with_a_head_of_their_own(
    pretrain: Callable[..., Any],
) -> None:
    from transformers import AutoModelForMaskedLM, BertForPreTraining

    context = pretrain("bert", steps=5, masking={"next_sentence": True})
    metrics = run(context)
    assert 0 <= metrics["eval/next_sentence_accuracy"] <= 1
    folder = context.folder / "model"
    assert not BertForPreTraining.from_pretrained(folder, output_loading_info=True)[1][
        "missing_keys"
    ]
    model, info = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and model.config.type_vocab_size == 2
    with pytest.raises(ModelError, match="a RobertaForMaskedLM, which has no head for pairs"):
        run(pretrain("roberta", "other", masking={"next_sentence": True}))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"objective": "masked"}, "architecture llama is not for objective masked; take bert or"),
        ({"objective": "causal", "architecture": "bert"}, "not for objective causal; take llama"),
        ({"noise": {"mask": 0.1}}, "`noise` is for objective denoising, not causal"),
        ({"objective": "masked", "architecture": "bert", "compile": True}, "compile: true"),
        ({"objective": "masked", "architecture": "bert", "context_length": 4}, "too short"),
        ({"objective": "denoising", "attend_across_documents": False}, "for objective causal"),
        (
            {"objective": "span_corruption", "architecture": "t5", "initializer_range": 0.1},
            "not for t5",
        ),
        ({"optimizer": "adafactor", "betas": [0.9, 0.99]}, "`betas` is AdamW's"),
    ],
)
def test_settings_that_make_no_sense(
    corpus: SourceSettings, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValidationError, match=told):
        PretrainSettings(**{"train": [corpus], "tokenizer": "tok", "steps": 6, **TINY, **changes})


def test_keys_of_causal_stages_hold_nothing_new(corpus: SourceSettings) -> None:
    plain = PretrainSettings(train=[corpus], tokenizer="tok")
    assert not {"objective", "masking", "spans", "noise"} & set(plain.key_settings())
    assert "objective" not in TokenizerSettings(train=[corpus]).key_settings()
    masked = PretrainSettings(
        train=[corpus], tokenizer="tok", objective="masked", architecture="bert"
    )
    assert masked.key_settings()["masking"]["share"] == 0.15
    assert "noise" not in masked.key_settings()
    assert "optimizer" not in masked.key_settings() and "betas" in masked.key_settings()
    relative = PretrainSettings(train=[corpus], tokenizer="tok", optimizer="adafactor")
    assert relative.key_settings()["optimizer"] == "adafactor"
    assert not {"betas", "epsilon"} & set(relative.key_settings())


class TestFit:
    def _hand(self, name: str, **stages: Any) -> HandOver:
        return HandOver(name, stages, lambda _: None)

    def test_a_tokenizer_made_for_another_objective(self, corpus: SourceSettings) -> None:
        base = PretrainSettings(
            train=[corpus], tokenizer="tok", objective="masked", architecture="bert"
        )
        for made_for in ("causal", "span_corruption"):
            tok = TokenizerSettings(train=[corpus], objective=made_for)
            with pytest.raises(HandOverError, match=f"tok is for {made_for}; set `objective: mask"):
                check(base, self._hand("base", tok=tok, base=base))
        tok = TokenizerSettings(train=[corpus], objective="denoising")
        check(base, self._hand("base", tok=tok, base=base))

    def test_a_tokenizer_of_a_folder_that_lacks_a_mask(
        self, pretrain: Callable[..., Any], make_tokenizer: Callable[..., Path]
    ) -> None:
        with pytest.raises(ModelError, match="has no mask token; make or adopt one in a tokenizer"):
            run(pretrain("bert", tokenizer=str(make_tokenizer("causal"))))
        with pytest.raises(ModelError, match=r"has 0 sentinels .* a row 3"):
            run(pretrain("t5", tokenizer=str(make_tokenizer("causal"))))

    def test_stages_that_need_a_writer_refuse_it(
        self, pretrain: Callable[..., Any], corpus: SourceSettings
    ) -> None:
        from pipeline.models.load import load_policy

        context = pretrain("bert", steps=1)
        run(context)
        folder = context.folder / "model"
        sft = SftSettings(model=str(folder), train=[corpus])
        with pytest.raises(HandOverError, match="starts from a language model that writes"):
            check_sft(sft, self._hand("sft", sft=sft))
        with pytest.raises(ModelError, match="a text; name a causal language model"):
            load_policy(folder)
        not_yet = SftSettings(model="base", train=[corpus])
        with pytest.raises(HandOverError, match=r"base learns by objective .*; fine-tuning starts"):
            check_sft(not_yet, self._hand("sft", sft=not_yet, base=context.settings))

    def test_a_causal_model_is_no_encoder(
        self, pretrain: Callable[..., Any], save_policy: Callable[..., Path],
        make_tokenizer: Callable[..., Path], corpus: SourceSettings,
    ) -> None:  # fmt: skip
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(make_tokenizer("masked"))
        llama = str(save_policy(tokenizer))
        base = PretrainSettings(train=[corpus], model=llama, objective="masked", context_length=32)
        with pytest.raises(
            HandOverError, match="llama, for which transformers has no AutoModelForM"
        ):
            check(base, self._hand("base", base=base))
        bart = PretrainSettings(**{**dict(base), "objective": "denoising"})
        with pytest.raises(HandOverError, match="learned by an encoder-decoder; name one"):
            check(bart, self._hand("base", base=bart))


@pytest.mark.parametrize(
    "model_type", ["bert", "roberta", "albert", "distilbert", "electra", "modernbert", "deberta-v2"]
)
def test_logits_of_hidden_places_alone_are_those_of_all(model_type: str) -> None:
    from transformers import AutoConfig, AutoModelForMaskedLM

    from pipeline.training.objectives.masked import picks_places, require_encoder

    names = (
        {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
        if model_type == "distilbert"
        else {
            "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 32,
        }
    )  # fmt: skip
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        model_type, vocab_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        cls_token_id=1, sep_token_id=2, max_position_embeddings=40, **names,
    )  # fmt: skip
    model = AutoModelForMaskedLM.from_config(config)
    require_encoder(model, model_type)
    assert picks_places(model)
