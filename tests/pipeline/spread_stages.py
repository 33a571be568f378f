"""Runs the four training stages on the processes of a launch; no test itself.

As a command: `FOLDER MODE...`, once on each process, with torch's RANK, WORLD_SIZE and so on in the
environment. A mode is "ddp" or "fsdp" (one process: "alone"). Each stage runs in
`FOLDER/<mode>-<processes>/<stage>`, and what was seen on rank 0 goes to `facts.json` beside them.
Then every stage goes on, in `<stage>-elsewhere`, from the state that another number of processes
left half-way, where ELSEWHERE names it: one process from that of two sharded ones (or two, where
there are adapters), all others from that of one. In the modes "compiled" (DDP, where there are
several) and "compiled_fsdp" the stages that can be compiled are, and none goes on elsewhere. A mode
"zero2" or "zero3", alone, is DeepSpeed, under which stages go on from a state of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from string import ascii_letters, digits
from typing import Any

LOGS = ("metrics.jsonl", "samples.jsonl", "evaluation.jsonl")
STAGES = ("pretrain", "sft", "reward", "ppo", "shared", "variant")
"""The last three are PPO, the last with other settings."""
ADAPTERS = ("adapter", "trunk", "read")
"""A reward model and PPO with adapters, which are not trained on sharded weights."""
ELSEWHERE = {
    "alone": (*STAGES[:-1], *ADAPTERS),
    "fsdp": STAGES[:-1],
    "ddp": ("pretrain", "ppo", *ADAPTERS),
    "zero2": STAGES[:3],
    "zero3": STAGES[:3],
}
"""What goes on, by mode; of whole weights those of which a loop of their own takes the state up."""
COMPILED = {"compiled": ("pretrain", "reward", "ppo", *ADAPTERS), "compiled_fsdp": ("pretrain",)}
"""Stages with a setting `compile`, with whole and with sharded weights, by mode."""


class Often:
    """A form of calls that every second response makes with its second token, whatever it is."""

    def __init__(self, *_: Any) -> None:
        pass

    def asked(self, ids: Any, begin: int, *, ended: bool) -> Any:
        from pipeline.generation.tools.calls import Asked

        calls = len(ids) == 2 and ids[0] % 2 and not ended
        return [Asked("calculator", ["6*7"])] if calls else []

    def clean(self, result: str) -> str:
        return result

    def answer(self, calls: Any) -> list[int]:
        return [70, 71]

    def text(self, calls: Any) -> None:
        return None


def settings_of(stage: str, inputs: Path) -> Any:
    """Return a stage's settings: gradient accumulation, uneven rows, uneven last batches."""
    from pipeline.stages.ppo.settings import PpoSettings
    from pipeline.stages.pretrain.settings import PretrainSettings
    from pipeline.stages.reward.settings import RewardSettings
    from pipeline.stages.sft.settings import SftSettings

    policy, reward = str(inputs / "policy"), str(inputs / "reward")
    text, prompts = {"path": str(inputs / "text.jsonl")}, {"path": str(inputs / "prompts.jsonl")}
    if stage == "pretrain":
        return PretrainSettings(
            model=policy, train=[text], heldout_share=0.2, steps=6, context_length=32,
            batch_size=4, micro_batch_size=1, learning_rate=1e-2, log_every=1, evaluate_every=3,
            save_every=4, attend_across_documents=False, max_gradient_norm=0.5, bf16=False,
        )  # fmt: skip
    if stage == "sft":
        return SftSettings(
            model=policy, train=[{"path": str(inputs / "talks.jsonl")}], heldout_share=0.2,
            epochs=2, batch_size=8, micro_batch_size=2, learning_rate=1e-2, log_every=1,
            evaluate_every=2, save_every=2, max_gradient_norm=0.5, bf16=False,
        )  # fmt: skip
    if stage in ("reward", "adapter"):
        # An adapter's gradient jumps from 0.7 to 30 with 1e-2, and the rounding of it with it.
        rate = 1e-2 if stage == "reward" else 3e-3
        return RewardSettings(
            model=policy, train=[{"path": str(inputs / "rankings.jsonl")}], heldout_share=0.2,
            epochs=2, prompts_per_step=8, tokens_per_micro_batch=100, learning_rate=rate,
            evaluate_every=2, save_every=2, max_gradient_norm=0.5, bf16=False,
            # Adam blows a gradient that is all rounding up to a step of the learning rate: other
            # micro-batches move a weight in 5,000 by 3e-5 with 1e-8, on one process too.
            epsilon=1e-5, lora={"rank": 4} if stage == "adapter" else None,
        )  # fmt: skip
    trunk = {"trunk": "shared", "lora": {"rank": 4}}
    # Five prompts, which two processes answer three each of.
    evaluated = {
        "evaluate_every": 2,
        "evaluation_prompts": [{"path": str(inputs / "talks.jsonl"), "limit": 5}],
        "evaluation_reward": ({"rule": "length", "options": {"target": 3}},),
    }
    ways: dict[str, dict[str, Any]] = {
        # Tokens cut the episodes of two processes into unlike numbers of pieces.
        "ppo": {"value": "separate", "tokens_per_micro_batch": 60, **evaluated},
        # What is reused leaves the values to be computed alone, also where weights are sharded.
        "shared": {"value": "shared", "reuse_logprobs": True, "tools": ["calculator"]},
        "variant": {
            "value": "separate", "score_position": "past_last", "early_stop_kl": 9.0, "epochs": 2,
            "whiten_advantages": "minibatch", "gradient_checkpointing": True, "adaptive_kl": None,
            # Responses that end long before `max_new_tokens`, as two processes' longest do apart.
            "max_new_tokens": 60, "end_tokens": tuple(ascii_letters + digits), "sample_count": 8,
        },
        "trunk": {"value": "shared", **trunk},
        "read": {
            "value": "reward", "reuse_logprobs": True, **trunk, **evaluated,
            "tools": ["calculator"],
        },
    }  # fmt: skip
    model = str(inputs / "attached" / "model") if stage == "read" else reward
    common: dict[str, Any] = {
        "policy": policy,
        "reward": ({"model": model}, {"rule": "length", "options": {"target": 3}, "weight": 0.5}),
        "prompts": [prompts], "episodes": 24, "batch_size": 8, "minibatches": 2, "epochs": 1,
        "max_new_tokens": 6, "temperature": 1.0, "learning_rate": 3e-3,
        "max_gradient_norm": 0.5, "whiten_rewards": True, "normalize_scores": True,
        "adaptive_kl": {"horizon": 100}, "ema_decay": 0.9, "entropy_coefficient": 0.01,
        "value_warmup_updates": 1, "ptx_coefficient": 0.3, "ptx_rows_per_episode": 0.4,
        "pretraining_sources": [text], "pretraining_row_tokens": 9, "save_every": 2,
        "sample_every": 1, "bf16": False,
    }  # fmt: skip
    if stage != "ppo":
        common["micro_batch_size"] = 3
    return PpoSettings(**{**common, **ways[stage]})


def run_stage(
    stage: str, inputs: Path, folder: Path, rank: int, size: int, *, compiled: bool = False
) -> None:
    """Run a stage in a folder, on from whatever is there."""
    from importlib import import_module

    import torch.distributed as dist

    from pipeline.contract.console import Console
    from pipeline.contract.context import StageContext
    from pipeline.contract.handover import HandOver
    from pipeline.contract.metrics_log import MetricsLog
    from pipeline.contract.resume import ResumeStore

    settings = settings_of(stage, inputs)
    if compiled:
        settings = settings.model_copy(update={"compile": True})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "work").mkdir(exist_ok=True)
    barrier = dist.barrier if size > 1 else lambda: None
    barrier()
    logs = [folder / name for name in LOGS]
    name = "policy" if settings.kind == "ppo" else "model"
    given = {name: str(inputs / "policy")}
    if settings.kind == "ppo":
        attached = inputs / "attached" / "model"
        given["reward.0.model"] = str(attached if stage in ADAPTERS else inputs / "reward")
    context = StageContext(
        name=stage, settings=settings, seed=0, folder=folder, inputs=given,
        hand=HandOver(stage, {stage: settings}, lambda _: None),
        resume=ResumeStore(folder / "resume", "key", tracked=logs, rank=rank, barrier=barrier),
        metrics=MetricsLog(logs[0], enabled=rank == 0), console=Console(quiet=True),
        rank=rank, world_size=size,
    )  # fmt: skip
    import_module(f"pipeline.stages.{settings.kind}.stage").run(context)
    barrier()


def local(parameter: Any) -> Any:
    """Return what this process holds of a parameter."""
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


def watch_modules() -> list[dict[str, Any]]:
    """Note of every module that is prepared which type its parameters have."""
    from torch import nn

    from pipeline.training.accelerator import TrainingAccelerator

    seen: list[dict[str, Any]] = []
    honest = TrainingAccelerator.prepare

    def noting(self: Any, *objects: Any, **options: Any) -> Any:
        prepared = honest(self, *objects, **options)
        for thing in prepared if isinstance(prepared, tuple) else (prepared,):
            if isinstance(thing, nn.Module):
                kinds = sorted({type(p).__name__ for p in thing.parameters()})
                own = sum(
                    getattr(p, "to_local", lambda p=p: p)().numel() for p in thing.parameters()
                )
                everyones = sum(p.numel() for p in thing.parameters())
                seen.append({"class": type(thing).__name__, "parameters": kinds,
                             "share": own / max(1, everyones)})  # fmt: skip
        return prepared

    TrainingAccelerator.prepare = noting  # type: ignore[method-assign]
    return seen


def watch_pieces() -> list[int]:
    """Note how many micro-batches are made by splitting, so that all processes have as many."""
    from pipeline.rl.micro_batches import split
    from pipeline.rl.ppo import experience

    seen: list[int] = []

    def noting(pieces: Any, lengths: Any, *, count: int) -> Any:
        seen.append(count - len(pieces))
        return split(pieces, lengths, count=count)

    experience.split = noting  # type: ignore[attr-defined]
    return seen


def go_on_elsewhere(source: Path, target: Path, rank: int) -> None:
    """Copy what another launch left half-way."""
    if rank == 0:
        for name in ("work", "candidates"):
            if (source / name).is_dir():
                shutil.copytree(source / name, target / name, dirs_exist_ok=True)
        state = min((source / "resume").glob("step-*"))
        shutil.copytree(state, target / "resume" / state.name)
        for name in LOGS:
            if (source / name).is_file():
                shutil.copy(source / name, target / name)


def main(folder: Path, modes: list[str]) -> None:
    """Run all stages in all modes, then go on from the states of the other launch."""
    import torch

    torch.set_num_threads(1)
    import datasets
    from accelerate.utils import gather_object
    from torch._dynamo.utils import counters

    from pipeline.generation.tools import toolbox
    from pipeline.training.accelerator import join_processes

    datasets.disable_progress_bars()
    toolbox.InlineForm = Often  # type: ignore[assignment, attr-defined]
    deepspeed = modes[0].startswith("zero")
    if deepspeed:
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        os.environ["ACCELERATE_DEEPSPEED_ZERO_STAGE"] = modes[0][-1]
        os.environ["ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"] = "true"
    state = join_processes(max_norm=0.5)
    rank, size = state.process_index, state.num_processes
    seen, more = watch_modules(), watch_pieces()
    for mode in modes:
        # What `accelerate launch` makes of a configuration with FSDP2, or without.
        os.environ["ACCELERATE_USE_FSDP"] = str(mode.endswith("fsdp")).lower()
        os.environ["FSDP_VERSION"] = "2"
        os.environ.pop("RLHF_SHARD_WEIGHTS", None)
        own = folder / f"{mode}-{size}"
        seen.clear()
        stages = COMPILED.get(mode, STAGES if mode == "fsdp" else STAGES + ADAPTERS)
        stages = STAGES[:3] if deepspeed else stages
        more.clear()
        for stage in stages:
            torch.compiler.reset()  # each stage has a process of its own where a recipe runs
            counters.clear()
            run_stage(stage, folder, own / stage, rank, size, compiled=mode in COMPILED)
            if mode in COMPILED:
                assert counters["stats"]["unique_graphs"], f"{stage} compiled nothing"
        if mode in COMPILED:
            continue
        facts = {"processes": size, "modules": seen, "split": gather_object([sum(more)])}
        if rank == 0:
            (own / "facts.json").write_text(json.dumps(facts))
        for stage in ELSEWHERE[mode]:
            another = "ddp-2" if stage in ADAPTERS else "fsdp-2"
            other = own if deepspeed else folder / (another if size == 1 else "alone-1")
            wait_for(other / "facts.json")
            target = own / f"{stage}-elsewhere"
            target.mkdir(exist_ok=True)
            go_on_elsewhere(other / stage, target, rank)
            state.wait_for_everyone()
            run_stage(stage, folder, target, rank, size)
    state.wait_for_everyone()
    state.destroy_process_group()


def wait_for(path: Path) -> None:
    until = time.monotonic() + 1200
    while not path.is_file():
        if time.monotonic() > until:
            raise TimeoutError(f"{path} never came")
        time.sleep(0.2)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
