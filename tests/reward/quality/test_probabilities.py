"""Score differences as probabilities: reliability, log loss, temperature."""

from __future__ import annotations

import math

import numpy as np
import pytest

from reward.quality.pairs import ScoredPair
from reward.quality.probabilities import calibration, calibration_errors


def drawn(n: int, *, scale: float, per_prompt: int = 1) -> list[ScoredPair]:
    """Pairs whose better one is drawn with sigmoid(difference / scale)."""
    generator = np.random.default_rng(0)
    rows = []
    for place in range(n):
        difference = generator.normal() * scale * 2
        wins = generator.random() < 1 / (1 + math.exp(-difference / scale))
        better, worse = (difference, 0.0) if wins else (0.0, difference)
        rows.append(ScoredPair(str(place // per_prompt), better, worse, 1, 1))
    return rows


@pytest.mark.parametrize("scale", [0.2, 1.0, 8.0])
def test_the_temperature_that_pairs_were_drawn_with_is_found(scale: float) -> None:
    found = calibration(drawn(1500, scale=scale))
    temperature = found["temperature"]
    assert temperature["ci95"][0] < scale < temperature["ci95"][1]
    assert temperature["value"] == pytest.approx(scale, rel=0.15)
    # Held out, it is calibrated; as it stands only where the scale was right.
    assert temperature["ece"] < 0.04
    assert temperature["log_loss"] <= found["log_loss"] + 0.002
    assert (found["ece"] < 0.04) == (scale == 1.0)


def test_what_the_temperature_does_is_told_of_prompts_it_was_not_fitted_on() -> None:
    # The first fold of prompts is wrong throughout: fitted on itself it would know.
    rows = [ScoredPair(f"{i:02}", float(i % 5 != 0), float(i % 5 == 0), 1, 1) for i in range(50)]
    temperature = calibration(rows)["temperature"]
    # Four folds know three of four right, a difference of 1 means log 3; the first one knows all.
    assert temperature["log_loss"] > 0.2 * math.log(100) + 0.8 * math.log(4 / 3) - 0.2
    # 40 right and 10 wrong, each with a target of 51/52.
    right, wrong = (40 * 51 + 10) / 52, (10 * 51 + 40) / 52
    assert temperature["value"] == pytest.approx(1 / math.log(right / wrong), rel=0.03)


def test_the_temperatures_interval_by_hand() -> None:
    # 40 prompts right by 2 and 10 wrong by 2: what each adds to the slope of the log loss, over
    # its curvature, is how far it moves 1 / T.
    rows = [ScoredPair(f"{i:02}", 2.0 * (i < 40), 2.0 * (i >= 40), 1, 1) for i in range(50)]
    found = calibration(rows)["temperature"]
    value, target = found["value"], 51 / 52
    share = 1 / (1 + math.exp(-2 / value))
    slopes = 40 * (2 * (target - share)) ** 2 + 10 * (2 * (target - (1 - share))) ** 2
    deviation = math.sqrt(50 / 49 * slopes) / (50 * 4 * share * (1 - share)) * value
    half = 2.0096 * deviation  # Student's quantile of 49
    assert found["ci95"] == pytest.approx(
        [value * math.exp(-half), value * math.exp(half)], rel=1e-3
    )


def test_a_temperature_that_nothing_is_known_of_has_the_widest_interval() -> None:
    # Six of eleven right: nearly chance, so that any temperature would do.
    rows = [ScoredPair(f"{i:02}", float(i % 2 == 0), float(i % 2), 1, 1) for i in range(11)]
    assert calibration(rows)["temperature"]["ci95"] == pytest.approx([0.01, 100])


def test_scores_that_tell_nothing_have_no_temperature() -> None:
    wrong = [ScoredPair(str(i), 0.0, 1.0, 1, 1) for i in range(20)]
    equal = [ScoredPair(str(i), 1.0, 1.0, 1, 1) for i in range(20)]
    few = [ScoredPair("p", 1.0, 0.0, 1, 1)] * 9
    for rows in (wrong, equal, few, []):
        assert calibration(rows)["temperature"] is None


def test_all_right_has_a_temperature_and_bins_an_interval() -> None:
    found = calibration([ScoredPair(str(i), 3.0, 0.0, 1, 1) for i in range(20)])
    assert 0 < found["temperature"]["value"] < 3
    (row,) = found["reliability"]
    assert row["ci95"][0] < row["accuracy"] == row["ci95"][1] == 1
    assert found["ci95_log_loss"] == pytest.approx([found["log_loss"]] * 2)


def test_the_errors_intervals_hold_them_and_know_of_prompts() -> None:
    wide = calibration(drawn(200, scale=1.0, per_prompt=10))
    assert wide["ci95_log_loss"][0] < wide["log_loss"] < wide["ci95_log_loss"][1]
    assert wide["ci95_ece"][0] < wide["ci95_ece"][1]
    repeated = calibration([p for p in drawn(100, scale=1.0) for _ in range(4)])
    once = calibration(drawn(100, scale=1.0))
    assert repeated["ci95_log_loss"] == pytest.approx(once["ci95_log_loss"])


@pytest.mark.parametrize(("scale", "truth"), [(1.0, 0.0), (1.5, 0.061), (3.0, 0.150)])
def test_the_calibration_errors_interval_covers_where_a_model_is_calibrated_too(
    scale: float, truth: float
) -> None:
    # 60 prompts of four pairs that share a third of the difference. The truths are those of
    # 300,000 prompts; of a calibrated model no percentile interval of draws holds it.
    generator, covered, draws = np.random.default_rng(0), 0, 100
    for _ in range(draws):
        shared, own = generator.normal(size=(60, 1)), generator.normal(size=(60, 4))
        differences = 1.5 * (0.3**0.5 * shared + 0.7**0.5 * own)
        wins = generator.random((60, 4)) < 1 / (1 + np.exp(-differences))
        told = np.where(wins, scale * differences, -scale * differences)
        ece, _ = calibration_errors(
            told.ravel(), np.repeat(np.arange(60), 4), bins=5, resamples=200, seed=0
        )
        covered += ece.low <= truth + 0.002 and truth <= ece.high
    assert covered / draws >= 0.9
