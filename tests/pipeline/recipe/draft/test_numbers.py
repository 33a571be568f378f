from __future__ import annotations

import pytest

from pipeline.recipe.draft.numbers import episodes, learning_rate, power_of_two, rows_batch


@pytest.mark.parametrize(
    ("stage", "width", "family", "scratch", "rate"),
    [
        ("sft", 2000, "llama", False, 5e-5),
        ("sft", 500, "llama", False, 1.5e-4),  # 5e-5 x 4 ^ 0.781 = 5e-5 x 2.95
        ("sft", 500, "qwen2", False, 5.6e-5),  # 5e-5 x 4 ^ 0.0775 = 5e-5 x 1.11
        ("sft", 4000, "llama", False, 2.9e-5),
        ("reward", 4096, "llama", False, 9e-6),
        ("ppo", 2048, "llama", False, 3e-6),
        ("ppo", 4096, "llama", False, 3e-6),  # N+ has one rate up to 6.9B
        ("ppo", 512, "llama", False, 8.9e-6),
        ("pretrain", 192, "llama", True, 2e-3),
        ("pretrain", 768, "llama", True, 6.8e-4),
    ],
)
def test_rates_go_by_width(stage: str, width: int, family: str, scratch: bool, rate: float) -> None:
    given = learning_rate(stage, width=width, family=family, scratch=scratch)
    assert given.value == pytest.approx(rate)
    assert "width of" in given.why


@pytest.mark.parametrize(
    ("prompts", "count", "batch"),
    [(58, 464, 8), (480, 3840, 128), (5000, 39936, 512), (40_000, 51_200, 512), (1, 8, 8)],
)
def test_each_prompt_is_answered_a_few_times(prompts: int, count: int, batch: int) -> None:
    total, rows = episodes(prompts, "")
    assert (total.value, rows.value) == (count, batch)
    assert f"{prompts:,} prompts" in total.why


def test_few_prompts_still_make_a_batch() -> None:
    total, rows = episodes(0, "at least ")
    assert total.value == rows.value == 8


def test_powers_of_two_lie_between_bounds() -> None:
    assert [power_of_two(n, least=4, most=32) for n in (0, 4, 7.9, 8, 1e9)] == [4, 4, 4, 8, 32]


def test_a_step_has_the_usual_rows_where_there_are_enough() -> None:
    assert rows_batch(10_000, usual=32, source="a: 32") == (32, "a: 32.")
    few = rows_batch(240, usual=32, source="a: 32")
    assert (few.value, "240 rows" in few.why) == (8, True)
