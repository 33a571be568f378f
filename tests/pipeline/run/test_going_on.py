"""What a run goes on with after it was stopped and typed again, changed or not."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from pipeline.contract.resume import COMPLETE, ResumeStore
from pipeline.recipe.load import load_recipe
from pipeline.run.planning import key_digest

Rlhf = Callable[..., Any]

BESIDE: dict[str, list[str]] = {
    "base": [
        "micro_batch_size=1", "log_every=2", "evaluate_every=1", "gradient_checkpointing=true",
    ],
    "sft": [
        "micro_batch_size=2", "log_every=2", "evaluate_every=1", "max_too_long_share=0.9",
        "gradient_checkpointing=true",
    ],
    "reward": ["tokens_per_micro_batch=200", "evaluate_every=1", "max_truncated_share=0.9"],
    "ppo": [
        "micro_batch_size=2", "generation_batch_size=3", "sample_every=1",
        "sample_count=1", "max_dropped_share=0.9", "doctor.window=3",
    ],
}  # fmt: skip
"""Settings that change no result, by stage, each at another value than the recipe's."""


def beside(stage: str) -> list[str]:
    """Return the options that set them."""
    settings = [*BESIDE[stage], "save_every=2"]
    return [word for setting in settings for word in ("--set", f"{stage}.{setting}")]


def weights_of(run: Path, stage: str) -> dict[str, Any]:
    return load_file(run / stage / "model/model.safetensors")


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Return what makes a signal, or several, come right after the state of a step was saved.

    One is obeyed after the next step.
    """
    honest = ResumeStore.save

    def arm(step: int, number: int = signal.SIGINT, times: int = 1) -> None:
        def save(self: ResumeStore, at: int, write: Any) -> Path:
            folder = honest(self, at, write)
            if at == step:
                monkeypatch.setattr(ResumeStore, "save", honest)
                for _ in range(times):
                    os.kill(os.getpid(), number)
            return folder

        monkeypatch.setattr(ResumeStore, "save", save)

    yield arm


def remove(run: Path, stage: str) -> None:
    """Make a stage one that never ran."""
    shutil.rmtree(run / stage)


# What changes no result


def test_finished_stages_stay_up_to_date(rlhf: Rlhf, finished: Path) -> None:
    options = [word for stage in BESIDE for word in beside(stage)]
    more = ["--set", "base.train.0.max_bad_share=0.5", "--set", "launch.processes=2"]
    said = rlhf("run", "tiny.yaml", "--dry-run", *options, *more)
    assert said.code == 0
    assert [line.split(": ")[1] for line in said.out.splitlines()] == [
        "up to date (nothing it depends on changed)"
    ] * 6
    changed = rlhf("run", "tiny.yaml", "--dry-run", *options, "--set", "sft.learning_rate=1e-4")
    assert "sft: run (learning_rate: 9.65e-06 -> 0.0001)" in changed.out
    assert "reward: run (sft runs before it)" in changed.out


@pytest.mark.parametrize("stage", BESIDE)
def test_a_stopped_stage_goes_on_computed_otherwise(
    rlhf: Rlhf, finished: Path, stop_at: Callable[..., None], stage: str
) -> None:
    exact = [
        "--only",
        stage,
        "--set",
        f"{stage}.learning_rate=1e-3",
        "--set",
        f"{stage}.bf16=false",
    ]
    assert rlhf("run", "tiny.yaml", *exact).code == 0
    whole, log = weights_of(finished, stage), finished / stage / "metrics.jsonl"
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    remove(finished, stage)
    stop_at(1)
    assert rlhf("run", "tiny.yaml", *exact).code == 130
    options = [*exact, *beside(stage)]
    name = BESIDE[stage][0].partition("=")[0]
    planned = rlhf("run", "tiny.yaml", *options, "--dry-run").out
    told = rf"{stage}: resume \(was cut off, goes on from its last checkpoint, with .*{name}: "
    assert re.search(told, planned), planned
    said = rlhf("run", "tiny.yaml", *options)
    assert said.code == 0 and "going on after" in said.out, said
    for key, tensor in weights_of(finished, stage).items():
        assert (tensor - whole[key]).abs().max() < 1e-5, key
    assert json.loads(log.read_text().splitlines()[-1])["step"] == steps[-1]
    manifest = json.loads((finished / stage / "manifest.json").read_text())
    assert manifest["beside"]["save_every"] == 2
    assert "save_every" not in manifest["inputs"]["settings"]
    assert f"{stage}: up to date" in rlhf("run", "tiny.yaml", *exact).out


def test_dropout_draws_for_each_pass_so_micro_batches_change_the_result(
    rlhf: Rlhf, finished: Path
) -> None:
    dropped = ["--set", "sft.dropout=0.1", "--set", "sft.micro_batch_size=2"]
    recipe = load_recipe(Path("tiny.yaml"), [dropped[1], dropped[3]])
    assert recipe.stages["sft"].key_settings()["micro_batch_size"] == 2
    assert "micro_batch_size" not in load_recipe(Path("tiny.yaml")).stages["sft"].key_settings()


def test_micro_batches_matter_where_experts_are_balanced(
    rlhf: Rlhf, finished: Path, stop_at: Callable[..., None]
) -> None:
    from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(finished / "base/model")
    tokenizer.save_pretrained("experts")
    config = MixtralConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=1,
        max_position_embeddings=128, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained("experts")
    other = ["--set", "sft.micro_batch_size=2"]
    Path("experts.yaml").write_text(
        "stages:\n  sft: {kind: sft, model: ./experts, train: [{path: chats.jsonl}], max_steps: 3, "
        "batch_size: 4, save_every: 1}\n"
    )
    stop_at(1)
    assert rlhf("run", "experts.yaml").code == 130
    refused = rlhf("run", "experts.yaml", *other)
    assert refused.code == 2 and "micro_batch_size was None and is 2 now" in refused.err
    assert rlhf("run", "experts.yaml").code == 0
    said = rlhf("run", "experts.yaml", "--dry-run", "--set", "sft.save_every=2").out
    assert "up to date" in said
    said = rlhf("run", "experts.yaml", "--dry-run", *other).out
    assert "sft: run (micro_batch_size: None -> 2: it changes the result with this model)" in said


# Runs from before keys left such settings out


def older_key(inputs: dict[str, Any], settings: dict[str, Any]) -> tuple[dict[str, Any], str]:
    whole = {**inputs, "settings": settings}
    return whole, key_digest(whole)


def test_stages_that_an_earlier_version_finished_stay_up_to_date(
    rlhf: Rlhf, finished: Path
) -> None:
    for name, settings in load_recipe(Path("tiny.yaml")).stages.items():
        path = finished / name / "manifest.json"
        manifest = json.loads(path.read_text())
        del manifest["beside"]
        inputs, key = older_key(manifest["inputs"], settings.recorded_settings())
        path.write_text(json.dumps({**manifest, "inputs": inputs, "key": key}))
    said = rlhf("run", "tiny.yaml", "--dry-run", *beside("sft"), *beside("ppo"))
    assert said.out.count("up to date") == 6
    assert (
        "ppo: run (clip: 0.2 -> 0.3)"
        in rlhf("run", "tiny.yaml", "--dry-run", "--set", "ppo.clip=0.3").out
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "sft: resume (was cut off, goes on from its last checkpoint)"),
        (
            ["--set", "sft.micro_batch_size=2"],
            "sft: run (begins anew, an earlier version began it: its checkpoint of step 2 is set",
        ),
    ],
)
def test_a_state_of_an_earlier_version_goes_on_where_rows_come_in_its_order(
    rlhf: Rlhf, finished: Path, stop_at: Callable[..., None], options: list[str], told: str
) -> None:
    before = json.loads((finished / "sft/manifest.json").read_text())
    remove(finished, "sft")
    stop_at(1)
    assert rlhf("run", "tiny.yaml", "--only", "sft", *options).code == 130
    sets = [word for word in options if word != "--set"]
    recorded = load_recipe(Path("tiny.yaml"), sets).stages["sft"].recorded_settings()
    _, key = older_key(before["inputs"], recorded)
    (finished / "sft/work/key").write_text(key)
    for path in (finished / "sft/resume").glob(f"*/{COMPLETE}"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "key": key}))
    remove(finished, ".unfinished")
    planned = rlhf("run", "tiny.yaml", "--only", "sft", *options, "--dry-run").out
    assert told in planned
    said = rlhf("run", "tiny.yaml", "--only", "sft", *options)
    assert said.code == 0 and ("going on after step 2" in said.out) == ("resume" in told)
    after = json.loads((finished / "sft/manifest.json").read_text())
    assert after["key"] == before["key"]
    assert after["digest"] == before["digest"] or options


# A start with other settings


def test_a_start_with_other_settings_sets_the_state_aside_and_says_how_to_go_on(
    rlhf: Rlhf, finished: Path, stop_at: Callable[..., None]
) -> None:
    remove(finished, "sft")
    changed = ["--set", "sft.learning_rate=0.001", "--seed", "7", "--out", "runs/tiny"]
    stop_at(1)
    stopped = rlhf("run", "tiny.yaml", "--only", "sft", *changed)
    again = "rlhf run tiny.yaml --out runs/tiny --set sft.learning_rate=0.001 --seed 7 --only sft"
    assert stopped.code == 130
    assert "stopping as soon as the step at work is done" in stopped.err
    assert f"its last whole checkpoint is of step 2; to go on: {again}\n" in stopped.err

    planned = rlhf("run", "tiny.yaml", "--only", "sft", "--dry-run").out
    found = re.search(r"to go on with that: (rlhf run .*)\)\n", planned)
    assert found is not None, planned
    assert "sft: run (begins anew, seed: 7 -> 0; learning_rate: 0.001 -> 9.65e-06: " in planned
    assert "its checkpoint of step 2 is set aside in runs/tiny/.unfinished/sft/" in planned
    assert "until the stage is done" in planned
    assert (finished / "sft/resume").is_dir()  # telling changes nothing

    stop_at(1)
    said = rlhf("run", "tiny.yaml", "--only", "sft")
    assert said.code == 130 and f"to go on with that: {found[1]}\n" in said.out
    (aside,) = [p for p in (finished / ".unfinished/sft").iterdir() if p.is_dir()]
    assert (aside / "resume/step-00000002" / COMPLETE).is_file()

    # Each of the two goes on where it was, and both are told of the other.
    assert "sft: resume" in rlhf("run", "tiny.yaml", "--only", "sft", "--dry-run").out
    assert "sft: resume" in rlhf(*shlex.split(again)[1:], "--dry-run").out
    there = rlhf(*shlex.split(found[1])[1:], "--only", "sft")
    assert there.code == 0 and "going on after step 2 of 3" in there.out, there
    manifest = json.loads((finished / "sft/manifest.json").read_text())
    assert manifest["seed"] == 7 and manifest["inputs"]["settings"]["learning_rate"] == 0.001
    # Its recipe alone stays: the same command goes on with the stages after it.
    assert [p for p in (finished / ".unfinished").rglob("*") if p.is_file()] == [
        aside.parent / Path(shlex.split(found[1])[2]).name
    ]
    same = rlhf(*shlex.split(found[1])[1:], "--dry-run", "--only", "sft")
    assert "sft: up to date" in same.out

    assert rlhf("run", "tiny.yaml", "--only", "sft").code == 0
    assert not (finished / ".unfinished").exists()


def test_the_plugins_of_a_state_are_part_of_the_command(tmp_path: Path) -> None:
    from pipeline.run.unfinished import Attempt

    attempt = Attempt(tmp_path / "run" / "ppo", "f" * 64)
    assert attempt.command() is None
    attempt.record("name: x\n", {"plugins": ["my rewards.py"]})
    command = attempt.command()
    assert command is not None
    assert shlex.split(command)[4:] == [str(tmp_path / "run"), "--plugin", "my rewards.py"]


def test_what_runs_after_a_changed_stage_tells_of_its_state(
    rlhf: Rlhf, finished: Path, stop_at: Callable[..., None]
) -> None:
    remove(finished, "ppo")
    stop_at(1)
    assert rlhf("run", "tiny.yaml", "--only", "ppo").code == 130
    said = rlhf("run", "tiny.yaml", "--dry-run", "--set", "sft.learning_rate=1e-4").out
    assert "ppo: run (sft, reward runs before it; its checkpoint of step 2 is set aside if" in said


def test_what_is_part_of_the_key_with_a_certain_value_is_told_by_what_changed(
    rlhf: Rlhf, finished: Path
) -> None:
    best = ["--only", "ppo", "--set", "ppo.doctor.on_alarm=best"]
    said = rlhf("run", "tiny.yaml", "--dry-run", *best).out
    assert "ppo: run (doctor.on_alarm: 'warn' -> 'best')\n" in said
    assert rlhf("run", "tiny.yaml", *best).code == 0
    # The policy of before an alarm is another one than that of the last update.
    said = rlhf("run", "tiny.yaml", "--dry-run", "--only", "ppo").out
    assert "ppo: run (doctor.on_alarm: 'best' -> 'warn')\n" in said


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_stops_at_once_and_tells_which_checkpoint_is_there(
    rlhf: Rlhf, finished: Path, stop_at: Callable[..., None], number: int
) -> None:
    remove(finished, "base")
    stop_at(2, number, times=2)
    said = rlhf("run", "tiny.yaml", "--only", "base")
    assert said.code == 130
    first, last = [line for line in said.err.splitlines() if line]
    assert first.startswith("rlhf: stopping as soon as") and "once more stops at once" in first
    assert last == (
        "rlhf: stage base was stopped at once; its last whole checkpoint is of step 2; "
        "to go on: rlhf run tiny.yaml --only base"
    )
    assert "cut off, resumes at step 2" in rlhf("ls", "runs/tiny").out


def test_a_stop_before_the_first_checkpoint_claims_none(
    rlhf: Rlhf, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    remove(finished, "base")
    monkeypatch.setattr("pipeline.run.execution.run_in_process", stopped)
    said = rlhf("run", "tiny.yaml", "--only", "base")
    assert said.code == 130 and "there is no checkpoint of it yet; to go on: rlhf run" in said.err
    assert (finished / "base/stage.log").read_text().endswith("stopped: at once\n")
