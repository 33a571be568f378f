"""Every figure of a report is counted again from the rows that lie beside it."""

from __future__ import annotations

import json
import math
import random
from collections import defaultdict
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from data.json_lines import read_json_lines
from data.records import Ranking
from pipeline.evaluation.benchmarks.figures import figures as task_figures
from pipeline.evaluation.judge.figures import figures
from pipeline.evaluation.judge.texts import text_figures
from pipeline.evaluation.judge.truthfulness import truthfulness
from pipeline.evaluation.report.view import FIGURES, interval, number
from reward.quality.calibration import demonstration_bias, demonstration_rows
from reward.quality.judging import judge
from reward.quality.pairs import ScoredRanking, pair_rows
from reward.quality.quality import quality

QUESTIONS: list[dict[str, Any]] = [
    {"question": f"What is {i} + 1?", "choices": [str(i + 1), "no"], "answer": 0} for i in range(4)
]


@pytest.fixture
def evaluation(
    rlhf: Callable[..., Any],
    tmp_path: Path,
    tiny_tokenizer: Callable[..., Any],
    save_policy: Callable[..., Path],
) -> Path:
    """Return the folder of an evaluation of three checkpoints with texts, a task and a judge."""
    for seed, name in enumerate(("base", "sft", "ppo")):
        save_policy(tiny_tokenizer(), tmp_path / name, seed=seed, context=256)
    lines = "".join(json.dumps(row) + "\n" for row in QUESTIONS)
    (tmp_path / "sums.jsonl").write_text(lines)
    judged = [
        {"question": row["question"], "answer": choice, "truthful": choice != "no"}
        for row in QUESTIONS
        for choice in row["choices"]
    ]
    (tmp_path / "judged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in judged))
    kinds = {"choices": "sums.jsonl", "truthfulqa": "judged.jsonl"}
    suite = {
        "tasks": [{"kind": k, "source": {"path": str(tmp_path / v)}} for k, v in kinds.items()]
    }
    (tmp_path / "suite.yaml").write_text(json.dumps(suite))
    (tmp_path / "held.txt").write_text("The miller lives by the river.\n\nAda bakes bread.\n")
    result = rlhf(
        "eval", "base", "sft", "ppo", "--out", "out", "--prompts", "world:eval_prompts",
        "--limit", 6, "--max-new-tokens", 5, "--texts", "held.txt", "--suite", "suite.yaml",
        "--quiet",
    )  # fmt: skip
    assert result.code == 0, result.err
    return tmp_path / "out"


def test_all_figures_recount_from_their_rows(evaluation: Path) -> None:
    report = json.loads((evaluation / "report.json").read_text())
    draw: dict[str, Any] = {"resamples": 2000, "seed": 0}
    samples = [*read_json_lines(evaluation / "samples.jsonl")]
    tasks = [*read_json_lines(evaluation / "tasks.jsonl")]
    again: dict[str, Any] = figures(samples, **draw)
    again["truthfulness"] = truthfulness(samples, tasks, **draw)
    assert [row["checkpoint"] for row in report["provenance"]] == ["base", "sft", "ppo"]
    assert [report["checkpoints"][name]["kl_to_reference"] == 0 for name in ("base", "sft")] == [
        False, True,
    ]  # fmt: skip
    for key in ("win_rates", "ratings", "differences", "pathologies", "truthfulness"):
        assert report[key] == json.loads(json.dumps(again[key])), key
        assert report[key], key
    texts = text_figures([*read_json_lines(evaluation / "texts.jsonl")])
    assert report["alignment_tax"] == texts.alignment_tax
    for name, mine in report["checkpoints"].items():
        expected = {**again["checkpoints"][name], **texts.checkpoints[name]}
        assert {key: mine[key] for key in expected} == expected
        assert set(mine) - set(expected) <= {"plain_prompts", "notes"}  # no figures
    assert report["tasks"] == task_figures(tasks, **draw)
    assert all(0 < sample["probability"] <= 1 for sample in samples)
    assert {row["source"] for row in report["truthfulness"]} == {"prompts", "truthfulqa"}
    assert {row["checkpoint"] for row in report["tasks"]} == {"base", "sft", "ppo"}


def test_the_page_shows_the_reports_figures(evaluation: Path) -> None:
    report = json.loads((evaluation / "report.json").read_text())
    page = (evaluation / "index.html").read_text(encoding="utf-8")
    assert report["verdict"][0].partition(": ")[2].partition(" of")[0] in page
    for rate in report["win_rates"]:
        assert f"{100 * rate['rate']:.1f}\u00a0%" in page
        counts = f"{rate['wins']:,} won · {rate['ties']:,} tied · {rate['losses']:,} lost"
        assert counts in page or (rate["a"], rate["b"]) == ("ppo", "base")  # no neighbours
    for row in report["provenance"]:
        assert row["content"][:16] in page
    for row in report["tasks"]:
        assert number(row["value"], "percent") in page
        assert interval(row["ci95"], "percent") in page
    for row in report["pathologies"]:
        kind = "number" if row["name"] in ("length_drift", "kl_per_token") else "percent"
        assert number(row["value"], kind) in page
    for row in report["truthfulness"]:
        for share in row["outcomes"]["all"].values():
            assert number(share["share"], "percent") in page
        for one in (*row["risk_coverage"]["points"], row["calibration"]):
            assert number(one.get("risk", one.get("ece")), "percent") in page
    for row in report["alignment_tax"][1:]:
        assert number(row["difference"], "signed") in page
    for figures_ in report["checkpoints"].values():
        for _, key, kind, _ in FIGURES:
            assert number(figures_.get(key), kind) in page, key
        for share in figures_["shares"].values():
            assert number(share["share"], "percent") in page


def test_a_reward_models_figures_recount_from_their_rows(scored_pair: Callable[..., Any]) -> None:
    rng = random.Random(0)
    rankings = [
        Ranking(f"question {number}", ["a", "bb", "ccc"], ranks, annotator=name)
        for number in range(8)
        for name in ("ann", "ben", "cem")
        for ranks in [rng.choice([[1, 2, 3], [2, 1, 3], [1, 1, 2], [1, 2, 2]])]
    ]
    scored = [
        ScoredRanking(r, *([rng.random() for _ in r.ranks] for _ in ("scores", "words")))
        for r in rankings
    ]
    shown = [(f"question {number}", "an answer") for number in range(5)]
    raw = [rng.gauss(3, 1) for _ in shown]
    report = judge({"heldout": scored}, demonstration_bias(raw))
    told = json.loads(json.dumps([*demonstration_rows(shown, raw)]))
    mean = math.fsum(row["score_without_bias"] for row in told) / len(told)
    squares = [(row["score_without_bias"] - mean) ** 2 for row in told]
    assert report["bias"] == {
        "reward_bias": pytest.approx(-mean), "demonstrations": len(told),
        "deviation": pytest.approx(math.sqrt(math.fsum(squares) / len(told))),
    }  # fmt: skip
    rows: list[dict[str, Any]] = json.loads(json.dumps([*pair_rows("heldout", scored)]))
    again = quality([scored_pair(row) for row in rows])
    assert {key: report[key] for key in again} == again
    # Two annotators of a pair that both rank strictly; they agree or not.
    said: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for row in rows:
        said[row["prompt"], *sorted([row["better"], row["worse"]])].append(row["better"])
    agree = [x == y for better in said.values() for x, y in combinations(better, 2)]
    ceiling, share = report["ceiling"], sum(agree) / len(agree)
    assert 0.5 < share < 1 and ceiling["agreement"] == ceiling["low"] == pytest.approx(share)
    assert ceiling["high"] == pytest.approx((1 + math.sqrt(2 * share - 1)) / 2)
    assert ceiling["n_prompts"] == len({prompt for prompt, *_ in said})
    # A tie is no pair: the rankings have them.
    ties = [x == y for ranking in rankings for x, y in combinations(ranking.ranks, 2)]
    assert report["annotator_ties"]["share"] == pytest.approx(sum(ties) / len(ties))
    assert len(rows) == len(ties) - sum(ties) == report["n_pairs"]
    words = [(row["better_words"], row["worse_words"]) for row in rows]
    right = [(1 + (better > worse) - (better < worse)) / 2 for better, worse in words]
    assert report["bag_of_words"]["accuracy"] == pytest.approx(sum(right) / len(right))
    counted = {*again, "judged_by", "bag_of_words", "annotator_ties", "ceiling", "bias"}
    assert {*report} == counted  # no figure that is not counted here
