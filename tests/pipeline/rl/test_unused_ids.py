"""Ids that no text has: which they are, and that nobody samples or scores them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.evaluation.judge.logprobs import response_logprobs
from pipeline.generation.generate import Sampling, generate
from pipeline.generation.vllm_server import Served, VllmServer
from pipeline.models.load import load_policy, load_tokenizer
from pipeline.models.unused_ids import leave_out_unused, unused_ids
from pipeline.rl.maths.losses import token_scores
from pipeline.rl.ppo.loop import run_update


@pytest.fixture
def padded(save_policy: Any, tiny_tokenizer: Any, tmp_path: Path) -> Path:
    """Return a checkpoint whose embedding has 24 rows more than its tokenizer has tokens.

    Untrained, they would be sampled often: their logits are the highest.
    """
    tokenizer = tiny_tokenizer()
    folder: Path = save_policy(tokenizer, tmp_path / "padded")
    model = load_policy(folder)
    model.resize_token_embeddings(len(tokenizer) + 24, mean_resizing=False)
    with torch.no_grad():
        weights = model.get_output_embeddings().weight
        weights[len(tokenizer) :] = 3 * weights[:24]
    model.save_pretrained(folder)
    return folder


def test_rows_beyond_the_tokenizer_are_never_sampled(padded: Path) -> None:
    tokenizer = load_tokenizer(padded)
    size = len(tokenizer)
    prompts = [[60 + i, 70] for i in range(24)]

    def sample(model: Any, temperature: float = 1.0) -> list[Any]:
        return generate(
            model, prompts, sampling=Sampling(8, temperature), eos_token_ids=[], pad_token_id=0,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip

    assert max(max(s.token_ids) for s in sample(load_policy(padded))) >= size
    model = leave_out_unused(load_policy(padded), tokenizer)
    assert unused_ids(model) == tuple(range(size, size + 24))
    for temperature in (0.0, 1.0, 5.0):
        assert max(max(s.token_ids) for s in sample(model, temperature)) < size
    found = sample(model)
    scored = response_logprobs(
        model, prompts, [s.token_ids for s in found], temperature=1.0, batch_size=5
    )
    assert scored == pytest.approx([sum(s.logprobs) for s in found], abs=1e-4)


def test_holes_are_unused_and_what_can_be_spelt_or_ends_is_not(
    padded: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, model = load_tokenizer(padded), load_policy(padded)
    size = len(tokenizer)
    vocabulary = tokenizer.get_vocab()
    names = {number: token for token, number in vocabulary.items()}
    gone = (100, 101)
    kept = {token: number for token, number in vocabulary.items() if number not in gone}
    monkeypatch.setattr(type(tokenizer), "get_vocab", lambda self: kept)
    # 100 is a hole; 101 spells what another id does, which a mapping from text can't tell.
    monkeypatch.setattr(
        type(tokenizer),
        "convert_ids_to_tokens",
        lambda self, number: None if number == 100 else names.get(number),
    )
    model.generation_config.eos_token_id = [6, size + 1]
    leave_out_unused(model, tokenizer)
    assert unused_ids(model) == (100, size, *range(size + 2, size + 24))


def test_ppo_leaves_them_out_of_roll_out_reference_and_update(
    padded: Path, make_ppo: Callable[..., Any]
) -> None:
    ppo = make_ppo(policy=padded, value="shared", episodes=16)
    metrics = run_update(ppo).metrics
    assert unused_ids(ppo.policy.model) == unused_ids(ppo.reference.model) != ()
    assert metrics["val/rollout_difference"] < 1e-5
    assert metrics["val/ratio"] == pytest.approx(1, abs=1e-5)
    assert metrics["objective/kl"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("entropy", [False, True])
def test_scores_are_those_of_a_vocabulary_without_them(entropy: bool) -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 9, requires_grad=True)
    tokens, unused = torch.tensor([0, 3, 4, 6, 0]), torch.tensor([2, 7, 8])
    left = [0, 1, 3, 4, 5, 6]
    scored = token_scores(
        logits_NV=logits, tokens_N=tokens, temperature=0.7, entropy=entropy, unused_U=unused
    )
    (gradient,) = torch.autograd.grad(scored.logprobs_N.sum(), logits)
    small = logits.detach()[:, left].requires_grad_()
    places = torch.tensor([left.index(int(token)) for token in tokens])
    wanted = token_scores(logits_NV=small, tokens_N=places, temperature=0.7, entropy=entropy)
    torch.testing.assert_close(scored.logprobs_N, wanted.logprobs_N)
    torch.testing.assert_close(scored.entropies_N, wanted.entropies_N)
    torch.testing.assert_close(
        gradient[:, left], torch.autograd.grad(wanted.logprobs_N.sum(), small)[0]
    )
    assert not gradient[:, unused].any()


def test_a_server_is_told_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    bodies: list[Any] = []

    def ask(self: VllmServer, path: str, body: Any = None, *, what: str = "") -> Any:
        bodies.append(body)
        return {"choices": [{"token_ids": [5], "logprobs": {"token_logprobs": [-1.0]}}]}

    monkeypatch.setattr(VllmServer, "_ask", ask)
    server = VllmServer("http://127.0.0.1:1", 1.0)
    served = Served("policy", 64, {}, "processed_logprobs")
    asked: dict[str, Any] = {"max_new_tokens": 4, "temperature": 1.0, "end_ids": [2], "seed": 1}
    server.complete(served, [3], **asked)
    server.complete(served, [3], **asked, unused_ids=(8, 9))
    assert "logit_bias" not in bodies[0]
    assert bodies[1]["logit_bias"] == {"8": -100.0, "9": -100.0}
