"""Updates of PPO, timed: ours beside the trainer that TRL had until 1.12.

    python tests/benchmarks/ppo_update.py --trunks separate shared --peer PYTHON_WITH_TRL_1.12

runs each side in a process of its own, turn about, on the same shape of work: ours with a separate
value model, ours on one trunk with LoRA, and the peer. `tiny` is a Llama of
hidden size 256 with 4 layers, random weights and a vocabulary of 2,048, given 64 episodes of
32 + 64 tokens and 4 epochs; `--model` names a checkpoint instead. The first update of a process
warms up and is not counted. What is printed: seconds of an update, by phase, of the clock and of
the processor (which other work on the machine disturbs less), medians over all counted updates;
the peak of the process's memory; and the ratios. Quote ratios: times are the machine's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TINY = {
    "vocab_size": 2048, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 512,
    "tie_word_embeddings": True, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
ROOT = Path(__file__).parents[2]
TRUNKS = ("separate", "shared")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", help="`tiny` or the folder of a checkpoint")
    parser.add_argument("--trunks", nargs="+", choices=TRUNKS, default=TRUNKS)
    parser.add_argument("--reuse", action="store_true", help="set reuse_logprobs")
    parser.add_argument("--compile", action="store_true", help="compile the layers, ours")
    parser.add_argument("--rank", type=int, default=16, help="of the adapters of a shared trunk")
    parser.add_argument("--episodes", type=int, default=64, help="of one update")
    parser.add_argument("--prompt", type=int, default=32, help="tokens")
    parser.add_argument("--response", type=int, default=64, help="tokens, at most")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--micro", type=int, default=32, help="episodes of a backward pass, ours")
    parser.add_argument("--shared-micro", type=int, help="the same on a shared trunk")
    parser.add_argument("--peer-micro", type=int, default=64, help="the same, of the peer")
    parser.add_argument("--updates", type=int, default=6, help="of each process, one uncounted")
    parser.add_argument("--turns", type=int, default=1, help="processes of each side")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peer", help="Python in whose environment trl 1.12 is")
    parser.add_argument("--role", choices=[*TRUNKS, "peer"], help=argparse.SUPPRESS)
    parser.add_argument(
        "--profile", action="store_true", help="tell where the time of the last goes"
    )
    return parser.parse_args()


def main() -> None:
    given = arguments()
    if given.role is not None:
        print(json.dumps(run_side(given)))
        return
    sides = {trunk: sys.executable for trunk in given.trunks}
    if given.peer:
        sides["peer"] = given.peer
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(given.turns):
        for side, python in sides.items():
            found[side].append(process(side, python))
    rows = {side: summary(runs, given.episodes) for side, runs in found.items()}
    print(f"{'':>8}" + "".join(f"{name:>16}" for name in next(iter(rows.values()))))
    for side, row in rows.items():
        print(f"{side:>8}" + "".join(f"{value:16.3f}" for value in row.values()))
    for trunk in given.trunks if given.peer else ():
        for name in ("episodes/s", "episodes/cpu s", "peak MB"):
            print(f"{trunk}, {name}: {rows[trunk][name] / rows['peer'][name]:.2f} x")


def process(side: str, python: str) -> dict[str, Any]:
    """Run one side in a process of its own and return what it measured."""
    command = [python, __file__, "--role", side, *sys.argv[1:]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    *told, last = done.stdout.strip().splitlines()
    if "--profile" in sys.argv and side != "peer":
        print("\n".join(told))
    result: dict[str, Any] = json.loads(last)
    return result


def run_side(given: argparse.Namespace) -> dict[str, Any]:
    import torch

    torch.set_num_threads(given.threads)
    if given.role == "shared" and given.shared_micro:
        given.micro = given.shared_micro
    with tempfile.TemporaryDirectory() as scratch:
        updates = (peer if given.role == "peer" else ours)(given, Path(scratch))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"updates": updates[1:], "peak": peak}


def summary(runs: list[dict[str, Any]], episodes: int) -> dict[str, float]:
    """Return medians over all updates of all processes of a side."""
    updates = [update for run in runs for update in run["updates"]]
    medians = {k: statistics.median(u[k] for u in updates) for k in updates[0]}
    return {
        **medians,
        "episodes/s": episodes / medians["seconds"],
        "episodes/cpu s": episodes / medians["cpu s"],
        "peak MB": statistics.median(run["peak"] for run in runs),
        "n": float(len(updates)),
    }


def save_tiny(folder: Path, shape: dict[str, Any] = TINY) -> Path:
    """Save a random policy, the tiny one or of a shape, and a tokenizer of one word a token."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(folder)
    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2}
    words |= {f"w{number}": number for number in range(3, shape["vocab_size"])}
    by_word = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    by_word.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    PreTrainedTokenizerFast(tokenizer_object=by_word, **special).save_pretrained(folder)
    return folder


def prompts(given: argparse.Namespace, size: int) -> list[list[int]]:
    """Return prompts of random tokens, the same on both sides."""
    draw = random.Random(0)
    return [
        [draw.randrange(3, size) for _ in range(given.prompt)] for _ in range(4 * given.episodes)
    ]


def ours(given: argparse.Namespace, scratch: Path) -> list[dict[str, float]]:
    from pipeline.rl.ppo.loop import run_update

    ppo = assemble_ours(given, scratch)
    found: list[dict[str, float]] = []
    for update in range(given.updates):
        started, cpu = time.perf_counter(), time.process_time()
        if given.profile and update == given.updates - 1:
            from where_time_goes import tell_profile

            typical = statistics.median(row["seconds"] for row in found[1:])
            tell_profile(lambda: run_update(ppo), bf16=ppo.world.bf16, seconds=typical)
            break
        metrics = run_update(ppo).metrics
        found.append(
            {
                "generation": metrics["time/rollout"],
                "scoring": metrics["time/score"] + metrics["time/forward"],
                "optimisation": metrics["time/optimize"],
                "seconds": time.perf_counter() - started,
                "cpu s": time.process_time() - cpu,
            }
        )
    return found


def assemble_ours(given: argparse.Namespace, scratch: Path) -> Any:
    from pipeline.contract.settings import Lora
    from pipeline.models.load import load_tokenizer, pick_device, resolve_bf16
    from pipeline.rl.ppo.build import build_ppo
    from pipeline.rl.processes import World, make_accelerator
    from pipeline.rl.prompts import PreparedPrompt
    from pipeline.rl.rewards import Term
    from pipeline.rl.settings import Hyperparameters
    from pipeline.rl.trunk import TrunkReward
    from reward.learned.model import RewardModel
    from reward.learned.on_trunk import adapt, save_models

    policy = save_tiny(scratch / "policy") if given.model == "tiny" else Path(given.model)
    tokenizer = load_tokenizer(policy)
    lora = None if given.role == "separate" else Lora(rank=given.rank)
    model = RewardModel.start(policy, seed=1)
    scorer: RewardModel | TrunkReward
    if lora is None:
        model.save(scratch / "reward" / "model", trained=True)
        scorer = RewardModel.load(scratch / "reward" / "model", batch_size=given.episodes)
    else:
        trunk = adapt(model, base=str(policy), **lora.model_dump(), seed=1)
        save_models(model, trunk, scratch / "reward")
        scorer = TrunkReward(scratch / "reward" / "model", "reward", given.micro)
        del trunk
    del model
    return build_ppo(
        policy_source=policy,
        reference_source=None,
        value_source=scratch / "reward" / "model" if lora is None else None,
        scorers=[Term(scorer)],
        tokenizer=tokenizer,
        prompts=[
            PreparedPrompt(tokenizer.decode(ids), ids) for ids in prompts(given, len(tokenizer))
        ],
        pretraining=None,
        hyper=Hyperparameters(
            episodes=given.episodes * given.updates,
            batch_size=given.episodes,
            epochs=given.epochs,
            micro_batch_size=given.micro,
            max_new_tokens=given.response,
            temperature=1.0,
            reuse_logprobs=given.reuse,
            compile=given.compile,
        ),
        world=World(make_accelerator(bf16=resolve_bf16("auto", pick_device())), 0),
        lora=lora,
    )


def peer(given: argparse.Namespace, scratch: Path) -> list[dict[str, float]]:
    """Time TRL's trainer from outside: what it calls to generate, to run a model, and to log."""
    import torch
    import trl.experimental.ppo.ppo_trainer as module

    marks: list[tuple[str, float, float]] = []

    def marked(name: str, function: Any, when: Any = lambda: True) -> Any:
        def call(*positional: Any, **named: Any) -> Any:
            if when():
                marks.append((name, time.perf_counter(), time.process_time()))
            result = function(*positional, **named)
            if name == "generate":
                marks.append(("generated", time.perf_counter(), time.process_time()))
            return result

        return call

    module.batch_generation = marked("generate", module.batch_generation)
    module.forward = marked("train", module.forward, torch.is_grad_enabled)
    module.PPOTrainer.log = marked("log", module.PPOTrainer.log)
    peer_trainer(given, scratch).train()
    return list(split(marks))


def split(marks: list[tuple[str, float, float]]) -> Any:
    """Cut the marks of a run into updates."""
    starts = [place for place, mark in enumerate(marks) if mark[0] == "generate"]
    for start, end in zip(starts, [*starts[1:], len(marks)], strict=True):
        part = marks[start:end]
        at = {name: next(m for m in part if m[0] == name) for name in ("generated", "train", "log")}
        begun = part[0]
        yield {
            "generation": at["generated"][1] - begun[1],
            "scoring": at["train"][1] - at["generated"][1],
            "optimisation": at["log"][1] - at["train"][1],
            "seconds": at["log"][1] - begun[1],
            "cpu s": at["log"][2] - begun[2],
        }


def peer_trainer(given: argparse.Namespace, scratch: Path) -> Any:
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    policy = save_tiny(scratch / "policy") if given.model == "tiny" else Path(given.model)
    tokenizer = AutoTokenizer.from_pretrained(policy, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token

    def scalar() -> Any:
        model = AutoModelForSequenceClassification.from_pretrained(policy, num_labels=1)
        model.config.pad_token_id = tokenizer.pad_token_id
        return model

    settings = PPOConfig(
        output_dir=str(scratch / "out"),
        per_device_train_batch_size=given.peer_micro,
        gradient_accumulation_steps=given.episodes // given.peer_micro,
        num_mini_batches=1,
        num_ppo_epochs=given.epochs,
        total_episodes=given.episodes * given.updates,
        response_length=given.response,
        temperature=1.0,
        local_rollout_forward_batch_size=given.episodes,
        learning_rate=3e-6,
        num_sample_generations=0,
        missing_eos_penalty=None,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        gradient_checkpointing=False,
    )
    return PPOTrainer(
        args=settings,
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(policy),
        ref_model=AutoModelForCausalLM.from_pretrained(policy),
        reward_model=scalar(),
        value_model=scalar(),
        train_dataset=Dataset.from_dict({"input_ids": prompts(given, len(tokenizer))}),
    )


if __name__ == "__main__":
    main()
