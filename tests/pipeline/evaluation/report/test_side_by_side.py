"""Several runs on one page: figures, means over seeds, what was set otherwise, curves."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from data.errors import ArtifactError
from pipeline.evaluation.report.side_by_side import figures_of, write_side_by_side

NASTY = "<script>alert(1)</script>"


def report(rate: float, kl: float, **more: Any) -> dict[str, Any]:
    return {
        "recipe": f"quick {NASTY}",
        "seed": 1,
        "created": "2026-01-01T00:00:00+00:00",
        "verdict": [f"PPO is better: {NASTY}"],
        "not_done": {},
        "win_rates": [
            {"a": "ppo", "b": "sft", "judge": "gold",
             "rate": rate, "ci95": [rate - 0.1, rate + 0.1],
             "rate_length_controlled": None, "ci95_length_controlled": None},
        ],
        "reward_model": {"accuracy": 0.8, "ci95": [0.7, 0.9]},
        "checkpoints": {
            "ppo": {"kl_to_reference": kl, "kl_to_reference_ci95": [kl - 1, kl + 1],
                    "shares": {"correct": {"share": 0.5, "ci95": [0.4, 0.6]}}},
        },
        "tasks": [{"checkpoint": "ppo", "task": "gsm8k", "metric": "accuracy", "reading": "strict",
                   "value": 0.25, "ci95": [0.2, 0.3]}],
        "stages": {"ppo": {"kind": "ppo", "main_metric": "objective/kl",
                           "metrics": {"objective/kl": kl}}},
        **more,
    }  # fmt: skip


def write(run: Path, content: dict[str, Any]) -> Path:
    (run / "report").mkdir(parents=True)
    (run / "report/report.json").write_text(json.dumps(content))
    (run / "ppo").mkdir()
    rows = [{"step": step, "objective/kl": step / 4} for step in range(1, 5)]
    (run / "ppo/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Path]:
    return {
        "0": write(tmp_path / "0", report(0.7, 2.0)),
        "1": write(tmp_path / "1", report(0.8, 4.0)),
    }


def test_figures_have_their_names_and_intervals() -> None:
    found = {figure.name: figure for figure in figures_of(report(0.7, 2.0))}
    assert [*found] == [
        "ppo over sft, by gold",
        "reward model, pairs ranked right",
        "ppo: KL to the reference",
        "ppo: Right",
        "ppo: gsm8k, accuracy, strict",
        "ppo: objective/kl",
    ]
    assert found["ppo over sft, by gold"].ci95 == pytest.approx([0.6, 0.8])
    assert found["ppo: objective/kl"].value == 2.0


def test_means_over_seeds_have_students_interval(runs: dict[str, Path], tmp_path: Path) -> None:
    page = write_side_by_side(tmp_path / "all", runs, seeds=True)
    told = json.loads(page.with_name("report.json").read_text())
    row = told["figures"][0]
    assert row["values"] == [0.7, 0.8] and row["mean"] == pytest.approx(0.75)
    # Of two values half their distance is the error of their mean; Student's quantile is 12.706.
    assert row["ci95_over_seeds"] == pytest.approx([0.75 - 0.6353, 0.75 + 0.6353], abs=1e-4)
    text = page.read_text()
    assert "75.0\u00a0%" in text and "all</th>" in text
    assert NASTY not in text and "&lt;script&gt;" in text
    assert not re.search(r"(?:src|href)=\"http", text)


def test_what_all_seeds_share_is_named_and_has_no_interval_over_them(tmp_path: Path) -> None:
    def content(kl: float, digest: str) -> dict[str, Any]:
        told = report(0.7, kl)
        base = {"kind": "pretrain", "main_metric": "eval/perplexity", "digest": "same",
                "metrics": {"eval/perplexity": 2.5}}  # fmt: skip
        told["stages"] = {"base": base, "ppo": {**told["stages"]["ppo"], "digest": digest}}
        return told

    runs = {name: write(tmp_path / name, content(int(name), name)) for name in ("1", "2")}
    page = write_side_by_side(tmp_path / "all", runs, seeds=True)
    told = json.loads(page.with_name("report.json").read_text())
    assert told["shared"] == ["base"] and "The same in every seed: base" in page.read_text()
    ends = {row["figure"]: row["ci95_over_seeds"] for row in told["figures"]}
    assert ends["base: eval/perplexity"] is None and ends["ppo: objective/kl"] is not None
    alone = write_side_by_side(tmp_path / "one", {"1": runs["1"]}, seeds=True)
    assert json.loads(alone.with_name("report.json").read_text())["shared"] == []


@pytest.mark.drawn
def test_curves_of_runs_lie_over_each_other(runs: dict[str, Path], tmp_path: Path) -> None:
    settings = {"stages.ppo.kl_coefficient": [0.05, None]}
    page = write_side_by_side(tmp_path / "both", runs, settings=settings).read_text()
    assert page.count('<figure class="chart">') == 1
    assert "KL to the reference, nats" in page and "<svg" in page
    assert "stages.ppo.kl_coefficient" in page and "over seeds" not in page


def test_a_run_without_a_report_is_told(runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"rlhf report .*none"):
        write_side_by_side(tmp_path / "all", {**runs, "none": tmp_path / "none"})


@pytest.mark.parametrize("edited", [{"tasks": None}, {"checkpoints": {"ppo": 3}}])
def test_a_report_of_another_version_is_told(
    runs: dict[str, Path], tmp_path: Path, edited: dict[str, Any]
) -> None:
    runs["old"] = write(tmp_path / "old", report(0.9, 3.0, **edited))
    with pytest.raises(ArtifactError, match=r"old.*was edited.*rlhf report .*old"):
        write_side_by_side(tmp_path / "all", runs)
    assert not (tmp_path / "all").exists()


def test_figures_that_one_run_lacks_are_left_empty(runs: dict[str, Path], tmp_path: Path) -> None:
    runs["2"] = write(tmp_path / "2", report(0.9, 3.0, tasks=[], not_done={"ppo": "not run"}))
    page = write_side_by_side(tmp_path / "all", runs, seeds=True)
    rows = {
        row["figure"]: row
        for row in json.loads(page.with_name("report.json").read_text())["figures"]
    }
    assert rows["ppo: gsm8k, accuracy, strict"]["values"] == [0.25, 0.25, None]
    assert rows["ppo: gsm8k, accuracy, strict"]["mean"] == 0.25
    assert rows["ppo: objective/kl"]["values"] == [2.0, 4.0, None]
    assert "not done: ppo" in page.read_text()
