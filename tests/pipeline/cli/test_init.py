"""`rlhf init`: recipes written for data and models as users have them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

Rlhf = Callable[..., Any]
ASKED = [f"What is {a} and {b}?" for a in range(1, 9) for b in range(1, 9)]
ANSWERS = [f"It is {a + b}." for a in range(1, 9) for b in range(1, 9)]


def lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def table(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    rows = list(rows)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def shown(tmp_path: Path) -> list[dict[str, str]]:
    """Demonstrations in `sft.csv`, and pairs of the same questions in `pairs.jsonl`."""
    rows = [{"prompt": q, "completion": a} for q, a in zip(ASKED, ANSWERS, strict=True)]
    table(tmp_path / "sft.csv", rows)
    pairs = [
        {"prompt": q, "chosen": a, "rejected": f"{a} Yes."}
        for q, a in zip(ASKED, ANSWERS, strict=True)
    ]
    lines(tmp_path / "pairs.jsonl", pairs)
    return rows


@pytest.fixture
def model(save_policy: Any, tiny_tokenizer: Any, tmp_path: Path) -> Path:
    folder: Path = save_policy(tiny_tokenizer(), tmp_path / "model", context=128)
    return folder


def stages_of(path: Path) -> dict[str, dict[str, Any]]:
    stages: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text())["stages"]
    return stages


SHORT = ("--set", "ppo.episodes=16", "--set", "sft.max_steps=3", "--set", "sft.candidates=1")
PAIRED = ("--sft", "sft.csv", "--pairs", "pairs.jsonl")


@pytest.mark.parametrize("change", [SHORT, pytest.param((), marks=pytest.mark.slow)])
def test_a_recipe_of_pairs_runs_through_ppo(
    rlhf: Rlhf, tmp_path: Path, model: Path, shown: Any, change: tuple[str, ...]
) -> None:
    made = rlhf("init", "mine.yaml", "--model", "model", *PAIRED)
    assert made.code == 0, made.err
    assert "sft: sft.csv: 64 demonstrations, 64 different prompts" in made.out
    assert made.out.endswith("next: rlhf run mine.yaml\n")
    assert rlhf("validate", "mine.yaml").code == 0
    stages = list(stages_of(tmp_path / "mine.yaml"))
    assert stages == ["sft", "rankings", "reward", "ppo", "evaluate"]
    ran = rlhf("run", "mine.yaml", "--quiet", *change)
    assert ran.code == 0, ran.err
    assert (tmp_path / "runs/mine/ppo/model/model.safetensors").is_file()
    seen = json.loads((tmp_path / "runs/mine/evaluate/evaluation.json").read_text())["seen"]
    assert seen["prompts"] == 0


def test_values_that_are_no_defaults_tell_why(
    rlhf: Rlhf, tmp_path: Path, model: Path, shown: Any
) -> None:
    rlhf("init", "mine.yaml", "--model", "model", "--pairs", "pairs.jsonl")
    told = rlhf("show", "mine.yaml", "--explain").out.splitlines()
    for name in ("learning_rate", "episodes", "max_new_tokens", "max_prompt_tokens", "max_length"):
        found = [n for n, line in enumerate(told) if line.strip().startswith(f"{name}: ")]
        assert found
        for place in found:
            behind = told[place + 1 : place + 4]
            assert told[place].endswith("default") or any(
                line.strip().startswith("# ") for line in behind
            ), told[place]
    ppo = stages_of(tmp_path / "mine.yaml")["ppo"]
    assert [source["part"] for source in ppo["prompts"]] == ["train"]
    # 64 prompts less those that are held out, eight times each.
    assert 8 * 40 <= ppo["episodes"] <= 8 * 64


PLAIN = {"prompt": ASKED, "completion": [f" {answer}" for answer in ANSWERS]}


@pytest.mark.parametrize(
    ("name", "columns", "mapped", "chat"),
    [
        ("a.csv", {"prompt": ASKED, "completion": ANSWERS}, None, True),
        ("a.jsonl", PLAIN, None, None),
        ("a.csv", {"Question": ASKED, "Best Answer": ANSWERS, "nr": ANSWERS},
         {"prompt": "Question", "completion": "Best Answer"}, True),
        ("a.jsonl", {"instruction": ASKED, "input": [""] * 64, "output": ANSWERS}, None, None),
        ("a.jsonl", {"kysymys": ASKED, "vastaus": ANSWERS},
         {"prompt": "kysymys", "completion": "vastaus"}, True),
        ("a.jsonl", {"messages": [[{"role": "user", "content": q},
                                   {"role": "assistant", "content": a}]
                                  for q, a in zip(ASKED, ANSWERS, strict=True)]}, None, None),
    ],
)  # fmt: skip
def test_demonstrations_are_read_whatever_their_columns(
    rlhf: Rlhf, tmp_path: Path, model: Path, name: str, columns: Any, mapped: Any, chat: Any
) -> None:
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    (table if name.endswith(".csv") else lines)(tmp_path / name, rows)
    made = rlhf("init", "mine.yaml", "--model", "model", "--sft", name)
    assert made.code == 0, made.err
    assert "the recipe ends with sft" in made.out
    stages = stages_of(tmp_path / "mine.yaml")
    (source,) = stages["sft"]["train"]
    assert (source.get("columns"), source.get("chat")) == (mapped, chat)
    assert list(stages) == ["sft", "evaluate"]
    assert rlhf("validate", "mine.yaml").code == 0


def test_rankings_alone_teach_their_best_answers(rlhf: Rlhf, tmp_path: Path, model: Path) -> None:
    rows = [
        {"query": q, "responses": [a, "No.", "Why?"], "ratings": [5, 2, 2]}
        for q, a in zip(ASKED, ANSWERS, strict=True)
    ]
    lines(tmp_path / "k.jsonl", rows)
    assert rlhf("init", "mine.yaml", "--model", "model", "--rankings", "k.jsonl").code == 0
    stages = stages_of(tmp_path / "mine.yaml")
    assert list(stages) == ["sft", "rankings", "reward", "ppo", "evaluate"]
    columns = {"prompt": "query", "completions": "responses", "scores": "ratings"}
    assert stages["sft"]["train"][0]["columns"] == columns
    assert "demonstrations" not in stages["reward"]
    assert rlhf("validate", "mine.yaml").code == 0


def test_a_model_without_template_and_with_one_token_for_two_gets_both(
    rlhf: Rlhf, tmp_path: Path, save_policy: Any, tiny_tokenizer: Any, shown: Any
) -> None:
    tokenizer = tiny_tokenizer(chat=False)
    tokenizer.pad_token = tokenizer.eos_token
    save_policy(tokenizer, tmp_path / "bare", context=128)
    made = rlhf("init", "mine.yaml", "--model", "bare", *PAIRED)
    assert made.code == 0, made.err
    assert "its end of sequence: <|pad|> instead" in made.out
    assert "no chat template: turns as lines of plain words" in made.out
    stages = stages_of(tmp_path / "mine.yaml")
    assert stages["tokenizer"] == {
        "kind": "tokenizer", "adopt": "./bare", "pad_token": "<|pad|>", "chat_template": "lines"
    }  # fmt: skip
    assert stages["sft"]["tokenizer"] == "tokenizer"
    assert stages["evaluate"]["plain"] == ["base"]
    assert rlhf("run", "mine.yaml", "--until", "sft", "--quiet", *SHORT[2:]).code == 0


def test_texts_alone_make_a_model_from_nothing(rlhf: Rlhf, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for number, (asked, answer) in enumerate(zip(ASKED, ANSWERS, strict=True)):
        (tmp_path / f"texts/{number}.txt").write_text(f"{asked} {answer} " * 4)
    made = rlhf("init", "mine.yaml", "--texts", "texts")
    assert made.code == 0, made.err
    stages = stages_of(tmp_path / "mine.yaml")
    assert list(stages) == ["tokenizer", "base", "evaluate"]
    assert stages["base"]["heldout"][0]["part"] == "heldout"
    assert rlhf("run", "mine.yaml", "--quiet", "--set", "base.steps=2", "--set",
                "base.epochs=null").code == 0  # fmt: skip


def test_texts_come_before_the_demonstrations_of_a_model(
    rlhf: Rlhf, tmp_path: Path, model: Path, shown: Any
) -> None:
    (tmp_path / "book.txt").write_text(
        "\n\n".join(f"{q} {a}" for q, a in zip(ASKED, ANSWERS, strict=True))
    )
    made = rlhf("init", "mine.yaml", "--model", "model", *PAIRED[:2], "--texts", "book.txt")
    assert "texts: book.txt: 64 texts; cut at blank lines" in made.out
    stages = stages_of(tmp_path / "mine.yaml")
    assert (stages["base"]["model"], stages["sft"]["model"]) == ("./model", "base")
    assert rlhf("validate", "mine.yaml").code == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--sft", "sft.csv"], "there is nothing to start from: name a --model, or --texts"),
        (["--model", "model"], "there is nothing to learn from: name --sft, --pairs"),
        (["--model", "model", "--sft", "sft.csv", "--prompts", "sft.csv"], "needs a reward model"),
        (["--model", "nowhere/at/all", "--sft", "sft.csv"], "nowhere/at/all"),
        (["--model", "model", "--sft", "empty.csv"], "nothing to read in empty.csv"),
        (["--model", "model", "--sft", "nosuch.csv"], "no such file: nosuch.csv"),
        (["--model", "model", "--sft", "two.csv"],
         "--sft two.csv: can't tell which column holds what is asked, of left, right; say so with "
         "--columns sft:prompt=COLUMN,completion=COLUMN"),
        (["--model", "model", "--pairs", "sft.csv"], "which column holds the better answer"),
        (["--model", "model", "--sft", "note.txt"], "--texts takes texts"),
        (["--model", "model", "--sft", "one.csv"], "1 different prompt, too few"),
        (["--model", "model", "--sft", "sft.csv", "--columns", "pairs:prompt=a"],
         "write it as sft:prompt=COLUMN"),
        (["--model", "model", "--sft", "sft.csv", "--columns", "sft:prompt=q,completion=a"],
         "no column 'q'"),
    ],
)  # fmt: skip
def test_what_can_not_be_told_is_asked_and_nothing_is_written(
    rlhf: Rlhf, tmp_path: Path, model: Path, shown: Any, words: list[str], told: str
) -> None:
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "note.txt").write_text("Once.")
    table(tmp_path / "two.csv", [{"left": q, "right": f"{q} {q}"} for q in ASKED])
    table(tmp_path / "one.csv", [{"prompt": "a", "completion": "b"}])
    made = rlhf("init", "mine.yaml", *words)
    assert (made.code, told in made.err, made.err.count("\n")) == (2, True, 1), made
    assert not (tmp_path / "mine.yaml").exists()


def test_columns_are_taken_as_they_are_named(rlhf: Rlhf, tmp_path: Path, model: Path) -> None:
    table(tmp_path / "two.csv", [{"left": q, "right": f"{q} {q}"} for q in ASKED])
    words = ("init", "mine.yaml", "--model", "model", "--sft", "two.csv", "--columns")
    assert rlhf(*words, "prompt=right,completion=left").code == 0
    source = stages_of(tmp_path / "mine.yaml")["sft"]["train"][0]
    assert source["columns"] == {"prompt": "right", "completion": "left"}


def test_a_file_that_is_there_is_replaced_by_force_alone(
    rlhf: Rlhf, tmp_path: Path, model: Path, shown: Any
) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("mine\n")
    words = ("init", "mine.yaml", "--model", "model", "--sft", "sft.csv")
    refused = rlhf(*words)
    assert (refused.code, "replace it by --force" in refused.err) == (2, True)
    assert mine.read_text() == "mine\n"
    assert rlhf(*words, "--force").code == 0
    assert list(stages_of(mine)) == ["sft", "evaluate"]
    assert rlhf("init", "nowhere/mine.yaml", *words[2:]).code == 2
    assert rlhf("init", "mine.txt", *words[2:]).code == 2
