"""Every recipe in `recipes/`: valid, runnable on local files alone, and as its comments say."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from data.errors import HandOverError
from pipeline.contract.console import Console
from pipeline.contract.settings import SourceSettings, is_external, references
from pipeline.recipe.load import Recipe, load_recipe
from pipeline.run.checking import check_stages
from pipeline.run.planning import Planner, Selection
from pipeline.run.runner import execute, plan

RECIPES = Path(__file__).parents[2] / "recipes"
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
STORIES = [f"Lily saw a {colour} bird. She was happy to see it fly." for colour in ("red", "blue")]
# As SmolLM2's: the end-of-sequence token pads, and a template without marks of the assistant.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny model and a file for each kind of source."""
    folder = tmp_path_factory.mktemp("local")
    (folder / "stories.txt").write_text("\n\n".join(STORIES * 20))
    pairs = [
        {
            "chosen": f"\n\nHuman: Tell me {n}.\n\nAssistant: I can't say.",
            "rejected": f"\n\nHuman: Tell me {n}.\n\nAssistant: Shut up.",
        }
        for n in range(40)
    ]
    rankings = [
        {"prompt": f"What is {n}?", "completions": ["a number", "no", "eh"], "ranks": [1, 2, 2]}
        for n in range(20)
    ]
    problems = [
        {
            "question": f"What is {n} and 2?",
            "answer": f"It is <<{n}+2={n + 2}>>{n + 2}.\n#### {n + 2}",
        }
        for n in range(20)
    ]
    for name, rows in (("pairs", pairs), ("rankings", rankings), ("problems", problems)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)
    save_smol(folder / "smol")
    save_smol(folder / "padded", pad_token="<|endoftext|>")
    return folder


def save_smol(folder: Path, *, pad_token: str = "<|im_end|>") -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(STORIES, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token=pad_token,
        unk_token="<|endoftext|>",
    )
    tokenizer.chat_template = CHATML
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def text(local: Path, **window: int) -> str:
    return json.dumps(
        [{"path": str(local / "stories.txt"), "format": "text_blank_lines", **window}]
    )


def rows(local: Path, name: str, **window: int) -> str:
    return json.dumps([{"path": str(local / f"{name}.jsonl"), **window}])


def quickstart(local: Path) -> list[str]:
    return []


def stories_sentiment(local: Path) -> list[str]:
    train, held = text(local, skip=10), text(local, limit=10)
    return [
        f"tokenizer.train={train}",
        f"base.train={train}",
        f"base.heldout={held}",
        f"ppo.prompts={train}",
        f"evaluate.prompts={held}",
        f"evaluate.perplexity={held}",
        "tokenizer.vocab_size=290",
        *(f"{stage}.prefix_tokens=4" for stage in ("ppo", "evaluate")),
        *("base.hidden_size=16", "base.layers=1", "base.heads=2", "base.tokens=512"),
        *("base.context_length=16", "base.batch_size=4", "base.positions=48"),
        *("ppo.episodes=8", "ppo.batch_size=4", "ppo.max_new_tokens=6"),
        "evaluate.max_new_tokens=6",
    ]


def oasst_rankings(local: Path) -> list[str]:
    return [
        f"tokenizer.adopt={local / 'smol'}",
        f"reward.model={local / 'smol'}",
        f"reward.train={rows(local, 'rankings')}",
        "reward.max_length=64",
    ]


def smollm2_harmless(local: Path) -> list[str]:
    train, held = rows(local, "pairs", skip=8), rows(local, "pairs", limit=8)
    return [
        f"tokenizer.adopt={local / 'smol'}",
        f"sft.model={local / 'smol'}",
        f"evaluate.checkpoints.base={local / 'smol'}",
        *(f"{stage}.train={train}" for stage in ("sft", "reward")),
        *(f"{stage}.heldout={held}" for stage in ("sft", "reward")),
        f"reward.demonstrations={held}",
        f"ppo.prompts={train}",
        f"evaluate.prompts={held}",
        *("sft.max_length=128", "reward.max_length=128", "sft.max_steps=2"),
        *("ppo.max_prompt_tokens=96", "ppo.max_new_tokens=6", "evaluate.max_new_tokens=6"),
        *("ppo.episodes=8", "ppo.batch_size=4"),
    ]


def gsm8k_calculator(local: Path) -> list[str]:
    train, held = rows(local, "problems", skip=4), rows(local, "problems", limit=4)
    return [
        f"tokenizer.adopt={local / 'smol'}",
        f"sft.model={local / 'smol'}",
        f"sft.train={train}",
        *("sft.max_steps=2", "sft.max_length=128"),
        *(f"{stage}.prompts={held}" for stage in ("calculator", "by_head")),
        *(f"{stage}.tasks.0.source={held[1:-1]}" for stage in ("calculator", "by_head")),
        *(
            f"{stage}.{key}=6"
            for stage in ("calculator", "by_head")
            for key in ("max_new_tokens", "tasks.0.max_new_tokens")
        ),
    ]


LOCAL: dict[str, Callable[[Path], list[str]]] = {
    "quickstart": quickstart,
    "quickstart_one_trunk": quickstart,
    "quickstart_truthful": quickstart,
    "ppo_or_dpo": quickstart,
    "stories_sentiment": stories_sentiment,
    "oasst_rankings": oasst_rankings,
    "smollm2_harmless": smollm2_harmless,
    "bert_pretrain": quickstart,
    "bert_distill": quickstart,
    "t5_pretrain": quickstart,
    "bart_pretrain": quickstart,
    "t5_text_to_text": quickstart,
    "bart_rephrase": quickstart,
    "step_by_step": quickstart,
    "gsm8k_calculator": gsm8k_calculator,
    "toolformer": quickstart,
    "bert_reward": quickstart,
}


def loaded(name: str, local: Path, *more: str) -> Recipe:
    return load_recipe(RECIPES / f"{name}.yaml", [*LOCAL[name](local), *more])


def sources(value: Any) -> Iterator[SourceSettings]:
    if isinstance(value, SourceSettings):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from sources(item)


def test_every_recipe_is_tried_here() -> None:
    assert set(NAMES) == set(LOCAL)


@pytest.mark.parametrize("name", LOCAL)
def test_a_recipe_is_valid_and_needs_no_hub(name: str, local: Path, tmp_path: Path) -> None:
    recipe = loaded(name, local)
    planner = Planner(recipe, tmp_path)
    assert [step.stage for step in planner.plan()] == list(recipe.stages)
    check_stages(planner)
    for stage, settings in recipe.stages.items():
        fields = [source for _, value in settings for source in sources(value)]
        assert [s.hub for s in fields if s.hub is not None] == [], stage
        outside = [t for t, _ in references(settings).values() if is_external(t)]
        assert all(Path(target).is_dir() for target in outside), stage


@pytest.mark.parametrize("name", LOCAL)
def test_the_recipe_that_a_run_writes_down_is_the_same_recipe(
    name: str, local: Path, tmp_path: Path
) -> None:
    # What `rlhf ls`, a second `rlhf run` and the processes of a launch read.
    recipe = loaded(name, local)
    written = tmp_path / "recipe.yaml"
    written.write_text(recipe.to_yaml())
    again = load_recipe(written)
    assert (again.top, dict(again.stages)) == (recipe.top, dict(recipe.stages))


def commented_overrides(path: Path) -> list[list[str]]:
    """Return the settings of each command that the comments show."""
    lines = [
        line.partition("#")[2].strip()
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("#")
    ]
    shown = re.findall(r"(?:rlhf run|--set)(?:.*\\\n)*.*", "\n".join(lines))
    found = []
    for command in shown:
        words = shlex.split(command.replace("\\\n", " ").replace("...", ""))
        found.append([b for a, b in pairwise(words) if a == "--set"])
    return [overrides for overrides in found if overrides]


@pytest.mark.parametrize("name", [n for n in NAMES if not n.startswith("quickstart")])
def test_the_commands_in_the_comments_name_settings_that_exist(name: str) -> None:
    commands = commented_overrides(RECIPES / f"{name}.yaml")
    assert commands
    for overrides in commands:
        load_recipe(RECIPES / f"{name}.yaml", [value.rstrip(",") for value in overrides])


def test_without_the_adopted_tokenizer_the_end_of_sequence_pads(
    local: Path, tmp_path: Path
) -> None:
    recipe = loaded("smollm2_harmless", local, "tokenizer.pad_token=null")
    with pytest.raises(HandOverError, match="set `pad_token`"):
        plan(Planner(recipe, tmp_path))


def test_the_presets_are_instructgpts() -> None:
    stages: dict[str, Any] = {}
    for path in sorted((RECIPES / "base").glob("instructgpt_*.yaml")):
        stages |= yaml.safe_load(path.read_text(encoding="utf-8"))["stages"]
    assert set(stages) == {"sft", "reward"}
    # Ouyang et al. 2022, appendices C.1 and C.2.
    sft = {"epochs": 16, "batch_size": 32, "dropout": 0.2, "final_share": 0.1, "warmup_share": 0}
    assert sft.items() <= stages["sft"].items()
    assert float(stages["sft"]["learning_rate"]) == 9.65e-6
    reward = {"epochs": 1, "prompts_per_step": 64, "final_share": 0.1, "schedule": "cosine"}
    assert reward.items() <= stages["reward"].items()
    assert float(stages["reward"]["learning_rate"]) == 9e-6


def test_a_recipe_that_extends_the_trl_preset_runs_as_trl_does(local: Path, tmp_path: Path) -> None:
    recipe_file = tmp_path / "as_trl.yaml"
    recipe_file.write_text(
        f"extends: {RECIPES / 'base' / 'trl.yaml'}\n"
        "stages:\n"
        "  ppo:\n"
        f"    policy: {local / 'padded'}\n"
        "    reward: [{rule: length, options: {target: 4}}]\n"
        f"    prompts: {rows(local, 'rankings')}\n"
        "    episodes: 16\n"
        "    max_prompt_tokens: 96\n"
        "    max_new_tokens: 6\n"
    )
    recipe = load_recipe(recipe_file, [])
    execute(recipe, tmp_path / "run", selection=Selection(), console=Console(quiet=True))
    logged = (tmp_path / "run" / "ppo" / "metrics.jsonl").read_text().splitlines()
    # Two batches of 8, the learning rate of the second one halved.
    assert [json.loads(line)["lr"] for line in logged] == pytest.approx([3e-6, 1.5e-6])


PRESETS = ("instructgpt", "nplus", "lmhp")
OTHER_PRESETS = ("dpo", "kto", "grpo", "rloo")


def preset_lines(name: str) -> list[tuple[str, str]]:
    """Return each value of a preset with what stands beside or right above it."""
    from pipeline.recipe.explain import comments

    path = RECIPES / "base" / f"{name}.yaml"
    notes = comments(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    given = [
        (number, line)
        for number, line in enumerate(lines, start=1)
        if re.match(r"\s+\w+: *[^\s#]", line.partition(" #")[0]) and "kind:" not in line
    ]
    return [(line.strip(), notes.get(number, "")) for number, line in given]


@pytest.mark.parametrize("name", [*PRESETS, *OTHER_PRESETS])
def test_each_value_of_a_preset_has_its_source(name: str) -> None:
    lines = preset_lines(name)
    assert len(lines) > (15 if name in PRESETS else 4)
    assert [line for line, note in lines if not note] == []


def test_the_presets_beside_ppo_are_those_of_their_papers(local: Path, tmp_path: Path) -> None:
    smol, ranked, asked = str(local / "smol"), str(local / "rankings.jsonl"), text(local)
    online = {"policy": smol, "reward": [{"rule": "length"}], "prompts": json.loads(asked)}
    offline = {"model": smol, "rankings": ranked}
    found = {}
    for name in OTHER_PRESETS:
        path = tmp_path / f"{name}_small.yaml"
        stage = online if name in ("grpo", "rloo") else offline
        content = {"extends": str(RECIPES / "base" / f"{name}.yaml"), "stages": {name: stage}}
        path.write_text(yaml.safe_dump(content))
        found[name] = load_recipe(path).stages[name].model_dump()
    # Rafailov et al. 2023, appendix B; Ethayarajh et al. 2024, section 4.1.
    for name, rate, answers in (("dpo", 1e-6, 128), ("kto", 5e-7, 32)):
        preference = found[name]
        told = (preference["beta"], preference["learning_rate"], 2 * preference["batch_size"])
        assert told == (0.1, rate, answers)
    # Shao et al. 2024, section 4.2; Ahmadian et al. 2024.
    for name, sizes, kl in (("grpo", (64, 1024), 0.04), ("rloo", (4, 512), 0.03)):
        group = found[name]
        assert (group["group_size"], group["batch_size"]) == sizes
        assert (group["kl_coefficient"], group["learning_rate"]) == (kl, 1e-6)


def preset_recipe(name: str, local: Path, folder: Path, *more: str) -> Recipe:
    path = folder / f"{name}_tiny.yaml"
    stage = {
        "policy": str(local / "padded"),
        "reward": [{"rule": "length", "options": {"target": 3}}],
    }
    content = {
        "extends": str(RECIPES / "base" / f"{name}.yaml"),
        "stages": {"ppo": {**stage, "prompts": json.loads(text(local))}},
    }
    path.write_text(yaml.safe_dump(content))
    prefix = [] if name == "lmhp" else ["ppo.prefix_tokens=4"]
    mix = [f"ppo.pretraining_sources={text(local)}"] if name == "instructgpt" else []
    return load_recipe(path, [*prefix, *mix, *more])


def test_the_presets_of_ppo_are_those_of_their_papers(local: Path, tmp_path: Path) -> None:
    found = {
        name: preset_recipe(name, local, tmp_path).stages["ppo"].model_dump() for name in PRESETS
    }
    # Ouyang et al. 2022, appendix C.4
    paper = found["instructgpt"]
    assert paper["batch_size"] // paper["minibatches"] == 64 and paper["epochs"] == 1
    assert (paper["kl_coefficient"], paper["temperature"], paper["ema_decay"]) == (0.02, 1.0, 0.992)
    assert (paper["ptx_coefficient"], paper["ptx_rows_per_episode"]) == (27.8, 8)
    assert (paper["value_learning_rate"], paper["episodes"]) == (9e-6, 256_000)
    # The defaults are N+'s, but for how long it runs, what befalls a response without an end, and
    # the score's place one past the last token.
    from pipeline.rl.settings import Hyperparameters

    default = Hyperparameters().model_dump()
    changed = {key for key, value in default.items() if found["nplus"][key] != value}
    assert changed == {"episodes", "end_rule", "max_new_tokens", "score_position"}
    assert found["nplus"]["score_position"] == "past_last"
    assert found["nplus"]["end_rule"] == "replace" and found["nplus"]["max_new_tokens"] == 53
    # Ziegler et al. 2019
    ziegler = found["lmhp"]
    assert ziegler["adaptive_kl"] == {"target": 6.0, "horizon": 10_000.0}
    assert (ziegler["kl_coefficient"], ziegler["learning_rate"]) == (0.15, 1e-5)
    assert (ziegler["end_tokens"], ziegler["end_after"]) == ((".",), 16)
    assert ziegler["whiten_rewards"] and ziegler["value"] == "shared"


@pytest.mark.parametrize("name", PRESETS)
def test_a_recipe_that_extends_a_preset_runs(name: str, local: Path, tmp_path: Path) -> None:
    small = ["episodes=16", "batch_size=8", "max_prompt_tokens=16", "max_new_tokens=8"]
    lmhp = ["prefix_tokens=4", "end_after=2"] if name == "lmhp" else []
    recipe = preset_recipe(name, local, tmp_path, *(f"ppo.{s}" for s in [*small, *lmhp]))
    done = execute(recipe, tmp_path / "run", console=Console(quiet=True)).artifacts
    metrics = done["ppo"].metrics
    assert metrics["updates"] == 2 and metrics["episode"] == 16
    assert ("loss/pretraining_avg" in metrics) == (name == "instructgpt")
    if name == "lmhp":
        assert metrics["objective/kl_coefficient"] < 0.15  # the KL is far below its target


@pytest.mark.parametrize(
    "name", ["stories_sentiment", "oasst_rankings", "smollm2_harmless", "gsm8k_calculator"]
)
def test_a_recipe_runs_through_on_local_files(name: str, local: Path, tmp_path: Path) -> None:
    recipe = loaded(name, local)
    run = tmp_path / "run"
    execute(recipe, run, selection=Selection(), console=Console(quiet=True))
    report = json.loads((run / "report" / "report.json").read_text())
    assert list(report["stages"]) == list(recipe.stages)
    if name == "stories_sentiment":
        return
    for stage in {"sft", "reward", "ppo"} & set(recipe.stages):
        kept = json.loads((run / stage / "model" / "tokenizer_config.json").read_text())
        config = json.loads((run / stage / "model" / "config.json").read_text())
        assert (kept["pad_token"], config["pad_token_id"]) == ("<|endoftext|>", 0), stage
