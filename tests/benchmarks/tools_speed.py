"""How long sampling with a calculator takes beside sampling as many tokens without.

    python tests/benchmarks/tools_speed.py --threads 1 --repeats 5

Both sides give the same responses of a tiny Llama, each holding calls `<<12+30=42>>`: one side
draws every token, the other has the results put in. So that both write them, what is drawn is
replaced after it was drawn, by prompt and position. Sides take turns; told are the medians of
processor time and their ratio.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial
from typing import Any

import torch

PLACES = 10**6
"""The random number of position t in response n is n + t / PLACES, so that it names both."""


def tokenizer_of() -> Any:
    """Return a byte-level tokenizer without merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|pad|>": 0, "<|end|>": 1} | {c: n for n, c in enumerate(alphabet, start=2)}
    bpe = Tokenizer(models.BPE(vocabulary, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<|pad|>", eos_token="<|end|>")


def model_of(vocabulary: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=128, intermediate_size=352, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=1024,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def written(number: int, calls: int) -> str:
    """Return the text of a response."""
    sums = [(number % 90 + 10 + n, 11 + 7 * n) for n in range(calls)]
    return " ".join(f"So {a}+{b} is <<{a}+{b}={a + b}>>{a + b}." for a, b in sums)


def main() -> None:
    from pipeline.generation import generate as sampling
    from pipeline.generation.tools.toolbox import ToolBox, find_tool

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--calls", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    tokenizer = tokenizer_of()
    model, end = model_of(len(tokenizer)), tokenizer.eos_token_id
    texts = [written(n, given.calls) for n in range(given.prompts)]
    answers = [[*tokenizer(text)["input_ids"], end] for text in texts]
    longest = max(map(len, answers))
    script = torch.tensor([ids + [end] * (longest - len(ids)) for ids in answers])
    draw = sampling._draw

    def drawn(logits: torch.Tensor, numbers: torch.Tensor, **more: Any) -> Any:
        _, logprobs = draw(logits, numbers % 1, **more)
        return script[numbers.long(), ((numbers % 1) * PLACES).round().long()], logprobs

    def numbers(count: int, asked: Any, generator: torch.Generator) -> torch.Tensor:
        places = torch.arange(asked.max_new_tokens, dtype=torch.float64) / PLACES
        return torch.arange(count)[:, None] + places

    sampling._draw, sampling.uniforms = drawn, numbers  # type: ignore[assignment]
    run = partial(
        sampling.generate,
        model,
        [[end, 5 + n % 90, 9] for n in range(given.prompts)],
        sampling=sampling.Sampling(longest),
        eos_token_ids=[end],
        pad_token_id=0,
        generator=torch.Generator(),
        batch_size=given.batch,
    )
    seconds: dict[str, list[float]] = {"without": [], "calculator": []}
    for _ in range(given.repeats + 1):
        # A new one each time, since it remembers the tokens of results.
        box = ToolBox([find_tool("calculator")], tokenizer)
        for side, tools in (("without", None), ("calculator", box)):
            began = time.process_time()
            samples = run(tools=tools)
            seconds[side].append(time.process_time() - began)
            assert [sample.token_ids for sample in samples] == answers
            assert sum(len(s.calls) for s in samples) == (given.calls * given.prompts * bool(tools))
    plain, called = (statistics.median(found[1:]) for found in seconds.values())  # warm
    forced = sum(own is False for sample in samples for own in sample.own or ())
    print(
        f"{sum(map(len, answers)):,} tokens, {forced:,} of results: {plain:.2f} s without, "
        f"{called:.2f} s with the calculator, {called / plain:.2f} x"
    )


if __name__ == "__main__":
    main()
