"""The doctor's figures by hand, on series that were made up, and on a tiny run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.contract.resume import ResumeStore
from pipeline.rl.health.best_policy import AlarmMonitor, BestPolicy
from pipeline.rl.health.doctor import (
    ADVICE,
    CHECKS,
    KEPT,
    START_CHECKS,
    THRESHOLDS,
    VALUE_GRACE,
    findings,
    sentence,
)
from pipeline.rl.ppo.loop import run_update
from pipeline.rl.settings import AlarmName, DoctorSettings, Hyperparameters

Build = Callable[..., Any]
HEALTHY = {
    "objective/scores_raw": 0.0,
    "objective/scores_raw_std": 2.0,
    "objective/score_length_correlation": 0.2,
    "objective/response_length": 20.0,
    "objective/ended_share": 0.9,
    "objective/kl": 4.0,
    "objective/repeated_share": 0.05,
    "objective/distinct_share": 0.8,
    "policy/entropy_avg": 1.5,
    "policy/entropy_share": 0.3,
    "policy/approxkl_avg": 0.01,
    "val/explained_variance": 0.4,
}
SETTINGS = DoctorSettings()


def series(length: int = 12, **last: Any) -> list[dict[str, float]]:
    """Return a first row that is healthy, and rows with these values instead after it."""
    changed = {name.replace("__", "/"): value for name, value in last.items()}
    assert set(changed) <= set(HEALTHY)
    return [HEALTHY, *({**HEALTHY, **changed} for _ in range(length - 1))]


def ringing(history: list[dict[str, float]], **arguments: Any) -> dict[str, Any]:
    found = findings(history, settings=arguments.pop("settings", SETTINGS), **arguments)
    return {name: reading for name, reading in found.items() if reading.rings}


UNHEALTHY: dict[str, tuple[list[dict[str, float]], float, str]] = {
    "collapse": (series(objective__scores_raw=-3.0), 1.5, "from 0 to -3"),
    "length_hacking": (
        series(objective__response_length=50.0, objective__score_length_correlation=0.9),
        2.5,
        "from 20 to 50 tokens",
    ),
    "lost_ends": (series(objective__ended_share=0.36), 0.4, "36 % of the responses"),
    "kl_blow_up": (series(objective__kl=60.0), 3.0, "3 nats a token"),
    "negative_kl": (series(objective__kl=-2.5), -2.5, "can't be negative"),
    "large_steps": (series(policy__approxkl_avg=1.25), 1.25, "1.25"),
    "dead_value": (series(60, val__explained_variance=-0.1), -0.1, "-10 %"),
    "entropy_collapse": (series(policy__entropy_avg=0.06), 0.04, "from 1.5 to 0.06 nats"),
    "repetition": (series(objective__repeated_share=0.7), 0.7, "70 % of a response's"),
    "identical_responses": (series(objective__distinct_share=0.1), 0.125, "10 % of the responses"),
}


BAD_STARTS: dict[str, tuple[dict[str, float], str]] = {
    "never_ends": (
        {"objective/ended_share": 0.0},
        "none of the first 64 responses ended by itself",
    ),
    "equal_scores": ({"objective/scores_raw_std": 0.0}, "all 64 responses so far score 0"),
    "random_start": ({"policy/entropy_share": 0.97}, "97 % of the entropy of tokens drawn evenly"),
}


@pytest.mark.parametrize("name", BAD_STARTS)
def test_a_bad_start_rings_after_the_first_batches_until_it_is_none_any_more(name: str) -> None:
    bad, told = BAD_STARTS[name]
    history = [{**HEALTHY, **bad}] * 2
    found = ringing(history, batch_size=32)
    assert list(found) == [name] and told in sentence(name, found[name])
    assert not ringing(history, batch_size=32, settings=DoctorSettings(ignore=(name,)))
    if name != "random_start":  # an update is too little to say so, and the next one may differ
        assert not ringing(history, batch_size=31)
        assert not ringing([*history, HEALTHY], batch_size=32)
    if name == "never_ends":
        assert not ringing(history, batch_size=32, ends_matter=False)
    if name == "equal_scores":
        other = {**history[0], "objective/scores_raw": 1.0}
        assert not ringing([*history, other], batch_size=32)


@pytest.mark.parametrize(("share", "told"), [(3 / 64, "4.7 % of the first 64"), (0.06, None)])
def test_a_start_that_hardly_ever_ends_is_told(share: float, told: str | None) -> None:
    history = [{**HEALTHY, "objective/ended_share": share}] * 4
    found = ringing(history, batch_size=16)
    assert [sentence(name, f).startswith(f"never_ends: {told}") for name, f in found.items()] == (
        [True] if told else []
    )
    recovered = ringing([*history, *[HEALTHY] * 4, *history], batch_size=16)
    assert "never_ends" not in recovered  # it is of the start


def test_every_alarm_has_a_check_advice_and_a_case_here() -> None:
    assert set(get_args(AlarmName)) == {*CHECKS, *START_CHECKS} == set(ADVICE)
    assert set(CHECKS) == set(UNHEALTHY) and set(START_CHECKS) == set(BAD_STARTS)
    assert set(ADVICE) == {*THRESHOLDS, "kl_blow_up"}
    assert set(HEALTHY) == set(KEPT)


def test_advice_names_settings_that_exist() -> None:
    known = {*Hyperparameters.model_fields, "value_start", "policy"}
    for name, advice in ADVICE.items():
        assert known & set(advice.remedy.replace(",", " ").replace(":", " ").split()), name


@pytest.mark.parametrize("name", UNHEALTHY)
def test_an_alarm_rings_alone_with_its_figure(name: str) -> None:
    history, figure, told = UNHEALTHY[name]
    found = ringing(history)
    assert list(found) == [name]
    assert found[name].figure == pytest.approx(figure)
    line = sentence(name, found[name])
    assert told in line and f"alarm at {found[name].threshold:g}" in line
    assert ADVICE[name].cause in line and ADVICE[name].remedy in line


@pytest.mark.parametrize("name", UNHEALTHY)
def test_an_alarm_that_is_ignored_does_not_ring(name: str) -> None:
    history, _, _ = UNHEALTHY[name]
    assert not ringing(history, settings=DoctorSettings(ignore=(name,)))


@pytest.mark.parametrize("name", UNHEALTHY)
def test_one_bad_update_or_a_short_history_rings_nothing(name: str) -> None:
    history, _, _ = UNHEALTHY[name]
    assert not ringing(history[:5])
    calm = DoctorSettings(window=10)
    assert not ringing([HEALTHY] * 30 + history[1:2], settings=calm)


def test_shorter_responses_are_length_hacking_too() -> None:
    short: dict[str, Any] = {"objective__response_length": 8.0}
    assert ringing(series(**short, objective__score_length_correlation=-0.9))
    assert not ringing(series(**short, objective__score_length_correlation=0.9))
    assert not ringing(series(**short, objective__score_length_correlation=0.0))


def test_ends_that_were_never_there_or_need_not_be_are_not_lost() -> None:
    history = series(objective__ended_share=0.0)
    assert list(ringing(history)) == ["lost_ends"]
    assert not ringing(history, ends_matter=False)
    rare = {**HEALTHY, "objective/ended_share": 0.1}
    assert not ringing([rare, *history[1:]])


def test_a_score_that_fell_from_its_best_is_a_collapse() -> None:
    rise = [{**HEALTHY, "objective/scores_raw": x / 2} for x in range(12)]
    fall = [{**HEALTHY, "objective/scores_raw": 1.0}] * 5
    assert not ringing(rise)
    # the best five are 3.5 to 5.5, 4.5 on average: (4.5 - 1) / 2
    assert ringing(rise + fall)["collapse"].figure == pytest.approx(1.75)


def test_the_value_model_has_time_to_learn() -> None:
    late = [{**HEALTHY, "val/explained_variance": -0.2}] * (VALUE_GRACE + 1)
    assert not ringing(late[:VALUE_GRACE])
    assert list(ringing(late)) == ["dead_value"]
    assert not ringing(late, value_warmup=1)
    assert list(ringing(late + late[:1], value_warmup=1)) == ["dead_value"]
    still = [{**HEALTHY, "val/explained_variance": 0.0}] * 60  # returns that do not vary
    assert not ringing(still)


@given(
    rise=st.floats(0, 0.3),
    noise=st.lists(st.floats(-0.1, 0.1), min_size=40, max_size=40),
    kl=st.floats(0.01, 0.4),
)
def test_a_steady_rise_with_noise_rings_nothing(rise: float, noise: list[float], kl: float) -> None:
    history = [
        {
            **HEALTHY,
            "objective/scores_raw": rise * step + wobble,
            "objective/kl": kl * step + wobble,
            "objective/response_length": 20 * (1 + wobble),
            "objective/ended_share": 0.9 + wobble,
            "policy/entropy_avg": 1.5 - 0.02 * step,
            "val/explained_variance": min(0.6, -0.5 + 0.05 * step) + wobble,
        }
        for step, wobble in enumerate(noise)
    ]
    for length in range(1, len(history) + 1):
        assert not ringing(history[:length])


@pytest.mark.parametrize("drifts", [True, False])
def test_the_best_policy_goes_by_scores_that_do_not_drift(drifts: bool, tmp_path: Path) -> None:
    hyper = Hyperparameters(doctor={"on_alarm": "best", "best_every": 1})
    best = BestPolicy(ResumeStore(tmp_path, "key"), hyper, drifts)
    # Normalised, a score falls as the mean that it is measured by catches up.
    early = {**HEALTHY, "objective/scores_raw": 1.0, "objective/scores": 0.8}
    late = {**HEALTHY, "objective/scores_raw": 2.0, "objective/scores": 0.3}
    assert best.is_better(early, update=1, ringing=False)
    best.keep(early)
    assert best.is_better(late, update=2, ringing=False) == drifts


def test_the_watch_tells_an_alarm_once_and_again_after_it_passed() -> None:
    watch = AlarmMonitor(Hyperparameters())
    told = []
    bad = {**HEALTHY, "objective/kl": 100.0}
    for row in [HEALTHY] * 6 + [bad] * 8 + [HEALTHY] * 8 + [bad] * 8:
        again = AlarmMonitor(watch.hyper)
        again.restore(watch.state())
        metrics, begins = again.observe(row)
        told.append((metrics["doctor/alarms"], list(begins)))
        watch = again
    assert [place for place, (_, begins) in enumerate(told) if begins] == [7, 23]
    assert told[7] == (1, ["kl_blow_up"]) and told[8] == (1, []) and told[21] == (0, [])


def test_a_healthy_tiny_run_rings_nothing_and_a_wild_one_does(make_ppo: Build) -> None:
    def alarms(updates: int, **changes: Any) -> dict[str, Any]:
        ppo = make_ppo(episodes=updates * 16, batch_size=16, max_new_tokens=8, **changes)
        found: dict[str, Any] = {}
        for _ in range(updates):
            found |= ppo.watch.observe(run_update(ppo).metrics)[1]
        return found

    common = {"epochs": 2, "minibatches": 2, "end_rule": "none", "whiten_advantages": "minibatch"}
    # The start is untrained, which is said of it; nothing is said of what was trained.
    assert list(alarms(16, learning_rate=2e-3, **common)) == ["random_start"]
    wild = alarms(6, learning_rate=1.0, **common)
    assert {"kl_blow_up", "large_steps"} <= set(wild)
    assert wild["large_steps"].figure > 10
