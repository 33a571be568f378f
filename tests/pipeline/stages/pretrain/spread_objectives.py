"""Pretrains by each objective on the processes of a launch; no test itself.

As a command: `FOLDER MODE...`, once on each process, with torch's RANK, WORLD_SIZE and so on in the
environment. A mode is "ddp" or "fsdp" (one process: "alone"). `FOLDER` holds `tokenizer-OBJECTIVE`
and `text.jsonl`; each runs in `FOLDER/<mode>/<objective>`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

LEARNERS = {"masked": "bert", "span_corruption": "t5", "denoising": "bart"}


def pretrain(objective: Any, inputs: Path, folder: Path, rank: int, size: int) -> None:
    """Run the stage: gradient accumulation, uneven rows, uneven last micro-batches."""
    import torch.distributed as dist

    from pipeline.contract.console import Console
    from pipeline.contract.context import StageContext
    from pipeline.contract.handover import HandOver
    from pipeline.contract.metrics_log import MetricsLog
    from pipeline.contract.resume import ResumeStore
    from pipeline.stages.pretrain.settings import PretrainSettings
    from pipeline.stages.pretrain.stage import run

    tokenizer = str(inputs / f"tokenizer-{objective}")
    masking = {"next_sentence": True, "whole_words": True} if objective == "masked" else {}
    settings = PretrainSettings(
        objective=objective, architecture=LEARNERS[objective], tokenizer=tokenizer,
        train=[{"path": str(inputs / "text.jsonl")}], heldout_share=0.2, masking=masking,
        hidden_size=16, layers=2, heads=2, intermediate_size=32, context_length=32, steps=6,
        batch_size=8, micro_batch_size=3, learning_rate=3e-3, epsilon=1e-5, log_every=1,
        evaluate_every=3, save_every=0, bf16=False,
    )  # fmt: skip
    (folder / "work").mkdir(parents=True, exist_ok=True)
    barrier = dist.barrier if size > 1 else lambda: None
    barrier()
    run(
        StageContext(
            name="base", settings=settings, seed=0, folder=folder, inputs={"tokenizer": tokenizer},
            hand=HandOver("base", {"base": settings}, lambda _: None),
            resume=ResumeStore(folder / "resume", "key", rank=rank, barrier=barrier),
            metrics=MetricsLog(folder / "metrics.jsonl", enabled=rank == 0),
            console=Console(quiet=True), rank=rank, world_size=size,
        )
    )  # fmt: skip
    barrier()


def main(folder: Path, modes: list[str]) -> None:
    """Run all objectives in all modes."""
    import torch
    from accelerate import PartialState

    torch.set_num_threads(1)
    state = PartialState(cpu=True)
    for mode in modes:
        os.environ["ACCELERATE_USE_FSDP"] = str(mode == "fsdp").lower()
        os.environ["FSDP_VERSION"] = "2"
        os.environ.pop("RLHF_SHARD_WEIGHTS", None)
        for objective in LEARNERS:
            own = folder / mode / objective
            pretrain(objective, folder, own, state.process_index, state.num_processes)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
