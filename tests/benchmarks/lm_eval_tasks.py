"""Tasks beside lm-eval's own HFLM: log-likelihoods of choices, and answers up to a stop.

    python tests/benchmarks/lm_eval_tasks.py --model tiny
    python tests/benchmarks/lm_eval_tasks.py --model FOLDER_OF_A_CHECKPOINT

Both sides get the same requests in text, as a task of lm-eval makes them, and hold the same model.
The items are beginnings of documents of the embedded world with four sentences to choose from,
without examples and behind `--shots` others; the answers go on from beginnings of documents, up to
the end of a sentence, or `--response` tokens; then all of them to `--response` tokens, by
themselves and behind `--shots` whole documents. `tiny` is a Llama of hidden size 256 with 4 layers,
random weights and a tokenizer of 2,048 tokens made from the world's corpus; its answers end at one
token of some thirty.

First the results are compared: log-probabilities to 1e-3, greedy answers to the letter (a tie that
rounding decides may make one differ; it is counted). Then both sides are timed turn about,
`--iterations` times, answers drawn at temperature 1; what counts are medians of the clock and of
the processor, of answers for a token of them; quote the ratio.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="tiny", help="`tiny` or the folder of a checkpoint")
    parser.add_argument("--items", type=int, default=100, help="of multiple choice")
    parser.add_argument("--shots", type=int, default=3, help="examples, where there are some")
    parser.add_argument("--only", default="", help="rounds whose name holds this")
    parser.add_argument("--prompts", type=int, default=64, help="to write answers to")
    parser.add_argument("--response", type=int, default=96, help="tokens, at most")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "1")))
    return parser.parse_args()


def load(given: argparse.Namespace, texts: list[str]) -> tuple[Any, Any]:
    """Return model and tokenizer."""
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    if given.model != "tiny":
        model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32)
        return model.eval(), AutoTokenizer.from_pretrained(given.model)
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>"]
    trainer = trainers.BpeTrainer(vocab_size=2048, special_tokens=special, show_progress=False)
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=special[0], pad_token=special[0]
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=1024, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=1024,
        tie_word_embeddings=True, initializer_range=0.06, eos_token_id=0, pad_token_id=0,
        bos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval(), tokenizer


def choices(sentences: list[list[str]], count: int, shots: int) -> list[Instance]:
    """Return requests of items of four choices, each behind so many others with their answers."""
    draw = random.Random(0)
    items = []
    for at in range(count + shots):
        document = sentences[at % len(sentences)]
        cut = draw.randrange(2, 5)
        others = [draw.choice(draw.choice(sentences)) for _ in range(3)]
        items.append((" ".join(document[:cut]), [f" {text}" for text in (document[cut], *others)]))
    shown = "".join(f"{context}{texts[0]}\n\n" for context, texts in items[:shots])
    return [
        Instance("loglikelihood", {}, (shown + context, text), place)
        for place, (context, texts) in enumerate(items[shots:])
        for text in texts
    ]


def prompts(
    sentences: list[list[str]], given: argparse.Namespace, until: list[str], shots: int = 0
) -> tuple[list[Instance], list[Instance]]:
    """Return requests to write on, behind so many documents: greedy ones, and ones that draw."""
    settings: dict[str, Any] = {"until": until, "max_gen_toks": given.response}
    drawn = {"do_sample": True, "temperature": 1.0, "top_k": 0}
    shown = "".join(" ".join(one) + "\n\n" for one in sentences[:shots])
    others = sentences[shots:]
    texts = [
        shown + " ".join(others[at % len(others)][: 1 + at % 4]) for at in range(given.prompts)
    ]
    greedy, sampled = (
        [Instance("generate_until", {}, (text, dict(how)), at) for at, text in enumerate(texts)]
        for how in (settings, settings | drawn)
    )
    return greedy, sampled


def timed(
    run: Callable[[Any], list[Any]], requests: list[Instance], tokenizer: Any
) -> tuple[float, float]:
    """Return seconds of the clock and of the processor, of answers a thousand tokens of them."""
    clock, processor = time.perf_counter(), time.process_time()
    results = run(requests)
    clock, processor = time.perf_counter() - clock, time.process_time() - processor
    if not isinstance(results[0], str):
        return clock, processor
    tokens = sum(len(tokenizer(text)["input_ids"]) + 1 for text in results)
    print(f"  {len(results)} answers of {tokens / len(results):.1f} tokens in {clock:.2f} s")
    return 1000 * clock / tokens, 1000 * processor / tokens


def main() -> None:
    """Compare, then time."""
    from data.world import World
    from pipeline.contract.console import Console
    from pipeline.evaluation.benchmarks.asking import Subject
    from pipeline.evaluation.benchmarks.harness import LiveModel

    given = arguments()
    torch.set_num_threads(given.threads)
    texts = [document.text for document in World(0).documents("corpus_heldout")]
    sentences = [text.replace("\n", " ").split(". ") for text in texts]
    sentences = [[part.strip(". ") + "." for part in one] for one in sentences if len(one) > 5]
    model, tokenizer = load(given, texts)
    console = Console(quiet=True)
    ours = LiveModel(
        Subject(
            name="ours", model=model, tokenizer=tokenizer, plain=True, batch_size=given.batch,
            seed=0, progress=lambda total, label, unit: console.progress(total, label, unit=unit),
            say=print,
        )
    )  # fmt: skip
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=given.batch, device="cpu")
    until, never = ["."] if given.model != "tiny" else [" w", "."], ["never written"]
    items, behind = (choices(sentences, given.items, shots) for shots in (0, given.shots))
    rounds: dict[str, tuple[str, list[Instance], list[Instance]]] = {
        "log-likelihoods, no examples": ("loglikelihood", items, items),
        f"log-likelihoods, {given.shots} examples": ("loglikelihood", behind, behind),
        "answers": ("generate_until", *prompts(sentences, given, until)),
        "answers, all to the limit": ("generate_until", *prompts(sentences, given, never)),
        f"answers, all to the limit, {given.shots} examples": (
            "generate_until",
            *prompts(sentences, given, never, given.shots),
        ),
    }
    for name, (kind, compared, requests) in rounds.items():
        if given.only not in name:
            continue
        with contextlib.redirect_stderr(io.StringIO()):
            mine, peer = getattr(ours, kind)(compared), getattr(theirs, kind)(compared)
        if kind == "loglikelihood":
            gap = max(abs(a[0] - b[0]) for a, b in zip(mine, peer, strict=True))
            assert gap < 1e-3, f"{name}: log-probabilities are up to {gap} apart"
            print(f"{name}: {len(requests)} requests, at most {gap:.1e} apart")
        else:
            differ = sum(a != b for a, b in zip(mine, peer, strict=True))
            print(f"{name}: {len(requests)} requests, {differ} differ")
        times: dict[str, list[tuple[float, float]]] = {"ours": [], "HFLM": []}
        for _ in range(given.iterations):
            for side, who in (("ours", ours), ("HFLM", theirs)):
                if who is ours:
                    ours._encoded.cache_clear()  # both sides tokenise again
                with contextlib.redirect_stderr(io.StringIO()):
                    times[side].append(timed(getattr(who, kind), requests, tokenizer))
        medians = {
            side: [statistics.median(column) for column in zip(*pairs, strict=True)]
            for side, pairs in times.items()
        }
        for side, (clock, processor) in medians.items():
            print(f"  {side}: {clock:.2f} s, {processor:.2f} s of the processor")
        print(f"{name}, clock: {medians['HFLM'][0] / medians['ours'][0]:.2f} x")
        print(f"{name}, processor: {medians['HFLM'][1] / medians['ours'][1]:.2f} x")


if __name__ == "__main__":
    main()
