"""Every figure counted again from samples, by hand and from a file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from data.errors import ArtifactError
from data.json_lines import read_json_lines
from pipeline.evaluation.judge.figures import figures
from pipeline.evaluation.judge.summary import rating_lines, win_rate_line
from pipeline.evaluation.report.view import figure_rows


def row(index: int, checkpoint: str, **changes: Any) -> dict[str, Any]:
    """Return a sample with everything in it."""
    assessment = {
        "kind": "fact",
        "outcome": "right",
        "correct": True,
        "condescending": False,
        "long_winded": False,
        "invented": False,
        "admits_ignorance": False,
    }
    sample = {
        "index": index,
        "id": str(index),
        "prompt": f"question {index}",
        "checkpoint": checkpoint,
        "response": "a plain answer",
        "n_tokens": 4,
        "ended": True,
        "kl": 0.0,
        "gold": 0.5,
        "proxy": 0.0,
        "assessment": assessment | changes.pop("assessment", {}),
    }
    return sample | changes


def example() -> list[dict[str, Any]]:
    """Return four prompts answered by two checkpoints."""
    rows = [row(i, "sft", gold=0.25 * i, proxy=float(i), kl=0.0) for i in range(4)]
    rows += [
        row(0, "ppo", gold=1.0, proxy=9.0, kl=2.0, n_tokens=2),
        row(1, "ppo", gold=0.25, proxy=9.0, kl=4.0, ended=False),
        row(2, "ppo", gold=0.0, proxy=9.0, kl=6.0, assessment={"correct": False}),
        row(3, "ppo", gold=1.0, proxy=9.0, kl=0.0, assessment={"correct": None}),
    ]
    return rows


def test_means_and_shares_by_hand() -> None:
    found = figures(example(), resamples=200, seed=0)["checkpoints"]
    assert isinstance(found, dict)
    ppo = found["ppo"]
    assert ppo["n"] == 4
    assert ppo["gold_reward"] == pytest.approx((1 + 0.25 + 0 + 1) / 4)
    assert ppo["proxy_reward"] == 9.0
    assert ppo["kl_to_reference"] == 3.0
    assert ppo["mean_length"] == (2 + 4 + 4 + 4) / 4
    assert ppo["ended_share"] == 0.75
    assert found["sft"]["gold_reward"] == pytest.approx((0 + 0.25 + 0.5 + 0.75) / 4)
    # Three of the four could be judged, two of those were right.
    correct = ppo["shares"]["correct"]
    assert (correct["count"], correct["n"]) == (2, 3)
    low, high = ppo["gold_reward_ci95"]
    assert low < ppo["gold_reward"] < high


def test_further_judges_have_a_mean_score_of_what_they_scored() -> None:
    rows = [row(i, "sft", scores={"second": float(i)}) for i in range(4)]
    rows += [row(i, "ppo", scores={"second": 8.0} if i else {}) for i in range(4)]
    found: Any = figures(rows, resamples=200, seed=0)["checkpoints"]
    assert found["ppo"]["scores"] == {"second": {"mean": 8.0, "ci95": [8.0, 8.0], "n": 3}}
    sft = found["sft"]["scores"]["second"]
    assert (sft["mean"], sft["n"]) == (1.5, 4) and sft["ci95"][0] < 1.5 < sft["ci95"][1]
    assert "scores" not in figures(example(), seed=0)["checkpoints"]["ppo"]  # type: ignore[call-overload]
    cells = figure_rows({"checkpoints": found, "judges": {"second": {"kind": "http"}}})
    (judged,) = [one for one in cells if one["label"] == "Server second"]
    assert [cell["value"] for cell in judged["cells"]] == ["1.50", "8.00"]


def test_the_later_checkpoint_stands_first_in_a_win_rate() -> None:
    rates = figures(example(), resamples=200, seed=0)["win_rates"]
    assert isinstance(rates, list)
    gold = next(rate for rate in rates if rate["judge"] == "gold")
    assert (gold["a"], gold["b"]) == ("ppo", "sft")
    # ppo 1, .25, 0, 1 against sft 0, .25, .5, .75: won, tied, lost, won.
    assert (gold["wins"], gold["ties"], gold["losses"], gold["n"]) == (2, 1, 1, 4)
    assert gold["rate"] == 2.5 / 4


def test_differences_are_paired_over_what_both_could_be_judged_on() -> None:
    found = figures(example(), resamples=200, seed=0)["differences"]
    assert isinstance(found, list)
    correct = next(row for row in found if row["measure"] == "correct")
    assert correct["n"] == 3
    assert correct["difference"] == pytest.approx(-1 / 3)
    gold = next(row for row in found if row["measure"] == "gold_reward")
    assert (gold["n"], gold["difference"]) == (4, 0.1875)  # (1 + 0 - .5 + .25) / 4


def test_neighbours_come_before_pairs_further_apart() -> None:
    rows = [row(0, name) for name in ("base", "sft", "ppo")]
    rates = figures(rows, resamples=20, seed=0)["win_rates"]
    assert isinstance(rates, list)
    gold = [(rate["a"], rate["b"]) for rate in rates if rate["judge"] == "gold"]
    assert gold == [("sft", "base"), ("ppo", "sft"), ("ppo", "base")]


def test_without_judges_there_are_no_rates_and_no_numbers() -> None:
    rows = [
        row(0, name, gold=None, proxy=None, kl=None) | {"assessment": None} for name in ("a", "b")
    ]
    found = figures(rows, resamples=20, seed=0)
    assert found["win_rates"] == []
    differences = found["differences"]
    assert isinstance(differences, list)
    assert {row["measure"] for row in differences} == {"mean_length", "ended_share"}
    assert isinstance(found["checkpoints"], dict)
    assert found["checkpoints"]["a"]["gold_reward"] is None
    assert found["checkpoints"]["a"]["kl_to_reference_ci95"] is None
    assert "shares" not in found["checkpoints"]["a"]


def test_the_order_of_lines_changes_nothing_but_the_order_of_checkpoints() -> None:
    rows = example()
    forward, backward = (figures(r, resamples=100, seed=0) for r in (rows, rows[::-1]))
    assert forward["checkpoints"] == backward["checkpoints"]


def test_samples_with_strange_line_separators_are_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    rows = [row(0, "sft", response="one\u2028two\x85three\nfour")]
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
    assert [*read_json_lines(path)] == rows


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text('{"index": 0}\nbroken\n')
    with pytest.raises(ArtifactError, match=r"samples\.jsonl:2"):
        [*read_json_lines(path)]
    with pytest.raises(ArtifactError, match="can't be read"):
        [*read_json_lines(tmp_path / "none.jsonl")]


def lengthening() -> list[dict[str, Any]]:
    """Return 60 prompts where "long" wins by length alone, and "good" whatever the lengths."""
    rows = []
    for i in range(60):
        # "long" is longer than "sft" in two of three, and the longer one wins three in four.
        longer = i % 3 != 0
        wins = (i % 4 != 0) == longer
        rows.append(row(i, "sft", gold=0.5, response="x" * 50))
        rows.append(
            row(i, "long", gold=0.6 if wins else 0.4, response="x" * (90 if longer else 10))
        )
        rows.append(row(i, "good", gold=0.9 if i % 5 else 0.1, response="x" * (44 + i // 5)))
    return rows


def test_what_only_length_won_is_not_won_at_equal_length() -> None:
    rates = figures(lengthening(), resamples=200, seed=0)["win_rates"]
    assert isinstance(rates, list)
    gold = {(r["a"], r["b"]): r for r in rates if r["judge"] == "gold"}
    long, good = gold["long", "sft"], gold["good", "sft"]
    assert long["rate"] == pytest.approx(0.5 + 0.25 / 3, abs=0.02)
    assert long["rate_length_controlled"] == pytest.approx(0.5, abs=0.02)
    assert good["rate"] == 0.8
    assert good["rate_length_controlled"] == pytest.approx(0.8, abs=0.02)
    for rate in (long, good):
        low, high = rate["ci95_length_controlled"]
        assert low < rate["rate_length_controlled"] < high


def test_four_answers_tell_no_rate_of_equal_length() -> None:
    rates = figures(example(), resamples=50, seed=0)["win_rates"]
    assert isinstance(rates, list)
    assert rates[0]["rate_length_controlled"] is rates[0]["ci95_length_controlled"] is None


def test_every_judge_rates_the_checkpoints_from_the_first_one() -> None:
    ratings = figures(lengthening(), resamples=200, seed=0)["ratings"]
    assert isinstance(ratings, list)
    gold = {r["checkpoint"]: r for r in ratings if r["judge"] == "gold"}
    assert gold["sft"] == {
        "checkpoint": "sft", "judge": "gold", "bradley_terry": 0.0, "elo": 1000.0, "ci95": None,
    }  # fmt: skip
    assert gold["good"]["bradley_terry"] > gold["long"]["bradley_terry"] > 0
    low, high = gold["good"]["ci95"]
    assert 0 < low < gold["good"]["bradley_terry"] < high
    # Everything ties by the reward model.
    proxy = [r for r in ratings if r["judge"] == "proxy"]
    assert [r["bradley_terry"] for r in proxy] == pytest.approx([0, 0, 0])
    assert proxy[1]["ci95"][0] < 0 < proxy[1]["ci95"][1]


def test_a_prompt_asked_three_times_is_one_prompt() -> None:
    once = lengthening()
    thrice = [r | {"index": r["index"] + 60 * copy} for copy in range(3) for r in once]
    one, three = (figures(rows, resamples=200, seed=0)["win_rates"] for rows in (once, thrice))
    assert isinstance(one, list) and isinstance(three, list)
    for key in ("ci95", "ci95_length_controlled"):
        widths = [rates[0][key][1] - rates[0][key][0] for rates in (one, three)]
        assert widths[1] == pytest.approx(widths[0], rel=0.12)


def test_the_console_hears_both_rates_and_of_three_the_ratings() -> None:
    figures_ = figures(lengthening(), resamples=200, seed=0)
    rates, ratings = figures_["win_rates"], figures_["ratings"]
    assert isinstance(rates, list) and isinstance(ratings, list)
    gold = next(rate for rate in rates if rate["judge"] == "gold")
    line = r"long over sft by gold: 58\.3% \(.*\) of 60 prompts; of equal length 50\.\d% \(.*\)"
    assert re.fullmatch(line, win_rate_line(gold))
    line = r"Elo by gold, sft being 1000: good \d+ \(\d+ to \d+\), long \d+ \(.*\), sft 1000"
    assert re.fullmatch(line, rating_lines(ratings)[0])
    assert rating_lines([row for row in ratings if row["checkpoint"] != "good"]) == []


def test_who_was_compared_with_nobody_is_named() -> None:
    rows = [r if r["checkpoint"] != "good" else r | {"gold": None} for r in lengthening()]
    ratings = figures(rows, resamples=50, seed=0)["ratings"]
    assert isinstance(ratings, list)
    assert rating_lines(ratings)[0].endswith("sft 1000; never compared with it: good")


def judgement(index: int, outcome: float, a: str = "ppo", b: str = "sft") -> dict[str, Any]:
    return {"judge": "people", "index": index, "a": a, "b": b, "outcome": outcome}


def test_judgements_of_pairs_are_a_judge_beside_the_scores() -> None:
    said = [judgement(0, 1.0), judgement(1, 0.5), judgement(2, 0.0), judgement(3, 1.0)]
    found: dict[str, Any] = figures(example(), said, resamples=50, seed=0)
    rates = {rate["judge"]: rate for rate in found["win_rates"]}
    people = rates["people"]
    assert (people["wins"], people["ties"], people["losses"]) == (2, 1, 1)
    assert people["rate"] == 2.5 / 4
    assert [rating["judge"] for rating in found["ratings"]][-2:] == ["people", "people"]
    assert found == figures(example(), said[::-1], resamples=50, seed=0)  # in whatever order
    without: dict[str, Any] = figures(example(), resamples=50, seed=0)
    assert found["win_rates"][:2] == without["win_rates"]
    assert found["ratings"][:4] == without["ratings"]


def test_several_verdicts_on_two_answers_count_as_one_by_their_mean() -> None:
    once = [judgement(index, float(index != 3)) for index in range(4)]
    again = [*once, judgement(0, 0.0), judgement(0, 1.0), judgement(1, 0.0)]
    agreed, split = (
        next(rate for rate in found["win_rates"] if rate["judge"] == "people")
        for said in ([row for row in once for _ in range(3)], again)
        for found in [dict[str, Any](figures(example(), said, resamples=50, seed=0))]
    )
    alone: dict[str, Any] = figures(example(), once, resamples=50, seed=0)
    assert agreed == alone["win_rates"][-1]  # nobody learns more by asking the same again
    # 2/3 of the first prompt is won, one half of the second, all of the third, none of the fourth.
    assert split["rate"] == pytest.approx((2 / 3 + 1 / 2 + 1 + 0) / 4)
    assert (split["wins"], split["ties"], split["losses"], split["n"]) == (2, 1, 1, 4)
    assert split["ci95"][0] < split["rate"] < split["ci95"][1]


def test_a_judge_of_some_pairs_rates_whom_it_compared() -> None:
    rows = [row(i, name, gold=0.5) for name in ("base", "sft", "ppo") for i in range(2)]
    said = [judgement(0, 1.0), judgement(1, 1.0)]
    found: dict[str, Any] = figures(rows, said, resamples=50, seed=0)
    rated = {
        r["checkpoint"]: r["bradley_terry"] for r in found["ratings"] if r["judge"] == "people"
    }
    assert rated == {"base": 0.0, "sft": None, "ppo": None}  # nobody met the anchor
