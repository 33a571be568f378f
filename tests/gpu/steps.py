"""What only a GPU can tell, step by step: started by `run.sh`.

    tests/gpu/run.sh [--out FOLDER] [--minutes 10] [--only WORD...]
    tests/gpu/run.sh --device cpu --small      # the rehearsal

Each step is a process of its own under a limit of its own, and none begins once the minutes are
spent. One that fails is told in a line and passed over; `results.json` and `results.md` in FOLDER
are written anew after each, what the steps print goes to `log.txt` there. Models have random
weights in the shapes of checkpoints, so that nothing has to be there but the project.

What is measured of a step (an update of PPO): `tokens/s` are those that all its passes go over;
`of peak` are its FLOPs a second, counted by `rlhf plan`, as a share of those of a plain matrix
product in the same precision; `memory` is the device's peak, and `planned` what `rlhf plan` says
as a share of it, which should be within 15 %.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
LEAST = 10.0
"""Seconds with less than which no step is begun."""
WITHIN = 0.15
Figures = dict[str, float | str]

LLAMA = {"max_position_embeddings": 1024, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SHAPES: dict[str, dict[str, Any]] = {
    "SmolLM2": {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    "1.1B": {
        "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632,
        "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
    "small": {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
}  # fmt: skip
QUICKSTART = {
    False: (
        "base.tokens=100_000", "sft.train=[{world: instructions, limit: 1200}]",
        "rankings.limit=200", "rankings_heldout.limit=60", "ppo.episodes=512",
        "evaluate.prompts=[{world: eval_prompts, limit: 100}]",
    ),
    True: (
        "tokenizer.train=[{world: corpus, limit: 200}]", "tokenizer.vocab_size=400",
        "base.hidden_size=64", "base.layers=2", "base.heads=2", "base.intermediate_size=128",
        "base.tokens=40_000", "base.train=[{world: corpus, limit: 300}]",
        "base.heldout=[{world: corpus_heldout, limit: 20}]",
        "sft.train=[{world: instructions, limit: 300}]",
        "sft.heldout=[{world: instructions_heldout, limit: 20}]", "sft.epochs=1",
        "rankings.limit=60", "rankings.prompts=[{world: rm_prompts, limit: 60}]",
        "rankings_heldout.limit=60",
        "reward.demonstrations=[{world: instructions_heldout, limit: 10}]",
        "ppo.prompts=[{world: ppo_prompts, limit: 32}]", "ppo.episodes=32", "ppo.batch_size=16",
        "ppo.max_prompt_tokens=128", "ppo.max_new_tokens=8", "evaluate.max_new_tokens=8",
        "evaluate.prompts=[{world: eval_prompts, limit: 10}]",
        "evaluate.perplexity=[{world: corpus_heldout, limit: 10}]",
    ),
}  # fmt: skip
"""Bounds of the quickstart, and much closer ones for a rehearsal."""


class Work(NamedTuple):
    """What a step works with.

    Attributes:
        device: "cuda" or "cpu".
        small: whether this is a rehearsal.
        scratch: a folder that all steps share.
        peaks: FLOP/s of plain products by type, once the first step has measured them.
    """

    device: str
    small: bool
    scratch: Path
    peaks: Mapping[str, float]

    def size(self, large: int, small: int) -> int:
        """Return a number for the device, or for a rehearsal."""
        return small if self.small else large


# Products and kernels.


def seconds_of(work: Work, call: Callable[[], Any], *, tries: int = 5) -> float:
    """Return the median time of a call after one that warms up."""
    import torch

    times = []
    for _ in range(tries + 1):
        started = time.perf_counter()
        call()
        if work.device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def matrix_products(work: Work) -> Figures:
    """Time large plain products."""
    import torch

    width, found = work.size(8192, 256), Figures()
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        a, b = (torch.randn(width, width, device=work.device).to(dtype) for _ in range(2))
        rate = 2 * width**3 / seconds_of(work, partial(torch.matmul, a, b))
        found[f"{name} TFLOP/s"] = rate / 1e12
    return found


def tree_kernels(work: Work) -> Figures:
    """Hold attention within trees by either way in bf16 against the blocks in fp32."""
    import torch

    from pipeline.models.trials import gap
    from reward.network import tree_attention
    from reward.network.packed_trees import pack_trees

    heads, shared, width = (9, 3, 64) if not work.small else (4, 2, 16)
    draw = random.Random(0)
    long, trees = work.size(96, 8), []
    for _ in range(work.size(16, 3)):
        words = [
            [draw.randrange(3, 999) for _ in range(long - draw.randrange(4))] for _ in range(5)
        ]
        trees.append([words[0] + branch for branch in words[1:]])
    packed, device = pack_trees(trees).to(work.device), torch.device(work.device)
    wide = [
        torch.randn(1, count, len(packed.ids_T), width, device=device)
        for count in (heads, shared, shared)
    ]
    wanted = tree_attention._both_ways(packed, wide)
    low = [tensor.bfloat16() for tensor in wide]
    found = Figures()
    ways = {"flex": packed._replace(rule=packed.made_rule()), "blocks": packed}
    # A processor has no kernel backwards; torch's plain computation of it is let through.
    plain = patch("torch.nn.attention.flex_attention._validate_device")
    with plain if work.device == "cpu" else nullcontext():
        found["trial"] = str(tree_attention.works(device, heads, shared, width))
        for name, way in ways.items():
            call = partial(tree_attention._both_ways, way, low)
            apart = max(gap(a.float(), b) for a, b in zip(call(), wanted, strict=True))
            found[f"{name}: furthest apart"] = apart
            found[f"{name}: ms both ways"] = 1000 * seconds_of(work, call)
            assert apart < 0.03, f"{name} in bf16 is {apart:.3f} of the largest figure off fp32"
    return found


# Recipes.


def load(work: Work, name: str, stages: Mapping[str, Any]) -> Any:
    """Return a recipe of these stages."""
    import yaml

    from pipeline.recipe.load import load_recipe

    path = work.scratch / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"stages": dict(stages)}), encoding="utf-8")
    return load_recipe(path)


def quickstart(work: Work) -> Figures:
    """Run every stage of the quickstart, within bounds; return the seconds of each."""
    from pipeline.contract.console import Console
    from pipeline.recipe.load import load_recipe
    from pipeline.run.runner import execute

    recipe = load_recipe(ROOT / "recipes" / "quickstart.yaml", QUICKSTART[work.small])
    folder = work.scratch / "quickstart"
    execute(recipe, folder, console=Console(quiet=True))
    found = Figures()
    for stage in recipe.stages:
        manifest = json.loads((folder / stage / "manifest.json").read_text("utf-8"))
        found[f"{stage} s"] = manifest["seconds"]
        on_cpu = manifest["device"].startswith("cpu")
        assert on_cpu == (work.device == "cpu"), f"{stage} ran on {manifest['device']}"
    return found


def checkpoint(work: Work, shape: str) -> Path:
    """Return the folder of a random model of a shape, whose tokens are words."""
    import torch
    from ppo_update import save_tiny

    folder: Path = work.scratch / shape
    if not (folder / "tokenizer.json").is_file():
        with torch.device(work.device):  # a billion numbers are soon drawn there
            save_tiny(folder, {**SHAPES["small" if work.small else shape], **LLAMA})
    return folder


def rows(work: Work, name: str, shape: str, count: int, make: Callable[[Any], Any]) -> str:
    """Write rows made of texts of so many words; return the path."""
    draw, path = random.Random(name), work.scratch / f"{name}.jsonl"
    words = SHAPES["small" if work.small else shape]["vocab_size"]

    def text(size: int) -> str:
        return " ".join(f"w{draw.randrange(3, words)}" for _ in range(size))

    path.write_text("".join(json.dumps(make(text)) + "\n" for _ in range(count)), encoding="utf-8")
    return str(path)


def pretrain_stage(work: Work, shape: str) -> dict[str, Any]:
    """Return pretraining on rows of 512 tokens, 32 a step."""
    length, batch, steps = work.size(512, 32), work.size(32, 4), 6
    texts = rows(
        work, f"texts {shape}", shape, batch * (steps + 2), lambda text: {"text": text(length)}
    )
    return {
        "kind": "pretrain", "model": str(checkpoint(work, shape)), "train": [{"path": texts}],
        "heldout_share": 0.05, "steps": steps, "batch_size": batch, "context_length": length,
        "evaluate_every": 0, "save_every": 0,
    }  # fmt: skip


def reward_stage(work: Work, shape: str, *, steps: int, trunk: str) -> dict[str, Any]:
    """Return a reward model on rankings of four completions, 16 a step."""
    length, batch = work.size(96, 8), work.size(16, 2)

    def ranking(text: Callable[[int], str]) -> dict[str, Any]:
        completions = [text(length) for _ in range(4)]
        return {"prompt": text(length), "completions": completions, "ranks": [1, 2, 3, 4]}

    ranked = rows(work, f"rankings {shape}", shape, batch * steps, ranking)
    judged = rows(work, f"judged {shape}", shape, 4, ranking)
    return {
        "kind": "reward", "model": str(checkpoint(work, shape)), "train": [{"path": ranked}],
        "heldout": [{"path": judged}], "prompts_per_step": batch, "evaluate_every": 0,
        "save_every": 0, **({"lora": {"rank": 16}} if trunk == "shared" else {}),
    }  # fmt: skip


def ppo_stages(work: Work, shape: str, trunk: str) -> dict[str, Any]:
    """Return a reward model of a step, and updates of PPO against it."""
    large = shape == "1.1B"
    batch, length = work.size(32 if large else 64, 4), work.size(64, 8)
    asked = rows(work, f"prompts {shape}", shape, 256, lambda text: {"prompt": text(length)})
    return {
        "reward": reward_stage(work, shape, steps=1, trunk=trunk),
        "ppo": {
            "kind": "ppo", "policy": str(checkpoint(work, shape)), "reward": "reward",
            "prompts": [{"path": asked}], "max_prompt_tokens": length, "trunk": trunk,
            "episodes": 3 * batch, "batch_size": batch, "epochs": 2 if large else 4,
            "micro_batch_size": work.size(16, 2), "max_new_tokens": length, "temperature": 1.0,
            "learning_rate": 1e-6, "save_every": 0,
        },
    }  # fmt: skip


@contextmanager
def timed_steps() -> Iterator[list[float]]:
    """Note the seconds of each step or update; all of them end with a figure on the processor."""
    from pipeline.rl.ppo import train
    from pipeline.stages.reward.trainer import RankingTrainer
    from pipeline.training.stepping import Stepping

    times: list[float] = []

    def timed(work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            started = time.perf_counter()
            result = work(*given, **named)
            times.append(time.perf_counter() - started)
            return result

        return call

    with ExitStack() as stack:
        for owner, name in ((Stepping, "step"), (RankingTrainer, "step"), (train, "run_update")):
            stack.enter_context(patch.object(owner, name, timed(getattr(owner, name))))
        yield times


def stages(work: Work, name: str, chosen: Mapping[str, Any]) -> Figures:
    """Run the stages of a recipe; return speed and memory of the last beside what is planned."""
    import torch

    from pipeline.contract.console import Console
    from pipeline.estimate.model.hardware import Accelerator, Cluster
    from pipeline.estimate.planner import estimate_recipe
    from pipeline.models.load import bf16_supported
    from pipeline.run.planning import Selection
    from pipeline.run.runner import execute

    recipe, on_gpu = load(work, name, chosen), work.device == "cuda"
    bf16 = bf16_supported(work.device)
    # Its speed does not matter here; that in bf16 above 0 says that it has such products.
    machine = Accelerator("gpu" if on_gpu else "cpu", 2**37, 1e12 * bf16, 1e12, 1e12)
    costs = {v.cost.stage: v.cost for v in estimate_recipe(recipe, Cluster(machine)).verdicts}
    for stage in chosen:
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        with timed_steps() as times:
            only = Selection(only=stage)
            execute(recipe, work.scratch / name, selection=only, console=Console(quiet=True))
    cost, step = costs[stage], statistics.median(times[1:])
    busy = [part for part in cost.parts if not part.name.startswith(("held-out", "judging"))]
    flops, tokens = (
        sum(getattr(p, what) for p in busy) / len(times) for what in ("flops", "tokens")
    )
    found = Figures({"s a step": step, "tokens/s": tokens / step, "TFLOP/s": flops / step / 1e12})
    peak = work.peaks.get("bf16" if bf16 else "fp32")
    if peak:
        found["of peak"] = flops / step / peak
    if on_gpu:
        memory = torch.cuda.max_memory_allocated()
        planned = cost.peak.total / memory
        found |= {"memory GiB": memory / 2**30, "planned": planned}
        found["plan"] = "within 15 %" if abs(planned - 1) < WITHIN else f"off ({cost.peak.name})"
    return found


def ppo(shape: str, trunk: str, work: Work) -> Figures:
    """Updates of PPO."""
    return stages(work, f"ppo {shape} {trunk}", ppo_stages(work, shape, trunk))


def reward_model(work: Work) -> Figures:
    """Steps of a reward model on rankings of four."""
    stage = reward_stage(work, "SmolLM2", steps=6, trunk="separate")
    return stages(work, "reward model", {"reward": stage})


def pretraining(shape: str, work: Work) -> Figures:
    """Steps of pretraining."""
    return stages(work, f"pretraining {shape}", {"base": pretrain_stage(work, shape)})


# Generation.


def loaded(work: Work, device: str, *, bf16: bool) -> tuple[argparse.Namespace, Any]:
    """Return what `generation.py` takes: its settings, and the model with what it is asked."""
    import torch
    from transformers import AutoModelForCausalLM

    shape = SHAPES["small" if work.small else "SmolLM2"]
    given = argparse.Namespace(prompts=work.size(64, 4), batch=work.size(64, 2))
    given.response, given.bf16 = work.size(64, 8), bf16
    draw, most = random.Random(0), shape["vocab_size"]
    asked = [
        [1, *(draw.randrange(64, most) for _ in range(draw.randrange(16, 48)))]
        for _ in range(given.prompts)
    ]
    dtype = torch.bfloat16 if bf16 else torch.float32
    model = AutoModelForCausalLM.from_pretrained(checkpoint(work, "SmolLM2"), dtype=dtype)
    with torch.no_grad():  # so that the likeliest token depends on the others
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(2)
    ends = list(range(2, 2 + most // given.response))
    return given, (model.eval().to(device), asked, ends, 0)


def generation(work: Work) -> Figures:
    """Sample beside `generate`, in turn."""
    import generation as beside

    given, model = loaded(work, work.device, bf16=True)
    found: dict[str, list[float]] = {"ours": [], "generate": []}
    for seed in range(3):
        for side, run in (("ours", beside.ours), ("generate", beside.peer)):
            call = partial(run, given, model, greedy=False, seed=seed)
            found[side].append(beside.timed(call)["tokens/s"])
    ours, theirs = (statistics.median(times[1:]) for times in found.values())
    return {"tokens/s": ours, "generate, tokens/s": theirs, "ratio": ours / theirs}


def greedy_tokens(work: Work) -> Figures:
    """Hold the likeliest tokens of the device against the processor's, in fp32."""
    import generation as beside

    given, there = loaded(work, work.device, bf16=False)
    _, here = loaded(work, "cpu", bf16=False)
    sides = [beside.ours(given, model, greedy=True, seed=0) for model in (there, here)]
    ties = beside.ties(here, *sides)
    return {"responses": len(sides[0]), "tokens": sum(map(len, sides[1])), "ties": len(ties)}


STEPS: dict[str, tuple[int, Callable[[Work], Figures]]] = {
    "matrix products": (40, matrix_products),
    "tree kernels, bf16": (90, tree_kernels),
    "quickstart": (150, quickstart),
    "PPO, SmolLM2, separate": (75, partial(ppo, "SmolLM2", "separate")),
    "PPO, SmolLM2, one trunk": (75, partial(ppo, "SmolLM2", "shared")),
    "PPO, 1.1B, separate": (110, partial(ppo, "1.1B", "separate")),
    "PPO, 1.1B, one trunk": (90, partial(ppo, "1.1B", "shared")),
    "generation, SmolLM2": (60, generation),
    "reward model, SmolLM2, K = 4": (45, reward_model),
    "pretraining, SmolLM2": (45, partial(pretraining, "SmolLM2")),
    "pretraining, 1.1B": (60, partial(pretraining, "1.1B")),
    "greedy tokens, fp32": (45, greedy_tokens),
}
"""Limits in seconds, of ten minutes in all, and what is done, in this order."""


# All of them.


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="tiny models and few rows")
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="of all steps; limits grow with them"
    )
    parser.add_argument("--only", nargs="+", help="steps whose name has one of these words")
    parser.add_argument("--out", type=Path, default=Path("gpu_checks"))
    parser.add_argument("--one", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(given)


def machine(device: str) -> dict[str, str]:
    """Name the device, and what runs there."""
    import importlib.metadata

    import torch

    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("no GPU is here; --device cpu --small rehearses on the processor")
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    versions = {p: importlib.metadata.version(p) for p in ("torch", "transformers", "trl")}
    return {"device": name, **versions}


def run_step(given: argparse.Namespace, name: str, limit: float) -> dict[str, Any]:
    """Run a step in a process of its own; return its line of the table."""
    result, started = given.scratch / "result.json", time.monotonic()
    result.unlink(missing_ok=True)
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if given.device == "cpu" else {}
    command = [sys.executable, __file__, "--one", name, "--device", given.device, "--out"]
    command += [str(given.out), "--scratch", str(given.scratch), *["--small"] * given.small]
    with (given.out / "log.txt").open("a+", encoding="utf-8", errors="replace") as log:
        log.write(f"\n===== {name}\n")
        log.flush()
        begun = log.tell()
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, **OFFLINE, **hidden},
            start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(timeout=limit)
            state = "ok" if code == 0 else f"ended with {code}"
        except subprocess.TimeoutExpired:
            state = f"not done after {limit:.0f} s"
        finally:  # and what it started
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        log.seek(begun)
        said = [line.strip() for line in log if line.strip()]
    if state.startswith("ended") and said:
        state = f"failed: {said[-1][:200]}"
    figures = json.loads(result.read_text("utf-8")) if state == "ok" else {}
    seconds = round(time.monotonic() - started, 1)
    return {"step": name, "state": state, "seconds": seconds, "figures": figures}


def write(out: Path, about: Mapping[str, str], lines: list[dict[str, Any]]) -> None:
    """Write what is known so far."""
    table = [", ".join(f"{k} {v}" for k, v in about.items()), ""]
    table += ["| step | state | s | figures |", "|---|---|---|---|"]
    table += [
        f"| {row['step']} | {row['state']} | {row['seconds']} | {told(row)} |" for row in lines
    ]
    for name, text in (
        ("results.json", json.dumps({"about": dict(about), "steps": lines}, indent=2)),
        ("results.md", "\n".join(table)),
    ):
        half = out / f".{name}"
        half.write_text(text + "\n", encoding="utf-8")
        half.replace(out / name)


def told(row: Mapping[str, Any]) -> str:
    """Return the figures of a line as text."""
    return "; ".join(
        f"{k} {v if isinstance(v, str) else format(v, '.4g')}" for k, v in row["figures"].items()
    )


def one(given: argparse.Namespace) -> None:
    """Do one step and leave its figures."""
    import warnings

    import torch

    warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
    torch.manual_seed(0)
    before = given.out / "results.json"
    lines = json.loads(before.read_text("utf-8"))["steps"] if before.is_file() else []
    rates = {k: v for line in lines for k, v in line["figures"].items() if k.endswith("TFLOP/s")}
    peaks = {t: 1e12 * rates[f"{t} TFLOP/s"] for t in ("bf16", "fp32") if f"{t} TFLOP/s" in rates}
    work = Work(given.device, given.small, given.scratch, peaks)
    figures = STEPS[given.one][1](work)
    (given.scratch / "result.json").write_text(json.dumps(figures), encoding="utf-8")


def main() -> None:
    import tempfile

    given = arguments()
    if given.one is not None:
        one(given)
        return
    end = time.monotonic() + 60 * given.minutes
    given.out = given.out.resolve()
    given.out.mkdir(parents=True, exist_ok=True)
    about, lines = machine(given.device), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as scratch:
        given.scratch = Path(scratch)
        for name, (limit, _) in STEPS.items():
            if given.only and not any(word in name for word in given.only):
                continue
            left = end - time.monotonic()
            lines.append(
                run_step(given, name, min(limit * given.minutes / 10, left)) if left >= LEAST
                else {"step": name, "state": "no time was left", "seconds": 0, "figures": {}}
            )  # fmt: skip
            write(given.out, about, lines)
            print(f"{name}: {lines[-1]['state']}, {lines[-1]['seconds']} s; {told(lines[-1])}")
    sys.exit(int(any(line["state"] != "ok" for line in lines)))


if __name__ == "__main__":
    main()
