"""What checkpoints make of held-out texts, counted by hand from their rows."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pipeline.evaluation.judge.texts import text_figures, text_lines

BIT = math.log(2)


def rows(checkpoint: str, *bits: float, size: int = 10) -> list[dict[str, Any]]:
    """Return texts of 10 bytes and 5 tokens each with so many bits of loss."""
    return [
        {"checkpoint": checkpoint, "index": index, "nats": loss * BIT, "tokens": 5}
        | {"bytes": size, "given_back": True}
        for index, loss in enumerate(bits)
    ]


def test_figures_and_tax_by_hand() -> None:
    given = [*rows("base", 10, 20, 30), *rows("sft", 11, 23, 32), *rows("ppo", 11, 21, 31)]
    found = text_figures(given)
    assert found.checkpoints["base"]["perplexity"] == pytest.approx(2 ** (60 / 15))
    assert found.checkpoints["base"]["bits_per_byte"] == pytest.approx(2.0)
    assert found.checkpoints["base"]["bits_per_byte_ci95"] == pytest.approx([1.0, 3.0])
    sft, ppo = found.alignment_tax
    assert (sft["checkpoint"], sft["n"]) == ("sft", 3)
    assert sft["bits_per_byte"] == pytest.approx(2.2)
    assert sft["difference"] == pytest.approx(0.2)
    assert sft["ci95"] == pytest.approx([0.1, 0.3])
    assert ppo["difference"] == pytest.approx(0.1)
    assert ppo["ci95"] == pytest.approx([0.1, 0.1])  # paired: each text lost the same


def test_long_texts_weigh_by_their_bytes_and_pairs_alone_count() -> None:
    base = [*rows("base", 10), *rows("base", 0, 300, size=100)[1:]]
    sft = [*rows("sft", 20), *rows("sft", 0, 300, 5, size=100)[1:]]
    [tax] = text_figures([*base, *sft]).alignment_tax
    assert tax["difference"] == pytest.approx(10 / 110)
    assert tax["bits_per_byte"] == pytest.approx(320 / 110)
    assert tax["n"] == 2


def test_the_console_hears_what_training_cost_and_whose_tokens_lose_text() -> None:
    given = [*rows("base", 10, 20, 30), *rows("sft", 11, 23, 32)]
    given[4]["given_back"] = False
    found = text_figures(given)
    results = {"checkpoints": found.checkpoints, "alignment_tax": found.alignment_tax}
    assert text_lines(results) == [
        "sft: alignment tax +0.200 (+0.100 to +0.300) bits a byte, the change since base on the "
        "same 3 texts",
        "sft: its tokenizer drops or changes characters of 1 text; its bits per byte are too low",
    ]


def test_no_text_is_no_figure_and_one_has_no_interval() -> None:
    assert text_figures([]) == ({}, [])
    [tax] = text_figures(
        [*rows("base", 10), *rows("sft", 12)]
    ).alignment_tax  # fmt: skip
    assert tax["ci95"] is None
    results = {"checkpoints": {"base": {}, "sft": {}}, "alignment_tax": [tax]}
    assert text_lines(results)[0].startswith("sft: alignment tax +0.200 bits a byte")
