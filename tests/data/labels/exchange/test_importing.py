import json
import math
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import BadRowsError, SourceError, UsageError
from data.labels.exchange.exporting import ExportSettings, export_parts
from data.labels.exchange.importing import read_labels
from data.labels.exchange.rankings_file import LABEL, VOTES, completion_id
from data.labels.exchange.tables.columns import Table, parse_columns
from data.labels.records import (
    FLAGS,
    Annotator,
    Assignment,
    Label,
    LabelRow,
    Mode,
    NewTask,
    Submission,
    Task,
)
from data.records import ENDED, chat, dense_ranks
from data.sources.read import ReadReport

WHEN = datetime(2026, 5, 4, tzinfo=UTC)
HH = "\n\nHuman: Hi\n\nAssistant: Hello?\n\nHuman: A joke\n\nAssistant: "


def write(folder: Path, rows: Iterable[dict], name: str = "a.jsonl") -> str:
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def imported(folder: Path, rows: Iterable[dict], **settings: Any) -> list:
    return list(read_labels(write(folder, rows), when=WHEN, **settings))


TEXT = st.text(max_size=12)
NAME = st.text(min_size=1, max_size=8)
KEY = TEXT.filter(lambda key: key not in (LABEL, VOTES, ENDED))
"""Of a task's facts; a file keeps facts of its own under those names."""


@st.composite
def label_rows(draw: st.DrawFn) -> LabelRow:
    count = draw(st.integers(2, 5))
    modes: list[Mode] = ["rate_and_rank", "rank", "pairs"] if count == 2 else ["rank"]
    mode = draw(st.sampled_from(modes))
    ranks = dense_ranks(draw(st.lists(st.integers(1, 4), min_size=count, max_size=count)))
    turns = st.lists(TEXT, min_size=1, max_size=3).map(lambda said: chat(*said))
    strength = None
    if mode == "pairs":
        strength = 0 if ranks == [1, 1] else draw(st.integers(1, 3))
    task = Task(
        id=draw(NAME),
        campaign_id=draw(NAME),
        new=NewTask(
            key=draw(NAME),
            prompt=draw(TEXT | turns),
            completions=draw(st.lists(TEXT, min_size=count, max_size=count)),
            policies=draw(st.just([]) | st.lists(NAME, min_size=count, max_size=count)),
            scores=draw(st.just([]) | st.just([[0.5] * count])),
            gold_ranks=draw(st.none() | st.just(ranks)),
            gold_note=draw(TEXT),
            meta=draw(st.dictionaries(KEY, TEXT | st.integers() | st.none(), max_size=2)),
        ),
    )
    annotator = Annotator(draw(NAME), draw(TEXT), draw(st.sampled_from(["person", "judge"])))
    time = WHEN + timedelta(microseconds=draw(st.integers(0, 10**12)))
    given_ = Assignment(
        id=draw(NAME),
        task=task,
        annotator_id=annotator.id,
        purpose=draw(st.sampled_from(["qualification", "label", "gold", "repeat"])),
        order=draw(st.permutations(range(count))),
        strategy=draw(st.sampled_from(["random", "disagreement", "small_gap"])),
        probability=draw(st.floats(0, 1)),
        leased_until=time,
        guidelines_version=draw(st.integers(1, 9)),
    )
    one_flag = st.lists(st.sampled_from(sorted(FLAGS)), unique=True, max_size=3).map(sorted)
    said = Submission(
        key=draw(NAME),
        ranks=ranks,
        ratings=[draw(st.integers(1, 7)) for _ in ranks] if mode == "rate_and_rank" else [],
        flags=draw(st.just([]) | st.lists(one_flag, min_size=count, max_size=count)),
        strength=strength,
        comment=draw(TEXT),
        seconds=draw(st.floats(0, 1e6)),
    )
    stored = Label(draw(NAME), given_.id, draw(st.integers(1, 5)), said, time)
    return LabelRow(stored, given_, annotator, draw(TEXT), mode)


@given(rows=st.lists(label_rows(), min_size=1, max_size=3, unique_by=lambda r: r.assignment.id))
def test_a_round_trip_is_exact(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trip")
    first = export_parts(rows, ExportSettings("rankings", purposes=None))[0]["rankings.jsonl"]
    file = folder / "rankings.jsonl"
    file.write_text("".join(first), encoding="utf-8", newline="")
    back = [found.row for found in read_labels(str(file), when=WHEN)]
    assert back == rows
    assert (
        export_parts(back, ExportSettings("rankings", purposes=None))[0]["rankings.jsonl"] == first
    )


def test_a_role_is_not_imported(label, tmp_path):
    row = json.loads(
        export_parts([label("t", "a", [1, 2])], ExportSettings("rankings"))[0].popitem()[1][0]
    )
    row["meta"]["_label"]["annotator"]["role"] = "admin"
    (found,) = imported(tmp_path, [row])
    assert found.annotator.role == "annotator"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda row: row["meta"]["_label"].update(version=9), "of version 9"),
        (lambda row: row["meta"]["_label"].pop("order"), "no key 'order'"),
        (lambda row: row["meta"]["_label"].update(mode="guess"), "'guess' is none of"),
        (lambda row: row.update(ranks=[1, 3]), "not 2 dense ranks"),
        (lambda row: row.update(completions="x"), "not a list"),
        (lambda row: row["meta"]["_label"].update(created_at="soon"), "damaged"),
        (lambda row: row["meta"].update(_label=3), "damaged"),
        (lambda row: row["meta"]["_label"].update(strength=2), "strength is not asked"),
    ],
)
def test_damaged_labels_are_told_with_their_line(label, tmp_path, change, told):
    row = json.loads(
        export_parts([label("t", "a", [1, 2])], ExportSettings("rankings"))[0].popitem()[1][0]
    )
    change(row)
    with pytest.raises(BadRowsError, match=r"a\.jsonl:1: ") as error:
        imported(tmp_path, [row])
    assert told in str(error.value)


def test_plain_rankings_of_several_annotators_share_a_task(tmp_path):
    common = {"prompt": "Tea?", "completions": ["Yes", "No", "Hm"], "models": ["a", "b", "c"]}
    one, two = imported(
        tmp_path,
        [
            {**common, "ranks": [0, 1, 1], "annotator": "ann"},
            {**common, "ranks": [2, 1, 0], "annotator": "bob"},
        ],
    )
    assert one.task == two.task
    assert (one.submission.ranks, two.submission.ranks) == ([1, 2, 2], [3, 2, 1])
    assert one.annotator.id != two.annotator.id
    assert (one.annotator.name, one.annotator.kind) == ("ann", "imported")
    assert one.task.policies == ["a", "b", "c"]
    assert one.row.assignment.order == []
    assert one.submission.problem(completions=3, mode=one.row.mode) is None


def test_an_import_done_twice_gives_the_same_keys(tmp_path):
    rows = [{"prompt": "Tea?", "completions": ["Yes", "No"], "ranks": [0, 1]}] * 2
    first, second = imported(tmp_path, rows), imported(tmp_path, rows)
    assert first == second
    assert first[0].submission.key != first[1].submission.key


def test_pairs_stand_in_the_order_of_a_hash(tmp_path):
    rows = [{"prompt": f"Q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(60)]
    found = imported(tmp_path, rows)
    for i, one in enumerate(found):
        assert one.task.completions[one.submission.ranks.index(1)] == f"good {i}"
    assert 15 < sum(one.submission.ranks == [1, 2] for one in found) < 45
    # Whoever prefers the other one labels the same task.
    (other,) = imported(tmp_path, [{"prompt": "Q0", "chosen": "bad 0", "rejected": "good 0"}])
    assert other.task.key == found[0].task.key


def test_hh_dialogues(tmp_path):
    (found,) = imported(tmp_path, [{"chosen": HH + "Knock knock.", "rejected": HH + "No."}])
    assert found.task.prompt == chat("Hi", "Hello?", "A joke")
    assert found.task.completions[found.submission.ranks.index(1)] == "Knock knock."


def message(
    text: str, role: str, rank: int | None = None, replies: Iterable[dict] = (), **more: Any
) -> dict:
    return {"text": text, "role": role, "rank": rank, "replies": list(replies), **more}


TREE: dict[str, Any] = {
    "message_tree_id": "tree-1",
    "prompt": message(
        "How do I brew tea?",
        "prompter",
        replies=[
            message("Use a pot.", "assistant", 1, model_name="small"),
            message(
                "Boil water, add leaves.",
                "assistant",
                0,
                replies=[
                    message(
                        "How long?",
                        "prompter",
                        0,
                        replies=[
                            message("Three minutes.", "assistant", 2),
                            message("A while.", "assistant", 5),
                            message("Bah.", "assistant", 0, deleted=True),
                            message("Spam.", "assistant", 1, review_result=False),
                        ],
                    ),
                    message("Thanks.", "prompter", 1),
                ],
            ),
            message("Not ranked.", "assistant"),
        ],
    ),
}


def test_oasst_trees(tmp_path):
    root, below = imported(tmp_path, [TREE])
    assert root.task.prompt == chat("How do I brew tea?")
    said = dict(zip(root.task.completions, root.submission.ranks, strict=True))
    assert said == {"Use a pot.": 2, "Boil water, add leaves.": 1}
    assert dict(zip(root.task.completions, root.task.policies, strict=True)) == {
        "Use a pot.": "small",
        "Boil water, add leaves.": "person",
    }
    assert below.task.prompt == chat("How do I brew tea?", "Boil water, add leaves.", "How long?")
    said = dict(zip(below.task.completions, below.submission.ranks, strict=True))
    assert said == {"Three minutes.": 1, "A while.": 2}
    assert root.annotator.name == "oasst"
    assert root.task.meta == {"tree": "tree-1"}


def flat(node: dict, tree: str, parent: str | None = None) -> list[dict]:
    """A tree as the hub has it: a message a row, the columns that are always there."""
    name = f"{tree}/{node['text']}"
    row = {"deleted": False, "review_result": True, "model_name": None, **node}
    row |= {"message_id": name, "parent_id": parent, "message_tree_id": tree}
    replies = row.pop("replies")
    return [row, *(one for reply in replies for one in flat(reply, tree, name))]


def test_oasst_messages_a_row_each_are_the_same_as_trees(tmp_path):
    tree = TREE | {"message_tree_id": f"tree-1/{TREE['prompt']['text']}"}
    rows = flat(tree["prompt"], "tree-1")
    expected = [(one.task, one.submission.ranks) for one in imported(tmp_path, [tree])]
    report = ReadReport()
    found = imported(tmp_path, rows[::-1], report=report)  # the root comes last
    assert sorted((one.task.key, one.submission.ranks) for one in found) == sorted(
        (task.key, ranks) for task, ranks in expected
    )
    assert report.formats == {str(tmp_path / "a.jsonl"): "oasst (told from its columns)"}
    assert (report.rows, report.records, report.bad) == (len(rows), 2, 0)
    # A table and a hub data set hold the ranks as numbers that may be missing.
    (tmp_path / "set").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "set" / "train.parquet")
    for place in (str(tmp_path / "set" / "train.parquet"), f"hub:{tmp_path / 'set'}"):
        again = list(read_labels(place, when=WHEN))
        assert [(one.task, one.submission.ranks) for one in again] == expected
    rows[1]["rank"] = math.nan
    assert len(imported(tmp_path, rows)) == 1
    with pytest.raises(SourceError, match="split 'tset'"):
        list(read_labels(f"hub:{tmp_path / 'set'}", when=WHEN, hub_split="tset"))


@given(ranks=st.lists(st.integers(0, 8), min_size=2, max_size=9, unique=True))
def test_the_ranks_of_flat_messages_come_back_exactly(tmp_path_factory, ranks):
    folder = tmp_path_factory.mktemp("flat")
    replies = [message(f"answer {place}", "assistant", rank) for place, rank in enumerate(ranks)]
    rows = flat(message("Tea?", "prompter", replies=replies), "t")
    found = [one.row for one in imported(folder, rows)]
    back = export_parts(found, ExportSettings("rankings"))[0]["rankings.jsonl"]
    (row,) = imported(folder, [json.loads(line) for line in back])
    said = dict(zip(row.task.completions, row.submission.ranks, strict=True))
    assert [said[f"answer {place}"] for place in range(len(ranks))] == dense_ranks(ranks)


def test_messages_that_make_no_tree_are_told(tmp_path):
    rows = flat(TREE["prompt"], "t")
    report = ReadReport()
    lost = rows[0] | {"message_id": "x", "parent_id": "nobody"}
    (tree,) = {one.task.meta["tree"] for one in imported(tmp_path, [*rows, lost], report=report)}
    assert tree == rows[0]["message_id"]
    assert report.dropped == {"the message that it answers is not there": 1}
    with pytest.raises(BadRowsError, match="two messages have the message_id t/How do I"):
        imported(tmp_path, [*rows, rows[0]])
    with pytest.raises(
        BadRowsError, match=r"tree t/How do I brew tea\?: a message of the tree has"
    ):
        imported(tmp_path, [rows[0] | {"role": "robot"}, *rows[1:]])


def test_trees_without_rankings_are_dropped_and_deep_ones_read(tmp_path):
    deep = message("end", "prompter")
    for depth in range(100):
        role = "assistant" if depth % 2 == 0 else "prompter"
        deep = message(str(depth), role, replies=[deep])
    report = ReadReport()
    rows = [TREE, {"prompt": deep}]
    assert len(imported(tmp_path, rows, report=report)) == 2
    assert report.dropped == {"no message has two ranked replies": 1}
    with pytest.raises(BadRowsError, match="no role of prompter"):
        imported(tmp_path, [{"prompt": message("x", "robot")}])


def test_flat_rows_of_trees_are_plain_rankings(tmp_path):
    row = {
        "tree": "t1",
        "messages": chat("Hi", "Hello", "Tea?"),
        "completions": ["Yes", "No"],
        "ranks": [1, 0],
    }
    (found,) = imported(tmp_path, [row])
    assert found.task.prompt == chat("Hi", "Hello", "Tea?")
    assert found.task.completions[found.submission.ranks.index(1)] == "No"


def test_what_can_not_be_a_task_is_dropped_with_its_reason(tmp_path):
    report = ReadReport()
    rows = [
        {"prompt": "Q", "completions": ["a", "b"], "ranks": [0, 1]},
        {"prompt": "Q", "completions": ["a", "a"], "ranks": [0, 1]},
        {"prompt": "Q", "completions": [str(i) for i in range(10)], "ranks": list(range(10))},
    ]
    assert len(imported(tmp_path, rows, report=report)) == 1
    assert report.dropped == {"two completions are the same": 1, "more than nine completions": 1}
    with pytest.raises(SourceError, match=r"no labels in .*: 1 dropped"):
        imported(tmp_path, rows[1:2])


def test_files_without_labels_are_refused(tmp_path):
    with pytest.raises(SourceError, match=r"a\.jsonl:1: rows of format text hold no labels"):
        imported(tmp_path, [{"text": "hello"}])
    with pytest.raises(SourceError, match="unknown format 'csv' of labels"):
        imported(tmp_path, [{"text": "hello"}], format="csv")
    (tmp_path / "b.jsonl").write_text("not json\n")
    with pytest.raises(BadRowsError, match=r"b\.jsonl:1: not JSON"):
        list(read_labels(str(tmp_path / "b.jsonl"), when=WHEN))


def test_completions_have_names_of_their_own():
    assert completion_id("Q", "a") == completion_id("Q", "a")
    assert completion_id("Q", "a") != completion_id("R", "a") != completion_id("R", "b")


def test_soft_labels_come_in_by_their_ranks_and_that_is_told(tmp_path: Path) -> None:
    soft = {
        "prompt": "Hi",
        "completions": ["Hello.", "What?"],
        "ranks": [1, 2],
        "probabilities": [[0.5, 0.75], [0.25, 0.5]],
    }
    report = ReadReport()
    (one,) = imported(tmp_path, [soft], report=report)
    ranks = dict(zip(one.task.completions, one.submission.ranks, strict=True))
    assert ranks == {"Hello.": 1, "What?": 2}
    assert "a soft label came in by its ranks alone (1 time)" in report.lines()
    with pytest.raises(SourceError, match="hold no labels"):
        imported(tmp_path, [{"prompt": "Hi", "completion": "Hello.", "label": True}])


TABLE = """\
question,left,right,better,who,note
Tea?,Yes.,No.,left,ann,x
Tea?,Yes.,No.,B,bob,
Tea?,Yes.,No.,Tie,cy,
Coffee?,Black.,Milk.,2,,
Cake?,Yes.,No.,,ann,
"""
MAPPED = "prompt=question, a=left,b=right,winner=better,annotator=who"


def test_a_plain_table_of_pairs(tmp_path):
    (tmp_path / "t.csv").write_text(TABLE)
    report, columns = ReadReport(), parse_columns(MAPPED)
    source = str(tmp_path / "t.csv")
    found = [*read_labels(source, when=WHEN, table=Table(columns), report=report)]
    said = [
        (one.annotator.name, dict(zip(one.task.completions, one.submission.ranks, strict=True)))
        for one in found
    ]
    assert said == [
        ("ann", {"Yes.": 1, "No.": 2}),
        ("bob", {"Yes.": 2, "No.": 1}),
        ("cy", {"Yes.": 1, "No.": 1}),
        ("imported", {"Black.": 2, "Milk.": 1}),
    ]
    assert len({one.task.key for one in found}) == 2
    assert report.dropped == {"nothing was said of the answers": 1}
    (tmp_path / "t.csv").write_text(TABLE.replace("Tie", "someone"))
    with pytest.raises(BadRowsError, match="column 'better' says 'someone'; it is one of left"):
        [*read_labels(source, when=WHEN, table=Table(columns))]
    with pytest.raises(BadRowsError, match="there is no column 'q'; there are question, left"):
        [*read_labels(source, when=WHEN, table=Table(columns | {"prompt": "q"}))]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("prompt=q,a=l,b=r", "winner is missing"),
        ("prompt=q,a=l,b=r,winer=w", "'winer=w' is no NAME=COLUMN.*Did you mean 'winner'"),
        ("prompt=q,a=l,a=r,winner=w", "'a=r' is no NAME=COLUMN, once"),
        ("prompt", "'prompt' is no NAME=COLUMN"),
    ],
)
def test_columns_that_make_no_sense_are_told(text, told):
    with pytest.raises(UsageError, match=told):
        parse_columns(text)


@pytest.mark.parametrize(
    ("damaged", "words"),
    [
        ({"annotations": None, "data": {"q": "x", "a": "1", "b": "2"}}, "it is no row of a plain"),
        ({"annotations": ["no"], "data": {"q": "x", "a": "1", "b": "2"}}, "it is no row of a pl"),
        (
            {"annotations": [{"result": [{"value": 1}]}], "data": {"q": "x", "a": "1", "b": "2"}},
            "it is no row of a plain table, of Argilla, Label Studio or Potato",
        ),
        (
            {"w.responses": ["a", "b"], "w.responses.users": ["u"], "w.responses.status": []},
            "'w.responses', 'w.responses.users' and 'w.responses.status' differ in length",
        ),
        ({"w": [{"ranker": ["a", "b"]}]}, "column 'w' holds a ranker without buckets"),
        ({"w": [{"rank": 1}, {"rank": 2}]}, "it is no row of a plain table, of Argilla, Label"),
        (
            {"w": [{"value": "a", "rank": 1}, {"value": "b", "rank": ""}]},
            "column 'w' holds '', not a number",
        ),
    ],
)
def test_rows_that_are_no_export_of_another_tool_are_told(tmp_path, damaged, words):
    row = {"q": "x", "a": "1", "b": "2", **damaged}
    with pytest.raises(BadRowsError, match=words):
        told(tmp_path / "rows.json", [row], "prompt=q,a=a,b=b,winner=w")


def told(path: Path, content: Any, columns: str) -> tuple[list[tuple[str, dict[str, int]]], dict]:
    """Return who ranked which answer how, and what was left out."""
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    report = ReadReport()
    found = read_labels(str(path), when=WHEN, table=Table(parse_columns(columns)), report=report)
    ranks = [
        (one.annotator.name, dict(zip(one.task.completions, one.submission.ranks, strict=True)))
        for one in found
    ]
    return ranks, dict(report.dropped)


def test_argilla_s_flat_export_without_drafts(tmp_path):
    # As argilla 2.8 writes it by to_list(flatten=True).
    first = {
        "id": "1", "status": "completed", "_server_id": None, "instruction": "Tea?",
        "response-1": "Yes.", "response-2": "No.", "response-3": "Hm.",
        "order.responses": [
            [{"value": "response-2", "rank": 1}, {"value": "response-1", "rank": 2},
             {"value": "response-3", "rank": 2}],
            [{"value": "response-1", "rank": 1}, {"value": "response-2", "rank": 2},
             {"value": "response-3", "rank": 3}],
        ],
        "order.responses.users": ["u-1", "u-2"],
        "order.responses.status": ["submitted", "draft"],
        "why.responses": ["since"], "why.responses.users": ["u-1"],
        "why.responses.status": ["submitted"], "order.suggestion": None,
    }  # fmt: skip
    mapped = "prompt=instruction,a=response-1,b=response-2,c=response-3,winner=order"
    nobody = {**first, "id": "2", **{key: None for key in first if ".responses" in key}}
    ranks, dropped = told(tmp_path / "a.json", [first, nobody], mapped)
    assert ranks == [("u-1", {"Yes.": 2, "No.": 1, "Hm.": 2})]
    assert dropped == {
        "a response that is a draft or discarded": 1,
        "a record without responses": 1,
    }
    pair = {
        "instruction": "Tea?", "response-1": "Yes.", "response-2": "No.",
        "best.responses": ["response-1", "tie"], "best.responses.users": ["u-1", "u-2"],
        "best.responses.status": ["submitted", "submitted"],
    }  # fmt: skip
    mapped = "prompt=instruction,a=response-1,b=response-2,winner=best"
    ranks, _ = told(tmp_path / "b.json", [pair], mapped)
    assert ranks == [("u-1", {"Yes.": 1, "No.": 2}), ("u-2", {"Yes.": 1, "No.": 1})]


# As label-studio-sdk 2.1 writes them.
PAIRWISE = {
    "id": 1, "data": {"prompt": "Tea?", "answer1": "Yes.", "answer2": "No."},
    "annotations": [
        {"id": 7, "completed_by": {"id": 3, "email": "ann@x.org"}, "was_cancelled": False,
         "result": [{"from_name": "best", "to_name": "l,r", "type": "pairwise",
                     "value": {"selected": "left"}}]},
        {"id": 8, "completed_by": 4, "was_cancelled": True, "result": []},
        {"id": 9, "completed_by": 4, "was_cancelled": False,
         "result": [{"from_name": "best", "value": {"selected": "right"}}]},
        {"id": 10, "completed_by": 5, "was_cancelled": False, "result": []},
    ],
}  # fmt: skip
PAIRWISE_CSV = """\
"annotation_id","annotator","answer1","answer2","best","id","prompt"
7,"ann@x.org","Yes.","No.","[{""selected"":""left""}]",1,"Tea?"
9,"4","Yes.","No.","[{""selected"":""right""}]",1,"Tea?"
"""
RANKER_MIN = {
    "prompt": "Tea?", "items": [{"id": "A", "body": "Yes."}, {"id": "B", "body": "No."}],
    "id": 2, "rank": [{"ranker": {"rank": ["B", "A"]}}], "annotator": 3, "annotation_id": 10,
}  # fmt: skip


def test_label_studio_s_exports_without_what_was_cancelled(tmp_path):
    said = [("ann@x.org", {"Yes.": 1, "No.": 2}), ("4", {"Yes.": 2, "No.": 1})]
    mapped = "prompt=prompt,a=answer1,b=answer2,winner=best"
    ranks, dropped = told(tmp_path / "t.json", [PAIRWISE], mapped)
    assert ranks == said
    assert dropped == {
        "an annotation that was cancelled": 1,
        "nothing was said of the answers": 1,
    }
    assert told(tmp_path / "t.csv", PAIRWISE_CSV, mapped + ",annotator=annotator")[0] == said
    mapped = "prompt=prompt,answers=items,winner=rank"
    for name, row in (("r.json", RANKER_MIN), ("s.json", {**RANKER_MIN, "items": "[]"})):
        if name == "r.json":
            assert told(tmp_path / name, [row], mapped)[0] == [("3", {"Yes.": 2, "No.": 1})]
        else:
            with pytest.raises(BadRowsError, match="says 'b'"):
                told(tmp_path / name, [row], mapped)
