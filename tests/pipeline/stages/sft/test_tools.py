"""Rows with calls: what is learned, and that sampling gives the rest."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from data.records import Completion, Conversation, chat
from data.text.chat import render_demonstration, render_prompt
from data.text.inline_calls import split_calls
from pipeline.generation.tools.toolbox import Calling, ToolBox, find_tool
from pipeline.stages.sft.rows import Results, prepare_rows
from pipeline.stages.sft.settings import SftSettings

SAID = "48/2 = <<48/2=24>>24, <<48+24=72>> and <<1/0=error: division by zero>>\nno <<1+1, <<2+2=4>>"
NAMES = ["calculator"]
RECORDS: list[Any] = [Completion("How many?", f" {SAID}"), Conversation(chat("How many?", SAID))]


@pytest.mark.parametrize("record", RECORDS)
def test_a_row_is_what_sampling_makes_of_its_own_tokens(
    tiny_tokenizer: Callable[..., Any], record: Any
) -> None:
    tokenizer = tiny_tokenizer(400)
    ids, mask = render_demonstration(tokenizer, record, split=partial(split_calls, names=NAMES))
    prompt = render_prompt(tokenizer, record.prompt if isinstance(record, Completion)
                           else record.messages[:1])  # fmt: skip
    calling = Calling(ToolBox([find_tool("calculator")], tokenizer), 1)
    row = list(zip(ids, mask, strict=True))
    written = row[len(prompt) : len(row) - (1 if row[-1][1] else 2)]  # but for what ends it
    assert ids[: len(prompt)] == prompt and not any(mask[: len(prompt)])
    response: list[int] = []
    while len(response) < len(written):
        token, own = written[len(response)]
        assert own
        response.append(token)
        follow = calling.follow(0, response, False, 100)
        assert written[len(response) : len(response) + len(follow)] == [(i, False) for i in follow]
        response += follow
    assert [call.result for call in calling.calls[0]] == ["24", "72", "error: division by zero"]
    assert mask.count(False) > len(prompt)


def test_what_is_left_out_of_the_loss_is_counted(tiny_tokenizer: Callable[..., Any]) -> None:
    results = Results(partial(split_calls, names=NAMES))
    rows = prepare_rows(
        RECORDS, [], tiny_tokenizer(400), max_length=300, too_long="cut", max_too_long_share=0.0,
        heldout_share=0.0, max_heldout=1, seed=0, say=lambda _: None,
        split=results,
    )  # fmt: skip
    assert results.found == 6 and len(rows.train) == 2


def test_tools_that_are_not_named_leave_the_settings_key_as_it_was() -> None:
    given: dict[str, Any] = {"model": "base", "train": [{"path": "rows.jsonl"}]}
    assert "tools" not in SftSettings(**given).key_settings()
    named = SftSettings(**given, tools=NAMES)
    assert named.key_settings()["tools"]["use"] == [{"name": "calculator", "options": {}}]
