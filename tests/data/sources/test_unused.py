"""What of a row nothing reads: named once a source, whatever its place in the row or its file."""

import csv
import json
from typing import Any

import pytest

from data.records import template_input, to_json
from data.sources.converting import convert
from data.sources.formats import detect, unused
from data.sources.read import ReadReport, read
from data.sources.source import Source
from data.sources.values import RowError

ASKS = {"role": "user", "content": "Who has the lamp?"}
THOUGHT = {"role": "assistant", "content": "Mara.", "reasoning_content": "It is the smith's lamp."}
PLAIN = {"role": "assistant", "content": "Theo."}


def named(row: dict[str, Any], columns: dict[str, str] | None = None) -> set[str]:
    """Return what is not used of a row that is well formed."""
    name = detect(row, columns)
    convert(row, name, columns=columns)
    return set(unused(row, name, columns))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [ASKS], "chosen": [THOUGHT], "rejected": [PLAIN]},
        {"chosen": [ASKS, PLAIN], "rejected": [ASKS, THOUGHT]},
        {"prompt": [ASKS], "chosen": THOUGHT, "rejected": PLAIN},
        {"prompt": [ASKS], "completions": [PLAIN, [THOUGHT]], "ranks": [1, 2]},
        {"prompt": [ASKS], "completions": json.dumps([THOUGHT, PLAIN]), "scores": [1, 2]},
    ],
)
def test_reasoning_of_answers_that_are_compared_as_text_is_named(row):
    assert named(row) == {"key 'reasoning_content' of compared answers"}


def test_reasoning_before_the_answers_is_kept():
    row = {"chosen": [ASKS, THOUGHT, ASKS, PLAIN], "rejected": [ASKS, THOUGHT, ASKS, PLAIN]}
    row["rejected"] = [*row["rejected"][:-1], {"role": "assistant", "content": "Nobody."}]
    assert named(row) == set()
    assert "the smith's lamp" in str(to_json(convert(row, "preference")))


def test_unknown_keys_of_completions_are_named():
    row = {"prompt": "Who?", "completions": [{**PLAIN, "critique": "too short"}, THOUGHT]}
    assert named({**row, "ranks": [1, 2]}) == {
        "key 'critique' of compared answers",
        "key 'reasoning_content' of compared answers",
    }


@pytest.mark.parametrize(
    ("turn", "key"),
    [
        ({**PLAIN, "value": "Another."}, "value"),
        ({**PLAIN, "from": "human"}, "from"),
        (
            {
                **PLAIN,
                "tool_calls": [{"function": {"name": "look", "arguments": {}}}],
                "function_call": {"name": "listen", "arguments": {}},
            },
            "function_call",
        ),
    ],
)
def test_a_second_spelling_that_says_something_else_is_named(turn, key):
    assert named({"messages": [ASKS, turn]}) == {f"key '{key}' of turns"}
    same = {**PLAIN, "value": PLAIN["content"], "from": "assistant"}
    assert named({"messages": [ASKS, same]}) == set()


def test_a_weight_that_asks_to_learn_the_users_turn_is_named():
    assert named({"messages": [{**ASKS, "weight": 1}, PLAIN]}) == {"key 'weight' of turns"}
    assert named({"messages": [{**ASKS, "weight": 0}, {**PLAIN, "weight": 1}]}) == set()


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ({"prompt": "Who?", "completion": "Mara.", "meta": {"page": 3}}, {"meta"}),
        ({"messages": [ASKS, PLAIN], "annotator": "p1"}, {"annotator"}),
        ({"prompt": "Who?", "chosen": "Mara.", "rejected": "Theo.", "meta": "page 3"}, {"meta"}),
        (
            {"prompt": "Who?", "completions": ["a", "b"], "ranks": [1, 2], "scores": [4, 3]},
            {"scores"},
        ),
        (
            {"prompt": "Who?", "completions": ["a", "b"], "ranks": [1, 2], "models": "m1 and m2"},
            {"models"},
        ),
        ({"prompt": "Who?", "meta": '{"page": 3}', "other": "x"}, {"other"}),
    ],
)
def test_columns_that_a_record_has_no_place_for_are_named(row, names):
    assert named(row) == {f"column '{name}'" for name in names}


def test_what_a_prompt_row_does_not_ask_stays_in_its_meta():
    row = {"prompt": "Who?", "question": "What is the name?", "meta": "page 3"}
    record: Any = convert(row, "prompt", columns={"prompt": "prompt"})
    assert record.prompt == "Who?"
    assert record.meta == {"question": "What is the name?", "meta": "page 3"}


def test_keys_of_turns_in_a_csv_file_are_named(tmp_path):
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["messages"])
        writer.writerow([json.dumps([{**ASKS, "country": "Ireland"}, PLAIN])])
    report = ReadReport()
    list(read(Source(path=str(tmp_path / "rows.csv")), report=report))
    assert "not used: key 'country' of turns (1 row)" in report.lines()


def test_all_system_columns_and_tools_of_a_row_are_in_the_chat():
    look, listen = ({"type": "function", "function": {"name": n}} for n in ("look", "listen"))
    row = {
        "system": "Be calm.",
        "system_prompt": "Answer in one word.",
        "tools": [look],
        "functions": [listen],
        "messages": [ASKS, PLAIN],
    }
    record: Any = convert(row, "messages")
    assert record.messages[0]["content"] == "Be calm.\n\nAnswer in one word."
    assert template_input(record.messages)[1] == [look, listen]
    turns: list[Any] = [{**ASKS, "tools": [look]}, PLAIN, {**ASKS, "tools": [look, listen]}]
    assert template_input(turns)[1] == [look, listen]


def test_a_turn_with_one_of_two_keys_null_is_read_by_the_other():
    row = {
        "messages": [
            {"role": None, "content": None, "from": "human", "value": "Who?"},
            {"role": "assistant", "content": "Mara.", "from": None, "value": None},
        ]
    }
    record: Any = convert(row, "messages")
    assert [turn["content"] for turn in record.messages] == ["Who?", "Mara."]
    assert named(row) == set()


@pytest.mark.parametrize("write", [list, json.dumps])
def test_turns_without_a_role_are_malformed_as_text_too(write):
    pairs = write([{"input": "Who?", "output": "Mara."}])
    row = {"conversation": pairs, "chosen": [ASKS, PLAIN], "rejected": [ASKS, THOUGHT]}
    with pytest.raises(RowError, match="neither role nor from; its keys: input, output"):
        convert(row, "preference")
