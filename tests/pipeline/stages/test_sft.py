from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from data.chat import Rendered
from data.errors import (
    HandOverError,
    Interrupted,
    ModelError,
    RecipeError,
    SourceError,
    TrainingError,
)
from data.records import chat
from pipeline.stages import sft
from pipeline.stages._sft_order import BucketSampler, add_residual_dropout
from pipeline.stages._sft_setup import labels_of, micro_batches
from pipeline.stages.sft import SftSettings

QUESTIONS = [
    (f"What is {a} + {b}?", f"{a} + {b} is {a + b}." + " Indeed so." * (a % 4))
    for a in range(6)
    for b in range(6)
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slower on two, much so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for question, answer in QUESTIONS:
            file.write(json.dumps({"messages": chat(question, answer)}) + "\n")
    return path


@pytest.fixture
def settings(rows_file: Path) -> Callable[..., SftSettings]:
    def build(model: Path, **changes: Any) -> SftSettings:
        return SftSettings(
            **{
                "model": str(model),
                "train": [{"path": str(rows_file)}],
                "heldout_share": 0.2,
                "batch_size": 4,
                "learning_rate": 1e-2,
                "log_every": 3,
                "save_every": 5,
                "epochs": 2,
                **changes,
            }
        )

    return build


@pytest.fixture
def policy(tiny_tokenizer: Any, save_policy: Any) -> Path:
    return save_policy(tiny_tokenizer())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(a: Path, b: Path) -> bool:
    left, right = weights(a), weights(b)
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def lines(context: Any) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in context.metrics.path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_learns_its_demonstrations(make_context: Any, settings: Any, policy: Path) -> None:
    context = make_context(settings(policy, epochs=8), {"model": policy})
    metrics = sft.run(context)
    logged = [row["train/loss"] for row in lines(context) if "train/loss" in row]
    assert logged[-1] < 0.5 * logged[0]
    assert metrics["eval/loss"] < logged[0]
    assert metrics["n_train"] + metrics["n_heldout"] == len(QUESTIONS)
    # What is published loads unchanged and samples with a cache.
    config = json.loads((context.folder / "model" / "config.json").read_text())
    assert config["use_cache"] is True and config["eos_token_id"] == 6
    assert (context.folder / "model" / "chat_template.jinja").is_file()
    assert not list(context.folder.rglob("training_args.bin"))
    assert not (context.folder / "candidates").exists()


def test_first_loss_is_that_of_the_assistants_tokens_alone(
    make_context: Any, settings: Any, policy: Path, tiny_tokenizer: Any
) -> None:
    from transformers import AutoModelForCausalLM

    from data.chat import render_conversation

    context = make_context(
        settings(policy, max_steps=1, batch_size=64, heldout_share=0.0, log_every=1),
        {"model": policy},
    )
    sft.run(context)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(policy), tiny_tokenizer()
    total, count = 0.0, 0
    for question, answer in QUESTIONS:
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
    make_context: Any, settings: Any, tmp_path: Path, tiny_tokenizer: Any, save_policy: Any
) -> None:
    """Another question of the same length and ids elsewhere changes inputs, never the targets."""
    assert labels_of(Rendered([5, 6, 7], [False, True, True])) == [-100, 6, 7]
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps({"messages": chat("Who?", "Ada.")}) + "\n")
    tokenizer = tiny_tokenizer()
    model = save_policy(tokenizer, tmp_path / "untied")
    context = make_context(
        settings(model, train=[{"path": str(path)}], heldout_share=0.0, max_steps=1, batch_size=1),
        {"model": model},
    )
    seen: list[torch.Tensor] = []
    from pipeline.stages import _sft_trainer

    original = _sft_trainer.loss_sum

    def spy(model: Any, inputs: dict[str, Any]) -> Any:
        seen.append(inputs["labels"])
        return original(model, inputs)

    _sft_trainer.loss_sum = spy
    try:
        sft.run(context)
    finally:
        _sft_trainer.loss_sum = original
    learned = [i for i in seen[0][0].tolist() if i != -100]
    assert tokenizer.decode(learned) == "Ada.<|end|>"


def test_interrupted_equals_uninterrupted(
    make_context: Any, settings: Any, policy: Path, tmp_path: Path
) -> None:
    chosen = settings(policy, candidates=3, dropout=0.1, evaluate_every=4, epochs=2)
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
    make_context: Any, settings: Any, policy: Path, tmp_path: Path
) -> None:
    chosen = settings(policy, batch_size=6, micro_batch_size=2, epochs=3, group_by_length=False)
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
from pipeline.checkpoint import ResumeStore
from pipeline.console import Console
from pipeline.context import MetricsLog, StageContext
from pipeline.handover import HandOver
from pipeline.stages import sft
torch.set_num_threads(int(sys.argv[3]))
settings = sft.SftSettings.model_validate_json(Path(sys.argv[1]).read_text())
folder = Path(sys.argv[2])
log = folder / "metrics.jsonl"
context = StageContext(
    name="sft", settings=settings, seed=0, folder=folder, inputs={"model": settings.model},
    hand=HandOver("sft", {"sft": settings}, lambda _: None),
    resume=ResumeStore(folder / "resume", "key", tracked=[log]),
    metrics=MetricsLog(log), console=Console(quiet=True),
)
sft.run(context)
"""


def test_killed_at_any_moment_equals_uninterrupted(
    make_context: Any, settings: Any, policy: Path, tmp_path: Path
) -> None:
    chosen = settings(policy, candidates=2, save_every=3, epochs=6, dropout=0.1)
    whole = make_context(chosen, {"model": policy}, tmp_path / "whole")
    sft.run(whole)
    folder = tmp_path / "killed"
    folder.mkdir()
    (tmp_path / "settings.json").write_text(chosen.model_dump_json())
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", KILLED, str(tmp_path / "settings.json"), str(folder)),
            str(torch.get_num_threads()),  # sums depend on it
        ],
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[3],
    )
    deadline = time.monotonic() + 120
    while not list(folder.glob("resume/*step-0000002*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "candidates.json").exists()
    cut = make_context(chosen, {"model": policy}, folder)
    sft.run(cut)
    assert same(whole.folder / "model", folder / "model")
    assert lines(cut) == lines(whole)


def test_candidates_are_at_equal_distances_and_the_best_is_published(
    make_context: Any, settings: Any, policy: Path
) -> None:
    context = make_context(settings(policy, candidates=4, max_steps=10), {"model": policy})
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
    make_context: Any, settings: Any, policy: Path, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    from transformers import AutoModelForCausalLM

    from data.chat import render_conversation

    path = tmp_path / "held.jsonl"
    held = [("Hm?", "No."), ("Who is the baker?", "Ada Finch is the baker, of course she is.")] * 2
    path.write_text("".join(json.dumps({"messages": chat(*turns)}) + "\n" for turns in held))
    chosen = settings(policy, heldout=[{"path": str(path)}], max_steps=2, batch_size=3)
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


def test_packing_keeps_demonstrations_apart(
    make_context: Any, settings: Any, policy: Path, tmp_path: Path
) -> None:
    """One step over all rows gives the same loss packed and alone."""
    losses = {}
    for packing in (False, True):
        chosen = settings(
            policy, packing=packing, max_steps=1, batch_size=64, heldout_share=0.0, log_every=1
        )
        context = make_context(chosen, {"model": policy}, tmp_path / f"packing-{packing}")
        sft.run(context)
        losses[packing] = lines(context)[0]["train/loss"]
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)


def test_nan_stops_and_keeps_the_last_good_state(
    make_context: Any, settings: Any, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.stages import _sft_trainer

    original, calls = _sft_trainer.loss_sum, []

    def poisoned(model: Any, inputs: dict[str, Any]) -> Any:
        total, count = original(model, inputs)
        calls.append(1)
        return (total * math.nan if len(calls) == 8 else total), count

    monkeypatch.setattr(_sft_trainer, "loss_sum", poisoned)
    context = make_context(settings(policy, log_every=50, heldout_share=0.0), {"model": policy})
    with pytest.raises(TrainingError, match="learning_rate"):
        sft.run(context)
    found = context.resume.latest()
    assert found is not None and found[0] == 5
    assert all(torch.isfinite(tensor).all() for tensor in weights(found[1]).values())


def test_rows_too_long_are_counted_or_refused(
    make_context: Any, settings: Any, policy: Path, tmp_path: Path
) -> None:
    chosen = settings(policy, max_length=24, too_long="drop", max_too_long_share=1.0, max_steps=1)
    metrics = sft.run(make_context(chosen, {"model": policy}))
    assert 0 < metrics["n_dropped"] < len(QUESTIONS)
    assert metrics["n_train"] + metrics["n_heldout"] + metrics["n_dropped"] == len(QUESTIONS)
    refused = chosen.model_copy(update={"max_too_long_share": 0.01})
    with pytest.raises(SourceError, match="max_length 24"):
        sft.run(make_context(refused, {"model": policy}, tmp_path / "refused"))


def test_prompts_held_out_are_not_trained_on(
    make_context: Any, settings: Any, policy: Path, rows_file: Path
) -> None:
    chosen = settings(
        policy, heldout=[{"path": str(rows_file), "limit": 10}], max_steps=1, epochs=1
    )
    metrics = sft.run(make_context(chosen, {"model": policy}))
    assert (metrics["n_train"], metrics["n_heldout"]) == (len(QUESTIONS) - 10, 10)


def test_refuses_rows_without_answer(
    make_context: Any, settings: Any, policy: Path, tmp_path: Path
) -> None:
    path = tmp_path / "prose.jsonl"
    path.write_text(json.dumps({"text": "Some prose."}) + "\n")
    with pytest.raises(SourceError, match="no answer to imitate"):
        sft.run(make_context(settings(policy, train=[{"path": str(path)}]), {"model": policy}))


def test_refuses_candidates_without_anything_held_out(
    make_context: Any, settings: Any, policy: Path
) -> None:
    chosen = settings(policy, candidates=2, heldout_share=0.0)
    with pytest.raises(RecipeError, match="heldout"):
        sft.run(make_context(chosen, {"model": policy}))


def test_refuses_a_max_length_beyond_the_context(
    make_context: Any, settings: Any, policy: Path
) -> None:
    context = make_context(settings(policy, max_length=1000), {"model": policy})
    with pytest.raises(HandOverError, match="128"):
        sft.check(context.settings, context.hand)


def test_check_refuses_a_model_of_another_kind(
    make_context: Any, settings: Any, policy: Path, tmp_path: Path
) -> None:
    other = tmp_path / "classifier"
    shutil.copytree(policy, other)
    config = json.loads((other / "config.json").read_text())
    config["architectures"] = ["LlamaForSequenceClassification"]
    (other / "config.json").write_text(json.dumps(config))
    context = make_context(settings(other), {"model": other})
    with pytest.raises(HandOverError, match="LlamaForSequenceClassification"):
        sft.check(context.settings, context.hand)


def test_a_tokenizer_beside_the_model_goes_into_the_checkpoint(
    make_context: Any, settings: Any, tiny_tokenizer: Any, save_policy: Any, tmp_path: Path
) -> None:
    # As SmolLM2 comes: padding with the end-of-sequence token.
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    model = save_policy(tokenizer)
    own = make_context(settings(model), {"model": model})
    with pytest.raises(ModelError, match="they must be two tokens"):
        sft.run(own)
    adopted = tmp_path / "adopted"
    tokenizer.pad_token = "<|endoftext|>"
    tokenizer.save_pretrained(adopted)
    changed = settings(model, tokenizer=str(adopted), epochs=1)
    context = make_context(changed, {"model": model, "tokenizer": adopted})
    sft.run(context)
    config = json.loads((context.folder / "model" / "config.json").read_text())
    kept = json.loads((context.folder / "model" / "tokenizer_config.json").read_text())
    assert config["pad_token_id"] == 2
    assert config["eos_token_id"] == 6
    assert kept["pad_token"] == "<|endoftext|>"


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(
    make_context: Any, settings: Any, tiny_tokenizer: Any, policy: Path, tmp_path: Path
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<|extra|>"])
    tokenizer.save_pretrained(tmp_path / "more")
    changed = settings(policy, tokenizer=str(tmp_path / "more"))
    context = make_context(changed, {"model": policy, "tokenizer": tmp_path / "more"})
    with pytest.raises(ModelError, match="has 321 tokens and the model an embedding of 320"):
        sft.run(context)


def test_learns_plain_completions(
    make_context: Any, settings: Any, tmp_path: Path, tiny_tokenizer: Any, save_policy: Any
) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        "".join(
            json.dumps({"prompt": f"{n} plus one is", "completion": f" {n + 1}"}) + "\n"
            for n in range(12)
        )
    )
    model = save_policy(tiny_tokenizer(chat=False), tmp_path / "base")
    chosen = settings(model, train=[{"path": str(path)}], heldout_share=0.0, epochs=3)
    assert sft.run(make_context(chosen, {"model": model}))["n_train"] == 12


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    size=st.integers(1, 7),
    epoch=st.integers(0, 3),
    grouped=st.booleans(),
)
def test_an_epoch_holds_every_row_once(
    lengths: list[int], size: int, epoch: int, grouped: bool
) -> None:
    sampler = BucketSampler(lengths, batch_size=size, seed=3, grouped=grouped)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(lengths)))
    assert list(sampler) == order  # nothing but seed and epoch decides


def test_grouped_batches_waste_less_padding() -> None:
    lengths = [(17 * place) % 40 + 1 for place in range(400)]

    def padded(grouped: bool) -> int:
        order = list(BucketSampler(lengths, batch_size=8, seed=0, grouped=grouped))
        return sum(8 * max(lengths[i] for i in order[s : s + 8]) for s in range(0, 400, 8))

    assert padded(True) < 1.05 * sum(lengths) < padded(False)


def test_learning_rate_rises_and_falls_to_its_share(
    make_context: Any, settings: Any, policy: Path
) -> None:
    chosen = settings(policy, max_steps=13, warmup_share=2 / 13, log_every=1, learning_rate=1e-3)
    context = make_context(chosen, {"model": policy})
    sft.run(context)
    rates = [r["train/learning_rate"] for r in lines(context) if "train/learning_rate" in r]
    assert rates[:3] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3])
    assert rates[7] == pytest.approx(0.55e-3)  # half-way: (1 + 0.1) / 2
    assert rates[12] == pytest.approx(1e-4)


def test_micro_batches_divide_the_batch() -> None:
    assert micro_batches(32, None, 1) == (32, 1)
    assert micro_batches(32, 4, 2) == (4, 4)
    with pytest.raises(RecipeError, match="micro_batch_size 5"):
        micro_batches(32, 5, 1)
    with pytest.raises(RecipeError, match="3 processes"):
        micro_batches(32, None, 3)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_dropout_acts_in_training_alone(tiny_tokenizer: Any, tiny_policy: Any, kind: str) -> None:
    tokenizer = tiny_tokenizer()
    if kind == "llama":
        model = tiny_policy(tokenizer)
    else:
        from transformers import GPT2Config, GPT2LMHeadModel

        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(tokenizer),
                n_embd=16,
                n_layer=1,
                n_head=2,
                resid_pdrop=0.0,
                attn_pdrop=0.0,
                embd_pdrop=0.0,
                bos_token_id=1,
                eos_token_id=6,
            )
        )
    ids = torch.tensor([[7, 8, 9, 10]])
    plain = model.eval()(ids).logits
    add_residual_dropout(model, 0.5)
    assert torch.equal(model.eval()(ids).logits, plain)
    assert not torch.allclose(model.train()(ids).logits, plain)
