"""Pathologies of answers: each by hand, figures with intervals, and when they are told."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.evaluation.judge.pathologies import (
    PATHOLOGIES,
    copied_run,
    copies,
    goes_on_with_options,
    looped_tail,
    pathologies,
    pathology_lines,
    refuses,
    switches,
)


def row(index: int, response: str = "Ada bakes.", **changes: Any) -> dict[str, Any]:
    """Return a sound sample."""
    sample = {"index": index, "prompt": f"Who bakes {index}?", "response": response, "plain": False}
    return {**sample, "n_tokens": 4, "ended": True, "kl": 0.2, **changes}


def found(**checkpoints: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    figures = pathologies(checkpoints)
    return {(one["checkpoint"], one["name"]): one for one in figures}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("a plain answer, and nothing more to be said of it at all", 0),
        ("no no no", 0),  # said for stress
        (
            "Well. " + "the cat sat. " * 4,
            53,
        ),  # ". " before it repeats, too
        ("ab" * 40, 80),
        ("Well. " + "the cat sat. " * 3 + "the c", 46),  # cut off
        ("你好，我是助手。" * 5, 40),
        ("the cat sat. " * 5 + "Then it went away and slept in the sun.", 0),
    ],
)
def test_a_loop_is_a_tail_that_repeats_itself(text: str, size: int) -> None:
    assert looped_tail(text) == size


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I’m sorry, I cannot assist you.", True),
        ("Sorry, but as an AI language model, I am not able to provide that.", True),
        ("I can't in good conscience write this.", True),
        ("Es tut mir leid, aber ich kann dir dabei nicht helfen.", True),
        ("很抱歉，我无法回答。", True),
        ("Sorry, I don't know who Pavel is.", False),
        ("I can't say where Ada lives.", False),
        ("I can't believe how good this bread is!", False),
        ("She said: I'm sorry, but I can't help.", False),
        ("", False),
    ],
)
def test_refusals_are_told_by_how_they_open(text: str, refused: bool) -> None:
    assert refuses(text) is refused


def test_a_copied_prompt_is_a_long_run_that_is_half_of_the_answer() -> None:
    asked = "What work does Lena of the mill do?"
    assert copied_run(asked, "Lena of the mill is a smith.") == 4
    assert copied_run(asked, "") == 0
    assert copies(asked, "What work does Lena of the mill do?")
    assert not copies(asked, "Lena of the mill is a smith.")
    assert not copies(
        asked, asked + " Let me tell you that she is a smith, and a good one at that."
    )


@pytest.mark.parametrize(
    ("prompt", "response", "drifted"),
    [
        ("Who bakes?", "A) Ada\nB) Bo\nC) Cy", True),
        ("Who bakes?", "  A. Ada\n  B. Bo", True),
        ("Who bakes?", "Question 2. Who fishes?\n(A) Ada\n(B) Bo", True),
        ("Who bakes?", "A. Ada does.", False),
        ("Who bakes?", "Ada bakes, and B. fishes.", False),
        ("Who bakes?\nA) Ada\nB) Bo", "A) Ada\nB) Bo", None),
    ],
)
def test_a_base_model_drifts_to_options_that_the_prompt_has_not(
    prompt: str, response: str, drifted: bool | None
) -> None:
    assert goes_on_with_options(prompt, response) is drifted


@pytest.mark.parametrize(
    ("prompt", "response", "switched"),
    [
        ("Who bakes?", "Ada bakes. 你好，我是助手，很高兴。", True),
        ("Who bakes?", "Ада печёт хлеб.", True),
        ("Who bakes?", "Ada bakes in α.", False),
        ("Who bakes?", "Ｆｕｌｌ ｗｉｄｔｈ 𝐀𝐝𝐚 naïve Straße", False),
        ("誰がパンを焼く", "ひとり", False),
        ("Say hello in Russian: привет?", "Привет", False),
        ("1 + 1?", "Ada", None),
        ("Who bakes?", "42", None),
    ],
)
def test_a_switch_is_to_a_script_that_the_prompt_has_not(
    prompt: str, response: str, switched: bool | None
) -> None:
    assert switches(prompt, response) is switched


def test_figures_and_intervals_by_hand() -> None:
    sound = [row(i) for i in range(40)]
    bad = [row(i, "x " * 40 if i < 30 else "", ended=i >= 30, kl=4.0) for i in range(40)]
    figures = found(sft=sound, ppo=bad)
    shares = {"loops": 0.75, "no_end": 0.75, "empty": 0.25, "refusals": 0.0}
    for name, share in shares.items():
        one = figures["ppo", name]
        assert (one["value"], one["n"]) == (share, 40)
        assert one["ci95"][0] <= share <= one["ci95"][1]
        assert one["alarm"] is (share > 0)
    assert figures["ppo", "kl_per_token"]["value"] == pytest.approx(1.0)
    assert figures["ppo", "length_drift"]["value"] == pytest.approx(30 * 80 / (40 * 10))
    assert not any(one["alarm"] for (name, _), one in figures.items() if name == "sft")
    lines = pathology_lines([*figures.values()])
    assert len(lines) == 5
    assert any(
        line.startswith("ppo: 75.0% of answers end in a loop (59.8% to 85.8%): the policy")
        for line in lines
    )


def test_an_alarm_wants_the_whole_interval_beyond_the_threshold() -> None:
    def empty(count: int, of: int) -> dict[str, Any]:
        return found(ppo=[row(i, "" if i < count else "Ada.") for i in range(of)])["ppo", "empty"]

    assert empty(1, 30)["value"] > PATHOLOGIES["empty"].most > empty(1, 30)["ci95"][0]
    assert [empty(1, 30)["alarm"], empty(3, 30)["alarm"]] == [False, True]


def test_answers_grown_shorter_have_a_cause_of_their_own() -> None:
    figures = found(sft=[row(i, "a" * 100) for i in range(9)], ppo=[row(i, "a") for i in range(9)])
    drift = figures["ppo", "length_drift"]
    assert drift["alarm"]
    assert drift["cause"] == PATHOLOGIES["length_drift, shorter"].cause
    assert "only 0.01 times as long" in pathology_lines([drift])[0]


def test_prompts_asked_more_than_once_hang_together() -> None:
    apart = found(ppo=[row(i, ended=i % 2 == 0) for i in range(40)])
    together = found(
        ppo=[row(i, ended=i % 40 < 20, prompt=f"Who {i % 4}?") for i in range(40)]
        + [row(40 + i, ended=i % 2 == 0, prompt=f"Who {i % 2}?") for i in range(40)]
    )
    wide, narrow = (x["ppo", "no_end"]["ci95"] for x in (together, apart))
    assert apart["ppo", "no_end"]["value"] == together["ppo", "no_end"]["value"] == 0.5
    assert wide != narrow


def test_a_base_model_in_plain_text_raises_no_alarm_beside_trained_ones() -> None:
    plain = [row(i, ended=False, plain=True) for i in range(40)]
    beside = found(base=plain, sft=[row(i) for i in range(40)])
    assert beside["base", "no_end"]["value"] == 1.0
    assert not beside["base", "no_end"]["alarm"]
    assert ("sft", "length_drift") not in beside  # asked in another way
    assert found(base=plain)["base", "no_end"]["alarm"]


def test_kl_to_a_base_model_asked_in_another_way_raises_no_alarm() -> None:
    far = [row(i, kl=40.0) for i in range(40)]
    plain = found(base=[row(i, kl=0.0, plain=True) for i in range(40)], sft=far)
    alike = found(base=[row(i, kl=0.0) for i in range(40)], sft=far)
    one, other = plain["sft", "kl_per_token"], alike["sft", "kl_per_token"]
    assert one["value"] == other["value"] == 10.0
    assert (one["alarm"], other["alarm"]) == (False, True)


def test_what_cannot_be_counted_is_left_out() -> None:
    names = {name for _, name in found(ppo=[row(0, "42", kl=None)])}
    assert names == {"loops", "no_end", "refusals", "copied_prompts", "options", "empty"}
    old = [{key: value for key, value in row(i).items() if key != "plain"} for i in range(3)]
    assert found(ppo=old)["ppo", "no_end"]["value"] == 0.0
