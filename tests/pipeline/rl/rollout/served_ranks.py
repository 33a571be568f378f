"""One of several processes whose PPO samples by a server; started by test_vllm.py.

    python served_ranks.py START FOLDER URL UPDATES

Leaves `rank-<n>.json` (the error that ended it, or none) and rank 0 the policy's weights.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import torch

from data.errors import RolloutError
from pipeline.models.load import load_tokenizer, save_model
from pipeline.rl.ppo.build import build_ppo
from pipeline.rl.ppo.loop import run_update
from pipeline.rl.processes import World, make_accelerator
from pipeline.rl.prompts import PreparedPrompt
from pipeline.rl.rewards import Term
from pipeline.rl.settings import Hyperparameters
from pipeline.training.accelerator import take_over_sharding
from reward.computed.rules import rule


def main(start: str, out: str, url: str, updates: str) -> None:
    torch.set_num_threads(1)
    take_over_sharding()
    folder, ranks = Path(out), World(make_accelerator(bf16=False), 0)
    ppo = build_ppo(
        policy_source=start,
        reference_source=None,
        value_source=start,
        scorers=[Term(rule("length", target=5))],
        tokenizer=load_tokenizer(start),
        prompts=[PreparedPrompt("?", [60 + i] * (1 + i % 4)) for i in range(10)],
        pretraining=None,
        hyper=Hyperparameters(
            episodes=24,
            batch_size=8,
            epochs=1,
            max_new_tokens=6,
            temperature=1.0,
            learning_rate=1e-3,
            rollout={"engine": "vllm", "url": url, "timeout": 240},
        ),
        world=ranks,
        scratch=folder / "work",
    )
    told = None
    try:
        for _ in range(int(updates)):
            run_update(ppo)
    except RolloutError as error:
        told = str(error)
    with ppo.optimization.policy.full_module() as policy:
        if ranks.rank == 0:
            save_model(policy.model, None, folder / "model")
    (folder / f"rank-{ranks.rank}.json").write_text(
        json.dumps({"error": told, "updates": ppo.update, "sharded": ranks.sharded})
    )
    # The process group may go with nothing else that holds it: a DDP module that is collected later
    # waits for the group's threads while they wait for the interpreter.
    del ppo, policy
    gc.collect()
    ranks.accelerator.end_training()


main(*sys.argv[1:])
