"""What a recipe can reward a policy by: reward models, ensembles, rules, functions, servers."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from data.errors import HandOverError, Interrupted, ModelError, RecipeError, RewardError
from pipeline.contract.console import Console
from pipeline.contract.context import StageContext
from pipeline.contract.settings import SourceSettings, references
from pipeline.recipe.load import load_recipe
from pipeline.run.checking import check_recipe
from pipeline.run.planning import Planner
from pipeline.run.runner import execute, plan
from pipeline.stages.evaluate import stage as evaluate_stage
from pipeline.stages.evaluate.settings import EvaluateSettings
from pipeline.stages.ppo.checks import check
from pipeline.stages.ppo.settings import PpoSettings
from pipeline.stages.ppo.stage import run
from reward import plugins
from reward.functions import REWARDS
from reward.learned.model import RewardModel
from reward.plugins import load_plugin

Build = Callable[..., Any]
RLHF = Path(sys.executable).with_name("rlhf")
ROOT = Path(__file__).parents[3]
PLUGIN = """
from reward.functions import reward

@reward("vowels")
def vowels(prompts, responses, rows, tokens, scale=1.0):
    assert all(row["answer"] for row in rows)
    return [scale * sum(c in "aeiou" for c in text) / n for text, n in zip(responses, tokens)]
"""
FAILS_ON_ONE = """
    import os
    vowels.calls = getattr(vowels, "calls", 0) + 1
    if vowels.calls == 2 and os.environ["RANK"] == "1":
        raise KeyError("k")
"""


@pytest.fixture(autouse=True)
def fresh_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_plugins", {})
    monkeypatch.setattr(REWARDS, "functions", {})


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN)
    return path


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    asked = [
        {"messages": [{"role": "user", "content": f"What is {a} + {b}?"}], "answer": a + b + 1}
        for a in range(4)
        for b in range(3)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in asked))
    return path


@pytest.fixture
def setting(tmp_path: Path, policy: Path, prompts: Path, make_context: Build) -> Build:
    """Return a builder of contexts of a tiny run of PPO."""

    def build(
        reward: Any, folder: str = "ppo", *, stop_after: int | None = None, **changes: Any
    ) -> StageContext[Any]:
        settings = PpoSettings(**ppo_settings(policy, reward, prompts, **changes))
        inputs = {path: target for path, (target, _) in references(settings).items()}
        return make_context(settings, inputs, tmp_path / folder, name="ppo", stop_after=stop_after)

    return build


def ppo_settings(policy: Path, reward: Any, prompts: Path, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "ppo", "policy": str(policy), "reward": reward, "prompts": [{"path": str(prompts)}],
        "episodes": 32, "batch_size": 8, "epochs": 2, "micro_batch_size": 4, "max_new_tokens": 6,
        "max_prompt_tokens": 40, "temperature": 1.0, "learning_rate": 1e-2, "save_every": 1,
        "sample_every": 1, "sample_count": 8, **changes,
    }  # fmt: skip


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(folder: Path, name: str = "model") -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / name / "model.safetensors")


def every_kind(reward_model: Build, url: str) -> list[dict[str, Any]]:
    """Return rewards of every kind that has parts of its own."""
    return [
        {
            "models": [str(reward_model("a", 1)), str(reward_model("b", 2))],
            "combine": "mean_minus_std",
            "coefficient": 0.5,
            "normalize": True,
        },
        {"function": "vowels", "options": {"scale": 2.0}, "clip": 0.8},
        {"url": url, "weight": 0.5, "batch_size": 3, "normalize": True, "clip": 2.0},
        {"rule": "answer", "options": {"pattern": r"\d+"}},
        {"rule": "length_penalty", "weight": 0.01},
    ]


def scores_again(model: RewardModel, samples: list[dict[str, Any]]) -> list[float]:
    columns = ([s[name] for s in samples] for name in ("prompt", "response", "ended"))
    prompts, responses, ended = columns
    return model.score(prompts, responses, ended=ended)


def test_a_reward_model_may_have_another_tokenizer_and_template(
    setting: Build, reward_model: Build, policy: Path
) -> None:
    from transformers import AutoTokenizer

    folder = reward_model("rm")
    ours, theirs = (AutoTokenizer.from_pretrained(place) for place in (policy, folder))
    assert ours.get_vocab() != theirs.get_vocab() and ours.chat_template != theirs.chat_template
    context = setting(str(folder), end_rule="none")
    check(context.settings, context.hand)
    run(context)
    model = RewardModel.load(folder)
    samples = rows(context.folder / "samples.jsonl")
    expected = scores_again(model, samples)
    assert len(samples) == 32 and len(set(expected)) > 1
    assert [s["score"] for s in samples] == pytest.approx(expected, abs=1e-4)
    # Nor can it become the value model, which then starts from the policy.
    value, head = weights(context.folder, "value_model"), weights(policy, "../policy")
    assert value["model.embed_tokens.weight"].shape == head["model.embed_tokens.weight"].shape


def test_a_reward_model_that_cannot_read_the_prompts_is_refused_before_sampling(
    setting: Build, reward_model: Build
) -> None:
    context = setting(str(reward_model("rm", template=None)))
    with pytest.raises(ModelError, match=r"rm has no chat template"):
        run(context)
    assert not (context.folder / "metrics.jsonl").exists()


def test_an_ensemble_is_the_combination_of_its_members(setting: Build, reward_model: Build) -> None:
    places = [str(reward_model(name, seed)) for name, seed in (("a", 1), ("b", 2), ("c", 3))]
    context = setting([{"models": places, "combine": "min"}], end_rule="none", episodes=8)
    assert sorted(p for p in references(context.settings) if p.startswith("reward")) == [
        "reward.0.models.0", "reward.0.models.1", "reward.0.models.2",
    ]  # fmt: skip
    run(context)
    samples = rows(context.folder / "samples.jsonl")
    members = [scores_again(RewardModel.load(place), samples) for place in places]
    expected = [min(scores) for scores in zip(*members, strict=True)]
    assert [s["score"] for s in samples] == pytest.approx(expected, abs=1e-4)


def test_rewards_of_every_kind_resume_exactly(
    setting: Build, reward_model: Build, plugin: Path, server: Any
) -> None:
    load_plugin(plugin)
    reward = every_kind(reward_model, server.url)
    whole = setting(reward, "whole", normalize_scores=True)
    check(whole.settings, whole.hand)
    expected = run(whole)
    parts = {name for name in expected if name.startswith("objective/scores/")}
    assert parts == {
        f"objective/scores/{name}"
        for name in ("ensemble", "vowels", "endpoint", "answer", "length_penalty")
    }
    for stop_after in (0, 1):
        with pytest.raises(Interrupted):
            run(setting(reward, "cut", stop_after=stop_after, normalize_scores=True))
    cut = setting(reward, "cut", normalize_scores=True)
    metrics = run(cut)
    ours, theirs = weights(cut.folder), weights(whole.folder)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert {k: v for k, v in metrics.items() if not k.startswith("time/")} == {
        k: v for k, v in expected.items() if not k.startswith("time/")
    }


def test_a_server_that_dies_stops_the_run_and_nothing_is_lost(setting: Build, server: Any) -> None:
    reward = [{"url": server.url, "retries": 0, "normalize": True}]
    whole = setting(reward, "whole")
    run(whole)
    server.requests, server.fails_at = 0, frozenset({3})
    dead = setting(reward, "dead", save_every=0)
    with pytest.raises(RewardError, match=r"no scores in 1 tries.*503"):
        run(dead)
    assert (dead.folder / "resume" / "step-00000002" / "complete.json").is_file()
    again = setting(reward, "dead", save_every=0)
    run(again)
    # Two updates, the third's failure, and then the two that were left: none was done twice.
    assert server.requests == 5
    ours, theirs = weights(again.folder), weights(whole.folder)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert [r["step"] for r in rows(again.folder / "metrics.jsonl")] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        ({}, "names exactly one of model, models, rule, function, url; this one names none"),
        ({"rule": "length", "url": "http://a"}, "this one names rule and url"),
        ({"models": ["./a"]}, "two reward models or more"),
        ({"model": "./a", "options": {"x": 1}}, "options: only for rule or function"),
        ({"rule": "length", "retries": 1}, "retries: only for url, this reward is a rule"),
        ({"model": "./a", "combine": "min"}, "combine: only for models"),
        ({"url": "ftp://a"}, "an address is http:"),
        ({"url": "http:///x"}, "an address is http:"),
        ({"rule": "length", "clip": 0}, "greater than 0"),
    ],
)
def test_rewards_that_make_no_sense_are_refused(
    setting: Build, term: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        setting([term])


def test_check_refuses_rules_and_functions_that_cannot_be_had(
    setting: Build, plugin: Path, policy: Path
) -> None:
    load_plugin(plugin)
    for term, expected in [
        ({"function": "vowel"}, "stage ppo: no reward function is called 'vowel'.*'vowels'"),
        ({"function": "vowels", "options": {"size": 1}}, "options size"),
        ({"rule": "regex", "options": {"pattern": "("}}, "no regular expression"),
        ({"rule": "length"}, "does not take these options"),
        ({"models": [str(policy), str(policy)]}, "is a LlamaForCausalLM, a reward model is"),
    ]:
        context = setting([term])
        with pytest.raises(HandOverError, match=expected):
            check(context.settings, context.hand)


def test_settings_survive_being_written_out(setting: Build, plugin: Path) -> None:
    load_plugin(plugin)
    context = setting([{"function": "vowels"}, {"models": ["./a", "./b"]}, {"url": "http://a/b"}])
    written = yaml.safe_load(yaml.safe_dump(context.settings.model_dump(mode="json")))
    assert PpoSettings(**written) == context.settings


def test_an_evaluation_judges_by_the_same_rewards(
    policy: Path, prompts: Path, plugin: Path, reward_model: Build, make_context: Build
) -> None:
    load_plugin(plugin)
    reward: list[dict[str, Any]] = [
        {"models": [str(reward_model("a", 1)), str(reward_model("b", 2))], "combine": "min"},
        {"function": "vowels", "weight": 2.0},
        {"rule": "length_penalty", "weight": 0.5, "clip": 3.0},
    ]
    settings = EvaluateSettings(
        checkpoints={"mine": str(policy)}, prompts=[SourceSettings(path=str(prompts))],
        reward=reward, max_new_tokens=5, resamples=20,
    )  # fmt: skip
    inputs = {path: target for path, (target, _) in references(settings).items()}
    context = make_context(settings, inputs, name="evaluate")
    evaluate_stage.check(settings, context.hand)
    evaluate_stage.run(context)
    samples = rows(context.folder / "samples.jsonl")
    members = [scores_again(RewardModel.load(place), samples) for place in reward[0]["models"]]
    for sample, scores in zip(samples, zip(*members, strict=True), strict=True):
        vowels = sum(c in "aeiou" for c in sample["response"]) / sample["n_tokens"]
        penalty = min(3.0, sample["n_tokens"])
        expected = min(scores) + 2 * vowels - 0.5 * penalty
        assert sample["proxy"] == pytest.approx(expected, abs=1e-4)
    with pytest.raises(ValueError, match="`normalize` is for PPO"):
        EvaluateSettings(
            checkpoints={"mine": "./x"}, prompts=[SourceSettings(path="./p")],
            reward=[{"rule": "length", "options": {"target": 1}, "normalize": True}],
        )  # fmt: skip


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(
        [str(RLHF), *arguments], cwd=cwd, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def stop(process: subprocess.Popen[str]) -> None:
    """Kill a process and what it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a process; return its exit code and what it said."""
    try:
        out, err = process.communicate()
    except BaseException:
        stop(process)
        raise
    return process.returncode, out + err


@pytest.fixture
def recipe(tmp_path: Path, policy: Path, prompts: Path, reward_model: Build, server: Any) -> Path:
    reward = every_kind(reward_model, server.url)
    stages = {"ppo": ppo_settings(policy, reward, prompts, normalize_scores=True)}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"stages": stages}))
    return path


def test_a_plugin_belongs_to_what_a_result_follows_from(
    recipe: Path, plugin: Path, tmp_path: Path
) -> None:
    checked, run_folder = load_recipe(recipe), tmp_path / "run"
    with pytest.raises(RecipeError, match=r"stages\.ppo\.reward\.1\.function: no reward function"):
        plan(Planner(checked, run_folder))
    load_plugin(plugin)
    done = execute(checked, run_folder, console=Console(quiet=True)).artifacts["ppo"]
    digest = hashlib.sha256(plugin.read_bytes()).hexdigest()
    assert done.manifest["inputs"]["functions"] == {"vowels": digest}
    assert plan(Planner(checked, run_folder))[0].action == "up to date"
    plugin.write_text(PLUGIN.replace("aeiou", "aeiouy"))
    load_plugin(plugin)
    (step,) = plan(Planner(checked, run_folder))
    assert (step.action, step.reason) == ("run", "reward function vowels changed")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_with_a_plugin_that_is_killed_ends_like_one_that_was_not(
    recipe: Path, plugin: Path, server: Any, tmp_path: Path
) -> None:
    quiet, checked, cut = Console(quiet=True), load_recipe(recipe), tmp_path / "cut"
    log = cut / "ppo" / "metrics.jsonl"
    process = start("run", str(recipe), "--plugin", "mine.py", "-q", "--out", "cut", cwd=tmp_path)
    deadline = time.monotonic() + 200
    while not (log.is_file() and log.read_text().count("\n") >= 2):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    stop(process)
    assert not (log.parent / "manifest.json").exists()

    with pytest.raises(RecipeError, match=r"stages\.ppo\.reward\.1\.function: no reward function"):
        plan(Planner(checked, cut))
    load_plugin(plugin)
    assert plan(Planner(checked, cut))[0].action == "resume"
    execute(checked, cut, console=quiet)
    server.requests, server.fails_at = 0, frozenset({2, 3})  # which retries get over
    execute(checked, tmp_path / "whole", console=quiet)
    ours, theirs = (weights(tmp_path / name / "ppo") for name in ("cut", "whole"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_plugin_reaches_all_processes(recipe: Path, plugin: Path, tmp_path: Path) -> None:
    load_plugin(plugin)
    # Micro-batches of other sizes round otherwise, in bfloat16 by 1e-3; where a gradient is near
    # zero Adam makes whole steps of that, and at a high rate the runs soon sample other tokens.
    calm = "learning_rate: 1.0e-4\n    bf16: false"
    recipe.write_text(recipe.read_text().replace("learning_rate: 0.01", calm))
    execute(load_recipe(recipe), tmp_path / "one", console=Console(quiet=True))
    command = ("run", str(recipe), "--plugin", str(plugin), "-q", "--processes", "2", "--out")
    code, told = finish(start(*command, "two", cwd=tmp_path))
    assert code == 0, told
    one, two = (rows(tmp_path / name / "ppo" / "metrics.jsonl") for name in ("one", "two"))
    for ours, theirs in zip(one, two, strict=True):
        for part in ("vowels", "ensemble", "endpoint"):
            key = f"objective/scores/{part}"
            assert theirs[key] == pytest.approx(ours[key], abs=1e-4), key
    # One process fails; all stop, tell why, and keep what was trained.
    plugin.write_text(PLUGIN.replace("    assert all", FAILS_ON_ONE + "    assert all"))
    code, told = finish(start(*command, "broken", "--set", "ppo.save_every=0", cwd=tmp_path))
    assert code == 1, told
    assert "reward function 'vowels'" in told and "failed with KeyError" in told
    assert (tmp_path / "broken/ppo/resume/step-00000001/complete.json").is_file()


def test_a_reward_model_that_does_not_beat_length_is_told_before_ppo_and_in_validate(
    setting: Build,
    reward_model: Build,
    policy: Path,
    prompts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stage = tmp_path / "made" / "rm"
    stage.mkdir(parents=True)
    reward_model("other").rename(stage / "model")
    sentence = "the reward model is beaten by always taking the longer answer: right on 60.0 % ..."
    told = f"warning: {stage}: {sentence}; a policy trained against it may learn little but length"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump({"stages": {"ppo": ppo_settings(policy, str(stage), prompts)}})
    )

    def validated() -> list[str]:
        return check_recipe(load_recipe(recipe), tmp_path / "run")

    assert validated() == []
    quality = stage / "quality.json"
    quality.write_text(json.dumps({"accuracy": 0.6, "warning": sentence}))
    assert validated() == [f"stage ppo: {told}"]
    context = setting(str(stage), episodes=8)
    context.console = Console()
    run(context)
    said = capsys.readouterr().out
    assert said.count(told) == 1
    for other in ('{"warning": null}', '{"accuracy": 0.9}', "[]", "no json"):
        quality.write_text(other)
        assert validated() == []
