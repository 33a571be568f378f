"""Files that Argilla, Label Studio and Potato wrote, and others of their kinds, come in."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import BadRowsError, RlhfError, SourceError, UsageError
from data.labels.exchange.importing import read_labels
from data.labels.exchange.tables.columns import Table, parse_columns
from data.sources.read import ReadReport

WRITTEN = Path(__file__).parent / "written"
WHEN = datetime(2026, 5, 4, tzinfo=UTC)
BREW, BUY, DRINK = "Boil water, add the leaves, wait three minutes.", "Buy some.", "Tea is a drink."
YES, FLOUR, PERHAPS = "Yes.", "No, it is baked from flour, eggs and sugar.", "Perhaps."
DRAFT, NOTHING, HALF = (
    "a response that is a draft or discarded",
    "nothing was said of the answers",
    "not all was said of the answers that was asked",
)
Said = tuple[str, dict[str, int]]


def read(source: Path, columns: str, **settings: Any) -> tuple[list[Said], ReadReport]:
    """Return who ranked which answer how, and what was told of the rest."""
    report = ReadReport()
    found = read_labels(
        str(source), when=WHEN, table=Table(parse_columns(columns), **settings), report=report
    )
    said = [
        (one.annotator.name, dict(zip(one.task.completions, one.submission.ranks, strict=True)))
        for one in found
    ]
    return said, report


def ranks(source: Path, columns: str, **settings: Any) -> list[dict[str, int]]:
    return [ranking for _, ranking in read(source, columns, **settings)[0]]


def wrote(folder: Path, *rows: Any, name: str = "rows.jsonl") -> Path:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


ARGILLA = WRITTEN / "argilla"
FIELDS = "prompt=instruction,a=response-1,b=response-2"
FLAT = ["flat.json", "flat.parquet", "by_names.json", "api.json"]
NESTED = ["nested.json", "by_index.json"]


@pytest.mark.parametrize("name", FLAT)
def test_argilla_s_answers_of_every_kind_of_question(name: str) -> None:
    said, report = read(ARGILLA / name, f"{FIELDS},winner=best")
    assert [ranking for _, ranking in said] == [
        {BREW: 1, BUY: 2},
        {BREW: 1, BUY: 1},
        {YES: 2, FLOUR: 1},
        {YES: 2, FLOUR: 1},
        {"A lamp.": 2, "A star.": 1},
    ]
    who = [person for person, _ in said]
    assert (who[0], who[1]) == (who[2], who[3]) and len(set(who)) == 3
    assert report.dropped[DRAFT] >= 2 and not report.bad
    columns = f"{FIELDS},rating_a=quality-1,rating_b=quality-2"
    assert ranks(ARGILLA / name, columns) == [
        {BREW: 1, BUY: 2},
        {BREW: 1, BUY: 1},
        {YES: 2, FLOUR: 1},
        {"A lamp.": 2, "A star.": 1},
    ]
    columns = "prompt=chat,a=response-1,b=response-2,likert=strength,middle=4"
    assert [sorted(one.values()) for one in ranks(ARGILLA / name, columns)] == [
        *([1, 2], [1, 1], [1, 2], [1, 2], [1, 2])
    ]


def test_argilla_s_rankings_keep_their_ranks_where_the_file_has_them() -> None:
    columns = f"{FIELDS},c=response-3,winner=order"
    said, report = read(ARGILLA / "api.json", columns)
    assert [ranking for _, ranking in said] == [
        {BREW: 1, BUY: 2, DRINK: 2},
        {BREW: 1, BUY: 3, DRINK: 2},
        {YES: 3, FLOUR: 1, PERHAPS: 2},
    ]
    assert report.dropped == {DRAFT: 4, NOTHING: 2}
    again = ranks(ARGILLA / "flat_with_ranks.json", columns)
    assert again == [ranking for _, ranking in said]


@pytest.mark.parametrize("name", [*FLAT[:3], *NESTED])
def test_rankings_that_lost_their_ranks_are_no_labels(name: str) -> None:
    with pytest.raises(BadRowsError, match="'order' has names without their ranks: Argilla's cl"):
        read(ARGILLA / name, f"{FIELDS},c=response-3,winner=order", unconfirmed=True)


def test_rankings_that_all_stand_in_the_order_of_the_columns_are_no_labels(tmp_path: Path) -> None:
    rows = json.loads((ARGILLA / "flat.json").read_text())
    for row in rows:
        del row["_server_id"]
    with pytest.raises(SourceError, match=r"all 3 rankings of 'order' stand in the order of the"):
        read(wrote(tmp_path, *rows), f"{FIELDS},c=response-3,winner=order")


@pytest.mark.parametrize("name", NESTED)
def test_a_nested_row_counts_where_it_must_have_been_submitted(name: str) -> None:
    columns = f"{FIELDS},winner=best"
    said, report = read(ARGILLA / name, columns)
    assert [ranking for _, ranking in said] == [{"A lamp.": 2, "A star.": 1}]
    ((why, count),) = report.dropped.items()
    assert count == 7 and "export it by to_list(flatten=True), or take it by --unconfirmed" in why
    taken, report = read(ARGILLA / name, columns, unconfirmed=True)
    assert len(taken) == 7 and report.dropped == {NOTHING: 1}
    assert "took a response that may be a draft, by --unconfirmed (7 times)" in report.lines()


def test_statuses_of_nested_responses_count_whoever_writes_them(tmp_path: Path) -> None:
    answers = [
        {"value": "response-1", "user_id": "u-1", "status": "submitted"},
        {"value": "response-2", "user_id": "u-2", "status": "draft"},
        {"value": "response-2", "user_id": "u-3", "status": "discarded"},
    ]
    fields = {"instruction": "Tea?", "response-1": "Yes.", "response-2": "No."}
    row = {"fields": fields, "responses": {"best": answers, "why": [{"value": "So."}]}}
    said, report = read(wrote(tmp_path, row), f"{FIELDS},winner=best")
    assert said == [("u-1", {"Yes.": 1, "No.": 2})]
    assert report.dropped[DRAFT] == 2


@pytest.mark.parametrize("rows", [True, False])
def test_data_sets_of_argilla_1_on_the_hub(rows: bool, tmp_path: Path) -> None:
    answers = {
        "user_id": ["u-1", "u-2"],
        "value": ["response-1", "response-2"],
        "status": ["submitted", "discarded"],
    }
    listed = [
        dict(zip(answers, cells, strict=True)) for cells in zip(*answers.values(), strict=True)
    ]
    row = {"instruction": "Tea?", "response-1": "Yes.", "response-2": "No."}
    row["best"] = listed if rows else answers  # type: ignore[assignment]
    said, report = read(wrote(tmp_path, row), f"{FIELDS},winner=best")
    assert said == [("u-1", {"Yes.": 1, "No.": 2})] and report.dropped == {DRAFT: 1}


@pytest.mark.parametrize(
    ("place", "words"),
    [
        *((f"argilla/{name}", "Argilla") for name in [*FLAT[:2], "nested.json", "api.json"]),
        *((f"label_studio/{name}", "Label Studio") for name in ["pairwise.json", "ranker.csv"]),
        *(
            (f"potato/{name}", "--items DATA_FILE")
            for name in ["annotations.csv", "annotations.jsonl"]
        ),
    ],
)
def test_without_columns_what_to_tell_is_told(place: str, words: str) -> None:
    with pytest.raises(SourceError) as problem:
        list(read_labels(str(WRITTEN / place), when=WHEN))
    assert words in str(problem.value) and '--columns "prompt=' in str(problem.value)


def test_records_without_ids_are_labels_each(tmp_path: Path) -> None:
    row = {
        "instruction": "Tea?", "response-1": "Yes.", "response-2": "No.",
        "best.responses": ["response-1"], "best.responses.users": ["u-1"],
        "best.responses.status": ["submitted"],
    }  # fmt: skip
    found = read_labels(
        str(wrote(tmp_path, row, row)),
        when=WHEN,
        table=Table(parse_columns(f"{FIELDS},winner=best")),
    )
    assert len({one.submission.key for one in found}) == 2


def test_names_in_order_are_best_first_and_that_is_told(tmp_path: Path) -> None:
    fields = {"instruction": "Tea?", "response-1": "Yes.", "response-2": "No."}
    row = {
        **fields,
        "order.responses": [["response-2", "response-1"]],
        "order.responses.users": ["u-1"],
        "order.responses.status": ["submitted"],
    }
    said, report = read(wrote(tmp_path, row), f"{FIELDS},winner=order")
    assert said == [("u-1", {"Yes.": 2, "No.": 1})]
    assert any("is a list of names, taken from the best on" in note for note in report.notes)


STUDIO = WRITTEN / "label_studio"
PAIR = "prompt=prompt,a=answer1,b=answer2"


@pytest.mark.parametrize(
    "name", ["pairwise.json", "snapshot.json", "pairwise.min.json", "pairwise.csv", "pairwise.tsv"]
)
def test_label_studio_s_pairs_of_every_kind(name: str) -> None:
    first, second = ("ann@example.org", "bo@example.org") if "snap" in name else ("1", "2")
    brewed, baked = (first, {BREW: 1, BUY: 2}), (first, {YES: 2, FLOUR: 1})
    tied = (second, {YES: 1, FLOUR: 1})
    said, report = read(STUDIO / name, f"{PAIR},winner=best")
    assert said == [brewed, baked]
    assert report.dropped[NOTHING] == 1  # an annotation that passes over this question
    if name.endswith("e.json"):
        assert report.dropped["an annotation that was cancelled"] == 2
    for columns in ("winner=pref", "rating_a=rate1,rating_b=rate2"):
        said, _ = read(STUDIO / name, f"{PAIR},{columns}")
        # JSON_MIN, CSV and TSV have the newest annotation of a task first.
        assert said[0] == brewed and sorted(said[1:], key=str) == sorted([baked, tied], key=str)


def test_annotators_have_the_names_that_are_told() -> None:
    said, _ = read(STUDIO / "pairwise.csv", f"{PAIR},winner=pref", names={"1": "Ann"})
    assert [name for name, _ in said] == ["Ann", "2", "Ann"]


@pytest.mark.parametrize("name", ["ranker.json", "ranker.min.json", "ranker.csv"])
def test_label_studio_s_ranker(name: str) -> None:
    said, _ = read(STUDIO / name, "prompt=prompt,answers=items,winner=rank")
    assert sorted(said) == [
        ("1", {BREW: 1, BUY: 3, DRINK: 2}),
        ("2", {BREW: 2, BUY: 3, DRINK: 1}),
    ]


def test_buckets_have_the_order_that_is_told() -> None:
    columns, place = "prompt=prompt,answers=items,winner=rank", STUDIO / "buckets.json"
    assert ranks(place, f"{columns},buckets=good>bad") == [{BREW: 1, BUY: 3, DRINK: 2}]
    assert ranks(place, f"{columns},buckets=bad > good") == [{BREW: 2, BUY: 1, DRINK: 3}]
    for asked in (columns, f"{columns},buckets=good>poor"):
        with pytest.raises(BadRowsError, match="has the buckets good, bad, which have no order"):
            read(place, asked)


def test_an_export_that_has_grown_adds_what_is_new(tmp_path: Path) -> None:
    rows = json.loads((STUDIO / "pairwise.min.json").read_text())
    newest = {**rows[0], "annotation_id": 99, "annotator": 7}
    keys = []
    for name, content in (("one.json", rows), ("two.json", [newest, *rows])):
        (tmp_path / name).write_text(json.dumps(content))
        found = read_labels(
            str(tmp_path / name), when=WHEN, table=Table(parse_columns(f"{PAIR},winner=pref"))
        )
        keys.append({one.submission.key for one in found})
    assert keys[0] < keys[1] and len(keys[1] - keys[0]) == 1


POTATO = WRITTEN / "potato"
ITEMS = {"items": str(POTATO / "items.jsonl")}
RESPONSES = "prompt=text,answers=responses"


@pytest.mark.parametrize(
    "name", ["annotations.csv", "annotations.tsv", "annotations.jsonl", "answers"]
)
def test_potato_s_pairs_and_scales(name: str) -> None:
    brewed, baked, rain = {BREW: 1, BUY: 2}, {YES: 2, FLOUR: 1}, {"I can't know.": 1, "Yes!": 1}
    mine = sorted([("ann", brewed), ("ann", baked), ("ann", rain)], key=str)
    bo = ("bo", {BREW: 2, BUY: 1})
    for columns, theirs in {
        "winner=preference": [bo],
        "winner=preference.selection": [bo],
        "likert=strength,middle=0": [bo],
        "likert=scale,middle=3": [bo],
        "rating_a=rate_1,rating_b=rate_2": [],
        "winner=best": [],
    }.items():
        said, report = read(POTATO / name, f"{RESPONSES},{columns}", **ITEMS)
        assert sorted(said, key=str) == sorted([*mine, *theirs], key=str), columns
        assert report.dropped == ({} if theirs else {NOTHING: 1})
    truth = {"I can't know.": 1, "Yes!": 2}
    said, _ = read(POTATO / name, f"{RESPONSES},winner=many.truth", **ITEMS)
    assert ("ann", truth) in said and ("ann", {BREW: 1, BUY: 1}) in said
    with pytest.raises(BadRowsError, match=r"of 'many': many\.fluency, many\.truth; name one"):
        read(POTATO / name, f"{RESPONSES},winner=many", **ITEMS)


@pytest.mark.parametrize("name", ["best_worst.csv", "best_worst"])
def test_the_best_and_the_worst_of_four_are_a_partial_order(name: str) -> None:
    columns = "prompt=text,answers=_bws_items,best=quality.best,worst=quality.worst"
    said, report = read(POTATO / name, columns, items=str(POTATO / "tuples.jsonl"))
    warm, ask = "Warm the pot first.", "Ask somebody else."
    assert sorted(said, key=str) == [
        ("ann", {BREW: 1, ask: 2, DRINK: 3, warm: 2}),
        ("ann", {ask: 2, BUY: 1, DRINK: 2, warm: 3}),
    ] or sorted(said, key=str) == [
        ("ann", {ask: 2, BUY: 1, DRINK: 2, warm: 3}),
        ("ann", {BREW: 1, ask: 2, DRINK: 3, warm: 2}),
    ]
    assert report.dropped == {HALF: 1}  # the best alone


@pytest.mark.parametrize(
    ("labels", "columns", "expected"),
    [
        ({"pick": {"Response B": True}}, "winner=pick", [2, 1]),
        ({"pick": {"Response B": "true", "Response A": ""}}, "winner=pick", [2, 1]),
        ({"strength": {"scale_value": 1}}, "likert=strength,middle=0", [2, 1]),
        ({"strength": {"scale_value": "-0.5"}}, "likert=strength,middle=0", [1, 2]),
    ],
)
def test_labels_of_other_potatoes(
    labels: Any, columns: str, expected: list[int], tmp_path: Path
) -> None:
    row = {"user_id": "ann", "instance_id": "tea", "label_annotations": labels}
    (found,) = ranks(wrote(tmp_path, row), f"{RESPONSES},{columns}", **ITEMS)
    assert [found[BREW], found[BUY]] == expected


def test_potato_s_rows_need_their_items(tmp_path: Path) -> None:
    with pytest.raises(BadRowsError, match="give its data file, which holds what was asked, by"):
        read(POTATO / "annotations.csv", f"{RESPONSES},winner=preference")
    with pytest.raises(BadRowsError, match=r"'instance_id' says 'tea', no item of .*x\.jsonl"):
        few = wrote(tmp_path, {"id": "cake", "text": "?", "responses": ["a", "b"]}, name="x.jsonl")
        read(POTATO / "annotations.csv", f"{RESPONSES},winner=preference", items=str(few))
    with pytest.raises(BadRowsError, match="it is a tuple, which BwsTupleGenerator"):
        columns = "prompt=text,answers=responses,best=quality.best"
        read(POTATO / "best_worst.csv", columns, **ITEMS)
    twice = wrote(tmp_path, *[{"id": "tea"}] * 2, name="y.jsonl")
    with pytest.raises(SourceError, match=r"--items: .*y\.jsonl:2: a second item has the id 'tea'"):
        read(POTATO / "annotations.csv", f"{RESPONSES},winner=preference", items=str(twice))
    with pytest.raises(SourceError, match=r"--items: .*y\.jsonl:1: there is no column 'key'"):
        asked = f"{RESPONSES},winner=preference,id=key"
        read(POTATO / "annotations.csv", asked, items=str(twice))


PLAIN = {"q": "Tea?", "a": "Yes.", "b": "No.", "c": "Hm."}
TWO, THREE = "prompt=q,a=a,b=b", "prompt=q,a=a,b=b,c=c"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("b", [2, 1]),
        ("B", [2, 1]),
        ("Response B", [2, 1]),
        ("model_b", [2, 1]),
        ("Option 2", [2, 1]),
        ("right", [2, 1]),
        ("second", [2, 1]),
        ("B is better", [2, 1]),
        ("I slightly prefer Response B", [2, 1]),
        ("B (right)", [2, 1]),
        ("model_b wins", [2, 1]),
        ("B is better than A", [2, 1]),
        ("They are about equal", [1, 1]),
        ("Can't tell", [1, 1]),
        ("Response B is much better", [2, 1]),
        ("No.", [2, 1]),
        (2, [2, 1]),
        (2.0, [2, 1]),
        ("2.0", [2, 1]),
        ("B > A", [2, 1]),
        ("A>>B", [1, 2]),
        ("A<B", [2, 1]),
        ("A=B", [1, 1]),
        ("tie", [1, 1]),
        ("Tie (bothbad)", [1, 1]),
        ("neither", [1, 1]),
        ("Both are equally good", [1, 1]),
        ("No preference", [1, 1]),
        ({"a": 2, "b": 1}, [2, 1]),
        ([["a", "b"]], [1, 1]),
        ({"choices": ["B"]}, [2, 1]),
        ('{"choices": ["B"]}', [2, 1]),
    ],
)
def test_winners_by_the_names_that_people_use(
    said: Any, expected: list[int], tmp_path: Path
) -> None:
    (found,) = ranks(wrote(tmp_path, {**PLAIN, "w": said}), f"{TWO},winner=w")
    assert [found["Yes."], found["No."]] == expected


@pytest.mark.parametrize(
    ("columns", "row", "expected"),
    [
        ("winner=w", {"w": "b"}, [2, 1, 2]),
        ("winner=w", {"w": "B > A = C"}, [2, 1, 2]),
        ("winner=w", {"w": ["c", ["a", "b"]]}, [2, 2, 1]),
        ("winner=w", {"w": "tie"}, [1, 1, 1]),
        ("best=x", {"x": "Response C"}, [2, 2, 1]),
        ("best=x,worst=y", {"x": 3, "y": "a"}, [3, 2, 1]),
        ("rating_a=x,rating_b=y,rating_c=z", {"x": 4, "y": "4.5", "z": 4}, [2, 1, 2]),
        ("rank_a=x,rank_b=y,rank_c=z", {"x": 4, "y": 1, "z": 4}, [2, 1, 2]),
        ("winner=v.w", {"v": {"w": "c"}}, [2, 2, 1]),
        ("winner=v.1.w", {"v": [{}, {"w": "c"}]}, [2, 2, 1]),
        ("winner=w", {"w": {"choices": ["A", "C"]}}, [1, 2, 1]),
        ("winner=w", {"w": {"choices": ["C"]}}, [2, 2, 1]),
    ],
)
def test_what_was_said_of_three(
    columns: str, row: dict[str, Any], expected: list[int], tmp_path: Path
) -> None:
    (found,) = ranks(wrote(tmp_path, {**PLAIN, **row}), f"{THREE},{columns}")
    assert [found["Yes."], found["No."], found["Hm."]] == expected


def test_half_of_what_was_asked_is_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{**PLAIN, "x": 1, "y": None}, {**PLAIN, "x": "", "y": ""}, {**PLAIN, "x": 1, "y": 2}]
    said, report = read(wrote(tmp_path, *rows), f"{TWO},rating_a=x,rating_b=y")
    assert [ranking for _, ranking in said] == [{"Yes.": 2, "No.": 1}]
    assert report.dropped == {HALF: 1, NOTHING: 1}


@pytest.mark.parametrize("said", [None, "", "N/A", "unsure", float("nan")])
def test_what_says_nothing_is_left_out_and_counted(said: Any, tmp_path: Path) -> None:
    rows = [{**PLAIN, "w": said}, {**PLAIN, "w": "a"}]
    assert read(wrote(tmp_path, *rows), f"{TWO},winner=w")[1].dropped == {NOTHING: 1}
    if not isinstance(said, str):  # as pandas writes a column of numbers with gaps
        table = pa.Table.from_pylist([{**PLAIN, "w": said}, {**PLAIN, "w": 1.0}])
        pq.write_table(table, tmp_path / "rows.parquet")
        report = read(tmp_path / "rows.parquet", f"{TWO},winner=w")[1]
        assert report.dropped == {NOTHING: 1} and report.records == 1


def test_answers_are_reached_wherever_they_stand(tmp_path: Path) -> None:
    row = {"q": {"text": "Tea?"}, "c": [{"t": "Yes."}, {"t": "No."}], "w": "b"}
    found = ranks(wrote(tmp_path, row), "prompt=q.text,a=c.0.t,b=c.1.t,winner=w")
    assert found == [{"Yes.": 2, "No.": 1}]
    items = wrote(tmp_path, {**PLAIN, "id": 7}, name="items.jsonl")
    said = wrote(tmp_path, {"id": "7", "w": "b"}, {"id": 7, "w": "a"})
    found = ranks(said, f"{TWO},winner=w", items=str(items))
    assert found == [{"Yes.": 2, "No.": 1}, {"Yes.": 1, "No.": 2}]
    with pytest.raises(SourceError, match=r"no row holds anything in 'd'; there are q, a, b, c, w"):
        read(wrote(tmp_path, {**PLAIN, "w": "b", "d": None}), f"{TWO},c=d,winner=w")


def test_names_of_columns_may_hold_commas(tmp_path: Path) -> None:
    asked = "Which is better, A or B?"
    rows = wrote(tmp_path, {**PLAIN, asked: "b"})
    assert ranks(rows, f'{TWO}, "winner={asked}"') == [{"Yes.": 2, "No.": 1}]


def test_prompts_may_have_fewer_answers_than_others(tmp_path: Path) -> None:
    order = [{"value": name, "rank": rank} for rank, name in enumerate("cba", start=1)]
    rows = [
        {**PLAIN, "c": None, "w": "b"},
        {**PLAIN, "c": "", "w": order},
        {**PLAIN, "q": "Cake?", "w": order},
    ]
    assert [sorted(one.values()) for one in ranks(wrote(tmp_path, *rows), f"{THREE},winner=w")] == [
        *([1, 2], [1, 2], [1, 2, 3])
    ]


@pytest.mark.parametrize(
    ("columns", "row", "told"),
    [
        ("winner=w", {"w": "0"}, "column 'w' says '0'; .* (numbers count from 1; write a and b"),
        ("winner=w", {"w": "maybe"}, "column 'w' says 'maybe'; it is one of a, b, c, 1, 2, 3, tie"),
        ("winner=w", {"w": "B is worse"}, "column 'w' says 'b is worse'; it is one of a, b, c"),
        ("winner=w", {"w": "A or B"}, "column 'w' says 'a or b'; it is one of a, b, c"),
        ("winner=w", {"w": "-1"}, "column 'w' says '-1'; it is one of a, b, c"),
        ("winner=w", {"w": "A > B"}, "column 'w' ranks 2 of 3 answers"),
        ("winner=w", {"w": "A > B < C"}, "column 'w' says 'A > B < C', which runs both ways"),
        ("winner=w", {"w": ["a", "a", "b"]}, "column 'w' ranks 2 of 3 answers"),
        ("best=x,worst=y", {"x": "a", "y": 1}, "columns 'x' and 'y' name the same answer"),
        ("likert=x,middle=0", {"x": 1}, "column 'x' is a scale between two answers, not 3"),
        ("rank_a=x,rank_b=y,rank_c=z", {"x": 1, "y": "two", "z": 2}, "'y' holds 'two', not a num"),
        ("winner=w", {"w": "a", "q": None}, "column 'q' holds nothing that was asked"),
        ("winner=w", {"w": "a", "b": None}, "column 'b' holds no text or messages for answer b"),
        ("winner=w", {"w": "a", "b": 3}, "column 'b' holds no text or messages for answer b"),
        ("winner=w", {"v": "a"}, "there is no column 'w'; there are q, a, b, c, v"),
    ],
)
def test_what_makes_no_ranks_is_told_with_its_row(
    columns: str, row: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(BadRowsError) as problem:
        read(wrote(tmp_path, {**PLAIN, **row}), f"{THREE},{columns}")
    assert "rows.jsonl:1: " in str(problem.value)
    assert all(part in str(problem.value) for part in told.split(".*"))


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ("prompt=q,a=l,b=r", "winner is missing; what was said stands in winner, best"),
        ("prompt=q,a=l,b=r,likert=x", "likert needs middle"),
        ("prompt=q,a=l,b=r,likert=x,middle=mid", "middle=mid is no number"),
        ("prompt=q,a=l,b=r,winner=x,middle=3", "likert needs middle"),
        ("prompt=q,a=l,b=r,rating_a=x", "rating_a, rating_b are needed"),
        ("prompt=q,a=l,b=r,worst=x", "best is missing"),
        ("prompt=q,a=l,b=r,worst=x,winner=y", "winner does not go with worst"),
        ("prompt=q,a=l,b=r,answers=x,winner=y", "a does not go with answers"),
    ],
)
def test_ways_of_saying_are_not_mixed(columns: str, told: str) -> None:
    with pytest.raises(UsageError, match=f"--columns: .*{told}"):
        parse_columns(columns)


@pytest.mark.parametrize("place", [ARGILLA / "nested.json", STUDIO / "pairwise.json"])
def test_a_question_that_is_nowhere_answered_is_told(place: Path) -> None:
    columns = f"{FIELDS if 'argilla' in str(place) else PAIR},winner=bset"
    with pytest.raises(
        SourceError, match=r"no row holds anything in 'bset'; .* Did you mean 'best'"
    ):
        read(place, columns, unconfirmed=True)


def test_a_csv_that_kept_no_lists_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "instruction,response-1,response-2,best.responses\nTea?,Yes.,No.,\"[array(['x'])]\"\n"
    )
    with pytest.raises(BadRowsError, match="export the records as JSON or Parquet"):
        read(tmp_path / "a.csv", f"{FIELDS},winner=best")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.text(max_size=4)
    | st.sampled_from(["a", "b", "tie", "submitted", "A > B", "left"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["value", "rank", "user_id", "status", "ranker", "selected", "w", "a", "id", "result"]
        ),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip
KEYS = [
    *("q", "a", "b", "w", "w.responses", "w.responses.users", "w.responses.status", "responses"),
    *("fields", "data", "annotations", "labels", "instance_id", "user_id", "drafts", "status"),
    *("instance_id_to_label_to_value", "w.selection", "annotation_id", "annotator"),
]


@given(row=st.dictionaries(st.sampled_from(KEYS), JSON, max_size=8), listed=st.booleans())
def test_any_row_is_read_or_told(
    row: dict[str, Any], listed: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text(json.dumps({"q": "Tea?", "a": "Yes.", "b": "No.", **row}) + "\n")
    told: Counter[str] = Counter()
    try:
        read(path, "prompt=q,answers=a,winner=w" if listed else f"{TWO},winner=w")
    except RlhfError as error:
        told[str(error)] += 1
    assert all(0 < len(sentence) < 2000 for sentence in told)
