"""Trains a reward model on rankings.

Each completion is forwarded once, and its prompt once for all of them where the architecture allows
(`reward.network.tree_attention`); all comparable pairs of a prompt share that pass (InstructGPT,
section 3.5: pairs shuffled into batches as if they were independent overfit within an epoch). What
an optimiser's step sees is a number of prompts, whatever their K; the loss is normalised by the
prompts of the whole step, over all processes and micro-batches.

Works on one process or many through `accelerate`. Dropout is off and the order of prompts is a
function of seed and step, so that weights, optimiser and step are the whole state: a run that was
cut off goes on to the same weights.

Departs from InstructGPT: prompts whose completions all tie are left out of the batches, and the
batch counts prompts that are comparable.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from data.errors import Interrupted, SourceError, TrainingError
from pipeline.training.schedule import Schedule, schedule_factor
from reward.learned.batching import (
    EncodedRanking,
    micro_batches,
    scoring_batches,
    step_indices,
    steps_per_epoch,
)
from reward.learned.losses import PaddedRankings, Ties, pad_rankings, ranking_loss
from reward.learned.model import ScoringModule
from reward.learned.rows import collate

Log = Callable[[int, Mapping[str, float]], None]


class ResumeStates(Protocol):
    """Where resume states are kept; each is whole or not there."""

    def save(self, step: int, write: Callable[[Path], None]) -> object:
        """Save a state whose files `write` puts into the folder it is given, on every process."""
        ...

    def latest(self) -> tuple[int, Path] | None:
        """Return number of finished steps and folder of the newest whole state."""
        ...


@dataclass(frozen=True)
class Hyperparameters:
    """How to train; what the numbers are is the caller's choice.

    Attributes:
        epochs: passes over the prompts.
        prompts_per_step: prompts of an optimiser's step, over all processes.
        tokens_per_micro_batch: tokens of one forward pass, padding included.
        learning_rate: at the peak.
        schedule: shape after warm-up.
        final_share: share of the peak that the schedule ends at.
        warmup_share: share of the steps over which the rate rises from 0.
        weight_decay: AdamW's, on matrices alone.
        betas: AdamW's.
        epsilon: AdamW's.
        max_gradient_norm: longer gradients are scaled down to it.
        margin: asked of the difference of a ranked pair.
        ties: "drop" or "half".
        bf16: whether the forward pass runs in bfloat16; weights and scores stay float32.
    """

    epochs: float
    prompts_per_step: int
    tokens_per_micro_batch: int
    learning_rate: float
    schedule: Schedule = "cosine"
    final_share: float = 0.1
    warmup_share: float = 0.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = 1e-8
    max_gradient_norm: float = 1.0
    margin: float = 0.0
    ties: Ties = "drop"
    bf16: bool = False


def learning_rate(step: int, *, total: int, hyper: Hyperparameters) -> float:
    """Return the rate of a step, counted from 0."""
    return hyper.learning_rate * schedule_factor(
        step,
        total=total,
        warmup=round(hyper.warmup_share * total),
        schedule=hyper.schedule,
        final_share=hyper.final_share,
    )


@dataclass
class RankingTrainer:
    """A model in training, and what scores with it on all processes.

    Attributes:
        module: gives one score a sequence.
        examples: encoded rankings, each with a comparable pair.
        pad_id: fills up rows.
        hyper: how to train.
        seed: of the order of prompts.
        accelerator: spreads the work over processes.
        heldout: encoded rankings for the figures during training.
    """

    module: ScoringModule
    examples: Sequence[EncodedRanking]
    pad_id: int
    hyper: Hyperparameters
    seed: int
    accelerator: Accelerator = field(default_factory=Accelerator)
    heldout: Sequence[EncodedRanking] = ()

    def __post_init__(self) -> None:
        if not self.examples:
            raise SourceError(
                "no ranking holds two completions of different rank, all tie; get more "
                "rankings, or ones that tell completions apart"
            )
        matrices = [p for p in self.module.parameters() if p.requires_grad and p.ndim > 1]
        others = [p for p in self.module.parameters() if p.requires_grad and p.ndim <= 1]
        optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": self.hyper.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=self.hyper.learning_rate,
            betas=self.hyper.betas,
            eps=self.hyper.epsilon,
            fused=True,
        )
        self.as_trees = self.module.takes_as_trees(
            ids for ranking in self.examples for ids in ranking.sequences
        )
        self.prepared, self.optimizer = self.accelerator.prepare(self.module, optimizer)
        per_epoch = steps_per_epoch(
            n_prompts=len(self.examples), prompts_per_step=self.hyper.prompts_per_step
        )
        self.total_steps = max(1, round(self.hyper.epochs * per_epoch))
        self.done = 0

    def resume(self, states: ResumeStates) -> int:
        """Go back to the newest whole state, if there is one; return the finished steps."""
        latest = states.latest()
        if latest is not None:
            self.done, folder = latest
            self.accelerator.load_state(str(folder))
        return self.done

    def save(self, states: ResumeStates) -> None:
        """Save the state after the finished steps."""
        states.save(self.done, lambda folder: self.accelerator.save_state(str(folder)))

    def train(
        self,
        *,
        log: Log,
        states: ResumeStates | None = None,
        save_every: int = 0,
        evaluate_every: int = 0,
        should_stop: Callable[[], bool] = lambda: False,
        advance: Callable[[int, Mapping[str, float]], None] | None = None,
    ) -> None:
        """Train from the finished steps to the last.

        Args:
            log: takes the number of finished steps and their metrics.
            states: where to save; None saves nothing.
            save_every: steps between two saves; 0 saves only when told to stop.
            evaluate_every: steps between two looks at the held-out rankings; 0 for none.
            should_stop: asked after each step, the same answer on all processes.
            advance: told of each finished step, for a progress bar.

        Raises:
            TrainingError: loss or gradient is not finite; nothing was changed or saved by that
                step.
            Interrupted: `should_stop` said so; the state has been saved.
        """
        while self.done < self.total_steps:
            metrics = self._step()
            self.done += 1
            last = self.done == self.total_steps
            if evaluate_every and self.heldout and (self.done % evaluate_every == 0 or last):
                metrics |= self.evaluate(self.heldout)
            log(self.done, metrics)
            if advance is not None:
                advance(1, metrics)
            stop = not last and should_stop()
            if states is not None and (
                stop or (save_every and self.done % save_every == 0 and not last)
            ):
                self.save(states)
            if stop:
                raise Interrupted(f"stopped after step {self.done} of {self.total_steps}")

    def _step(self) -> dict[str, float]:
        indices = step_indices(
            n_prompts=len(self.examples),
            prompts_per_step=self.hyper.prompts_per_step,
            step=self.done,
            seed=self.seed,
        )
        batch = [self.examples[i] for i in indices]
        plan = micro_batches(
            batch,
            tokens=self.hyper.tokens_per_micro_batch,
            world_size=self.accelerator.num_processes,
            trees=self.as_trees,
        )[self.accelerator.process_index]
        rate = learning_rate(self.done, total=self.total_steps, hyper=self.hyper)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.prepared.train()
        self.optimizer.zero_grad()
        sums = torch.zeros(3, dtype=torch.float64)
        for number, micro in enumerate(plan):
            with self._gradient_sync(number == len(plan) - 1):
                sums += self._backward([batch[i] for i in micro], n_prompts=len(batch))
        norm = self._clip()
        loss, correct, n_ranked = self._sum_over_processes(sums).tolist()
        self._require_finite(loss, norm)
        self.optimizer.step()
        return {
            "train/loss": loss,
            "train/accuracy": correct / max(1.0, n_ranked),
            "train/learning_rate": rate,
            "train/gradient_norm": norm,
        }

    def _backward(self, rankings: list[EncodedRanking], *, n_prompts: int) -> Tensor:
        # An empty micro-batch still runs, weightless, so that all processes pass together.
        present = rankings or [min(self.examples, key=lambda e: e.cost)]
        scores_S = self._forward([r.sequences for r in present], as_trees=self.as_trees)
        padded = _padded(scores_S, present)
        result = ranking_loss(
            **padded._asdict(), n_prompts=n_prompts, margin=self.hyper.margin, ties=self.hyper.ties
        )
        weight = float(bool(rankings))
        # Gradients are averaged over processes, and the loss is a share of the global sum.
        self.accelerator.backward(result.loss * weight * self.accelerator.num_processes)
        values = [result.loss.item(), result.correct.item(), float(result.n_ranked)]
        return torch.tensor(values, dtype=torch.float64) * weight

    def _forward(
        self, trees: Sequence[Sequence[Sequence[int]]], *, as_trees: bool, exact: bool = False
    ) -> Tensor:
        device, bf16 = self.accelerator.device, self.hyper.bf16 and not exact
        batch = collate(trees, as_trees=as_trees, pad_id=self.pad_id, device=device, bf16=bf16)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            scores_S: Tensor = self.prepared(*batch)
        return scores_S

    def _gradient_sync(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        # What transformers' Trainer does too: DeepSpeed steps, and others gather, by this flag.
        self.accelerator.gradient_state._set_sync_gradients(last)
        if last:
            return contextlib.nullcontext()
        context: contextlib.AbstractContextManager[Any] = self.accelerator.no_sync(self.prepared)
        return context

    def _clip(self) -> float:
        norm = self.accelerator.clip_grad_norm_(
            self.prepared.parameters(), self.hyper.max_gradient_norm
        )
        return float(norm) if norm is not None else 0.0

    def _sum_over_processes(self, values: Tensor) -> Tensor:
        if self.accelerator.num_processes == 1:
            return values
        on_device = values.float().to(self.accelerator.device)
        total: Tensor = self.accelerator.reduce(on_device, reduction="sum")
        return total.cpu()

    def _require_finite(self, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        what, value = ("loss", loss) if not math.isfinite(loss) else ("gradient norm", norm)
        raise TrainingError(
            f"the reward model's {what} became {value} at step {self.done + 1}; lower "
            "learning_rate or look at the rankings of that step, the last good checkpoint is kept"
        )

    @torch.no_grad()
    def score(self, sequences: Sequence[Sequence[int]], *, exact: bool = False) -> list[float]:
        """Return the scores of encoded sequences without bias, in order, on every process.

        Args:
            sequences: token ids.
            exact: as a loaded reward model gives them, never in bf16.
        """
        as_trees = self.module.takes_as_trees(sequences)
        batches = scoring_batches(
            sequences, trees=as_trees, tokens=self.hyper.tokens_per_micro_batch
        )
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        self.prepared.eval()
        found: list[tuple[int, float]] = []
        # All processes run the same number of passes; the surplus ones repeat and are dropped.
        for start in range(0, len(batches), world):
            chosen = batches[min(start + rank, len(batches) - 1)]
            trees = [[sequences[i] for i in tree] for tree in chosen]
            # What is compiled is compiled for training; without gradients it would be once more.
            with torch.compiler.set_stance("force_eager"):
                scores = self._forward(trees, as_trees=as_trees, exact=exact).tolist()
            if start + rank < len(batches):
                found += zip([i for tree in chosen for i in tree], scores, strict=True)
        everywhere = gather_object(found) if world > 1 else found
        return [score for _, score in sorted(everywhere)]

    def evaluate(self, rankings: Sequence[EncodedRanking]) -> dict[str, float]:
        """Return the loss on held-out rankings, a prompt counting once, and the accuracy of pairs.

        The accuracy is that of `reward.quality.quality.pair_accuracy`: one pair counts like
        another.
        """
        scores = self.score([ids for r in rankings for ids in r.sequences])
        padded = _padded(torch.tensor(scores), rankings)
        result = ranking_loss(**padded._asdict(), n_prompts=len(rankings), ties=self.hyper.ties)
        loss = result.loss.item() * len(rankings) / max(1, result.n_used)
        return {
            "eval/loss": loss,
            "eval/accuracy": result.correct.item() / max(1, result.n_ranked),
        }

    def weights(self) -> dict[str, Tensor] | None:
        """Return the classifier's weights gathered from all processes; None where not needed."""
        if self.accelerator.num_processes == 1:
            return None
        prefix = "classifier."
        whole = self.accelerator.get_state_dict(self.prepared)
        return {k.removeprefix(prefix): v for k, v in (whole or {}).items()}


def _padded(scores_S: Tensor, rankings: Sequence[EncodedRanking]) -> PaddedRankings:
    return pad_rankings(
        scores_S=scores_S,
        ranks=[r.ranks for r in rankings],
        probabilities=[r.probabilities for r in rankings],
    )
