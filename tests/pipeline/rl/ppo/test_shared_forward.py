"""Scores and the states that values are read off, from one pass through one adapter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data.records import Message
from pipeline.contract.settings import Lora
from pipeline.generation.generate import Sample
from pipeline.rl.policy import Policy
from pipeline.rl.ppo.experience import Experience, everyones, make_experience
from pipeline.rl.ppo.loop import _logprobs_and_values, _roll_out, _score, _tokens, run_update
from pipeline.rl.prompts import PreparedPrompt
from pipeline.rl.rollout.rollout import Episodes
from pipeline.rl.trunk import TrunkReward
from reward.learned.model import RewardModel

Build = Callable[..., Any]
END = 6


@pytest.fixture
def reading_ppo(make_ppo: Build, publish_adapter: Build, tmp_path: Path) -> Build:
    """Return a builder of runs that read values off their reward model's adapter."""

    def build(**changes: Any) -> Any:
        make_ppo()  # writes the policy
        folder = publish_adapter(str(tmp_path / "start"))
        scorer = TrunkReward(folder, "rm", 4)
        lora = Lora(rank=2, alpha=4)
        return make_ppo(lora=lora, scorer=scorer, read_values=True, value="reward", **changes)

    return build


@pytest.fixture
def episodes(tiny_tokenizer: Build) -> Episodes:
    """Return an answer that ended, one that was cut off, an empty one, and one in odd tokens."""
    tokenizer = tiny_tokenizer()

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    asked: list[list[Message]] = [
        [{"role": "user", "content": text}] for text in ("What is 1 + 2?", "Who?")
    ]
    prompts = [
        PreparedPrompt(p, tokenizer.apply_chat_template(p, add_generation_prompt=True)["input_ids"])
        for p in (asked[0], asked[1], asked[1], asked[0])
    ]
    texts = ["It is 3.", "The mill by", "", "the"]
    letters = [i for c in "the" for i in ids(c)]
    assert len(letters) > len(ids("the"))
    answers = [[*ids(texts[0]), END], ids(texts[1]), [END], [*letters, END]]
    samples = [Sample(a, a[-1] == END, [-1.0] * len(a)) for a in answers]
    return Episodes(prompts, samples, texts)


def calls(ppo: Any, work: Callable[[], Any]) -> tuple[Any, list[int]]:
    """Return what some work gives, and the rows of each pass through the trunk meanwhile."""
    rows: list[int] = []

    def count(module: Any, args: Any, kwargs: Any) -> None:
        if kwargs.get("past_key_values") is None:  # sampling is not counted
            rows.append(kwargs["input_ids"].shape[0])

    hook = ppo.policy.model.base_model.register_forward_pre_hook(count, with_kwargs=True)
    found = work()
    hook.remove()
    return found, rows


@pytest.mark.parametrize("position", ["last", "past_last"])
def test_one_pass_gives_the_scores_and_states_of_two(
    reading_ppo: Build, episodes: Episodes, tmp_path: Path, position: str
) -> None:
    ppo = reading_ppo(score_position=position)
    (scores, reading), rows = calls(ppo, lambda: _score(ppo, episodes))
    assert rows == [4, 1]  # what can't share the pass is the answer in odd tokens
    assert reading.apart == 0.25
    alone = RewardModel.load(tmp_path / "attached" / "stage" / "model", device="cpu")
    asked = [p.prompt for p in episodes.prompts]
    ended = [sample.ended for sample in episodes.samples]
    assert not all(ended)
    expected = torch.tensor(alone.score(asked, episodes.texts, ended=ended))
    assert expected.std() > 0.01
    assert torch.allclose(scores.parts["rm"], expected, atol=1e-5)
    tokens = _tokens(ppo, episodes)
    seen = Policy(ppo.policy.model, None, ppo.policy.trunk, "reward0")
    for row, (ids, sample) in enumerate(zip(tokens.ids, episodes.samples, strict=True)):
        with torch.no_grad():
            everywhere = torch.ones(1, len(ids), dtype=torch.bool)
            states = seen._states(torch.tensor([ids]), torch.tensor([1]), everywhere)
        first = len(ids) - len(sample.token_ids) - 1
        count = int(tokens.value_mask_BT[row].sum())
        found = reading.states_BTH[row]
        assert torch.allclose(found[:count], states[first : first + count], atol=1e-5)
        assert not found[count:].any()


def test_what_was_cut_off_is_scored_at_its_last_token(
    reading_ppo: Build, episodes: Episodes, tmp_path: Path
) -> None:
    ppo = reading_ppo()
    cut = Episodes(episodes.prompts[1:2], episodes.samples[1:2], episodes.texts[1:2])
    ended = [*cut.samples[0].token_ids, END]
    whole = Episodes(cut.prompts, [Sample(ended, True, [-1.0] * len(ended))], cut.texts)
    (of_cut, _), rows = calls(ppo, lambda: _score(ppo, cut))
    assert rows == [1]
    of_whole, _ = _score(ppo, whole)
    alone = RewardModel.load(tmp_path / "attached" / "stage" / "model", device="cpu")
    asked = [cut.prompts[0].prompt] * 2
    expected = alone.score(asked, cut.texts * 2, ended=[False, True])
    assert abs(expected[0] - expected[1]) > 1e-3
    found = [float(scores.parts["rm"]) for scores in (of_cut, of_whole)]
    assert found == pytest.approx(expected, abs=1e-5)


def test_an_update_passes_each_episode_through_each_model_once(reading_ppo: Build) -> None:
    ppo = reading_ppo(episodes=24)
    run_update(ppo)  # the first one also tries out how the model takes a few tokens
    for _ in range(2):
        result, rows = calls(ppo, lambda: run_update(ppo))
        # Scores with states; policy, reference, and the one epoch.
        assert rows[0] == 8
        assert rows[-3:] == [8, 8, 8]
        # What the first pass can't score comes in trees, each of which is one row.
        assert bool(rows[1:-3]) == (result.metrics["val/scored_apart"] > 0)
        assert set(rows[1:-3]) <= {1}


def test_tokens_bound_a_reading_too(reading_ppo: Build, episodes: Episodes) -> None:
    ppo = reading_ppo()
    limited = reading_ppo(tokens_per_micro_batch=1)
    (scores, reading), rows = calls(limited, lambda: _score(limited, episodes))
    assert rows == [1] * 5  # the last is the answer in odd tokens
    expected, whole = _score(ppo, episodes)
    assert torch.allclose(scores.parts["rm"], expected.parts["rm"], atol=1e-5)
    assert torch.allclose(reading.states_BTH, whole.states_BTH, atol=1e-5)


def test_values_start_at_nothing_and_learn(reading_ppo: Build) -> None:
    ppo = reading_ppo(episodes=256, batch_size=32, value_learning_rate=3e-2)
    head = ppo.optimization.value.module
    assert not any(bool(p.any()) for p in head.parameters())
    losses = [run_update(ppo).metrics["loss/value_avg"] for _ in range(8)]
    assert sum(losses[4:]) < 0.9 * sum(losses[:4])
    assert any(bool(p.any()) for p in head.parameters())


class Half:
    """One of two processes that have each half the episodes; keeps what it sends to the other."""

    size = 2

    def __init__(self, rank: int, halves: list[Any]) -> None:
        self.rank, self.halves, self.sent = rank, halves, set[str]()

    def gather(self, value: Any) -> list[Any]:
        other = self.halves[1 - self.rank]
        self.sent = set(value[3])
        theirs = (
            other.tokens.ids,
            other.tokens.starts_B,
            (other.tokens.mask_BT, other.tokens.value_mask_BT),
            {name: getattr(other, name) for name in self.sent},
        )
        return [value, theirs] if self.rank == 0 else [theirs, value]


def read_experience(ppo: Any) -> Experience:
    found = _roll_out(ppo)
    scores, reading = _score(ppo, found)
    tokens, scored = _logprobs_and_values(ppo, found, reading)
    return make_experience(
        tokens,
        scored,
        scores_B=scores.final_B,
        kl_coefficient=0.1,
        hyper=ppo.hyper,
        world=ppo.world,
    )


def half(whole: Experience, rows: slice) -> Experience:
    """Return the experience of a process that has these episodes, as narrow as they are."""
    mask_BT = whole.tokens.mask_BT[rows]
    width = int(mask_BT.sum(dim=1).max())
    mask_BT = mask_BT[:, :width]
    tokens = replace(
        whole.tokens, ids=whole.tokens.ids[rows], starts_B=whole.tokens.starts_B[rows],
        mask_BT=mask_BT, value_mask_BT=mask_BT,
    )  # fmt: skip
    names = [f.name for f in fields(Experience) if f.name.endswith(("_BT", "_BTH"))]
    return replace(
        whole, tokens=tokens, **{name: getattr(whole, name)[rows, :width] for name in names}
    )


def test_states_stay_on_their_process_and_the_values_learn_alike(reading_ppo: Build) -> None:
    ppo = reading_ppo(micro_batch_size=3)
    torch.nn.init.normal_(ppo.optimization.value.module.value_head.weight, std=0.3)
    whole = read_experience(ppo)
    run, minibatch = ppo.optimization, [7, 1, 0, 4, 5]
    count = whole.tokens.value_mask_BT[minibatch].sum()
    told = run._value_head_gradient(whole, minibatch, count)
    gradients = [p.grad.clone() for p in run.value.parameters()]
    run.value.optimizer.zero_grad()
    halves = [half(whole, slice(0, 3)), half(whole, slice(3, 8))]
    parts = torch.zeros_like(told)
    for rank, own in enumerate(halves):
        process: Any = Half(rank, halves)
        joined = everyones(own, process)
        assert joined.states_BTH is own.states_BTH and len(joined.own) == len(own.tokens.ids)
        assert process.sent and "states_BTH" not in process.sent
        assert torch.equal(joined.returns_BT, whole.returns_BT)
        parts += run._value_head_gradient(joined, minibatch, count)
    assert torch.allclose(parts, told, atol=1e-9) and told.abs().sum() > 1e-3
    for before, parameter in zip(gradients, run.value.parameters(), strict=True):
        assert before.abs().max() > 1e-3
        assert torch.allclose(parameter.grad, before, atol=1e-6)


def test_a_process_without_episodes_in_a_minibatch_adds_nothing(reading_ppo: Build) -> None:
    ppo = reading_ppo()
    own = read_experience(ppo)
    told = ppo.optimization._value_head_gradient(replace(own, first=8), [0, 1], torch.tensor(5.0))
    assert not told.any()
    assert all(not p.grad.any() for p in ppo.optimization.value.parameters())
