"""What the command does when the doctor's alarms ring: a tiny policy that ends its answers."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from data.errors import Interrupted
from pipeline.contract.context import StageContext
from pipeline.contract.settings import references
from pipeline.run.runner import _report
from pipeline.stages.ppo.settings import PpoSettings
from pipeline.stages.ppo.stage import run

Build = Callable[..., Any]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for the policy that the module's tests start from."""
    return tmp_path_factory.mktemp("start")


def teach_to_end(model: Any, tokenizer: Any) -> None:
    """Train answers of one to eight words, with an end."""
    words = tokenizer.encode("the river runs past the mill and bridge", add_special_tokens=False)
    asked = tokenizer.encode("<|user|>?<|end|><|assistant|>", add_special_tokens=False)
    rows = [[*asked, *words[:n], tokenizer.eos_token_id] for n in range(1, 9)]
    width = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
    labels = ids.masked_fill(ids == tokenizer.pad_token_id, -100)
    labels[:, : len(asked)] = -100
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        model(input_ids=ids, attention_mask=(labels != -200), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture
def settings(start: Path, tiny_tokenizer: Build, tiny_policy: Build) -> dict[str, Any]:
    """Return the settings of a PPO stage that is paid for length alone."""
    policy = start / "policy"
    if not policy.is_dir():
        tokenizer = tiny_tokenizer()
        model = tiny_policy(tokenizer, hidden=32)
        teach_to_end(model, tokenizer)
        model.save_pretrained(policy)
        tokenizer.save_pretrained(policy)
    prompts = start / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"{c}?"}) + "\n" for c in "abcdefgh"))
    return {
        "kind": "ppo",
        "policy": str(policy),
        "reward": [{"rule": "length", "options": {"target": 60, "unit": "characters"}}],
        "prompts": [{"path": str(prompts)}],
        "episodes": 16 * 7,
        "batch_size": 16,
        "epochs": 2,
        "minibatches": 2,
        "max_prompt_tokens": 16,
        "max_new_tokens": 24,
        "temperature": 1.0,
        "end_rule": "none",
        "kl_coefficient": 0.0,
        "learning_rate": 3e-3,
        "value_learning_rate": 1e-2,
        "schedule": "constant",
        "save_every": 2,
        "sample_every": 2,
        "doctor": {"window": 3, "best_every": 1},
    }


@pytest.fixture
def command(settings: dict[str, Any], tmp_path: Path, rlhf: Build) -> Build:
    """Return the command on a recipe of that stage: command("ppo.doctor.window=3", ...)."""
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump({"stages": {"ppo": settings}}))

    def run_command(*changes: str) -> Any:
        options = [word for change in changes for word in ("--set", change)]
        return rlhf("run", recipe, "--out", "run", *options)

    return run_command


@pytest.fixture
def context(
    settings: dict[str, Any], make_context: Build, tmp_path: Path
) -> Callable[..., StageContext[Any]]:
    """Return a builder of that stage's context: context("cut", doctor={...}, ...)."""

    def build(folder: str, *, stop_after: int | None = None, **changes: Any) -> StageContext[Any]:
        checked = PpoSettings(**{**settings, **changes})
        inputs = {path: target for path, (target, _) in references(checked).items()}
        return make_context(checked, inputs, tmp_path / folder, name="ppo", stop_after=stop_after)

    return build


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(folder: Path, name: str = "model") -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / name / "model.safetensors")


def same(ours: Path, theirs: Path, name: str = "model") -> bool:
    a, b = weights(ours, name), weights(theirs, name)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_reward_for_length_is_diagnosed_in_log_metrics_and_report(
    command: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.run.runner._report", _report)
    result = command()
    assert result.code == 0, result.err
    assert "length_hacking: responses went from" in result.out
    folder = tmp_path / "run" / "ppo"
    alarm = next(r for r in rows(folder / "doctor.jsonl") if r["alarm"] == "length_hacking")
    logged = rows(folder / "metrics.jsonl")
    assert logged[alarm["update"] - 1]["doctor/length_hacking"] == alarm["figure"] > 2
    assert logged[alarm["update"] - 1]["doctor/alarms"] >= 1
    assert [r["doctor/alarms"] for r in logged[:3]] == [0, 0, 0]
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "<h2>Alarms</h2>" in page and "length hacking" in page
    report = json.loads((tmp_path / "run" / "report" / "report.json").read_text())
    assert report["stages"]["ppo"]["alarms"][0]["update"] <= alarm["update"]


def test_an_absurd_learning_rate_stops_the_command_and_the_next_one_goes_on(
    command: Build, tmp_path: Path
) -> None:
    wild = "ppo.learning_rate=1.0"
    stopped = command(wild, "ppo.doctor.on_alarm=stop")
    assert stopped.code == 2
    assert "PPO stopped, its state is saved (update 4: " in stopped.err
    assert "kl_blow_up: the KL to the reference is" in stopped.err
    assert "lower learning_rate" in stopped.err and "Traceback" not in stopped.err
    # The doctor's settings change no result, so that the state still counts without them.
    assert "going on after update 4 of 7" in command(wild).out
    folder = tmp_path / "run" / "ppo"
    assert [row["step"] for row in rows(folder / "metrics.jsonl")] == list(range(1, 8))
    known = [row["update"] for row in rows(folder / "doctor.jsonl")]
    assert known[0] == 4 and known == sorted(known)


BEST: dict[str, Any] = {
    "doctor": {"window": 3, "best_every": 1, "on_alarm": "best"},
    "ema_decay": 0.5,
}


@pytest.fixture
def best(context: Build, start: Path) -> tuple[Path, dict[str, float]]:
    """Return the folder of a run that ended with its best policy, and its metrics."""
    ended, told = context(str(start / "best"), **BEST), start / "best.json"
    if not told.exists():
        told.write_text(json.dumps(run(ended)))
    return ended.folder, json.loads(told.read_text())


def test_the_run_ends_with_the_best_policy_before_the_alarm(
    context: Build, best: tuple[Path, dict[str, float]]
) -> None:
    ended, metrics = best
    logged = rows(ended / "metrics.jsonl")
    sound = [
        row["objective/scores"]
        for row in logged
        if row["objective/kl"] <= 1.5 * row["objective/response_length"]
    ]
    update = metrics["doctor/back_to_update"]
    assert metrics["updates"] == update == sound.index(max(sound)) < len(logged) < 7
    # What is published is the policy whose samples had that score.
    assert metrics["objective/scores"] == max(sound)
    short = context("short", episodes=16 * update, ema_decay=0.5)
    run(short)
    assert same(ended, short.folder) and same(ended, short.folder, "value_model")


def test_the_best_policy_survives_interruptions(
    context: Build, best: tuple[Path, dict[str, float]]
) -> None:
    whole, expected = best
    for stop_after in (1, 0):
        with pytest.raises(Interrupted):
            run(context("cut", **BEST, stop_after=stop_after))
    cut = context("cut", **BEST)
    metrics = run(cut)
    assert same(cut.folder, whole)
    for name, value in expected.items():
        if not name.startswith("time/"):
            assert metrics[name] == value, name
    for log in ("doctor.jsonl", "samples.jsonl"):
        assert (cut.folder / log).read_bytes() == (whole / log).read_bytes()


def test_the_best_policy_on_a_shared_trunk_survives_an_interruption(context: Build) -> None:
    more = {**BEST, "trunk": "shared", "lora": {"rank": 8}, "learning_rate": 1e-2}
    whole = context("whole", **more)
    expected = run(whole)
    update = expected["doctor/back_to_update"]
    assert 0 < update == expected["updates"] < len(rows(whole.folder / "metrics.jsonl"))
    with pytest.raises(Interrupted):
        run(context("cut", stop_after=1, **more))
    cut = context("cut", **more)
    run(cut)
    for name in ("model", "value_model"):
        assert same(cut.folder, whole.folder, name)
    # What is published is the policy of that update: adapter, head and average went back.
    short = context("short", episodes=16 * update, **{**more, "doctor": {}})
    run(short)
    files = [c.folder / "adapter" / "adapter_model.safetensors" for c in (whole, cut, short)]
    assert len({file.read_bytes() for file in files}) == 1
    assert same(whole.folder, short.folder) and same(whole.folder, short.folder, "value_model")


def test_a_run_killed_before_its_best_policy_is_published_still_publishes_it(
    context: Build, best: tuple[Path, dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, expected = best
    assert expected["doctor/back_to_update"] < len(rows(whole / "metrics.jsonl")) < 7

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.rl.ppo.save_models.save_models", killed)
        with pytest.raises(KeyboardInterrupt):
            run(context("cut", **BEST))
    cut = context("cut", **BEST)
    metrics = run(cut)
    assert same(cut.folder, whole) and same(cut.folder, whole, "value_model")
    for name in ("doctor/back_to_update", "updates", "objective/scores", "doctor/alarms"):
        assert metrics[name] == expected[name], name
    for log in ("doctor.jsonl", "metrics.jsonl"):
        assert len(rows(cut.folder / log)) == len(rows(whole / log))


def test_a_start_that_never_ends_and_is_random_is_told_and_trained_on(
    context: Build, capsys: pytest.CaptureFixture[str], tiny_tokenizer: Build, tiny_policy: Build,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("pipeline.rl.health.doctor.START_RESPONSES", 16)
    tokenizer = tiny_tokenizer()
    tiny_policy(tokenizer, hidden=32).save_pretrained(tmp_path / "untrained")
    tokenizer.save_pretrained(tmp_path / "untrained")
    told = context(
        "told", policy=str(tmp_path / "untrained"), end_rule="min", max_new_tokens=1,
        doctor={"on_alarm": "stop", "window": 7},
    )  # fmt: skip
    told.console.quiet = False
    metrics = run(told)
    assert metrics["updates"] == 7  # alarms of the start end no run
    alarms = {row["alarm"]: row for row in rows(told.folder / "doctor.jsonl")}
    assert alarms["never_ends"]["update"] == alarms["random_start"]["update"] == 1
    said = capsys.readouterr().out
    assert "never_ends: none of the first 16 responses ended by itself" in said
    assert "random_start: a token of the start has 100 %" in said


def test_where_no_update_was_sound_the_start_is_published(context: Build) -> None:
    doctor = {**BEST["doctor"], "kl_per_token": 1e-3, "ignore": ["length_hacking"]}
    ended = context("none", doctor=doctor, value="shared")
    metrics = run(ended)
    assert metrics["updates"] == metrics["doctor/back_to_update"] == 0
    assert [row["alarm"] for row in rows(ended.folder / "doctor.jsonl")] == ["kl_blow_up"]
    ours = weights(ended.folder)
    theirs = weights(Path(ended.settings.policy).parent, "policy")
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_the_doctor_changes_the_key_only_where_it_decides(context: Build) -> None:
    keys = [
        context("key", doctor={"on_alarm": on_alarm, "window": window}).settings.key_settings()
        for on_alarm, window in (("warn", 5), ("stop", 3), ("best", 5), ("best", 3))
    ]
    assert keys[0] == keys[1] and len({json.dumps(key) for key in keys[1:]}) == 3


def test_over_optimisation_of_a_reward_for_length_is_found_with_the_policy_to_take(
    context: Callable[..., StageContext[Any]], tmp_path: Path
) -> None:
    asked = tmp_path / "asked.jsonl"
    asked.write_text("".join(json.dumps({"prompt": f"{c}!"}) + "\n" for c in string.ascii_letters))
    # Paid for 60 characters, while 20 are what is wanted: both rise at first, then they part.
    wanted = {"rule": "length", "options": {"target": 20, "unit": "characters"}}
    running = context(
        "parts", episodes=16 * 9, learning_rate=3e-3, evaluate_every=1, bf16=False,
        evaluation_reward=[wanted], evaluation_prompts=[{"path": str(asked)}],
    )  # fmt: skip
    run(running)
    told = json.loads((running.folder / "over_optimisation.json").read_text())
    gold = [point["gold"] for point in told["points"]]
    assert told["turn"] is not None and max(gold) > gold[0] and max(gold) > gold[-1]
    assert told["sentence"].startswith("proxy went on rising from KL ")
    assert told["turn"]["state"] == "best/model" and (running.folder / "best" / "model").is_dir()
    early = context(
        "together", episodes=16 * 2, learning_rate=1e-3, evaluate_every=1,
        evaluation_reward=[wanted], evaluation_prompts=[{"path": str(asked)}],
    )  # fmt: skip
    run(early)
    told = json.loads((early.folder / "over_optimisation.json").read_text())
    assert told["turn"] is None and told["sentence"].startswith("no sign of over-optimisation")
