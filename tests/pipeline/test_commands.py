"""`rlhf eval`, `chat`, `score`, `ls`, `show` and `validate` as a user types them."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Rlhf = Callable[..., Any]
EVAL = ("--prompts", "prompts.jsonl", "--out", "ev", "--max-new-tokens", "4", "--limit", "3")


def refused(result: Any, *told: str) -> None:
    """Assert that a command was refused in one line that tells all of this."""
    assert result.code == 2, result
    lines = result.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("rlhf: "), result.err
    for part in told:
        assert part in lines[0], f"{part!r} is not in {lines[0]!r}"


def wrong_usage(result: Any, option: str) -> None:
    """Assert that the command line itself was refused, naming the option."""
    assert result.code == 2 and option in result.err and "--help" in result.err, result


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Return what sets the standard input."""

    def given(text: bytes) -> None:
        stream = io.TextIOWrapper(io.BytesIO(text), encoding="utf-8", errors="surrogateescape")
        monkeypatch.setattr(sys, "stdin", stream)

    return given


# show, validate, ls


def test_show_prints_a_recipe_that_runs_as_it_is(rlhf: Rlhf, tiny_recipe: Path) -> None:
    shown = rlhf("show", tiny_recipe, "--set", "description=🐍 naïve", "--set", "base.steps=9")
    assert shown.code == 0 and shown.err == ""
    content = yaml.safe_load(shown.out)
    assert content["description"] == "🐍 naïve" and content["stages"]["base"]["steps"] == 9
    Path("again.yaml").write_text(shown.out)
    assert rlhf("show", "again.yaml").out == shown.out


def test_validate_names_the_stages_and_leaves_nothing(rlhf: Rlhf, tiny_recipe: Path) -> None:
    result = rlhf("validate", tiny_recipe)
    assert result.code == 0
    assert result.out.endswith("valid; 6 stages: tok, base, sft, pairs, reward, ppo\n")
    assert not Path("runs").exists()
    one = "--set", "stages={t: {kind: tokenizer, train: [{path: text.txt}]}}"
    assert rlhf("validate", tiny_recipe, *one).out.endswith("valid; 1 stage: t\n")


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_validate_refuses_a_kl_whose_gradient_is_another(
    rlhf: Rlhf, tiny_recipe: Path, estimator: str
) -> None:
    result = rlhf("validate", tiny_recipe, "--set", f"ppo.kl_estimator={estimator}")
    refused(result, "ppo.kl_estimator", "in the reward do not give the gradient", "objective/kl_k3")


def test_ls_tells_the_stages_and_what_is_no_run(rlhf: Rlhf, finished: Path) -> None:
    result = rlhf("ls", "runs/tiny")
    rows = [line.split("\t") for line in result.out.splitlines()]
    assert [row[0] for row in rows[1:]] == ["tok", "base", "sft", "pairs", "reward", "ppo"]
    assert {row[2] for row in rows[1:]} == {"done"}
    refused(rlhf("ls", "runs"), "runs is no run folder: it has no recipe.yaml")
    refused(rlhf("ls", "nowhere"), "nowhere is no run folder: no such folder")
    refused(rlhf("ls", "tiny.yaml"), "tiny.yaml is no run folder")


def test_a_command_that_is_none_is_told(rlhf: Rlhf, tmp_path: Path) -> None:
    for arguments in (
        ["runn", "x"],
        ["run"],
        ["run", "--nosuch"],
        ["ls", "a", "b"],
        ["score", "m"],
    ):
        result = rlhf(*arguments)
        assert result.code == 2 and "Error: " in result.err, result


# eval


def test_eval_judges_stages_and_folders_under_any_name(rlhf: Rlhf, finished: Path) -> None:
    names = ["runs/tiny/sft", "🐍=runs/tiny/ppo", "base/raw=runs/tiny/base/model"]
    judged = ("--reward", "runs/tiny/reward", "--reference", "sft", "--plain", "base/raw")
    result = rlhf("eval", *names, *EVAL, *judged)
    assert result.code == 0 and "Traceback" not in result.err
    found = json.loads(Path("ev/evaluation.json").read_text())
    assert set(found["checkpoints"]) == {"sft", "🐍", "base/raw"}
    samples = [json.loads(line) for line in Path("ev/samples.jsonl").read_text().splitlines()]
    assert len(samples) == 9 and all(row["proxy"] is not None for row in samples)


def test_eval_adds_the_scores_of_several_rewards_by_weight(rlhf: Rlhf, finished: Path) -> None:
    shutil.copytree("runs/tiny/reward/model", "other")

    def proxies(*rewards: str) -> list[float]:
        shutil.rmtree("ev", ignore_errors=True)
        given = [word for reward in rewards for word in ("--reward", reward)]
        assert rlhf("eval", "runs/tiny/sft", *EVAL, *given).code == 0
        lines = Path("ev/samples.jsonl").read_text().splitlines()
        return [json.loads(line)["proxy"] for line in lines]

    one = proxies("runs/tiny/reward")
    assert any(one)
    assert proxies("runs/tiny/reward", "other=0.5") == pytest.approx([1.5 * s for s in one])
    assert proxies("other=-2") == pytest.approx([-2 * s for s in one])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["a=much"], "--reward a=much has no weight; write PLACE or PLACE=0.5"),
        (["a=nan"], "--reward a=nan has no weight"),
        (["=1"], "--reward =1 has no weight"),
        (["a", "a=2"], "--reward names a twice"),
    ],
)
def test_eval_refuses_weights_that_are_none(rlhf: Rlhf, given: list[str], told: str) -> None:
    words = [word for reward in given for word in ("--reward", reward)]
    refused(rlhf("eval", "runs/tiny/sft", *EVAL, *words), told)


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("runs/tiny", "runs/tiny holds no model; name a stage of this run: base, ppo, reward, sft"),
        ("runs/tiny/tok", "runs/tiny/tok/tokenizer holds no model"),
        ("runs/tiny/pairs", "holds no model"),
        ("tiny.yaml", "tiny.yaml is a file; a checkpoint is a folder"),
        ("./nowhere", "./nowhere: no such folder"),
        ("nowhere", "no folder of that name is here"),
        ("gone.gguf", "gone.gguf: no such file"),
    ],
)
def test_what_is_no_checkpoint_is_told_alike_by_all(
    rlhf: Rlhf, finished: Path, place: str, told: str
) -> None:
    told = told.replace("/tok/tokenizer", "/tok")
    refused(rlhf("eval", place, *EVAL), told)
    refused(rlhf("chat", place), told)
    refused(rlhf("score", place, "pairs.jsonl", "--out", "s.jsonl"), told)
    assert not Path("s.jsonl").exists() and not Path("ev/evaluation.json").exists()


def test_a_reward_model_writes_nothing_and_a_policy_scores_nothing(
    rlhf: Rlhf, finished: Path
) -> None:
    writes_none = "is a LlamaForSequenceClassification, which scores text and writes none"
    refused(rlhf("eval", "runs/tiny/reward", *EVAL), writes_none)
    refused(rlhf("chat", "runs/tiny/reward"), writes_none)
    headless = "is a LlamaForCausalLM without a reward head; train one with a reward stage"
    refused(rlhf("score", "runs/tiny/sft", "pairs.jsonl", "--out", "s.jsonl"), headless)
    refused(rlhf("eval", "runs/tiny/sft", *EVAL, "--reward", "runs/tiny/sft"), headless)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["a=runs/tiny/sft", "a=runs/tiny/ppo"], "two checkpoints are called 'a'"),
        (["=runs/tiny/sft"], "'=runs/tiny/sft' is no checkpoint; write PLACE or NAME=PLACE"),
        (["a="], "'a=' is no checkpoint"),
        ([""], "'' is no checkpoint"),
        (["runs/tiny/sft", "--reference", "x"], "'x' is none of the checkpoints (sft)"),
        (["runs/tiny/sft", "--plain", "x"], "'x' is none of the checkpoints (sft)"),
        (["runs/tiny/sft", "--temperature", "inf"], "temperature: inf: input should be a finite"),
        (["runs/tiny/sft", "--max-new-tokens", "999999"], "leave no room for 999999 new tokens"),
        (["runs/tiny/sft", "--texts", "gone.txt"], "no such file: gone.txt"),
        (["runs/tiny/sft", "--prompts", "world:x"], "the world has no part 'x'"),
        (["runs/tiny/sft", "--prompts", "gone.jsonl"], "no such file: gone.jsonl"),
        (["runs/tiny/sft", "--prompts", "empty.jsonl"], "nothing to read in empty.jsonl"),
        (["runs/tiny/sft", "--prompts", "bad.jsonl"], "bad.jsonl:2: not JSON"),
        (["runs/tiny/sft", "--out", "tiny.yaml"], "tiny.yaml is a file"),
        (["runs/tiny/sft", "--out", "tiny.yaml/x"], "tiny.yaml is a file"),
        (["runs/tiny/sft", "--out", "/proc/x"], "/proc/x can't be written"),
        (["runs/tiny/sft", "--out", "runs/tiny/ppo"], "runs/tiny/ppo is a finished stage"),
    ],
)
def test_eval_tells_what_is_wrong(rlhf: Rlhf, finished: Path, names: list[str], told: str) -> None:
    Path("empty.jsonl").write_text("")
    Path("bad.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n')
    refused(rlhf("eval", *EVAL, *names), told)
    assert not Path("ev/evaluation.json").exists()
    assert rlhf("ls", "runs/tiny").out.count("\tdone\t") == 6


def test_options_out_of_range_are_told_with_their_name(rlhf: Rlhf, finished: Path) -> None:
    for option, value in (
        ("--temperature", "nan"),
        ("--temperature", "-1"),
        ("--max-new-tokens", "0"),
        ("--limit", "0"),
        ("--seed", "-1"),
        ("--seed", "99999999999999999999"),
    ):
        wrong_usage(rlhf("eval", "runs/tiny/sft", *EVAL, option, value), option)
    for option, value in (("--seed", "99999999999999999999"), ("--top-k", "-1"), ("--top-p", "2")):
        wrong_usage(rlhf("chat", "runs/tiny/sft", option, value), option)
    wrong_usage(rlhf("score", "m", "s", "--out", "o", "--batch-size", "0"), "--batch-size")


# score


def test_score_adds_scores_and_keeps_all_else(rlhf: Rlhf, finished: Path) -> None:
    rows = [
        {"prompt": "What is 1 + 1?", "response": "2 🐍", "id": "naïve"},
        {"prompt": [{"role": "user", "content": "Hi"}], "completions": ["a", "b"]},
    ]
    Path("in.jsonl").write_text("\ufeff" + "".join(json.dumps(row) + "\n" for row in rows))
    result = rlhf("score", "runs/tiny/reward", "in.jsonl", "--out", "new/scored.jsonl")
    assert result.code == 0 and "2 rows, 3 texts" in result.out
    first, second = (json.loads(s) for s in Path("new/scored.jsonl").read_text().splitlines())
    assert {k: v for k, v in first.items() if k != "score"} == rows[0]
    assert isinstance(first["score"], float) and len(second["scores"]) == 2


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"", "holds no rows"),
        (b"\n \n", "holds no rows"),
        (b'{"prompt": "a", "resp', "in.jsonl:1 is no JSON"),
        (b"\xff\xfe\x00", "in.jsonl:1 is no UTF-8 text"),
        (b"[1]\n", "in.jsonl:1 has no `prompt`"),
        (b'{"prompt": "a", "response": 3}\n', "in.jsonl:1 has neither"),
        (b'{"prompt": "a", "completions": []}\n', "in.jsonl:1 has neither"),
        (b'{"prompt": "\\ud83d", "response": "b"}\n', "in.jsonl:1 holds half a character"),
    ],
)
def test_a_file_that_cannot_be_scored_leaves_no_output(
    rlhf: Rlhf, finished: Path, line: bytes, told: str
) -> None:
    Path("in.jsonl").write_bytes(line)
    Path("out.jsonl").write_text("of an earlier time")
    refused(rlhf("score", "runs/tiny/reward", "in.jsonl", "--out", "out.jsonl"), told)
    assert Path("out.jsonl").read_text() == "of an earlier time"
    assert not list(Path().glob(".*.tmp"))


def test_places_to_score_that_are_none_are_told(rlhf: Rlhf, finished: Path) -> None:
    model = "runs/tiny/reward"
    refused(rlhf("score", model, "gone.jsonl", "--out", "s"), "gone.jsonl: no such file")
    refused(rlhf("score", model, "runs", "--out", "s"), "runs: no such file")
    Path("in.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    for out, told in (
        ("in.jsonl", "is the file to score"),
        ("runs", "runs is a folder"),
        ("tiny.yaml/s", "tiny.yaml is a file, no folder"),
        ("/proc/x/s", "/proc/x/s can't be written"),
    ):
        refused(rlhf("score", model, "in.jsonl", "--out", out), told)
    assert Path("in.jsonl").read_text() == '{"prompt": "a", "response": "b"}\n'


# chat


def test_chat_talks_and_tells_odd_lines(
    rlhf: Rlhf, finished: Path, says: Callable[[bytes], None]
) -> None:
    says(
        b"What is 1 + 1?\n\n/nosuch\n/set temprature 1\n/set top_p x\n/set temperature -1\n"
        b"\xff\xfe odd bytes\n" + "🐍 naïve\n".encode() + b"/quit\nnever read\n"
    )
    result = rlhf("chat", "runs/tiny/sft", "runs/tiny/ppo", "--max-new-tokens", "3", "--seed", "1")
    assert result.code == 0 and result.err == ""
    assert result.out.count("[sft]") == result.out.count("[ppo]") == 3
    for told in (
        "/nosuch is no command",
        "Did you mean 'temperature'?",
        "/set top_p wants a number, not 'x'",
        "temperature is -1.0; it must be 0 or more",
    ):
        assert told in result.out


def test_chat_never_writes_beyond_the_context(
    rlhf: Rlhf, finished: Path, says: Callable[[bytes], None]
) -> None:
    says(b"What is 1 + 1?\n" + b"word " * 400 + b"\n")
    result = rlhf("chat", "runs/tiny/sft", "--max-new-tokens", str(10**9))
    assert result.code == 0
    assert "the context of sft holds 128; shorten it" in result.out


def test_chat_with_nobody_is_told(rlhf: Rlhf, finished: Path) -> None:
    wrong_usage(rlhf("chat"), "CKPT")
    refused(rlhf("chat", "runs/tiny/sft", "--temperature", "inf"), "temperature is inf")
    refused(rlhf("chat", "runs/tiny/sft", "--top-p", "0"), "top_p is 0.0; it must be above 0")
