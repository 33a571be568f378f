"""Distillation: a student learns what a teacher says of the tokens that an objective asks for.

DistilBERT (Sanh et al. 2019): the teacher's probabilities at a temperature, the objective's own
loss, and the direction of the last hidden states, weighted 5, 2 and 1.

Departure: all three are means over the tokens that the objective asks for; DistilBERT's soft
targets and states are of all tokens of a masked row.

Shapes: N tokens asked for, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.training.objectives.rows import IGNORED, Objective

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pipeline.training.objectives.rows import Row


class Weights(NamedTuple):
    """What each part of the loss counts.

    Attributes:
        soft: KL divergence of the student from the teacher, at the temperature, times its square.
        hard: cross-entropy of the true tokens.
        cosine: 1 - cosine of the last hidden states of both.
    """

    soft: float = 5.0
    hard: float = 2.0
    cosine: float = 1.0


class Predictions(NamedTuple):
    """What a model says of the tokens that are asked for.

    Attributes:
        states_NH: last hidden states.
        logits_NV: of each token.
        targets_N: the true ones.
    """

    states_NH: Tensor
    logits_NV: Tensor
    targets_N: Tensor


def distillation_loss(
    student: Predictions, teacher: Predictions, *, temperature: float, weights: Weights
) -> Tensor:
    """Return the loss of all tokens asked for, summed.

    Gradients of soft targets shrink with the temperature's square, by which they are multiplied
    (Hinton et al. 2015, 2). A part that counts nothing is not computed.
    """
    loss = student.logits_NV.new_zeros(())
    if weights.soft:
        log_p_NV, log_q_NV = (
            F.log_softmax(of.logits_NV.float() / temperature, dim=-1) for of in (teacher, student)
        )
        soft = F.kl_div(log_q_NV, log_p_NV, reduction="sum", log_target=True)
        loss = loss + weights.soft * temperature**2 * soft
    if weights.hard:
        hard = F.cross_entropy(student.logits_NV.float(), student.targets_N, reduction="sum")
        loss = loss + weights.hard * hard
    if weights.cosine:
        cosine_N = F.cosine_similarity(student.states_NH.float(), teacher.states_NH.float(), dim=-1)
        loss = loss + weights.cosine * (1 - cosine_N).sum()
    return loss


class Telling(Objective, Protocol):
    """An objective whose loss is that of logits."""

    def logits(self, model: Any, batch: Any) -> Tensor:
        """Return the logits (N, V) of the tokens asked for, row by row."""
        ...


@dataclass
class Distilled:
    """An objective that is learned from a teacher, and judged by itself.

    Attributes:
        asks: the objective, asked of the student.
        student: the bare model.
        tells: the same objective, asked of the teacher.
        teacher: the model that is learned from; not trained.
        temperature: of the soft targets.
        weights: of the parts of the loss.
    """

    asks: Telling
    student: PreTrainedModel
    tells: Telling
    teacher: PreTrainedModel
    temperature: float = 2.0
    weights: Weights = Weights()  # noqa: RUF009 - frozen

    def batch(self, rows: Sequence[Row]) -> Any:
        """Return rows as the objective has them."""
        return self.asks.batch(rows)

    def summed_loss(self, model: Any, batch: Any) -> Tensor:
        """Return the loss of all tokens asked for, summed."""
        student = _predictions(self.asks, self.student, model, batch)
        with torch.no_grad():
            self.teacher.to(batch.tokens_BT.device)
            teacher = _predictions(self.tells, self.teacher, self.teacher, batch)
        return distillation_loss(
            student, teacher, temperature=self.temperature, weights=self.weights
        )

    def sums(self, model: Any, groups: Iterable[Sequence[Row]], *, bf16: bool) -> list[float]:
        """Return the objective's sums of the student, and those of the teacher."""
        groups = list(groups)
        student = self.asks.sums(model, groups, bf16=bf16)
        return student + self.tells.sums(self.teacher, groups, bf16=bf16)

    def figures(self, sums: Sequence[float]) -> dict[str, float]:
        """Return the objective's figures of both."""
        half = len(sums) // 2
        teacher = self.tells.figures(sums[half:])
        told = {f"teacher_{name}": value for name, value in teacher.items()}
        return self.asks.figures(sums[:half]) | told


def _predictions(asks: Telling, bare: Any, model: Any, batch: Any) -> Predictions:
    """Return what a model, or what wraps the bare one, says of the tokens asked for."""
    seen: list[Tensor] = []

    def note(_: torch.nn.Module, __: tuple[Any, ...], output: Any) -> None:
        seen.append(output.last_hidden_state)

    hook = bare.base_model.register_forward_hook(note)
    try:
        logits_NV = asks.logits(model, batch)
    finally:
        hook.remove()
    asked_BT = batch.targets_BT != IGNORED
    return Predictions(seen[0][asked_BT], logits_NV, batch.targets_BT[asked_BT])
