"""Rows as public data sets have them: whatever the columns, what is asked is in the prompt."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import BadRowsError
from data.records import Completion, Conversation, PromptRow, Ranking, chat, prompt_of
from data.sources.asking import (
    ABOUT_COLUMNS,
    ASKING_COLUMNS,
    HISTORY,
    QUESTIONS,
    SYSTEM_COLUMNS,
    asked,
)
from data.sources.converting import convert
from data.sources.formats import detect, unused
from data.sources.read import ReadReport, read
from data.sources.source import Source
from data.sources.values import RowDropped, RowError

PAIR = {"chosen": "In the garden.", "rejected": "In the river."}
ASKS = "Where is the lamp of Mara?"
ABOUT = "Mara keeps the lamp behind her house, where the beans grow."
CALM = "Be calm."
HUMAN = {"from": "human", "value": ASKS}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def transcript(answer: str) -> str:
    return f"\n\nHuman: {ASKS}\n\nAssistant: {answer}"


def record_of(row: dict[str, Any], **settings: Any) -> Any:
    return convert(row, detect(row), format_named=False, **settings)


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"question": ASKS, **PAIR}, ASKS),
        ({"query": ASKS, **PAIR}, ASKS),
        ({"instruction": ASKS, "input": "", **PAIR}, ASKS),
        ({"instruction": ASKS, "input": ABOUT, **PAIR}, f"{ASKS}\n\n{ABOUT}"),
        ({"input": ASKS, **PAIR}, ASKS),
        ({"context": ABOUT, "question": ASKS, **PAIR}, f"{ASKS}\n\n{ABOUT}"),
        ({"context": [ABOUT, "The river is far."], "question": ASKS, **PAIR},
         f"{ASKS}\n\n{ABOUT}\n\nThe river is far."),
        ({"history": ASKS, **PAIR}, ASKS),
        ({"system": CALM, "question": ASKS, **PAIR}, chat(ASKS, system=CALM)),
        ({"system_prompt": CALM, "prompt": ASKS, **PAIR}, chat(ASKS, system=CALM)),
        ({"system": None, "prompt": ASKS, **PAIR}, ASKS),
        ({"messages": [user(ASKS)], **PAIR}, chat(ASKS)),
        ({"conversations": [HUMAN], **PAIR}, chat(ASKS)),
        ({"conversations": json.dumps([HUMAN]), **PAIR}, chat(ASKS)),
        ({"conversations": [HUMAN], "chosen": {"from": "gpt", "value": PAIR["chosen"]},
          "rejected": {"from": "gpt", "value": PAIR["rejected"]}}, chat(ASKS)),
        ({"messages": [user(ASKS)], "context": ABOUT, **PAIR}, chat(f"{ASKS}\n\n{ABOUT}")),
        ({"history": [["Who?", "Mara."]], "question": ASKS, **PAIR}, chat("Who?", "Mara.", ASKS)),
        ({"history": '[["Who?", "Mara."]]', "question": ASKS, **PAIR}, chat("Who?", "Mara.", ASKS)),
        ({"history": chat("Who?", "Mara."), "question": "Who?", **PAIR},
         chat("Who?", "Mara.", "Who?")),
        ({"prompt": "Answer in French.", "question": ASKS, **PAIR}, f"Answer in French.\n\n{ASKS}"),
        ({"prompt": f"Q: {ASKS} A:", "question": ASKS, **PAIR}, f"Q: {ASKS} A:"),
        ({"prompt": ASKS, "messages": [user(ASKS), assistant(PAIR["chosen"])], **PAIR}, chat(ASKS)),
        ({"prompt": transcript(""), "chosen": transcript("Here."), "rejected": transcript("No.")},
         chat(ASKS)),
        ({"system": CALM, "chosen": transcript("Here."), "rejected": transcript("No.")},
         chat(ASKS, system=CALM)),
        ({"system": CALM, "chosen": [user(ASKS), assistant("a")],
          "rejected": [user(ASKS), assistant("b")]}, chat(ASKS, system=CALM)),
        ({"prompt": [{"role": "system", "content": CALM}],
          "chosen": [user(ASKS), assistant("a")], "rejected": [user(ASKS), assistant("b")]},
         chat(ASKS, system=CALM)),
        ({"question": ASKS, "chosen": [assistant("a")], "rejected": [assistant("b")]}, chat(ASKS)),
        ({"context": ABOUT, "chosen": [user(ASKS), assistant("a")],
          "rejected": [user(ASKS), assistant("b")]}, chat(f"{ASKS}\n\n{ABOUT}")),
    ],
)  # fmt: skip
def test_a_pair_is_asked_by_all_its_columns(row, prompt):
    record = record_of(row)
    assert isinstance(record, Ranking)
    assert record.prompt == prompt
    assert list(unused(row, detect(row))) == []


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"instruction": ASKS, "input": ABOUT, "output": "Here."},
         chat(f"{ASKS}\n\n{ABOUT}", "Here.")),
        ({"instruction": ASKS, "context": ABOUT, "response": "Here."},
         chat(f"{ASKS}\n\n{ABOUT}", "Here.")),
        ({"system_prompt": CALM, "question": ASKS, "response": "Here."},
         chat(ASKS, "Here.", system=CALM)),
        ({"instruction": ASKS, "input": "", "output": "Here.", "system": CALM,
          "history": [["Who?", "Mara."]]}, chat("Who?", "Mara.", ASKS, "Here.", system=CALM)),
        ({"input": ASKS, "output": "Here."}, chat(ASKS, "Here.")),
        ({"context": [user("Hi"), assistant("Yes?"), user(ASKS)], "response": "Here."},
         chat("Hi", "Yes?", ASKS, "Here.")),
        ({"system": CALM, "prompt": ASKS, "completion": "Here."},
         chat(ASKS, "Here.", system=CALM)),
        ({"conversations": [HUMAN, {"from": "gpt", "value": "Here."}], "system": CALM},
         chat(ASKS, "Here.", system=CALM)),
        ({"messages": chat(ASKS, "Here."), "prompt": ASKS}, chat(ASKS, "Here.")),
        ({"messages": chat(ASKS, "Here."), "document": ABOUT}, chat(f"{ASKS}\n\n{ABOUT}", "Here.")),
        ({"prompt": ASKS, "completion": [assistant("Here.")], "label": True}, chat(ASKS, "Here.")),
    ],
)  # fmt: skip
def test_a_demonstration_is_asked_by_all_its_columns(row, messages):
    assert record_of(row) == Conversation(messages=messages)


def test_prompts_and_rankings_are_asked_by_all_their_columns():
    row = {"question": ASKS, "passage": ABOUT, "answer_key": "b"}
    assert record_of(row) == PromptRow(
        prompt=f"{ASKS}\n\n{ABOUT}", meta={"passage": ABOUT, "answer_key": "b"}
    )
    ranked = {"completions": ["a", "b"], "ranks": [0, 1]}
    assert record_of({"system": CALM, "instruction": ASKS, **ranked}).prompt == chat(
        ASKS, system=CALM
    )
    assert record_of({"history": ASKS, **ranked}).prompt == ASKS


def test_a_question_that_the_recipe_maps_is_all_that_is_asked():
    row = {"prompt": ASKS, "question": "Which?", "context": ABOUT, **PAIR}
    columns = {"prompt": "Frage"}
    record = convert(row, "preference", columns=columns)
    assert record.prompt == ASKS
    assert list(unused(row, "preference", columns)) == ["column 'question'", "column 'context'"]
    mapped = convert(row, "preference", columns={"context": "Text"})
    assert mapped.prompt == f"{ASKS}\n\nWhich?\n\n{ABOUT}"


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"title": ASKS, "chosen": "Mara says yes.", "rejected": "Mara says no."}, "title"),
        ({"Frage": "Wo steht denn nun die Lampe", "chosen": "a b", "rejected": "a c"}, "Frage"),
        ({"q": "灯在哪里，请你告诉我好吗", "chosen": "好。在花园", "rejected": "好。在河里"}, "q"),
    ],
)
def test_an_unknown_column_that_may_have_been_asked_stops_the_guessing(row, name):
    with pytest.raises(RowError, match=f"'{name}' may: map it with `columns: {{prompt: {name}}}`"):
        record_of(row)
    assert convert(row, "preference", format_named=True).prompt
    assert f"column '{name}'" in list(unused(row, "preference"))


@pytest.mark.parametrize(
    "beside",
    [
        {"source": "gpt-4"},
        {"url": "https://example.org/a b c d?"},
        {"prompt_id": "5f2c"},
        {"rationale": "The first one is kinder than the other."},
        {"chosen_model": "the large one of the two models"},
        {"full": "Where is the lamp? It is"},
    ],
)
def test_columns_that_ask_nothing_leave_the_shared_words_as_prompt(beside):
    row = {"chosen": "Where is the lamp? It is here.", "rejected": "Where is the lamp? It is off."}
    assert record_of({**row, **beside}).prompt == "Where is the lamp? It is"


def test_chats_that_do_not_fit_together_are_malformed():
    row = {"prompt": chat("Where is the river now?"), "messages": chat(ASKS), **PAIR}
    with pytest.raises(RowError, match="column 'messages' holds other turns"):
        record_of(row)


def test_a_label_that_is_no_yes_or_no_is_told():
    row = {"prompt": "Who?", "completion": "Mara.", "label": 3}
    assert list(unused(row, "prompt_completion")) == ["column 'label'"]


@pytest.mark.parametrize("bad", [False, "False", "false"])
def test_an_answer_to_avoid_is_not_imitated(bad):
    with pytest.raises(RowDropped, match="one to avoid"):
        record_of({"prompt": "Who?", "completion": "Go away.", "label": bad})
    assert record_of({"prompt": "Who?", "completion": "Mara.", "label": 0}) == Completion(
        prompt="Who?", completion="Mara."
    )


WORDS = st.text(alphabet="abc é灯?", min_size=1, max_size=20).filter(lambda text: text.strip())
TURNS = st.lists(WORDS, min_size=1, max_size=3).filter(lambda said: len(said) % 2 == 1)


@given(
    columns=st.dictionaries(
        st.sampled_from([*QUESTIONS, *ABOUT_COLUMNS, SYSTEM_COLUMNS[0], HISTORY]),
        WORDS,
        min_size=1,
    ),
    name=st.sampled_from(["preference", "rankings", "prompt", "instruction"]),
)
def test_whatever_the_columns_each_of_their_texts_is_in_the_prompt(columns, name):
    answers = {"completions": ["x", "y"], "ranks": [1, 2], "chosen": "x", "rejected": "y"}
    row = {**columns, **answers, "answer": "x"}
    if set(columns) <= {SYSTEM_COLUMNS[0]}:
        assert asked(row) is None
        return
    prompt = prompt_of(convert(row, name, format_named=False))
    said = prompt if isinstance(prompt, str) else " ".join(turn["content"] for turn in prompt)
    for text in columns.values():
        assert " ".join(text.split()) in " ".join(said.split())


@given(
    turns=TURNS,
    columns=st.dictionaries(st.sampled_from([*QUESTIONS[4:], *ABOUT_COLUMNS]), WORDS),
    where=st.sampled_from(["prompt", "messages", "chosen"]),
)
def test_beside_turns_each_text_is_in_the_prompt(turns, columns, where):
    before = chat(*turns)
    row = {**columns, "chosen": "x", "rejected": "y", where: before}
    if where == "chosen":
        row["chosen"], row["rejected"] = (
            [*before, assistant(answer)] for answer in ("x", "y")
        )  # fmt: skip
    record: Any = convert(row, "preference", format_named=False)
    assert [turn["role"] for turn in record.prompt] == [turn["role"] for turn in before]
    said = " ".join(" ".join(turn["content"] for turn in record.prompt).split())
    for text in [*turns, *columns.values()]:
        assert " ".join(text.split()) in said


def as_jsonl(file: Path, rows: list) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def as_csv(file: Path, rows: list) -> str:
    with open(file, "w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        for row in rows:
            held = {k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()}
            writer.writerow(held)
    return str(file)


def as_parquet(file: Path, rows: list) -> str:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return str(file)


@pytest.mark.parametrize("write", [as_jsonl, as_csv, as_parquet])
def test_files_of_every_kind_keep_what_is_asked(tmp_path, write):
    file = {as_jsonl: "a.jsonl", as_csv: "a.csv", as_parquet: "a.parquet"}[write]
    rows = [{"system": CALM, "question": f"{ASKS} {i}", "lang": "en", **PAIR} for i in range(3)]
    report = ReadReport()
    got = list(read(Source(path=write(tmp_path / file, rows)), report=report))
    assert [record.prompt for record in got] == [chat(f"{ASKS} {i}", system=CALM) for i in range(3)]
    assert "not used: column 'lang' (3 rows)" in report.lines()
    turns = [{"messages": [user("Hi"), assistant("Yes?"), user(ASKS)], **PAIR}]
    (ranking,) = read(Source(path=write(tmp_path / f"b{file}", turns)))
    assert ranking.prompt == chat("Hi", "Yes?", ASKS)


def test_a_file_of_unknown_questions_is_refused_until_it_is_mapped(tmp_path):
    rows = [{"ask": f"{ASKS} {i}", "chosen": f"It is {i}.", "rejected": "It is"} for i in range(9)]
    file = as_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(BadRowsError, match=r"a.jsonl:1: no known column asks, but 'ask' may"):
        list(read(Source(path=file)))
    got = list(read(Source(path=file, columns={"prompt": "ask"})))
    assert [record.prompt for record in got] == [row["ask"] for row in rows]


def test_every_asking_column_is_known_once():
    assert len(set(ASKING_COLUMNS)) == len(ASKING_COLUMNS)


def test_reasoning_of_answers_that_are_compared_is_told_as_unread():
    said = [{"role": "assistant", "content": "Yes.", "reasoning_content": "They bake."}]
    pair = {"prompt": ASKS, "chosen": said, "rejected": "No."}
    assert list(unused(pair, detect(pair))) == ["key 'reasoning_content' of compared answers"]
    ranked = {"prompt": ASKS, "completions": [said, "No."], "ranks": [1, 2]}
    assert list(unused(ranked, detect(ranked))) == ["key 'reasoning_content' of compared answers"]
    imitated = {"prompt": [{"role": "user", "content": ASKS}], "completion": said}
    assert list(unused(imitated, detect(imitated))) == []
