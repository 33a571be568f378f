"""Pretrains by each objective on the processes of a launch; no test itself.

As a command: `FOLDER MODE...`, once on each process, with torch's RANK, WORLD_SIZE and so on in the
environment. A mode is "ddp" or "fsdp" (one process: "alone"). `FOLDER` holds `tokenizer-OBJECTIVE`,
`teacher` and `text.jsonl`; each runs in `FOLDER/<mode>/<objective>`, a student of the teacher in
`FOLDER/<mode>/distill`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

LEARNERS = {"masked": "bert", "span_corruption": "t5", "denoising": "bart"}


def settings_of(name: str, inputs: Path) -> Any:
    """Return a stage's settings: gradient accumulation, uneven rows and last micro-batches."""
    from pipeline.stages.distill.settings import DistillSettings
    from pipeline.stages.pretrain.settings import PretrainSettings

    common: dict[str, Any] = {
        "train": [{"path": str(inputs / "text.jsonl")}], "heldout_share": 0.2, "steps": 6,
        "context_length": 32, "batch_size": 8, "micro_batch_size": 3, "learning_rate": 3e-3,
        "epsilon": 1e-5, "log_every": 1, "evaluate_every": 3, "save_every": 0, "bf16": False,
    }  # fmt: skip
    if name == "distill":
        return DistillSettings(teacher=str(inputs / "teacher"), objective="masked", **common)
    if name == "masked":
        common["masking"] = {"next_sentence": True, "whole_words": True}
    objective: Any = name
    return PretrainSettings(
        objective=objective, architecture=LEARNERS[name],
        tokenizer=str(inputs / f"tokenizer-{name}"), hidden_size=16, layers=2, heads=2,
        intermediate_size=32, **common,
    )  # fmt: skip


def learn(name: str, inputs: Path, folder: Path, rank: int, size: int) -> None:
    """Run a stage."""
    from importlib import import_module

    import torch.distributed as dist

    from pipeline.contract.console import Console
    from pipeline.contract.context import StageContext
    from pipeline.contract.handover import HandOver
    from pipeline.contract.metrics_log import MetricsLog
    from pipeline.contract.resume import ResumeStore

    settings = settings_of(name, inputs)
    given = "teacher" if name == "distill" else "tokenizer"
    (folder / "work").mkdir(parents=True, exist_ok=True)
    barrier = dist.barrier if size > 1 else lambda: None
    barrier()
    import_module(f"pipeline.stages.{settings.kind}.stage").run(
        StageContext(
            name="base", settings=settings, seed=0, folder=folder,
            inputs={given: getattr(settings, given)},
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
        for name in (*LEARNERS, "distill"):
            own = folder / mode / name
            learn(name, folder, own, state.process_index, state.num_processes)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
