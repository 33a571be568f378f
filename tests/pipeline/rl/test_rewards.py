"""Terms, each shaped and weighted, and their sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from data.errors import RewardError
from data.records import Completion, Conversation, PromptRow, Record, chat
from pipeline.generation.generate import Sample
from pipeline.rl.ppo.loop import restore, run_update, save
from pipeline.rl.processes import World, make_accelerator
from pipeline.rl.prompts import PreparedPrompt, PromptReport, prepare_prompts
from pipeline.rl.rewards import RewardSum, Term
from pipeline.rl.rollout.rollout import Episodes
from pipeline.rl.settings import Hyperparameters
from reward.computed.rules import rule
from reward.ensemble import Ensemble
from reward.learned.model import RewardModel
from reward.scorer import Facts

Build = Callable[..., Any]


class Says:
    """Gives the next of its lists of scores."""

    def __init__(self, *batches: list[float], name: str = "says") -> None:
        self.batches, self.name = list(batches), name

    def score(self, prompts: Sequence[Any], responses: Sequence[str]) -> list[float]:
        return self.batches.pop(0)


def episodes(*texts: str) -> Episodes:
    prompts = [PreparedPrompt("?", [7], meta={"answer": "a"}) for _ in texts]
    samples = [Sample(list(range(1 + len(text))), True, [0.0] * (1 + len(text))) for text in texts]
    return Episodes(prompts, samples, list(texts))


def scored(rewards: RewardSum, *texts: str, **changes: Any) -> Any:
    settings = {"episodes": 8, "batch_size": 8, "end_rule": "none", **changes}
    ranks = World(make_accelerator(bf16=False), 0)
    return rewards.score(episodes(*texts), hyper=Hyperparameters(**settings), world=ranks)


def test_terms_are_clipped_weighted_and_added_by_hand() -> None:
    rewards = RewardSum([Term(Says([3.0, -1.0]), 2.0, clip=2.0), Term(Says([1.0, 5.0]), -1.0)])
    found = scored(rewards, "a", "b")
    # 2 * min(3, 2) - 1 and 2 * -1 - 5
    assert found.raw_B.tolist() == [3.0, -7.0]
    assert found.final_B.tolist() == [3.0, -7.0]
    assert {name: part.tolist() for name, part in found.parts.items()} == {
        "says": [3.0, -1.0],
        "says.1": [1.0, 5.0],
    }


def test_a_term_is_normalised_by_its_own_running_moments() -> None:
    rewards = RewardSum(
        [
            Term(Says([1.0, 3.0], [2.0, 6.0]), normalize=True),
            Term(Says([0.0, 1.0], [0.0, 1.0]), 10.0),
        ]
    )
    first = scored(rewards, "a", "b")
    # mean 2, deviation sqrt(2); the other term is as it was
    assert first.final_B.tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5 + 10])
    second = scored(rewards, "a", "b")
    # of 1, 3, 2, 6: mean 3, variance 14 / 3
    deviation = (14 / 3) ** 0.5
    assert second.final_B.tolist() == pytest.approx([-1 / deviation, 3 / deviation + 10])


def test_raw_scores_do_not_drift_with_the_statistics() -> None:
    rewards = RewardSum(
        [
            Term(Says([1.0, 3.0], [50.0, 70.0], [1.0, 3.0]), 2.0, clip=0.5, normalize=True),
            Term(Says(*[[0.0, 9.0]] * 3), 10.0, clip=1.0),
        ]
    )
    first, _, last = (scored(rewards, "a", "b") for _ in range(3))
    # 2 * 1 + 0 and 2 * 3 + 10: the normalised term as it came, the other clipped
    assert first.raw_B.tolist() == last.raw_B.tolist() == [2.0, 16.0]
    assert first.final_B.tolist() != last.final_B.tolist()
    assert rewards.drifts(Hyperparameters())
    plain = RewardSum([Term(Says())])
    assert not plain.drifts(Hyperparameters())
    assert plain.drifts(Hyperparameters(normalize_scores=True))


def test_normalisation_comes_before_the_clip_in_terms_and_sum() -> None:
    rewards = RewardSum([Term(Says([100.0, 300.0]), normalize=True, clip=0.5)])
    found = scored(rewards, "a", "b", normalize_scores=True, score_clip=0.6)
    assert found.raw_B.tolist() == [100.0, 300.0]
    # of -0.5 and 0.5: deviation sqrt(0.5), so that 0.5 becomes 0.71
    assert found.final_B.tolist() == pytest.approx([-0.6, 0.6])


def test_the_statistics_of_terms_resume() -> None:
    batches = [[1.0, 3.0], [2.0, 6.0]]
    whole, cut = (
        RewardSum(
            [
                Term(Says([0.0, 1.0], [1.0, 1.0], name="a")),
                Term(Says(*batches), normalize=True),
            ]
        )
        for _ in range(2)
    )
    for rewards in (whole, cut):
        scored(rewards, "a", "b", normalize_scores=True)
    again = RewardSum([Term(Says([1.0, 1.0], name="a")), Term(Says(batches[1]), normalize=True)])
    again.restore(cut.state())
    expected = scored(whole, "a", "b", normalize_scores=True)
    assert torch.equal(scored(again, "a", "b", normalize_scores=True).final_B, expected.final_B)
    assert again.state() == whole.state()
    older = RewardSum([Term(Says())])
    older.restore({"size": 2.0, "total": 1.0, "squares": 1.0})  # from before terms had their own
    assert older.running.size == 2.0 and older.term_running[0].size == 0.0


def test_rewards_look_at_tokens_and_at_the_prompts_row() -> None:
    rewards = RewardSum([Term(rule("length_penalty"), 0.01), Term(rule("answer"))])
    found = scored(rewards, "a", "four")
    # 2 and 5 tokens, the end included; the answer is "a"
    assert found.raw_B.tolist() == pytest.approx([0.98, -0.05])


class Tells:
    """Keeps what it is told of the responses' ends."""

    name = "tells"

    def __init__(self) -> None:
        self.ended: list[bool] = []

    def score(self, prompts: Sequence[Any], responses: Sequence[str]) -> list[float]:
        raise AssertionError("the ends are known")

    def score_informed(
        self, prompts: Sequence[Any], responses: Sequence[str], facts: Facts
    ) -> list[float]:
        self.ended += facts.ended or []
        return [0.0 for _ in responses]


def test_every_member_of_an_ensemble_is_told_what_was_cut_off() -> None:
    members = [Tells(), Tells()]
    asked = episodes("a", "b")
    asked.samples[1] = Sample([5], False, [0.0])
    ranks = World(make_accelerator(bf16=False), 0)
    hyper = Hyperparameters(episodes=8, batch_size=8)
    RewardSum([Term(Ensemble(members))]).score(asked, hyper=hyper, world=ranks)
    assert [member.ended for member in members] == [[True, False]] * 2


def test_a_reward_model_reads_no_end_where_none_was_sampled(
    tiny_tokenizer: Build, save_policy: Build
) -> None:
    model = RewardModel.start(save_policy(tiny_tokenizer()), seed=1)
    asked = episodes(" old", " old")
    asked.samples[1] = Sample([5, 6], False, [0.0, 0.0])
    ranks = World(make_accelerator(bf16=False), 0)
    hyper = Hyperparameters(episodes=8, batch_size=8, end_rule="none")
    found = RewardSum([Term(model)]).score(asked, hyper=hyper, world=ranks).final_B.tolist()
    expected = model.score(["?", "?"], [" old", " old"], ended=[True, False])
    assert found == pytest.approx(expected, abs=1e-5)
    assert abs(found[0] - found[1]) > 1e-3


def test_a_failing_term_leaves_the_statistics_as_they_were() -> None:
    rewards = RewardSum([Term(Says([1.0, 2.0]), normalize=True), Term(Says([1.0]))])
    before = rewards.state()
    with pytest.raises(RewardError, match="reward says gave 1 scores for 2 responses"):
        scored(rewards, "a", "b", normalize_scores=True)
    assert rewards.state() == before
    rewards = RewardSum([Term(Says([1.0, float("nan")]))])
    with pytest.raises(RewardError, match="says gave a score that is not finite"):
        scored(rewards, "a", "b")


def test_a_state_saved_after_a_failure_goes_on_like_an_uninterrupted_run(
    make_ppo: Build, tmp_path: Any
) -> None:
    from pipeline.contract.resume import ResumeStore

    class Breaks:
        name = "breaks"
        calls = 0

        def score(self, prompts: Sequence[Any], responses: Sequence[str]) -> list[float]:
            self.calls += 1
            if self.calls == 2:
                raise RewardError("down")
            return [len(text) / 10 for text in responses]

    settings = {"episodes": 24, "normalize_scores": True}
    whole = make_ppo(scorer=rule("length", target=20, unit="characters"), **settings)
    whole.rewards = RewardSum([Term(Breaks())])
    whole.rewards.terms[0].scorer.calls = 5
    expected = [run_update(whole).metrics["objective/scores"] for _ in range(2)]
    ppo = make_ppo(scorer=Breaks(), **settings)
    run_update(ppo)
    with pytest.raises(RewardError, match="down"):
        run_update(ppo)
    states = ResumeStore(tmp_path / "resume", "key")
    save(ppo, states)
    again = make_ppo(scorer=Breaks(), **settings)
    assert restore(again, states) and again.update == 1
    again.rewards.terms[0].scorer.calls = 5
    assert run_update(again).metrics["objective/scores"] == expected[1]
    ours, theirs = again.policy.state_dict(), whole.policy.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_prompts_carry_the_columns_of_their_rows(tiny_tokenizer: Build) -> None:
    records: list[Record] = [
        PromptRow(prompt="one", meta={"answer": "1", "hard": True}),
        Completion(prompt="two", completion="2"),
        Conversation(messages=chat("three", "3")),
    ]
    found = prepare_prompts(
        records,
        tokenizer=tiny_tokenizer(),
        max_tokens=99,
        prefix_tokens=None,
        report=PromptReport(),
    )
    assert [p.meta for p in found] == [
        {"answer": "1", "hard": True},
        {"answer": "2"},
        {"answer": "3"},
    ]
