"""One model of full size for a whole run of PPO: the trunk and what is attached to it.

The reference is the trunk without adapters, the policy an adapter with the value head on top of
its hidden states, each reward model that was trained so another adapter with its head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.contract.settings import Lora
from pipeline.rl.policy import POLICY
from pipeline.rl.processes import World, derived_seed
from pipeline.rl.rewards import Term
from reward.learned.on_trunk import attach
from reward.network.lora import Trunk
from reward.scorer import Scorer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TrunkReward:
    """A reward model that was published with an adapter, to be attached to the trunk.

    Attributes:
        folder: its `model/`; the adapter stands beside it.
        name: what reports call it.
        batch_size: texts of one pass.
        batch_tokens: tokens of one, padding included, instead of `batch_size`.
    """

    folder: str | Path
    name: str
    batch_size: int
    batch_tokens: int | None = None


def make_trunk(model: PreTrainedModel, lora: Lora, *, base: str | Path, seed: int) -> Trunk:
    """Freeze a model, which came from `base`, and put the policy's adapter onto it.

    Raises:
        ModelError: the model has no layers of the named targets.
    """
    trunk = Trunk(model, base=str(base))
    trunk.add(POLICY, **lora.model_dump(), seed=derived_seed(seed, "adapter"))
    return trunk


def with_rewards(
    trunk: Trunk | None,
    rewards: Sequence[Term[Scorer | TrunkReward]],
    *,
    world: World,
) -> list[Term[Scorer]]:
    """Attach those rewards to the trunk that are adapters; return all as scorers."""
    terms: list[Term[Scorer]] = []
    for place, term in enumerate(rewards):
        scorer = term.scorer
        if isinstance(scorer, TrunkReward):
            assert trunk is not None
            model = attach(
                trunk,
                scorer.folder,
                name=f"reward{place}",
                device=world.device,
                batch_size=scorer.batch_size,
            )
            model.name, model.batch_tokens = scorer.name, scorer.batch_tokens
            scorer = model
        terms.append(Term(scorer, term.weight, term.clip, term.normalize))
    return terms
