from typing import Any

import pytest

from data.errors import SourceError
from data.records import (
    Completion,
    Conversation,
    Document,
    PromptRow,
    Ranking,
    chat,
    to_json,
)
from data.sources.converting import convert
from data.sources.formats import check_format, detect, map_columns, unused
from data.sources.values import RowDropped, RowError

RANKED = {"prompt": "a", "completions": ["b", "c"], "ranks": [1, 2]}
SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
HH = "\n\nHuman: Hi\n\nAssistant: Hello?\n\nHuman: A joke\n\nAssistant: "


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"text": "a"}, "text"),
        ({"prompt": "a", "completion": "b"}, "prompt_completion"),
        ({"prompt": "a", "response": "b"}, "prompt_completion"),
        ({"instruction": "a", "input": "", "output": "b"}, "instruction"),
        ({"question": "a", "answer": "b"}, "instruction"),
        ({"messages": chat("a", "b")}, "messages"),
        ({"conversations": SHAREGPT}, "messages"),
        ({"messages": chat("a")}, "prompt"),
        ({"prompt": "a", "level": 3}, "prompt"),
        ({"chosen": "a b", "rejected": "a c"}, "preference"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference"),
        ({"chosen": chat("a", "b"), "rejected": chat("a", "c")}, "preference"),
        ({"chosen": HH + "x", "rejected": HH + "y"}, "hh"),
        ({"prompt": "a", "completions": ["b", "c"], "ranks": [0, 1]}, "rankings"),
        ({"messages": chat("a"), "completions": ["b", "c"], "ranks": [0, 1]}, "rankings"),
    ],
)
def test_the_columns_tell_the_format(row, name):
    assert detect(row) == name


def test_a_mapped_column_that_the_others_have_no_use_for_decides():
    row = map_columns({"document": "a", "question": "b", "answer": "c"}, {"text": "document"})
    assert detect(row, {"text": "document"}) == "text"
    columns = {"prompt": "{context} {prompt}"}
    row = {"context": "x", "prompt": "a", "completions": ["b", "c"], "ranks": [0, 0]}
    row = map_columns(row, columns)
    assert detect(row, columns) == "rankings"
    assert convert(row, "rankings", columns=columns).prompt == "x a"


def test_columns_that_tell_nothing_are_listed_with_the_known_formats():
    with pytest.raises(SourceError, match=r"columns Frage, Antwort;.*prompt_completion.*rankings"):
        detect({"Frage": "a", "Antwort": "b"})


def test_a_format_that_does_not_exist_suggests_the_nearest():
    with pytest.raises(SourceError, match="Did you mean 'rankings'"):
        check_format("ranking")


def test_alpaca_rows_join_instruction_and_input():
    row = {"instruction": "Add.", "input": "1 and 2", "output": "3"}
    assert convert(row, "instruction") == Conversation(messages=chat("Add.\n\n1 and 2", "3"))


def test_sharegpt_turns_get_our_roles():
    assert convert({"conversations": SHAREGPT}, "messages").messages == chat("Hi", "Hello")


def test_content_in_parts_is_joined():
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c"},
    ]
    assert convert({"messages": turns}, "messages").messages == chat("ab", "c")


def test_prompt_and_completion_of_messages_become_a_conversation():
    row = {"prompt": chat("a"), "completion": [{"role": "assistant", "content": "b"}]}
    assert convert(row, "prompt_completion") == Conversation(messages=chat("a", "b"))


@pytest.mark.parametrize(
    ("row", "prompt", "chosen", "rejected"),
    [
        ({"prompt": "The sky", "chosen": " is blue", "rejected": " is red"}, "The sky", 0, 0),
        ({"chosen": "The sky is blue", "rejected": "The sky is black"}, "The sky is", 0, 0),
        (
            {
                "prompt": chat("a"),
                "chosen": [{"role": "assistant", "content": "b"}],
                "rejected": [{"role": "assistant", "content": "c"}],
            },
            chat("a"),
            "b",
            "c",
        ),
        ({"chosen": chat("a", "b"), "rejected": chat("a", "c")}, chat("a"), "b", "c"),
        (
            {"prompt": "a", "chosen": chat("a", "b"), "rejected": chat("a", "c")},
            chat("a"),
            "b",
            "c",
        ),
        (
            {
                "prompt": "a",
                "chosen": [{"role": "assistant", "content": "b"}],
                "rejected": [{"role": "assistant", "content": "c"}],
            },
            chat("a"),
            "b",
            "c",
        ),
    ],
)
def test_pairs_with_and_without_a_prompt(row, prompt, chosen, rejected):
    record = convert(row, "preference")
    assert isinstance(record, Ranking)
    assert (record.prompt, record.ranks) == (prompt, [1, 2])
    if chosen:
        assert record.completions == [chosen, rejected]
    else:
        ends = [row["chosen"], row["rejected"]]
        assert [end.endswith(c) for end, c in zip(ends, record.completions, strict=True)] == [
            True,
            True,
        ]


def test_hh_dialogues_give_the_shared_turns_as_prompt():
    record = convert({"chosen": HH + "No.", "rejected": HH + "Yes\n\nreally."}, "hh")
    assert record.prompt == chat("Hi", "Hello?", "A joke")
    assert record.completions == ["No.", "Yes\n\nreally."]


def test_hh_turns_of_one_speaker_in_a_row_become_one():
    text = "\n\nHuman: a\n\nHuman: b\n\nAssistant: "
    record = convert({"chosen": text + "c", "rejected": text + "d"}, "hh")
    assert record.prompt == chat("a\n\nb")


@pytest.mark.parametrize(
    ("ranks", "dense"),
    [
        ([0, 1, 2], [1, 2, 3]),
        ([1, 2, 2], [1, 2, 2]),
        ([5, 0, 5], [2, 1, 2]),
        (["1", "0", 3], [2, 1, 3]),
    ],
)
def test_ranks_of_any_origin_become_dense_from_one(ranks, dense):
    row = {"prompt": "a", "completions": ["b", "c", "d"], "ranks": ranks, "models": ["x", "y", "z"]}
    record = convert(row, "rankings")
    assert record.ranks == dense
    assert record.policies == ["x", "y", "z"]


def test_scores_rank_the_highest_first():
    row = {"prompt": "a", "completions": ["b", "c"], "scores": [0.1, 0.9]}
    assert convert(row, "rankings").ranks == [2, 1]


def test_soft_labels_are_shares_for_one_of_two():
    shares = [[0.5, 0.75], [0.25, 0.5]]
    pair = {"prompt": "a", "chosen": "b", "rejected": "c", "probability": 0.75}
    for row in (pair, RANKED | {"probabilities": shares}):
        name = detect(row)
        found = convert(row, name)
        assert (found.ranks, found.probabilities) == ([1, 2], shares)
        assert convert(to_json(found), "rankings") == found
    assert convert(RANKED, "rankings").probabilities == []


def test_completions_of_messages_become_text():
    row = {
        "messages": chat("a"),
        "completions": [
            [{"role": "assistant", "content": "b"}],
            {"role": "assistant", "content": "c"},
        ],
        "ranks": [0, 0],
    }
    assert convert(row, "rankings").completions == ["b", "c"]


def test_a_prompt_keeps_the_other_columns_as_meta():
    row = {"id": 7, "question": "2+2?", "answer_key": "4"}
    assert convert(row, "prompt") == PromptRow(prompt="2+2?", id="7", meta={"answer_key": "4"})


def test_columns_are_renamed_reached_by_path_and_joined_by_template():
    row = {"q": "Why?", "context": "It rains.", "instances": [{"output": "So."}]}
    columns = {"prompt": "{context}\n\n{q}", "completion": "instances.0.output"}
    mapped = map_columns(row, columns)
    assert convert(mapped, "prompt_completion", columns=columns) == Completion(
        prompt="It rains.\n\nWhy?", completion="So."
    )


def test_a_column_that_is_not_there_is_named_with_the_nearest():
    with pytest.raises(RowError, match=r"no column 'promt'; .* Did you mean 'prompt'"):
        map_columns({"prompt": "a"}, {"prompt": "promt"})


@pytest.mark.parametrize(
    ("row", "name", "problem"),
    [
        ({"text": 3}, "text", "holds a number, not text"),
        ({"text": "\ud83d"}, "text", "half a character"),
        ({"prompt": "a"}, "prompt_completion", "no column 'completion'"),
        ({"messages": []}, "messages", "empty"),
        ({"messages": chat("a")}, "messages", "the user's, not the assistant's"),
        ({"messages": [{"role": "oracle", "content": "a"}]}, "messages", "role is 'oracle'"),
        ({"messages": ["a"]}, "messages", "not an object"),
        ({"messages": chat("a", "b")}, "prompt", "ends with the assistant's"),
        ({"chosen": "a b", "rejected": None}, "preference", "no column 'rejected'"),
        ({"chosen": chat("a"), "rejected": chat("a")}, "preference", "ends with the user's"),
        ({"chosen": "Hello", "rejected": HH}, "hh", "no transcript"),
        ({"prompt": "a", "completions": ["b", "c"], "ranks": [1]}, "rankings", "2 completions but"),
        ({"prompt": "a", "completions": ["b", "c"], "ranks": [1, "x"]}, "rankings", "not a number"),
        (
            {"prompt": "a", "completions": ["b", "c"], "ranks": [1, True]},
            "rankings",
            "not a number",
        ),
        ({"prompt": "a", "completions": "b", "ranks": [1]}, "rankings", "not a list"),
        ({"prompt": "a", "completions": ["b", 3], "ranks": [1, 2]}, "rankings", "not a list"),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c", "probability": 7},
            "preference",
            "a share",
        ),
        (RANKED | {"probabilities": [[0.5, 1]]}, "rankings", "are 2 rows of 2 numbers"),
        (RANKED | {"probabilities": [[0.5, 1], [0.2, 0.5]]}, "rankings", "add up to 1"),
    ],
)
def test_malformed_rows_say_what_is_wrong(row, name, problem):
    with pytest.raises(RowError, match=problem):
        convert(row, name)


@pytest.mark.parametrize(
    ("row", "name", "why"),
    [
        ({"text": " "}, "text", "empty text"),
        ({"prompt": "a", "completion": ""}, "prompt_completion", "completion is empty"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "preference", "are the same"),
        (
            {"chosen": chat("a", "b", "c", "d"), "rejected": chat("a", "x", "c", "d")},
            "preference",
            "part before",
        ),
        ({"prompt": "a", "completions": ["b"], "ranks": [1]}, "rankings", "fewer than two"),
    ],
)
def test_rows_of_no_use_are_dropped_with_a_reason(row, name, why):
    with pytest.raises(RowDropped, match=why):
        convert(row, name)


def test_the_row_number_stands_in_for_a_missing_id():
    assert convert({"text": "a"}, "text", default_id="x.jsonl:3") == Document("a", "x.jsonl:3")
    assert convert({"text": "a", "id": 0}, "text", default_id="x").id == "0"


def test_what_was_cut_off_is_told_of_each_completion() -> None:
    row = {"prompt": "a", "completions": ["b", "c"], "ranks": [1, 2]}
    assert convert({**row, "ended": [True, False]}, "rankings").ended == [True, False]
    assert convert({**row, "ended": None}, "rankings").endings == [True, True]
    # Tasks for people tell it in their meta; what else stands there under that name is theirs.
    assert convert({**row, "meta": {"ended": [False, True]}}, "rankings").ended == [False, True]
    assert convert({**row, "meta": {"ended": "later"}}, "rankings").ended == []
    pair = {"prompt": "a", "chosen": "b", "rejected": "c", "ended": [False, True]}
    assert convert(pair, "preference").ended == [False, True]
    for bad in ([True], [1, 0], "[1]"):
        with pytest.raises(RowError, match="ended"):
            convert({**row, "ended": bad}, "rankings")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "completions": ["a", "b"], "ranks": [0, 1]},
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    ],
)
def test_a_subset_is_read_beside_meta(row: dict[str, Any]) -> None:
    named = {**row, "subset": "chat", "meta": {"source": "x"}}
    record = convert(named, detect(named))
    assert isinstance(record, Ranking)
    assert record.meta == {"subset": "chat", "source": "x"}
    assert list(unused(named, detect(named))) == []
    empty = convert({**row, "subset": ""}, detect(row))
    assert isinstance(empty, Ranking)
    assert empty.meta == {}
