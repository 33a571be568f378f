"""TRL's trainers on pairs, on the host of all of TRL's trainers.

What differs from TRL beside what `training/trl.py` tells, and why:
- Answers come tokenised as the policy samples them. TRL tokenises prompt and answer together, so
  that a prompt that ends in a space loses its last token to the answer.
- The reference is the recipe's. TRL loads one anew from where the policy's configuration says it
  came from, which in a published model may be a folder that was trained since.
- Nothing is cut. TRL cuts at `max_length`; with the start cut off, the mean that IPO takes is over
  the tokens kept, of which the first has no log-probability.
- A prompt counts once a round (`pairs.py`), and each step has as many pairs.

Told, since it is TRL's: the accuracy counts pairs whose chosen answer gained more than the rejected
one. Before the first step no answer has gained anything, so that it begins at 0, not at one half.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import datasets
import torch
from trl import DPOConfig, DPOTrainer

from pipeline.stages.dpo.pairs import Pairs, Rounds, total_steps
from pipeline.training.trl import TrlHost, trainer_arguments

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

    from pipeline.contract.context import StageContext
    from pipeline.stages.dpo.settings import DpoSettings, PreferenceSettings

FIGURES = {
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "rewards/chosen": "chosen_reward",
    "rewards/rejected": "rejected_reward",
    "logps/chosen": "chosen_logprob",
    "logps/rejected": "rejected_logprob",
    "entropy": "entropy",
    "kl": "kl",
}
"""TRL's name of a figure -> ours; rewards are `beta` times what a log-probability gained."""


@dataclass(frozen=True)
class Learned:
    """The pairs that are learned, and those that are judged; no prompt is in both."""

    train: Pairs
    heldout: Pairs


class PreferenceTrainer(TrlHost):
    """What stands before one of TRL's trainers that learn from pairs."""

    def __init__(
        self,
        *,
        context: StageContext[PreferenceSettings],
        rows: Learned,
        reference: PreTrainedModel,
        **kwargs: Any,
    ) -> None:
        self.rows, self.ref_model = rows, reference
        # TRL looks at one row, and would tokenise them all.
        first = datasets.Dataset.from_list([rows.train[0]])
        super().__init__(context=context, ref_model=reference, train_dataset=first, **kwargs)
        self.train_dataset = rows.train
        # Accelerate cuts what processes gather in the last pass down to the rows of a part batch.
        rows.train.total_dataset_length = len(self.order)
        self.ref_model = self.accelerator.shard(self.ref_model)

    def make_order(self) -> Rounds:
        """Return round after round."""
        settings, pairs = self.context.settings, self.rows.train
        steps = total_steps(pairs, epochs=settings.epochs, batch_size=settings.batch_size)
        return Rounds(pairs, size=steps * settings.batch_size, seed=self.context.seed)

    def count_steps(self) -> int:
        """Return the optimiser's steps in all."""
        return len(self.order) // int(self.context.settings.batch_size)

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def extra_line(self, sums: dict[str, Sequence[float]]) -> dict[str, float]:
        """Return the means of TRL's figures since the last line, and the epoch."""
        line = {
            f"train/{ours}": sum(sums[name]) / len(sums[name])
            for name, ours in FIGURES.items()
            if sums.get(name)
        }
        seen = self.state.global_step * self.context.settings.batch_size
        return {**line, "train/epoch": round(seen / self.rows.train.per_epoch, 4)}

    @torch.no_grad()
    def held_out(self) -> dict[str, float]:
        """Return loss and figures of an epoch of the pairs held out, on every process all."""
        rows = self.rows.heldout.epoch(seed=self.context.seed)
        if not rows:
            return {}
        # No batch is smaller than those that are learned: KTO's KL is of several pairs.
        batches = max(1, len(rows) // int(self.args.per_device_train_batch_size))
        sums, own = Counter[str](), self._metrics["eval"]
        self.model.eval()
        for number in range(batches):
            batch = [self.rows.heldout[row] for row in rows[number::batches]]
            inputs = self._prepare_inputs(self.data_collator(batch))
            own.clear()
            with self.compute_loss_context_manager():
                loss = self.compute_loss(self.model_wrapped, inputs)
            figures = {ours: own[name][-1] for name, ours in FIGURES.items() if own.get(name)}
            for name, value in {"loss": float(loss), **figures}.items():
                sums[name] += value * len(batch) / len(rows)
        own.clear()
        self.model.train()
        return dict(sums)


def build_on_pairs(
    trainer: type[PreferenceTrainer],
    arguments: type[TrainingArguments],
    context: StageContext[Any],
    model: PreTrainedModel,
    reference: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Learned,
    shape: tuple[int, int],
    data_collator: Any = None,
    **loss: Any,
) -> PreferenceTrainer:
    """Return a trainer on pairs; `loss` are the arguments of TRL's that one loss alone has."""
    return trainer(
        context=context,
        rows=rows,
        model=model,
        reference=reference,
        processing_class=tokenizer,
        data_collator=data_collator,
        args=trainer_arguments(
            arguments,
            context,
            shape,
            activation_checkpointing=context.settings.gradient_checkpointing,
            remove_unused_columns=False,
            num_train_epochs=1,
            max_length=None,
            beta=context.settings.beta,
            **loss,
        ),
    )


class DpoTrainer(PreferenceTrainer, DPOTrainer):  # type: ignore[misc]
    """DPOTrainer on pairs of rankings."""


def build_trainer(
    context: StageContext[DpoSettings],
    model: PreTrainedModel,
    reference: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Learned,
    shape: tuple[int, int],
) -> PreferenceTrainer:
    """Return a trainer that is ready to train or to resume."""
    settings = context.settings
    return build_on_pairs(
        DpoTrainer, DPOConfig, context, model, reference, tokenizer, rows, shape,
        loss_type=[settings.loss], label_smoothing=settings.label_smoothing,
    )  # fmt: skip
