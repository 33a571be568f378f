"""Calls that are executed while a model is sampled from."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pipeline.generation.generate import Sample, Sampling, Token, generate, stream
from pipeline.generation.tools.calls import Asked, Call
from pipeline.generation.tools.registry import TOOLS, tool
from pipeline.generation.tools.toolbox import ToolBox, find_tool

Writes = Callable[..., Sample]


@pytest.fixture
def tokenizer(tiny_tokenizer: Callable[..., Any]) -> Any:
    return tiny_tokenizer(300)


@pytest.fixture
def writes(
    tokenizer: Any, tiny_policy: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Writes:
    """Return the sample of a model that draws these texts, with results where none stands."""

    def run(*texts: str | int, limit: int = 100, **tools: Any) -> Sample:
        drawn: list[int] = []
        for text in texts:
            # Where tokens are forced nothing that is drawn counts.
            known = isinstance(text, str)
            drawn += tokenizer(text)["input_ids"] if known else [tokenizer.eos_token_id] * text
        drawn.append(tokenizer.eos_token_id)
        steps = iter(drawn)
        monkeypatch.setattr(
            "pipeline.generation.generate._draw",
            lambda *_, **__: (torch.tensor([next(steps)]), torch.tensor([-1.0])),
        )
        (sample,) = generate(
            tiny_policy(tokenizer, context=256),
            [[7]],
            sampling=Sampling(limit),
            eos_token_ids=[tokenizer.eos_token_id],
            pad_token_id=0,
            generator=torch.Generator(),
            tools=ToolBox([find_tool("calculator")], tokenizer, **tools),
        )
        return sample

    return run


def texts_of(tokenizer: Any, sample: Sample) -> list[tuple[str, bool]]:
    """Return the stretches of a response that the model wrote, or did not."""
    assert sample.own is not None and len(sample.own) == len(sample.token_ids)
    runs: list[tuple[list[int], bool]] = []
    for token, own in zip(sample.token_ids, sample.own, strict=True):
        if not runs or runs[-1][1] != own:
            runs.append(([], own))
        runs[-1][0].append(token)
    return [(tokenizer.decode(ids, skip_special_tokens=True), own) for ids, own in runs]


def test_a_result_is_put_behind_a_call_and_the_model_goes_on(
    writes: Writes, tokenizer: Any
) -> None:
    result = len(tokenizer("24>>")["input_ids"])
    sample = writes("It is <<48/2=", result, "24 clips")
    assert texts_of(tokenizer, sample) == [
        ("It is <<48/2=", True), ("24>>", False), ("24 clips", True)
    ]  # fmt: skip
    assert sample.ended and sample.calls == (Call("calculator", {"expression": "48/2"}, "24"),)
    own = sample.own or []
    assert [p for p, mine in zip(sample.logprobs, own, strict=True) if not mine] == [0.0] * result


def test_without_a_call_all_is_the_models_own(writes: Writes) -> None:
    sample = writes("1 << 2 = 4")
    assert sample.own is None and sample.calls == () and sample.ended


def test_a_result_that_does_not_fit_is_cut_and_told(writes: Writes, tokenizer: Any) -> None:
    head = len(tokenizer("<<2^60=")["input_ids"])
    sample = writes("<<2^60=", 99, limit=head + 3)
    assert len(sample.token_ids) == head + 3 and not sample.ended
    assert sample.own == [True] * head + [False] * 3
    assert [call.cut for call in sample.calls] == [True]
    # A call that the limit cuts off is none: nobody would read its result.
    assert writes("<<2^60=", limit=head).calls == ()
    assert writes("<<2^60=", limit=head - 1).calls == ()


def test_calls_beyond_the_limit_are_text(writes: Writes, tokenizer: Any) -> None:
    result = len(tokenizer("2>>")["input_ids"])
    sample = writes("<<1+1=", result, "<<1+2=", "4>>", max_calls=1)
    assert texts_of(tokenizer, sample)[-1] == ("<<1+2=4>>", True)
    assert len(sample.calls) == 1


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("1/0", "division by zero"),
        ("9^9^9", "the result of a power is too large"),
        ("1" * 10**6, "1,000,000 characters; at most 500 are read"),
        ("x", "'x' is neither a number nor one of"),
    ],
)
def test_a_call_that_fails_says_why(tokenizer: Any, expression: str, reason: str) -> None:
    call = ToolBox([find_tool("calculator")], tokenizer).call(Asked("calculator", [expression]))
    assert call.error and call.result.startswith(f"error: {reason}")


@pytest.fixture
def box(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ToolBox]:
    """Return a toolbox with one tool of the user, and of further ones."""
    monkeypatch.setattr(TOOLS, "functions", dict(TOOLS.functions))

    def build(function: Callable[..., str], **limits: Any) -> ToolBox:
        tool("mine")(function)
        return ToolBox([find_tool("mine"), find_tool("calculator")], tokenizer, **limits)

    return build


def test_a_result_that_holds_a_call_is_never_executed(box: Callable[..., ToolBox]) -> None:
    def mine(text: str) -> str:
        return f"{text} <<<1+1=\nx>> <<2+2=>>>"

    call = box(mine).call(Asked("mine", ["a"]))
    assert call.result == "a < < <1+1= x> > < <2+2=> > > " and not call.error


def test_what_a_users_tool_raises_is_told_the_model(box: Callable[..., ToolBox]) -> None:
    def mine(text: str) -> str:
        raise SystemExit(3) if text == "exit" else KeyError(text)

    assert box(mine).call(Asked("mine", ["k"])).result == "error: KeyError: 'k'"
    assert box(mine).call(Asked("mine", ["exit"])).result == "error: SystemExit: 3"


def test_a_result_has_a_most_of_characters(box: Callable[..., ToolBox]) -> None:
    def mine(text: str) -> str:
        return text * 10**5 + "\ud800"

    call = box(mine, max_characters=20).call(Asked("mine", ["ab"]))
    assert call.result == "ab" * 8 + "a..." and call.cut and not call.error
    assert box(mine).call(Asked("mine", [""])).result == "?"


@pytest.mark.parametrize("how", ["sleeps", "loops", "swallows"])
def test_a_tool_that_hangs_is_interrupted(box: Callable[..., ToolBox], how: str) -> None:
    def mine(text: str) -> str:
        interrupted = 0
        while True:
            try:
                time.sleep(9 if how == "sleeps" else 0)
            except BaseException:
                interrupted += 1
                if how != "swallows" or interrupted > 1:
                    raise

    limited = box(mine, max_seconds=0.05)
    call = limited.call(Asked("mine", [""]))
    assert call.result == "error: mine took more than 0.05 s" and call.error
    assert limited.call(Asked("calculator", ["1+1"])).result == "2"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["1", "2", "3"], "mine takes 2 arguments, not 3"),
        ([], "mine needs count; it takes count, word"),
        (["x"], "count is 'x', which is no integer"),
        ({"count": 1.5}, "count is 1.5, which is no integer"),
        ({"count": [1]}, "count is [1], which is no integer"),
        ({"count": 1, "colour": "red"}, "mine takes no colour; it takes count, word"),
    ],
)
def test_arguments_must_be_the_tools(
    box: Callable[..., ToolBox], arguments: Any, reason: str
) -> None:
    def mine(count: int, word: str = "a") -> str:
        return count * word

    assert box(mine).call(Asked("mine", arguments)).result == f"error: {reason}"
    assert box(mine).call(Asked("mine", [" 2 ", "b"])).result == "bb"
    assert box(mine).call(Asked("mine", {"count": 3, "word": 1})).result == "111"
    assert box(mine).call(Asked("his", {})).result == (
        "error: no tool is called 'his'; known: mine, calculator"
    )


def test_a_tool_that_gives_no_text_is_told_so(box: Callable[..., ToolBox]) -> None:
    def mine(text: str) -> str:
        return 3  # type: ignore[return-value]

    assert box(mine).call(Asked("mine", [""])).result == "error: mine gave a int, not a text"


@pytest.fixture
def arithmetic() -> Any:
    """Return a tokenizer of few symbols, so that a random model writes calls now and then."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    symbols = ["<pad>", "<end>", "<<", "=", ">>", "\n", "1", "2"]
    words = Tokenizer(models.WordLevel({s: n for n, s in enumerate(symbols)}, unk_token="<pad>"))
    pattern = Regex(r"<<|>>|.|\n")
    words.pre_tokenizer = pre_tokenizers.Split(pattern, "isolated")
    words.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>")


def samples_of(arithmetic: Any, model: Any, *, batch_size: int, tools: bool) -> list[Sample]:
    return generate(
        model,
        [[2 + n % 6, 7][: 1 + n % 2] for n in range(100)],
        sampling=Sampling(40),
        eos_token_ids=[1],
        pad_token_id=0,
        generator=torch.Generator().manual_seed(3),
        batch_size=batch_size,
        wide=batch_size == 7,
        tools=ToolBox([find_tool("calculator")], arithmetic, max_calls=2) if tools else None,
    )


def test_what_is_sampled_depends_on_no_batch(
    arithmetic: Any, tiny_policy: Callable[..., Any]
) -> None:
    model = tiny_policy(arithmetic)
    alone = samples_of(arithmetic, model, batch_size=1, tools=True)
    assert sum(len(sample.calls) for sample in alone) > 9
    assert {call.error for sample in alone for call in sample.calls} == {True, False}
    for batch_size in (7, 64):
        together = samples_of(arithmetic, model, batch_size=batch_size, tools=True)
        assert [(s.token_ids, s.own, s.calls) for s in together] == [
            (s.token_ids, s.own, s.calls) for s in alone
        ]
    # Up to its first call a response is the same without tools, and all of one without calls.
    plain = samples_of(arithmetic, model, batch_size=64, tools=False)
    for mine, without in zip(together, plain, strict=True):
        own = len(mine.token_ids) if mine.own is None else mine.own.index(False)
        assert mine.token_ids[:own] == without.token_ids[:own]
        assert mine.calls or mine == without


def test_a_stream_tells_tokens_that_are_not_the_models(
    arithmetic: Any, tiny_policy: Callable[..., Any]
) -> None:
    model = tiny_policy(arithmetic)
    box = ToolBox([find_tool("calculator")], arithmetic)
    for seed in range(40):
        asked: dict[str, Any] = {"sampling": Sampling(40), "eos_token_ids": [1], "tools": box}
        given = [torch.Generator().manual_seed(seed) for _ in range(2)]
        (sample,) = generate(model, [[7]], generator=given[0], pad_token_id=0, **asked)
        tokens = [*stream(model, [7], generator=given[1], **asked)]
        own = sample.own or [True] * len(sample.token_ids)
        expected = [*map(Token, sample.token_ids, own)]
        assert tokens == expected[: len(expected) - sample.ended]
        if sample.calls:
            return
    pytest.fail("no response holds a call")
