"""All benchmarks beside their peers, as one table of ratios in Markdown.

    python tests/benchmarks/run_all.py --peer PYTHON_WITH_TRL_1.12 [--model FOLDER] [options]

`make bench` sets the peer up and calls this. Without `--model` everything is done at the tiny size
of each benchmark; with the folder of an instructed checkpoint (SmolLM2-135M-Instruct in mind) PPO,
generation and the reward model are measured with it too, which takes gigabytes and an hour on two
cores. `--peer-source` names a folder that holds nanochat's package. A benchmark that fails is named
in the table, and the exit status is 1; what the others print stands above the table. Ratios are
ours to the peer's: more is better, but for memory.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))
RATIO = re.compile(r"^(.+): ([\d.]+) x$")
PACKAGES = ("torch", "transformers", "trl", "accelerate")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", required=True, help="Python in whose environment trl 1.12 is")
    parser.add_argument("--peer-source", help="folder that holds nanochat's package")
    parser.add_argument("--model", help="folder of an instructed checkpoint")
    parser.add_argument("--data", help="rankings for the reward model, as reward_model.py has them")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", nargs="+", help="run those whose name has one of these words")
    return parser.parse_args()


def commands(given: argparse.Namespace, tiny: Path) -> dict[tuple[str, str], list[str]]:
    """Return the command of each benchmark by its name and peer."""
    threads = ["--threads", str(given.threads)]
    bf16 = ["--bf16"] if has_bf16() else []
    ppo = ["ppo_update.py", "--peer", given.peer, *threads, "--compile", "--reuse"]
    trl, generate, trainer = "TRL 1.12 PPO, fp32", "transformers generate", "transformers Trainer"
    rewards = f"TRL {importlib.metadata.version('trl')} RewardTrainer"
    pretraining = ["pretraining.py", "--steps", "6", *threads, *bf16]
    if given.peer_source:
        pretraining += ["--peer-source", given.peer_source]
        trainer += "; nanochat"
    found = {
        ("PPO, tiny", trl): ppo,
        ("pretraining, Llama 256 x 4", trainer): pretraining,
        ("BERT, T5 and BART, 256 x 4", "GPT-2 by the next token; transformers Trainer"): [
            "pretraining_objectives.py", "--steps", "5", *threads, *bf16,
        ],
        ("generation, tiny, batch 16", generate): ["generation.py", *threads, *bf16],
        ("reward model, tiny, K = 4", rewards): [
            "reward_model.py", "--model", str(tiny), *threads, *bf16,
        ],
        ("tasks, tiny, batch 16", "lm-eval HFLM, fp32"): ["lm_eval_tasks.py", *threads],
    }  # fmt: skip
    if given.model:
        sized = ["--model", given.model, "--episodes", "16", "--prompt", "64", "--response", "64"]
        sized += ["--peer-micro", "16", "--micro", "16", "--shared-micro", "8"]
        name = Path(given.model).name
        ranked = ["reward_model.py", "--model", given.model, *threads, *bf16]
        ranked += ["--data", given.data] if given.data else []
        found |= {
            (f"PPO, {name}", trl): [*ppo, *sized],
            (f"generation, {name}, batch 16", generate): [
                "generation.py", "--model", given.model, *threads, *bf16,
            ],
            (f"reward model, {name}, K = 4", rewards): ranked,
            (f"reward model, {name}, K = 4, ours compiled", rewards): [*ranked, "--compile"],
        }  # fmt: skip
    return found


def has_bf16() -> bool:
    """Tell whether the recipes' `bf16: auto` would compute in bfloat16 here."""
    from pipeline.models.load import pick_device, resolve_bf16

    return resolve_bf16("auto", pick_device())


def run(command: list[str]) -> list[tuple[str, str]] | None:
    """Run a benchmark and pass on what it prints; return its ratios, None if it failed."""
    print(f"$ {' '.join(command)}", flush=True)
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    with subprocess.Popen(
        [sys.executable, str(HERE / command[0]), *command[1:]],
        stdout=subprocess.PIPE, text=True, env=environment,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            print(f"    {line}", end="", flush=True)
            lines.append(line.strip())
    if process.returncode:
        return None
    return [(match[1], match[2]) for match in map(RATIO.match, lines) if match]


def machine(threads: int) -> str:
    """Name the processor, the threads, bf16 or not, and how busy the machine is."""
    model = platform.processor() or platform.machine()
    described = Path("/proc/cpuinfo")
    if described.is_file():
        names = re.findall(r"^model name\s*: (.+)$", described.read_text(), re.MULTILINE)
        model = names[0] if names else model
    products = "bf16 products" if has_bf16() else "fp32 products"
    busy = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    return f"{model}, {os.cpu_count()} cores, {threads} threads, {products}; load {busy}"


def main() -> None:
    given = arguments()
    from ppo_update import save_tiny

    before = machine(given.threads)
    rows, failed = [], False
    with tempfile.TemporaryDirectory() as scratch:
        for (name, peer), command in commands(given, save_tiny(Path(scratch))).items():
            if given.only and not any(word in name for word in given.only):
                continue
            ratios = run(command)
            failed |= ratios is None
            for measure, ratio in ratios if ratios is not None else [("failed", "-")]:
                rows.append(f"| {name} | {peer} | {measure} | {ratio} |")
    print(f"\nBefore: {before}\nAfter: {machine(given.threads)}")
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES))
    print("\n| work | peer | measure | ours to the peer's |\n|---|---|---|---|")
    print("\n".join(rows))
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
