import math
import tomllib
from pathlib import Path

import krippendorff
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from data.extras import FIGURES
from data.labels.agreement.agreement import (
    TaskRanks,
    _turn,
    alpha,
    alpha_of,
    coincidences,
    gold_accuracy,
    order_share,
    outcomes,
    pair_agreement,
    pair_alpha,
    rating_alpha,
    self_consistency,
    tau_to_others,
)
from data.labels.agreement.ceiling import (
    accuracy_ceiling,
    annotator_accuracy,
)
from data.labels.agreement.figures import Figure
from data.records import dense_ranks

NAN = math.nan
# Krippendorff (2011), section C: four observers, twelve units, five values.
PAPER = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
    [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
]


def counted(table: list[list[float]], values: range) -> np.ndarray:
    return np.array([[list(unit).count(v) for v in values] for unit in zip(*table, strict=True)])


def names(n: int) -> list[str]:
    return [str(i) for i in range(n)]


@pytest.mark.parametrize(("level", "published"), [("nominal", 0.743), ("ordinal", 0.815)])
def test_alpha_is_that_of_krippendorffs_own_example(level, published):
    counts = counted(PAPER, range(1, 6))
    found = alpha(counts_NV=counts, prompts=names(12), level=level)
    assert found.value == pytest.approx(published, abs=5e-4)
    # The twelfth unit has one label, which agrees or disagrees with nothing.
    assert found.n == 11
    assert found.low < found.value < found.high


def test_coincidences_are_those_of_krippendorffs_own_example():
    whole = coincidences(counts_NV=counted(PAPER, range(1, 6))).sum(0)
    third = 1 / 3
    published = [
        [7, 4 * third, third, third, 0],
        [4 * third, 10, 4 * third, third, 0],
        [third, 4 * third, 8, third, 0],
        [third, third, third, 4, 0],
        [0, 0, 0, 0, 3],
    ]
    assert whole == pytest.approx(np.array(published))
    assert whole.sum() == pytest.approx(40)


def test_what_a_user_installs_has_no_package_of_another_licence():
    project = tomllib.loads((Path(__file__).parents[4] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    named = [*project["dependencies"], *(one for n in extras if n != "dev" for one in extras[n])]
    assert not [one for one in named if "krippendorff" in one]
    assert "krippendorff" not in FIGURES


def test_alpha_of_pairs_is_the_packages():
    generator = np.random.default_rng(3)
    rows = []
    for n in range(60):
        # Of four annotators some have not seen the task; ties are common.
        said = {
            who: generator.integers(1, 3, size=2).tolist()
            for who in "abcd"
            if generator.random() < 0.6
        }
        rows.append(TaskRanks(f"p{n // 2}", f"t{n}", {w: dense_ranks(r) for w, r in said.items()}))
    table = [
        [
            _turn(f"0\n{row.task}\n0") * outcomes(row.ranks[w])[0] if w in row.ranks else NAN
            for row in rows
        ]
        for w in "abcd"
    ]
    theirs = krippendorff.alpha(reliability_data=table, level_of_measurement="nominal")
    assert pair_alpha(tasks=rows).value == pytest.approx(theirs, abs=1e-12)


def test_alpha_of_ratings_with_some_missing_is_the_packages():
    generator = np.random.default_rng(4)
    worth = generator.integers(1, 8, size=50)
    table = np.clip(worth + generator.integers(-2, 3, size=(3, 50)), 1, 7).astype(float)
    table[generator.random(table.shape) < 0.3] = NAN
    given_of = [("p", [int(value) for value in unit if value == value]) for unit in table.T]
    theirs = krippendorff.alpha(
        reliability_data=table, level_of_measurement="ordinal", value_domain=range(1, 8)
    )
    found = rating_alpha(ratings=given_of, values=range(1, 8))
    assert found.value == pytest.approx(theirs, abs=1e-12)


@given(
    table=st.lists(st.lists(st.integers(0, 4), min_size=4, max_size=4), min_size=1, max_size=8),
    level=st.sampled_from(["nominal", "ordinal"]),
)
def test_the_alpha_of_the_draws_is_the_packages(table, level):
    counts = np.array(table)
    counts = counts[counts.sum(1) > 1]
    ours = alpha_of(coincidences_RVV=coincidences(counts_NV=counts).sum(0)[None], level=level)[0]
    if (counts.sum(0) > 0).sum() < 2:
        assert math.isnan(ours)
    else:
        theirs = krippendorff.alpha(value_counts=counts, level_of_measurement=level)
        assert ours == pytest.approx(theirs, abs=1e-9)


def test_outcomes_of_ranks():
    assert outcomes([2, 1, 2]) == [-1, 0, 1]


TASKS = [
    # Three annotators, one pair: two agree, the third says tie.
    TaskRanks("p", "t1", {"a": [1, 2], "b": [1, 2], "c": [1, 1]}),
    # Two annotators, one pair, opposite.
    TaskRanks("q", "t2", {"a": [1, 2], "b": [2, 1]}),
    TaskRanks("r", "t3", {"a": [1, 2]}),
]


def test_pair_agreement_by_hand():
    with_ties = pair_agreement(tasks=TASKS, ties=True)
    # ab agree, ac and bc don't; then ab don't: 1 of 4.
    assert (with_ties.value, with_ties.n, with_ties.of) == (0.25, 2, "prompts")
    without = pair_agreement(tasks=TASKS, ties=False)
    assert without.value == 0.5
    assert pair_agreement(tasks=TASKS, ties=True, annotator="c").value == 0.0
    assert "only 2 prompts" in with_ties.note


def test_figures_that_do_not_exist_say_why():
    alone = [TaskRanks("r", "t3", {"a": [1, 2]})]
    for found in (
        pair_agreement(tasks=alone, ties=True),
        pair_alpha(tasks=alone),
        tau_to_others(tasks=alone),
    ):
        assert found.value is None
        assert "no task has labels of two annotators" in found.note
    tied = [TaskRanks("r", "t", {"a": [1, 1], "b": [1, 2]})]
    assert "somebody says tie" in pair_agreement(tasks=tied, ties=False).note
    assert "left out, all tied" in tau_to_others(tasks=tied).note
    assert "no gold" in gold_accuracy(labels=[]).note
    assert "twice" in self_consistency(repeats=[]).note
    assert "no ratings" in rating_alpha(ratings=[], values=range(1, 8)).note


def test_unanimous_data_is_told_in_words():
    same = [TaskRanks(f"p{i}", f"t{i}", {"a": [1, 2, 3], "b": [1, 2, 3]}) for i in range(30)]
    agreed = pair_agreement(tasks=same, ties=True)
    assert agreed.value == 1
    assert agreed.note == "unanimous: no two labels differ"
    # Wilson's with 30 trials: 30 / (30 + 1.96^2).
    assert agreed.low == pytest.approx(30 / (30 + 1.959964**2))
    assert agreed.high == 1
    assert pair_alpha(tasks=same).value == 1
    tied = [TaskRanks(f"p{i}", f"t{i}", {"a": [1, 1], "b": [1, 1]}) for i in range(30)]
    assert pair_alpha(tasks=tied).value is None
    assert "one and the same value in all 60 labels" in pair_alpha(tasks=tied).note
    rated = rating_alpha(ratings=[("p", [4, 4]), ("q", [4, 4])], values=range(1, 8))
    assert rated.value is None
    assert "unanimous" in rated.note


def test_alpha_of_pairs_does_not_depend_on_which_completion_stands_first():
    generator = np.random.default_rng(0)
    better = [[1, 2], [2, 1]]
    tasks, turned = [], []
    for i in range(400):
        # The first completion wins nine times out of ten; annotators follow no more than that.
        said = {who: better[int(generator.random() > 0.9)] for who in "ab"}
        tasks.append(TaskRanks(f"p{i}", f"t{i}", said))
        turned.append(TaskRanks(f"p{i}", f"t{i}", {w: r[::-1] for w, r in said.items()}))
    raw = pair_agreement(tasks=tasks, ties=True).value
    found = pair_alpha(tasks=tasks)
    assert found.value == pytest.approx(pair_alpha(tasks=turned).value)
    # Turned at random chance agrees on half, so alpha is close to 2 x agreement - 1.
    assert found.value == pytest.approx(2 * raw - 1, abs=0.02)


RANKS = st.lists(st.integers(1, 4), min_size=4, max_size=4).map(dense_ranks)


@given(tasks=st.lists(st.lists(RANKS, min_size=2, max_size=4), min_size=1, max_size=5))
def test_figures_lie_in_their_range_and_do_not_know_names(tasks):
    held = [
        TaskRanks(str(i), str(i), {str(k): r for k, r in enumerate(said)})
        for i, said in enumerate(tasks)
    ]
    renamed = [t._replace(ranks={f"x{9 - int(k)}": r for k, r in t.ranks.items()}) for t in held]
    for measure, lowest in (
        (lambda t: pair_agreement(tasks=t, ties=True), 0.0),
        (lambda t: pair_agreement(tasks=t, ties=False), 0.0),
        (lambda t: tau_to_others(tasks=t), -1.0),
        (lambda t: pair_alpha(tasks=t), -1.0),
    ):
        found = measure(held)
        assert measure(renamed).value == pytest.approx(found.value)
        if found.value is None:
            assert found.note
        else:
            assert lowest - 1e-9 <= found.value <= 1 + 1e-9
        for end in (found.low, found.high):
            assert end is None or math.isfinite(end)


def test_tau_is_to_the_mean_of_the_others():
    said = {"a": [1, 2, 3], "b": [1, 3, 2], "c": [2, 1, 3]}
    tasks = [TaskRanks("p", "t", said)]
    # a against the means of b and c: 1.5, 2, 2.5, the same order.
    assert tau_to_others(tasks=tasks, annotator="a").value == pytest.approx(1)
    # b against 1.5, 1.5, 3: ties in the consensus.
    expected = kendalltau([1, 3, 2], [1.5, 1.5, 3]).statistic
    assert tau_to_others(tasks=tasks, annotator="b").value == pytest.approx(expected)
    assert tau_to_others(tasks=tasks, annotator="nobody").value is None


def test_gold_counts_each_label_once_whatever_its_completions():
    assert order_share(ranks=[1, 1, 2], known=[1, 2, 3]) == (2.5, 3)
    labels = [([1, 2], [1, 2]), ([3, 2, 1], [1, 2, 3]), ([1, 1], [1, 2]), ([1, 2], [1, 1])]
    found = gold_accuracy(labels=labels)
    # 1, 0 and 1/2; the last has no known order.
    assert (found.value, found.n, found.of) == (0.5, 3, "gold labels")
    # Wilson's for 1.5 of 3: 0.5 +- z sqrt(n/4 + z^2/4) / (n + z^2).
    z = 1.959964
    half = z * math.sqrt(3 / 4 + z * z / 4) / (3 + z * z)
    assert (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half))


def test_self_consistency_counts_ties():
    found = self_consistency(repeats=[("p", [1, 2, 2], [1, 2, 3]), ("q", [1, 2], [1, 2])])
    assert found.value == pytest.approx(3 / 4)


@pytest.mark.parametrize(("agreement", "p"), [(1.0, 1.0), (0.5, 0.5), (0.4, 0.5), (0.68, 0.8)])
def test_accuracy_of_annotators_from_their_agreement(agreement, p):
    assert annotator_accuracy(agreement=agreement) == pytest.approx(p)
    if p > 0.5:
        # Two who are right with p and err alone agree with p^2 + (1 - p)^2.
        assert p * p + (1 - p) ** 2 == pytest.approx(agreement)


@given(shares=st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_the_best_model_lies_between_the_two_ends_of_the_ceiling(shares):
    # Of each pair the share of the pool that prefers the first; the best model says the majority.
    agreement = math.fsum(q * q + (1 - q) ** 2 for q in shares) / len(shares)
    best = math.fsum(max(q, 1 - q) for q in shares) / len(shares)
    found = accuracy_ceiling(agreement=Figure(min(1.0, agreement)))
    assert found.low - 1e-9 <= best <= found.high + 1e-9


def test_the_ceiling_is_told_in_words_where_there_is_none():
    assert accuracy_ceiling(agreement=Figure(None, note="too few")).note == "not known: too few"
    chance = accuracy_ceiling(agreement=Figure(0.45, 0.4, 0.5))
    assert (chance.low, chance.high) == (0.5, 0.5)
    assert "no more than chance" in chance.note
    assert "never disagree" in accuracy_ceiling(agreement=Figure(1.0)).note
    with pytest.raises(ValueError, match="share from 0 to 1"):
        annotator_accuracy(agreement=1.2)
