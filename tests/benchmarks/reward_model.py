"""The reward model beside TRL's RewardTrainer on the same rankings.

    python tests/benchmarks/reward_model.py --model MODEL [--data FILE.jsonl.gz] [options]

MODEL is a causal checkpoint whose pad token is not its end-of-sequence token. FILE holds rankings
of four completions, one a line: `prompt` (or `messages`), `completions`, `ranks` (lower is better)
and perhaps `context`, which stands before the prompt; those with ties are left out. Without a file
rankings are made up: a completion is the better the more of one word it holds.

Both sides get the same token ids, prompts cut on the left so that they are about as long as the
completions, and take an optimiser's step after the same number of rankings. TRL sees a ranking as
its six pairs, at most `--pairs` of them at a time. Each side runs in a process of its own. An
iteration is a step; the first is not counted, the figure is the median of the others. Beside
wall-clock time there is time on the processor, which other work on the machine disturbs less: on a
busy machine compare that. `tokens` are those that a step computes, padding included.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import combinations
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]
SIDES = ("ours", "trl")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data")
    parser.add_argument("--iterations", type=int, default=5, help="counted steps")
    parser.add_argument("--rankings", type=int, default=4, help="rankings of a step")
    parser.add_argument("--heldout", type=int, default=40, help="rankings to judge by")
    parser.add_argument(
        "--length", type=int, default=96, help="tokens of a prompt, of a completion"
    )
    parser.add_argument("--pairs", type=int, default=8, help="TRL's per-device batch")
    parser.add_argument("--tokens", type=int, default=4096, help="our micro-batch")
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--bf16", action="store_true", help="products in bfloat16 on both sides")
    parser.add_argument("--compile", action="store_true", help="our layers; TRL's stay as they are")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES)
    parser.add_argument("--one", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--encoded", help=argparse.SUPPRESS)
    return parser.parse_args()


def read_rankings(path: str) -> Rows:
    content = Path(path).read_bytes()
    text = (gzip.decompress(content) if path.endswith(".gz") else content).decode()
    rows = [json.loads(line) for line in text.splitlines()]
    found = []
    for row in rows:
        prompt = row.get("prompt") or "\n\n".join(turn["content"] for turn in row["messages"])
        prompt = f"{row['context']}\n\n{prompt}" if row.get("context") else prompt
        if len(row["ranks"]) == 4 and len(set(row["ranks"])) == 4:
            texts = {"prompt": prompt, "completions": row["completions"], "ranks": row["ranks"]}
            found.append(texts)
    return found


def made_up_rankings(count: int, tokenizer: Any, length: int) -> Rows:
    """Completions of four different counts of one word among others; uneven in length."""
    rng = random.Random(0)
    words = one_token_words(tokenizer)
    rows = []
    for _ in range(count):
        counts = rng.sample(range(max(4, length // 3)), 4)
        texts = []
        for n in counts:
            size = rng.randint(length // 2, 3 * length // 2)
            others = rng.choices(words[1:], k=size - min(n, size))
            text = [words[0]] * min(n, size) + others
            texts.append(" ".join(rng.sample(text, len(text))))
        ranks = [sorted(counts, reverse=True).index(n) for n in counts]
        prompt = " ".join(rng.choices(words[1:], k=length))
        rows.append({"prompt": prompt, "completions": texts, "ranks": ranks})
    return rows


def one_token_words(tokenizer: Any, most: int = 200) -> list[str]:
    """Return words that are one token each behind a space, so that a text's length is known."""
    words: list[str] = []
    for token in range(len(tokenizer)):
        text = tokenizer.decode([token])
        if text[:1] == " " and text[1:].isascii() and text[1:].isalpha() and len(words) < most:
            words.append(text[1:])
    return words


def encode(options: argparse.Namespace) -> Rows:
    """Return rankings as token ids: enough to train on, and then those to judge by."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    wanted = (options.iterations + 1) * options.rankings + options.heldout
    if options.data:
        rows = read_rankings(options.data)
    else:
        rows = made_up_rankings(wanted, tokenizer, options.length)
    if len(rows) < wanted:
        raise SystemExit(f"{len(rows)} rankings without ties are there, {wanted} are needed")
    rows = random.Random(options.seed).sample(rows, wanted)

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    encoded = []
    for row in rows:
        prompt = ids(row["prompt"])[-options.length :]
        sequences = [[*prompt, *ids(c), tokenizer.eos_token_id] for c in row["completions"]]
        encoded.append({"sequences": sequences, "ranks": [r + 1 for r in row["ranks"]]})
    return encoded


def pairs_of(rows: Rows) -> list[tuple[list[int], list[int]]]:
    found = []
    for row in rows:
        by_rank = [ids for _, ids in sorted(zip(row["ranks"], row["sequences"], strict=True))]
        found += list(combinations(by_rank, 2))
    return found


class Clock:
    """Seconds of the steps, on the wall and on the processor."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.processor: list[float] = []

    def start(self) -> None:
        self._at = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        self.wall.append(time.perf_counter() - self._at[0])
        self.processor.append(time.process_time() - self._at[1])


def run_ours(options: argparse.Namespace, training: Rows, heldout: Rows) -> dict[str, Any]:
    import torch

    from pipeline.models.compile import compile_layers
    from pipeline.stages.reward.settings import RewardSettings
    from pipeline.stages.reward.trainer import RankingTrainer
    from pipeline.training.accelerator import make_accelerator
    from reward.learned.batching import EncodedRanking
    from reward.learned.model import RewardModel

    torch.set_num_threads(options.threads)
    model = RewardModel.start(options.model, seed=options.seed, device="cpu")
    examples = [EncodedRanking(**row) for row in training]
    settings = RewardSettings(
        model=options.model,
        train=({"path": "rankings.jsonl"},),
        prompts_per_step=options.rankings,
        tokens_per_micro_batch=options.tokens,
        learning_rate=options.learning_rate,
        warmup_share=0.0,
        final_share=0.0,
        betas=(0.9, 0.999),
        bf16=options.bf16,
    )
    trainer = RankingTrainer(
        module=model.module,
        examples=examples,
        pad_id=model.pad_id,
        settings=settings,
        seed=options.seed,
        accelerator=make_accelerator(bf16=False),
    )
    if options.compile:
        compile_layers(trainer.module, trainer.accelerator.device)
    clock = Clock()
    for number in range(trainer.total_steps):
        clock.start()
        trainer.step(number)
        clock.stop()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    scores = trainer.score([ids for row in heldout for ids in row["sequences"]])
    ranked = [
        sorted(zip(row["ranks"], scores[4 * n : 4 * n + 4], strict=True))
        for n, row in enumerate(heldout)
    ]
    right = [a > b for row in ranked for (_, a), (_, b) in combinations(row, 2)]
    tokens = sum(e.tree_cost if trainer.as_trees else e.cost for e in examples)
    return figures(options, clock, peak, sum(right) / len(right), tokens / trainer.total_steps)


def run_trl(options: argparse.Namespace, training: Rows, heldout: Rows) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
    from trl import RewardConfig, RewardTrainer

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForSequenceClassification.from_pretrained(
        options.model, num_labels=1, dtype=torch.float32
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    clock, tokens = Clock(), 0

    class AlarmMonitor(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            clock.start()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.stop()

    def count(_: Any, __: Any, inputs: dict[str, Any]) -> None:
        nonlocal tokens
        tokens += inputs["input_ids"].numel()

    def rows(pairs: list[tuple[list[int], list[int]]]) -> Any:
        return Dataset.from_list([{"chosen_ids": a, "rejected_ids": b} for a, b in pairs])

    accumulate = -(-6 * options.rankings // options.pairs)
    with tempfile.TemporaryDirectory() as folder:
        trainer = RewardTrainer(
            model=model,
            args=RewardConfig(
                output_dir=folder,
                per_device_train_batch_size=6 * options.rankings // accumulate,
                gradient_accumulation_steps=accumulate,
                per_device_eval_batch_size=options.pairs,
                num_train_epochs=1,
                learning_rate=options.learning_rate,
                lr_scheduler_type="cosine",
                max_length=None,
                bf16=options.bf16,
                use_cpu=True,
                activation_checkpointing=False,
                logging_strategy="no",
                save_strategy="no",
                report_to=[],
                seed=options.seed,
                disable_tqdm=True,
            ),
            train_dataset=rows(pairs_of(training)),
            eval_dataset=rows(pairs_of(heldout)),
            processing_class=tokenizer,
            callbacks=[AlarmMonitor()],
        )
        model.register_forward_pre_hook(
            lambda module, args, kwargs: count(module, args, kwargs), with_kwargs=True
        )
        trainer.train()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        trained_tokens = tokens / len(clock.wall)
        accuracy = trainer.evaluate()["eval_accuracy"]
    return figures(options, clock, peak, accuracy, trained_tokens)


def figures(
    options: argparse.Namespace, clock: Clock, peak: int, accuracy: float, tokens: float
) -> dict[str, Any]:
    wall = statistics.median(clock.wall[1:])
    processor = statistics.median(clock.processor[1:])
    return {
        "iterations": len(clock.wall) - 1,
        "wall_s": wall,
        "processor_s": processor,
        "rankings_per_wall_s": options.rankings / wall,
        "rankings_per_processor_s": options.rankings / processor,
        "peak_rss_mb": peak,
        "heldout_pair_accuracy": accuracy,
        "tokens": tokens,
    }


def compare(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        encoded = Path(folder) / "rankings.json"
        rows = encode(options)
        encoded.write_text(json.dumps(rows))
        completions = [len(ids) for row in rows for ids in row["sequences"]]
        print(
            f"{options.rankings} rankings a step, {len(rows)} in all; prompts of at most "
            f"{options.length} tokens, sequences of {min(completions)} to {max(completions)}, "
            f"{statistics.mean(completions):.0f} on average; {options.threads} threads"
        )
        found = {}
        for side in options.sides:
            command = [sys.executable, *sys.argv, "--one", side, "--encoded", str(encoded)]
            root = str(Path(__file__).parents[2])
            environment = {
                **os.environ,
                "PYTHONPATH": root,
                "OMP_NUM_THREADS": str(options.threads),
                "HF_HUB_OFFLINE": "1",
            }
            done = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True, env=environment
            )
            found[side] = json.loads(done.stdout.splitlines()[-1])
            print(f"{side:5} {json.dumps(found[side])}", flush=True)
    if len(found) == 2:
        ours, trl = found["ours"], found["trl"]
        for name in ("rankings_per_wall_s", "rankings_per_processor_s"):
            print(f"{name}: {ours[name] / trl[name]:.2f} x")
        print(f"tokens computed: 1 / {trl['tokens'] / ours['tokens']:.2f}")
        print(f"peak memory: {ours['peak_rss_mb'] / trl['peak_rss_mb']:.2f} x")


def main() -> None:
    options = arguments()
    if options.one is None:
        compare(options)
        return
    rows = json.loads(Path(options.encoded).read_text())
    training, heldout = rows[: -options.heldout], rows[-options.heldout :]
    run = {"ours": run_ours, "trl": run_trl}[options.one]
    print(json.dumps(run(options, training, heldout)))


if __name__ == "__main__":
    main()
