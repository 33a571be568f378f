"""Sampling from encoder-decoders: what transformers' generate gives, and the encoder run once."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from data.errors import ModelError
from data.records import chat
from pipeline.generation import trial
from pipeline.generation.generate import Sample, Sampling, generate, response_text, stream
from pipeline.generation.tools.template_form import TemplateForm
from pipeline.models.seq2seq import decoder_opening

BOTH = ["t5", "bart"]
PROMPTS = [[9, 8, 7, 6], [5, 11, 13, 17, 19, 23, 29], [30], [9, 8, 7, 6], [40, 50, 60]]
END = 6


@pytest.fixture(scope="module")
def policies(tiny_pair: Callable[..., Any]) -> dict[str, Any]:
    return {name: tiny_pair(name, seed=1)[0] for name in BOTH}


def sampled(model: Any, prompts: list[list[int]], **changes: Any) -> list[Sample]:
    given: dict[str, Any] = {"temperature": 1.0, "new": 12, "batch_size": 3, **changes}
    return generate(
        model,
        prompts,
        sampling=Sampling(given.pop("new"), given.pop("temperature")),
        eos_token_ids=[END],
        pad_token_id=0,
        generator=torch.Generator().manual_seed(3),
        **given,
    )


def by_transformers(model: Any, prompts: list[list[int]], new: int) -> list[list[int]]:
    width, opening = max(map(len, prompts)), len(decoder_opening(model))
    rows = model.generate(
        input_ids=torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in prompts]),
        attention_mask=torch.tensor([[1] * len(i) + [0] * (width - len(i)) for i in prompts]),
        do_sample=False,
        max_new_tokens=new + opening - 1,
        forced_eos_token_id=None,
    )[:, opening:].tolist()
    return [ids[: ids.index(END) + 1] if END in ids else ids for ids in rows]


def test_calls_in_the_form_of_a_template_are_refused(policies: dict[str, Any]) -> None:
    form = object.__new__(TemplateForm)  # of which none is made without a template
    with pytest.raises(ModelError, match=r"writes no turns of a chat.* set `form: inline`"):
        sampled(policies["t5"], PROMPTS, tools=SimpleNamespace(form=form))


@pytest.mark.parametrize("architecture", BOTH)
def test_greedy_tokens_of_uneven_rows_are_those_of_transformers(
    policies: dict[str, Any], architecture: str
) -> None:
    model = policies[architecture]
    with torch.no_grad():  # some of the rows shall end by themselves
        model.get_output_embeddings().weight[END] *= 1.5
    mine = sampled(model, PROMPTS, temperature=0.0)
    wanted = by_transformers(model, PROMPTS, 12)
    assert [sample.token_ids for sample in mine] == wanted
    assert [sample.ended for sample in mine] == [ids[-1] == END for ids in wanted]
    streamed = list(
        stream(model, PROMPTS[1], sampling=Sampling(12, 0.0), eos_token_ids=[END],
               generator=torch.Generator())
    )  # fmt: skip
    assert [t.id for t in streamed] == [token for token in wanted[1] if token != END]


@pytest.mark.parametrize("architecture", BOTH)
def test_a_rows_tokens_depend_on_its_batch_no_more_than_on_the_memory(
    policies: dict[str, Any], architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = policies[architecture]
    together = sampled(model, PROMPTS, batch_size=8)
    assert len({tuple(sample.token_ids) for sample in together}) == len(PROMPTS)
    alone = sampled(model, PROMPTS, batch_size=1)
    monkeypatch.setitem(trial._FOUND, model, (1 << 20, "none"))
    uncached = sampled(model, PROMPTS)
    for others in (alone, uncached):
        assert [one.token_ids for one in others] == [one.token_ids for one in together]
        torch.testing.assert_close(
            [one.logprobs for one in others], [one.logprobs for one in together],
            rtol=1e-4, atol=1e-4,
        )  # fmt: skip


def test_the_encoder_runs_once_a_prompt_however_many_samples_and_batches(
    policies: dict[str, Any],
) -> None:
    model = policies["t5"]
    sampled(model, PROMPTS)  # tried on a few tokens before
    read: list[list[int]] = []
    made: list[int] = []
    handles = [
        model.get_encoder().register_forward_pre_hook(
            lambda _, args, given: read.extend(given["input_ids"].tolist()), with_kwargs=True
        ),
        model.decoder.block[0]
        .layer[1]
        .EncDecAttention.k.register_forward_hook(
            lambda _, given, states: made.append(states.shape[0])
        ),
    ]
    samples = sampled(model, [[9, 8, 7], [5, 4]] * 4, batch_size=8)
    assert sorted(read) == [[5, 4, 0], [9, 8, 7]] and made == [2]
    assert len({tuple(sample.token_ids) for sample in samples}) == 8
    read.clear()
    sampled(model, [[9, 8, 7]] * 5 + [[5, 4]] * 3, batch_size=3)
    assert sorted(read) == [[5, 4], [9, 8, 7]]
    for handle in handles:
        handle.remove()


def test_a_response_may_stop_early_and_has_the_decoders_positions(
    policies: dict[str, Any],
) -> None:
    bart = policies["bart"]
    stopped = sampled(bart, PROMPTS, stop=lambda ids: len(ids) == 2)
    assert {len(s.token_ids) for s in stopped} <= {1, 2} and all(s.ended for s in stopped)
    [long] = sampled(bart, [[5] * 64], new=100, stop=None, temperature=0.0)
    assert long.ended or len(long.token_ids) == 63
    with pytest.raises(ModelError, match="prompt 0 has 65 tokens and the model's context holds 64"):
        sampled(bart, [[5] * 65])


def test_a_response_is_a_text_of_its_own(tiny_pair: Callable[..., Any]) -> None:
    _, tokenizer = tiny_pair("t5")
    ids = tokenizer(" Mara.")["input_ids"]
    sample = Sample(ids, True, [0.0] * len(ids), alone=True)
    for prompt in ("Who?", chat("Who?")):
        assert response_text(tokenizer, prompt, [3, 4], sample) == "Mara."


def test_a_model_without_a_fitting_memory_is_refused(
    tiny_pair: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = tiny_pair("t5", seed=2)
    plain = model.forward

    def forward(**given: Any) -> Any:
        output = plain(**given)
        if given.get("input_ids") is None:  # as none that caches what the encoder has read
            output.logits = output.logits.flip(-1)
        return output

    monkeypatch.setattr(model, "forward", forward)
    with pytest.raises(ModelError, match="can't be sampled from: its logits"):
        sampled(model, PROMPTS)
