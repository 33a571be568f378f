"""Training on packed chunks, by any objective: one step, held-out figures, and the state.

Works on one process or many through `accelerate`. The loss of a step is the summed cross-entropy
of its predicted tokens over their number in the whole step, so that neither micro-batches nor
processes change it. Shapes: B chunks of T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from data.errors import ModelError, RecipeError
from pipeline.contract.resume import load_state, save_state
from pipeline.models.compile import require_compiler
from pipeline.models.load import resolve_bf16
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
from pipeline.training.optimizer import build_optimizer, clip_gradients, set_learning_rate
from pipeline.training.settings import HELDOUT_CHUNKS, LmSettings
from pipeline.training.state import load_training_state, save_training_state
from reward.network.short_attention import use_short_attention

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
class LmTrainer:
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
        settings, world = self.settings, self.accelerator.num_processes
        if settings.batch_size % world:
            raise RecipeError(
                f"batch_size {settings.batch_size} can't be shared by {world} processes; make "
                "it a multiple of their number"
            )
        if not (self.accelerator.deepspeed or self.accelerator.sharded):
            self.model.to(self.accelerator.device)  # here, since it is tried on a row first
        self.total_steps = settings.total_steps(len(self.train))
        self.bf16 = resolve_bf16(settings.bf16, self.accelerator.device)
        optimizer = build_optimizer(self.model, settings)
        self.model.train()
        use_short_attention(self.model, self.accelerator.device)
        if self.objective is None:
            apart = None if settings.attend_across_documents else self._documents()
            self.objective = Causal(apart)
        self.asks: Objective = self.objective
        if settings.compile:
            require_compiler(self.accelerator.device)
        self.prepared, self.optimizer = self.accelerator.prepare(self.model, optimizer)
        self.forward = torch.compile(self.prepared) if settings.compile else self.prepared
        self.parameters = [p for p in self.prepared.parameters() if p.requires_grad]
        self.order = ChunkOrder(len(self.train), seed=self.seed)

    def _documents(self) -> Documents:
        documents = find_documents(self.model, self.train.about.context_length)
        if documents is None:
            raise ModelError(
                "attend_across_documents is false, but in a "
                f"{type(self.model).__name__} documents of a chunk see each other whatever mask "
                "it is given; set attend_across_documents: true or use another architecture"
            )
        return documents

    def step(self, number: int) -> dict[str, float]:
        """Do one optimiser's step, counted from 0; return its metrics.

        Raises:
            TrainingError: loss or gradient is not finite; the weights are as before.
        """
        rate = set_learning_rate(self.optimizer, self.settings, step=number, total=self.total_steps)
        batch = self._batch(number)  # this process's B / processes chunks, T tokens each
        # What the loss is a mean over, and what was learned from.
        tokens, learned = self.accelerator.summed([batch.predicted(), batch.learned()])
        [nats] = self.accelerator.summed([self._backward(batch, tokens)])
        loss = nats / tokens
        norm = clip_gradients(  # raises before the optimiser touches the weights
            self.accelerator,
            self.parameters,
            self.settings.max_gradient_norm,
            loss=loss,
            step=number + 1,
        )
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {
            "train/loss": loss,
            "train/learning_rate": rate,
            "train/gradient_norm": norm,
            "tokens": learned,
        }

    def _batch(self, number: int) -> Batch:
        """Return this process's part of a step's chunks."""
        size = self.settings.batch_size
        rows = [
            Row(self.train, chunk, place // len(self.train))
            for place, chunk in enumerate(self.order.batch(number, size), start=number * size)
        ]
        mine = rows[self.accelerator.process_index :: self.accelerator.num_processes]
        batch: Batch = self.asks.batch(mine).to(self.accelerator.device)
        return batch

    def _backward(self, batch: Batch, tokens: float) -> float:
        """Gather the gradient of the step's mean loss; return this process's summed loss."""
        # Gradients are averaged over processes, so each scales its own up to make it their sum.
        scale = self.accelerator.num_processes / tokens
        nats = torch.zeros((), device=self.accelerator.device)
        size, rows = self._micro_batch_size, len(batch.tokens_BT)
        for start in range(0, rows, size):
            # Gradients gather here until the last micro-batch; with it processes add theirs up.
            last = start + size >= rows
            with self.accelerator.gradient_sync(self.prepared, when=last):
                with torch.autocast(nats.device.type, dtype=torch.bfloat16, enabled=self.bf16):
                    part = self.asks.summed_loss(self.forward, batch.rows(start, start + size))
                self.accelerator.backward(part * scale)
            nats += part.detach()
        return float(nats)

    @property
    def _micro_batch_size(self) -> int:
        return self.settings.micro_batch_size or self.settings.batch_size

    def evaluate(self) -> dict[str, float]:
        """Return the objective's figures on held-out chunks, such as loss and perplexity."""
        rows = self.heldout_rows()
        # Processes may get unequal parts, so the wrapper, which waits for the others, stays out of
        # it; where weights are sharded, every process judges all.
        shared = not (self.accelerator.deepspeed or self.accelerator.sharded)
        if shared:
            rows = rows[self.accelerator.process_index :: self.accelerator.num_processes]
        model = self.model if shared and self.accelerator.num_processes > 1 else self.forward
        sums = self.asks.sums(model, grouped(rows, self._micro_batch_size), bf16=self.bf16)
        if shared:
            sums = self.accelerator.summed(sums)
        return {f"eval/{k}": v for k, v in self.asks.figures(sums).items()}

    def heldout_rows(self) -> list[Row]:
        """Return the held-out chunks that are looked at, spread evenly."""
        assert self.heldout is not None, "nothing is held out"
        return spread_rows(self.heldout, HELDOUT_CHUNKS, epoch=HELDOUT)

    def save(self, folder: Path, own: dict[str, Any]) -> None:
        """Write the whole state; called on every process."""
        if not self.accelerator.deepspeed:
            rank = self.accelerator.process_index
            save_training_state(folder, self.model, self.optimizer, extra=own, rank=rank)
            return
        self.accelerator.save_state(str(folder))
        if self.accelerator.is_main_process:
            save_state(folder / "loop.pt", own)

    def load(self, folder: Path) -> dict[str, Any]:
        """Restore the state; return what the loop kept in it."""
        if not self.accelerator.deepspeed:
            rank = self.accelerator.process_index
            return load_training_state(folder, self.model, self.optimizer, rank=rank)
        self.accelerator.load_state(str(folder))
        return load_state(folder / "loop.pt")

    def weights(self) -> dict[str, torch.Tensor] | None:
        """Return the gathered weights where they are sharded; called on every process."""
        if not (self.accelerator.deepspeed or self.accelerator.sharded):
            return None
        gathered: dict[str, torch.Tensor] = self.accelerator.get_state_dict(self.prepared)
        return gathered
