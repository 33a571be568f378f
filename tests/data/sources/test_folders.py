import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from data.errors import SourceError
from data.labels.exchange.importing import read_labels
from data.records import chat
from data.sources.fingerprint import fingerprint
from data.sources.folders import find_files, split_of
from data.sources.read import ReadReport, read
from data.sources.source import Source

CARD = "---\nlicense: mit\n---\n# A data set\n\nIt has rows.\n"


def rows(split: str, count: int = 2) -> list[dict[str, str]]:
    return [{"prompt": f"{split} {i}", "completion": "c"} for i in range(count)]


def lines(place: Path, split: str) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("".join(json.dumps(row) + "\n" for row in rows(split)))


def table(place: Path, split: str) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows(split)), place)


def prompts(path: Path, report: ReadReport | None = None, **settings: Any) -> list:
    return [
        r.prompt for r in read(Source(path=str(path), **settings), report=report or ReadReport())
    ]


@pytest.fixture
def snapshot(tmp_path):
    """A copy of a data set of the hub."""
    table(tmp_path / "data" / "train-00000-of-00002-a1.parquet", "train")
    table(tmp_path / "data" / "train-00001-of-00002-b2.parquet", "more")
    table(tmp_path / "data" / "test-00000-of-00001-c3.parquet", "test")
    (tmp_path / "README.md").write_text(CARD)
    (tmp_path / "LICENSE.txt").write_text("Do as you like.")
    (tmp_path / "dataset_infos.json").write_text("{}")
    (tmp_path / ".gitattributes").write_text("*.parquet")
    return tmp_path


def test_of_a_copy_of_the_hub_the_asked_split_is_read_and_no_card(snapshot):
    report = ReadReport()
    assert prompts(snapshot, report) == ["train 0", "train 1", "more 0", "more 1"]
    assert report.lines()[-3:-1] == [
        "left out split test (1 files)",
        "left out LICENSE.txt, README.md, dataset_infos.json: no data",
    ]
    assert prompts(snapshot, hub_split="test") == ["test 0", "test 1"]
    with pytest.raises(SourceError, match=r"no split 'validation'.*holds test, train"):
        prompts(snapshot, hub_split="validation")
    path = str(snapshot)
    assert fingerprint(Source(path=path)) != fingerprint(Source(path=path, hub_split="test"))


def test_a_card_is_no_data_in_a_glob_either(snapshot):
    lines(snapshot / "a.jsonl", "a")
    with pytest.raises(SourceError, match="no file matches"):
        prompts(snapshot / "READ*")
    assert [file.name for file in find_files(str(snapshot / "*")).files] == ["a.jsonl"]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train.jsonl", "test.jsonl"),
        ("train/a.jsonl", "test/a.jsonl"),
        ("harmless-base/train.jsonl", "harmless-base/test.jsonl"),
        ("my_train_set.jsonl", "my-eval.jsonl"),
        ("rows.jsonl", "test.jsonl"),
    ],
)
def test_splits_are_told_by_names(tmp_path, train, test):
    lines(tmp_path / train, "train")
    lines(tmp_path / test, "test")
    assert prompts(tmp_path) == ["train 0", "train 1"]
    assert prompts(tmp_path, hub_split="test") == ["test 0", "test 1"]
    both = str(tmp_path / "**" / "*.jsonl")
    assert len(list(read(Source(path=both)))) == 4


def test_files_that_name_no_split_or_one_alone_are_all_read(tmp_path):
    for name in ("a", "attested", "trainer"):
        lines(tmp_path / "plain" / f"{name}.jsonl", name)
    assert len(prompts(tmp_path / "plain")) == 6
    lines(tmp_path / "one" / "eval_prompts.jsonl", "e")
    report = ReadReport()
    assert prompts(tmp_path / "one", report) == ["e 0", "e 1"]
    assert any("all files" in line and "are of split test" in line for line in report.lines())


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/train_sft-00000-of-00003-ab.parquet", "train_sft"),
        ("data/dev-00000-of-00001.parquet", "validation"),
        ("valid/x.jsonl", "validation"),
        ("x_testing.jsonl", "test"),
        ("latest.jsonl", None),
        ("constraint.jsonl", None),
    ],
)
def test_a_name_tells_a_split_by_whole_words(name, split):
    assert split_of(Path(name)) == split


def test_splits_of_other_names_are_chosen_by_them(tmp_path):
    for split in ("train_sft", "train_gen"):
        table(tmp_path / f"{split}-00000-of-00001.parquet", split)
    with pytest.raises(SourceError, match="holds train_gen, train_sft"):
        prompts(tmp_path)
    assert prompts(tmp_path, hub_split="train_sft") == ["train_sft 0", "train_sft 1"]


def test_the_readme_of_a_copy_says_which_files_are_which_split(tmp_path):
    lines(tmp_path / "first.jsonl", "train")
    lines(tmp_path / "second.jsonl", "test")
    listed = "".join(
        f"  - split: {split}\n    path: {name}.jsonl\n"
        for split, name in (("train", "first"), ("test", "second"))
    )
    card = f"---\nconfigs:\n- config_name: default\n  data_files:\n{listed}---\n# A data set\n"
    (tmp_path / "README.md").write_text(card)
    assert prompts(tmp_path) == ["train 0", "train 1"]
    assert prompts(tmp_path, hub_split="test") == ["test 0", "test 1"]


@pytest.mark.parametrize("origin", ["path", "hub"])
def test_what_save_to_disk_leaves_is_read(tmp_path, origin):
    one = datasets.Dataset.from_list(rows("train", 5))
    one.save_to_disk(str(tmp_path / "one"), num_shards=2)
    several = {"train": one, "test": datasets.Dataset.from_list(rows("test"))}
    datasets.DatasetDict(several).save_to_disk(str(tmp_path / "several"))

    def got(name: str, **settings: Any) -> list:
        place: dict[str, Any] = {origin: str(tmp_path / name)}
        return [r.prompt for r in read(Source(**place, **settings))]

    assert got("one") == [f"train {i}" for i in range(5)]
    assert got("several") == [f"train {i}" for i in range(5)]
    assert got("several", hub_split="test") == ["test 0", "test 1"]
    with pytest.raises(SourceError, match=r"'validation'.*holds test, train"):
        got("several", hub_split="validation")


def test_of_a_saved_data_set_the_other_splits_are_told_and_a_lost_table_is_named(tmp_path):
    made = datasets.Dataset.from_list(rows("train"))
    datasets.DatasetDict(train=made, test=made).save_to_disk(str(tmp_path))
    report = ReadReport()
    prompts(tmp_path, report)
    assert "left out split test" in report.lines()
    (tmp_path / "train" / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(SourceError, match=r"not whole: .*data-00000-of-00001.arrow is missing"):
        prompts(tmp_path)


def test_labels_come_from_the_asked_split_too(tmp_path):
    from datetime import UTC, datetime

    pairs = [{"question": "Where?", "chosen": "Here.", "rejected": "Off."}]
    for split in ("train", "test"):
        pairs[0]["question"] = split
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(pairs[0]))
    report = ReadReport()
    found = read_labels(str(tmp_path), when=datetime(2026, 1, 1, tzinfo=UTC), report=report)
    assert [one.task.prompt for one in found] == ["train"]
    assert "left out split test (1 files)" in report.lines()


MIXED = [
    ("007", "x"),
    ("null", [{"type": "text", "text": "p"}]),
    ("text", "007"),
    ("[1, 2]", "null"),
    (7, "[Verse]"),
]


def mixed(folder: Path) -> Path:
    """Rows whose columns are of several types, as JSON Lines in the hub's layout."""
    made = [
        {"id": str(i), "question": "q", "answer": answer, "day": "2025-01-01"}
        for i, (answer, _) in enumerate(MIXED)
    ]
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    return folder


def test_strings_of_the_hub_stay_strings(tmp_path):
    hub = str(mixed(tmp_path / "set"))
    got = list(read(Source(hub=hub, max_bad_share=0.3)))
    assert [r.messages[1]["content"] for r in got] == ["007", "null", "text", "[1, 2]"]
    asked = list(read(Source(hub=hub, format="prompt")))
    assert [r.meta["answer"] for r in asked] == [answer for answer, _ in MIXED]
    assert asked[0].meta["day"] == "2025-01-01"


def test_words_of_a_csv_of_the_hub_stay_words(tmp_path):
    (tmp_path / "train.csv").write_text("question,answer\nNA,007\nnull,None\n")
    got = list(read(Source(hub=str(tmp_path))))
    assert [r.messages for r in got] == [chat("NA", "007"), chat("null", "None")]


@pytest.mark.parametrize("form", ["parquet", "saved"])
def test_tables_with_json_inside_give_text_without_quotes(tmp_path, form):
    made = {
        "question": ["q"] * 5,
        "answer": [answer for answer, _ in MIXED],
        "messages": [
            [{"role": "user", "content": "q"}, {"role": "assistant", "content": content}]
            for _, content in MIXED
        ],
    }
    table = datasets.Dataset.from_dict(made, on_mixed_types="use_json")
    assert "Json" in str(table.features["messages"])
    place = tmp_path / ("a.parquet" if form == "parquet" else "saved")
    (table.to_parquet if form == "parquet" else table.save_to_disk)(str(place))
    got = list(read(Source(path=str(place), format="messages")))
    assert [r.messages[1]["content"] for r in got] == ["x", "p", "007", "null", "[Verse]"]
    picked = read(Source(path=str(place), format="instruction", columns={"question": "question"}))
    assert [r.messages[1]["content"] for r in picked] == ["007", "null", "text", "[1, 2]", "7"]


def test_a_hub_folder_is_read_as_its_card_says(tmp_path):
    (tmp_path / "rows.csv").write_text("question;answer\na;b\n")
    card = '---\nconfigs:\n- config_name: default\n  data_files: rows.csv\n  sep: ";"\n---\n'
    (tmp_path / "README.md").write_text(card)
    (row,) = read(Source(hub=str(tmp_path)))
    assert row.messages == chat("a", "b")
