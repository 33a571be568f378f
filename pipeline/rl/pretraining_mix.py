"""The pretraining term of PPO-ptx: rows of text whose likelihood the policy keeps.

The objective's second part is coefficient * E[log p(x)] over pretraining text (Ouyang et al.
2022, equation 2). The paper gives a coefficient of 27.8 without units, and 8 rows for each
episode; here the loss is a mean over tokens, so that the two numbers can't be compared. The
ratio of the two gradients' norms is logged to set it by.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from data.errors import SourceError
from data.records import Record, to_text
from data.text.tokenizer import tokenize_documents
from pipeline.rl.learner import Learner, gradient_norm
from pipeline.rl.maths.losses import language_loss
from pipeline.rl.maths.masking import length_mask
from pipeline.rl.micro_batches import Limit
from pipeline.rl.processes import World
from pipeline.rl.prompts import Order

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class PretrainingRows:
    """Rows of token ids, in an endless order of which only the place is state.

    Attributes:
        rows: token ids of each row, two at least; may be read from disk when asked for.
        order: in which they come.
        place: of the next row in it.
    """

    rows: Sequence[Sequence[int]]
    order: Order
    place: int = 0

    def take(self, count: int, *, world: World) -> list[list[int]]:
        """Return this process's share of the next `count` rows, the longest first."""
        chosen = [list(self.rows[self.order[self.place + i]]) for i in range(count)]
        self.place += count
        return world.share(sorted(chosen, key=len, reverse=True))


@dataclass(frozen=True)
class PretrainingStep:
    """The loss of a step's rows, and the norm of its gradient beside that of PPO's."""

    loss: float
    norm_ratio: float | None


def add_pretraining_gradient(
    policy: Learner,
    pretraining: PretrainingRows,
    *,
    rows: int,
    coefficient: float,
    limit: Limit,
    pad_id: int,
    measure: bool,
) -> PretrainingStep:
    """Add the gradient of the pretraining loss to PPO's.

    Args:
        policy: holds PPO's gradient, already summed over processes.
        pretraining: the rows.
        rows: taken, over all processes.
        coefficient: weight of the loss.
        limit: of one pass; by tokens, as many rows as would fit were all as long as the step's
            longest on any process, so that all processes make as many passes.
        pad_id: fills up rows.
        measure: compare the two gradients' norms; needs memory for a second gradient.
    """
    world = policy.world
    chosen = pretraining.take(rows, world=world)
    count = world.sum(torch.tensor(float(sum(len(row) - 1 for row in chosen)), device=world.device))
    parameters = policy.parameters()
    ppo_gradients = [p.grad for p in parameters]
    ppo_norm = gradient_norm(parameters) if measure else 0.0
    if measure:
        policy.optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=world.device)
    most = -(-rows // world.size)  # on any process: all do as many passes, some of them weightless
    longest = max(map(len, chosen), default=1)
    size = limit.rows_of(longest if limit.tokens is None else max(world.every(longest)))
    for start in range(0, most, size):
        part = chosen[start : start + size]
        loss = _row_loss(policy, part or [[pad_id, pad_id]], pad_id=pad_id, count=count)
        loss = loss if part else 0.0 * loss
        last = start + size >= most
        with world.accelerator.gradient_sync(policy.module, when=last):
            world.backward(coefficient * loss)
        total += loss.detach()
    ratio = None
    if measure:
        ratio = gradient_norm(parameters) / max(ppo_norm, 1e-12)
        for parameter, gradient in zip(parameters, ppo_gradients, strict=True):
            if parameter.grad is None:
                parameter.grad = gradient
            elif gradient is not None:
                parameter.grad.add_(gradient)
    return PretrainingStep(float(world.sum(total)), ratio)


def _row_loss(
    policy: Learner, rows: list[list[int]], *, pad_id: int, count: torch.Tensor
) -> torch.Tensor:
    """Return the summed cross-entropy of rows over the global count of predicted tokens."""
    device = policy.world.device
    width = max(map(len, rows))
    ids_ML = torch.tensor([row + [pad_id] * (width - len(row)) for row in rows], device=device)
    predicted_M = torch.tensor([len(row) - 1 for row in rows], device=device)
    mask_MT = length_mask(lengths_B=predicted_M, size=width - 1)
    output = policy.module(ids_ML, torch.ones_like(predicted_M), mask_MT)
    loss = language_loss(logprobs_BT=output.logprobs_BT, mask_BT=mask_MT, count=count)
    if output.values_BT is not None:
        # Data parallelism wants a gradient for every parameter, the value head's too.
        loss = loss + 0.0 * output.values_BT.sum()
    return loss


def text_rows(
    records: Iterable[Record], *, tokenizer: PreTrainedTokenizerBase, row_tokens: int
) -> list[list[int]]:
    """Cut texts into rows; a row holds one text, and no token stands for its end.

    Raises:
        SourceError: there is no row.
    """
    rows: list[list[int]] = []
    for ids in tokenize_documents(tokenizer, (to_text(record) for record in records)):
        rows += [ids[i : i + row_tokens] for i in range(0, len(ids), row_tokens)]
    rows = [row for row in rows if len(row) > 1]
    if not rows:
        raise SourceError("the pretraining sources hold no text; name others")
    return rows
