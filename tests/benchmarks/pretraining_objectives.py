"""Steps of pretraining by each objective, timed beside the next token and transformers' Trainer.

    python tests/benchmarks/pretraining_objectives.py [--vocabulary 30522] [--length 128]

All have a hidden size of 256, 4 heads and 4 layers (T5 and BART two that read and two that write):
GPT-2 by the next token, BERT by hidden tokens, T5 by hidden spans, BART by spoiled rows; and that
BERT by transformers' Trainer with its collator, which makes logits of all tokens. Rows of random
words are packed, `--rows` of them a step; AdamW, no dropout. `--vocabulary 30522` is BERT's.

Each side runs in a process of its own, `--turns` times in turn; the first `--warmup` steps are not
counted. What counts are tokens a second of the clock and of the processor, which other work on the
machine disturbs less: medians over all counted steps. A token is what goes into the model, or into
its decoder. Beside them stand the share of a step that making its batch takes, and peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from pretraining import timed

ROOT = Path(__file__).parents[2]
HIDDEN, HEADS, LAYERS = 256, 4, 4
SIDES: dict[str, tuple[Any, Any, Any]] = {
    "causal": ("causal", "gpt2", "causal"),
    "masked": ("masked", "bert", "masked"),
    "span_corruption": ("span_corruption", "t5", "seq2seq"),
    "denoising": ("denoising", "bart", "seq2seq"),
    "trainer": ("masked", "bert", "masked"),
}
"""Side -> objective, architecture and kind of head."""
SENTENCE = 15
"""Words of a sentence."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=5, help="counted steps of a process")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them")
    parser.add_argument("--turns", type=int, default=1, help="processes of each side")
    parser.add_argument("--rows", type=int, default=32, help="rows of a step")
    parser.add_argument("--length", type=int, default=128, help="tokens of a row")
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "1")))
    parser.add_argument("--bf16", action="store_true", help="products in bfloat16 on all sides")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=[*SIDES])
    parser.add_argument("--profile", action="store_true", help="say what bounds our steps")
    parser.add_argument("--role", choices=SIDES, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    if given.role is not None:
        print(json.dumps(run_side(given)))
        return
    steps: dict[str, list[dict[str, float]]] = {side: [] for side in given.sides}
    for _ in range(given.turns):
        for side in given.sides:
            steps[side] += process(given, side)
    found = {side: medians(rows) for side, rows in steps.items()}
    names = ("tokens/s", "tokens/cpu s", "batch %", "MB", "loss")
    print(f"{'':>16}" + "".join(f"{name:>14}" for name in names))
    for side, row in found.items():
        print(f"{side:>16}" + "".join(f"{row[name]:14.2f}" for name in names))
    compare(found)


def compare(found: dict[str, dict[str, float]]) -> None:
    """Print the ratios that are asked for."""
    pairs = [(side, "causal") for side in ("masked", "span_corruption", "denoising")]
    for ours, other in [*pairs, ("masked", "trainer")]:
        if ours in found and other in found:
            for name in ("tokens/s", "tokens/cpu s"):
                print(f"{name}, {ours} to {other}: {found[ours][name] / found[other][name]:.2f} x")


def process(given: argparse.Namespace, side: str) -> list[dict[str, float]]:
    """Run one side in a process of its own and return its steps."""
    command = [sys.executable, __file__, "--role", side, *sys.argv[1:]]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": str(given.threads),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    *told, last = done.stdout.strip().splitlines()
    if given.profile:
        print("\n".join([side, *told]))
    rows: list[dict[str, float]] = json.loads(last)
    return rows


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    found = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    return {
        "tokens/s": found["tokens"] / found["seconds"],
        "tokens/cpu s": found["tokens"] / found["cpu s"],
        "batch %": 100 * found["batch"] / found["seconds"],
        "MB": max(row["MB"] for row in rows),
        "loss": found["loss"],
    }


def run_side(given: argparse.Namespace) -> list[dict[str, float]]:
    import torch

    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    run = trainer if given.role == "trainer" else ours
    with tempfile.TemporaryDirectory() as scratch:
        rows = run(given, Path(scratch))[given.warmup :]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return [{**row, "MB": peak} for row in rows]


def words(given: argparse.Namespace) -> Any:
    """Return a tokenizer of as many words, a part of which end a sentence."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from data.text.objectives.special_tokens import equip, special_tokens

    objective, _, _ = SIDES[given.role]
    special = ["<|pad|>", "<|bos|>", "<|endoftext|>", *special_tokens(objective)]
    text = [
        f"w{n}." if n % SENTENCE == 0 else f"w{n}" for n in range(len(special), given.vocabulary)
    ]
    numbers = {word: number for number, word in enumerate([*special, *text])}
    tokenizer = Tokenizer(models.WordLevel(numbers, text[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", bos_token="<|bos|>",
        eos_token="<|endoftext|>",
    )  # fmt: skip
    if objective in ("masked", "denoising"):
        wrapped.add_special_tokens({"mask_token": special[-1]})
    equip(wrapped, objective)
    return wrapped


def model(given: argparse.Namespace, tokenizer: Any) -> Any:
    """Return the model of a side, as a `pretrain` stage makes it."""
    from pipeline.contract.heads import AUTO_CLASSES
    from pipeline.models.architectures import Shape, build_policy

    _, architecture, head = SIDES[given.role]
    shape = Shape(
        hidden_size=HIDDEN, layers=LAYERS if head != "seq2seq" else LAYERS // 2, heads=HEADS,
        kv_heads=HEADS, intermediate_size=4 * HIDDEN, context_length=2 * given.length,
    )  # fmt: skip
    return build_policy(architecture, shape, tokenizer, seed=0, auto_class=AUTO_CLASSES[head])


def text(given: argparse.Namespace, length: int) -> list[list[int]]:
    """Return rows of random words, the same on all sides that read as many."""
    import numpy as np

    rows = given.rows * (given.warmup + given.steps)
    drawn = np.random.default_rng(0).integers(150, given.vocabulary, (rows, length))
    return [[int(word) for word in row] for row in drawn]


def ours(given: argparse.Namespace, scratch: Path) -> list[dict[str, float]]:
    from data.text.packing import write_shards
    from pipeline.training.accelerator import make_accelerator
    from pipeline.training.language_model import Causal, LmTrainer
    from pipeline.training.objectives.masked import Masked
    from pipeline.training.objectives.seq2seq import Denoising, SpanCorruption
    from pipeline.training.settings import LmSettings

    tokenizer = words(given)
    net = model(given, tokenizer)
    kinds = {"masked": Masked, "span_corruption": SpanCorruption, "denoising": Denoising}
    asks: Any = Causal() if given.role == "causal" else kinds[given.role](net, tokenizer, 0)
    length = given.length if given.role == "causal" else asks.raw_length(given.length)
    shards = write_shards(
        scratch / "train", text(given, length), context_length=length,
        vocabulary_size=given.vocabulary,
    )  # fmt: skip
    settings = LmSettings(
        kind="lm", steps=given.warmup + given.steps, batch_size=given.rows, learning_rate=1e-3,
        warmup_share=0.0, weight_decay=0.1, bf16=given.bf16,
    )  # fmt: skip
    training = LmTrainer(
        model=net, train=shards, settings=settings, seed=0, objective=asks,
        accelerator=make_accelerator(bf16=given.bf16),
    )  # fmt: skip
    figures: dict[str, float] = {}
    make = training._batch

    def batch(number: int) -> Any:
        started = time.perf_counter()
        made = make(number)
        figures["batch"] = time.perf_counter() - started
        return made

    def step(number: int) -> float:
        told = training.step(number)
        figures["tokens"] = told["tokens"] + (given.rows if given.role == "causal" else 0)
        return told["train/loss"]

    training._batch = batch  # type: ignore[method-assign]
    found = [{**timed(partial(step, n)), **figures} for n in range(training.total_steps)]
    if given.profile:
        from where_time_goes import tell_profile

        typical = statistics.median(row["seconds"] for row in found[1:])
        tell_profile(lambda: step(0), bf16=given.bf16, seconds=typical)
    return found


def trainer(given: argparse.Namespace, scratch: Path) -> list[dict[str, float]]:
    from datasets import Dataset
    from transformers import (
        DataCollatorForLanguageModeling,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    from data.text.objectives.special_tokens import frame

    found: list[dict[str, float]] = []
    marks: list[tuple[float, float]] = []
    collating = [0.0]

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            marks.append((time.perf_counter(), time.process_time()))

        def on_step_end(self, *_: Any, **__: Any) -> None:
            now, before = (time.perf_counter(), time.process_time()), marks[-1]
            marks.append(now)
            row = {"seconds": now[0] - before[0], "cpu s": now[1] - before[1]}
            found.append({**row, "batch": collating[0], "tokens": given.rows * given.length})

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            if "loss" in logs:
                found[-1]["loss"] = logs["loss"]

    tokenizer = words(given)
    front, _, end = frame(tokenizer)
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15, seed=0)

    def collated(rows: Any) -> Any:
        started = time.perf_counter()
        batch = collate(rows)
        collating[0] = time.perf_counter() - started
        return batch

    rows = text(given, given.length - len(front) - len(end))
    settings = TrainingArguments(
        output_dir=str(scratch), max_steps=given.warmup + given.steps,
        per_device_train_batch_size=given.rows, learning_rate=1e-3, weight_decay=0.1,
        adam_beta2=0.95, max_grad_norm=1.0, lr_scheduler_type="cosine", bf16=given.bf16,
        use_cpu=True, logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True,
    )  # fmt: skip
    side = Trainer(
        model=model(given, tokenizer), args=settings, data_collator=collated,
        train_dataset=Dataset.from_list([{"input_ids": [*front, *row, *end]} for row in rows]),
        callbacks=[Watch()],
    )  # fmt: skip
    side.train()
    return found


if __name__ == "__main__":
    main()
