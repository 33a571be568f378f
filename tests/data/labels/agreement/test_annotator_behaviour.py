import pytest

from data.labels.agreement.annotator_behaviour import (
    Seen,
    first_shown_wins,
    longer_wins,
    seconds,
    skip_rate,
    tie_rate,
)

LABELS = [
    # Shown 2, 0, 1 with ranks 2, 1, 1: 2 and 0 the earlier loses... by hand below.
    Seen("p", ranks=[2, 1, 1], order=[2, 0, 1], lengths=[5, 9, 5]),
    Seen("q", ranks=[1, 2], order=[0, 1], lengths=[3, 8]),
    Seen("q", ranks=[1, 1], order=[1, 0], lengths=[3, 8]),
]


def test_share_won_by_the_one_shown_first():
    # p shows ranks 1, 2, 1: first wins 1-2, loses 2-1, and 1-1 is a tie; q shows 1, 2: wins.
    assert first_shown_wins(labels=LABELS).value == pytest.approx(2 / 3)


def test_labels_whose_order_is_not_known_say_nothing_of_places():
    found = first_shown_wins(labels=[Seen("p", [1, 2], [], [1, 2])])
    assert found.value is None
    assert "known order shown" in found.note


def test_share_won_by_the_longer_answer():
    # p: 0 against 1: the longer wins; 0 against 2: equally long. q: the shorter wins.
    assert longer_wins(labels=LABELS).value == pytest.approx(1 / 2)


def test_ties_are_a_share_of_pairs():
    assert tie_rate(labels=LABELS).value == pytest.approx(2 / 5)
    assert tie_rate(labels=[]).note == "no labels"


def test_skips_are_a_share_of_tasks_met():
    assert skip_rate(labels=3, skips=1).value == 0.25
    assert skip_rate(labels=0, skips=0).note == "no tasks were met"


def test_hasty_and_forgotten_tasks_are_outliers():
    found = seconds(times=[20, 22, 25, 28, 30, 31, 33, 35, 1, 3600, 0])
    # Ten timed: the middle of 28 and 30.
    assert found.median == 29
    assert (found.fast, found.slow, found.n) == (1, 1, 10)
    assert found.mad == 5
    assert found.total == 3825
    assert found.note == "1 label without a time"


def test_times_that_tell_nothing_are_told_in_words():
    assert seconds(times=[]).note == "no labels"
    assert seconds(times=[0.0]).median is None
    same = seconds(times=[5, 5, 5, 90])
    assert (same.slow, same.mad) == (0, 0)
    assert "no outliers are told" in same.note
