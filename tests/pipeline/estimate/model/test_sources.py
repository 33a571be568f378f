"""The lengths of sources that `rlhf plan` reckons with."""

import json

from pipeline.contract.settings import SourceSettings
from pipeline.estimate.model.assumptions import Assumptions
from pipeline.estimate.model.sources import Reader, count_bytes


def test_calls_reasoning_and_tools_count_as_the_text_that_they_are(tmp_path):
    look = {"function": {"name": "look", "arguments": {"where": "behind the house " * 20}}}
    turns = [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "", "tool_calls": [look]},
        {"role": "tool", "content": "There."},
        {"role": "assistant", "content": "There.", "reasoning_content": "It must be. " * 40},
    ]

    def lengths(rows):
        path = tmp_path / f"{len(rows)}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return Reader(Assumptions()).measure("sft", [SourceSettings(path=str(path))], count_bytes)

    with_tools = {"messages": turns, "tools": [{"name": "look", "description": "eyes " * 100}]}
    bare, full = lengths([{"messages": turns}]), lengths([with_tools] * 2)
    assert bare.prompts[0] > count_bytes("behind the house " * 20)
    assert bare.answers[0] > count_bytes("It must be. " * 40)
    assert full.prompts[0] > bare.prompts[0] + count_bytes("eyes " * 100)
