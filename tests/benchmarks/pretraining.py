"""Steps of pretraining, timed: our loop beside transformers' Trainer and nanochat.

    python tests/benchmarks/pretraining.py [--peer-source FOLDER_OF_NANOCHAT]

Ours and the Trainer train the same Llama (hidden size 256, 4 layers, 4 heads, vocabulary 2,048,
tied embeddings) on 16 rows of 256 random tokens a step, with AdamW. nanochat is run from a copy of
its repository (https://github.com/karpathy/nanochat): its own model of the same width, depth and
vocabulary and its own optimiser (Muon and AdamW), which differ from ours, so that its ratio says
how fast a step is and not how much it learns.

Each side runs in a process of its own, `--turns` times in turn; the first `--warmup` steps are not
counted. What counts are tokens a second of the clock and of the processor (which other work on the
machine disturbs less): medians over all counted steps; quote ratios. `--profile` tells what bounds
our step: the share of its time in matrix products, and their speed beside that of plain products
of the same shapes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SIDES = ("ours", "trainer", "nanochat")
HIDDEN, LAYERS, HEADS, VOCABULARY, ROWS, LENGTH = 256, 4, 4, 2048, 16, 256
FEED_FORWARD = 688  # Llama's 8/3 of the hidden size, as the stage `pretrain` rounds it up


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=5, help="counted steps of a process")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them")
    parser.add_argument("--turns", type=int, default=1, help="processes of each side")
    parser.add_argument("--micro", type=int, default=ROWS, help="rows of our forward pass")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "1")))
    parser.add_argument("--bf16", action="store_true", help="products in bfloat16 on all sides")
    parser.add_argument("--compile", action="store_true", help="compile the models on all sides")
    parser.add_argument("--peer-source", help="folder that holds nanochat's package")
    parser.add_argument("--profile", action="store_true", help="say what bounds our step")
    parser.add_argument("--role", choices=SIDES, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    if given.role is not None:
        print(json.dumps(run_side(given)))
        return
    sides = SIDES if given.peer_source else SIDES[:2]
    steps: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(given.turns):
        for side in sides:
            steps[side] += process(given, side)
    found = {side: medians(rows) for side, rows in steps.items()}
    names = ("tokens/s", "tokens/cpu s", "loss")
    print(f"{'':>9}" + "".join(f"{name:>14}" for name in names))
    for side, row in found.items():
        print(f"{side:>9}" + "".join(f"{row[name]:14.2f}" for name in names))
    for side in sides[1:]:
        for name in names[:2]:
            print(f"{name}, ours to {side}: {found['ours'][name] / found[side][name]:.2f} x")


def process(given: argparse.Namespace, side: str) -> list[dict[str, float]]:
    """Run one side in a process of its own and return its steps."""
    command = [sys.executable, __file__, "--role", side, *sys.argv[1:]]
    path = [str(ROOT)] if side != "nanochat" else [given.peer_source]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "OMP_NUM_THREADS": str(given.threads),
        "NANOCHAT_DTYPE": "bfloat16" if given.bf16 else "float32",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    *told, last = done.stdout.strip().splitlines()
    if given.profile and side == "ours":
        print("\n".join(told))
    rows: list[dict[str, float]] = json.loads(last)
    return rows


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    found = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    tokens = ROWS * LENGTH
    return {
        "tokens/s": tokens / found["seconds"],
        "tokens/cpu s": tokens / found["cpu s"],
        "loss": found["loss"],
    }


def run_side(given: argparse.Namespace) -> list[dict[str, float]]:
    import torch

    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    run = {"ours": ours, "trainer": trainer, "nanochat": nanochat}[given.role]
    with tempfile.TemporaryDirectory() as scratch:
        return run(given, Path(scratch))[given.warmup :]


def chunks(given: argparse.Namespace) -> list[list[int]]:
    """Return rows of random tokens, the same on all sides."""
    draw = random.Random(0)
    rows = ROWS * (given.warmup + given.steps)
    return [[draw.randrange(3, VOCABULARY) for _ in range(LENGTH)] for _ in range(rows)]


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=FEED_FORWARD,
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=HEADS,
        max_position_embeddings=LENGTH, tie_word_embeddings=True,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def timed(step: Callable[[], float]) -> dict[str, float]:
    wall, processor = time.perf_counter(), time.process_time()
    loss = step()
    seconds, busy = time.perf_counter() - wall, time.process_time() - processor
    return {"seconds": seconds, "cpu s": busy, "loss": loss}


def ours(given: argparse.Namespace, scratch: Path) -> list[dict[str, float]]:
    from data.text.packing import write_shards
    from pipeline.training.accelerator import make_accelerator
    from pipeline.training.language_model import LmTrainer
    from pipeline.training.settings import LmSettings

    rows = chunks(given)
    shards = write_shards(
        scratch / "train", rows, context_length=LENGTH, vocabulary_size=VOCABULARY
    )
    settings = LmSettings(
        kind="lm", steps=len(rows) // ROWS, batch_size=ROWS, micro_batch_size=given.micro,
        learning_rate=1e-3, warmup_share=0.0, weight_decay=0.1, bf16=given.bf16,
        compile=given.compile,
    )  # fmt: skip
    training = LmTrainer(
        model=llama(), train=shards, settings=settings, seed=0,
        accelerator=make_accelerator(bf16=given.bf16),
    )  # fmt: skip

    def step(number: int) -> float:
        return training.step(number)["train/loss"]

    found = [timed(partial(step, n)) for n in range(training.total_steps)]
    if given.profile:
        from where_time_goes import tell_profile

        typical = statistics.median(row["seconds"] for row in found[1:])
        last = training.total_steps - 1
        tell_profile(lambda: training.step(last), bf16=given.bf16, seconds=typical)
    return found


def trainer(given: argparse.Namespace, scratch: Path) -> list[dict[str, float]]:
    from datasets import Dataset
    from transformers import Trainer, TrainerCallback, TrainingArguments

    found: list[dict[str, float]] = []
    marks: list[tuple[float, float]] = []

    class AlarmMonitor(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            marks.append((time.perf_counter(), time.process_time()))

        def on_step_end(self, *_: Any, **__: Any) -> None:
            now, before = (time.perf_counter(), time.process_time()), marks[-1]
            marks.append(now)
            found.append({"seconds": now[0] - before[0], "cpu s": now[1] - before[1]})

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            if "loss" in logs:
                found[-1]["loss"] = logs["loss"]

    rows = chunks(given)
    settings = TrainingArguments(
        output_dir=str(scratch), max_steps=len(rows) // ROWS, per_device_train_batch_size=ROWS,
        learning_rate=1e-3, weight_decay=0.1, adam_beta2=0.95, max_grad_norm=1.0,
        lr_scheduler_type="cosine", bf16=given.bf16, torch_compile=given.compile, use_cpu=True,
        logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True,
    )  # fmt: skip
    dataset = Dataset.from_list([{"input_ids": row, "labels": row} for row in rows])
    side = Trainer(
        model=llama(), args=settings, train_dataset=dataset.with_format("torch"),
        callbacks=[AlarmMonitor()],
    )  # fmt: skip
    side.train()
    return found


def nanochat(given: argparse.Namespace, scratch: Path) -> list[dict[str, float]]:
    """Take steps with the model and optimiser of nanochat, as its own training script does."""
    import torch
    from nanochat.gpt import GPT, GPTConfig  # type: ignore[import-not-found]

    model = GPT(
        GPTConfig(
            sequence_len=LENGTH, vocab_size=VOCABULARY, n_layer=LAYERS, n_head=HEADS,
            n_kv_head=HEADS, n_embd=HIDDEN, window_pattern="L",
        )
    )  # fmt: skip
    model.init_weights()
    optimizer = model.setup_optimizer()
    forward = torch.compile(model, dynamic=False) if given.compile else model
    rows = torch.tensor(chunks(given))

    def step(number: int) -> float:
        tokens = rows[number * ROWS : (number + 1) * ROWS]
        # Its loader gives a row one token more than the model takes; the last target is left out.
        targets = torch.cat([tokens[:, 1:], torch.full((ROWS, 1), -1)], dim=1)
        loss = forward(tokens, targets)
        loss.backward()
        optimizer.step()
        model.zero_grad(set_to_none=True)
        return float(loss.detach())

    return [timed(partial(step, n)) for n in range(len(rows) // ROWS)]


if __name__ == "__main__":
    main()
