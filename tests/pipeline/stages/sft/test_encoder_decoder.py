"""Encoder-decoders that learn to answer: prompts to the encoder, loss on responses alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from data.errors import HandOverError, Interrupted
from pipeline.contract.handover import HandOver
from pipeline.stages.pretrain.settings import PretrainSettings
from pipeline.stages.rankings import stage as rankings
from pipeline.stages.rankings.settings import RankingsSettings
from pipeline.stages.sft import stage as sft
from pipeline.stages.sft.arguments import PairCollator, labels_of, loss_sum

BOTH = ["t5", "bart"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def losses(context: Any) -> list[float]:
    rows = map(json.loads, context.metrics.path.read_text().splitlines())
    return [row["train/loss"] for row in rows if "train/loss" in row]


@pytest.mark.parametrize("architecture", ["t5", pytest.param("bart", marks=pytest.mark.slow)])
def test_learns_and_goes_on_bit_for_bit_and_answers(
    make_context: Any, sft_settings: Any, save_pair: Any, tmp_path: Path, architecture: str
) -> None:
    base = save_pair(architecture, context=128)
    settings = sft_settings(base, epochs=2, max_length=96, batch_size=6)
    whole = make_context(settings, {"model": base}, tmp_path / "whole")
    metrics = sft.run(whole)
    assert losses(whole)[-1] < 0.9 * losses(whole)[0]
    with pytest.raises(Interrupted):
        sft.run(make_context(settings, {"model": base}, tmp_path / "cut", stop_after=6))
    cut = make_context(settings, {"model": base}, tmp_path / "cut")
    assert sft.run(cut) == metrics
    mine, theirs = weights(whole.folder), weights(cut.folder)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)
    auto: Any = transformers.AutoModelForSeq2SeqLM
    model, info = auto.from_pretrained(whole.folder / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.config.model_type == architecture
    if architecture == "bart":
        return
    # Completions are sampled from it and ranked.
    asked = RankingsSettings(
        model=str(whole.folder / "model"), completions=3, max_new_tokens=6,
        prompts=[{"world": "rm_prompts", "limit": 6}],
    )  # fmt: skip
    context = make_context(asked, {"model": whole.folder / "model"}, tmp_path / "ranked")
    assert rankings.run(context)["n_prompts"] > 0


@pytest.mark.parametrize("architecture", BOTH)
def test_neither_micro_batches_nor_padding_change_the_gradient(
    make_context: Any, sft_settings: Any, save_pair: Any, tmp_path: Path, architecture: str
) -> None:
    base, found = save_pair(architecture, context=128), []
    for micro in (None, 1):
        settings = sft_settings(
            base, max_steps=1, max_length=96, batch_size=4, micro_batch_size=micro
        )
        context = make_context(settings, {"model": base}, tmp_path / f"micro-{micro}")
        sft.run(context)
        found.append((losses(context), weights(context.folder)))
    (loss, together), (same, apart) = found
    assert loss == pytest.approx(same, rel=1e-5)
    # Adam's first step is the sign of the gradient, but for what is about 0.
    moved = [(together[k] - apart[k]).abs() > 1e-4 for k in together]
    assert sum(int(part.sum()) for part in moved) < 0.01 * sum(part.numel() for part in moved)


@pytest.mark.parametrize("architecture", BOTH)
def test_the_loss_is_that_of_transformers_labels(tiny_pair: Any, architecture: str) -> None:
    from data.records import Completion
    from data.text.chat import render_pairs
    from pipeline.models.seq2seq import decoder_opening

    model, tokenizer = tiny_pair(architecture)
    opening = decoder_opening(model)
    records = [Completion("Who is it?", "Ada Finch."), Completion("3 + 4?", "It is 7, I say.")]
    rows = [row for record in records for row in render_pairs(tokenizer, record)]
    collate = PairCollator(opening, tokenizer.pad_token_id)
    batch = collate([{"input_ids": row.ids, "labels": labels_of(row)} for row in rows])
    with torch.no_grad():
        total, count = loss_sum(model, batch)
        expected = 0.0
        for row in rows:
            learned = row.assistant_mask.index(True)
            labels = torch.tensor([[*opening[1:], *row.ids[learned:]]])
            logits = model(input_ids=torch.tensor([row.ids[:learned]]), labels=labels).logits[0]
            logprobs = logits.log_softmax(-1).gather(1, labels[0][:, None])[:, 0]
            expected -= float(logprobs[len(opening) - 1 :].sum())  # forced tokens are not learned
    assert int(count) == sum(sum(row.assistant_mask) for row in rows)
    assert float(total) == pytest.approx(expected, rel=1e-5)


def test_packing_is_refused_and_what_is_not_there_yet_is_known(
    save_pair: Any, sft_settings: Any
) -> None:
    base = save_pair("t5")
    packed = sft_settings(base, packing=True)
    with pytest.raises(HandOverError, match="packing is not for an encoder-decoder"):
        sft.check(packed, HandOver("sft", {"sft": packed}, lambda _: None))
    calling = sft_settings(base, tools=["calculator"])
    with pytest.raises(HandOverError, match="tools are not for the fine-tuning of an encoder-dec"):
        sft.check(calling, HandOver("sft", {"sft": calling}, lambda _: None))
    start = PretrainSettings(
        objective="span_corruption", architecture="t5", tokenizer="./t", hidden_size=16, layers=1,
        heads=2, context_length=32, train=[{"world": "corpus"}],
    )  # fmt: skip
    chain = {
        "base": start,
        "sft": sft_settings(Path("base"), max_length=128),
        "asked": RankingsSettings(model="sft", prompts=[{"world": "rm_prompts"}]),
    }
    sft.check(chain["sft"], HandOver("sft", chain, lambda _: None))
    rankings.check(chain["asked"], HandOver("asked", chain, lambda _: None))
    hand = HandOver("ppo", chain, lambda _: None)
    with pytest.raises(HandOverError, match=r"sft \(from base\) learns by objective span_corr"):
        hand.require_writer("sft", "policy", "a policy is a causal language model")
