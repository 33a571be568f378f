from __future__ import annotations

from typing import Any

import pytest

from data.errors import SourceError
from data.sources.guessing import Wanted, guess_columns

ASKS, SAYS = "Who bakes the bread here?", "Ada Finch bakes it."


def guess(wanted: Wanted, *rows: dict[str, Any]) -> dict[str, str]:
    way_out = "--columns x:{columns}"
    return guess_columns(rows, wanted, place="a.csv", way_out=way_out)


@pytest.mark.parametrize(
    ("wanted", "row", "columns"),
    [
        ("demonstrations", {"prompt": ASKS, "completion": SAYS}, {}),
        ("demonstrations", {"instruction": ASKS, "input": "", "output": SAYS}, {}),
        ("demonstrations", {"chosen": f"{ASKS} A", "rejected": f"{ASKS} B"}, {}),
        ("demonstrations", {" prompt ": ASKS, "Completion": SAYS},
         {"prompt": " prompt ", "completion": "Completion"}),
        ("demonstrations", {"Type": "x y", "Question": ASKS, "Best Answer": SAYS},
         {"prompt": "Question", "completion": "Best Answer"}),
        ("demonstrations", {"Frage": ASKS, "Antwort": SAYS, "user_id": "4 5"},
         {"prompt": "Frage", "completion": "Antwort"}),
        ("demonstrations", {"kysymys": ASKS, "vastaus": SAYS, "n": 3},
         {"prompt": "kysymys", "completion": "vastaus"}),
        ("demonstrations", {"question": ASKS, "vastaus": SAYS},
         {"prompt": "question", "completion": "vastaus"}),
        ("demonstrations", {"dialog": [{"role": "user", "content": ASKS}]}, {"messages": "dialog"}),
        ("rankings", {"question": ASKS, "better_answer": SAYS, "worse_answer": "No."},
         {"prompt": "question", "chosen": "better_answer", "rejected": "worse_answer"}),
        ("rankings", {"query": ASKS, "candidates": [SAYS, "No."], "order": [1, 2]},
         {"prompt": "query", "completions": "candidates", "ranks": "order"}),
        ("rankings", {"query": ASKS, "Responses": [SAYS, "No."], "ratings": [5, 2]},
         {"prompt": "query", "completions": "Responses", "scores": "ratings"}),
        ("texts", {"id": 3, "Body": SAYS}, {"text": "Body"}),
        ("texts", {"id": 3, "teksti": SAYS}, {"text": "teksti"}),
        ("prompts", {"id": 3, "text": ASKS}, {"prompt": "text"}),
    ],
)  # fmt: skip
def test_columns_are_told_by_their_names_and_what_they_hold(
    wanted: Wanted, row: dict[str, Any], columns: dict[str, str]
) -> None:
    assert guess(wanted, row, row) == columns


@pytest.mark.parametrize(
    ("wanted", "row", "told"),
    [
        ("demonstrations", {"left": ASKS, "right": f"{SAYS}?"},
         "a.csv: can't tell which column holds what is asked, of left, right; say so with "
         "--columns x:prompt=COLUMN,completion=COLUMN"),
        ("demonstrations", {"question": ASKS, "one": SAYS, "two": SAYS},
         "the answer, of one, two; say so with --columns x:prompt=question,completion=COLUMN"),
        ("demonstrations", {"question": ASKS, "answers_a": SAYS, "good answer": SAYS,
                            "bad answer": SAYS}, "the answer, of good answer, bad answer; say so"),
        ("rankings", {"question": ASKS, "yes": SAYS, "no": SAYS},
         "the better answer, of yes, no; say so with "
         "--columns x:prompt=question,chosen=COLUMN,rejected=COLUMN"),
        ("texts", {"n": 3}, "the text, of n; say so"),
    ],
)  # fmt: skip
def test_what_would_be_a_wild_guess_is_asked(
    wanted: Wanted, row: dict[str, Any], told: str
) -> None:
    with pytest.raises(SourceError) as error:
        guess(wanted, row)
    assert told in str(error.value) and "\n" not in str(error.value)
