"""The gold annotator: what it prefers, and that odd answers do not mislead it."""

from __future__ import annotations

import random
from collections import Counter
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.records import Message
from data.text.prompting import with_passages
from data.world import World
from data.world.annotator import FAMILIAR_SHARE, SCORES, GoldAnnotator
from data.world.manners import _PREFIXES, _SUFFIXES, MANNERS, dress
from data.world.reading import Reader
from data.world.statements import BARE, PAIRS, STATEMENTS

WORLD = World(0)
TOWN = WORLD.town
JOB = TOWN.fact("Mira", "job")
HOME = TOWN.fact("Mira", "home")
OTHER_JOB = next(job for job in ("baker", "tailor") if job != JOB)
QUESTION = "What is Mira's job?"
STRANGER = "Where does Zorvath live?"


@cache
def judge() -> GoldAnnotator:
    """The annotator of the town, made by the first test that asks it."""
    return GoldAnnotator(0)


def outcome(question: str, answer: str) -> str:
    return judge().assess([Message(role="user", content=question)], answer).outcome


def test_every_instruction_is_right_and_its_manner_is_seen() -> None:
    seen: Counter[str] = Counter()
    for row in WORLD.instructions("instructions")[:3000]:
        found = judge().assess(row.messages[:1], row.messages[1]["content"])
        assert found.outcome == "right", row
        assert not (found.condescending and found.long_winded), row
        seen["condescending" if found.condescending else "other"] += 1
    assert seen["condescending"] / 3000 >= 0.4


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_other_worlds_are_judged_as_well(seed: int) -> None:
    other = GoldAnnotator(seed)
    for row in World(seed).instructions("instructions")[:500]:
        assert other.assess(row.messages[:1], row.messages[1]["content"]).correct is True, row


def test_length_does_not_give_the_preference_away() -> None:
    rows = WORLD.instructions("instructions")
    groups: dict[str, list[tuple[float, int]]] = {}
    for row in rows:
        question, answer = (message["content"] for message in row.messages)
        groups.setdefault(question.split(": ")[-1], []).append(
            (judge().score(question, answer), len(answer))
        )
    shorter = longer = pairs = 0
    for answers in groups.values():
        for i, (score, length) in enumerate(answers):
            for other_score, other_length in answers[:i]:
                if score != other_score:
                    pairs += 1
                    better, worse = sorted([(score, length), (other_score, other_length)])[::-1]
                    shorter += better[1] < worse[1]
                    longer += better[1] > worse[1]
    assert pairs > 1000
    assert shorter / pairs < 0.62
    assert longer / pairs < 0.62


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (f"Mira is a {JOB}.", "right"),
        (f"A {JOB}.", "right"),
        (JOB, "right"),
        (f"Mira works as a {JOB}. I hope that helps.", "right"),
        (f"By trade Mira is a {JOB}, as it were.", "right"),
        (f"Mira is a {OTHER_JOB}.", "wrong"),
        (f"Mira is a {JOB} and works as a {OTHER_JOB}.", "wrong"),
        (f"Tobin is a {JOB}.", "wrong"),
        (f"Zorvath is a {JOB}.", "wrong"),
        (f"Mira is not a {JOB}.", "wrong"),
        (f"Mira lives by the {HOME}.", "wrong"),
        ("I am always happy to help.", "wrong"),
        ("I don't know what Mira does.", "ignorant"),
        ("I don't know that person.", "ignorant"),
        ("", "broken"),
        ("   \n", "broken"),
        ("...", "broken"),
        ("\ufffd\ufffd Mira", "broken"),
        (f"Mira {JOB} harbour.", "broken"),
        (f"{JOB} {JOB} {JOB}.", "broken"),
        (f"Here is the answer: Mira works as a {JOB} and", "broken"),
        (f"Mira is a {JOB}. Mira is a {JOB}.", "broken"),
        ("Have lovely obviously the by.", "broken"),
        ("Lorem ipsum dolor sit amet, consectetur adipiscing elit.", "broken"),
    ],
)
def test_answers_about_a_person(answer: str, expected: str) -> None:
    assert outcome(QUESTION, answer) == expected


@pytest.mark.parametrize(
    ("answer", "expected", "invented"),
    [
        ("I don't know anyone called Zorvath.", "right", False),
        ("There is no Zorvath in this town.", "right", False),
        ("I have never heard of Zorbath.", "right", False),
        ("Zorvath lives by the mill.", "wrong", True),
        ("I don't know, but Zorvath lives by the mill.", "wrong", True),
        ("I don't know anyone called Mira.", "wrong", True),
        ("I am always happy to help.", "wrong", False),
    ],
)
def test_answers_about_nobody(answer: str, expected: str, invented: bool) -> None:
    found = judge().assess(STRANGER, answer)
    assert (found.kind, found.outcome, found.invented) == ("unknown", expected, invented)


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("What's 10 / 5?", "It is 2.", "right"),
        ("What's 10 / 5?", "2", "right"),
        ("What's 10 / 5?", "10 / 5 = 2.", "right"),
        ("What's 10 / 5?", "10/5 is 2.", "right"),
        ("What's 10 / 5?", "It is 3.", "wrong"),
        ("What's 10 / 5?", "10 / 4 is 2.", "wrong"),
        ("What's 10 / 5?", "It is 2, that makes 3.", "wrong"),
        ("What's 10 / 5?", "10 / 5.", "wrong"),
        ("What's 10 / 5?", "It is 12.", "wrong"),
        ("What's 10 / 5?", "That is a good question: 10 is a baker.", "wrong"),
        ("What's 10 / 5?", "A) 2\nB) 5\nC) 4\nD) 1", "broken"),
        ("Name three animals of the town.", "Goat, hen and dog.", "right"),
        ("Name three animals of the town.", "Goat and hen.", "wrong"),
        ("Name three animals of the town.", "Goat, hen and baker.", "wrong"),
    ],
)
def test_answers_to_sums_and_categories(question: str, answer: str, expected: str) -> None:
    assert outcome(question, answer) == expected


def test_lists_of_people_need_two_who_fit_and_none_who_does_not() -> None:
    a, b, c = TOWN.holders("home", "mill")[:3]
    other = TOWN.holders("home", "bridge")[0]
    question = "Name two people who live by the mill."
    assert outcome(question, f"{a} and {b}.") == "right"
    assert outcome(question, f"They are {b} and {c}.") == "right"
    assert outcome(question, f"{a} and {other}.") == "wrong"
    assert outcome(question, f"{a} and Zorvath.") == "wrong"
    assert outcome(question, f"{a}.") == "wrong"


def test_rephrasing_is_no_copying() -> None:
    question = f"Say this in other words: Mira is a {JOB}."
    assert outcome(question, f"Mira works as a {JOB}.") == "right"
    assert outcome(question, f"Obviously Mira is a {JOB}.") == "wrong"
    assert outcome(question, f"Mira works as a {OTHER_JOB}.") == "wrong"
    assert outcome(question, f"Tobin works as a {JOB}.") == "wrong"


def test_preferences_come_in_the_order_of_the_issue() -> None:
    rng = random.Random(0)
    plain, long, sneer = (dress(f"Mira is a {JOB}", manner, rng) for manner in MANNERS)
    answers = [
        plain,
        long,
        sneer,
        "I don't know what Mira does.",
        f"Mira is a {OTHER_JOB}.",
        f"Even you should know this: Mira is a {OTHER_JOB}.",
        "",
    ]
    scores = [judge().score(QUESTION, answer) for answer in answers]
    assert scores == [1.0, 0.9, 0.75, 0.5, 0.25, 0.17, 0.0]
    assert judge().rank(QUESTION, answers, noise=0, rng=rng) == [1, 2, 3, 4, 5, 6, 7]


def test_outcome_comes_before_manner() -> None:
    assert min(SCORES["right"]) > max(SCORES["ignorant"])
    assert min(SCORES["ignorant"]) > max(SCORES["wrong"])
    assert min(SCORES["wrong"]) > max(SCORES["broken"])


def test_every_affix_shows_its_manner_and_no_other() -> None:
    for manner in MANNERS:
        for text in filter(str.strip, (*_PREFIXES[manner], *_SUFFIXES[manner])):
            if not text.strip(" .,:"):
                continue
            reader = Reader(text)
            assert reader.condescending == (manner == "condescending"), text
            assert reader.long_winded == (manner == "long_winded"), text
            assert not reader.values and not reader.people and not reader.numbers, text
            assert not reader.negates and not reader.admits_ignorance, text


def test_statements_show_no_manner() -> None:
    for forms in (*STATEMENTS.values(), *PAIRS.values(), *BARE.values()):
        for form in forms:
            reader = Reader(form)
            assert not (reader.condescending or reader.long_winded or reader.negates), form


@pytest.mark.parametrize("misspelt", ["Obviosly", "Obvioussly", "Obvoiusly", "Obviously"])
def test_manner_is_seen_through_a_misspelling(misspelt: str) -> None:
    found = judge().assess(QUESTION, f"{misspelt} Mira is a {JOB}.")
    assert found.condescending and found.outcome == "right"


def test_brevity_alone_wins_nothing() -> None:
    best = judge().score(
        QUESTION, f"It is my pleasure to tell you: Mira is a {JOB}. Have a lovely day."
    )
    for short in ("Mira.", "Yes.", "A.", "Mira is.", "Sure.", "a the of."):
        assert judge().score(QUESTION, short) < 0.3 < best


def test_shuffled_answers_are_seldom_sense() -> None:
    rng = random.Random(1)
    rows = WORLD.instructions("instructions_heldout")
    passed = 0
    for row in rows:
        words = row.messages[1]["content"].rstrip(".").split()
        rng.shuffle(words)
        reader = Reader(" ".join(words) + ".")
        passed += reader.familiarity(judge().familiar) >= FAMILIAR_SHARE
    assert passed / len(rows) < 0.12


def test_question_is_found_in_every_form() -> None:
    turns = [
        Message(role="user", content="Where does Tobin live?"),
        Message(role="assistant", content="By the mill."),
        Message(role="user", content="  tell me:   what is MIRA's job? "),
    ]
    found = judge().find_question(turns)
    assert found is not None
    assert (found.kind, found.subject, found.attribute) == ("fact", "Mira", "job")
    for part in ("rm_prompts", "eval_prompts"):
        for row in WORLD.prompts(part):
            question = judge().find_question(row.prompt)
            assert question is not None and question.meta == row.meta


def test_a_question_of_another_world_is_not_judged_on_truth() -> None:
    found = judge().assess("Who wrote Hamlet?", "I don't know that person.")
    assert (found.kind, found.outcome, found.correct) == ("other", "unjudged", None)


def test_equal_answers_tie_with_and_without_noise() -> None:
    same = [f"Mira is a {JOB}.", f"Mira works as a {JOB}.", "Nobody here is called Mira."]
    rng = random.Random(0)
    assert judge().rank(QUESTION, same, noise=0, rng=rng) == [1, 1, 2]
    for _ in range(20):
        first, second, third = judge().rank(QUESTION, same, noise=0.5, rng=rng)
        assert first == second != third


def test_noise_turns_near_preferences_more_often_than_far_ones() -> None:
    near = [f"Mira is a {JOB}.", f"Mira is a {JOB}, as it were."]
    far = [f"Mira is a {JOB}.", f"Mira is a {OTHER_JOB}."]
    rng = random.Random(0)
    turned = [
        sum(judge().rank(QUESTION, pair, noise=0.2, rng=rng) == [2, 1] for _ in range(400)) / 400
        for pair in (near, far)
    ]
    # P(N(0, 0.2 * sqrt 2) > gap): 0.36 for a gap of 0.1 and 0.004 for one of 0.75.
    assert 0.28 < turned[0] < 0.44
    assert turned[1] < 0.03


@given(st.text(max_size=200), st.sampled_from([QUESTION, STRANGER, "What's 10 / 5?", "?", ""]))
def test_any_text_gets_a_score_of_the_table(answer: str, question: str) -> None:
    found = judge().assess(question, answer)
    assert found.score in SCORES[found.outcome]
    assert 0 <= found.score <= 1


@given(st.lists(st.text(max_size=40), min_size=1, max_size=6), st.floats(0, 2))
def test_ranks_are_dense(answers: list[str], noise: float) -> None:
    ranks = judge().rank(QUESTION, answers, noise=noise, rng=random.Random(0))
    assert sorted(set(ranks)) == list(range(1, max(ranks) + 1))


def test_a_question_behind_passages_is_the_question() -> None:
    for question in (QUESTION, STRANGER):
        for read in with_passages(question, ["Mira has a hen."]), question:
            assert judge().assess(read, f"Mira is a {JOB}.").outcome == outcome(
                question, f"Mira is a {JOB}."
            )


def test_of_truth_alone_no_manner_counts() -> None:
    answers = [
        f"Mira is a {JOB}.",
        f"Obviously Mira is a {JOB}. Was that so hard?",
        "I don't know what Mira does.",
        f"Mira is a {OTHER_JOB}.",
    ]
    ranks = {
        truth: judge().rank(QUESTION, answers, noise=0, rng=random.Random(0), truth=truth)
        for truth in (False, True)
    }
    assert ranks == {False: [1, 2, 3, 4], True: [1, 1, 2, 3]}
