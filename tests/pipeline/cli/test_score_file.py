"""`rlhf score`: the same scores as everywhere else, in a file."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.errors import RecipeError, SourceError, UsageError
from data.records import Message, Ranking
from data.sources.read import read
from data.sources.source import Source
from pipeline.cli.main import main
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
    monkeypatch.setattr(functions.REWARDS, "functions", {})

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


def ranked_rows(n: int) -> list[dict[str, Any]]:
    """The longer answer is the better one in two of three prompts."""
    texts = ["a long answer it is", "no"]
    return [
        {
            "prompt": f"question {place}?",
            "chosen": texts[place % 3 == 0],
            "rejected": texts[place % 3 != 0],
            "subset": "odd" if place % 2 else "even",
        }
        for place in range(n)
    ]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows in the form that a file's suffix says."""
    import csv

    import pyarrow
    import pyarrow.parquet

    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in rows).encode()))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ["r.jsonl", "r.json", "r.jsonl.gz", "r.csv", "r.parquet", "r"])
def test_pairs_of_any_kind_of_file_are_scored_and_judged(tmp_path: Path, name: str) -> None:
    rows, output = ranked_rows(30), tmp_path / "out.jsonl"
    report = score_file("rule:length", written(tmp_path / name, rows), output, options=TARGET)
    found = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [{k: v for k, v in row.items() if k != "scores"} for row in found] == rows
    right = [row["scores"][0] > row["scores"][1] for row in found]
    quality = report.quality()
    assert quality is not None
    assert (quality["accuracy"], quality["n_pairs"]) == (sum(right) / 30, 30)
    assert quality["longer_wins"] == pytest.approx(2 / 3)
    assert quality["accuracy"] == pytest.approx(2 / 3)
    assert [row["subset"] for row in quality["by_subset"]] == ["even", "odd"]
    assert quality["beats_length"]["state"] == "not shown"


TARGET = {"target": 100}


def test_ranked_rows_are_asked_as_in_training_and_columns_can_be_mapped(
    scorer: Path, tmp_path: Path
) -> None:
    row = {
        "question": "who?", "context": "Ada is here.", "completions": ["Ada", "Ben"],
        "ranks": [0, 3], "ended": [True, False],
    }  # fmt: skip
    source, output = written(tmp_path / "r.jsonl", [row]), tmp_path / "out.jsonl"
    model = RewardModel.load(scorer / "model")

    def scores(**more: Any) -> list[float]:
        score_file(scorer, source, output, **more)
        found: list[float] = json.loads(output.read_text())["scores"]
        return found

    (asked,) = read(Source(path=str(source)))
    assert isinstance(asked, Ranking)
    assert "Ada is here." in str(asked.prompt)
    expected = model.score([asked.prompt] * 2, ["Ada", "Ben"], ended=[True, False])
    assert scores() == pytest.approx(expected, abs=1e-5)
    (alone,) = read(Source(path=str(source), columns={"prompt": "question"}))
    assert isinstance(alone, Ranking)
    expected = model.score([alone.prompt] * 2, ["Ada", "Ben"], ended=[True, False])
    assert scores(columns={"prompt": "question"}) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(SourceError, match=r"r\.jsonl:1: .*no column 'asked'"):
        score_file(scorer, source, output, columns={"prompt": "asked"})


def test_what_is_no_ranking_is_scored_and_not_judged(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "a", "completions": ["x", "x"], "ranks": [1, 2]},
        {"prompt": "a", "completions": ["x", "y"], "ranks": [1, 1]},
        {"prompt": "a", "completions": ["x", "y"]},
    ]
    output = tmp_path / "out.jsonl"
    report = score_file("rule:length", written(tmp_path / "r.jsonl", rows), output, options=TARGET)
    assert (report.rows, report.texts) == (3, 6)
    assert report.to_json()["unjudged"] == {"two completions are the same": 1}
    assert report.quality() is None
    rows = [{"prompt": "a", "chosen": "x", "rejected": "x"}]
    with pytest.raises(SourceError, match=r"r\.jsonl:1: chosen and rejected are the same; mend"):
        score_file("rule:length", written(tmp_path / "r.jsonl", rows), output, options=TARGET)


def test_the_command_prints_the_figures_or_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = written(tmp_path / "r.parquet", ranked_rows(30))
    command = ["rlhf", "score", "rule:length", str(source), "--out", str(tmp_path / "o.jsonl")]

    def said(*more: str) -> str:
        monkeypatch.setattr("sys.argv", [*command, "--option", "target=100", *more])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        return capsys.readouterr().out

    lines = said().splitlines()
    assert "30 rows, 60 texts" in lines[0]
    assert lines[1] == (
        "judged by 30 ranked pairs of 30 prompts; annotators leave 0.0 % of all pairs tied"
    )
    shares = {line[2:26].strip(): line[26:34].strip() for line in lines[2:8]}
    assert shares == {
        "accuracy": "66.7 %", "always the longer": "66.7 %", "always the shorter": "33.3 %",
        "bag of words": shares["bag of words"], "two annotators agree": "-",
        "equal scores": "0.0 %",
    }  # fmt: skip
    assert any("calibration error" in line and "log loss" in line for line in lines)
    assert any(line.startswith("  subset odd") for line in lines)
    assert lines[-1].startswith("the reward model is not shown to beat always taking the longer")
    content = json.loads(said("--json"))
    assert content["rows"] == 30
    assert content["quality"]["accuracy"] == pytest.approx(2 / 3)
    assert content["quality"]["warning"] == lines[-1]
    assert said("--quiet") == ""
