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

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from data.errors import SourceError
from pipeline.contract.resume import load_state, save_state
from pipeline.models.compile import uncompiled
from pipeline.models.load import resolve_bf16
from pipeline.stages.reward.settings import RewardSettings
from pipeline.training.accelerator import TrainingAccelerator, make_accelerator
from pipeline.training.optimizer import build_optimizer, clip_gradients, set_learning_rate
from reward.learned.batching import (
    EncodedRanking,
    micro_batches,
    scoring_batches,
    step_indices,
    steps_per_epoch,
)
from reward.learned.losses import PaddedRankings, pad_rankings, ranking_loss
from reward.learned.model import ScoringModule
from reward.learned.rows import collate

LOOP = "loop.pt"


@dataclass
class RankingTrainer:
    """A model in training, and what scores with it on all processes.

    Attributes:
        module: gives one score a sequence.
        examples: encoded rankings, each with a comparable pair.
        pad_id: fills up rows.
        settings: how to train.
        seed: of the order of prompts.
        accelerator: spreads the work over processes.
    """

    module: ScoringModule
    examples: Sequence[EncodedRanking]
    pad_id: int
    settings: RewardSettings
    seed: int
    accelerator: TrainingAccelerator = field(default_factory=lambda: make_accelerator(bf16=False))

    def __post_init__(self) -> None:
        if not self.examples:
            raise SourceError(
                "no ranking holds two completions of different rank, all tie; get more "
                "rankings, or ones that tell completions apart"
            )
        self.bf16 = resolve_bf16(self.settings.bf16, self.accelerator.device)
        self.as_trees = self.module.takes_as_trees(
            ids for ranking in self.examples for ids in ranking.sequences
        )
        self.prepared, self.optimizer = self.accelerator.prepare(
            self.module, build_optimizer(self.module, self.settings)
        )
        per_epoch = steps_per_epoch(
            n_prompts=len(self.examples), prompts_per_step=self.settings.prompts_per_step
        )
        self.total_steps = max(1, round(self.settings.epochs * per_epoch))

    def step(self, number: int) -> dict[str, float]:
        """Do one optimiser's step, counted from 0; return its metrics.

        Raises:
            TrainingError: loss or gradient is not finite; the weights are as before.
        """
        settings, accelerator = self.settings, self.accelerator
        rate = set_learning_rate(self.optimizer, settings, step=number, total=self.total_steps)
        chosen = step_indices(
            n_prompts=len(self.examples),
            prompts_per_step=settings.prompts_per_step,
            step=number,
            seed=self.seed,
        )
        batch = [self.examples[i] for i in chosen]  # of all processes, K completions a ranking
        plan = micro_batches(
            batch,
            tokens=settings.tokens_per_micro_batch,
            world_size=accelerator.num_processes,
            trees=self.as_trees,
        )[accelerator.process_index]
        self.prepared.train()
        sums = torch.zeros(3, dtype=torch.float64)  # loss, pairs in the right order, ranked pairs
        for place, micro in enumerate(plan):
            with accelerator.gradient_sync(self.prepared, when=place == len(plan) - 1):
                sums += self._backward([batch[i] for i in micro], n_prompts=len(batch))
        loss, correct, n_ranked = accelerator.summed(sums.tolist())
        norm = clip_gradients(  # raises before the optimiser touches the weights
            accelerator,
            self.prepared.parameters(),
            settings.max_gradient_norm,
            loss=loss,
            step=number + 1,
        )
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {
            "train/loss": loss,
            "train/accuracy": correct / max(1.0, n_ranked),
            "train/learning_rate": rate,
            "train/gradient_norm": norm,
        }

    def _backward(self, rankings: list[EncodedRanking], *, n_prompts: int) -> Tensor:
        """Add a micro-batch's part of the gradient; return its loss, correct and ranked pairs."""
        # An empty micro-batch still runs, weightless, so that all processes pass together.
        present = rankings or [min(self.examples, key=lambda e: e.cost)]
        # One pass for all completions, prompt after prompt, then one row for each prompt.
        scores_S = self._forward([r.sequences for r in present], as_trees=self.as_trees)
        padded = _padded(scores_S, present)
        result = ranking_loss(
            **padded._asdict(),
            n_prompts=n_prompts,  # of the whole step, so that the parts' losses add up to its loss
            margin=self.settings.margin,
            ties=self.settings.ties,
        )
        weight = float(bool(rankings))
        # Gradients are averaged over processes, so each scales its own up to make it their sum.
        self.accelerator.backward(result.loss * weight * self.accelerator.num_processes)
        values = [result.loss.item(), result.correct.item(), float(result.n_ranked)]
        return torch.tensor(values, dtype=torch.float64) * weight

    def _forward(
        self, trees: Sequence[Sequence[Sequence[int]]], *, as_trees: bool, exact: bool = False
    ) -> Tensor:
        device, bf16 = self.accelerator.device, self.bf16 and not exact
        batch = collate(trees, as_trees=as_trees, pad_id=self.pad_id, device=device, bf16=bf16)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            scores_S: Tensor = self.prepared(*batch)
        return scores_S

    @torch.no_grad()
    def score(self, sequences: Sequence[Sequence[int]], *, exact: bool = False) -> list[float]:
        """Return the scores of encoded sequences without bias, in order, on every process.

        Args:
            sequences: token ids.
            exact: as a loaded reward model gives them, never in bf16.
        """
        as_trees = self.module.takes_as_trees(sequences)
        batches = scoring_batches(
            sequences, trees=as_trees, tokens=self.settings.tokens_per_micro_batch
        )
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        self.prepared.eval()
        scored: list[tuple[int, float]] = []  # places in `sequences`, and scores
        # All processes run the same number of passes; the surplus ones repeat and are dropped.
        for start in range(0, len(batches), world):
            chosen = batches[min(start + rank, len(batches) - 1)]
            trees = [[sequences[i] for i in tree] for tree in chosen]
            # What is compiled is compiled for training; without gradients it would be once more. On
            # GPUs attention within trees is compiled always: as written it would hold all scores.
            with uncompiled() if self.accelerator.device.type == "cpu" else nullcontext():
                scores = self._forward(trees, as_trees=as_trees, exact=exact).tolist()
            if start + rank < len(batches):
                scored += zip([i for tree in chosen for i in tree], scores, strict=True)
        everywhere = gather_object(scored) if world > 1 else scored
        return [score for _, score in sorted(everywhere)]

    def evaluate(self, rankings: Sequence[EncodedRanking]) -> dict[str, float]:
        """Return the loss on held-out rankings, a prompt counting once, and the accuracy of pairs.

        The accuracy is that of `reward.quality.shares.pair_accuracy`: one pair counts like
        another.
        """
        scores = self.score([ids for r in rankings for ids in r.sequences])
        padded = _padded(torch.tensor(scores), rankings)
        result = ranking_loss(**padded._asdict(), n_prompts=len(rankings), ties=self.settings.ties)
        loss = result.loss.item() * len(rankings) / max(1, result.n_used)
        return {
            "eval/loss": loss,
            "eval/accuracy": result.correct.item() / max(1, result.n_ranked),
        }

    def save(self, folder: Path, own: dict[str, Any]) -> None:
        """Write the whole state; called on every process."""
        self.accelerator.save_state(str(folder))
        if self.accelerator.is_main_process:
            save_state(folder / LOOP, own)

    def load(self, folder: Path) -> dict[str, Any]:
        """Restore the state; return what the loop kept in it."""
        self.accelerator.load_state(str(folder))
        if (folder / LOOP).is_file():
            return load_state(folder / LOOP)
        return {"sums": {}, "steps": 0, "last": {}}  # a state of when the loop kept nothing

    def weights(self) -> dict[str, Tensor] | None:
        """Return the classifier's weights gathered from all processes; None where not needed."""
        if self.accelerator.num_processes == 1:
            return None
        prefix = "classifier."
        gathered = self.accelerator.get_state_dict(self.prepared)
        return {k.removeprefix(prefix): v for k, v in (gathered or {}).items()}


def _padded(scores_S: Tensor, rankings: Sequence[EncodedRanking]) -> PaddedRankings:
    return pad_rankings(
        scores_S=scores_S,
        ranks=[r.ranks for r in rankings],
        probabilities=[r.probabilities for r in rankings],
    )
