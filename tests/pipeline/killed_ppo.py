"""Starts the processes of a stage from one that has imported everything; no test itself.

Each line on stdin is `{"run": ..., "stage": ..., "key": ..., "size": ...}`; the answer is the
ids of as many new processes, each of which does what `accelerate launch` has the command do on a
rank. They are forked, so that one restart of many does not cost the imports of all.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers

import pipeline.models.load
import pipeline.rl.ppo.build
import pipeline.rl.ppo.train
import pipeline.stages.ppo.stage
import reward.learned.on_trunk
from pipeline.recipe.load import load_recipe
from pipeline.run.execution import run_as_rank
from pipeline.run.runner import RESOLVED

IMPORTED = (datasets, transformers, pipeline.models.load, pipeline.rl.ppo, pipeline.stages, reward)


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def be_rank(rank: int, order: dict[str, Any], port: str) -> None:
    """Do what the command does on a rank, then end; never returns."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        run, size = Path(order["run"]), order["size"]
        log = os.open(run / f"warm-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if size > 1:
            os.environ |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            }  # fmt: skip
        recipe = load_recipe(run / RESOLVED)
        run_as_rank(recipe, order["stage"], run, order["key"], quiet=True)
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Answer every order, until there are no more."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system buries them
    for line in sys.stdin:
        order, port, started = json.loads(line), free_port(), []
        for rank in range(order["size"]):
            child = os.fork()
            if child == 0:
                be_rank(rank, order, port)
            started.append(child)
        print(json.dumps(started), flush=True)


if __name__ == "__main__":
    main()
