"""Stage `kto`: trains a policy on answers that are desirable or not, without a reward model.

Reference: Ethayarajh et al. 2024 (KTO): batches of 32 answers, learning rate 5e-7, beta 0.1; of
preferences the better answer is desirable and the other is not.

TRL's KTOTrainer trains; departures from it stand in `trainer.py`. Departures from the paper: AdamW
and the schedule of all stages; pairs come in rounds as in a dpo stage; the KL is estimated over a
pass of one process (`micro_batch_size`), and is the mean over processes.

Leaves `model/`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.contract.kind import StageKind
from pipeline.stages.dpo.stage import check, learn
from pipeline.stages.kto.settings import KtoSettings

if TYPE_CHECKING:
    from pipeline.contract.context import StageContext


def run(context: StageContext[KtoSettings]) -> dict[str, float | int | str]:
    """Train and publish; return the final metrics."""
    from pipeline.stages.kto.trainer import build_trainer

    return learn(context, build_trainer)


KIND = StageKind(
    name="kto",
    settings=KtoSettings,
    run=run,
    check=check,
    provides=frozenset({"policy", "tokenizer"}),
    main_metric="eval/margin",
    version=1,
)
