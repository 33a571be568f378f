from __future__ import annotations

import re
from collections.abc import Callable
from html import unescape
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.labels.web.markdown import to_html
from data.text.inline_calls import split_calls
from pipeline.generation.tools import marks
from pipeline.generation.tools.calls import (
    Asked,
    Call,
    InlineForm,
    asked_inline,
    result_ids,
)
from pipeline.stages.tool_annotate import annotate

NAMES = ("calculator", "search")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("48/2 = <<48/2=", Asked("calculator", ["48/2"])),
        ("<<search:Who is Mara?=", Asked("search", ["Who is Mara?"])),
        ("<<search:a|b: c=", Asked("search", ["a", "b: c"])),
        ("<<1=1>> and <<calculator:2 =", Asked("calculator", ["2 "])),
        ("<<not closed\n<<2=", Asked("calculator", ["2"])),
        ("a < b <<=", Asked("calculator", [""])),
        ("48/2 =", None),
        ("<<48/2", None),
        ("<<48/2= ", None),
        ("<<48/2=24", None),
        ("<<1+<<2=", None),
        ("1 << 2, <<2=", None),
        ("1 << 2 =", None),
        ("<<1\n+1=", None),
        ("<<1==", None),
        ("<<<2=", None),
        ("<<weather:Rome=", None),
    ],
)
def test_the_text_tells_whether_a_result_would_follow(text: str, expected: Asked | None) -> None:
    assert asked_inline(text, NAMES) == expected


def test_without_a_calculator_a_sum_is_text() -> None:
    assert asked_inline("<<1+1=", ["search"]) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", [("none", True)]),
        ("", []),
        ("<<1=1>>", [("<<1=", True), ("1>>", False)]),
        (
            "a <<1=1>> b <<search:q=x=y>>.",
            [("a <<1=", True), ("1>>", False), (" b <<search:q=", True), ("x=y>>", False),
             (".", True)],
        ),
        ("<<1=1\n>>", [("<<1=1\n>>", True)]),
        ("<<1=", [("<<1=", True)]),
        ("<<w:1=2>> <<1+<<2=2>>3>>", [("<<w:1=2>> <<1+<<2=2>>3>>", True)]),
    ],
)  # fmt: skip
def test_a_text_is_parted_where_results_begin_and_end(
    text: str, expected: list[tuple[str, bool]]
) -> None:
    assert split_calls(text, NAMES) == expected


@given(
    st.lists(
        st.tuples(st.text("ab1 \n", max_size=5), st.text("12+<>= \nx", max_size=8)), max_size=4
    )
)
def test_what_was_written_is_found_again(parts: list[tuple[str, str]]) -> None:
    # As sampling writes it: own words, the head of a call, a result made clean, own words.
    form = InlineForm(None, NAMES)
    text, expected = "", list[str]()
    for words, result in parts:
        expected.append(form.clean(result) + ">>")
        text += f"{words}<<1+1={expected[-1]}"
    assert [piece for piece, own in split_calls(text, NAMES) if not own] == expected


def test_a_result_is_encoded_by_itself(tiny_tokenizer: Callable[..., Any]) -> None:
    tokenizer = tiny_tokenizer(400, ("=24>>= 24>>=24>>24 24>>",) * 9)
    ids = result_ids(tokenizer, "24>>")
    assert tokenizer.decode(ids) == "24>>" and ids == result_ids(tokenizer, "24>>")
    form = InlineForm(tokenizer, NAMES)
    assert form.answer([Call("calculator", {}, "24")]) == ids
    # What spells a control token is text.
    spelled = result_ids(tokenizer, "<|end|>>>")
    assert tokenizer.eos_token_id not in spelled
    assert tokenizer.decode(spelled) == "<|end|>>>"


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("48/2 = <<48/2=24>>24", [("48/2", "24")]),
        ("<<48/2=24", []),
        ("<<1+<<2+2=4>>", []),
        ("<<1+<<2=2>>3>> <<1=1>>", [("1", "1")]),
        ("<<1=<<2=2>>", []),
        ("<<<1=1>>", []),
        ("<<1=1>>>", [("1", "1")]),
        ("<<1=1=1>>", [("1", "1=1")]),
        ("1 << 2, 3 >> 1, << 2=2>> <<2=2>>", [("2", "2")]),
        ("1 << 2, <<2=2>>", []),
        ("1 << 2\n<<2=2>>", [("2", "2")]),
        ("1 << 2\r<<2=2>>", [("2", "2")]),
        ("<<1+\n1=2>><<3=3>>", [("3", "3")]),
        ("<<1=\n1>><<3=3>>", [("3", "3")]),
        ("<<calculator:1=1>><<calculator=2>>", [("1", "1"), ("calculator", "2")]),
        ("<<=>><<1=>>", [("", ""), ("1", "")]),
        ("a <<1=<b> >>", [("1", "<b> ")]),
    ],
)
def test_all_who_read_calls_find_the_same(
    text: str, calls: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is put behind calls is not learned.
    pieces = split_calls(text, NAMES)
    assert "".join(piece for piece, _ in pieces) == text
    assert [piece for piece, own in pieces if not own] == [f"{result}>>" for _, result in calls]
    # It is put there when the model has written so far.
    ends = accumulate(len(piece) for piece, _ in pieces)
    before = [text[:end] for end, (_, own) in zip(ends, pieces, strict=True) if own]
    assert [asked_inline(one, NAMES) for one in before[: len(calls)]] == [
        Asked("calculator", [argument]) for argument, _ in calls
    ]
    # These are recalculated.
    judged: list[tuple[str, str]] = []
    monkeypatch.setattr(marks, "is_slip", lambda *mark: judged.append(mark))
    marks.slips(text)
    assert judged == calls
    # The page of labels shows them apart.
    shown = unescape(str(to_html(text)))
    assert re.findall("<kbd>(?:calculator:)?(.*?)=</kbd><samp>(.*?)</samp>", shown) == calls
    # Annotation puts calls where they are some, and nowhere else.
    for at in range(len(text) + 1):
        made = split_calls(f"{text[:at]}<<7=7>>{text[at:]}", NAMES)
        assert annotate._takes_call(text, at) == (("7>>", False) in made)
