"""What a task is worth and how likely it is chosen; values worked by hand."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import UsageError
from data.labels.campaign import active_selection
from data.labels.campaign.accounts import Accounts
from data.labels.campaign.campaigns import Campaigns
from data.labels.campaign.queue import Queue
from data.labels.records import CampaignSettings, NewTask
from data.labels.store.database import Database


def test_scales_are_the_root_mean_squares_of_centred_scores() -> None:
    # Model 0: deviations 1, -1 and 3, -3; model 1 is constant.
    assert active_selection.scales([[[2.0, 0.0], [5.0, 5.0]], [[6.0, 0.0], [1.0, 1.0]]]) == [
        pytest.approx(math.sqrt(5)),
        1.0,
    ]


def test_models_that_agree_up_to_scale_do_not_disagree() -> None:
    scores = [[1.0, 3.0], [100.0, 120.0]]
    scale = active_selection.scales([scores])
    assert scale == [1.0, 10.0]
    assert active_selection.priority(scores, scale=scale, strategy="disagreement") == 0.0


def test_disagreement_is_the_mean_spread_of_the_standardised_scores() -> None:
    # Standardised: (1, -1) and (-1, 1): the spread of each completion is 1.
    scores = [[2.0, 0.0], [0.0, 20.0]]
    assert active_selection.priority(scores, scale=[1.0, 10.0], strategy="disagreement") == 1.0


def test_the_gap_is_that_of_the_best_two() -> None:
    # The mean is taken off, the scale is 2: the best two are 1.5 and 1 apart from it.
    scores = [[9.0, 8.0, 1.0]]
    assert active_selection.priority(scores, scale=[2.0], strategy="small_gap") == -0.5


def test_a_standard_deviation_more_is_e_times_as_likely() -> None:
    low, high = active_selection.probabilities([1.0, 3.0])
    assert high / low == pytest.approx(math.e**2)
    assert active_selection.probabilities([4.0, 4.0]) == [0.5, 0.5]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50))
def test_probabilities_sum_to_one_and_follow_the_priorities(priorities: list[float]) -> None:
    found = active_selection.probabilities(priorities)
    assert sum(found) == pytest.approx(1.0) and min(found) > 0
    for (p, a), (q, b) in zip(
        zip(priorities, found, strict=True),
        zip(priorities[1:], found[1:], strict=True),
        strict=False,
    ):
        assert p == q or (p < q) == (a <= b) or a == b


@given(st.text(), st.integers())
def test_fractions_are_below_one_and_stay(key: str, seed: int) -> None:
    assert 0 <= active_selection.fraction(seed, key) == active_selection.fraction(seed, key) < 1


def test_draws_follow_the_weights() -> None:
    rng = random.Random(0)
    drawn = [active_selection.draw([1.0, 3.0], rng) for _ in range(4000)]
    assert set(drawn) == {(0, 0.25), (1, 0.75)}
    # 1,000 of 4,000 with a standard deviation of 27.
    assert abs(sum(index == 0 for index, _ in drawn) - 1000) < 140


def test_the_chance_of_a_choice_is_kept_with_it(database: Database) -> None:
    campaigns = Campaigns(database)
    settings = CampaignSettings(mode="rank", strategy="disagreement", overlap=0.0)
    campaign = campaigns.create("c", settings, "")
    scores = {"agree": [[1.0, 0.0], [1.0, 0.0]], "differ": [[1.0, 0.0], [0.0, 1.0]]}
    campaigns.add_tasks(
        campaign.id, [NewTask(k, k, ["a", "b"], scores=s) for k, s in scores.items()]
    )
    ada = Accounts(database).add("Ada", "person").id
    given = Queue(database).next(ada, campaign.id)
    assert given is not None and given.strategy == "disagreement"
    likely = math.e**2 / (1 + math.e**2)
    chance = likely if given.task.new.key == "differ" else 1 - likely
    assert given.probability == pytest.approx(chance)
    assert Queue(database).assignment(given.id, ada) == given


def test_a_strategy_without_its_scores_is_told(database: Database) -> None:
    campaign = Campaigns(database).create("c", CampaignSettings(strategy="disagreement"), "")
    with pytest.raises(
        UsageError, match="task 't': strategy disagreement needs scores of 2 models"
    ):
        Campaigns(database).add_tasks(
            campaign.id, [NewTask("t", "p", ["a", "b"], scores=[[1.0, 2.0]])]
        )


def test_the_overlap_is_near_its_share(database: Database) -> None:
    settings = CampaignSettings(overlap=0.3, annotators_per_task=4)
    campaign = Campaigns(database).create("c", settings, "")
    new = [NewTask(str(n), "p", ["a", "b"]) for n in range(400)]
    assert Campaigns(database).add_tasks(campaign.id, new) == 400
    several = (Campaigns(database).progress(campaign.id).wanted - 400) / 3
    # 120 with a standard deviation of 9.
    assert abs(several - 120) < 37
