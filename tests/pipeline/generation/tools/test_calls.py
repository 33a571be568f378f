from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.generation.tools.calls import (
    Asked,
    Call,
    InlineForm,
    open_call,
    result_ids,
    split_calls,
)

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
    assert open_call(text, NAMES) == expected


def test_without_a_calculator_a_sum_is_text() -> None:
    assert open_call("<<1+1=", ["search"]) is None


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
