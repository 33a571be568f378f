"""TRL's RLOOTrainer on the recipe's prompts and rewards; see `grpo/trainer.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trl import RLOOConfig, RLOOTrainer

from pipeline.stages.grpo.trainer import GroupTrainer, group_arguments
from pipeline.training.trl import trainer_arguments

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pipeline.contract.context import StageContext
    from pipeline.stages.rloo.settings import RlooSettings


class RlooTrainer(GroupTrainer, RLOOTrainer):  # type: ignore[misc]
    """RLOOTrainer on the recipe's prompts and rewards."""

    def _generate_single_turn(self, *_: Any, **__: Any) -> list[list[int]]:
        return self._answers()


def build_trainer(
    context: StageContext[RlooSettings],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    shape: tuple[int, int],
    **own: Any,
) -> GroupTrainer:
    """Return a trainer that is ready to train or to resume; `own` is a `GroupTrainer`'s."""
    arguments = group_arguments(context.settings, shape)
    return RlooTrainer(
        context=context,
        model=model,
        processing_class=tokenizer,
        args=trainer_arguments(RLOOConfig, context, shape, **arguments),
        **own,
    )
