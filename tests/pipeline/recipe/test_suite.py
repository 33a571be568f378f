"""Suites: from a file or the package, and what is said of one that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.errors import RecipeError
from pipeline.evaluation.benchmarks.registry import BENCHMARKS
from pipeline.recipe.suite import load_suites

CHOICES = "tasks:\n  - kind: choices\n    source: {path: quiz.jsonl}\n"


def test_suites_come_from_files_and_from_the_package(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(CHOICES + "    name: quiz\n    shots: 2\n    draws: 5\n")
    tasks = load_suites([str(path), "world"])
    assert [(task.kind, task.called) for task in tasks] == [
        ("choices", "quiz"),
        ("world_facts", "world_facts"),
    ]
    assert [getattr(task, "shots", None) for task in load_suites(["lists"])] == [0, 1, 2, 4, 8]
    assert load_suites([]) == []


def test_every_kind_of_task_can_be_named(tmp_path: Path) -> None:
    path = tmp_path / "all.yaml"
    rows = "source: {path: rows.jsonl}"
    kinds = {
        "choices": rows,
        "truthfulqa": rows,
        "gsm8k": rows,
        "world_facts": "limit: 3",
        "world_lists": "shots: 2",
        "world_sums": "steps: both",
    }
    lines = [f"  - {{kind: {kind}, {given}}}" for kind, given in kinds.items()]
    path.write_text("\n".join(["tasks:", *lines, "  - {kind: lm_eval, task: arc_easy, shots: 5}"]))
    tasks = load_suites([str(path)])
    assert [task.kind for task in tasks] == [*kinds, "lm_eval"] == [*BENCHMARKS]
    assert tasks[-1].called == "arc_easy"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: []\n", r"tasks: \[\]: this list needs an item"),
        (
            "tasks:\n  - {kind: choice}\n",
            r"mine\.yaml:2: tasks\.0: a task is a mapping whose `kind` is",
        ),
        ("tasks:\n  - {kind: choices}\n", r"tasks\.0\.source: this key is needed"),
        (CHOICES + "    shot: 2\n", r"mine\.yaml:4: tasks\.0\.shot: unknown key .*'shots'"),
        (CHOICES + "    draws: 2\n", r"draws and examples are for shots"),
        (CHOICES + CHOICES.partition("\n")[2], r"two tasks are called 'choices'; give each"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_suites([str(path)])


def test_an_unknown_suite_and_one_given_twice(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"no suite 'word': .*are lists, world. Did you mean 'world'\?"
    ):
        load_suites(["word"])
    with pytest.raises(RecipeError, match="two tasks are called 'world_facts'"):
        load_suites(["world", "world"])
