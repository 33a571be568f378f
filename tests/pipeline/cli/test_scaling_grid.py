"""`rlhf scaling run` as a user types it: a tiny grid, killed between two runs, and its page."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from data.errors import Interrupted
from data.json_lines import read_json_lines
from pipeline.run import execution, runner

pytestmark = [pytest.mark.usefixtures("brief_fits"), pytest.mark.drawn]

GRID = """
description: three sizes & three <lengths>
tokenizer: {train: [{path: text.txt, format: text_lines}], vocab_size: 300}
pretrain:
  train: [{path: text.txt, format: text_lines, skip: 6}]
  heldout: [{path: text.txt, format: text_lines, limit: 6}]
  context_length: 16
  batch_size: 8
sizes: [{hidden_size: 8, heads: 2, layers: 1}, {hidden_size: 16, heads: 2, layers: 1},
        {hidden_size: 32, heads: 2, layers: 2}]
tokens: [1024, 2048, 4096]
learning_rates: [2e-3, 1e-2]
sweep_tokens: 1024
"""
RUN = ("scaling", "run", "g.yaml", "--out", "out", "--resamples", "40")


def test_a_grid_that_is_cut_off_goes_on_and_leaves_points_fit_and_page(
    rlhf: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "g.yaml").write_text(GRID)
    sums = [
        f"What is {a} + {b}? It is {a + b}, as {a} and {b} make {a + b}."
        for a in range(8)
        for b in range(8)
    ]
    (tmp_path / "text.txt").write_text("\n".join(sums))
    ran: list[str] = []
    real = execution.run_stage

    def until(stop: str) -> Callable[..., Any]:
        def run_stage(run: Any, attempt: Any, *args: Any, **options: Any) -> Any:
            if attempt.stage == stop:
                raise Interrupted("asked to stop")
            ran.append(attempt.stage)
            return real(run, attempt, *args, **options)

        return run_stage

    monkeypatch.setattr(runner, "run_stage", until("run1-1"))
    cut = rlhf(*RUN)
    assert cut.code == 130
    assert "to go on: rlhf scaling run g.yaml --out out --resamples 40" in cut.err
    assert ran == [
        "tokenizer", "rate0-0", "rate0-1", "rate1-0", "rate1-1",
        "run0-0", "run0-1", "run0-2", "run1-0",
    ]  # fmt: skip
    assert not (tmp_path / "out/points.jsonl").exists()

    ran.clear()
    monkeypatch.setattr(runner, "run_stage", until(""))
    done = rlhf(*RUN)
    assert done.code == 0, done.err
    assert ran == ["run1-1", "run1-2", "run2-0", "run2-1", "run2-2"]
    assert "The page: out/index.html" in done.out
    rows = [*read_json_lines(tmp_path / "out/points.jsonl")]
    assert [row["tokens"] for row in rows] == [1024, 2048, 4096] * 3
    for row in rows:
        assert row["loss_ci95"][0] < row["loss"] < row["loss_ci95"][1]
        assert row["non_embedding_parameters"] < row["parameters"]
        assert row["seconds"] > 0
    # What was learned: more tokens, less loss, at each size.
    assert all(rows[at]["loss"] > rows[at + 2]["loss"] for at in (0, 3, 6))

    found = json.loads((tmp_path / "out/fit.json").read_text())
    assert found["compute"]["C0"] == pytest.approx(
        rows[4]["flops"] / rows[4]["parameters"] / rows[4]["tokens"], rel=0.5
    )
    assert found["ignored_columns"] == []
    assert found["kaplan"]["parameters"] == "non_embedding"
    _check_page((tmp_path / "out/index.html").read_text(encoding="utf-8"))


def _check_page(page: str) -> None:
    addresses: list[str] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            addresses.extend(v or "" for k, v in attrs if k in ("src", "href", "xlink:href"))

    Parser().feed(page)
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert "three sizes &amp; three &lt;lengths&gt;" in page
    assert page.count("<svg") >= 2
    assert page.count('<th scope="row">run') == 9
    for name in ("alpha", "beta"):
        assert f'<th scope="row">{name}</th>' in page


def test_a_setting_that_no_pretrain_stage_has_is_told_before_anything_runs(
    rlhf: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "g.yaml").write_text(GRID.replace("batch_size: 8", "batch_sise: 8"))
    result = rlhf(*RUN)
    assert result.code == 2
    assert "batch_sise: unknown key" in result.err and "'batch_size'" in result.err
    assert not (tmp_path / "out" / "tokenizer").exists()
