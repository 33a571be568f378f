"""What an encoder reads of prompts and chats, and what the decoder behind it is to write."""

from __future__ import annotations

from typing import Any

import pytest

from data.records import Completion, Conversation, chat
from data.text.chat import Rendered, RenderReport, render_demonstrations, render_input, render_pairs
from data.text.objectives.special_tokens import equip
from data.text.tokenizer import train_tokenizer

TEXT = ["Who is it? It is Mara. What does she do? She bakes bread."]
FRAMES = {"span_corruption": "", "denoising": "<|bos|>"}


@pytest.fixture(scope="module", params=FRAMES)
def framed(request: pytest.FixtureRequest) -> tuple[Any, str]:
    """A tokenizer as T5's or as BART's, and what it puts in front of a text."""
    made = train_tokenizer(TEXT, vocabulary_size=320)
    equip(made, request.param)
    return made, FRAMES[request.param]


def parts(tokenizer: Any, row: Rendered) -> tuple[str, str]:
    learned = row.assistant_mask.index(True)
    assert row.assistant_mask == [at >= learned for at in range(len(row.ids))]
    return tokenizer.decode(row.ids[:learned]), tokenizer.decode(row.ids[learned:])


def test_an_encoder_reads_a_prompt_as_the_tokenizer_frames_any_text(framed: Any) -> None:
    tokenizer, front = framed
    assert render_input(tokenizer, "Who is it?") == tokenizer("Who is it?")["input_ids"]
    asked = tokenizer.decode(render_input(tokenizer, chat("Who?")))
    assert asked == f"{front}<|user|>Who?<|end|><|assistant|><|end|>"
    assert tokenizer.decode(render_input(tokenizer, f"{front}Who?")) == f"{front}Who?<|end|>"


def test_a_completion_is_a_text_of_its_own(framed: Any) -> None:
    tokenizer, front = framed
    [row] = render_pairs(tokenizer, Completion("Who is it?", " It is Mara.<|end|>\n"))
    assert parts(tokenizer, row) == (f"{front}Who is it?<|end|>", "It is Mara.<|end|>")
    read = row.ids[: row.assistant_mask.index(True)]
    assert read == render_input(tokenizer, "Who is it?")


def test_each_answer_of_a_chat_is_written_behind_the_turns_before_it(framed: Any) -> None:
    tokenizer, front = framed
    turns = chat("Who?", "Mara.", "And what?", "Bread.")
    rows = render_pairs(tokenizer, Conversation(turns))
    first, second = (parts(tokenizer, row) for row in rows)
    assert first == (f"{front}<|user|>Who?<|end|><|assistant|><|end|>", "Mara.<|end|>")
    assert second[1] == "Bread.<|end|>" and second[0].startswith(
        f"{front}<|user|>Who?<|end|><|assistant|>Mara.<|end|><|user|>And what?"
    )
    # As they are sampled.
    read = rows[1].ids[: rows[1].assistant_mask.index(True)]
    assert read == render_input(tokenizer, turns[:3])


@pytest.mark.parametrize(("too_long", "rendered", "dropped"), [("cut", 2, 1), ("drop", 1, 2)])
def test_reading_and_writing_have_a_length_each(too_long: Any, rendered: int, dropped: int) -> None:
    tokenizer = train_tokenizer(TEXT, vocabulary_size=320)
    equip(tokenizer, "span_corruption")
    short = Completion("Who is it?", "It is Mara.")
    read, written = (
        [ids for ids, learned in zip(*render_pairs(tokenizer, short)[0], strict=True)
         if learned == half]
        for half in (False, True)
    )  # fmt: skip
    most = max(len(read), len(written))
    records = [short, Completion("Who?", "It is Mara. " * 5), Completion("Who is it? " * 5, "Ah.")]
    report = RenderReport()
    rows = list(
        render_demonstrations(
            tokenizer, records, max_length=most, too_long=too_long, report=report, pairs=True
        )
    )
    assert (len(rows), report.dropped, report.truncated) == (rendered, dropped, rendered - 1)
    assert rows[0].ids == [*read, *written]
    assert all(sum(row.assistant_mask) <= most for row in rows)
