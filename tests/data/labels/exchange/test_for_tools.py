"""Tasks and labels as Argilla and Label Studio load them, and back."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from data.errors import SourceError, UsageError
from data.labels.exchange.for_tools import Tool, export_tasks
from data.labels.exchange.importing import read_labels
from data.labels.exchange.tables.columns import Table, parse_columns, parse_users
from data.labels.exchange.training_rows import as_turns
from data.labels.records import LabelRow
from data.records import chat, prompt_hash

WRITTEN = Path(__file__).parent / "written"
WHEN = datetime(2026, 5, 4, tzinfo=UTC)
ADA, BO = "00000000-0000-0000-0000-00000000000a", "00000000-0000-0000-0000-00000000000b"
TALK = chat("Hello.", "Hello!", "How do I brew tea?")
BREW, BUY, DRINK = "Boil water.", 'Buy <b>some</b> & "tea".', "Tea is a drink."
COLUMNS = {
    ("argilla", 2): "prompt=prompt,a=response-1,b=response-2,winner=ranking",
    ("argilla", 3): "prompt=prompt,a=response-1,b=response-2,c=response-3,winner=ranking",
    ("label_studio", 2): "prompt=prompt,a=answer1,b=answer2,winner=ranking",
    ("label_studio", 3): "prompt=prompt,answers=answers,winner=ranking",
}


def said(place: Path, columns: str) -> set[tuple[str, str, tuple[tuple[str, int], ...]]]:
    """Return who ranked which answers of which prompt how, however the answers stand."""
    found = read_labels(str(place), when=WHEN, table=Table(parse_columns(columns)))
    return {
        (
            one.annotator.name,
            prompt_hash(one.task.prompt),
            tuple(sorted(zip(one.task.completions, one.submission.ranks, strict=True))),
        )
        for one in found
    }


@pytest.fixture
def rows(label: Callable[..., LabelRow]) -> list[LabelRow]:
    three = {"prompt": TALK, "completions": [BREW, BUY, DRINK]}
    cake = {"prompt": "Is cake a vegetable?", "completions": ["Yes.", "No.", "Hm."]}
    rain = {"prompt": "Will it rain?", "completions": ["I can't know.", "Yes!"]}
    return [
        label("tea", "Ada", [1, 2, 2], **three),
        label("tea", "Bo", [2, 3, 1], **three),
        label("cake", "Ada", [3, 1, 2], **cake),
        label("rain", "Ada", [1, 2], **rain),
        label("rain", "Bo", [1, 1], **rain),
    ]


def exported(tool: Tool, rows: list[LabelRow], folder: Path, users: dict[str, str]) -> Any:
    tasks = {row.assignment.task.id: row.assignment.task for row in rows}
    return export_tasks(
        tool, tasks.values(), rows, folder=folder, name="my campaign", guidelines="G", users=users
    )


def test_argilla_gets_all_and_gives_all_back(rows: list[LabelRow], tmp_path: Path) -> None:
    done = exported("argilla", rows, tmp_path, {"Ada": ADA, "Bo": BO})
    assert done.files == {"argilla/2-answers": 1, "argilla/3-answers": 2} and not done.left_out
    turn = prompt_hash(chat("Is cake a vegetable?"))
    assert said(tmp_path / "argilla" / "3-answers" / "records.json", COLUMNS["argilla", 3]) == {
        (ADA, prompt_hash(TALK), ((BREW, 1), (BUY, 2), (DRINK, 2))),
        (BO, prompt_hash(TALK), ((BREW, 2), (BUY, 3), (DRINK, 1))),
        # Beside a prompt in turns a plain one is the user's turn.
        (ADA, turn, (("Hm.", 2), ("No.", 1), ("Yes.", 3))),
    }
    pairs = tmp_path / "argilla" / "2-answers"
    rain = prompt_hash("Will it rain?")
    assert said(pairs / "records.json", COLUMNS["argilla", 2]) == {
        (ADA, rain, (("I can't know.", 1), ("Yes!", 2))),
        (BO, rain, (("I can't know.", 1), ("Yes!", 1))),
    }
    settings = json.loads((pairs / ".argilla" / "settings.json").read_text())
    assert settings["guidelines"] == "G"
    assert [field["settings"]["type"] for field in settings["fields"]] == ["text"] * 3
    named = json.loads((pairs / ".argilla" / "dataset.json").read_text())
    assert named == {"name": "my-campaign-2"}


def test_label_studio_gets_all_that_it_can_hold(rows: list[LabelRow], tmp_path: Path) -> None:
    done = exported("label_studio", rows, tmp_path, {"Ada": "ada@example.org"})
    assert done.left_out == {
        "labels with a tie, which Label Studio can't hold": 2,
        "names of annotators who are no users there (--users Ada=ADDRESS)": 1,
    }
    three = tmp_path / "label_studio" / "3-answers"
    assert said(three / "tasks.json", COLUMNS["label_studio", 3]) == {
        ("imported", prompt_hash(TALK), ((BREW, 2), (BUY, 3), (DRINK, 1))),
        (
            "ada@example.org",
            prompt_hash(chat("Is cake a vegetable?")),
            (("Hm.", 2), ("No.", 1), ("Yes.", 3)),
        ),
    }
    pairs = tmp_path / "label_studio" / "2-answers"
    assert said(pairs / "tasks.json", COLUMNS["label_studio", 2]) == {
        ("ada@example.org", prompt_hash("Will it rain?"), (("I can't know.", 1), ("Yes!", 2)))
    }
    for folder, names in (
        (three, ["prompt", "answers"]),
        (pairs, ["prompt", "answer1", "answer2"]),
    ):
        view = ElementTree.parse(folder / "config.xml").getroot()
        (task, *_) = json.loads((folder / "tasks.json").read_text())
        shown = [part for part in view if part.get("value", "").startswith("$")]
        assert [part.get("value") for part in shown] == [f"${name}" for name in names]
        assert all(name in task["data"] for name in names)
        (asked,) = [part for part in view if part.tag in ("Pairwise", "Ranker")]
        (result,) = task["annotations"][0]["result"]
        assert (asked.get("name"), asked.get("toName")) == (result["from_name"], result["to_name"])


@pytest.mark.parametrize(("tool", "size"), COLUMNS)
def test_what_the_tools_made_of_ours_is_what_was_said(tool: str, size: int) -> None:
    tied = lambda ranks: tool == "label_studio" and len(set(ranks)) < len(ranks)  # noqa: E731
    lines = (WRITTEN / "ours" / "ranked.jsonl").read_text().splitlines()
    ours = {
        (
            prompt_hash(row["prompt"] if size == 2 else as_turns(row["prompt"])),
            tuple(sorted(zip(row["completions"], row["ranks"], strict=True))),
        )
        for row in map(json.loads, lines)
        if len(row["ranks"]) == size and not tied(row["ranks"])
    }
    back = said(WRITTEN / tool / f"ours_{size}.json", COLUMNS[tool, size])
    assert {(prompt, ranks) for _, prompt, ranks in back} == ours and ours


@pytest.mark.parametrize("tool", ["argilla", "label_studio"])
def test_nothing_tells_who_wrote_an_answer(
    tool: Tool, label: Callable[..., LabelRow], tmp_path: Path
) -> None:
    new = {"policies": ["secret-large", "secret-small"], "meta": {"source": "secret-large"}}
    rows = [
        label(f"secret-{n}", "Ada", [1, 2], new=new, completions=[f"large {n}", f"small {n}"])
        for n in range(30)
    ]
    exported(tool, rows, tmp_path, {"Ada": ADA})
    first = []
    for file in tmp_path.rglob("*.json"):
        text = file.read_text()
        assert "secret-large" not in text and "source" not in text
        if file.name in ("records.json", "tasks.json"):
            name = "response-1" if tool == "argilla" else "answer1"
            first = [(one.get("fields") or one["data"])[name][:5] for one in json.loads(text)]
    assert 5 < first.count("large") < 25


def test_tasks_that_nobody_has_labelled_go_along(rows: list[LabelRow], tmp_path: Path) -> None:
    tasks = [rows[0].assignment.task, rows[2].assignment.task]
    done = export_tasks("argilla", tasks, [], folder=tmp_path, name="c")
    assert done.files == {"argilla/3-answers": 2}
    done = exported("argilla", rows, tmp_path / "b", {"Ada": ADA})
    left = "labels of annotators who are no users there (--users Ada=UUID)"
    assert done.left_out == {left: 2}
    with pytest.raises(SourceError, match="nothing to export: campaign c has no tasks"):
        export_tasks("argilla", [], [], folder=tmp_path / "c", name="c")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Ada", "'Ada' is no NAME=USER"),
        ("Ada=", "'Ada=' is no NAME=USER"),
        (f"Ada={ADA},Ada={BO}", "names somebody a second time"),
        (f"Ada={ADA},Bo={ADA}", "names somebody a second time"),
    ],
)
def test_users_that_make_no_sense_are_told(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=f"--users: .*{told}"):
        parse_users(text)


def test_a_user_who_is_no_annotator_is_told(rows: list[LabelRow], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nobody called 'Adda' gave a .* Did you mean 'Ada'\?"):
        exported("argilla", rows, tmp_path, {"Adda": ADA})
    with pytest.raises(UsageError, match="'ada' is no id of an Argilla user, a UUID"):
        exported("argilla", rows, tmp_path, {"Ada": "ada"})
    assert not [*tmp_path.iterdir()]
