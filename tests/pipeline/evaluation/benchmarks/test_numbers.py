"""Numbers read as a person does, and as lm-eval reads them."""

from __future__ import annotations

from fractions import Fraction

import pytest

from pipeline.evaluation.benchmarks.numbers import read_flexible, read_number, read_strict


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("#### 72", "72"),
        ("#### 1,200.00", "1200"),
        ("#### $1,200", "1200"),
        ("#### 1.2e3", "1200"),
        ("#### 1.2E+3 litres", "1200"),
        (r"#### 1.2 \times 10^{3}", "1200"),
        ("That is 1.2 x 10^3 in all", "1200"),
        ("The answer is 72.", "72"),
        ("#### -5", "-5"),
        ("#### −5", "-5"),
        ("#### -$5", "-5"),
        ("#### $-5", "-5"),
        ("So 10-5 is 5", "5"),
        ("10 - 5", "5"),  # taken off, no sign
        ("It is 3/4", "3/4"),
        ("#### 1 1/2 cups", "3/2"),
        ("#### -1 1/2", "-3/2"),
        ("½ of it", "1/2"),
        ("#### 1½", "3/2"),
        (r"\boxed{\frac{3}{4}}", "3/4"),
        (r"so $\boxed{42}$ in 3 steps", "42"),
        ("#### 5 apples", "5"),
        ("72km", "72"),
        ("50%", "50"),
        (r"The answer is 50\%.", "50"),
        ("$1.2 million", "1200000"),
        ("1,2,3", "3"),  # a list, no thousands
        ("12,34", "34"),
        ("The answer is **18**, which took 3 steps.", "18"),
        ("The answer is 5. Wait, no: the answer is 6.", "6"),
        ("Answer: 7 of 9", "7"),
        ("5 + 5 = 10", "10"),
        ("#### 72\n\nQuestion: how many are 3?", "72"),
        ("####\nthe answer is 9", "9"),
        (".5", "1/2"),
        ("0.50", "1/2"),
        ("x2 = 9", "9"),
        ("10.", "10"),
        ("The answer is <<13+6-4=15>>15.", "15"),
        ("The answer is <<48/2=24>> apples.", "24"),
        ("The answer is $<<2*3=6>>6", "6"),
        ("The answer is <<48/2=error: no such thing>>7.", "7"),
    ],
)
def test_a_number_is_read_as_a_person_does(text: str, value: str) -> None:
    assert read_number(text) == Fraction(value)


@pytest.mark.parametrize(
    "text", ["", "none at all", "####", "x2", "the answer is unknown", "- , $"]
)
def test_where_there_is_no_number_none_is_read(text: str) -> None:
    assert read_number(text) is None


@pytest.mark.parametrize("text", ["3/0", "1e999 of 5", "9" * 400, "1.2e", "#### 1/2/3"])
def test_odd_numbers_end_in_one(text: str) -> None:
    assert read_number(text) is not None


def test_the_other_two_readings_are_lm_evals() -> None:
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters.extraction import RegexFilter

    strict = RegexFilter(r"#### (\-?[0-9\.\,]+)")
    flexible = RegexFilter(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", group_select=-1)
    ignored = [",", "\\$", "(?s).*#### ", "\\.$"]
    texts = [
        "#### 72", "#### 1,200.00", "#### $1,200", "#### 72.", "so 5", "$5.00 is the price", "-5",
        "none", "#### -3\n\nQuestion: 4", "10-5", "It is 3/4.", "#### 1.2e3", "a 7, b 8,",
    ]  # fmt: skip
    for text in texts:
        for reading, ours in ((strict, read_strict), (flexible, read_flexible)):
            (theirs,) = reading.apply([[text]], [{}])
            for right in ("72", "1200", "1,200.00", "5", "5.00", "-5", "-3", "8"):
                gold = f"Worked out.\n#### {right}"
                expected = exact_match_hf_evaluate(
                    predictions=theirs, references=[gold], regexes_to_ignore=ignored,
                    ignore_case=True,
                )["exact_match"]  # fmt: skip
                assert (ours(text) == read_strict(gold)) == bool(expected), (text, right)
