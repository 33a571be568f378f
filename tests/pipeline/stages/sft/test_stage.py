from __future__ import annotations

import json
import logging
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from data.errors import (
    Interrupted,
    ModelError,
    SourceError,
    TrainingError,
)
from data.records import chat
from data.text.chat import Rendered
from pipeline.models.load import bf16_supported
from pipeline.stages.sft import stage as sft
from pipeline.stages.sft.arguments import labels_of, loss_sum
from pipeline.stages.sft.settings import row_multiple
from pipeline.training.trl import quiet_libraries

N_ROWS = 36  # of `sft_rows`


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(a: Path, b: Path) -> bool:
    left, right = weights(a), weights(b)
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def lines(context: Any) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in context.metrics.path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_learns_its_demonstrations(make_context: Any, sft_settings: Any, policy: Path) -> None:
    context = make_context(sft_settings(policy, epochs=8), {"model": policy})
    metrics = sft.run(context)
    logged = [row["train/loss"] for row in lines(context) if "train/loss" in row]
    assert logged[-1] < 0.5 * logged[0]
    assert metrics["eval/loss"] < logged[0]
    assert metrics["n_train"] + metrics["n_heldout"] == N_ROWS
    # What is published loads unchanged and samples with a cache.
    config = json.loads((context.folder / "model" / "config.json").read_text())
    assert config["use_cache"] is True and config["eos_token_id"] == 6
    assert (context.folder / "model" / "chat_template.jinja").is_file()
    assert not list(context.folder.rglob("training_args.bin"))
    assert not (context.folder / "candidates").exists()


def test_first_loss_is_that_of_the_assistants_tokens_alone(
    questions: Any, make_context: Any, sft_settings: Any, policy: Path, tiny_tokenizer: Any
) -> None:
    from transformers import AutoModelForCausalLM

    from data.text.chat import render_conversation

    context = make_context(
        sft_settings(policy, max_steps=1, batch_size=64, heldout_share=0.0, log_every=1),
        {"model": policy},
    )
    sft.run(context)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(policy), tiny_tokenizer()
    total, count = 0.0, 0
    for question, answer in questions:
        ids, mask = render_conversation(tokenizer, chat(question, answer))
        assert tokenizer.decode([i for i, mine in zip(ids, mask, strict=True) if mine]) == (
            f"{answer}<|end|>"
        )
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        for place in range(1, len(ids)):
            if mask[place]:
                total -= float(logprobs[place - 1, ids[place]])
                count += 1
    assert lines(context)[0]["train/loss"] == pytest.approx(total / count, rel=1e-4)


def test_tokens_of_the_user_give_no_gradient(
    make_context: Any,
    sft_settings: Any,
    tmp_path: Path,
    tiny_tokenizer: Any,
    save_policy: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another question of the same length and ids elsewhere changes inputs, never the targets."""
    assert labels_of(Rendered([5, 6, 7], [False, True, True])) == [-100, 6, 7]
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps({"messages": chat("Who?", "Ada.")}) + "\n")
    tokenizer = tiny_tokenizer()
    model = save_policy(tokenizer, tmp_path / "untied")
    context = make_context(
        sft_settings(
            model, train=[{"path": str(path)}], heldout_share=0.0, max_steps=1, batch_size=1
        ),
        {"model": model},
    )
    seen: list[torch.Tensor] = []

    def spy(model: Any, inputs: dict[str, Any]) -> Any:
        seen.append(inputs["labels"])
        return loss_sum(model, inputs)

    monkeypatch.setattr("pipeline.stages.sft.trainer.loss_sum", spy)
    sft.run(context)
    learned = [i for i in seen[0][0].tolist() if i != -100]
    assert tokenizer.decode(learned) == "Ada.<|end|>"


@pytest.mark.skipif(not bf16_supported(), reason="no bf16 products here")
def test_rows_are_filled_up_to_few_widths_and_learn_the_same(
    make_context: Any,
    sft_settings: Any,
    policy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    widths: list[int] = []

    def spy(model: Any, inputs: dict[str, Any]) -> Any:
        widths.append(inputs["input_ids"].shape[1])
        return loss_sum(model, inputs)

    monkeypatch.setattr("pipeline.stages.sft.trainer.loss_sum", spy)
    seen, losses = [], []
    for number, (multiple, longest, bf16) in enumerate(
        [(8, 128, True), (1, 128, True), (8, 127, True), (8, 128, False)]
    ):
        monkeypatch.setattr("pipeline.stages.sft.settings.WIDTHS", multiple)
        chosen = sft_settings(policy, max_length=longest, bf16=bf16)
        metrics = sft.run(make_context(chosen, {"model": policy}, tmp_path / str(number)))
        losses.append(metrics["eval/loss"])
        seen.append(set(widths))
        widths.clear()
    assert all(width % 8 == 0 for width in seen[0])
    # Multiples could be longer than 127, and in fp32 there is nothing to gain.
    assert seen[1] == seen[2] == seen[3] and len(seen[0]) < len(seen[1])
    assert losses == pytest.approx([losses[3]] * 4, rel=0.01)


def test_rows_are_left_alone_where_a_mask_costs_more(sft_settings: Any, policy: Path) -> None:
    plain, packed = sft_settings(policy), sft_settings(policy, packing=True)
    assert row_multiple(plain, 128, bf16=True, on_cpu=True) == 8
    assert row_multiple(plain, 128, bf16=True, on_cpu=False) is None
    assert row_multiple(packed, 128, bf16=True, on_cpu=True) is None
    assert row_multiple(plain, math.inf, bf16=True, on_cpu=True) is None


def test_interrupted_equals_uninterrupted(
    make_context: Any, sft_settings: Any, policy: Path, tmp_path: Path
) -> None:
    chosen = sft_settings(policy, candidates=3, dropout=0.1, evaluate_every=4, epochs=2)
    whole = make_context(chosen, {"model": policy}, tmp_path / "whole")
    expected = sft.run(whole)
    assert expected["steps"] > 13
    for stop_after in (1, 8, 12):  # in the first epoch, at its end about, in the second
        folder = tmp_path / f"cut{stop_after}"
        with pytest.raises(Interrupted):
            sft.run(make_context(chosen, {"model": policy}, folder, stop_after=stop_after))
        assert not (folder / "model").exists()
        cut = make_context(chosen, {"model": policy}, folder)
        assert sft.run(cut) == expected
        assert same(whole.folder / "model", folder / "model")
        assert lines(cut) == lines(whole)
        listed = (folder / "candidates.json").read_text()
        assert listed == (whole.folder / "candidates.json").read_text()


def test_accumulation_across_a_resume(
    make_context: Any, sft_settings: Any, policy: Path, tmp_path: Path
) -> None:
    chosen = sft_settings(policy, batch_size=6, micro_batch_size=2, epochs=3, group_by_length=False)
    whole = make_context(chosen, {"model": policy}, tmp_path / "whole")
    sft.run(whole)
    folder = tmp_path / "cut"
    with pytest.raises(Interrupted):
        sft.run(make_context(chosen, {"model": policy}, folder, stop_after=8))
    sft.run(make_context(chosen, {"model": policy}, folder))
    assert same(whole.folder / "model", folder / "model")


KILLED = """
import sys, torch
from pathlib import Path
from pipeline.contract.resume import ResumeStore
from pipeline.contract.console import Console
from pipeline.contract.metrics_log import MetricsLog
from pipeline.contract.context import StageContext
from pipeline.contract.handover import HandOver
from pipeline.stages.sft.settings import SftSettings
from pipeline.stages.sft.stage import run
torch.set_num_threads(int(sys.argv[3]))
settings = SftSettings.model_validate_json(Path(sys.argv[1]).read_text())
folder = Path(sys.argv[2])
log = folder / "metrics.jsonl"
context = StageContext(
    name="sft", settings=settings, seed=0, folder=folder, inputs={"model": settings.model},
    hand=HandOver("sft", {"sft": settings}, lambda _: None),
    resume=ResumeStore(folder / "resume", "key", tracked=[log]),
    metrics=MetricsLog(log), console=Console(quiet=True),
)
run(context)
"""


def test_killed_at_any_moment_equals_uninterrupted(
    make_context: Any, sft_settings: Any, policy: Path, tmp_path: Path, fork: Callable[..., Any]
) -> None:
    chosen = sft_settings(policy, candidates=2, save_every=3, epochs=6, dropout=0.1)
    whole = make_context(chosen, {"model": policy}, tmp_path / "whole")
    sft.run(whole)
    folder = tmp_path / "killed"
    folder.mkdir()
    (tmp_path / "settings.json").write_text(chosen.model_dump_json())
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    threads = torch.get_num_threads()  # sums depend on it
    process = fork(script, tmp_path / "settings.json", folder, threads)
    while not list(folder.glob("resume/*step-0000002*")):
        assert process.is_alive()
        time.sleep(0.005)
    process.kill()
    process.join()
    assert not (folder / "candidates.json").exists()
    cut = make_context(chosen, {"model": policy}, folder)
    sft.run(cut)
    assert same(whole.folder / "model", folder / "model")
    assert lines(cut) == lines(whole)


def test_candidates_are_at_equal_distances_and_the_best_is_published(
    make_context: Any, sft_settings: Any, policy: Path
) -> None:
    context = make_context(sft_settings(policy, candidates=4, max_steps=10), {"model": policy})
    metrics = sft.run(context)
    listed = json.loads((context.folder / "candidates.json").read_text())
    assert [c["step"] for c in listed["candidates"]] == [3, 5, 8, 10]
    losses = {c["step"]: c["loss"] for c in listed["candidates"]}
    best = min(losses, key=lambda step: losses[step])
    assert listed["best"] == best == metrics["best_step"]
    assert metrics["eval/loss"] == losses[best]
    assert same(context.folder / "candidates" / str(best), context.folder / "model")
    logged = {row["step"]: row["eval/loss"] for row in lines(context) if "eval/loss" in row}
    assert logged == losses


def test_heldout_loss_is_the_mean_over_tokens(
    make_context: Any, sft_settings: Any, policy: Path, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    from transformers import AutoModelForCausalLM

    from data.text.chat import render_conversation

    path = tmp_path / "held.jsonl"
    held = [("Hm?", "No."), ("Who is the baker?", "Ada Finch is the baker, of course she is.")] * 2
    path.write_text("".join(json.dumps({"messages": chat(*turns)}) + "\n" for turns in held))
    chosen = sft_settings(policy, heldout=[{"path": str(path)}], max_steps=2, batch_size=3)
    context = make_context(chosen, {"model": policy})
    metrics = sft.run(context)
    model = AutoModelForCausalLM.from_pretrained(context.folder / "model")
    total, count = 0.0, 0
    for turns in held:
        ids, mask = render_conversation(tiny_tokenizer(), chat(*turns))
        labels = torch.tensor([labels_of(Rendered(ids, mask))])
        with torch.no_grad():
            loss = float(model(torch.tensor([ids]), labels=labels).loss)
        total, count = total + loss * sum(mask), count + sum(mask)
    assert metrics["eval/loss"] == pytest.approx(total / count, rel=1e-4)


PLAIN = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
PACKED = {
    "Llama": PLAIN | {"intermediate_size": 48},  # obeys what TRL tells it of rows
    "OPT": PLAIN | {"ffn_dim": 48, "word_embed_proj_dim": 32},  # obeys a mask
    "XGLM": {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48},
}


def untrained(name: str, config: dict[str, Any], tokenizer: Any, folder: Path) -> Path:
    """Save a model whose tokens depend much on those before."""
    torch.manual_seed(0)
    made = getattr(transformers, f"{name}Config")(
        **config, vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=6
    )
    model = transformers.AutoModelForCausalLM.from_config(made, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.15)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", PACKED)
def test_packing_keeps_demonstrations_apart(
    make_context: Any, sft_settings: Any, tiny_tokenizer: Any, tmp_path: Path, name: str
) -> None:
    """One step over all rows gives the same loss packed and alone."""
    start = untrained(name, PACKED[name], tiny_tokenizer(), tmp_path / name)
    losses = {}
    for packing in (False, True):
        chosen = sft_settings(
            start, packing=packing, max_steps=1, batch_size=64, heldout_share=0.0, log_every=1,
            max_length=128,
        )  # fmt: skip
        context = make_context(chosen, {"model": start}, tmp_path / f"packing-{packing}")
        sft.run(context)
        losses[packing] = lines(context)[0]["train/loss"]
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)


@pytest.mark.parametrize("name", ["Bloom", "Mamba", "GptOss"])
def test_packing_is_refused_where_demonstrations_would_see_each_other(
    make_context: Any, sft_settings: Any, tiny_tokenizer: Any, tmp_path: Path, name: str
) -> None:
    shape = {
        "Bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
        "Mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
        # Obeys masks of its own, which its router's loss does not take.
        "GptOss": PLAIN | {"head_dim": 8, "intermediate_size": 48, "num_key_value_heads": 2,
                           "num_local_experts": 2, "num_experts_per_tok": 1},
    }  # fmt: skip
    start = untrained(name, shape[name], tiny_tokenizer(), tmp_path / name)
    chosen = sft_settings(start, packing=True, max_length=128)
    with pytest.raises(ModelError, match=rf"{name}ForCausalLM .* set packing: false"):
        sft.run(make_context(chosen, {"model": start}))


def test_what_the_libraries_warn_of_is_told_once() -> None:
    told: list[str] = []
    loggers = [logging.getLogger(name) for name in ("trl", "transformers")]
    before = [(each.level, each.propagate, list(each.handlers)) for each in loggers]
    with quiet_libraries(told.append):
        for _ in range(2):
            logging.getLogger("trl.trainer.sft_trainer").warning("rows may %s", "mix")
            logging.getLogger("trl.trainer.sft_trainer").info("a note")
        logging.getLogger("transformers.trainer").warning("tokens\n were aligned")
    assert told == ["trl: rows may mix", "transformers: tokens were aligned"]
    assert [(each.level, each.propagate, each.handlers) for each in loggers] == before


def test_nan_stops_and_keeps_the_last_good_state(
    make_context: Any, sft_settings: Any, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def poisoned(model: Any, inputs: dict[str, Any]) -> Any:
        total, count = loss_sum(model, inputs)
        calls.append(1)
        return (total * math.nan if len(calls) == 8 else total), count

    honest, stepped = torch.optim.AdamW.step, []

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        stepped.append(all(bool(torch.isfinite(g).all()) for g in gradients if g is not None))
        return honest(self, *args, **kwargs)

    monkeypatch.setattr("pipeline.stages.sft.trainer.loss_sum", poisoned)
    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    context = make_context(sft_settings(policy, log_every=50, heldout_share=0.0), {"model": policy})
    with pytest.raises(TrainingError, match="at or before step 8; lower learning_rate"):
        sft.run(context)
    assert stepped == [True] * 7
    found = context.resume.latest()
    assert found is not None and found[0] == 5
    assert all(torch.isfinite(tensor).all() for tensor in weights(found[1]).values())


def test_rows_too_long_are_counted_or_refused(
    make_context: Any, sft_settings: Any, policy: Path, tmp_path: Path
) -> None:
    chosen = sft_settings(
        policy, max_length=24, too_long="drop", max_too_long_share=1.0, max_steps=1
    )
    metrics = sft.run(make_context(chosen, {"model": policy}))
    assert 0 < metrics["n_dropped"] < N_ROWS
    assert metrics["n_train"] + metrics["n_heldout"] + metrics["n_dropped"] == N_ROWS
    refused = chosen.model_copy(update={"max_too_long_share": 0.01})
    with pytest.raises(SourceError, match="max_length 24"):
        sft.run(make_context(refused, {"model": policy}, tmp_path / "refused"))


def test_prompts_held_out_are_not_trained_on(
    make_context: Any, sft_settings: Any, policy: Path, sft_rows: Path
) -> None:
    chosen = sft_settings(
        policy, heldout=[{"path": str(sft_rows), "limit": 10}], max_steps=1, epochs=1
    )
    metrics = sft.run(make_context(chosen, {"model": policy}))
    assert (metrics["n_train"], metrics["n_heldout"]) == (N_ROWS - 10, 10)


def test_learns_plain_completions(
    make_context: Any, sft_settings: Any, tmp_path: Path, tiny_tokenizer: Any, save_policy: Any
) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        "".join(
            json.dumps({"prompt": f"{n} plus one is", "completion": f" {n + 1}"}) + "\n"
            for n in range(12)
        )
    )
    model = save_policy(tiny_tokenizer(chat=False), tmp_path / "base")
    chosen = sft_settings(model, train=[{"path": str(path)}], heldout_share=0.0, epochs=3)
    assert sft.run(make_context(chosen, {"model": model}))["n_train"] == 12


def test_learning_rate_rises_and_falls_to_its_share(
    make_context: Any, sft_settings: Any, policy: Path
) -> None:
    chosen = sft_settings(
        policy, max_steps=13, warmup_share=2 / 13, log_every=1, learning_rate=1e-3
    )
    context = make_context(chosen, {"model": policy})
    sft.run(context)
    rates = [r["train/learning_rate"] for r in lines(context) if "train/learning_rate" in r]
    assert rates[:3] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3])
    assert rates[7] == pytest.approx(0.55e-3)  # half-way: (1 + 0.1) / 2
    assert rates[12] == pytest.approx(1e-4)


def test_worked_examples_are_read_and_not_learned(
    make_context: Any, sft_settings: Any, policy: Path, tiny_tokenizer: Any, questions: Any
) -> None:
    settings, tokenizer = sft_settings(policy, shots=2, heldout_share=0.3), tiny_tokenizer()
    assert "shots" not in sft_settings(policy).key_settings() and settings.key_settings()["shots"]
    context = make_context(settings, {"model": policy})
    model = transformers.AutoModelForCausalLM.from_pretrained(policy)
    rows = sft._rows(context, model, tokenizer)
    pairs = {f"<|user|>{q}<|end|><|assistant|>{a}<|end|>": a for q, a in questions}

    def turns(row: Rendered) -> list[str]:
        return re.findall(r"<\|user\|>.*?<\|assistant\|>.*?<\|end\|>", tokenizer.decode(row.ids))

    asked = {turns(row)[-1] for row in rows.train}
    for row in (*rows.train, *rows.heldout):
        *shown, last = turns(row)
        learned = [i for i, mine in zip(row.ids, row.assistant_mask, strict=True) if mine]
        assert tokenizer.decode(learned) == f"{pairs[last]}<|end|>"
        assert len({*shown, last}) == 3 and asked.issuperset(shown)
    assert len({tuple(turns(row)[:2]) for row in rows.train}) > 5


def test_raw_text_among_demonstrations_is_learned_whole(
    make_context: Any, sft_settings: Any, policy: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    texts = ["Ada met Bo by the river. " * 3, "Cy has a goat."]
    (tmp_path / "town.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    given = {"train": [{"path": str(tmp_path / "town.jsonl")}], "share": 0.25, "row_tokens": 16}
    settings, tokenizer = (
        sft_settings(policy, pretraining=given, heldout_share=0.25),
        tiny_tokenizer(),
    )
    assert "pretraining" not in sft_settings(policy).key_settings()
    context = make_context(settings, {"model": policy})
    sft.check(settings, context.hand)
    model = transformers.AutoModelForCausalLM.from_pretrained(policy)
    rows, plain = (
        sft._rows(make_context(chosen, {"model": policy}), model, tokenizer)
        for chosen in (settings, sft_settings(policy, heldout_share=0.25))
    )
    assert rows.train[: -rows.texts] == plain.train and rows.heldout == plain.heldout
    assert rows.texts == round(len(plain.train) / 3)
    pieces = [ids[at : at + 16] for text in texts for ids in [tokenizer.encode(text)]
              for at in range(0, len(ids), 16)]  # fmt: skip
    for row in rows.train[-rows.texts :]:
        assert row.ids in pieces and all(row.assistant_mask) and len(row.assistant_mask) > 1
    assert sft.run(context)["n_texts"] == rows.texts


def test_prompts_stand_behind_passages_that_are_not_learned(
    make_context: Any, sft_settings: Any, policy: Path, tiny_tokenizer: Any, questions: Any,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "corpus.txt").write_text("What is it?\n")
    retrieve = {"corpus": [{"path": str(tmp_path / "corpus.txt")}], "passages": 1}
    settings, tokenizer = sft_settings(policy, retrieve=retrieve, shots=1), tiny_tokenizer()
    assert "retrieve" not in sft_settings(policy).key_settings()
    assert settings.key_settings()["retrieve"]["passages"] == 1
    context = make_context(settings, {"model": policy})
    sft.check(settings, context.hand)
    model = transformers.AutoModelForCausalLM.from_pretrained(policy)
    rows = sft._rows(context, model, tokenizer)
    turn = "<|user|>{}<|end|><|assistant|>{}<|end|>"
    shown = {turn.format(q, a): (q, a) for q, a in questions}
    given = {turn.format(f"What is it?\n\n{q}", a): (q, a) for q, a in questions}
    for row in (*rows.train, *rows.heldout):
        first, last = re.findall(r"<\|user\|>.*?<\|assistant\|>.*?<\|end\|>",
                                 tokenizer.decode(row.ids), flags=re.DOTALL)  # fmt: skip
        assert shown[first] != given[last]
        learned = [i for i, mine in zip(row.ids, row.assistant_mask, strict=True) if mine]
        assert tokenizer.decode(learned) == f"{given[last][1]}<|end|>"
