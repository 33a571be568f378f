from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch

from data.errors import ModelError
from data.records import chat
from pipeline.generation.generate import Sample, Sampling, _draw, generate, response_text, stream

VOCABULARY = 50


def llama(**changes: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.5,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return LlamaForCausalLM(LlamaConfig(**{**settings, **changes}))


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=32,
            n_layer=2,
            n_head=2,
            n_positions=64,
            initializer_range=0.3,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def qwen2() -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            initializer_range=0.5,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def neox() -> Any:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            initializer_range=0.3,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def ragged_prompts(count: int = 9) -> list[list[int]]:
    rng = random.Random(1)
    return [
        [rng.randrange(3, VOCABULARY) for _ in range(rng.randrange(1, 12))] for _ in range(count)
    ]


def sampled(
    model: Any,
    prompts: list[list[int]],
    *,
    seed: int = 0,
    batch_size: int = 64,
    wide: bool = False,
    **settings: Any,
) -> list[Sample]:
    return generate(
        model,
        prompts,
        sampling=Sampling(**settings),
        eos_token_ids=[2, 5, 6, 7],
        pad_token_id=0,
        generator=torch.Generator().manual_seed(seed),
        batch_size=batch_size,
        wide=wide,
    )


@pytest.mark.parametrize("build", [llama, gpt2, qwen2, neox])
def test_greedy_tokens_are_those_of_transformers(build: Any) -> None:
    torch.manual_seed(3)
    model = build().eval()
    prompts = ragged_prompts()
    ours = sampled(model, prompts, max_new_tokens=12, temperature=0.0)
    for prompt, sample in zip(prompts, ours, strict=True):
        theirs = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=[2, 5, 6, 7],
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        assert sample.token_ids == theirs
        assert sample.ended == (theirs[-1] in (2, 5, 6, 7))


@pytest.mark.parametrize("build", [llama, gpt2, qwen2, neox])
def test_logprobs_are_those_of_a_plain_forward(build: Any) -> None:
    torch.manual_seed(4)
    model = build().eval()
    prompts = ragged_prompts()
    for prompt, sample in zip(
        prompts, sampled(model, prompts, max_new_tokens=10, temperature=0.7), strict=True
    ):
        whole = torch.tensor([prompt + sample.token_ids])
        with torch.no_grad():
            logprobs = torch.log_softmax(model(whole).logits[0] / 0.7, dim=-1)
        first = len(prompt) - 1
        for step, (token, logprob) in enumerate(
            zip(sample.token_ids, sample.logprobs, strict=True)
        ):
            assert logprob == pytest.approx(float(logprobs[first + step, token]), abs=1e-4)


def test_what_is_sampled_depends_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    model = llama()
    prompts = ragged_prompts(11)
    whole = sampled(model, prompts, seed=7, max_new_tokens=9)
    assert [
        s.token_ids for s in sampled(model, prompts, seed=7, batch_size=3, max_new_tokens=9)
    ] == [s.token_ids for s in whole]
    other = sampled(model, prompts, seed=8, max_new_tokens=9)
    assert [s.token_ids for s in other] != [s.token_ids for s in whole]
    assert {s.ended for s in whole} == {True, False}  # rows really did leave the batch


def test_wide_rows_change_nothing_but_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(6)
    model = llama().eval()
    prompts = ragged_prompts()
    rows: list[int] = []
    model.register_forward_pre_hook(
        lambda _, __, given: rows.append(len(given["input_ids"])), with_kwargs=True
    )
    settings: dict[str, Any] = {"max_new_tokens": 9, "batch_size": 2}
    plain = sampled(model, prompts, **settings)
    rows.clear()  # the trial's are among them
    wide = sampled(model, prompts, wide=True, **settings)
    assert max(rows) == len(prompts)
    assert [one.token_ids for one in wide] == [one.token_ids for one in plain]
    rows.clear()
    # Where keys and values would take too much, it is a batch.
    monkeypatch.setattr("pipeline.generation.generate.MOST_KEYS", 1)
    assert [one.token_ids for one in sampled(model, prompts, wide=True, **settings)] == [
        one.token_ids for one in plain
    ]
    assert max(rows) == 2


def test_a_response_stops_at_its_first_end_and_at_the_limit() -> None:
    torch.manual_seed(6)
    for sample in sampled(llama(), ragged_prompts(20), max_new_tokens=8):
        ends = [place for place, token in enumerate(sample.token_ids) if token in (2, 5, 6, 7)]
        assert ends == ([len(sample.token_ids) - 1] if sample.ended else [])
        assert len(sample.logprobs) == len(sample.token_ids) <= 8
        assert sample.ended or len(sample.token_ids) == 8


def test_a_response_stops_where_the_context_is_full() -> None:
    torch.manual_seed(6)
    model = llama(max_position_embeddings=10)
    (sample,) = generate(
        model,
        [[3] * 7],
        sampling=Sampling(max_new_tokens=8, temperature=0.0),
        eos_token_ids=[],
        pad_token_id=0,
        generator=torch.Generator(),
    )
    assert len(sample.token_ids) == 3 and not sample.ended


def test_prompts_that_cannot_be_answered_are_refused() -> None:
    model = llama(max_position_embeddings=10)
    with pytest.raises(ModelError, match="prompt 1 has 10 tokens and the model's context holds 10"):
        sampled(model, [[3], [3] * 10])
    with pytest.raises(ModelError, match="prompt 0 has no tokens"):
        sampled(model, [[]])


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([0.1, 0.2, 0.7]).log().expand(3, 3)
    tokens, logprobs = _draw(logits, torch.tensor([0.05, 0.25, 0.35]).double(), Sampling())
    assert tokens.tolist() == [0, 1, 2]
    assert logprobs.tolist() == pytest.approx([math.log(0.1), math.log(0.2), math.log(0.7)])


def test_draws_a_few_rows_at_a_time_of_large_vocabularies(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, uniforms = torch.randn(7, 50), torch.rand(7).double()
    at_once = _draw(logits, uniforms, Sampling())
    monkeypatch.setattr("pipeline.generation.generate.DRAWN_AT_ONCE", 100)
    by_parts = _draw(logits, uniforms, Sampling())
    assert all(torch.equal(*both) for both in zip(at_once, by_parts, strict=True))


def test_temperature_divides_the_logits() -> None:
    logits = torch.tensor([[0.0, math.log(2.0)]])
    _, logprobs = _draw(logits, torch.tensor([0.99]).double(), Sampling(temperature=0.5))
    assert logprobs[0].item() == pytest.approx(math.log(4 / 5))  # e^(2 log 2) = 4 against 1


def test_top_k_and_top_p_leave_the_tail_out_but_not_out_of_the_logprobs() -> None:
    probabilities = torch.tensor([[0.05, 0.5, 0.15, 0.3]])
    grid = torch.linspace(0, 1, 101).double()
    logits = probabilities.log().expand(101, 4)
    by_k, logprobs = _draw(logits, grid, Sampling(top_k=2))
    assert set(by_k.tolist()) == {1, 3}
    assert logprobs[0].item() == pytest.approx(math.log(0.5))
    by_p, _ = _draw(logits, grid, Sampling(top_p=0.81))
    assert set(by_p.tolist()) == {1, 2, 3}
    first, _ = _draw(logits, grid, Sampling(top_p=0.01))
    assert set(first.tolist()) == {1}


def test_stream_yields_what_generate_samples() -> None:
    torch.manual_seed(3)
    model = llama()
    for sampling in (Sampling(max_new_tokens=9, temperature=0.0), Sampling(max_new_tokens=9)):
        arguments: dict[str, Any] = {"sampling": sampling, "eos_token_ids": [2, 5, 6, 7]}
        for seed in range(5):
            (sample,) = generate(
                model,
                [[9, 8]],
                pad_token_id=0,
                generator=torch.Generator().manual_seed(seed),
                **arguments,
            )
            streamed = list(
                stream(model, [9, 8], generator=torch.Generator().manual_seed(seed), **arguments)
            )
            assert [t.id for t in streamed] == sample.token_ids[: len(streamed)]
            assert len(streamed) == len(sample.token_ids) - sample.ended


def test_generation_reports_progress_and_leaves_the_mode() -> None:
    model = llama().train()
    counts: list[int] = []
    generate(
        model,
        ragged_prompts(5),
        sampling=Sampling(max_new_tokens=2),
        eos_token_ids=[2],
        pad_token_id=0,
        generator=torch.Generator(),
        batch_size=2,
        advance=counts.append,
    )
    assert counts == [2, 2, 1]
    assert model.training


def test_an_answer_to_a_chat_is_stripped_and_what_goes_on_from_text_is_not() -> None:
    class Tokenizer:
        def decode(
            self, ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool
        ) -> str:
            assert skip_special_tokens and not clean_up_tokenization_spaces
            return "".join({3: "two", 4: " five", 5: " \n", 2: ""}[i] for i in ids)

    sample = Sample(token_ids=[4, 5, 2], ended=True, logprobs=[0.0, 0.0, 0.0])
    assert response_text(Tokenizer(), "two", [3], sample) == " five \n"
    assert response_text(Tokenizer(), chat("two"), [3], sample) == "five"


@pytest.mark.parametrize("prompt", ["TL;DR:", chat("What is 3 + 4?")], ids=["plain", "chat"])
@pytest.mark.parametrize("text", [" The cat .", "The cat", "  two\n"])
def test_a_sample_is_scored_as_the_text_that_taught_it(
    tiny_tokenizer: Any, prompt: Any, text: str
) -> None:
    from data.records import Completion, Conversation
    from data.text.chat import render_demonstration, render_prompt
    from reward.learned.encoding import Encoder

    tokenizer = tiny_tokenizer()
    tokenizer.clean_up_tokenization_spaces = True
    record: Any = Completion(prompt, text)
    if not isinstance(prompt, str):
        record = Conversation([*prompt, {"role": "assistant", "content": text}])
    opening = render_prompt(tokenizer, prompt)
    ids = render_demonstration(tokenizer, record).ids[len(opening) :]
    sample = Sample(ids, True, [0.0] * len(ids))
    encoder = Encoder(tokenizer, 128)
    told = response_text(tokenizer, prompt, opening, sample)
    assert encoder.encode(prompt, told) == encoder.encode(prompt, text)
    if isinstance(prompt, str):
        assert encoder.encode(prompt, told) == [*opening, *ids]
