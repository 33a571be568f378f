"""What is told of a user's data, and what of it is held out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from data.errors import SourceError
from data.sources.read import read
from pipeline.contract.settings import SourceSettings
from pipeline.recipe.draft.material import SAMPLE, Material, look
from pipeline.recipe.draft.shares import held, places, prompt_share, sides, text_share

Rows = Sequence[Mapping[str, Any]]


def seen(folder: Path, rows: Rows, kind: str = "sft") -> Material:
    path = folder / f"{kind}{len(rows)}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return look(kind, SourceSettings(path=str(path)))


def asked(count: int) -> Rows:
    return [{"prompt": f"Why {n}?", "completion": f"So {n}."} for n in range(count)]


def test_rows_are_counted_and_a_sample_is_kept(tmp_path: Path) -> None:
    rows = [*asked(2 * SAMPLE), *asked(10)]
    found = seen(tmp_path, rows)
    assert (found.rows, found.whole, len(found.records)) == (2 * SAMPLE + 10, True, SAMPLE)
    assert len(found.places) == 2 * SAMPLE
    assert f"{2 * SAMPLE + 10} demonstrations, {2 * SAMPLE} different prompts" in found.told()


@pytest.mark.parametrize(
    ("prompt", "answer", "continues"),
    [
        ("Why?", "So.", False),
        ("Once", " upon a time", True),
        ("Once ", "upon a time", True),
        ("Sum it up:", "Short.", True),
    ],
)
def test_a_space_in_between_tells_that_an_answer_continues_its_prompt(
    tmp_path: Path, prompt: str, answer: str, continues: bool
) -> None:
    plain = seen(tmp_path, [{"prompt": prompt, "completion": answer}] * 3)
    assert plain.plain and plain.continues is continues
    pairs = [{"prompt": prompt, "chosen": answer, "rejected": f"{answer}!"}]
    assert seen(tmp_path, pairs, "pairs").continues is continues
    chats = plain.as_chats()
    assert not chats.plain and chats.source.chat


def test_what_is_held_out_is_what_the_sources_will_read(tmp_path: Path) -> None:
    found = seen(tmp_path, asked(400))
    share = prompt_share([[found]])
    assert share == 0.2  # a hundred are not there to be had
    counts = []
    for part in ("train", "heldout"):
        (source,) = sides([found], part, share)
        counts.append(sum(1 for _ in read(SourceSettings(**source).source())))
    assert counts == [400 - held(share, places([found])), held(share, places([found]))]


@pytest.mark.parametrize(("count", "share"), [(12_000, 0.02), (3000, 0.05), (200, 0.2)])
def test_as_much_is_held_out_as_is_enough(tmp_path: Path, count: int, share: float) -> None:
    assert prompt_share([[seen(tmp_path, asked(count))]]) == share


def test_of_each_group_some_are_held_out_and_some_are_left(tmp_path: Path) -> None:
    many, few = seen(tmp_path, asked(3000)), seen(tmp_path, asked(6))
    share = prompt_share([[many], [few]])
    assert share >= 0.2 and 0 < held(share, few.places) < 6
    with pytest.raises(SourceError, match="1 different prompt, too few to learn from some"):
        prompt_share([[many], [seen(tmp_path, asked(1))]])


def test_few_texts_are_all_learned(tmp_path: Path) -> None:
    few = seen(tmp_path, [{"text": f"text {n}"} for n in range(19)], "texts")
    assert text_share([few]) is None
    many = seen(tmp_path, [{"text": f"text {n}"} for n in range(5000)], "texts")
    share = text_share([many])
    assert share == 0.01 and sides([many], "train", None) == [{"path": many.source.path}]
