"""`rlhf report` and `rlhf compare` as a user types them."""

from __future__ import annotations

import json
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.contract import console
from pipeline.evaluation.judge.figures import figures
from pipeline.evaluation.report.report import write_evaluation_report
from reward.learned.model import RewardModel

SAMPLING = {"max_new_tokens": 8, "temperature": 1.0}


def judged(
    folder: Path, gold: float | None, *, prompts: int = 12, names: tuple[str, ...] = ("sft", "ppo")
) -> Path:
    """Write an evaluation whose last checkpoint's answers all get this score."""
    folder.mkdir()
    rows = [
        {"index": i, "id": str(i), "prompt": f"q{i}", "checkpoint": name, "response": "a " * i,
         "n_tokens": i, "ended": True, "kl": 0.0, "gold": gold, "proxy": float(i % 2),
         "assessment": None}
        for name in names for i in range(prompts)
    ]  # fmt: skip
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    results: dict[str, Any] = {
        "prompts": {"n": prompts, "too_long": 0}, "texts": 0, "seen": None, "reference": "sft",
        "sampling": SAMPLING, "bootstrap": {"resamples": 20, "seed": 4},
        **figures(rows, resamples=20, seed=4),
    }  # fmt: skip
    for mine in results["checkpoints"].values():
        mine |= {"perplexity": None, "bits_per_byte": None, "plain_prompts": False}
    (folder / "evaluation.json").write_text(json.dumps(results))
    return folder


def test_a_report_is_made_anew_and_opened(
    rlhf: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(tmp_path / "out", 0.5)
    opened: list[str] = []

    def opens(url: str) -> bool:
        opened.append(url)
        return True

    monkeypatch.setattr(webbrowser, "open", opens)
    result = rlhf("report", "out")
    assert (result.code, result.out.strip(), opened) == (0, "out/index.html", [])
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["recipe"], report["seed"], list(report["checkpoints"])) == (
        "out", 4, ["sft", "ppo"],
    )  # fmt: skip
    assert report["verdict"][0].startswith("ppo is not shown to be better or worse than sft")
    assert rlhf("report", "out", "--open").code == 0
    assert opened == [(tmp_path / "out" / "index.html").as_uri()]
    monkeypatch.setattr(webbrowser, "open", lambda url: False)
    assert (
        "there is no browser here; open out/index.html in one"
        in rlhf("report", "out", "--open").err
    )


def test_what_is_no_run_has_no_report(rlhf: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = rlhf("report", "empty")
    assert result.code == 2
    assert "empty is no run folder" in result.err


def test_two_evaluations_of_the_same_prompts_are_compared_as_they_are(
    rlhf: Callable[..., Any], tmp_path: Path
) -> None:
    judged(tmp_path / "new", 0.9)
    judged(tmp_path / "old", 0.2, prompts=10)
    result = rlhf("compare", "new", "old")
    assert result.code == 0
    assert result.out.startswith("new is better than old: 100.0 %")
    assert "10 prompts; mean length in tokens: new 4.5, old 4.5" in result.out
    found = json.loads(rlhf("compare", "old", "new", "--json").out)
    (rate,) = found["win_rates"]  # the reward models of two runs are two judges
    assert [rate[key] for key in ("a", "b", "judge", "wins", "ties", "losses", "rate")] == [
        "old", "new", "gold", 0, 0, 10, 0.0,
    ]  # fmt: skip


def test_runs_are_compared_with_the_last_one_and_what_was_set_otherwise_is_told(
    rlhf: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, gold, kl in (("a", 0.9, 0.1), ("b", 0.2, 0.1), ("base", 0.2, 0.05)):
        run = tmp_path / name
        run.mkdir()
        judged(run / "evaluate", gold)
        settings = f"{{kind: ppo, kl_coefficient: {kl}, episodes: 8}}"
        (run / "recipe.yaml").write_text(f"name: quick\nstages: {{ppo: {settings}}}\n")
        write_evaluation_report(run / "evaluate")
        (run / "evaluate/index.html").unlink()
        (run / "report").mkdir()
        (run / "evaluate/report.json").rename(run / "report/report.json")
    monkeypatch.setattr("pipeline.run.listing.evaluation_in", lambda place: Path(place, "evaluate"))
    result = rlhf("compare", "a", "b", "base", "--out", "page")
    assert result.code == 0
    assert "a is better than base: 100.0 %" in result.out
    assert "b is not shown to be better or worse than base: 50.0 %" in result.out
    assert "gold reward: +0.700 [+0.700, +0.700]" in result.out
    assert result.out.endswith(
        "stages.ppo.kl_coefficient: 0.1, 0.1, 0.05\nThe page: page/index.html\n"
    )
    told = json.loads((tmp_path / "page/report.json").read_text())
    assert told["settings"] == {"stages.ppo.kl_coefficient": [0.1, 0.1, 0.05]}
    assert [one["win_rates"][0]["rate"] for one in told["paired"]] == [1.0, 0.5]
    (row,) = [row for row in told["figures"] if row["figure"] == "ppo: Gold reward"]
    assert row["values"] == pytest.approx([0.9, 0.2, 0.2])
    assert "b is not shown to be better" in (tmp_path / "page/index.html").read_text()
    found = json.loads(rlhf("compare", "a", "b", "base", "--json").out)
    assert len(found["comparisons"]) == 2 and found["settings"] == told["settings"]
    (tmp_path / "b/evaluate/samples.jsonl").write_text("")
    assert "b was judged on other prompts" in rlhf("compare", "a", "b", "base").err
    result = rlhf("compare", "a", "b", "base", "--out", "page")
    assert result.code == 0 and "a is better than base" in result.out
    assert "b was judged on other prompts than base" in result.out
    assert "b was judged on other prompts" in (tmp_path / "page/index.html").read_text()


@pytest.mark.parametrize(
    ("gold", "changes", "said"),
    [
        (None, {}, "no judge but a reward model judged both"),
        (0.5, {"sampling": {"max_new_tokens": 9}}, "a was decoded otherwise than b"),
    ],
)
def test_what_can_not_be_compared_is_told(
    rlhf: Callable[..., Any], tmp_path: Path, gold: float | None, changes: Any, said: str
) -> None:
    judged(tmp_path / "a", gold)
    path = judged(tmp_path / "b", gold) / "evaluation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    result = rlhf("compare", "a", "b")
    assert result.code == 2
    assert said in result.err
    assert "--prompts" in result.err


def test_checkpoints_are_compared_on_prompts_that_are_named(
    rlhf: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_tokenizer: Callable[..., Any],
    save_policy: Callable[..., Path],
) -> None:
    for seed, name in enumerate(("one", "two")):
        save_policy(tiny_tokenizer(), tmp_path / name, seed=seed, context=256)
    assert "two holds no finished evaluation" in rlhf("compare", "one", "two").err
    RewardModel.start(tmp_path / "one", seed=0).save(tmp_path / "rm", trained=True)
    options = ("--prompts", "world:eval_prompts", "--limit", 3, "--max-new-tokens", 4)
    by = ("--judge", "second=rm")
    found = json.loads(rlhf("compare", "one", "two", *options, *by, "--json").out)
    rates = [[rate[key] for key in ("a", "b", "judge", "n")] for rate in found["win_rates"]]
    assert rates == [["one", "two", "gold", 3], ["one", "two", "second", 3]]
    assert found["judges"]["second"]["kind"] == "reward_model"
    monkeypatch.setattr(console, "PLAIN_SECONDS", 0.0)
    result = rlhf("compare", "one", "two", *options, *by)
    said = result.out
    assert "  two: answers: 3/3 prompts" in result.err and "answers:" not in said
    assert "prompts" not in rlhf("compare", "one", "two", *options, "--quiet").err
    assert "\nsecond " in said
    assert "second: whether a checkpoint was trained against it is not known" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "rm", "two"]


def test_what_would_do_nothing_is_refused(rlhf: Callable[..., Any], tmp_path: Path) -> None:
    judged(tmp_path / "new", 0.9)
    judged(tmp_path / "old", 0.2)
    result = rlhf("compare", "new", "old", "--judge", "x=rm", "--limit", 3)
    assert result.code == 2
    assert "answered anew without --prompts, as --judge and --limit would have it" in result.err
    result = rlhf("compare", "new", "old", "--out", "page")
    assert result.code == 2 and "--out takes the page of runs" in result.err
    assert "name two to compare" in rlhf("compare", "new").err
    result = rlhf("compare", "new", "old", "./old/")
    assert result.code == 2 and "new, old, ./old/: one is named twice" in result.err
    result = rlhf("compare", "new", "old", "third", "--prompts", "ask.jsonl")
    assert result.code == 2 and "name two to compare" in result.err
    judge = "x={kind: llm, url: http://127.0.0.1:9/v1, model: wise}"
    result = rlhf("compare", "new", "old", "--prompts", "ask.jsonl", "--judge", judge)
    assert result.code == 2 and "kept in --out, so that it is not asked twice" in result.err
