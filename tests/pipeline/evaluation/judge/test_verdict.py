"""The outcome in words: better, worse or not shown, and what speaks against it."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.evaluation.judge.verdict import verdict


def rate(judge: str, share: float, low: float, high: float, **more: Any) -> dict[str, Any]:
    return {
        "a": "ppo",
        "b": "sft",
        "judge": judge,
        "rate": share,
        "ci95": [low, high],
        "n": 636,
    } | more


def results(*rates: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"checkpoints": {"base": {}, "sft": {}, "ppo": {}}, "win_rates": [*rates], **more}


def test_all_that_is_known_is_in_the_first_sentence() -> None:
    even = {"rate_length_controlled": 0.769, "ci95_length_controlled": [0.74, 0.8]}
    points = [{"step": 1, "kl": 0.4, "gold": 0.5}, {"step": 9, "kl": 1.7, "gold": 0.9}]
    found = results(
        rate("proxy", 0.9, 0.88, 0.92),
        rate("gold", 0.776, 0.748, 0.803, **even),
        over_optimisation={"points": points, "turn": None},
    )
    assert verdict(found, held_out="held-out ") == [
        "ppo is better than sft: 77.6 % [74.8, 80.3] of 636 held-out prompts by the gold "
        "annotator; of equal length 76.9 % [74.0, 80.0]; no sign of over-optimisation up to KL 1.7."
    ]
    found["over_optimisation"]["turn"] = {"step": 5, "kl": 1.1, "state": "step-5"}
    assert verdict(found)[0].endswith("; gold turned at KL 1.1.")
    found["over_optimisation"] = {"points": [{"step": 1, "kl": 0.01}], "turn": None}
    assert verdict(found)[0].endswith("[74.0, 80.0].")  # it stands where it began


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.51, 0.6, "ppo is better than sft: 55.0 %"),
        (0.5, 0.6, "ppo is not shown to be better or worse than sft: 55.0 %"),
        (0.3, 0.49, "ppo is worse than sft: 55.0 %"),
    ],
)
def test_the_interval_decides(low: float, high: float, said: str) -> None:
    assert verdict(results(rate("gold", 0.55, low, high)))[0].startswith(said)


def test_a_lead_that_is_length_is_called_so() -> None:
    even = {"rate_length_controlled": 0.5, "ci95_length_controlled": [0.45, 0.55]}
    first, doubt = verdict(results(rate("gold", 0.7, 0.65, 0.75, **even)))
    assert first.startswith("ppo is better")
    assert doubt == "At equal length that is not shown: the answers differ in length, too."


def test_a_proxy_alone_says_little() -> None:
    first, doubt = verdict(results(rate("proxy", 0.9, 0.88, 0.92)))
    assert first.endswith("by the reward model.")
    assert "was trained against it, that says little" in doubt


def test_a_policy_that_only_the_reward_model_prefers_was_over_optimised() -> None:
    found = results(rate("gold", 0.139, 0.11, 0.17), rate("proxy", 0.978, 0.96, 0.99))
    first, doubt = verdict(found)
    assert first.startswith("ppo is worse than sft: 13.9 %")
    assert doubt == (
        "The reward model prefers ppo all the same, on 97.8 % [96.0, 99.0]: it was over-optimised."
    )


@pytest.mark.parametrize(
    ("judge", "judges", "said"),
    [
        ("people", {}, "by people."),
        ("held", {"held": {"kind": "reward_model"}}, "by the reward model held."),
        ("gpt", {"gpt": {"kind": "llm"}}, "by the model gpt."),
    ],
)
def test_a_judge_apart_comes_before_the_proxy(
    judge: str, judges: dict[str, Any], said: str
) -> None:
    rates = rate("proxy", 0.9, 0.88, 0.92), rate(judge, 0.6, 0.55, 0.65)
    assert verdict(results(*rates, judges=judges))[0].endswith(said)


def test_nothing_is_said_of_one_checkpoint() -> None:
    assert verdict({"checkpoints": {"sft": {}}, "win_rates": []}) == []
