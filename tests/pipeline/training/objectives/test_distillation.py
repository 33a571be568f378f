"""The loss of distillation: values worked by hand, and parts that count nothing."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.training.objectives.distillation import Predictions, Weights, distillation_loss


def predictions(logits: list[list[float]], states: list[list[float]]) -> Predictions:
    return Predictions(torch.tensor(states), torch.tensor(logits), torch.tensor([0] * len(logits)))


STUDENT = predictions([[0.0, 0.0]], [[1.0, 0.0]])
TEACHER = predictions([[2 * math.log(3), 0.0]], [[3.0, 3.0]])


def test_each_part_is_what_it_is_by_hand() -> None:
    # At temperature 2 the teacher says 3/4 and 1/4, the student one half each.
    soft = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    for weights, wanted in (
        (Weights(soft=1, hard=0, cosine=0), 4 * soft),
        (Weights(soft=0, hard=1, cosine=0), math.log(2)),
        (Weights(soft=0, hard=0, cosine=1), 1 - math.sqrt(0.5)),
        (Weights(soft=5, hard=2, cosine=1), 20 * soft + 2 * math.log(2) + 1 - math.sqrt(0.5)),
    ):
        loss = distillation_loss(STUDENT, TEACHER, temperature=2.0, weights=weights)
        assert float(loss) == pytest.approx(wanted, rel=1e-6)


def test_it_is_a_sum_over_tokens_and_nothing_where_both_agree() -> None:
    twice = [Predictions(*(torch.cat([part, part]) for part in one)) for one in (STUDENT, TEACHER)]
    weights = Weights()
    one = distillation_loss(STUDENT, TEACHER, temperature=2.0, weights=weights)
    both = distillation_loss(*twice, temperature=2.0, weights=weights)
    assert float(both) == pytest.approx(2 * float(one), rel=1e-6)
    same = distillation_loss(
        TEACHER, TEACHER, temperature=2.0, weights=Weights(soft=1, hard=0, cosine=1)
    )
    assert float(same) == pytest.approx(0, abs=1e-6)


def test_states_of_another_width_are_not_looked_at_where_they_count_nothing() -> None:
    wide = TEACHER._replace(states_NH=torch.ones(1, 5))
    weights = Weights(cosine=0)
    loss = distillation_loss(STUDENT, wide, temperature=1.0, weights=weights)
    assert bool(torch.isfinite(loss))
