"""Rows that no one should write: each is told with its file and place, or counted and told."""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from data.errors import BadRowsError, SourceError
from data.sources import tables, values
from data.sources.read import ReadReport, read
from data.sources.source import Source

DEEP = 100_000
NINES = "9" * 400
GOOD = '{"prompt": "Why?", "completions": ["a", "b"], "ranks": [1, 2]}\n'


def ranking(**changed: object) -> str:
    return json.dumps({"prompt": "Why?", "completions": ["a", "b"], "ranks": [1, 2], **changed})


def chat(*turns: object, **beside: object) -> str:
    return json.dumps({"messages": turns, **beside})


def said(**beside: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", **beside}]


def asked(content: object) -> str:
    return chat({"role": "user", "content": content}, {"role": "assistant", "content": "a"})


BAD_ROWS: dict[str, tuple[str | bytes, str]] = {
    "deep-list": ('{"text": ' + "[" * DEEP + "]" * DEEP + "}", "nested more than"),
    "deep-object": ('{"a":' * DEEP + "1" + "}" * DEEP, "nested more than"),
    "deep-unclosed": ("[" * DEEP, "nested more than"),
    "deep-900": ('{"text": "x", "meta": ' + "[" * 900 + "]" * 900 + "}", "nested more than"),
    "deep-in-text": (ranking(ranks="[" * DEEP), "nested more than"),
    "deep-tools-in-text": (
        json.dumps({"prompt": "q", "completion": "a", "tools": '[{"a":' + "[" * 900 + "]" * 900}),
        "tools",
    ),
    "deep-turns-in-text": (json.dumps({"messages": "[{" * DEEP}), "no JSON list"),
    "turns-as-minus-signs": (json.dumps({"messages": "[{'role': " + "-" * 9999}), "no JSON list"),
    "number-400": (f'{{"prompt": "q", "completions": ["a", "b"], "ranks": [1, {NINES}]}}', "ranks"),
    "number-400-score": (ranking().replace('"ranks": [1, 2]', f'"scores": [1, {NINES}]'), "scores"),
    "number-400-share": (
        f'{{"prompt": "q", "chosen": "a", "rejected": "b", "probability": {NINES}}}',
        "probability",
    ),
    "number-400-shares": (
        ranking(probabilities=[[0.5, 7], [1, 0.5]]).replace("7", NINES),
        "probabilities",
    ),
    "number-5000": ('{"text": ' + "9" * 5000 + "}", "more digits"),
    "number-5000-rank": (ranking().replace("[1, 2]", "[1, " + "9" * 5000 + "]"), "more digits"),
    "number-1e400": (ranking().replace("[1, 2]", "[1, 1e400]"), "'ranks'"),
    "nan": (ranking().replace("[1, 2]", "[1, NaN]"), "'ranks'"),
    "infinity": (ranking().replace("[1, 2]", "[1, -Infinity]"), "'ranks'"),
    "ranks-twice": (ranking()[:-1] + ', "ranks": [2, 1]}', "'ranks' stands twice"),
    "content-twice": (
        '{"messages": [{"role": "user", "content": "a", "content": "b"}]}',
        "'content' stands twice",
    ),
    "twice-in-text": (ranking(ranks='[{"a": 1, "a": 2}, 1]'), "'a' stands twice"),
    "a-number": ("7", "not a JSON object but 7"),
    "a-text": ('"x"', "not a JSON object"),
    "null": ("null", "not a JSON object"),
    "true": ("true", "not a JSON object"),
    "a-list": ("[1]", "not a JSON object"),
    "nul": ('{"text": "a\x00b"}', "not JSON"),
    "nul-alone": ("\x00" * 50, "not JSON"),
    "a-tab": ('{"text": "a\tb"}', "not JSON"),
    "half": ('{"text": "x"', "not JSON"),
    "two-in-a-line": ('{"text": "x"} {"text": "y"}', "not JSON"),
    "half-a-character": ('{"text": "\\ud800"}', "half a character"),
    "half-in-a-turn": (asked("\ud800"), "half a character"),
    "latin-1": (b'{"text": "caf\xe9"}', "not UTF-8"),
    "utf-16": ('{"text": "x"}'.encode("utf-16"), "not UTF-8"),
    "ranks-text": (ranking(ranks=["best", "worst"]), "'best', not a number"),
    "ranks-digits": (ranking(ranks=[NINES, "1"]), "not a number"),
    "ranks-bools": (ranking(ranks=[True, False]), "True, not a number"),
    "ranks-few": (ranking(ranks=[1]), "2 completions but 1 ranks"),
    "ranks-many": (ranking(ranks=[1, 2, 3]), "2 completions but 3 ranks"),
    "ranks-null": (ranking(ranks=[1, None]), "not a number"),
    "ranks-object": (ranking(ranks={"a": 1}), "not a list"),
    "ranks-nested": (ranking(ranks=[[1], [2]]), "not a number"),
    "ranks-number": (ranking(ranks=3), "not a list"),
    "completions-numbers": (ranking(completions=[1, 2]), "a number"),
    "completions-null": (ranking(completions=[None, "a"]), "nothing"),
    "completions-text": (ranking(completions="ab"), "not a list"),
    "completions-object": (ranking(completions={"a": 1}), "not a list"),
    "shares-text": (ranking(probabilities=[[0.5, "x"], [1, 0.5]]), "not a number"),
    "shares-over-1": (ranking(probabilities=[[0.5, 2], [-1, 0.5]]), "no shares"),
    "shares-flat": (ranking(probabilities=[1, 2]), "not a list"),
    "ended-numbers": (ranking(ended=[1, 2]), "not true or false"),
    "ended-cut": (ranking(ended="[true"), "no JSON list"),
    "pair-null": ('{"prompt": "q", "chosen": null, "rejected": null}', "chosen"),
    "pair-numbers": ('{"prompt": "q", "chosen": 1, "rejected": 2}', "a number"),
    "pair-lists": ('{"prompt": "q", "chosen": [], "rejected": []}', "empty"),
    "pair-share-text": (
        '{"prompt": "q", "chosen": "a", "rejected": "b", "probability": "x"}',
        "'probability'",
    ),
    "pair-transcripts": ('{"chosen": "Human:", "rejected": "Human: x"}', "'chosen' ends"),
    "role-unknown": (chat({"role": "alien", "content": "x"}), "'alien'"),
    "role-long": (chat({"role": "x" * 5000, "content": "x"}), "role"),
    "role-null": (chat({"role": None, "content": "x"}), "list"),
    "role-number": (chat({"role": 3, "content": "x"}), "role is 3"),
    "role-list": (chat({"role": ["user"], "content": "x"}), "role is"),
    "content-null": (asked(None), "holds nothing"),
    "content-number": (asked(4), "a number, not text"),
    "content-object": (asked({"a": 1}), "an object, not text"),
    "content-image": (asked([{"type": "image", "url": "x"}]), "parts that are no text"),
    "content-list-of-numbers": (asked([1, 2]), "parts that are no text"),
    "turns-numbers": (chat(1, 2), "a message is a number"),
    "turns-mixed": (chat({"role": "user", "content": "x"}, 7), "a message is a number"),
    "turns-none": (chat(), "empty"),
    "turns-user-last": (json.dumps({"messages": "hello"}), "not the assistant's"),
    "weight-text": (chat(*said(weight="y")), "weight"),
    "weight-list": (chat(*said(weight=[1])), "weight"),
    "calls-number": (chat(*said(tool_calls=7)), "a number, not a list"),
    "calls-numbers": (chat(*said(tool_calls=[7])), "not an object"),
    "calls-nameless": (chat(*said(tool_calls=[{"function": 7}])), "does not name"),
    "call-number": (chat(*said(function_call=7)), "not an object"),
    "tools-number": (json.dumps({"prompt": "q", "completion": "a", "tools": 7}), "'tools'"),
    "history-number": (json.dumps({"prompt": "q", "completion": "a", "history": 7}), "'history'"),
    "history-single": (json.dumps({"prompt": "q", "completion": "a", "history": [[1]]}), "pairs"),
    "system-number": (json.dumps({"prompt": "q", "completion": "a", "system": 7}), "'system'"),
    "prompt-numbers": (json.dumps({"prompt": [1], "completion": "a"}), "'prompt'"),
    "instruction-list": (json.dumps({"instruction": [1], "output": "x"}), "'instruction'"),
    "text-number": ('{"text": 7}', "a number, not text"),
    "text-list": ('{"text": ["a"]}', "a list, not text"),
    "text-null": ('{"text": null}', "no column 'text'"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_malformed_row_is_refused_or_counted_with_its_line(name: str, tmp_path: Path) -> None:
    row, words = BAD_ROWS[name]
    line = row if isinstance(row, bytes) else row.encode("utf-8", "surrogatepass")
    (tmp_path / "rows.jsonl").write_bytes(line.replace(b"\n", b" ") + b"\n")
    with pytest.raises(BadRowsError, match=r"^1 of 1 rows are malformed") as caught:
        list(read(Source(path=str(tmp_path / "rows.jsonl"))))
    sentence = str(caught.value)
    assert "rows.jsonl:1: " in sentence and len(sentence) < 1000
    assert words in sentence or name == "role-null", sentence
    format = "auto"
    if b"ranks" in line or b"completions" in line:
        format = "rankings"
    (tmp_path / "more.jsonl").write_bytes((GOOD * 2).encode() + line.replace(b"\n", b" ") + b"\n")
    report = ReadReport()
    many = Source(path=str(tmp_path / "more.jsonl"), format=format, max_bad_share=0.5)
    assert len(list(read(many, report=report))) == 2
    assert report.bad == 1 and "more.jsonl:3: " in report.first_bad[0]
    assert any("1 malformed row" in told for told in report.lines())


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        pytest.param(ranking(completions=["a", "a"]), "two completions are the same", id="same"),
        pytest.param(
            ranking(completions=["a", "b", "a"], ranks=[1, 2, 3]),
            "two completions are the same",
            id="same-of-three",
        ),
        pytest.param(ranking(completions=["", ""]), "the same", id="empty"),
        pytest.param(ranking(completions=[" ", "\n"]), "all completions are empty", id="blank"),
        pytest.param(ranking(completions=["a"], ranks=[1]), "fewer than two", id="one"),
        pytest.param(ranking(completions=[], ranks=[]), "fewer than two", id="none"),
        pytest.param(ranking(prompt=""), "the prompt is empty", id="no-prompt"),
        pytest.param('{"prompt": "q", "chosen": "a", "rejected": "a"}', "the same", id="pair-same"),
        pytest.param('{"prompt": "q", "chosen": "", "rejected": " "}', "empty", id="pair-empty"),
        pytest.param('{"text": " "}', "empty text", id="no-text"),
    ],
)
def test_a_row_of_no_use_is_dropped_and_told(row: str, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(row + "\n" + row + "\n" + GOOD)
    report = ReadReport()
    format = "preference" if "chosen" in row else "auto" if '"text"' in row else "rankings"
    usable = Source(path=str(file), format=format, max_bad_share=0.5)
    if format == "rankings":
        assert len([*read(usable, report=report)]) == 1
    else:
        with pytest.raises(SourceError, match=f"nothing to read.*2 dropped: .*{reason}"):
            list(read(usable, report=report))
    assert report.dropped.total() == 2 and any(reason in why for why in report.dropped)


@pytest.mark.parametrize(
    ("row", "ranks"),
    [
        pytest.param(ranking(ranks=[-1, -5]), [2, 1], id="negative"),
        pytest.param(ranking(ranks=[1, 10**300]), [1, 2], id="huge"),
        pytest.param(ranking(ranks=["2", "1"]), [2, 1], id="digits"),
        pytest.param(ranking(ranks=[0.5, 0.25]), [2, 1], id="floats"),
        pytest.param(ranking(ranks=[1, 1]), [1, 1], id="tied"),
        pytest.param(ranking(completions=["a", "a"], ranks=[1, 1]), [1, 1], id="same-tied"),
        pytest.param(ranking(completions=["", "a"]), [1, 2], id="one-empty"),
        pytest.param(
            ranking(completions=[str(n) for n in range(5000)], ranks=[*range(5000)]),
            [*range(1, 5001)],
            id="5000",
        ),
        pytest.param(ranking(annotator="\ud800", policies=7), [1, 2], id="odd-beside"),
    ],
)
def test_rankings_that_are_odd_but_whole_are_read(
    row: str, ranks: list[int], tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text(row)
    (found,) = read(Source(path=str(tmp_path / "rows.jsonl")))
    assert getattr(found, "ranks", None) == ranks


def packed(table: Any, kind: str) -> bytes:
    file = io.BytesIO()
    if kind == "parquet":
        pyarrow.parquet.write_table(table, file)
    else:
        with pyarrow.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    return file.getvalue()


def column(value: int, kind: Any) -> Any:
    return pyarrow.table({"text": ["x", "y"], "when": pyarrow.array([0, value], kind)})


NO_TEXT = pyarrow.Array.from_buffers(
    pyarrow.string(),
    1,
    [None, pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"\xff\xfe")],
)
TABLES = {
    "time-us": (column(2**62, pyarrow.timestamp("us")), "row 2: a value can't be read"),
    "time-zone": (column(5, pyarrow.timestamp("us", tz="Nowhere/City")), "a value can't be read"),
    "day": (column(2**31 - 1, pyarrow.date32()), "row 2: a value can't be read"),
    "duration": (column(2**62, pyarrow.duration("s")), "row 2: a value can't be read"),
    "column-twice": (
        pyarrow.Table.from_arrays([pyarrow.array(["x"])] * 2, names=["text", "text"]),
        "column 'text' stands twice",
    ),
    "field-twice": (
        pyarrow.table(
            {
                "text": ["x"],
                "meta": pyarrow.StructArray.from_arrays(
                    [pyarrow.array([1]), pyarrow.array([2])], names=["a", "a"]
                ),
            }
        ),
        "row 1: a value can't be read",
    ),
    "bytes": (
        pyarrow.Table.from_arrays([NO_TEXT], names=["text"]),
        "row 1: a value can't be read",
    ),
}


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("name", TABLES)
def test_a_table_with_what_python_can_not_hold(kind: str, name: str, tmp_path: Path) -> None:
    table, words = TABLES[name]
    (tmp_path / f"rows.{kind}").write_bytes(packed(table, kind))
    with pytest.raises(SourceError, match=rf"rows\.{kind}.*{words}"):
        list(read(Source(path=str(tmp_path / f"rows.{kind}"))))


def loop(path: Path) -> None:
    path.symlink_to(path)


LINES = (GOOD * 50).encode()
TEXTS = pyarrow.table({"text": ["x" * 50] * 500})
FILES: dict[str, tuple[str, Any, str]] = {
    "empty": ("rows.jsonl", "", "it is empty|no usable rows"),
    "blank": ("rows.jsonl", "\n\n \n", "no usable rows"),
    "bom": ("rows.jsonl", b"\xef\xbb\xbf", "not JSON"),
    "utf-16": ("rows.jsonl", GOOD.encode("utf-16"), "rows.jsonl:1: not UTF-8"),
    "json-deep": ("rows.json", "[" * DEEP + "]" * DEEP, "nested more than"),
    "json-deep-object": ("rows.json", '{"a":' * DEEP + "1" + "}" * DEEP, "nested more than"),
    "json-deep-row": ("rows.json", '[{"a":' + "[" * DEEP + "]" * DEEP + "}]", "nested more than"),
    "json-numbers": ("rows.json", "[1, 2, 3]", "rows.json:1: not a JSON object but 1"),
    "json-number": ("rows.json", "7", "not a JSON object but 7"),
    "json-text": ("rows.json", '"x"', "not a JSON object"),
    "json-digits": ("rows.json", "9" * 5000, "more digits"),
    "json-cut": ("rows.json", '[{"text": "x"},\n', "rows.json:2: .*not closed"),
    "json-empty": ("rows.json", "", "not JSON"),
    "json-no-rows": ("rows.json", "[]", "no usable rows"),
    "json-no-columns": ("rows.json", "{}", "can't tell the format"),
    "json-nul": ("rows.json", "\x00" * 100, "not JSON"),
    "json-utf-16": ("rows.json", '[{"text": "x"}]'.encode("utf-16"), "UTF-8 text.* in line 1"),
    "json-more": ("rows.json", '[{"text": "x"}]\n[{"text": "y"}]', "json:2: text behind the array"),
    "json-twice": ("rows.json", '[{"text": "x", "text": "y"}]', "'text' stands twice"),
    "json-list-twice": (
        "rows.json",
        '{"data": [{"text": "x"}],\n"data": [{"text": "y"}]}',
        "'data' stands twice",
    ),
    "csv-empty": ("rows.csv", "", "no usable rows"),
    "csv-header-alone": ("rows.csv", "text\n", "no usable rows"),
    "csv-quote": ("rows.csv", 'text\nx\n"open\ny\n', "2 of 3 .*csv:3: .*csv:4: in a quote open"),
    "csv-quote-inside": ("rows.csv", 'text\n"a"b"\n', "csv:2: not CSV"),
    "csv-quote-header": ("rows.csv", '"text\nx\n', "csv:1: the header is not CSV"),
    "csv-ragged": ("rows.csv", "text,b\nx\nx,y,z\n", "csv:2: not as many.*csv:3: not as many"),
    "csv-twice": ("rows.csv", "prompt,ranks,ranks\nq,a,b\n", "csv:1: column 'ranks' stands twice"),
    "csv-no-header": ("rows.csv", "1,2\n4,5\n", "can't tell the format"),
    "csv-utf-16": ("rows.csv", "text\nx\n".encode("utf-16"), "UTF-8 text.* in line 1"),
    "csv-bytes": ("rows.csv", b"text\nx\n\xff\n", "UTF-8 text.* in line 3"),
    "csv-wide-header": ("rows.csv", ",".join(f"c{n}" for n in range(20_000)) + "\nx\n", "csv:2"),
    "csv-ranks": (
        "rows.csv",
        f'prompt,completions,ranks\nq,"[""a"",""b""]","[1,{NINES}]"\n',
        "csv:2: column 'ranks'",
    ),
    "csv-ranks-deep": (
        "rows.csv",
        'prompt,completions,ranks\nq,"[""a"",""b""]","' + "[" * 9999 + '"\n',
        "csv:2: column 'ranks'.*nested",
    ),
    "text-bytes": ("rows.txt", b"ok\n\xff\n", "UTF-8 text.* in line 2"),
    "text-blank": ("rows.txt", "\n\n", "no usable rows"),
    "gz-cut": ("rows.jsonl.gz", gzip.compress(LINES)[:-20], "can't be unpacked"),
    "gz-none": ("rows.jsonl.gz", GOOD, "can't be unpacked"),
    "gz-behind": ("rows.jsonl.gz", gzip.compress(LINES) + b"garbage", "can't be unpacked"),
    "gz-empty": ("rows.jsonl.gz", "", "no usable rows"),
    "zst-cut": ("rows.jsonl.zst", zstandard.compress(LINES)[:-5], "can't be unpacked"),
    "zst-none": ("rows.jsonl.zst", GOOD, "can't be unpacked"),
    "zst-flipped": (
        "rows.jsonl.zst",
        zstandard.compress(LINES)[:8] + b"\xff" * 3 + zstandard.compress(LINES)[11:],
        "can't be unpacked",
    ),
    "parquet-empty": ("rows.parquet", "", "not a readable Parquet file"),
    "parquet-text": ("rows.parquet", GOOD, "not a readable Parquet file"),
    "parquet-cut": ("rows.parquet", packed(TEXTS, "parquet")[:-30], "not a readable Parquet file"),
    "arrow-empty": ("rows.arrow", "", "not a readable Arrow file"),
    "arrow-text": ("rows.arrow", GOOD * 50, "not a readable Arrow file"),
    "arrow-cut": ("rows.arrow", packed(TEXTS, "arrow")[:-300], "can't read"),
    "arrow-gz-cut": ("rows.arrow.gz", gzip.compress(packed(TEXTS, "arrow"))[:-50], "unpacked"),
    "parquet-as-lines": ("rows.jsonl", packed(TEXTS, "parquet"), "rows.jsonl:1"),
    "gz-as-lines": ("rows.jsonl", gzip.compress(LINES), "rows.jsonl:1: not UTF-8"),
    "suffix": ("rows.xyz", "x", "can't tell what"),
    "no-suffix": ("rows", "x", "can't tell what"),
    "pipe": ("rows.jsonl", os.mkfifo, "neither a file nor a folder"),
    "folder": ("rows.jsonl", Path.mkdir, "folder .* holds no"),
    "link-loop": ("rows.jsonl", loop, "a link to nothing"),
    "link-dangling": ("rows.jsonl", lambda path: path.symlink_to("gone"), "a link to nothing"),
}


def made(tmp_path: Path, name: str, content: Any) -> str:
    path = tmp_path / name
    if callable(content):
        content(path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_wrong_is_named(name: str, tmp_path: Path) -> None:
    file, content, words = FILES[name]
    with pytest.raises(SourceError, match=f"(?s){words}") as caught:
        list(read(Source(path=made(tmp_path, file, content))))
    assert "rows" in str(caught.value) and len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/dev/zero", "neither a file nor a folder"),
        ("/dev/null", "neither a file nor a folder"),
        ("~nobody-here/rows.jsonl", "no such file"),
        ("x" * 300 + ".jsonl", "name too long"),
        ("a/" * 3000, "name too long"),
        ("a\0b.jsonl", "no such file"),
        ("", "names no file"),
        (" ", "names no file"),
        ("[", "no file matches"),
        ("gone*.jsonl", "no file matches"),
        ("**/**/**/gone*", "no file matches"),
        ("\ud800.jsonl", "no such file"),
    ],
    ids=range(12),
)
def test_a_path_that_names_nothing(
    path: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=f"(?i){words}"):
        list(read(Source(path=path)))


@pytest.mark.parametrize("hub", ["~nobody-here", "x" * 500, "\0", "a b", "../x", "a/b/c", "\ud800"])
def test_a_hub_id_of_odd_form(hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match="can't read data set") as caught:
        list(read(Source(hub=hub)))
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"prompt": "a.²"}, "no column"),
        ({"prompt": "a." + "9" * 5000}, "no column"),
        ({"prompt": "a.-1"}, "no column"),
        ({"prompt": ""}, "no column"),
        ({"prompt": ".".join("a" * 9999)}, "no column"),
        ({"prompt": "{gone}"}, "no column 'gone'"),
        ({"prompt": "{" + "a" * 9999 + "}"}, "no column"),
        ({"nothing": "a"}, "can't tell the format"),
    ],
    ids=range(8),
)
def test_columns_that_lead_nowhere(columns: dict[str, str], words: str, tmp_path: Path) -> None:
    file = made(tmp_path, "rows.jsonl", '{"a": ["x"]}')
    with pytest.raises(SourceError, match=words) as caught:
        list(read(Source(path=file, columns=columns)))
    assert "rows.jsonl" in str(caught.value) and len(str(caught.value)) < 2500


@pytest.mark.parametrize("pack", ["", ".gz", ".zst"])
@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("rows.jsonl", GOOD + "x" * 9000 + "\n" + GOOD, "rows.jsonl.*:2: longer than 4,096"),
        ("rows.jsonl", "x" * 99_000, "rows.jsonl.*:1: a row is longer than 4,096"),
        ("rows.json", '[{"text": "' + "x" * 99_000, "rows.json.*:1: .*longer than 4,096"),
        ("rows.json", '{"text": "' + "x" * 99_000, "rows.json.*:1: a row is longer than 4,096"),
        ("rows.json", "x" * 99_000, "rows.json.*:1: a row is longer than 4,096"),
        ("rows.json", "[[" + "[]," * 1300, "more than 256 lists"),
        ("rows.csv", "text\n" + "x" * 99_000, "rows.csv.*:2: a row is longer than 4,096"),
        ("rows.csv", 'text\n"' + "x\n" * 9_000, "rows.csv.*:2: a row is longer than 4,096"),
        ("rows.csv", "x" * 99_000, "rows.csv.*:1: a row is longer than 4,096"),
    ],
    ids=range(9),
)
def test_a_row_longer_than_the_longest(
    name: str, text: str, words: str, pack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(values, "MAX_ROW", 4096)
    monkeypatch.setattr("data.sources.files._CHUNK", 64)
    pressed: dict[str, Callable[[bytes], bytes]] = {
        ".gz": gzip.compress,
        ".zst": zstandard.compress,
    }
    file = made(tmp_path, name + pack, pressed.get(pack, bytes)(text.encode()))
    with pytest.raises(SourceError, match=words):
        list(read(Source(path=file)))


def test_a_text_without_a_line_end_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "MAX_ROW", 100)
    monkeypatch.setattr("data.sources.files.MAX_DOCUMENT", 50)
    file = made(tmp_path, "rows.txt", "x" * 950)
    report = ReadReport()
    assert [
        len(getattr(found, "text", "")) for found in read(Source(path=file), report=report)
    ] == [
        *[100] * 9,
        50,
    ]
    assert any("cut a text" in line for line in report.lines())


def test_a_long_cell_of_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "MAX_ROW", 100)
    table = pyarrow.table({"text": ["x" * 200, *["y"] * 9]})
    for kind in ("parquet", "arrow"):
        file = made(tmp_path, f"rows.{kind}", packed(table, kind))
        with pytest.raises(BadRowsError, match=r"1 of 10 .*row 1: longer than 100"):
            list(read(Source(path=file)))
    file = made(tmp_path, "rows.parquet", packed(table.slice(0, 1), "parquet"))
    with pytest.raises(SourceError, match="longer than 100"):
        list(read(Source(path=file)))


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("stored", [True, False])
def test_a_dictionary_is_written_out_for_few_rows_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, stored: bool
) -> None:
    """One text of 64 KiB is each of 90 rows: 6 MB, from a file of a few hundred bytes."""
    monkeypatch.setattr(tables, "_DECODED", 2**20)
    texts: Any = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 90), ["x" * 2**16])
    table = pyarrow.table({"text": texts if stored else texts.dictionary_decode()})
    file = made(tmp_path, f"rows.{kind}", packed(table, kind))
    taken: list[int] = []
    as_python = tables._as_python

    def noted(batch: Any) -> Any:
        taken.append(batch.num_rows)
        return as_python(batch)

    monkeypatch.setattr(tables, "_as_python", noted)
    assert [len(row.text) for row in read(Source(path=file))] == [2**16] * 90
    assert sum(taken) == 90 and max(taken) <= 16


def test_rows_of_an_array_are_the_same_however_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"text": "é" * n + '"[{\\', "n": [n, 1.5e-3, True, None]} for n in range(1, 60)]
    for name, text in {
        "one.json": json.dumps(rows),
        "many.json": json.dumps(rows, indent=2, ensure_ascii=False),
        "object.json": json.dumps({"v": 1, "data": rows}, indent=2),
        "numbers.json": json.dumps([12345678, 1.25, *rows]),
    }.items():
        file = made(tmp_path, name, text)
        whole = [*read(Source(path=file, max_bad_share=0.1))]
        with monkeypatch.context() as small:
            small.setattr("data.sources.files._CHUNK", 7)
            assert [*read(Source(path=file, max_bad_share=0.1))] == whole
        assert [getattr(found, "text", None) for found in whole] == [row["text"] for row in rows]


def test_a_row_that_is_none_does_not_end_an_array(tmp_path: Path) -> None:
    text = '[{"text": "x"},\n{"text": 1, "text": 2},\n{"text": ' + "9" * 5000 + '},\n{"text": "y"}]'
    report = ReadReport()
    file = made(tmp_path, "rows.json", text)
    assert len([*read(Source(path=file, max_bad_share=0.5), report=report)]) == 2
    assert [place.rpartition("/")[2][:11] for place in report.first_bad] == [
        "rows.json:2",
        "rows.json:3",
    ]


def test_links_that_go_round_are_refused_and_others_followed(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    made(tmp_path / "other", "rows.jsonl", GOOD)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "inside").symlink_to(tmp_path / "other")
    assert len([*read(Source(path=str(tmp_path / "set" / "**" / "*.jsonl")))]) == 1
    for name in ("back", "again", "round"):
        (tmp_path / "set" / name).symlink_to(tmp_path / "set")
    with pytest.raises(SourceError, match="a link to a folder above it"):
        list(read(Source(path=str(tmp_path / "set" / "**" / "*.jsonl"))))


def test_thousands_of_files_are_told_in_one_line(tmp_path: Path) -> None:
    for number in range(1500):
        made(tmp_path, f"{number}.jsonl", GOOD)
    report = ReadReport()
    assert len([*read(Source(path=str(tmp_path)), report=report)]) == 1500
    assert len(report.lines()) == 2 and "1,499 other files" in report.lines()[0]


def test_half_a_character_in_a_name_can_be_printed(tmp_path: Path) -> None:
    file = made(tmp_path, "rows.jsonl", '{"text": "x", "\\ud800": 1}')
    report = ReadReport()
    list(read(Source(path=file), report=report))
    assert "\n".join(report.lines()).encode()


TOKENIZER = "stages: {tok: {kind: tokenizer, train: [{path: %s}], vocab_size: 300}}"
COMMANDED = (
    "ranks-twice", "deep-list", "deep-900", "number-5000", "half", "a-list", "a-number", "nul",
    "latin-1", "utf-16",
)  # fmt: skip
RANKED = ("number-400", "nan", "deep-in-text", "half-a-character", "role-long", "completions-null")


@pytest.mark.parametrize("name", COMMANDED + RANKED)
def test_rows_by_command(
    rlhf: Callable[..., Any], assert_refused: Callable[..., None], name: str
) -> None:
    row, words = BAD_ROWS[name]
    files = {"r.yaml": TOKENIZER % "rows.jsonl", "rows.jsonl": row, "run/note": ""}
    assert_refused(rlhf(["validate", "r.yaml"], files), "rows.jsonl:1", words)
    if name in COMMANDED:
        scored = rlhf(["score", "rule:repetition", "rows.jsonl", "--out", "scores.jsonl"])
        assert_refused(scored, "rows.jsonl:1")


FEW_BAD = ("json-cut", "json-more", "gz-behind")
"""Of which half the first rows are well: a check lets them pass, the stage does not."""


@pytest.mark.parametrize("name", [name for name in FILES if name not in FEW_BAD])
def test_files_by_command(
    rlhf: Callable[..., Any], assert_refused: Callable[..., None], name: str
) -> None:
    file, content, _ = FILES[name]
    files = {"r.yaml": TOKENIZER % file, file: content}
    assert_refused(rlhf(["validate", "r.yaml"], files), file)


@pytest.mark.parametrize("name", ("ranks-twice", *RANKED))
def test_labels_by_command(
    rlhf: Callable[..., Any], assert_refused: Callable[..., None], name: str
) -> None:
    files = {"rows.jsonl": BAD_ROWS[name][0], "run/note": ""}
    assert_refused(rlhf(["label", "import", "run", "rows.jsonl"], files), "rows.jsonl:1: ")
