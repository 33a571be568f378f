"""Trains a tiny model in a process of its own, which a test kills; no test itself.

Run by path with `FOLDER`, `TOKENIZER`, `CORPUS`, `STEPS`, `OBJECTIVE` and `DIE` as globals. `DIE`
is None or (point, n): the process kills itself when it comes to the point for the n-th time.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import pipeline.contract.resume
import pipeline.training.state
from pipeline.contract.console import Console
from pipeline.contract.context import StageContext
from pipeline.contract.handover import HandOver
from pipeline.contract.metrics_log import MetricsLog
from pipeline.contract.resume import ResumeStore
from pipeline.stages.pretrain.settings import PretrainSettings
from pipeline.stages.pretrain.stage import run

# Points inside a save: (module, name), in the order in which a save comes to them.
POINTS: dict[str, tuple[Any, str]] = {
    "before weights": (pipeline.training.state, "save_weights"),
    "before optimiser": (pipeline.training.state, "save_state"),
    "before digest": (pipeline.contract.resume, "sha256"),
    "before manifest": (pipeline.contract.resume, "write_atomically"),
    "before rename": (os, "replace"),
    "before flush": (pipeline.contract.resume, "sync_folder"),
    "before pruning": (shutil, "rmtree"),
}


def die_at(point: str, count: int) -> None:
    """Kill this process right before a function is called for the n-th time."""
    module, name = POINTS[point]
    honest: Callable[..., Any] = getattr(module, name)
    left = count

    def armed(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return honest(*args, **kwargs)

    setattr(module, name, armed)


def train(folder: Path, tokenizer: str, corpus: str, steps: int, objective: Any) -> None:
    """Run the stage in a folder, on from whatever is there."""
    architecture: Any = {"causal": "llama", "masked": "bert", "denoising": "bart"}[objective]
    settings = PretrainSettings(
        objective=objective, architecture=architecture,
        train=[{"path": corpus}], tokenizer=tokenizer, heldout_share=0.2, steps=steps,
        hidden_size=16, layers=1, heads=2, intermediate_size=32, context_length=32, batch_size=2,
        learning_rate=1e-2, log_every=2, evaluate_every=10, save_every=2,
    )  # fmt: skip
    folder.mkdir(exist_ok=True)
    log = folder / "metrics.jsonl"
    run(
        StageContext(
            name="base",
            settings=settings,
            seed=0,
            folder=folder,
            inputs={"tokenizer": tokenizer},
            hand=HandOver("base", {"base": settings}, lambda _: None),
            resume=ResumeStore(folder / "resume", "key", tracked=[log]),
            metrics=MetricsLog(log),
            console=Console(quiet=True),
        )
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    arguments = globals()
    if arguments["DIE"] is not None:
        die_at(*arguments["DIE"])
    train(
        Path(arguments["FOLDER"]),
        arguments["TOKENIZER"],
        arguments["CORPUS"],
        arguments["STEPS"],
        arguments["OBJECTIVE"],
    )
