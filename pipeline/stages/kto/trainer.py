"""TRL's KTOTrainer on the host of all of TRL's trainers.

What differs from TRL beside what `training/trl.py` and `dpo/trainer.py` tell, and why:
- A pass has as many desirable as undesirable answers, in an order drawn anew each round. TRL's rows
  of pairs are all desirable ones first, which it takes in order and refuses to shuffle.
- The KL is of prompts with answers to others: each gets that of the pair before it in the pass, as
  TRL means it. TRL puts these together before training, by their places in batches of training, in
  evaluation too, whatever its batches are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trl import KTOConfig, KTOTrainer
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from pipeline.stages.dpo.trainer import Learned, PreferenceTrainer, build_on_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pipeline.contract.context import StageContext
    from pipeline.stages.kto.settings import KtoSettings


@dataclass(frozen=True)
class UnpairedCollator:
    """Makes pairs into desirable answers and, behind them, undesirable ones."""

    pad_token_id: int

    def __call__(self, pairs: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
        """Return what TRL's KTO takes of a pass."""
        rows = [
            {
                "prompt_ids": pair["prompt_ids"],
                "completion_ids": pair[side],
                "KL_completion_ids": pairs[place - 1][side],
                "label": side == "chosen_ids",
            }
            for side in ("chosen_ids", "rejected_ids")
            for place, pair in enumerate(pairs)
        ]
        batch: dict[str, Any] = DataCollatorForUnpairedPreference(self.pad_token_id)(rows)
        return batch


class KtoTrainer(PreferenceTrainer, KTOTrainer):  # type: ignore[misc]
    """KTOTrainer on pairs of rankings."""


def build_trainer(
    context: StageContext[KtoSettings],
    model: PreTrainedModel,
    reference: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Learned,
    shape: tuple[int, int],
) -> PreferenceTrainer:
    """Return a trainer that is ready to train or to resume."""
    settings = context.settings
    return build_on_pairs(
        KtoTrainer, KTOConfig, context, model, reference, tokenizer, rows, shape,
        data_collator=UnpairedCollator(int(tokenizer.pad_token_id)),
        desirable_weight=settings.desirable_weight,
        undesirable_weight=settings.undesirable_weight,
    )  # fmt: skip
