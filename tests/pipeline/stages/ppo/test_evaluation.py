"""Evaluations on held-out prompts while PPO runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from data.errors import Interrupted, RewardError, SourceError
from pipeline.contract.settings import SourceSettings
from pipeline.evaluation.judge.over_optimisation import along_training
from pipeline.rl.ppo.evaluation import figures_of
from pipeline.stages.ppo.settings import PpoSettings
from pipeline.stages.ppo.stage import run

Build = Callable[..., Any]
WORLD = [SourceSettings(world="eval_prompts", limit=5)]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def timeless(path: Path) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in row.items() if k != "seconds" and not k.startswith("time/")}
        for row in rows(path)
    ]


def evaluations(folder: Path) -> list[dict[str, Any]]:
    return [row for row in timeless(folder / "metrics.jsonl") if "evaluation/scores" in row]


def same_weights(ours: Path, theirs: Path) -> bool:
    from safetensors.torch import load_file

    a, b = (load_file(folder / "model" / "model.safetensors") for folder in (ours, theirs))
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def gold_gives(monkeypatch: pytest.MonkeyPatch, *levels: float) -> None:
    """Let gold give one score after another to all answers of an evaluation."""
    from pipeline.stages.ppo.evaluation import GoldScorer

    level = iter(levels)
    monkeypatch.setattr(
        GoldScorer, "score", lambda self, prompts, responses: [next(level)] * len(prompts)
    )


@pytest.fixture
def evaluated(setting: Build) -> Build:
    """Return a builder of runs of four updates that are evaluated by the annotator."""

    def build(folder: str, **changes: Any) -> Any:
        given = {
            "evaluate_every": 2,
            "evaluation_prompts": WORLD,
            "evaluation_gold": True,
            **changes,
        }
        return setting(folder, **given)

    return build


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder for the run of `whole`, and a place for its metrics; both empty."""
    return tmp_path_factory.mktemp("made") / "whole", {}


@pytest.fixture
def whole(evaluated: Build, made: tuple[Path, dict[str, Any]]) -> Path:
    """The folder of such a run that went through, made once."""
    folder, metrics = made
    if not folder.is_dir():
        context = evaluated("whole")
        metrics.update(run(context))
        shutil.copytree(context.folder, folder)
    return folder


def test_an_evaluated_run_ends_in_the_weights_of_one_that_is_not(
    setting: Build, evaluated: Build
) -> None:
    changes = {"normalize_scores": True, "score_clip": 0.5}
    without, watched = setting("without", **changes), evaluated("watched", **changes)
    plain, metrics = run(without), run(watched)
    assert same_weights(watched.folder, without.folder)
    trained = [r for r in timeless(watched.folder / "metrics.jsonl") if "objective/kl" in r]
    assert trained == timeless(without.folder / "metrics.jsonl")
    told = evaluations(watched.folder)
    assert [row["step"] for row in told] == [0, 2, 4]
    assert told[0]["evaluation/kl"] == pytest.approx(0, abs=1e-5) and told[-1]["evaluation/kl"] != 0
    assert metrics["evaluation/gold"] == told[-1]["evaluation/gold"]
    assert "evaluation/scores" not in plain
    assert not (without.folder / "evaluation.jsonl").exists()


def test_figures_recount_from_the_rows(whole: Path, evaluated: Build) -> None:
    answers = rows(whole / "evaluation.jsonl")
    assert [row["index"] for row in answers] == [*range(3)] * 3  # two prompts are too long
    for row in evaluations(whole):
        mine = [answer for answer in answers if answer["update"] == row["step"]]
        assert figures_of(mine) == {k: v for k, v in row.items() if k != "step"}
    told = json.loads((whole / "over_optimisation.json").read_text())
    recounted = json.loads(json.dumps(along_training(answers, seed=0)))
    assert recounted is not None and len(told["points"]) == 3
    for key in ("points", "fits", "prompts"):
        assert told[key] == recounted[key], key
    # What is said does not hang on how often it is asked.
    again = evaluated("again", evaluate_every=4)
    run(again)
    assert rows(again.folder / "evaluation.jsonl")[:3] == answers[:3]


def test_scores_are_the_terms_as_they_are_and_a_second_reward_judges(
    setting: Build, tmp_path: Path
) -> None:
    length = {"rule": "length", "options": {"target": 40, "unit": "characters"}}
    context = setting(
        "terms",
        reward=[{**length, "weight": 2.0, "clip": 0.01, "normalize": True}],
        score_clip=0.01,
        value_start=str(tmp_path / "rm"),
        episodes=8,
        evaluate_every=1,
        evaluation_prompts=WORLD,
        evaluation_reward=[length],
    )
    run(context)
    for row in rows(context.folder / "evaluation.jsonl"):
        assert row["proxy"] == pytest.approx(2 * row["gold"])
    assert any(abs(row["proxy"]) > 0.02 for row in rows(context.folder / "evaluation.jsonl"))


@pytest.mark.parametrize("stop_after", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_run_that_was_cut_off_ends_as_the_whole_one(
    whole: Path, made: tuple[Path, dict[str, Any]], evaluated: Build, stop_after: int
) -> None:
    cut = evaluated("cut", stop_after=stop_after)
    while True:
        try:
            metrics = run(cut)
            break
        except Interrupted:
            cut = evaluated("cut", stop_after=stop_after)
            if stop_after == 0:
                stop_after = 10
    assert same_weights(cut.folder, whole)
    for name in ("evaluation.jsonl", "samples.jsonl"):
        assert (cut.folder / name).read_bytes() == (whole / name).read_bytes()
    assert timeless(cut.folder / "metrics.jsonl") == timeless(whole / "metrics.jsonl")
    assert {k: v for k, v in metrics.items() if not k.startswith("time/")} == {
        k: v for k, v in made[1].items() if not k.startswith("time/")
    }


@pytest.mark.parametrize("dies", ["evaluation", "update"])
def test_a_judge_that_fails_loses_no_update_and_no_evaluation_comes_twice(
    whole: Path, evaluated: Build, monkeypatch: pytest.MonkeyPatch, dies: str
) -> None:
    from pipeline.rl.rewards import RewardSum

    cut = evaluated("cut", save_every=0)
    name = {"evaluation": "unshaped", "update": "score"}[dies]
    original, calls = getattr(RewardSum, name), []

    def fails(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise RewardError("the judge is away")
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(RewardSum, name, fails)
        with pytest.raises(RewardError, match="away"):
            run(cut)
    run(evaluated("cut", save_every=0))
    assert timeless(cut.folder / "metrics.jsonl") == timeless(whole / "metrics.jsonl")
    assert same_weights(cut.folder, whole)


def test_prompts_that_ppo_samples_on_are_left_out(
    setting: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mixed.jsonl"
    asked = ["what is  0 + 0?", "What is 1 + 2?", "Who is it?", "Where?"]
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in asked))
    context = setting(
        evaluate_every=4, evaluation_prompts=[SourceSettings(path=str(path))], episodes=8
    )
    said: list[str] = []
    monkeypatch.setattr(type(context), "say", lambda self, line: said.append(line))
    run(context)
    told = rows(context.folder / "evaluation.jsonl")
    assert {row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
            for row in told} == {"Who is it?", "Where?"}  # fmt: skip
    assert "left out 2 evaluation prompts: PPO samples on the same" in said
    assert any(line.startswith("after update 0, 2 prompts kept apart: scores ") for line in said)
    path.write_text(json.dumps({"prompt": "WHAT IS 0 + 0?"}) + "\n")
    with pytest.raises(SourceError, match="holds 1 prompt that fit, and PPO samples on 1 of them"):
        run(setting("none", evaluate_every=4, evaluation_prompts=[SourceSettings(path=str(path))]))


def test_the_best_policy_is_the_best_one_held_out(
    evaluated: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.rl.health import best_policy

    gold_gives(monkeypatch, 0.5, 0.9, 0.3, 0.1, 0.0)
    monkeypatch.setattr(best_policy.AlarmMonitor, "unwell", False)

    def observe(self: Any, metrics: Any) -> Any:
        from pipeline.rl.health.doctor import Finding

        self.history.append(dict(metrics))
        found = Finding(9.0, 1.0, True, "it fell")
        return {}, {"collapse": found} if len(self.history) == 4 else {}

    monkeypatch.setattr(best_policy.AlarmMonitor, "observe", observe)
    doctor = {"on_alarm": "best", "best_every": 3, "kl_per_token": 1e9}
    context = evaluated("best", evaluate_every=1, doctor=doctor)
    metrics = run(context)
    assert metrics["doctor/back_to_update"] == 1 and metrics["evaluation/gold"] == pytest.approx(
        0.9
    )
    assert "objective/scores" in metrics


def test_the_turn_of_gold_is_told_and_the_policy_there_is_kept(
    setting: Build, evaluated: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    gold_gives(monkeypatch, 0.5, 0.9, 0.1)
    context = evaluated("turns", schedule="constant")
    said: list[str] = []
    monkeypatch.setattr(type(context), "say", lambda self, line: said.append(line))
    run(context)
    told = json.loads((context.folder / "over_optimisation.json").read_text())
    assert told["turn"]["step"] == 2 and told["turn"]["state"] == "best/model"
    assert [point["step"] for point in told["points"]] == [0, 2, 4]
    assert told["sentence"] == said[-1]
    assert "take update 2, which is kept in ppo/best/model" in told["sentence"]
    assert json.loads((context.folder / "best" / "update.json").read_text()) == {"update": 2}
    # The policy after two updates, as a run that ends there leaves it.
    short = setting("short", episodes=16, schedule="constant")
    run(short)
    assert same_weights(context.folder / "best", short.folder)


def test_without_a_second_judge_there_is_no_over_optimisation_to_tell(evaluated: Build) -> None:
    context = evaluated("alone", evaluation_gold=False, episodes=8, evaluate_every=1)
    run(context)
    assert not (context.folder / "over_optimisation.json").exists()
    assert not (context.folder / "best").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"evaluation_gold": True}, "evaluate_every is 0"),
        ({"evaluate_every": 3}, "name the evaluation_prompts"),
        (
            {"evaluate_every": 3, "evaluation_prompts": [{"path": "a"}], "evaluation_gold": True},
            "embedded world's prompts alone",
        ),
        (
            {
                "evaluate_every": 3,
                "evaluation_prompts": [{"world": "eval_prompts"}],
                "evaluation_gold": True,
                "evaluation_reward": "./rm",
            },
            "keep one",
        ),
        (
            {
                "evaluate_every": 3,
                "evaluation_prompts": [{"path": "a"}],
                "evaluation_reward": [{"rule": "length", "normalize": True}],
            },
            "evaluation_reward: `normalize` is for PPO",
        ),
        (
            {"max_prompt_tokens": 64, "retrieve": {"corpus": [{"world": "register"}]}},
            r"retrieve\.passage_tokens is 200, which leaves nothing of max_prompt_tokens 64",
        ),
    ],
)
def test_settings_that_do_not_fit_are_told(changes: dict[str, Any], told: str) -> None:
    given: dict[str, Any] = {"policy": "./p", "reward": "./r", "prompts": [{"path": "a"}]}
    with pytest.raises(ValidationError, match=told):
        PpoSettings.model_validate(given | changes)


def test_a_second_judge_that_pays_the_policy_is_told() -> None:
    given: dict[str, Any] = {
        "policy": "./p", "reward": "./r", "prompts": [{"path": "a"}], "evaluate_every": 3,
        "evaluation_prompts": [{"path": "b"}],
    }  # fmt: skip
    told = [
        PpoSettings.model_validate(given | {"evaluation_reward": judge}).judged_by_reward
        for judge in ("./other", "./r", [{"models": ["./other", "./r"]}])
    ]
    assert told[0] == [] and told[1] == told[2]
    assert "./r: evaluation_reward is not held out, PPO is paid by it" in told[1][0]


@pytest.mark.parametrize("doctor", [{}, {"on_alarm": "best"}])
def test_the_key_of_a_run_that_is_not_evaluated_is_what_it_was(doctor: dict[str, Any]) -> None:
    given: dict[str, Any] = {
        "policy": "./p", "reward": "./r", "prompts": [{"path": "a"}], "doctor": doctor,
    }  # fmt: skip
    plain = PpoSettings.model_validate(given)
    assert not any(name.startswith("evaluat") for name in plain.recorded_settings())
    more = {"evaluation_prompts": [{"path": "b"}]}
    keys = [
        PpoSettings.model_validate(given | more | {"evaluate_every": n}).key_settings()
        for n in (1, 2)
    ]
    # How often matters where the best policy is chosen by it.
    assert (keys[0] == keys[1]) == (not doctor) and keys[0] != plain.key_settings()
