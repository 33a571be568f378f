import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import SourceError
from data.records import Completion, Conversation, PromptRow, chat
from data.sources.split import is_heldout, opening, split_records, split_value

ROWS = [PromptRow(prompt=f"question {number}") for number in range(1000)]


def test_a_share_is_held_out_and_nothing_is_lost_or_doubled():
    train, held = split_records(ROWS, heldout=0.2)
    assert 150 < len(held) < 250
    assert sorted(row.prompt for row in [*train, *held]) == sorted(row.prompt for row in ROWS)
    assert train == [row for row in ROWS if row in train]


def test_a_number_of_rows_is_held_out():
    assert len(split_records(ROWS, heldout=37)[1]) == 37


def test_rows_that_are_added_move_none():
    before = split_records(ROWS[:500], heldout=0.3)[1]
    after = split_records(ROWS, heldout=0.3)[1]
    assert before == [row for row in after if row in before]
    assert [row for row in after if row in ROWS[:500]] == before


def test_another_seed_is_another_split_and_the_same_seed_the_same():
    held = [split_records(ROWS, heldout=50, seed=seed)[1] for seed in (0, 0, 1)]
    assert held[0] == held[1] != held[2]


def test_rows_of_one_question_stay_together():
    rows = [
        row
        for number in range(50)
        for row in (
            Conversation(messages=chat(f"Question {number}", "a")),
            Conversation(messages=chat(f"question  {number}", "b", "more", "c")),
            Completion(prompt=f" QUESTION {number}", completion="d"),
        )
    ]
    train, held = split_records(rows, heldout=0.3)
    sides = [
        {opening(getattr(r, "prompt", None) or r.messages) for r in side} for side in (train, held)
    ]
    assert not sides[0] & sides[1]
    assert len(held) % 3 == 0


def test_a_system_turn_does_not_count_as_the_question():
    assert opening(chat("Who?", system="Be brief.")) == opening("WHO?")


@given(st.text(), st.integers(0, 5))
def test_values_lie_between_nought_and_one(prompt: str, seed: int) -> None:
    value = split_value(prompt, seed=seed)
    assert 0 <= value < 1
    assert is_heldout(prompt, share=1.0, seed=seed)
    assert not is_heldout(prompt, share=0.0, seed=seed)


@pytest.mark.parametrize("heldout", [0.5, 1, 3])
def test_a_split_that_leaves_a_side_empty_is_refused(heldout):
    rows = [PromptRow(prompt="same")] * 3
    with pytest.raises(SourceError, match="3 rows with 1 different openings"):
        split_records(rows, heldout=heldout)


def test_nothing_is_held_out_when_asked_for_none():
    assert split_records(ROWS, heldout=0)[1] == []
