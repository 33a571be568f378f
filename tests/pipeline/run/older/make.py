"""Makes `runs/older` beside this file with the build that is installed; no test itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from pipeline.cli.main import main
from pipeline.contract.resume import ResumeStore

STAGES = ["tok", "base", "sft", "pairs", "sampled", "reward", "best", "ppo", "evaluate"]
CUT = ["base_cut", "sft_cut", "reward_cut", "ppo_cut"]


def run_stage(stage: str) -> None:
    """Run a stage by the command; one that is to be cut off is killed behind its first state."""
    torch.set_num_threads(1)
    honest = ResumeStore.save

    def killed(self: ResumeStore, step: int, write: Callable[[Path], None]) -> Path:
        honest(self, step, write)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("killed")

    if stage in CUT:
        ResumeStore.save = killed  # type: ignore[method-assign]
    sys.argv = ["rlhf", "run", "older.yaml", "--only", stage, "--quiet"]
    main()


if __name__ == "__main__":
    os.chdir(Path(__file__).parent)
    if len(sys.argv) > 1:
        run_stage(sys.argv[1])
    else:
        for stage in STAGES + CUT:
            done = subprocess.run([sys.executable, __file__, stage])
            assert done.returncode == (-signal.SIGKILL if stage in CUT else 0), stage
