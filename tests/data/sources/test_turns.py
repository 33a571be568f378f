import json
from typing import Any

import pytest

from data.records import (
    Conversation,
    PromptRow,
    arguments_as_text,
    chat,
    prompt_hash,
    template_input,
    to_json,
    turn_text,
)
from data.sources.converting import convert
from data.sources.turns import as_messages, last_role, unknown_keys
from data.sources.values import RowDropped, RowError

CALL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "ferry", "arguments": {"day": "monday"}},
}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "ferry", "parameters": {"type": "object"}},
}
CALLING: list[Any] = [
    {"role": "user", "content": "When?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": '{"at": 9}', "name": "ferry"},
    {"role": "assistant", "content": "At nine."},
]


@pytest.mark.parametrize(
    "call",
    [
        CALL,
        {"function": {"name": "ferry", "arguments": '{"day": "monday"}'}, "type": "function"},
        {"name": "ferry", "arguments": {"day": "monday", "hour": None}},
        json.dumps(CALL),
        {**CALL, "id": None, "index": None},
    ],
)
def test_calls_of_tools_are_kept_with_their_arguments_as_objects(call):
    turns = [CALLING[0], {"role": "assistant", "content": None, "tool_calls": [call]}]
    assert as_messages(turns)[1] == CALLING[1]


def test_older_spellings_of_calls_become_ours():
    old = {"role": "assistant", "content": None, "function_call": CALL["function"]}
    assert as_messages([old]) == [CALLING[1]]
    text = json.dumps({"name": "ferry", "arguments": {"day": "monday"}})
    shared = [
        {"from": "human", "value": "When?"},
        {"from": "function_call", "value": text},
        {"from": "observation", "value": '{"at": 9}'},
        {"from": "gpt", "value": "At nine."},
    ]
    without_name = [*CALLING[:2], {"role": "tool", "content": '{"at": 9}'}, CALLING[3]]
    assert as_messages(shared) == without_name


def test_keys_that_hold_nothing_are_absent():
    filled = {"tool_calls": None, "reasoning_content": None, "name": "", "weight": None, "x": None}
    turns = [{"role": "user", "content": "a", **filled}, {"role": "assistant", "content": "b"}]
    assert as_messages(turns) == chat("a", "b")
    assert list(unknown_keys(turns)) == []
    assert list(unknown_keys([{"role": "user", "content": "a", "stamp": 3}])) == ["stamp"]


def test_reasoning_is_kept():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b",
             "reasoning_content": "The list says so."}]  # fmt: skip
    assert as_messages(turns)[1]["reasoning_content"] == "The list says so."


@pytest.mark.parametrize("key", ["weight", "train", "loss"])
def test_turns_of_weight_0_are_told_and_a_chat_of_them_is_dropped(key):
    turns: list[Any] = [*chat("a", "b", "c", "d")]
    turns[1] = {**turns[1], key: 0}
    assert as_messages(turns)[1] == {"role": "assistant", "content": "b", "weight": 0}
    turns[3] = {**turns[3], key: False}
    with pytest.raises(RowDropped, match="all have weight 0"):
        convert({"messages": turns}, "messages")
    with pytest.raises(RowError, match=rf"a turn's {key} is 0.5"):
        as_messages([{"role": "assistant", "content": "b", key: 0.5}])


@pytest.mark.parametrize(
    "tools", [[TOOL], json.dumps([TOOL]), [json.dumps(TOOL)], [TOOL["function"]]]
)
def test_tools_of_a_row_go_with_its_first_turn(tools):
    record = convert({"messages": CALLING, "tools": tools}, "messages")
    turns, found = template_input(record.messages)
    assert (turns, found) == (CALLING, [TOOL])
    assert convert(json.loads(json.dumps(to_json(record))), "messages") == record
    asked = convert({"prompt": "When?", "tools": tools}, "prompt")
    assert asked.prompt == [{"role": "user", "content": "When?", "tools": [TOOL]}]


def test_a_chat_may_ask_with_the_answer_of_a_tool():
    assert last_role(CALLING[:3]) == "tool"
    assert convert({"messages": CALLING[:3]}, "prompt") == PromptRow(prompt=CALLING[:3])
    whole = convert({"prompt": CALLING[:3], "completion": "At nine."}, "prompt_completion")
    assert whole == Conversation(messages=CALLING)


def test_answers_that_are_compared_hold_no_calls():
    row = {"prompt": "When?", "chosen": [CALLING[1]], "rejected": [CALLING[3]]}
    with pytest.raises(RowError, match="holds tool_calls"):
        convert(row, "preference")


@pytest.mark.parametrize(
    ("turn", "problem"),
    [
        ({"role": "assistant", "content": "", "tool_calls": "ferry"}, "no JSON"),
        ({"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}, "name its function"),
        ({"role": "assistant", "content": "", "tool_calls": [3]}, "not an object"),
        ({"role": "assistant", "content": "", "tool_calls": 3}, "not a list"),
        ({"role": "assistant", "content": "", "reasoning_content": 3}, "a number, not text"),
        ({"from": "function_call", "value": "ferry()"}, "no JSON"),
        ({"role": "assistant", "content": None}, "holds nothing"),
        ({"role": "user", "content": "a", "tools": "x"}, "'tools' holds text"),
    ],
)
def test_turns_that_can_not_be_read_are_malformed(turn, problem):
    with pytest.raises(RowError, match=problem):
        as_messages([turn])


@pytest.mark.parametrize(
    "text",
    [
        "[Verse 1]\nThe river",
        "[1, 2, 3]",
        '["a", "b"]',
        "[{",
        '{"a": 1}',
        "{x}",
        "[]",
        '[{"a": 1}]',
    ],
)
def test_answers_may_begin_with_a_bracket(text):
    row = {"prompt": chat("A song"), "completion": text}
    assert convert(row, "prompt_completion").messages == chat("A song", text)
    pair = {"prompt": text, "chosen": text, "rejected": "No."}
    record = convert(pair, "preference")
    assert (record.prompt, record.completions) == (text, [text, "No."])
    ranked = {"prompt": chat("A song"), "completions": [text, "No."], "ranks": [1, 2]}
    assert convert(ranked, "rankings").completions == [text, "No."]


@pytest.mark.parametrize("write", [json.dumps, str])
def test_turns_may_stand_as_text(write):
    assert as_messages(write(CALLING)) == CALLING
    with pytest.raises(RowError, match="no JSON list"):
        as_messages(write(CALLING)[:-3])


def test_a_reader_sees_all_that_a_turn_says():
    assert turn_text(CALLING[1]) == f"tool_calls: {json.dumps([CALL])}"
    assert turn_text(chat("a")[0]) == "a"
    assert turn_text(CALLING[2]) == '{"at": 9}\nname: "ferry"'


def test_arguments_become_text_for_templates_that_join_it():
    turn = arguments_as_text(CALLING[1])
    assert turn["tool_calls"][0]["function"]["arguments"] == '{"day": "monday"}'
    assert CALLING[1]["tool_calls"][0]["function"]["arguments"] == {"day": "monday"}
    assert arguments_as_text(turn) == turn


def test_prompts_that_differ_in_calls_alone_are_two():
    other = [CALLING[0], {**CALLING[1], "tool_calls": []}, *CALLING[2:]]
    assert prompt_hash(CALLING) != prompt_hash(other)
    assert prompt_hash(chat("a")) == prompt_hash([{**chat("a")[0]}])
