"""Generation beside transformers' `generate`, to real stopping lengths.

    python tests/benchmarks/generation.py --model tiny
    python tests/benchmarks/generation.py --model FOLDER_OF_AN_INSTRUCTED_MODEL

Short questions in the model's chat template are answered, `--batch` at a time on both sides, each
until its end of sequence or `--response` tokens, so rows end at different times. `tiny` is a Llama
of hidden size 256 with 4 layers, random weights and a vocabulary of 2,048, of which so many tokens
end a response that one has 48 tokens on average.

First both decode greedily: the tokens must be the same, but where the two likeliest are so close
that rounding decides: 1e-3 of a logit in fp32; in bf16 as much as transformers' own logits of the
same tokens in bf16 and in fp32 lie apart there, once for each of the two tokens. Such ties are
counted. Then both sample at temperature 1, turn about, `--iterations` times after one that is not
counted. What counts are tokens of responses, ends included, a second of the clock and of the
processor (which other work on the machine disturbs less), medians; quote the ratio. The share of
time in matrix products is from a profile of 24 tokens of one batch, and their speed stands beside
that of a large plain product.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

TINY = {
    "vocab_size": 2048, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 512,
    "tie_word_embeddings": True, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
TINY_ENDS = list(range(2, 2 + TINY["vocab_size"] // 48))
QUESTIONS = [
    "What is {a} plus {b}?", "Name {a} animals.", "Is {a} greater than {b}? Answer yes or no.",
    "What is the capital of France?", "Write one sentence about the number {a}.",
    "Who wrote Hamlet?", "How do I boil {a} eggs?", "What colour is the sky?",
    "Translate 'good morning' to Spanish.", "Give me a word that rhymes with cat.",
    "Why is sleep important?", "How many days are {a} weeks?", "Say hello.",
    "What is the opposite of hot?", "List the first {a} letters of the alphabet.",
    "Tell me about the moon in one sentence.",
]  # fmt: skip
Answers = list[list[int]]
TIE = 1e-3
PACKED = "mkldnn::_linear_pointwise"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="tiny", help="`tiny` or the folder of a checkpoint")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16, help="responses decoded together")
    parser.add_argument("--response", type=int, default=128, help="tokens, at most")
    parser.add_argument("--iterations", type=int, default=5, help="counted ones")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "1")))
    parser.add_argument("--bf16", action="store_true", help="weights in bfloat16 on both sides")
    parser.add_argument("--no-profile", action="store_true")
    return parser.parse_args()


def load(given: argparse.Namespace) -> tuple[Any, Answers, list[int], int]:
    """Return the model, the prompts, the tokens that end a response, and the padding token."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    dtype = torch.bfloat16 if given.bf16 else torch.float32
    draw = random.Random(0)
    if given.model == "tiny":
        torch.manual_seed(0)
        # Wide enough that the likeliest token depends on the others; the default is almost even.
        model = LlamaForCausalLM(LlamaConfig(**TINY, initializer_range=0.06)).to(dtype)
        prompts = [
            [1, *(draw.randrange(64, 2048) for _ in range(draw.randrange(16, 48)))]
            for _ in range(given.prompts)
        ]
        return model.eval(), prompts, TINY_ENDS, 0
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=dtype).eval()
    prompts = []
    for number in range(given.prompts):
        question = QUESTIONS[number % len(QUESTIONS)]
        question = question.format(a=draw.randrange(2, 9), b=draw.randrange(2, 99))
        turns = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        prompts.append(list(tokenizer(text, add_special_tokens=False)["input_ids"]))
    ends = model.generation_config.eos_token_id
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return model, prompts, ends if isinstance(ends, list) else [ends], pad


def ours(given: argparse.Namespace, loaded: Any, *, greedy: bool, seed: int) -> Answers:
    from pipeline.generation.generate import Sampling, generate

    model, prompts, ends, pad = loaded
    samples = generate(
        model,
        prompts,
        sampling=Sampling(given.response, temperature=0.0 if greedy else 1.0),
        eos_token_ids=ends,
        pad_token_id=pad,
        generator=torch.Generator().manual_seed(seed),
        batch_size=given.batch,
    )
    return [sample.token_ids for sample in samples]


def peer(given: argparse.Namespace, loaded: Any, *, greedy: bool, seed: int) -> Answers:
    model, prompts, ends, pad = loaded
    torch.manual_seed(seed)
    answers: Answers = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda place: -len(prompts[place]))
    chosen = {"do_sample": False} if greedy else {"do_sample": True, "top_k": 0, "top_p": 1.0}
    for start in range(0, len(order), given.batch):
        places = order[start : start + given.batch]
        width = max(len(prompts[place]) for place in places)
        padding = [width - len(prompts[place]) for place in places]
        rows = [[pad] * n + prompts[place] for n, place in zip(padding, places, strict=True)]
        mask = [[0] * n + [1] * (width - n) for n in padding]
        with torch.no_grad():
            made = model.generate(
                torch.tensor(rows, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
                max_new_tokens=given.response,
                eos_token_id=ends,
                pad_token_id=pad,
                **chosen,
            )
        for place, row in zip(places, made[:, width:].tolist(), strict=True):
            found = [n for n, token in enumerate(row) if token in ends]
            answers[place] = row[: found[0] + 1] if found else row
    return answers


def next_logits(model: Any, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([tokens], device=model.device)).logits[0, -1].float()  # type: ignore[no-any-return]


def compare_greedy(given: argparse.Namespace, loaded: Any) -> list[float]:
    """Return the gaps, in logits, where rounding decided; stop where anything else differs."""
    exact = copy.deepcopy(loaded[0]).float() if given.bf16 else None
    sides = [run(given, loaded, greedy=True, seed=0) for run in (ours, peer)]
    return ties(loaded, sides[0], sides[1], exact=exact)


def ties(loaded: Any, mine: Answers, theirs: Answers, *, exact: Any = None) -> list[float]:
    """Return the gaps where answers part, by the logits of a model, which `exact` may bound."""
    model, prompts = loaded[0], loaded[1]
    found = []
    for place, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        if a == b:
            continue
        at = next(n for n in range(len(a)) if n >= len(b) or a[n] != b[n])
        logits = next_logits(model, prompts[place] + a[:at])
        allowed = TIE
        if exact is not None:
            exact_logits = next_logits(exact, prompts[place] + a[:at])
            allowed = 2 * float((logits - exact_logits).abs().max())
        gap = float((logits[a[at]] - logits[b[at]]).abs())
        if gap > allowed:
            raise SystemExit(
                f"greedy tokens of prompt {place} differ by {gap:.2g} of a logit, "
                f"above {allowed:.2g}"
            )
        found.append(gap)
    return found


def timed(call: Callable[[], Answers]) -> dict[str, float]:
    wall, processor = time.perf_counter(), time.process_time()
    tokens = sum(map(len, call()))
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    return {"tokens": tokens, "tokens/s": tokens / wall, "tokens/cpu s": tokens / processor}


def products(call: Callable[[], Answers]) -> dict[str, float]:
    """Return the share of processor time in matrix products, and their GFLOP/s."""
    with torch.profiler.profile(with_flops=True, record_shapes=True) as profile:
        call()
    spent = sum(event.self_cpu_time_total for event in profile.key_averages())
    busy = flops = 0.0
    for event in profile.key_averages(group_by_input_shape=True):
        if event.key in ("aten::mm", "aten::addmm", PACKED):
            busy += event.self_cpu_time_total
            flops += event.flops or event.count * packed_flops(event)
    return {"products": busy / spent, "GFLOP/s": flops / busy / 1e3 if busy else 0.0}


def packed_flops(event: Any) -> int:
    """Return the FLOPs of a product with packed weights, which the profiler does not count."""
    if event.key != PACKED:
        return 0
    rows, weight = event.input_shapes[:2]
    return int(2 * math.prod(rows) * weight[0])


def plain_product(size: int = 1024) -> float:
    """Return the GFLOP/s of a large product."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    best = 0.0
    for _ in range(5):
        started = time.perf_counter()
        a @ b
        best = max(best, 2 * size**3 / (time.perf_counter() - started) / 1e9)
    return best


def median(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def main() -> None:
    given = arguments()
    torch.set_num_threads(given.threads)
    loaded = load(given)
    gaps = compare_greedy(given, loaded)
    print(
        f"greedy tokens equal; {len(gaps)} of {given.prompts} responses decided by rounding"
        + (f", at {max(gaps):.2g} of a logit or less" if gaps else ""),
        flush=True,
    )
    sides = {"ours": ours, "generate": peer}
    rows: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for iteration in range(given.iterations + 1):
        for side, run in sides.items():
            row = timed(partial(run, given, loaded, greedy=False, seed=iteration))
            if iteration:
                rows[side].append(row)
    found = {side: median(side_rows) for side, side_rows in rows.items()}
    for row in found.values():
        row["mean length"] = row.pop("tokens") / given.prompts
    print(f"{'':>9}" + "".join(f"{name:>14}" for name in found["ours"]))
    for side, row in found.items():
        print(f"{side:>9}" + "".join(f"{value:14.1f}" for value in row.values()))
    for name in ("tokens/s", "tokens/cpu s"):
        print(f"{name}: {found['ours'][name] / found['generate'][name]:.2f} x", flush=True)
    if not given.no_profile:
        given.response = min(given.response, 24)
        part = (loaded[0], loaded[1][: given.batch], *loaded[2:])
        for side, run in sides.items():
            profile = products(partial(run, given, part, greedy=False, seed=0))
            found[side] |= profile
            share, speed = profile["products"], profile["GFLOP/s"]
            print(f"{side}: {share:.0%} of the time in matrix products, at {speed:.0f} GFLOP/s")
    print(f"a plain product of 1024 x 1024: {plain_product():.0f} GFLOP/s")


if __name__ == "__main__":
    main()
