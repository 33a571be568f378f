"""Chooses what samples the responses: this process, or a server of vLLM."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from data.storage import expand
from pipeline.generation.generate import Sampling
from pipeline.generation.tools.toolbox import toolbox
from pipeline.generation.vllm_server import VllmServer
from pipeline.rl.learner import Learner
from pipeline.rl.policy import POLICY
from pipeline.rl.processes import World
from pipeline.rl.rollout.rollout import LocalEngine, RolloutEngine
from pipeline.rl.rollout.vllm_engine import VllmEngine
from pipeline.rl.settings import Hyperparameters

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from reward.network.lora import Trunk


def make_engine(
    policy: Learner,
    trunk: Trunk | None,
    tokenizer: PreTrainedTokenizerBase,
    end_ids: Sequence[int],
    pad_id: int,
    hyper: Hyperparameters,
    world: World,
    source: str | Path,
    scratch: Path | None,
    say: Callable[[str], None] | None = None,
) -> RolloutEngine:
    """Return what samples responses.

    Args:
        policy: what is sampled from.
        trunk: what its adapter is attached to, None without one.
        tokenizer: the policy's.
        end_ids: tokens that end a response at once.
        pad_id: the padding token.
        hyper: the settings; `rollout` names the engine.
        world: the processes.
        source: what the policy started from, the model that a server must hold.
        scratch: folder for the weights on their way to a server, where the settings name none.
        say: told once of a policy that is sampled from without a cache.
    """
    end_ids = sorted(set(end_ids))
    if hyper.rollout.engine == "vllm":
        return _vllm_engine(policy, trunk, end_ids, hyper, world, source, scratch)
    return LocalEngine(
        policy=policy,
        sampling=Sampling(hyper.max_new_tokens, hyper.temperature, hyper.top_k, hyper.top_p),
        end_ids=end_ids,
        pad_id=pad_id,
        batch_size=hyper.generation_batch_size,
        world=world,
        weights=nullcontext if trunk is None else partial(trunk.merged, POLICY),
        say=say,
        tools=toolbox(hyper.tools, tokenizer, say),
    )


def _vllm_engine(
    policy: Learner,
    trunk: Trunk | None,
    end_ids: Sequence[int],
    hyper: Hyperparameters,
    world: World,
    source: str | Path,
    scratch: Path | None,
) -> VllmEngine:
    scratch = (scratch or Path.cwd()).resolve()
    given = hyper.rollout.weights
    # Runs that share a folder keep out of each other's way.
    name = f"weights-{hashlib.sha256(str(scratch).encode()).hexdigest()[:12]}"
    folder = scratch / "weights" if given is None else expand(given) / name
    return VllmEngine(
        server=VllmServer(hyper.rollout.url, hyper.rollout.timeout, str(source)),
        policy=policy,
        max_new_tokens=hyper.max_new_tokens,
        temperature=hyper.temperature,
        end_ids=end_ids,
        at_once=hyper.generation_batch_size,
        folder=folder,
        world=world,
        weights=nullcontext if trunk is None else partial(trunk.merged, POLICY),
    )
