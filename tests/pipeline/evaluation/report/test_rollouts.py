"""Roll-outs in the report: which, in what colour, and with which figures."""

from __future__ import annotations

from typing import Any

from pipeline.evaluation.report.rollouts import FULL, MOST_TOKENS, rollouts


def sampled(update: int, **by_token: list[Any]) -> dict[str, Any]:
    row = {
        "update": update, "prompt": [{"role": "user", "content": f"Who, at {update}?"}],
        "response": "x", "score": 1.5, "kl": 0.25, "tokens": 2, "ended": False,
    }  # fmt: skip
    return row | ({"by_token": by_token} if by_token else {})


def columns(*values: float) -> dict[str, list[Any]]:
    figures = {name: list(values) for name in ("kl", "value", "advantage")}
    return {"text": [f"w{i} " for i in range(len(values))], **figures}


def test_runs_that_kept_no_tokens_have_no_roll_outs() -> None:
    assert rollouts([]) is None
    assert rollouts([sampled(10), sampled(20)]) is None


def test_the_first_a_middle_and_the_last_update_are_shown() -> None:
    rows = [sampled(update, **columns(0.5)) for update in range(10, 60, 10)] + [sampled(60)]
    found = rollouts(rows)
    assert found is not None
    assert [e["prompt"] for e in found["episodes"]] == [f"Who, at {u}?" for u in (10, 30, 50)]
    assert found["episodes"][0]["tags"] == [
        "update 10",
        "score 1.50",
        "KL 0.250",
        "2 tokens, cut off",
    ]
    one = rollouts(rows[:1])
    assert one is not None and len(one["episodes"]) == 1


def test_a_token_has_its_figures_and_a_colour_for_each_reading() -> None:
    by_token: dict[str, list[Any]] = {
        "text": ["", "a\n"],
        "kl": [0.5, -0.25],
        "value": [0.0, 0.0],
        "advantage": [-2.0, 1.0],
    }
    found = rollouts([sampled(10, **by_token)])
    assert found is not None
    first, second = found["episodes"][0]["tokens"]
    assert (first["text"], second["text"]) == ("◌", "a↵\n")
    assert first["told"] == "KL +0.500, Value 0.000, Advantage −2.00"
    assert second["told"] == "KL −0.250, Value 0.000, Advantage +1.00"
    # A scale ends where nineteen of twenty figures lie below: .4875 of .25 and .5.
    half = round(FULL * 0.25 / 0.4875)
    assert first["style"].split(";")[0] == f"--kl:var(--up) {FULL}%"
    assert second["style"].split(";")[:2] == [f"--kl:var(--down) {half}%", "--value:var(--down) 0%"]
    assert [reading["end"] for reading in found["legend"]] == ["0.487", "0.000", "1.95"]


def test_a_long_response_is_cut() -> None:
    found = rollouts([sampled(10, **columns(*[0.1] * (MOST_TOKENS + 7)))])
    assert found is not None
    (episode,) = found["episodes"]
    assert (len(episode["tokens"]), episode["left"]) == (MOST_TOKENS, "7 more tokens")


def test_what_a_tool_put_there_has_no_figures_and_no_colour() -> None:
    called = {**columns(0.5, 0.0, -0.25), "own": [True, False, True]}
    found = rollouts([sampled(10, **called)])
    assert found is not None
    first, tool, last = found["episodes"][0]["tokens"]
    assert [t["foreign"] for t in (first, tool, last)] == [False, True, False]
    assert (tool["text"], tool["style"]) == ("w1 ", "")
    assert tool["told"] == "put there by a tool, so that no figure is of it"
    alone = rollouts([sampled(10, **columns(0.5, -0.25))])
    assert alone is not None and alone["legend"] == found["legend"]
    assert found["foreign"] and not alone["foreign"]
    assert [t["style"] for t in (first, last)] == [
        t["style"] for t in alone["episodes"][0]["tokens"]
    ]
