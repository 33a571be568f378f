"""What a user can do wrong, typed at the command line: one sentence with the way out, no loss."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Rlhf = Callable[..., Any]


def refused(result: Any, *told: str, code: int = 2) -> None:
    """Assert that a command was refused in one line that tells all of this."""
    assert result.code == code, result
    line = result.err.strip().splitlines()
    assert len(line) == 1 and line[0].startswith("rlhf: "), result.err
    for part in told:
        assert part in line[0], f"{part!r} is not in {line[0]!r}"


def digests(run: Path, *stages: str) -> dict[str, str]:
    """Return the digest of what each stage left."""
    return {s: json.loads((run / s / "manifest.json").read_text())["digest"] for s in stages}


# A recipe that is wrong


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("sft.epoch=2", ["unknown key", "value 2", "Did you mean 'epochs'?"]),
        ("base.steps=many", ["stages.base.steps", "'many'", "integer"]),
        ("base.steps=true", ["stages.base.steps", "True", "neither true nor false"]),
        ("base.steps=3.5", ["stages.base.steps", "3.5"]),
        ("base.learning_rate=.inf", ["stages.base.learning_rate", "inf", "finite"]),
        ("base.learning_rate=nan", ["stages.base.learning_rate", "nan"]),
        ("tok.vocab_size=99999999999999999999", ["stages.tok.vocab_size", "too large"]),
        ("base.train=text.txt", ["stages.base.train", "'text.txt'", "this is a list"]),
        ("base.train=[]", ["stages.base.train", "needs an item"]),
        ("sft.model=bse", ["no stage is named 'bse'", "Did you mean 'base'?"]),
        ("sft.model=tok", ["stages.sft.model", "tokenizer stage", "needed: policy"]),
        ("seed=-1", ["seed", "-1"]),
        ("seed=99999999999", ["seed", "99999999999"]),
        ("name=../../elsewhere", ["name", "elsewhere", "--out"]),
        ("name=3", ["name", "3", "quotes"]),
        ("base..steps=3", ["write it as a.b=value"]),
        ("base.steps", ["write it as a.b=value"]),
        ("", ["write it as a.b=value"]),
        ("base.train={", ["no valid YAML"]),
        ("bas.steps=3", ["'bas' is neither a stage nor a setting", "Did you mean 'base'?"]),
        ("base.train.7.path=x", ["stages.base.train.7", "items 0 to 0"]),
        ("base.positions=8", ["stages.base", "positions 8 is below context_length 32"]),
    ],
)
def test_a_wrong_setting_is_told_with_its_value(
    rlhf: Rlhf, tiny_recipe: Path, override: str, told: list[str]
) -> None:
    refused(rlhf("run", tiny_recipe, "--set", override), *told)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"stages:\n  a:\n    kind: tokenizer\n    trian: []\n", [":4: stages.a.trian", "'train'"]),
        (b"stages:\n  a: {kind: tokenizer, vocab_size: [1]}\n", [":2: stages.a.vocab_size", "[1]"]),
        (b"stages:\n  a:\n    kind: x\n    kind: y\n", [":4: key 'kind' stands twice"]),
        (b"stages:\n\ta: {}\n", [":2: no valid YAML", "\\t"]),
        (b"stages: [\n", [":2: no valid YAML"]),
        (b"\xff\xfe\x00binary", ["is no UTF-8 text"]),
        (b"stages: \x00\n", ["no valid YAML", "#x0000"]),
        (b"", ["a mapping with `stages:`", "empty"]),
        (b"- a\n", ["a mapping with `stages:`", "['a']"]),
        (b"stages: &s\n  a: *s\n", [":1: an alias in here stands for all of it"]),
        (b"stages:\n  ? [1, 2]\n  : {}\n", [":2: a list or mapping is no key"]),
        (b"stages:\n  '\xf0\x9f\x90\x8d': {kind: tokenizer}\n", [":2: stages.🐍", "letters"]),
        (b"stages:\n  report: {kind: tokenizer}\n", [":2: stages.report", "rename it"]),
        (b"a: 1\n---\nb: 2\n", [":2: no valid YAML", "another document"]),
        (b"stages: !!python/object:os.system {}\n", [":1: no valid YAML", "os.system"]),
        (b"extends: gone.yaml\n", [":1: extends: gone.yaml", "no such recipe"]),
        (b"extends: [r.yaml]\n", ["extends itself", "take one of them out"]),
    ],
)
def test_a_recipe_that_is_none_is_told_with_file_and_line(
    rlhf: Rlhf, tmp_path: Path, text: bytes, told: list[str]
) -> None:
    (tmp_path / "r.yaml").write_bytes(text)
    for command in ("run", "validate", "show"):
        refused(rlhf(command, "r.yaml"), "r.yaml", *told)


def test_a_folder_or_nothing_as_recipe_is_told(rlhf: Rlhf, tiny_recipe: Path) -> None:
    refused(rlhf("run", "."), ". is a folder")
    refused(rlhf("run", "tini.yaml"), "tini.yaml: no such recipe", "Did you mean 'tiny.yaml'?")


def test_numbers_as_yaml_reads_them_are_taken(rlhf: Rlhf, tiny_recipe: Path) -> None:
    result = rlhf("show", tiny_recipe, "--set", "base.learning_rate=1e-5", "--set", "name='7'")
    assert result.code == 0
    assert "learning_rate: 1.0e-05" in result.out and "name: '7'" in result.out


def test_recipes_that_extend_each_other_are_told(rlhf: Rlhf, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    refused(rlhf("validate", "a.yaml"), "extends itself", "a.yaml -> ", "b.yaml -> ")


def test_stages_in_a_circle_are_told_with_the_settings_that_close_it(
    rlhf: Rlhf, tmp_path: Path
) -> None:
    (tmp_path / "r.yaml").write_text(
        "stages:\n"
        "  a: {kind: sft, model: b, train: [{path: x.jsonl}]}\n"
        "  b: {kind: sft, model: a, train: [{path: x.jsonl}]}\n"
    )
    refused(rlhf("run", "r.yaml"), "r.yaml:3", "a -> b -> a", "a.model, b.model")


def test_a_selection_that_is_none_is_told(rlhf: Rlhf, tiny_recipe: Path) -> None:
    refused(rlhf("run", tiny_recipe, "--only", "bas"), "--only bas", "Did you mean 'base'?")
    refused(rlhf("run", tiny_recipe, "--from", "ppo", "--until", "tok"), "--from ppo comes after")
    refused(rlhf("run", tiny_recipe, "--only", "sft"), "stage base has not finished")
    result = rlhf("run", tiny_recipe, "--processes", "0")
    assert result.code == 2 and "--processes" in result.err and "Traceback" not in result.err


# Data that is wrong


def test_an_empty_source_stops_the_run_before_it_starts(rlhf: Rlhf, tiny_recipe: Path) -> None:
    Path("prompts.jsonl").write_text("")
    refused(rlhf("run", tiny_recipe), "stages.ppo.prompts.0", "prompts.jsonl: it is empty")
    assert not Path("runs/tiny/tok").exists()


def test_a_source_without_a_usable_row_is_told(rlhf: Rlhf, finished: Path) -> None:
    before = digests(finished, "base", "ppo")
    Path("chats.jsonl").write_text("\n\n")
    refused(rlhf("run", "tiny.yaml", "--only", "sft"), "chats.jsonl", "no usable rows", "stage sft")
    assert digests(finished, "base", "ppo") == before


def test_a_row_that_is_no_json_is_told_with_file_and_line(rlhf: Rlhf, finished: Path) -> None:
    rows = Path("chats.jsonl").read_text().splitlines()
    rows[4] = '{"prompt": "What is 2 + 2?", "comple'
    Path("chats.jsonl").write_text("\n".join(rows))
    told = ["stage sft", "chats.jsonl:5: not JSON", "1 of 30 rows", "max_bad_share allows 1.00%"]
    refused(rlhf("run", "tiny.yaml", "--only", "sft"), *told)
    overrides = ("--set", "sft.train.0.max_bad_share=0.1")
    result = rlhf("run", "tiny.yaml", "--only", "sft", *overrides)
    assert result.code == 0
    assert "1 malformed row, the first: chats.jsonl:5: not JSON" in result.out


def test_a_prompt_longer_than_the_context_is_told(rlhf: Rlhf, finished: Path) -> None:
    result = rlhf("run", "tiny.yaml", "--set", "ppo.max_prompt_tokens=123")
    refused(result, "stage ppo", "max_prompt_tokens + max_new_tokens is 129 tokens", "holds 128")
    result = rlhf("run", "tiny.yaml", "--set", "ppo.max_prompt_tokens=4")
    refused(result, "stage ppo", "max_prompt_tokens 4", "30")
    assert rlhf("run", "tiny.yaml", "--set", "ppo.max_prompt_tokens=65").code == 0


# Checkpoints that do not fit


def test_another_tokenizer_on_the_way_is_told_before_any_work(rlhf: Rlhf, finished: Path) -> None:
    recipe = Path("tiny.yaml")
    text = recipe.read_text()
    other = "  other: {kind: tokenizer, train: [{path: chats.jsonl}], vocab_size: 290}\n"
    recipe.write_text(text + other)
    assert rlhf("run", recipe, "--only", "other").code == 0
    result = rlhf("run", recipe, "--set", "sft.tokenizer=other")
    refused(result, "stage sft", "other has another vocabulary than base", "the model's own")


def test_pad_equal_to_end_of_sequence_is_told(rlhf: Rlhf, finished: Path) -> None:
    shutil.copytree(finished / "base/model", "own")
    path = Path("own/tokenizer_config.json")
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "pad_token": config["eos_token"]}))
    result = rlhf("run", "tiny.yaml", "--set", "sft.model=./own")
    refused(result, "stage sft", "./own has pad token", "they must differ", "set `pad_token`")
    result = rlhf("run", "tiny.yaml", "--set", "tok={kind: tokenizer, adopt: ./own}")
    refused(result, "stage tok", "./own pads with", "set `pad_token`")


def test_a_reward_model_that_is_none_is_told(rlhf: Rlhf, finished: Path) -> None:
    result = rlhf("run", "tiny.yaml", "--set", "ppo.reward=./runs/tiny/sft")
    refused(result, "stage ppo", "is a LlamaForCausalLM", "train one with a reward stage")
    result = rlhf("run", "tiny.yaml", "--set", "sft.model=./runs")
    refused(result, "stages.sft.model: ./runs is no checkpoint", "config.json")
    result = rlhf("run", "tiny.yaml", "--set", "sft.model=./nowhere")
    refused(result, "stages.sft.model: ./nowhere: no such folder")


# Run folders that are wrong


def test_a_place_that_cannot_be_written_is_told(rlhf: Rlhf, tiny_recipe: Path) -> None:
    Path("file").write_text("mine")
    for out, place in (
        ("file", "file is a file"),
        ("file/run", "file is a file"),
        ("/proc/run", "/proc/run"),
        (f"runs/{'x' * 300}", "runs/xxxx"),
    ):
        refused(rlhf("run", tiny_recipe, "--out", out), place, "another", "--out")
    for out in ("file", "file/run"):
        refused(rlhf("run", tiny_recipe, "--dry-run", "--out", out), "file is a file")
        refused(rlhf("validate", tiny_recipe, "--out", out), "file is a file")
    assert Path("file").read_text() == "mine"


def test_a_disk_that_fills_up_leaves_the_last_checkpoint(
    rlhf: Rlhf, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digests(finished, "base")
    shutil.rmtree(finished / "base")

    def full(*arguments: Any, **options: Any) -> None:
        if any((finished / "base/resume").glob("step-00000002/complete.json")):
            raise OSError(28, "No space left on device")
        save(*arguments, **options)

    from pipeline.contract import resume as checkpoint
    from pipeline.training import state as training

    save = checkpoint.save_state
    monkeypatch.setattr(training, "save_state", full)
    refused(rlhf("run", "tiny.yaml", "--only", "base"), "no space left", "stage base")
    assert sorted(p.name for p in (finished / "base/resume").iterdir()) == [
        "step-00000001",
        "step-00000002",
    ]
    monkeypatch.setattr(training, "save_state", save)
    assert "base: resume" in rlhf("run", "tiny.yaml", "--only", "base", "--dry-run").out
    assert rlhf("run", "tiny.yaml", "--only", "base").code == 0
    assert digests(finished, "base") == before


@pytest.mark.parametrize("stage", ["base", "sft", "reward", "ppo"])
def test_a_limit_on_files_is_told_by_every_stage(rlhf: Rlhf, finished: Path, stage: str) -> None:
    before = digests(finished, stage)
    shutil.rmtree(finished / stage)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        result = rlhf("run", "tiny.yaml", "--only", stage)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    refused(result, f"stage {stage}", f"runs/tiny/{stage}/", "ulimit -f", "run again")
    assert not (finished / stage / "manifest.json").exists()
    assert not list((finished / stage / "resume").glob("*"))
    assert "StorageError" in (finished / stage / "stage.log").read_text()
    assert rlhf("run", "tiny.yaml", "--only", stage).code == 0
    assert digests(finished, stage) == before


def test_a_folder_of_somebody_else_is_never_emptied(rlhf: Rlhf, tiny_recipe: Path) -> None:
    Path("tok").mkdir()
    Path("tok/novel.txt").write_text("ten years of work")
    refused(rlhf("run", tiny_recipe, "--out", "."), "tok holds files that no stage left there")
    assert Path("tok/novel.txt").read_text() == "ten years of work"


def test_a_flipped_byte_is_told_by_every_command(rlhf: Rlhf, finished: Path) -> None:
    for stage in ("sft", "reward"):
        path = finished / stage / "model/model.safetensors"
        content = bytearray(path.read_bytes())
        content[-9] ^= 1
        path.write_bytes(content)
    sft = ["runs/tiny/sft/model/model.safetensors is damaged", "restore it, or delete"]
    reward = [part.replace("sft", "reward") for part in sft]
    refused(rlhf("run", "tiny.yaml"), *sft)
    refused(rlhf("run", "tiny.yaml", "--only", "ppo", "--force"), "is damaged", "restore it")
    refused(rlhf("chat", "runs/tiny/sft"), *sft)
    refused(rlhf("eval", "runs/tiny/sft", "--prompts", "prompts.jsonl", "--out", "ev"), *sft)
    refused(rlhf("score", "runs/tiny/reward", "pairs.jsonl", "--out", "s.jsonl"), *reward)
    listing = rlhf("ls", "runs/tiny")
    assert listing.code == 0 and "damaged: runs/tiny/sft/model/model.safetensors" in listing.out
    shutil.rmtree(finished / "sft")
    shutil.rmtree(finished / "reward")
    assert rlhf("run", "tiny.yaml").code == 0


def test_a_manifest_of_another_version_is_told(rlhf: Rlhf, finished: Path) -> None:
    path = finished / "base/manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "format": 0}))
    told = ["runs/tiny/base/manifest.json has format 0", "this version reads 1", "--out"]
    refused(rlhf("run", "tiny.yaml"), *told)
    refused(rlhf("chat", "runs/tiny/base"), *told)
    assert "has format 0" in rlhf("ls", "runs/tiny").out
    path.write_text(json.dumps({k: v for k, v in manifest.items() if k != "key"}))
    refused(rlhf("run", "tiny.yaml"), "manifest.json was edited: it has no key")
    path.write_text("{")
    refused(rlhf("run", "tiny.yaml"), "manifest.json can't be read as JSON", "delete")


def test_a_run_whose_recipe_holds_settings_of_an_older_version(rlhf: Rlhf, finished: Path) -> None:
    path = finished / "recipe.yaml"
    path.write_text(path.read_text().replace("    batch_size:", "    old_setting:", 1))
    refused(rlhf("ls", "runs/tiny"), "another version", "old_setting", "--out runs/tiny")
    assert "up to date" in rlhf("run", "tiny.yaml").out
    assert rlhf("ls", "runs/tiny").code == 0


# Training that goes wrong


@pytest.mark.parametrize(
    ("stage", "override"),
    [
        ("base", "base.learning_rate=1e38"),
        ("sft", "sft.learning_rate=1e38"),
        ("reward", "reward.learning_rate=1e36"),
        ("ppo", "ppo.learning_rate=1e38"),
    ],
)
def test_a_loss_that_is_no_number_stops_the_stage_and_keeps_the_rest(
    rlhf: Rlhf, finished: Path, stage: str, override: str
) -> None:
    before = digests(finished, "tok", "pairs")
    result = rlhf("run", "tiny.yaml", "--only", stage, "--set", override)
    refused(result, f"stage {stage}", "lower", "the last good", "is kept")
    assert re.search(r"\b(nan|inf|NaN)\b.* (step|update) \d.*learning.rate", result.err), result
    assert not (finished / stage / "manifest.json").exists()
    for state in (finished / stage / "resume").glob("step-*"):
        assert (state / "complete.json").is_file()
    assert "the last good" in (finished / stage / "stage.log").read_text()
    assert digests(finished, "tok", "pairs") == before
    assert rlhf("run", "tiny.yaml", "--only", stage).code == 0


def kill_in(stage: str, run: Path) -> None:
    """Run the recipe in a process of its own and kill it once the stage has saved a state."""
    command = [str(Path(sys.executable).with_name("rlhf")), "run", "tiny.yaml", "--quiet"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 400
        while not any((run / stage / "resume").glob("step-*/complete.json")):
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline, f"{stage} saved nothing"
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (run / stage / "manifest.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_a_killed_reward_and_ppo_stage_end_in_the_same_weights(rlhf: Rlhf, finished: Path) -> None:
    before = digests(finished, "reward", "ppo")
    for stage in ("reward", "ppo"):
        shutil.rmtree(finished / stage)
    kill_in("reward", finished)
    kill_in("ppo", finished)
    assert digests(finished, "reward")["reward"] == before["reward"]
    result = rlhf("run", "tiny.yaml")
    assert result.code == 0
    assert "was cut off, goes on from its last checkpoint" in result.out
    assert digests(finished, "reward", "ppo") == before
