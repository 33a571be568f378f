"""The evaluate stage on tiny models: figures, judges, resuming, and what it refuses."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from data.errors import HandOverError, Interrupted, SourceError
from data.json_lines import read_json_lines
from pipeline.contract.settings import SourceSettings, references
from pipeline.evaluation.judge import judge as engine
from pipeline.evaluation.judge.figures import figures
from pipeline.evaluation.judge.texts import text_figures
from pipeline.stages.evaluate.settings import EvaluateSettings
from pipeline.stages.evaluate.stage import KIND, check, run

WORLD = SourceSettings(world="eval_prompts")


@pytest.fixture
def checkpoints(
    tiny_tokenizer: Callable[..., Any], save_policy: Callable[..., Path], tmp_path: Path
) -> dict[str, Path]:
    """Save three models of one tokenizer, each with other weights."""
    tokenizer = tiny_tokenizer()
    return {
        name: save_policy(tokenizer, tmp_path / name, seed=seed, context=256)
        for seed, name in enumerate(("base", "sft", "ppo"))
    }


@pytest.fixture
def reward_model(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    """Save a reward model that starts from the SFT checkpoint."""
    from reward.learned.model import RewardModel

    model = RewardModel.start(checkpoints["sft"], seed=0)
    model.save(tmp_path / "rm", trained=True)
    return tmp_path / "rm"


def settings_for(checkpoints: dict[str, Path], /, **changes: Any) -> EvaluateSettings:
    """Return settings of a small evaluation."""
    given: dict[str, Any] = {
        "checkpoints": {name: str(path) for name, path in checkpoints.items()},
        "prompts": [WORLD],
        "limit": 6,
        "gold": True,
        "plain": ["base"] if "base" in checkpoints else [],
        "max_new_tokens": 6,
        "resamples": 50,
    }
    return EvaluateSettings.model_validate(given | changes)


def inputs(settings: EvaluateSettings) -> dict[str, str]:
    """Return each reference's target, as the runner resolves it."""
    return {field: target for field, (target, _) in references(settings).items()}


def test_every_checkpoint_and_the_reward_model_are_references(
    checkpoints: dict[str, Path],
) -> None:
    settings = settings_for(checkpoints, reward="reward")
    found = {
        field: (target, mark.provides) for field, (target, mark) in references(settings).items()
    }
    assert found["checkpoints.ppo"] == (str(checkpoints["ppo"]), "policy")
    assert found["reward"] == ("reward", "reward")


def test_all_figures_come_out_and_recount_from_the_samples(
    make_context: Callable[..., Any],
    checkpoints: dict[str, Path],
    reward_model: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "held.txt").write_text("The miller lives by the river.\n\nAda bakes bread.\n")
    settings = settings_for(
        checkpoints,
        reward=str(reward_model),
        perplexity=[SourceSettings(path=str(tmp_path / "held.txt"))],
    )
    context = make_context(settings, inputs(settings))
    metrics = run(context)
    results = json.loads((context.folder / "evaluation.json").read_text())
    assert list(results["checkpoints"]) == ["base", "sft", "ppo"]
    assert results["reference"] == "sft"
    for name, mine in results["checkpoints"].items():
        assert mine["n"] == 6
        assert mine["perplexity"] > 1
        assert mine["proxy_reward"] is not None
        assert 0 <= mine["gold_reward"] <= 1
        assert 1 <= mine["mean_length"] <= 6
        assert mine["plain_prompts"] == (name == "base")
        assert metrics[f"{name}/gold_reward"] == mine["gold_reward"]
    assert results["checkpoints"]["sft"]["kl_to_reference"] == 0.0
    assert results["checkpoints"]["ppo"]["kl_to_reference"] != 0.0
    assert {(r["a"], r["b"], r["judge"]) for r in results["win_rates"]} == {
        (a, b, judge)
        for a, b in (("sft", "base"), ("ppo", "sft"), ("ppo", "base"))
        for judge in ("gold", "proxy")
    }
    assert KIND.main_metric in metrics

    rows = [*read_json_lines(context.folder / "samples.jsonl")]
    assert len(rows) == 18
    again = figures(rows, resamples=50, seed=0)
    assert again["win_rates"] == results["win_rates"]
    assert again["differences"] == results["differences"]
    assert again["ratings"] == results["ratings"]
    assert again["pathologies"] == results["pathologies"] != []
    losses = [*read_json_lines(context.folder / "texts.jsonl")]
    assert len(losses) == 3 and set(losses[0]) == {
        "checkpoint", "index", "nats", "tokens", "bytes", "given_back",
    }  # fmt: skip
    on_texts = text_figures(losses)
    assert on_texts.alignment_tax == results["alignment_tax"]
    for name, mine in on_texts.checkpoints.items():
        assert {key: results["checkpoints"][name][key] for key in mine} == mine
    assert isinstance(again["checkpoints"], dict)
    for name, mine in again["checkpoints"].items():
        assert {key: results["checkpoints"][name][key] for key in mine} == mine


def test_samples_are_judged_by_the_world(
    make_context: Callable[..., Any], checkpoints: dict[str, Path]
) -> None:
    from data.world.annotator import GoldAnnotator

    settings = settings_for({"ppo": checkpoints["ppo"]})
    context = make_context(settings, inputs(settings))
    run(context)
    judge = GoldAnnotator(0)
    for row in [*read_json_lines(context.folder / "samples.jsonl")]:
        assert row["gold"] == judge.score(row["prompt"], row["response"])
        assert row["proxy"] is None
        assert row["assessment"]["outcome"]


def test_the_same_seed_gives_the_same_samples_and_neighbours_change_none(
    make_context: Callable[..., Any], checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    def samples(folder: str, names: tuple[str, ...], **changes: Any) -> list[dict[str, Any]]:
        settings = settings_for({n: checkpoints[n] for n in names}, plain=[], **changes)
        context = make_context(settings, inputs(settings), tmp_path / folder)
        run(context)
        rows = [*read_json_lines(context.folder / "samples.jsonl")]
        return [row["response"] for row in rows if row["checkpoint"] == "ppo"]

    alone = samples("one", ("ppo",))
    assert alone == samples("two", ("sft", "ppo"))
    assert alone == samples("three", ("ppo",), batch_size=2)


def test_a_cut_off_evaluation_goes_on_and_ends_in_the_same_samples(
    make_context: Callable[..., Any],
    checkpoints: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = settings_for(checkpoints)
    whole = make_context(settings, inputs(settings), tmp_path / "whole")
    run(whole)
    with pytest.raises(Interrupted):
        run(make_context(settings, inputs(settings), tmp_path / "cut", stop_after=1))
    assert not (tmp_path / "cut" / "evaluation.json").exists()

    asked = asked_while(monkeypatch)
    run(make_context(settings, inputs(settings), tmp_path / "cut"))
    assert asked == ["sft", "ppo"]
    for name in ("samples.jsonl", "evaluation.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def asked_while(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list of the checkpoints that answer from now on."""
    asked: list[str] = []
    answer = engine._answer

    def watched(plan: Any, workspace: Any, name: str) -> Any:
        asked.append(name)
        return answer(plan, workspace, name)

    monkeypatch.setattr(engine, "_answer", watched)
    return asked


def test_a_checkpoint_that_was_trained_again_alone_answers_again(
    make_context: Callable[..., Any],
    checkpoints: dict[str, Path],
    save_policy: Callable[..., Path],
    tiny_tokenizer: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = asked_while(monkeypatch)
    folder = tmp_path / "evaluate"

    def again(**changes: Any) -> bytes:
        settings = settings_for(checkpoints, **changes)
        shutil.rmtree(folder, ignore_errors=True)
        asked.clear()
        run(make_context(settings, inputs(settings), folder))
        return (folder / "samples.jsonl").read_bytes()

    first = again()
    assert asked == ["base", "sft", "ppo"]
    assert again(batch_size=2, resamples=20) == first
    assert asked == []
    save_policy(tiny_tokenizer(), checkpoints["ppo"], seed=7, context=256)
    assert again() != first
    assert asked == ["ppo"]
    again(max_new_tokens=3)
    assert asked == ["base", "sft", "ppo"]
    again()  # what was kept of six tokens went when the evaluation of three had ended
    assert asked == ["base", "sft", "ppo"]


def test_work_of_other_settings_is_not_taken_over(
    make_context: Callable[..., Any], checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    for tokens in (3, 6):
        settings = settings_for({"ppo": checkpoints["ppo"]}, max_new_tokens=tokens)
        context = make_context(settings, inputs(settings), tmp_path / "same")
        run(context)
        rows = [*read_json_lines(context.folder / "samples.jsonl")]
        assert max(row["n_tokens"] for row in rows) == tokens


def test_no_kl_between_tokenizers(
    make_context: Callable[..., Any],
    tiny_tokenizer: Callable[..., Any],
    save_policy: Callable[..., Path],
    checkpoints: dict[str, Path],
    tmp_path: Path,
) -> None:
    other = save_policy(tiny_tokenizer(vocab_size=300), tmp_path / "other", context=256)
    settings = settings_for({"sft": checkpoints["sft"], "other": other}, gold=False)
    context = make_context(settings, inputs(settings))
    run(context)
    results = json.loads((context.folder / "evaluation.json").read_text())
    assert results["checkpoints"]["other"]["kl_to_reference"] is None
    assert results["checkpoints"]["sft"]["kl_to_reference"] == 0.0
    assert results["win_rates"] == []


def test_plain_prompts_and_a_rule(
    make_context: Callable[..., Any], checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in ("The miller", "Ada")))
    settings = settings_for(
        {"base": checkpoints["base"], "ppo": checkpoints["ppo"]},
        prompts=[SourceSettings(path=str(path))],
        gold=False,
        rule="length",
        rule_options={"target": 3},
    )
    context = make_context(settings, inputs(settings))
    metrics = run(context)
    rows = [*read_json_lines(context.folder / "samples.jsonl")]
    assert [row["prompt"] for row in rows] == ["The miller", "Ada"] * 2
    for row in rows:
        assert row["proxy"] == pytest.approx(-abs(len(row["response"].split()) - 3) / 3)
    assert metrics["win_rate/judge"] == "proxy"


def test_prompts_too_long_for_the_context_stop_the_stage(
    make_context: Callable[..., Any], checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "prompts.jsonl"
    texts = ["short", "word " * 400, "also short"]
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    changes: dict[str, Any] = {"prompts": [SourceSettings(path=str(path))], "gold": False}
    settings = settings_for({"ppo": checkpoints["ppo"]}, **changes)
    with pytest.raises(SourceError, match="1 of 3 prompts leave no room"):
        run(make_context(settings, inputs(settings)))
    allowed = settings_for({"ppo": checkpoints["ppo"]}, **changes, max_too_long_share=0.5)
    context = make_context(allowed, inputs(allowed), tmp_path / "allowed")
    run(context)
    results = json.loads((context.folder / "evaluation.json").read_text())
    assert results["prompts"] == {"n": 2, "too_long": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plain": ["bse"]}, "Did you mean 'base'"),
        ({"reference": "sfd"}, "Did you mean 'sft'"),
        ({"reward": "rm", "rule": "length"}, "keep one"),
        ({"prompts": [{"path": "p.jsonl"}]}, "embedded world's prompts alone"),
        ({"checkpoints": {"../x": "sft"}}, "pattern"),
        ({"temprature": 1}, "Extra inputs"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings_for({"base": Path("/b"), "sft": Path("/s")}, **changes)


def test_a_reward_model_is_no_checkpoint_that_answers(
    make_context: Callable[..., Any], checkpoints: dict[str, Path], reward_model: Path
) -> None:
    settings = settings_for({"sft": reward_model})
    with pytest.raises(HandOverError, match="language models that write"):
        check(settings, make_context(settings, inputs(settings)).hand)
    swapped = settings_for({"sft": checkpoints["sft"]}, reward=str(checkpoints["sft"]))
    with pytest.raises(HandOverError, match="reward"):
        check(swapped, make_context(swapped, inputs(swapped)).hand)


def test_prompts_that_ppo_sampled_on_are_told(
    make_context: Callable[..., Any], checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    from pipeline.stages.ppo.settings import PpoSettings
    from pipeline.stages.sft.settings import SftSettings

    def write(name: str, *questions: str) -> SourceSettings:
        rows = [{"prompt": question, "completion": "Ada."} for question in questions]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return SourceSettings(path=str(tmp_path / name))

    asked = write("asked.jsonl", "Who bakes?", "Who mills?", "Who teaches?", "Who sings?")
    taught = write("taught.jsonl", "Who mills?", "Who rows?")
    stages = {
        "sft": SftSettings(model=str(checkpoints["base"]), train=(taught,), heldout_share=0.0),
        "ppo": PpoSettings(policy="sft", reward=str(checkpoints["sft"]), prompts=(asked,)),
        "other": SftSettings(model=str(checkpoints["base"]), train=(asked,)),
    }
    settings = settings_for({}, checkpoints={"ppo": "ppo"}, prompts=[asked], gold=False)
    context = make_context(settings, {"checkpoints.ppo": checkpoints["ppo"]}, stages=stages)
    run(context)
    results = json.loads((context.folder / "evaluation.json").read_text())
    seen = results["seen"]
    assert results["overlap"] == [
        {"checkpoint": "ppo", "stage": "sft", "shared_prompts": 1, "n": 4},
        {"checkpoint": "ppo", "stage": "ppo", "shared_prompts": 4, "n": 4},
    ]
    # `other` is no part of how ppo came to be.
    assert (seen["prompts"], seen["compared"]) == (4, ["sft", "ppo"])
    assert {name: stage["prompts"] for name, stage in seen["stages"].items()} == {
        "sft": 1,
        "ppo": 4,
    }
    assert seen["elsewhere"] == [str(checkpoints["sft"]), str(checkpoints["base"])]


def quiz_of(tmp_path: Path) -> Path:
    rows = [
        {"question": f"What is {a} + 1?", "choices": [str(a), str(a + 1)], "answer": 1}
        for a in range(4)
    ]
    path = tmp_path / "quiz.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_tasks_are_asked_of_every_checkpoint_and_recount_from_their_rows(
    make_context: Callable[..., Any], checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    from pipeline.evaluation.benchmarks.figures import figures as task_figures

    tasks = [
        {"kind": "choices", "name": "quiz", "source": {"path": str(quiz_of(tmp_path))}},
        {"kind": "world_facts", "limit": 2, "max_new_tokens": 3},
    ]
    settings = settings_for(checkpoints, tasks=tasks)
    context = make_context(settings, inputs(settings))
    metrics = run(context)
    results = json.loads((context.folder / "evaluation.json").read_text())
    rows = [*read_json_lines(context.folder / "tasks.jsonl")]
    assert len(rows) == 3 * (4 + 4)
    assert task_figures(rows, resamples=50, seed=0) == results["tasks"]
    by_name = {(t["checkpoint"], t["task"], t["metric"]): t for t in results["tasks"]}
    assert by_name["ppo", "quiz", "accuracy"]["n"] == 4
    assert metrics["ppo/quiz/accuracy"] == by_name["ppo", "quiz", "accuracy"]["value"]
    assert metrics["base/world_facts/strangers_invented"] in (0.0, 0.5, 1.0)
    # The base model is asked in plain text, the others through their template.
    assert by_name["base", "quiz", "accuracy"]["first_tokens"]["tokens"][0] == "<|endoftext|>"
    assert by_name["sft", "quiz", "accuracy"]["first_tokens"]["tokens"][0] == "<|user|>"


def test_tasks_that_were_asked_are_not_asked_again_after_a_cut(
    make_context: Callable[..., Any],
    checkpoints: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pipeline.evaluation.benchmarks import run as tasks_run

    tasks = [{"kind": "choices", "source": {"path": str(quiz_of(tmp_path))}}]
    settings = settings_for(checkpoints, tasks=tasks)
    run(make_context(settings, inputs(settings), tmp_path / "whole"))
    asked: list[str] = []
    ask = tasks_run._ask

    def watched(task: Any, prepared: Any, load: Any) -> Any:
        subject = load()
        asked.append(subject.name)
        if len(asked) == 2:
            raise Interrupted(15)
        return ask(task, prepared, load)

    monkeypatch.setattr(tasks_run, "_ask", watched)
    for _ in range(2):
        with contextlib.suppress(Interrupted):
            run(make_context(settings, inputs(settings), tmp_path / "cut"))
    assert asked == ["base", "sft", "sft", "ppo"]
    for name in ("tasks.jsonl", "evaluation.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_tasks_are_part_of_the_key_where_there_are_any(checkpoints: dict[str, Path]) -> None:
    assert "tasks" not in settings_for(checkpoints).key_settings()
    asking = settings_for(checkpoints, tasks=[{"kind": "world_facts"}])
    assert asking.key_settings()["tasks"][0]["kind"] == "world_facts"


def test_a_task_that_cannot_be_read_is_refused_before_work_starts(
    make_context: Callable[..., Any], checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "quiz.jsonl"
    path.write_text(json.dumps({"question": "Why?", "options": ["a", "b"], "answer": 0}) + "\n")
    settings = settings_for(checkpoints, tasks=[{"kind": "choices", "source": {"path": str(path)}}])
    with pytest.raises(SourceError, match=r"stage evaluate: .*quiz\.jsonl:1: no column 'choices'"):
        check(settings, make_context(settings, inputs(settings)).hand)
