"""Stage `rloo`: trains a policy against a reward, by REINFORCE with the other answers' mean.

Reference: Ahmadian et al. 2024 (RLOO): of k answers to a prompt (2 or 4) each one's baseline is the
mean score of the others; the KL of the whole response (k1) is taken off the score.

TRL's RLOOTrainer trains; departures from it stand in `grpo/trainer.py`. Departures from the paper:
AdamW and the schedule of all stages, linear to 0; the ratio is clipped, which changes nothing as
long as an update is one step.

Leaves what a grpo stage leaves; `objective/kl` is the k1 that the reward has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.contract.kind import StageKind
from pipeline.stages.grpo.stage import check, learn
from pipeline.stages.rloo.settings import RlooSettings

if TYPE_CHECKING:
    from pipeline.contract.context import StageContext


def run(context: StageContext[RlooSettings]) -> dict[str, float | int | str]:
    """Train and publish; return the final metrics."""
    from pipeline.stages.rloo.trainer import build_trainer

    return learn(context, build_trainer)


KIND = StageKind(
    name="rloo",
    settings=RlooSettings,
    run=run,
    check=check,
    provides=frozenset({"policy", "tokenizer"}),
    main_metric="objective/scores",
    version=1,
)
