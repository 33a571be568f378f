"""Rankings as pairs: each once, each prompt alike, nothing lost unseen."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from data.errors import SourceError
from data.records import Ranking, chat
from data.text.chat import render_prompt
from pipeline.stages.dpo.pairs import Pair, PairMaker, Pairs, Rounds, total_steps


def pairs_of(*sizes: int, probability: float = 1.0) -> Pairs:
    return Pairs([[Pair([at], [n], [n + 9], probability) for n in range(s)] for at, s in
                  enumerate(sizes)])  # fmt: skip


def test_a_prompt_counts_once_whatever_its_number_of_answers() -> None:
    pairs = pairs_of(6, 1, 4)
    assert (pairs.rounds, pairs.per_epoch) == (6, 18)
    seen = Counter(pairs[row]["prompt_ids"][0] for row in pairs.epoch(seed=3))
    assert seen == {0: 6, 1: 6, 2: 6}
    # Every pair comes once before any of its prompt comes again.
    assert sorted(row // 2 for row in pairs.epoch(seed=3) if row // 2 in pairs.of[0]) == [*range(6)]
    assert {row // 2 for row in pairs.epoch(seed=3)} == set(range(11))


def test_rows_of_a_step_follow_from_the_seed_and_steps_are_full() -> None:
    pairs = pairs_of(2, 1, 1)
    assert total_steps(pairs, epochs=1.5, batch_size=4) == 3
    order = Rounds(pairs, size=12, seed=5)
    assert len(order) == len([*order]) == 12
    assert [*order] == [*Rounds(pairs, size=12, seed=5)] != [*Rounds(pairs, size=12, seed=6)]
    assert [row for n in range(4) for row in pairs.round(n, seed=5)] == [*order]


@pytest.mark.parametrize(
    ("probability", "low", "high"), [(1.0, 0, 0), (0.0, 1, 1), (0.7, 0.2, 0.4)]
)
def test_the_better_one_is_drawn_by_its_probability(
    probability: float, low: float, high: float
) -> None:
    pairs = pairs_of(1, 1, probability=probability)
    rows = [row for number in range(150) for row in pairs.round(number, seed=0)]
    assert low <= sum(row % 2 for row in rows) / len(rows) <= high
    assert pairs[1] == {"prompt_ids": [0], "chosen_ids": [9], "rejected_ids": [0]}


def ranking(*ranks: int, **more: Any) -> Ranking:
    answers = ["It is 7.", "Seven.", "Hm.", "No idea."][: len(ranks)]
    return Ranking(chat("What is 3 + 4?"), answers, [*ranks], **more)


def test_answers_are_tokens_as_the_policy_samples_them(tiny_tokenizer: Any) -> None:
    tokenizer = tiny_tokenizer()
    maker = PairMaker(tokenizer, max_length=99)
    (pair,) = maker.pairs([ranking(2, 1, ended=[True, False])]).pairs
    assert pair.probability == 0.0
    assert pair.prompt == render_prompt(tokenizer, chat("What is 3 + 4?"))
    assert tokenizer.decode(pair.first) == "It is 7.<|end|>"
    assert tokenizer.decode(pair.second) == "Seven."  # it was cut off: no end to learn


def test_a_prompt_that_ends_in_a_space_keeps_it(tiny_tokenizer: Any) -> None:
    """TRL tokenises prompt and answer together, and gives the space to the answer."""
    tokenizer = tiny_tokenizer(chat=False)
    prompt, answer = "The mill is ", "old"
    (pair,) = PairMaker(tokenizer, 99).pairs([Ranking(prompt, [answer, "new"], [1, 2])]).pairs
    assert pair.prompt == render_prompt(tokenizer, prompt)
    assert tokenizer.decode(pair.prompt).endswith("mill is ")
    assert tokenizer.decode(pair.first) == "old<|endoftext|>"


def test_ties_are_dropped_or_count_half_and_soft_labels_decide(tiny_tokenizer: Any) -> None:
    rows = [ranking(1, 1, 2), ranking(1, 1)]
    dropping = PairMaker(tiny_tokenizer(), 99)
    assert [pair.probability for pair in dropping.pairs(rows).pairs] == [1.0, 1.0]
    assert dropping.tied == 1 and "1 ranking dropped: all completions tie" in dropping.lines()
    halving = PairMaker(tiny_tokenizer(), 99, "half")
    made = halving.pairs(rows)
    assert sorted(pair.probability for pair in made.pairs) == [0.5, 0.5, 1.0, 1.0]
    assert [len(own) for own in made.of] == [3, 1] and not halving.tied
    soft = ranking(1, 2, probabilities=[[0.5, 0.8], [0.2, 0.5]])
    assert [pair.probability for pair in dropping.pairs([soft]).pairs] == [0.8]
    assert [pair.probability for pair in dropping.pairs([soft], soft=False).pairs] == [1.0]


def test_too_long_answers_are_left_out_and_counted(tiny_tokenizer: Any) -> None:
    tokenizer = tiny_tokenizer()
    row = ranking(1, 2, 3)
    row.completions[1] = "Seven. " * 40
    prompt = len(render_prompt(tokenizer, row.prompt))
    maker = PairMaker(tokenizer, max_length=prompt + 20)
    (pair,) = maker.pairs([row]).pairs
    assert tokenizer.decode(pair.second) == "Hm.<|end|>"
    assert any(line.startswith("1 of 3 completions left out") for line in maker.lines())
    maker.require_few_too_long(0.4, stage="dpo")
    with pytest.raises(SourceError, match=r"stage dpo: 1 of 3 .* max_too_long_share 0\.3 allows"):
        maker.require_few_too_long(0.3, stage="dpo")
