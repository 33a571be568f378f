"""Trains by TRL's trainers on the processes of a launch; no test itself.

As a command: `FOLDER MODE...`, once on each process, with torch's RANK, WORLD_SIZE and so on in the
environment. A mode is "ddp" or "fsdp" (one process: "alone"). `FOLDER` holds `policy`,
`rankings.jsonl` and `prompts.jsonl`; each kind runs in `FOLDER/<mode>/<kind>`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

KINDS = {
    "alone": ("dpo", "kto", "grpo", "rloo"),
    "ddp": ("dpo", "kto", "grpo", "rloo"),
    "fsdp": ("dpo",),
}
"""Policies whose weights are sharded don't sample."""


def settings_of(kind: str, inputs: Path) -> Any:
    """Return a stage's settings, with gradient accumulation."""
    from pipeline.stages.dpo.settings import DpoSettings
    from pipeline.stages.grpo.settings import GrpoSettings
    from pipeline.stages.kto.settings import KtoSettings
    from pipeline.stages.rloo.settings import RlooSettings

    common: dict[str, Any] = {
        "learning_rate": 3e-3, "epsilon": 1e-5, "batch_size": 8, "micro_batch_size": 2,
        "save_every": 0, "bf16": False,
    }  # fmt: skip
    if kind in ("dpo", "kto"):
        # KTO's KL is of a pass and the mean over processes: after a first step, in which it is 0,
        # two processes rightly part from one.
        learns, epochs = (DpoSettings, 1.0) if kind == "dpo" else (KtoSettings, 0.25)
        return learns(
            model=str(inputs / "policy"), train=[{"path": str(inputs / "rankings.jsonl")}],
            heldout_share=0.2, log_every=1, evaluate_every=2, epochs=epochs, **common,
        )  # fmt: skip
    made: type[GrpoSettings | RlooSettings] = GrpoSettings if kind == "grpo" else RlooSettings
    return made(
        policy=str(inputs / "policy"), prompts=[{"path": str(inputs / "prompts.jsonl")}],
        reward=[{"rule": "length", "options": {"target": 3}}], normalize_scores=True,
        max_prompt_tokens=20, max_new_tokens=5, group_size=4, episodes=24, **common,
    )  # fmt: skip


def learn(kind: str, inputs: Path, folder: Path, rank: int, size: int) -> None:
    """Run a stage."""
    from importlib import import_module

    import torch.distributed as dist

    from pipeline.contract.console import Console
    from pipeline.contract.context import StageContext
    from pipeline.contract.handover import HandOver
    from pipeline.contract.metrics_log import MetricsLog
    from pipeline.contract.resume import ResumeStore

    settings = settings_of(kind, inputs)
    (folder / "work").mkdir(parents=True, exist_ok=True)
    barrier = dist.barrier if size > 1 else lambda: None
    barrier()
    policy = str(inputs / "policy")
    import_module(f"pipeline.stages.{kind}.stage").run(
        StageContext(
            name=kind, settings=settings, seed=0, folder=folder,
            inputs={"model": policy, "policy": policy},
            hand=HandOver(kind, {kind: settings}, lambda _: None),
            resume=ResumeStore(folder / "resume", "key", rank=rank, barrier=barrier),
            metrics=MetricsLog(folder / "metrics.jsonl", enabled=rank == 0),
            console=Console(quiet=True), rank=rank, world_size=size,
        )
    )  # fmt: skip
    barrier()


def main(folder: Path, modes: list[str]) -> None:
    """Run all kinds in all modes."""
    import torch
    from accelerate import PartialState

    torch.set_num_threads(1)
    state = PartialState(cpu=True)
    for mode in modes:
        os.environ["ACCELERATE_USE_FSDP"] = str(mode == "fsdp").lower()
        os.environ["FSDP_VERSION"] = "2"
        os.environ.pop("RLHF_SHARD_WEIGHTS", None)
        for kind in KINDS[mode]:
            learn(kind, folder, folder / mode / kind, state.process_index, state.num_processes)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
