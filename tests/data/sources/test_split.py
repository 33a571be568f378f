import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import SourceError
from data.records import Completion, Conversation, Document, PromptRow, Ranking, chat
from data.sources.split import is_heldout, of_part, opening, split_by_prompt, split_value

PROMPTS = [f"question {number}" for number in range(1000)]


def held_out(share: float, seed: int = 0) -> list[str]:
    return [prompt for prompt in PROMPTS if is_heldout(prompt, share=share, seed=seed)]


def test_about_a_share_is_held_out() -> None:
    assert 150 < len(held_out(0.2)) < 250


def test_a_larger_share_holds_the_smaller_one() -> None:
    assert set(held_out(0.1)) < set(held_out(0.3))


def test_another_seed_is_another_split_and_the_same_seed_the_same() -> None:
    assert held_out(0.1) == held_out(0.1) != held_out(0.1, seed=1)


def test_prompts_of_one_question_stay_together() -> None:
    for number in range(50):
        asked = (
            chat(f"Question {number}"),
            chat(f"question  {number}", "b", "more"),
            f" QUESTION {number}",
        )
        assert len({is_heldout(prompt, share=0.3) for prompt in asked}) == 1


def test_a_system_turn_does_not_count_as_the_question() -> None:
    assert opening(chat("Who?", system="Be brief.")) == opening("WHO?")


@given(st.text(), st.integers(0, 5))
def test_values_lie_between_nought_and_one(prompt: str, seed: int) -> None:
    value = split_value(prompt, seed=seed)
    assert 0 <= value < 1
    assert is_heldout(prompt, share=1.0, seed=seed)
    assert not is_heldout(prompt, share=0.0, seed=seed)


@given(st.lists(st.integers(0, 30), min_size=10), st.integers(0, 5))
def test_a_prompt_is_on_one_side_whoever_ranked_it(prompts: list[int], seed: int) -> None:
    rows = [Ranking(str(p), ["a", "b"], [1, 2], annotator=str(i)) for i, p in enumerate(prompts)]
    if len(set(prompts)) < 4:
        return
    training, heldout = split_by_prompt(rows, share=0.25, seed=seed)
    assert {r.prompt for r in training}.isdisjoint({r.prompt for r in heldout})
    assert len(training) + len(heldout) == len(rows)
    assert len({r.prompt for r in heldout}) == max(1, round(0.25 * len(set(prompts))))
    _, again = split_by_prompt(rows[::-1], share=0.25, seed=seed)
    assert {r.prompt for r in again} == {r.prompt for r in heldout}


def test_too_few_prompts_to_split_are_refused() -> None:
    with pytest.raises(SourceError, match="1 prompts"):
        split_by_prompt([Ranking("a", ["a", "b"], [1, 2])], share=0.5, seed=0)
    assert split_by_prompt([Ranking("a", ["a", "b"], [1, 2])], share=0, seed=0)[1] == []


def test_what_asks_the_same_is_of_one_part_in_every_form() -> None:
    for number in range(100):
        asked = f"Question {number}"
        rows = (
            Completion(asked, " an answer"),
            Conversation([*chat(asked), {"role": "assistant", "content": "an answer"}]),
            Ranking(chat(asked), ["a", "b"], [1, 2]),
            PromptRow(asked.upper()),
        )
        sides = [{of_part(row, part, share=0.3) for row in rows} for part in ("train", "heldout")]
        assert sides in ([{True}, {False}], [{False}, {True}])
        assert of_part(rows[0], None, share=0.3)


def test_a_document_is_of_one_part_by_its_text() -> None:
    texts = [Document(f"text {number}") for number in range(1000)]
    out = sum(of_part(text, "heldout", share=0.2) for text in texts)
    assert 150 < out < 250 and out + sum(of_part(t, "train", share=0.2) for t in texts) == 1000
