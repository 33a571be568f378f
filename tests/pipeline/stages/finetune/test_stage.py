"""Fine-tuning with a head: what it leaves, learns and refuses, and how it goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from data.errors import HandOverError, Interrupted, ModelError, SourceError
from data.storage import sha256
from pipeline.contract.handover import HandOver
from pipeline.stages.finetune.settings import FinetuneSettings
from pipeline.stages.finetune.stage import check, run

AUTO = {
    "classify": "AutoModelForSequenceClassification",
    "span": "AutoModelForQuestionAnswering",
    "tag": "AutoModelForTokenClassification",
}


def weights(context: Any) -> str:
    return sha256(context.folder / "model" / "model.safetensors")


def said(context: Any) -> list[dict[str, Any]]:
    lines = (context.folder / "heldout.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("head", "model"),
    [
        *((head, "bert") for head in AUTO),
        ("span", "roberta"),  # no embedding for the second of two texts
        ("classify", "llama"),  # its head reads the last token that is no padding
        ("tag", "llama"),
        ("classify", "bart"),
    ],
)
def test_leaves_a_model_that_plain_transformers_loads_with_its_head(
    finetune: Callable[..., Any], head: str, model: str
) -> None:
    import transformers

    context = finetune(head, model=model, epochs=1)
    metrics = run(context)
    folder = context.folder / "model"
    plain, info = getattr(transformers, AUTO[head]).from_pretrained(
        folder, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = said(context)
    assert len(rows) == metrics["n_heldout"] > 3
    for row in rows[:4]:
        texts = [row["question"], row["context"]] if head == "span" else [row["text"]]
        with torch.no_grad():
            output = plain.eval()(**tokenizer(*texts, return_tensors="pt"))
        if head == "classify":
            assert plain.config.id2label[int(output.logits[0].argmax())] == row["said"]["label"]
            shares = output.logits[0].softmax(-1)
            assert float(shares.max()) == pytest.approx(row["said"]["probability"], abs=1e-4)
        elif head == "span":
            likely = [output.start_logits[0].log_softmax(0), output.end_logits[0].log_softmax(0)]
            best = max(float(likely[0][i] + likely[1][i:].max()) for i in range(len(likely[0])))
            assert row["said"]["log_probability"] <= best + 1e-4  # at some place of the context
            assert row["context"][row["said"]["start"] :].startswith(row["said"]["answer"])
    if head == "tag":
        assert list(plain.config.id2label.values()) == [
            "O", "B-person", "I-person", "B-place", "I-place",
        ]  # fmt: skip


@pytest.mark.parametrize("head", AUTO)
def test_learns_and_tells_it_with_an_interval(finetune: Callable[..., Any], head: str) -> None:
    context = finetune(head, epochs=25 if head == "classify" else 12, evaluate_every=0)
    metrics = run(context)
    # Names to tag are all among those to learn, which a list of words knows as well.
    assert metrics["eval/f1"] > 0.8 and metrics["eval/f1"] >= metrics["eval/floor_f1"]
    quality = json.loads((context.folder / "quality.json").read_text())
    low, high = quality["figures"]["f1"]["ci95"]
    assert low <= metrics["eval/f1"] <= high
    assert quality["figures"]["f1_over_floor"]["value"] == pytest.approx(
        metrics["eval/f1"] - metrics["eval/floor_f1"]
    )
    right = {
        "classify": lambda row: row["label"] == row["said"]["label"],
        "span": lambda row: row["answers"][0][1] == row["said"]["answer"],
        "tag": lambda row: row["spans"] == row["said"]["spans"],
    }[head]
    share = sum(map(right, said(context))) / len(said(context))
    named = {"classify": "eval/accuracy", "span": "eval/exact_match"}
    if head in named:  # counted again from the rows
        assert share == pytest.approx(metrics[named[head]])


@pytest.mark.parametrize("head", ["span", "tag"])
def test_an_interrupted_stage_ends_in_the_same_weights(
    finetune: Callable[..., Any], head: str
) -> None:
    options = {"epochs": 3, "log_every": 3, "evaluate_every": 4}
    whole = finetune(head, "whole", **options)
    expected = run(whole)
    with pytest.raises(Interrupted):
        run(finetune(head, "cut", stop_after=7, **options))
    again = finetune(head, "cut", **options)
    metrics = run(again)
    assert weights(again) == weights(whole)
    timed = "train/tokens_per_second"
    assert {**metrics, timed: 0} == {**expected, timed: 0}


@pytest.mark.parametrize("head", AUTO)
def test_micro_batches_change_nothing_but_rounding(finetune: Callable[..., Any], head: str) -> None:
    options = {"epochs": 0.1, "batch_size": 7}  # a step of rows of unlike numbers of words
    whole = run(finetune(head, "whole", **options))
    parts = run(finetune(head, "parts", micro_batch_size=2, **options))
    for name in ("train/loss", "train/gradient_norm"):
        assert parts[name] == pytest.approx(whole[name], rel=1e-5)


def test_goes_on_from_its_head_where_the_classes_are_the_same(
    finetune: Callable[..., Any],
) -> None:
    first = finetune("classify", "first", epochs=20)
    before = run(first)
    still = {"model": first.folder / "model", "epochs": 0.1, "learning_rate": 1e-9}
    assert run(finetune("classify", "second", **still))["eval/f1"] == before["eval/f1"]
    from pipeline.models.load import load_with_head

    names = ("AutoModelForSequenceClassification", ["a", "b"])
    model, kept = load_with_head(first.folder / "model", *names, seed=0)
    again, _ = load_with_head(first.folder / "model", *names, seed=0)
    old, same = load_with_head(first.folder / "model", names[0], ["dry", "wet"], seed=0)
    assert same and not kept and model.config.id2label == {0: "a", 1: "b"}
    assert torch.equal(model.classifier.weight, again.classifier.weight)
    assert not torch.equal(model.classifier.weight, old.classifier.weight)


class TestRefusals:
    def _check(self, settings: FinetuneSettings) -> None:
        check(settings, HandOver("ft", {"ft": settings}, lambda _: None))

    @pytest.mark.parametrize(
        ("head", "rows", "told"),
        [
            ("classify", [{"text": f"a {n}", "label": 1} for n in range(20)], "have the label 1; "),
            ("tag", [{"text": f"a {n}", "spans": []} for n in range(20)], "no row to learn has an"),
            (
                "classify",
                [{"text": f"long {n} {'word ' * 200}", "label": n % 2} for n in range(20)],
                r"20 of 20 texts \(100.0%\) are longer than 80 tokens, more than max_truncated_",
            ),
            (
                "span",
                [{"question": "why " * 90, "context": f"a {n}", "answer": "a"} for n in range(20)],
                "no question leaves its context room",
            ),
        ],
    )
    def test_rows_that_teach_nothing(
        self, finetune: Callable[..., Any], head: str, rows: list[dict[str, Any]], told: str
    ) -> None:
        with pytest.raises(SourceError, match=told):
            run(finetune(head, rows=rows))

    def test_a_held_out_label_that_no_row_to_learn_has(
        self, finetune: Callable[..., Any], tmp_path: Path
    ) -> None:
        (tmp_path / "held.jsonl").write_text('{"text": "Nobody lives here.", "label": "damp"}\n')
        held = [{"path": str(tmp_path / "held.jsonl")}]
        with pytest.raises(SourceError, match=r"label 'damp', none to learn has it \(dry, wet\)"):
            run(finetune("classify", heldout=held))

    def test_an_architecture_without_such_a_head(
        self, finetune: Callable[..., Any], tmp_path: Path
    ) -> None:
        for name, head in (("codegen", "classify"), ("gemma", "span")):
            folder = tmp_path / name
            folder.mkdir()
            config = {"model_type": name, "architectures": ["AForCausalLM"], "vocab_size": 9}
            (folder / "config.json").write_text(json.dumps(config))
            with pytest.raises(
                HandOverError, match=f"{name}, for which transformers has no {AUTO[head]}"
            ):
                self._check(finetune(head, model=folder).settings)

    def test_rows_of_another_head(self, finetune: Callable[..., Any]) -> None:
        context = finetune("classify")
        self._check(context.settings)
        changed = {**dict(context.settings), "train": [{"world": "names"}]}
        with pytest.raises(SourceError, match=r"train.0 holds Tagged rows; head classify"):
            self._check(FinetuneSettings(**changed))

    @pytest.mark.parametrize(
        ("changes", "told"),
        [
            ({"head": "classify", "stride": 8}, "`stride` is for head span, not classify"),
            ({"head": "span", "max_truncated_share": 0.1}, "is for head classify, not span"),
            ({"head": "span", "max_length": 64, "stride": 64}, "not below max_length 64"),
            ({"head": "tag", "heldout_share": 0}, "nothing is held out"),
        ],
    )
    def test_settings_that_make_no_sense(self, changes: dict[str, Any], told: str) -> None:
        with pytest.raises(ValidationError, match=told):
            FinetuneSettings(**{"model": "m", "train": [{"world": "names"}], **changes})

    def test_a_model_that_padding_changes(
        self, finetune: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from transformers import BertForSequenceClassification

        seeing = BertForSequenceClassification.forward
        monkeypatch.setattr(
            BertForSequenceClassification, "forward",
            lambda self, input_ids, attention_mask=None, **more: seeing(self, input_ids, **more),
        )  # fmt: skip
        with pytest.raises(ModelError, match="says something else of a text once it is padded"):
            run(finetune("classify"))
