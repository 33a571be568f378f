"""Log-likelihoods: right by hand, the same in any batch, and lm-eval's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pipeline.evaluation.benchmarks import loglikelihood
from pipeline.evaluation.benchmarks.loglikelihood import Pair, loglikelihoods, too_long
from pipeline.models.seq2seq import decoder_opening

PAIRS = [
    # An item of three choices that begin alike, one of one token, and one that is another's start.
    Pair([9, 10, 11, 12, 13], [20, 21, 22]),
    Pair([9, 10, 11, 12, 13], [20, 23]),
    Pair([9, 10, 11, 12, 13], [20]),
    # One-token choices, a context of one token, the same pair twice, a long one.
    Pair([9, 10, 14], [30]),
    Pair([9, 10, 14], [31]),
    Pair([40], [41, 42, 43, 44]),
    Pair([40], [41, 42, 43, 44]),
    Pair(list(range(50, 90)), [7, 8, 9]),
]


def by_hand(model: Any, pair: Pair) -> tuple[float, bool]:
    ids = [*pair.context, *pair.continuation]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, len(pair.context) - 1 : -1]
    targets = torch.tensor(pair.continuation)
    total = logits.log_softmax(-1)[range(len(targets)), targets].sum()
    return float(total), bool((logits.argmax(-1) == targets).all())


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "mistral"])
def test_each_is_the_sum_over_its_tokens(
    tiny_tokenizer: Callable[..., Any], tiny_policy: Callable[..., Any], architecture: str
) -> None:
    model = tiny_policy(tiny_tokenizer(), architecture=architecture, layers=2).eval()
    likeliest = int(model(torch.tensor([[9, 10, 14]])).logits[0, -1].argmax())
    pairs = [*PAIRS, Pair([9, 10, 14], [likeliest])]
    before = model.config._attn_implementation
    found = loglikelihoods(model, pairs, batch_size=4)
    assert model.config._attn_implementation == before
    for pair, one in zip(pairs, found, strict=True):
        total, greedy = by_hand(model, pair)
        assert one.logprob == pytest.approx(total, abs=1e-4)
        assert (one.greedy, one.tokens) == (greedy, len(pair.continuation))
    assert found[-1].greedy


def test_neither_batch_size_nor_order_nor_trees_change_one(
    tiny_tokenizer: Callable[..., Any],
    tiny_policy: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_policy(tiny_tokenizer(), layers=2)
    done: list[int] = []
    together = loglikelihoods(model, PAIRS, batch_size=64, advance=done.append)
    assert sum(done) == len(PAIRS)
    alone = loglikelihoods(model, PAIRS, batch_size=1)
    backwards = loglikelihoods(model, PAIRS[::-1], batch_size=3)[::-1]
    monkeypatch.setattr(loglikelihood, "MOST_LOGITS", 1)
    in_pieces = loglikelihoods(model, PAIRS, batch_size=5)
    monkeypatch.setattr(loglikelihood, "can_pack_trees", lambda body: False)
    as_rows = loglikelihoods(model, PAIRS, batch_size=3)
    for others in (alone, backwards, in_pieces, as_rows):
        assert [one[1:] for one in others] == [one[1:] for one in together]
        assert [one.logprob for one in others] == pytest.approx(
            [one.logprob for one in together], abs=1e-5
        )


def test_what_begins_alike_is_read_once(
    tiny_tokenizer: Callable[..., Any], tiny_policy: Callable[..., Any]
) -> None:
    model = tiny_policy(tiny_tokenizer())
    read: list[int] = []
    embedding = model.get_input_embeddings()
    context = list(range(10, 60))
    # The examples of a few-shot prompt, the question, and four choices of one and of two tokens.
    pairs = [
        Pair([*context, question], [choice, *more])
        for question in (100, 101)
        for choice, more in ((1, []), (2, []), (3, [4]), (5, [4]))
    ]
    loglikelihoods(model, pairs)  # the trials
    hook = embedding.register_forward_hook(lambda _, given, out: read.append(given[0].numel()))
    loglikelihoods(model, pairs)
    hook.remove()
    # 50 of the shared context; of each question three sequences: itself, and with either choice.
    assert read[-1] == 50 + 2 * (1 + 2 + 2)


def test_a_pair_longer_than_the_context_loses_its_beginning(
    tiny_tokenizer: Callable[..., Any], tiny_policy: Callable[..., Any]
) -> None:
    model = tiny_policy(tiny_tokenizer(), context=32)
    long = Pair(list(range(10, 60)), [7, 8])
    assert too_long(model, [long, PAIRS[0]]) == 1
    kept = Pair(long.context[-31:], long.continuation)
    assert too_long(model, [kept]) == 0
    assert loglikelihoods(model, [long]) == loglikelihoods(model, [kept])


def test_they_are_those_of_lm_eval(
    tiny_tokenizer: Callable[..., Any], tiny_policy: Callable[..., Any]
) -> None:
    from lm_eval.models.huggingface import HFLM

    tokenizer = tiny_tokenizer()
    model = tiny_policy(tokenizer, layers=2)
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3, device="cpu")
    given = [((None, None), list(p.context), list(p.continuation)) for p in PAIRS]
    expected = theirs._loglikelihood_tokens(given, disable_tqdm=True)
    found = loglikelihoods(model, PAIRS)
    assert [one.logprob for one in found] == pytest.approx([e[0] for e in expected], abs=1e-4)
    assert [one.greedy for one in found] == [e[1] for e in expected]


def test_nothing_is_asked(
    tiny_tokenizer: Callable[..., Any], tiny_policy: Callable[..., Any]
) -> None:
    assert loglikelihoods(tiny_policy(tiny_tokenizer()), []) == []


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_an_encoder_decoder_reads_a_context_once_and_is_asked_for_what_is_written(
    tiny_pair: Callable[..., Any], architecture: str
) -> None:
    model, _ = tiny_pair(architecture)
    pairs = [*PAIRS, Pair([9, 10, 14], [30, 31])]
    read: list[Any] = []
    hook = model.get_encoder().register_forward_pre_hook(lambda *given: read.append(given))
    found = loglikelihoods(model, pairs, batch_size=2)
    hook.remove()
    assert len(read) == len({tuple(pair.context) for pair in pairs})
    opening = decoder_opening(model)
    for pair, one in zip(pairs, found, strict=True):
        with torch.no_grad():
            logits = model(
                input_ids=torch.tensor([pair.context]),
                decoder_input_ids=torch.tensor([[*opening, *pair.continuation[:-1]]]),
            ).logits[0, len(opening) - 1 :]
        targets = torch.tensor(pair.continuation)
        total = float(logits.log_softmax(-1)[range(len(targets)), targets].sum())
        assert one.logprob == pytest.approx(total, abs=1e-4)
        greedy = bool((logits.argmax(-1) == targets).all())
        assert (one.greedy, one.tokens) == (greedy, len(targets))
    long = [Pair([5] * 70, [6]), Pair([5] * 64, [6] * 63)]
    assert too_long(model, long) == (1 if architecture == "bart" else 0)
    loglikelihoods(model, long)
