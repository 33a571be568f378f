"""GRPO sampled by our decoder beside TRL's own generation, in one trainer, and where time goes.

    python tests/benchmarks/grpo_generation.py --model runs/quickstart/sft/model [--bf16]

Updates of a grpo stage from a checkpoint of ours, on the embedded world's prompts, paid by the
length of the answer. The sides take turns, an update each; the first of each warms up and is not
counted. Printed are medians of processor seconds: of sampling, of the trainer's own passes forward
and back, and of what is left, and the ratios.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIDES = ("ours", "TRL's")
PARTS = ("sampling", "passes", "rest")


def timed(owner: Any, name: str, spent: dict[str, float], part: str) -> None:
    """Have a method of an object add the processor time it takes to a part.

    What such methods call of each other is added where it was called.
    """
    method: Callable[..., Any] = getattr(owner, name)

    def run(*given: Any, **more: Any) -> Any:
        began, before = time.process_time(), sum(spent.values())
        result = method(*given, **more)
        within = sum(spent.values()) - before
        spent[part] += time.process_time() - began - within
        return result

    setattr(owner, name, run)


def take_turns(trainer: Any) -> list[tuple[str, dict[str, float]]]:
    """Have every second update be sampled by TRL; return what each takes, filled in as it goes."""
    from trl import GRPOTrainer

    from pipeline.generation.generate import Sample, response_text
    from pipeline.rl.rollout.rollout import Episodes

    told: list[tuple[str, dict[str, float]]] = []
    spent = dict.fromkeys(PARTS, 0.0)
    own = trainer._generate_single_turn

    def sample(prompt_ids: list[list[int]], *more: Any, **options: Any) -> Any:
        if trainer.state.global_step % 2 == 0:
            return own(prompt_ids, *more, **options)
        ids, _ = GRPOTrainer._generate_single_turn(trainer, prompt_ids, *more, **options)
        ends = set(trainer.engine.end_ids)
        samples = [Sample(each, bool(each) and each[-1] in ends, []) for each in ids]
        texts = [
            response_text(trainer.processing_class, asked.prompt, asked.ids, each)
            for asked, each in zip(trainer.asked, samples, strict=True)
        ]
        trainer.episodes = Episodes(trainer.asked, samples, texts)
        return ids, None

    trainer._generate_single_turn = sample
    timed(trainer, "_generate_single_turn", spent, "sampling")
    timed(trainer, "_get_per_token_logps_and_entropies", spent, "passes")
    timed(trainer, "compute_loss", spent, "passes")
    timed(trainer.accelerator, "backward", spent, "passes")
    step = trainer.training_step

    def whole(*given: Any, **more: Any) -> Any:
        spent.update(dict.fromkeys(PARTS, 0.0))
        began, number = time.process_time(), int(trainer.state.global_step)
        loss = step(*given, **more)
        spent["rest"] = time.process_time() - began - spent["sampling"] - spent["passes"]
        told.append((SIDES[number % 2], dict(spent)))
        return loss

    trainer.training_step = whole
    return told


def train(given: argparse.Namespace, folder: Path) -> list[tuple[str, dict[str, float]]]:
    """Run a grpo stage whose updates are sampled in turn."""
    from pipeline.contract.console import Console
    from pipeline.contract.context import StageContext
    from pipeline.contract.handover import HandOver
    from pipeline.contract.metrics_log import MetricsLog
    from pipeline.contract.resume import ResumeStore
    from pipeline.stages.grpo import stage
    from pipeline.stages.grpo.settings import GrpoSettings
    from pipeline.stages.grpo.trainer import build_trainer

    settings = GrpoSettings(
        policy=str(given.model), reward=[{"rule": "length", "options": {"target": 20}}],
        prompts=[{"world": "ppo_prompts"}], max_prompt_tokens=64, max_new_tokens=given.response,
        group_size=8, batch_size=given.episodes, episodes=given.episodes * 2 * (given.turns + 1),
        micro_batch_size=given.micro, learning_rate=1e-6, save_every=0, sample_every=0,
        bf16=given.bf16,
    )  # fmt: skip
    (folder / "work").mkdir()
    told: list[tuple[str, dict[str, float]]] = []

    def build(*shape: Any, **own: Any) -> Any:
        nonlocal told
        trainer = build_trainer(*shape, **own)
        told = take_turns(trainer)
        return trainer

    stage.learn(
        StageContext(
            name="grpo", settings=settings, seed=0, folder=folder,
            inputs={"policy": str(given.model)},
            hand=HandOver("grpo", {"grpo": settings}, lambda _: None),
            resume=ResumeStore(folder / "resume", "key"),
            metrics=MetricsLog(folder / "metrics.jsonl", enabled=True),
            console=Console(quiet=True),
        ),
        build,
    )  # fmt: skip
    return told


def main() -> None:
    """Run the updates and print a table."""
    import torch

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of a checkpoint")
    parser.add_argument("--episodes", type=int, default=128, help="of an update")
    parser.add_argument("--micro", type=int, help="of a backward pass; all when not given")
    parser.add_argument("--response", type=int, default=48, help="tokens, at most")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        told = train(given, Path(folder))
    found = {
        side: {
            part: statistics.median([each[part] for name, each in told if name == side][1:])
            for part in PARTS
        }
        for side in SIDES
    }
    print("| sampled by | " + " | ".join(PARTS) + " | all |")
    print("|---" * (2 + len(PARTS)) + "|")
    for side, parts in found.items():
        cells = [f"{value:.2f}" for value in (*parts.values(), sum(parts.values()))]
        print(f"| {side} | " + " | ".join(cells) + " |")
    ours, theirs = (found[side] for side in SIDES)
    print(f"sampling: {theirs['sampling'] / ours['sampling']:.2f} x")
    print(f"an update: {sum(theirs.values()) / sum(ours.values()):.2f} x")


if __name__ == "__main__":
    main()
