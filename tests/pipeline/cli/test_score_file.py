"""`rlhf score`: the same scores as everywhere else, in a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.errors import RecipeError, SourceError, UsageError
from data.records import Message
from pipeline.cli.score_file import parse_options, score_file
from reward import functions
from reward.learned.model import RewardModel

CHAT: list[Message] = [{"role": "user", "content": "hi"}]


@pytest.fixture
def scorer(
    save_policy: Callable[..., Path], tiny_tokenizer: Callable[..., Any], tmp_path: Path
) -> Path:
    model = RewardModel.start(save_policy(tiny_tokenizer()), seed=1)
    model.set_bias(0.5)
    model.save(tmp_path / "stage" / "model")
    return tmp_path / "stage"


def test_rows_get_the_scores_the_model_gives(scorer: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": CHAT, "response": "hello", "id": 7},
        {"prompt": "the mill", "completions": [" is old", " é 🙂"], "ranks": [1, 2]},
        {"prompt": CHAT, "completion": "hello"},
    ]
    source, output = tmp_path / "in.jsonl", tmp_path / "new" / "out.jsonl"
    source.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    seen: list[int] = []
    report = score_file(scorer, source, output, advance=seen.append)
    model = RewardModel.load(scorer / "model")
    texts = ["hello", " is old", " é 🙂", "hello"]
    expected = model.score([CHAT, "the mill", "the mill", CHAT], texts)
    found = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert found[0] == {**rows[0], "score": pytest.approx(expected[0], abs=1e-5)}
    assert found[1] == {**rows[1], "scores": pytest.approx(expected[1:3], abs=1e-5)}
    assert found[2]["score"] == found[0]["score"]
    assert (report.rows, report.texts, sum(seen)) == (3, 4, 4)
    assert report.mean == pytest.approx(sum(expected) / 4, abs=1e-5)
    assert score_file(scorer, source, output, limit=1).rows == 1


def test_a_response_that_was_cut_off_is_read_without_an_end(scorer: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": CHAT, "response": "hello", "ended": False},
        {"prompt": "the mill", "completions": [" is", " is old"], "ended": [False, True]},
        {"prompt": CHAT, "response": "hello"},
    ]
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    score_file(scorer, source, output)
    model = RewardModel.load(scorer / "model")
    texts, ended = ["hello", " is", " is old", "hello"], [False, False, True, True]
    expected = model.score([CHAT, "the mill", "the mill", CHAT], texts, ended=ended)
    found = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    scores = [found[0]["score"], *found[1]["scores"], found[2]["score"]]
    assert scores == pytest.approx(expected, abs=1e-5)
    assert abs(scores[0] - scores[3]) > 1e-3
    for bad in ("no", [False], 0):
        source.write_text(json.dumps({**rows[1], "ended": bad}) + "\n")
        with pytest.raises(SourceError, match=r"in\.jsonl:1 has `ended`"):
            score_file(scorer, source, output)


def test_rules_and_functions_score_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "_functions", {})

    @functions.reward("near")
    def near(prompts: Any, responses: Any, rows: Any, bonus: float = 0.0) -> list[float]:
        return [
            bonus - abs(len(text) - row["size"]) for text, row in zip(responses, rows, strict=True)
        ]

    rows = [
        {"prompt": "a", "response": "It is 4", "answer": "4", "size": 7},
        {"prompt": "b", "completions": ["5", "one two"], "answer": 5, "size": 2},
    ]
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def scored(name: str, **options: Any) -> list[Any]:
        score_file(name, source, output, options=options)
        found = [json.loads(line) for line in output.read_text().splitlines()]
        return [found[0]["score"], found[1]["scores"]]

    assert scored("rule:answer", pattern=r"\d+") == [1.0, [1.0, 0.0]]
    assert scored("function:near", bonus=0.5) == [0.5, [-0.5, -4.5]]
    with pytest.raises(RecipeError, match="Did you mean 'near'"):
        scored("function:neer")
    with pytest.raises(UsageError, match="takes no options"):
        scored("some/model", bonus=1)
    with pytest.raises(UsageError, match="takes the options timeout and retries"):
        scored("http://127.0.0.1:1/", bonus=1)


def test_options_are_read_as_yaml() -> None:
    assert parse_options(["n=3", "pattern=[a-z]+", "whole=true", "a=b=c"]) == {
        "n": 3, "pattern": "[a-z]+", "whole": True, "a": "b=c",
    }  # fmt: skip
    with pytest.raises(UsageError, match="--option n: write it as a=b"):
        parse_options(["n"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{no json", r"in\.jsonl:2 is no JSON"),
        ('{"response": "a"}', r"in\.jsonl:2 has no `prompt`"),
        ('{"prompt": "a"}', r"in\.jsonl:2 has neither"),
        ('{"prompt": "a", "completions": "b"}', r"in\.jsonl:2 has neither"),
        ('{"prompt": [], "response": "b"}', r"in\.jsonl:2 has no `prompt`"),
    ],
)
def test_a_bad_row_is_named_and_no_output_appears(
    scorer: Path, tmp_path: Path, line: str, message: str
) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "a", "response": "b"}\n' + line + "\n")
    with pytest.raises(SourceError, match=message):
        score_file(scorer, source, output)
    assert not output.exists()
    assert not list(tmp_path.glob(".out*"))


def test_bad_files_are_named(scorer: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(SourceError, match="holds no rows"):
        score_file(scorer, empty, tmp_path / "out.jsonl")
    with pytest.raises(SourceError, match="no such file"):
        score_file(scorer, tmp_path / "nothing.jsonl", tmp_path / "out.jsonl")
    with pytest.raises(UsageError, match="is the file to score"):
        score_file(scorer, empty, empty)
