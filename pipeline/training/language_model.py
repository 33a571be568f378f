"""Training on packed chunks, by any objective, and held-out figures.

Shapes: B chunks of T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from data.errors import ModelError, RecipeError
from pipeline.models.compile import require_compiler
from pipeline.training.accelerator import TrainingAccelerator, make_accelerator
from pipeline.training.corpus import ChunkOrder, chunk_batch
from pipeline.training.objectives.causal import (
    Documents,
    LmBatch,
    find_documents,
    next_token_logits,
    summed_loss,
)
from pipeline.training.objectives.perplexity import batches_loss, perplexity_figures
from pipeline.training.objectives.rows import (
    HELDOUT,
    IGNORED,
    Batch,
    Objective,
    Row,
    grouped,
    spread_rows,
)
from pipeline.training.optimizer import build_adafactor
from pipeline.training.settings import HELDOUT_CHUNKS, LmSettings
from pipeline.training.stepping import Stepping

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from data.text.packing import PackedShards


@dataclass(frozen=True)
class Causal:
    """Every token predicts the next one.

    Attributes:
        apart: how a model is told of documents, None to attend across them.
    """

    apart: Documents | None = None

    def batch(self, rows: Sequence[Row]) -> LmBatch:
        """Return rows as a batch."""
        return chunk_batch([row.chunk for row in rows], apart=self.apart)

    def logits(self, model: Any, batch: LmBatch) -> torch.Tensor:
        """Return the logits (N, V) of the tokens to predict."""
        return next_token_logits(model, batch)[batch.targets_BT != IGNORED]

    def summed_loss(self, model: Any, batch: LmBatch) -> torch.Tensor:
        """Return the cross-entropy of all tokens to predict, summed, in nats."""
        return summed_loss(model, batch)

    def sums(self, model: Any, groups: Iterable[Sequence[Row]], *, bf16: bool) -> list[float]:
        """Return nats, predicted tokens, and the bytes of text that they stand for."""
        groups = list(groups)
        nats, tokens = batches_loss(model, map(self.batch, groups), bf16=bf16)
        return [nats, tokens, sum(row.chunk.text_bytes for rows in groups for row in rows)]

    def figures(self, sums: Sequence[float]) -> dict[str, float]:
        """Return loss, perplexity and bits per byte."""
        return perplexity_figures(*sums)


@dataclass
class LmTrainer(Stepping):
    """A language model in training.

    Attributes:
        model: the bare model.
        train: chunks to learn.
        settings: how to train.
        seed: of the order of chunks.
        heldout: chunks it is judged on.
        objective: what is predicted of a chunk; the next token when not given.
        accelerator: spreads the work over processes.
    """

    model: PreTrainedModel
    train: PackedShards
    settings: LmSettings
    seed: int
    heldout: PackedShards | None = None
    objective: Objective | None = None
    accelerator: TrainingAccelerator = field(default_factory=lambda: make_accelerator(bf16=False))

    def __post_init__(self) -> None:
        """Spread the model over the processes.

        Raises:
            RecipeError: the batch can't be shared out evenly.
            ModelError: the model is to be compiled, and no compiler is here; or it can't keep
                documents apart, and shall.
        """
        settings = self.settings
        self._make_ready(
            batch_size=settings.batch_size,
            micro_batch_size=settings.micro_batch_size,
            total_steps=settings.total_steps(len(self.train)),
        )
        if self.objective is None:
            apart = None if settings.attend_across_documents else self._documents()
            self.objective = Causal(apart)
        self.asks: Objective = self.objective
        if settings.compile:
            require_compiler(self.accelerator.device)
        self._spread(compiled=settings.compile)
        self.order = ChunkOrder(len(self.train), seed=self.seed)

    def _optimizer(self) -> torch.optim.Optimizer:
        if self.settings.optimizer == "adamw":
            return super()._optimizer()
        if self.accelerator.deepspeed or self.accelerator.sharded:
            raise RecipeError(
                "optimizer adafactor looks at rows and columns of whole matrices, and "
                "launch.config shards weights; set optimizer: adamw, or launch without sharding"
            )
        return build_adafactor(self.model, self.settings)

    def _documents(self) -> Documents:
        documents = find_documents(self.model, self.train.about.context_length)
        if documents is None:
            raise ModelError(
                "attend_across_documents is false, but in a "
                f"{type(self.model).__name__} documents of a chunk see each other whatever mask "
                "it is given; set attend_across_documents: true or use another architecture"
            )
        return documents

    def _batch(self, number: int) -> Batch:
        size = self.settings.batch_size
        rows = [
            Row(self.train, chunk, place // len(self.train))
            for place, chunk in enumerate(self.order.batch(number, size), start=number * size)
        ]
        mine = rows[self.accelerator.process_index :: self.accelerator.num_processes]
        batch: Batch = self.asks.batch(mine).to(self.accelerator.device)
        return batch

    def _summed_loss(self, batch: Batch) -> torch.Tensor:
        return self.asks.summed_loss(self.forward, batch)

    def evaluate(self) -> dict[str, float]:
        """Return the objective's figures on held-out chunks, such as loss and perplexity."""
        rows = self.heldout_rows()
        if self.shares_evaluation:
            rows = rows[self.accelerator.process_index :: self.accelerator.num_processes]
        sums = self.asks.sums(self.judged, grouped(rows, self.micro_batch_size), bf16=self.bf16)
        if self.shares_evaluation:
            sums = self.accelerator.summed(sums)
        return {f"eval/{k}": v for k, v in self.asks.figures(sums).items()}

    def heldout_rows(self) -> list[Row]:
        """Return the held-out chunks that are looked at, spread evenly."""
        assert self.heldout is not None, "nothing is held out"
        return spread_rows(self.heldout, HELDOUT_CHUNKS, epoch=HELDOUT)
