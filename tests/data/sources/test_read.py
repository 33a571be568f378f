import contextlib
import csv
import gzip
import json
import os
from collections.abc import Generator, Iterable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from data.errors import BadRowsError, SourceError
from data.records import Completion, Conversation, Document, PromptRow, Ranking, chat
from data.sources import files
from data.sources.fingerprint import fingerprint
from data.sources.read import ReadReport, read
from data.sources.source import Source

PAIRS = [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(5)]
RECORDS = [Completion(prompt=f"p{i}", completion=f"c{i}") for i in range(5)]


def json_lines(rows: list) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def without_ids(records: Iterable) -> list:
    return [type(r)(**{**vars(r), "id": ""}) for r in records]


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def write_parquet(path: Path, rows: list) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


def test_json_lines_give_records_with_their_line_as_id(tmp_path):
    report = ReadReport()
    got = list(read(Source(path=write(tmp_path / "a.jsonl", json_lines(PAIRS))), report=report))
    assert without_ids(got) == RECORDS
    assert got[2].id == "a.jsonl:3"
    assert report.rows == report.records == 5
    assert list(report.formats.values()) == ["prompt_completion (told from its columns)"]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_packed_files_are_unpacked(tmp_path, suffix):
    text = json_lines(PAIRS).encode()
    packed = gzip.compress(text) if suffix == ".gz" else zstandard.compress(text)
    file = tmp_path / f"a.jsonl{suffix}"
    file.write_bytes(packed)
    assert without_ids(read(Source(path=str(file)))) == RECORDS


def test_zst_files_of_several_frames_are_read_to_the_end(tmp_path):
    halves = json_lines(PAIRS[:2]).encode(), json_lines(PAIRS[2:]).encode()
    file = tmp_path / "a.jsonl.zst"
    file.write_bytes(b"".join(zstandard.compress(half) for half in halves))
    assert without_ids(read(Source(path=str(file)))) == RECORDS


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(PAIRS),
        json.dumps(PAIRS, indent=2),
        json.dumps({"version": 1, "rows": PAIRS}, indent=1),
        json_lines(PAIRS),
        "\n\n" + json_lines(PAIRS),
    ],
)
def test_json_holds_an_array_or_an_object_with_one_or_lines(tmp_path, text):
    assert without_ids(read(Source(path=write(tmp_path / "a.json", text)))) == RECORDS


def test_csv_and_tsv_have_a_header_and_may_hold_lists_as_json(tmp_path):
    with open(tmp_path / "a.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "completions", "ranks"])
        writer.writerow(["a\nb", json.dumps(["c", "d"]), "[1, 0]"])
    (ranking,) = read(Source(path=str(tmp_path / "a.csv")))
    assert ranking == Ranking(prompt="a\nb", completions=["c", "d"], ranks=[2, 1], id="a.csv:2")
    tsv = write(tmp_path / "a.tsv", "prompt\tcompletion\nx\ty\n")
    assert without_ids(read(Source(path=tsv))) == [Completion(prompt="x", completion="y")]


def test_parquet_keeps_nested_values(tmp_path):
    rows = [{"messages": chat("a", "b")}, {"messages": chat("c", "d", "e", "f")}]
    got = without_ids(read(Source(path=write_parquet(tmp_path / "a.parquet", rows))))
    assert got == [Conversation(messages=row["messages"]) for row in rows]


TEXT = "One.\nTwo.\n\nThree.\n<|endoftext|>\nFour.<|endoftext|>Five.\n"


@pytest.mark.parametrize(
    ("text", "format", "documents"),
    [
        ("One.\n\nTwo.\n", "auto", ["One.\n\nTwo."]),
        (TEXT, "auto", ["One.\nTwo.\n\nThree.", "Four.", "Five."]),
        (TEXT, "text", ["One.\nTwo.\n\nThree.", "Four.", "Five."]),
        ("One.\nTwo.\n\n\nThree.", "text_blank_lines", ["One.\nTwo.", "Three."]),
        ("One.\n\nTwo.\n", "text_lines", ["One.", "Two."]),
        ("\ufeffOne.\r\nTwo.\r\n", "text", ["One.\nTwo."]),
    ],
)
def test_text_files_are_cut_into_documents_as_asked(tmp_path, text, format, documents):
    file = tmp_path / "a.txt"
    file.write_bytes(text.encode())
    assert [record.text for record in read(Source(path=str(file), format=format))] == documents


def test_a_text_file_of_prompts_is_read_a_line_a_prompt(tmp_path):
    file = write(tmp_path / "a.txt", "Who?\nWhat?\n")
    got = list(read(Source(path=file, format="prompt", columns={"prompt": "text"})))
    assert got == [PromptRow(prompt="Who?", id="a.txt:1"), PromptRow(prompt="What?", id="a.txt:2")]


def test_a_document_of_huge_length_is_cut_at_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_DOCUMENT", 10)
    file = write(tmp_path / "a.txt", "12345678\n12345678\n1234\n")
    report = ReadReport()
    assert [r.text for r in read(Source(path=file), report=report)] == [
        "12345678\n12345678",
        "1234",
    ]
    assert "cut a text longer than 10 characters at a line (1 time)" in report.lines()


def test_folders_and_globs_are_read_sorted_and_hidden_or_other_files_are_not(tmp_path):
    write(tmp_path / "in" / "b.jsonl", json_lines(PAIRS[2:]))
    write(tmp_path / "in" / "a" / "x.jsonl", json_lines(PAIRS[:2]))
    write(tmp_path / "in" / ".cache" / "z.jsonl", "nonsense")
    write(tmp_path / "in" / "LICENSE", "nonsense")
    assert without_ids(read(Source(path=str(tmp_path / "in")))) == RECORDS
    assert without_ids(read(Source(path=str(tmp_path / "in" / "*.jsonl")))) == RECORDS[2:]
    assert without_ids(read(Source(path=str(tmp_path / "in" / "**" / "*.jsonl")))) == RECORDS
    several = [str(tmp_path / "in" / "b.jsonl"), str(tmp_path / "in" / "a")]
    assert without_ids(read(Source(path=several))) == RECORDS[2:] + RECORDS[:2]


def test_skip_and_limit_cut_a_window_of_records(tmp_path):
    file = write(tmp_path / "a.jsonl", json_lines(PAIRS))
    assert without_ids(read(Source(path=file, skip=1, limit=2))) == RECORDS[1:3]
    with pytest.raises(SourceError, match="skip is 9 and it holds 5 records"):
        list(read(Source(path=file, skip=9)))


def test_the_parts_of_a_source_are_all_of_it_and_share_nothing(tmp_path):
    rows = [{"prompt": f"p{i % 40}", "completion": f"c{i}"} for i in range(80)]
    path = write(tmp_path / "a.jsonl", json_lines(rows))
    sides = [
        without_ids(read(Source(path=path, part=part, heldout_share=0.3)))
        for part in ("train", "heldout")
    ]
    asked = [{record.prompt for record in side} for side in sides]
    assert not asked[0] & asked[1] and min(map(len, asked)) > 3
    assert sorted(record.completion for side in sides for record in side) == sorted(
        row["completion"] for row in rows
    )
    first = next(read(Source(path=path, part="heldout", heldout_share=0.3, limit=1)))
    assert first.completion == sides[1][0].completion


def test_a_part_that_nothing_is_of_is_told(tmp_path):
    path = write(tmp_path / "a.jsonl", json_lines(PAIRS))
    told = r"none of its 5 records is of part: heldout \(heldout_share 1e-06\); change that share"
    with pytest.raises(SourceError, match=told):
        list(read(Source(path=path, part="heldout", heldout_share=1e-6)))


def test_plain_prompts_become_chats_where_a_source_says_so(tmp_path):
    rows = [
        {"prompt": "Why? ", "completion": " So."},
        {"prompt": "Why?", "chosen": "So.", "rejected": " No."},
    ]
    paths = [write(tmp_path / f"{i}.jsonl", json_lines([row])) for i, row in enumerate(rows)]
    (answered,), (ranked,) = (without_ids(read(Source(path=path, chat=True))) for path in paths)
    assert answered == Conversation(chat("Why?", "So."))
    assert (ranked.prompt, ranked.completions) == (chat("Why?"), ["So.", "No."])
    text = write(tmp_path / "a.txt", "Once.")
    with pytest.raises(SourceError, match="`chat` is for rows that do, leave it out"):
        list(read(Source(path=text, chat=True)))


def test_reading_does_not_go_past_the_limit(tmp_path):
    file = write(tmp_path / "a.jsonl", json_lines(PAIRS) + "no json\n" * 50)
    report = ReadReport()
    assert len(list(read(Source(path=file, limit=5), report=report))) == 5
    assert report.bad == 0


def test_columns_are_mapped(tmp_path):
    rows = [{"body": "a", "title": "t"}]
    file = write(tmp_path / "a.jsonl", json_lines(rows))
    assert [r.text for r in read(Source(path=file, columns={"text": "body"}))] == ["a"]
    joined = read(Source(path=file, columns={"text": "{title}: {body}"}))
    assert [r.text for r in joined] == ["t: a"]


def test_a_mapped_column_that_is_not_there_stops_at_the_first_row(tmp_path):
    file = write(tmp_path / "a.jsonl", json_lines([{"body": "a"}] * 300))
    with pytest.raises(SourceError, match=r"a\.jsonl:1: no column 'bod'; .*Did you mean 'body'"):
        list(read(Source(path=file, columns={"text": "bod"})))


def test_malformed_rows_are_counted_with_file_and_line(tmp_path):
    lines = json_lines(PAIRS) * 20 + '{"prompt": "x"\n'
    report = ReadReport()
    got = list(read(Source(path=write(tmp_path / "a.jsonl", lines)), report=report))
    assert len(got) == 100
    assert (report.rows, report.bad) == (101, 1)
    assert "a.jsonl:101: not JSON" in report.first_bad[0]
    assert "1 malformed row, the first" in report.lines()[-1]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("no json\n", r"a\.jsonl:6: not JSON"),
        ("[1, 2]\n", r"a\.jsonl:6: not a JSON object"),
        ('{"prompt": "a"}\n', r"a\.jsonl:6: no column 'completion'"),
        ('{"prompt": 1, "completion": {}}\n', r"a\.jsonl:6"),
    ],
)
def test_too_many_malformed_rows_stop_with_the_first(tmp_path, text, told):
    file = write(tmp_path / "a.jsonl", json_lines(PAIRS) + text)
    with pytest.raises(BadRowsError, match="1 of 6 rows are malformed.*allows 1.00%.*" + told):
        list(read(Source(path=file)))
    assert len(list(read(Source(path=file, max_bad_share=0.2)))) == 5


def test_reading_stops_soon_when_most_rows_are_malformed(tmp_path):
    file = write(tmp_path / "a.jsonl", json_lines(PAIRS) + "x\n" * 5000)
    report = ReadReport()
    with pytest.raises(BadRowsError):
        list(read(Source(path=file), report=report))
    assert report.rows < 500


def test_bytes_that_are_no_utf8_spoil_their_row_only(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(json_lines(PAIRS).encode() + b'{"prompt": "\xff"}\n')
    with pytest.raises(BadRowsError, match=r"a\.jsonl:6: not UTF-8"):
        list(read(Source(path=str(file))))


def test_an_array_that_is_not_closed_names_its_line(tmp_path):
    text = json.dumps(PAIRS, indent=0).rstrip("]\n")
    with pytest.raises(BadRowsError, match=r"a\.json:\d+: not JSON .the array is not closed"):
        list(read(Source(path=write(tmp_path / "a.json", text))))


def test_a_csv_row_with_too_few_fields_is_malformed(tmp_path):
    file = write(tmp_path / "a.csv", "prompt,completion\na,b\nc\n")
    with pytest.raises(BadRowsError, match=r"a\.csv:3: not as many fields as the header"):
        list(read(Source(path=file)))


def test_dropped_rows_are_counted_by_reason(tmp_path):
    rows = [{"text": "a"}, {"text": ""}, {"text": " "}]
    report = ReadReport()
    assert (
        len(list(read(Source(path=write(tmp_path / "a.jsonl", json_lines(rows))), report=report)))
        == 1
    )
    assert report.dropped == {"empty text": 2}
    assert "dropped 2 rows: empty text" in report.lines()


def test_a_file_that_is_not_there_suggests_the_nearest(tmp_path):
    write(tmp_path / "train.jsonl", "")
    with pytest.raises(SourceError, match=r"no such file: .*Did you mean 'train.jsonl'"):
        list(read(Source(path=str(tmp_path / "trian.jsonl"))))
    with pytest.raises(SourceError, match="does not exist either"):
        list(read(Source(path=str(tmp_path / "nowhere" / "train.jsonl"))))
    with pytest.raises(SourceError, match="no file matches"):
        list(read(Source(path=str(tmp_path / "*.parquet"))))


@pytest.mark.parametrize("text", ["", "\n\n", "{}"])
def test_empty_input_is_an_error(tmp_path, text):
    with pytest.raises(SourceError):
        list(read(Source(path=write(tmp_path / "a.jsonl", text))))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"holds no .jsonl"):
        list(read(Source(path=str(tmp_path / "empty"))))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("damage", ["cut", "junk"])
def test_a_damaged_packed_file_is_named(tmp_path, suffix, damage):
    text = json_lines(PAIRS * 400).encode()
    packed = gzip.compress(text) if suffix == ".gz" else zstandard.compress(text)
    file = tmp_path / f"a.jsonl{suffix}"
    file.write_bytes(packed[: len(packed) // 2] if damage == "cut" else b"no archive at all")
    with pytest.raises(SourceError, match=r"a\.jsonl.*is damaged, it can't be unpacked"):
        list(read(Source(path=str(file))))


def test_files_we_can_not_read_are_named(tmp_path):
    write(tmp_path / "a.parquet", "no parquet")
    with pytest.raises(SourceError, match="not a readable Parquet file"):
        list(read(Source(path=str(tmp_path / "a.parquet"))))
    write(tmp_path / "a.docx", "x")
    with pytest.raises(SourceError, match=r"can't tell what .*a.docx is"):
        list(read(Source(path=str(tmp_path / "a.docx"))))
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(SourceError, match="not UTF-8"):
        list(read(Source(path=str(tmp_path / "a.txt"))))


def test_files_of_two_formats_in_one_source_are_refused(tmp_path):
    write(tmp_path / "a.jsonl", json_lines(PAIRS))
    write(tmp_path / "b.jsonl", json_lines([{"text": "x"}]))
    with pytest.raises(SourceError, match=r"two formats: .*a.jsonl is prompt_.*b.jsonl"):
        list(read(Source(path=str(tmp_path))))


def test_a_source_names_one_origin():
    with pytest.raises(SourceError, match="exactly one"):
        list(read(Source()))
    with pytest.raises(SourceError, match="exactly one"):
        list(read(Source(path="a", world="corpus")))


def test_a_hub_data_set_streams_from_its_folder(tmp_path):
    write_parquet(tmp_path / "set" / "data" / "train-00000-of-00001.parquet", PAIRS)
    write_parquet(tmp_path / "set" / "data" / "test-00000-of-00001.parquet", PAIRS[:1])
    report = ReadReport()
    hub = str(tmp_path / "set")
    assert without_ids(read(Source(hub=hub), report=report)) == RECORDS
    assert without_ids(read(Source(hub=hub, hub_split="test"))) == RECORDS[:1]
    assert report.formats == {f"{hub}[train]": "prompt_completion (told from its columns)"}
    with pytest.raises(SourceError, match=r"split 'tset'.*test"):
        list(read(Source(hub=hub, hub_split="tset")))


def test_files_of_a_hub_data_set_are_picked(tmp_path):
    rows = [{"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}]
    (tmp_path / "set" / "harmless").mkdir(parents=True)
    with gzip.open(tmp_path / "set" / "harmless" / "train.jsonl.gz", "wt") as file:
        file.write(json_lines(rows))
    write(tmp_path / "set" / "other" / "train.jsonl", json_lines(PAIRS))
    (got,) = read(Source(hub=str(tmp_path / "set"), hub_files="harmless/train.jsonl.gz"))
    assert got.prompt == chat("a")
    assert got.completions == ["b", "c"]


def test_a_hub_data_set_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SourceError, match=r"can't read data set '.*nowhere'"):
        list(read(Source(hub=str(tmp_path / "nowhere"))))


def test_world_records_pass_through_and_a_wrong_part_suggests_the_nearest():
    report = ReadReport()
    got = list(read(Source(world="ppo_prompts", limit=3), report=report))
    assert len(got) == 3
    assert all(isinstance(record, PromptRow) for record in got)
    with pytest.raises(SourceError, match=r"no part 'corpsu'.*Did you mean 'corpus'"):
        list(read(Source(world="corpsu")))


def test_the_fingerprint_follows_the_content_and_nothing_else(tmp_path):
    file = write(tmp_path / "a.jsonl", json_lines(PAIRS))
    before = fingerprint(Source(path=file, format="auto", limit=3))
    assert fingerprint(Source(path=file, format="text", skip=2, max_bad_share=0.5)) == before
    write(tmp_path / "a.jsonl", json_lines(PAIRS[1:]))
    assert fingerprint(Source(path=file)) != before
    with pytest.raises(SourceError, match="no such file"):
        fingerprint(Source(path=str(tmp_path / "b.jsonl")))


def test_fingerprints_of_hub_and_world_tell_what_they_name(tmp_path):
    assert fingerprint(Source(hub="a/b")) != fingerprint(Source(hub="a/b", hub_revision="1"))
    assert fingerprint(Source(world="corpus")) == fingerprint(Source(world="corpus"))
    assert fingerprint(Source(world="corpus")) != fingerprint(Source(world="corpus", world_seed=1))
    hub = str(tmp_path)
    write(tmp_path / "train.jsonl", "a")
    before = fingerprint(Source(hub=hub))
    write(tmp_path / "train.jsonl", "b")
    assert fingerprint(Source(hub=hub)) != before


def test_a_large_file_counts_by_size_and_time(tmp_path, monkeypatch):
    monkeypatch.setattr("data.sources.fingerprint.HASHED_BYTES", 2)
    file = write(tmp_path / "a.txt", "abcdef")
    before = fingerprint(Source(path=file))
    assert fingerprint(Source(path=file)) == before
    write(tmp_path / "a.txt", "abcdefg")
    assert fingerprint(Source(path=file)) != before


def test_documents_come_with_where_they_begin(tmp_path):
    file = write(tmp_path / "a.txt", "x\n\ny\n")
    got = list(read(Source(path=file, format="text_blank_lines")))
    assert got == [Document("x", "a.txt:1"), Document("y", "a.txt:3")]


def open_files(folder: Path) -> list[str]:
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(os.readlink(descriptor))
    return [name for name in found if name.startswith(str(folder))]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc to look at")
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.jsonl.gz", "a.txt.zst"])
def test_no_file_stays_open_where_reading_stops(tmp_path, name):
    text = "text\n" if ".csv" in name else ""
    text += "\n".join([json.dumps({"text": "a"}), *["no JSON <|endoftext|>"] * 5000]) + "\n"
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(Path(name).suffix, bytes)
    (tmp_path / name).write_bytes(pack(text.encode()))
    abandoned = read(Source(path=str(tmp_path / name), max_bad_share=1.0))
    assert isinstance(abandoned, Generator)
    next(abandoned)
    assert len(open_files(tmp_path)) == 1
    abandoned.close()
    assert open_files(tmp_path) == []
    if ".jsonl" in name:
        with pytest.raises(BadRowsError) as caught:
            list(read(Source(path=str(tmp_path / name))))
        # The error holds every frame it came through.
        assert open_files(tmp_path) == [] and caught.value.__traceback__


ODD = [
    {"prompt": "p", "level": 3},
    {"text": "p0 c0", "note": "x"},
    {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2]},
    {"Frage": "p", "Antwort": "c"},
]


@pytest.mark.parametrize("odd", ODD)
def test_a_first_row_unlike_the_others_does_not_tell_the_format(tmp_path, odd):
    file = write(tmp_path / "a.jsonl", json_lines([odd, *PAIRS]))
    with pytest.raises(BadRowsError, match=r"1 of 6 rows are malformed.*a\.jsonl:1: "):
        list(read(Source(path=file)))
    report = ReadReport()
    assert without_ids(read(Source(path=file, max_bad_share=0.2), report=report)) == RECORDS
    assert report.formats == {file: "prompt_completion (told from its columns)"}


def test_a_row_that_tells_another_format_is_not_read_as_that_of_most_rows(tmp_path):
    rows = [{"question": f"q{i}"} for i in range(5)] + [{"question": "q", "answer": "a"}]
    file = write(tmp_path / "a.jsonl", json_lines(rows))
    with pytest.raises(BadRowsError, match="tell instruction, those of most rows prompt; name"):
        list(read(Source(path=file)))
    assert len(list(read(Source(path=file, format="prompt")))) == 6


def test_columns_and_keys_that_nothing_reads_are_told_once_a_source(tmp_path):
    rows: list[dict] = [
        {"messages": [dict(turn, stamp=i) for turn in chat("a", "b")]} for i in range(1, 4)
    ]
    rows[0] |= {"source": "x", "empty": None, "none": ""}
    report = ReadReport()
    list(read(Source(path=write(tmp_path / "a.jsonl", json_lines(rows))), report=report))
    assert "not used: key 'stamp' of turns (3 rows), column 'source' (1 row)" in report.lines()


def test_a_mapped_column_that_is_missing_names_the_file_once(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "Who?", "completion": "Mara."}\n')
    with pytest.raises(SourceError) as caught:
        list(read(Source(path=str(path), columns={"prompt": "quest"})))
    assert str(caught.value).startswith(f"{path}:1: no column 'quest'")


def test_an_instruction_stands_below_what_each_row_asks(tmp_path):
    line = "Let's think step by step."
    plain = Source(path=write(tmp_path / "a.jsonl", json_lines(PAIRS)), instruction=line)
    assert [one.prompt for one in read(plain)] == [f"p{i}\n{line}" for i in range(5)]
    chats = list(read(Source(world="sums", limit=3, instruction=line)))
    bare = list(read(Source(world="sums", limit=3)))
    for asked, other in zip(chats, bare, strict=True):
        (question, answer), (before, same) = asked.messages, other.messages
        assert question["content"] == f"{before['content']}\n{line}" and answer == same
    rows = [{"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2]}]
    path = write(tmp_path / "r.jsonl", json_lines(rows))
    [ranked] = read(Source(path=path, instruction=line))
    assert ranked.prompt == f"p\n{line}"
    with pytest.raises(SourceError, match=r"world:corpus: a Document asks nothing; `instruction`"):
        next(read(Source(world="corpus", instruction=line)))
