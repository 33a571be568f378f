import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import SourceError
from data.labels.exchange.exporting import ExportSettings, export_labels, export_parts, neutral
from data.records import Ranking, chat
from data.sources.read import read
from data.sources.source import Source

POLICIES = ["secret-large", "secret-small", "secret-base"]


@pytest.fixture
def rows(label):
    new = {
        "policies": POLICIES,
        "meta": {"source": "secret-large"},
        "scores": [[0.1, 0.2, 0.3]],
    }
    tea = {"prompt": chat("Tea?"), "new": new, "completions": ["Yes.", "No, thanks.", "Hm"]}
    return [
        label("t", "ann", [1, 2, 3], order=[2, 0, 1], seconds=12.5, comment="fine", **tea),
        label("t", "bob", [1, 1, 2], **tea),
        label("u", "ann", [2, 1], prompt="Plain, to go on"),
        label("g", "ann", [1, 2], purpose="gold"),
    ]


def loaded(lines: list[str]) -> list[dict]:
    return [json.loads(line) for line in lines]


def test_the_lossless_file_is_read_as_rankings(rows, tmp_path):
    done = export_labels(rows, ExportSettings("rankings"), folder=tmp_path)
    assert done.files == {"rankings.jsonl": 3}
    assert done.lines() == ["rankings.jsonl: 3 rows"]
    records = list(read(Source(path=str(tmp_path / "rankings.jsonl"))))
    assert all(isinstance(record, Ranking) for record in records)
    first = records[0]
    assert first.prompt == chat("Tea?")
    assert (first.ranks, first.policies, first.annotator) == ([1, 2, 3], POLICIES, "ann")
    held = first.meta["_label"]
    assert first.meta["source"] == "secret-large"
    assert held["order"] == [2, 0, 1]
    assert (held["seconds"], held["comment"], held["revision"]) == (12.5, "fine", 1)
    assert held["assignment"]["purpose"] == "label"
    assert held["assignment"]["strategy"] == "random"
    assert held["assignment"]["probability"] == 0.25
    assert len(set(held["task"]["completion_ids"])) == 3


def test_gold_and_repeats_are_no_training_data_unless_asked_for(rows, tmp_path):
    done = export_labels(rows, ExportSettings("rankings", purposes=None), folder=tmp_path)
    assert done.files == {"rankings.jsonl": 4}
    with pytest.raises(SourceError, match="there are no labels given for repeat"):
        export_labels(rows, ExportSettings("rankings", purposes=["repeat"]), folder=tmp_path)


def test_a_majority_is_read_as_one_ranking_a_task(rows, tmp_path):
    export_labels(rows, ExportSettings("rankings", consolidation="soft"), folder=tmp_path)
    records = list(read(Source(path=str(tmp_path / "rankings.jsonl"))))
    assert [record.ranks for record in records] == [[1, 2, 3], [2, 1]]
    assert records[0].probabilities[0] == [0.5, 0.75, 1.0]


@pytest.mark.parametrize("what", ["rankings", "preferences", "hh", "ties", "unpaired", "csv"])
@pytest.mark.parametrize("consolidation", ["per_annotator", "majority", "soft"])
def test_blind_exports_name_no_policy(rows, what, consolidation):
    parts, _ = export_parts(rows, ExportSettings(what, consolidation=consolidation, blind=True))
    text = "".join(line for lines in parts.values() for line in lines)
    assert "secret" not in text
    assert "key of" not in text


def test_preference_rows_are_what_trl_takes(rows):
    from trl.data_utils import is_conversational, maybe_extract_prompt

    parts, left_out = export_parts(rows, ExportSettings("preferences"))
    found = loaded(parts["preferences/train.jsonl"])
    # Three pairs of ann's, two of bob's, one of the plain prompt.
    assert len(found) == 6
    assert left_out == {"tied pairs (see the export of ties)": 1}
    assert all(is_conversational(row) for row in found)
    assert found[0] == {
        "prompt": chat("Tea?"),
        "chosen": [{"role": "assistant", "content": "Yes."}],
        "rejected": [{"role": "assistant", "content": "No, thanks."}],
        "weight": 1 / 5,
    }
    assert found[-1]["weight"] == 1
    assert found[-1]["prompt"] == chat("Plain, to go on")

    implicit = loaded(
        export_parts(rows, ExportSettings("preferences", implicit=True))[0].popitem()[1]
    )
    for row, other in zip(implicit, found, strict=True):
        assert "prompt" not in row
        assert maybe_extract_prompt(row) == {k: other[k] for k in ("prompt", "chosen", "rejected")}


def test_dialogues_are_read_back_as_the_pairs_they_are(rows, label, tmp_path):
    said = [("user", "Tea?"), ("assistant", "Yes."), ("user", "Now?")]
    talk = [{"role": role, "content": text} for role, text in said]
    inside = label("w", "ann", [1, 2], prompt=chat("Say\n\nHuman: Hi"))
    done = export_labels([*rows, label("v", "ann", [2, 1], prompt=talk), inside],
                         ExportSettings("hh"), folder=tmp_path)  # fmt: skip
    assert done.files == {"hh/train.jsonl": 7}
    assert done.left_out["pairs that no Human:/Assistant: dialogue can hold"] == 1
    records = list(read(Source(path=str(tmp_path / "hh" / "train.jsonl"))))
    first, last = records[0], records[-1]
    assert (first.prompt, first.completions) == (chat("Tea?"), ["Yes.", "No, thanks."])
    assert (last.prompt, last.completions) == (talk, ["v answer 1", "v answer 0"])
    row = json.loads((tmp_path / "hh" / "train.jsonl").read_text().splitlines()[-1])
    assert (
        row["chosen"]
        == "\n\nHuman: Tea?\n\nAssistant: Yes.\n\nHuman: Now?\n\nAssistant: v answer 1"
    )


@pytest.mark.parametrize(
    ("margin", "said", "expected"),
    [
        ("strength", {"strength": 2, "mode": "pairs"}, 2 / 3),
        ("ratings", {"ratings": [7, 4], "mode": "rate_and_rank"}, 1 / 2),
        ("ratings", {"ratings": [3, 4], "mode": "rate_and_rank"}, 0.0),
        ("ranks", {}, 1.0),
        ("votes", {}, 1.0),
    ],
)
def test_margins_lie_between_zero_and_one(label, margin, said, expected):
    rows = [label("t", "ann", [1, 2], **said)]
    parts, _ = export_parts(rows, ExportSettings("preferences", margin=margin))
    assert loaded(parts["preferences/train.jsonl"])[0]["margin"] == pytest.approx(expected)


def test_a_margin_the_labels_do_not_hold_is_refused(label):
    with pytest.raises(SourceError, match="margin: strength needs labels with strength"):
        export_parts([label("t", "ann", [1, 2])], ExportSettings("preferences", margin="strength"))


def test_soft_rows_hold_the_share_of_annotators(label):
    rows = [label("t", who, ranks) for who, ranks in zip("abc", [[1, 2], [1, 2], [2, 1]])]  # noqa: B905
    parts, _ = export_parts(
        rows, ExportSettings("preferences", consolidation="soft", margin="votes")
    )
    (row,) = loaded(parts["preferences/train.jsonl"])
    assert row["probability"] == pytest.approx(2 / 3)
    assert row["margin"] == pytest.approx(1 / 3)


def test_all_rows_of_a_prompt_are_on_one_side(label):
    rows = [
        label(f"t{i}-{k}", who, [1, 2, 3], prompt=f"question {i}")
        for i in range(40)
        for k in range(2)
        for who in "ab"
    ]
    for what in ("preferences", "unpaired"):
        parts, _ = export_parts(rows, ExportSettings(what, heldout=0.25))
        train, test = (loaded(parts[f"{what}/{side}.jsonl"]) for side in ("train", "test"))
        sides = [{row["prompt"][0]["content"] for row in side} for side in (train, test)]
        assert sides[0] and sides[1] and not sides[0] & sides[1]
        # A prompt counts once.
        assert sum(row["weight"] for row in train + test) == pytest.approx(40)


def test_ties_are_rankings_of_two(rows, tmp_path):
    export_labels(rows, ExportSettings("ties"), folder=tmp_path)
    (tie,) = read(Source(path=str(tmp_path / "ties.jsonl")))
    assert (tie.completions, tie.ranks) == (["Yes.", "No, thanks."], [1, 1])
    assert tie.meta == {"weight": 1.0}


def test_answers_are_good_or_bad_by_rating_or_by_the_ends_of_the_ranking(label):
    rows = [
        label("t", "ann", [1, 2, 3], ratings=[6, 4, 3], mode="rate_and_rank"),
        label("u", "ann", [2, 1, 3]),
        label("v", "ann", [1, 1, 1]),
    ]
    parts, left_out = export_parts(rows, ExportSettings("unpaired"))
    found = loaded(parts["unpaired/train.jsonl"])
    assert [(r["completion"][0]["content"], r["label"]) for r in found] == [
        ("t answer 0", True),
        ("t answer 2", False),
        ("u answer 1", True),
        ("u answer 2", False),
    ]
    assert found[0]["weight"] == 1 / 2
    assert left_out == {"answers neither good nor bad": 5}


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "  =cmd|' /C calc'!A0", "＝1", "|x"]
    + [
        f"{blank}=1" for blank in "\u3000\u2003\x0b\x1c\x85\x08\u200b\u200e\u2028\u202e\u2066\ufeff"
    ],
)
def test_formulas_are_neutralised(text):
    assert neutral(text) == "'" + text


def test_numbers_and_plain_text_stay():
    assert neutral(-3.5) == -3.5
    assert neutral("1 - 2 = x") == "1 - 2 = x"
    assert neutral("") == ""


@given(text=st.text())
def test_no_text_starts_a_formula_after_neutralising(text):
    assert not neutral(text).lstrip(" \u00a0\ufeff").startswith(tuple("=+-@\t\r\n|"))


def test_the_spreadsheet_has_a_line_for_each_completion(label, tmp_path):
    row = label(
        "t",
        "ann",
        [2, 1],
        order=[1, 0],
        completions=['=HYPERLINK("http://x")', 'two\nlines, "quoted"'],
        comment="+1",
        ratings=[2, 6],
        flags=[["opinion", "violent"], []],
        mode="rate_and_rank",
    )
    done = export_labels([row], ExportSettings("csv"), folder=tmp_path)
    assert done.files == {"labels.csv": 1}
    with open(tmp_path / "labels.csv", encoding="utf-8", newline="") as file:
        first, second = csv.DictReader(file)
    assert first["completion"] == '\'=HYPERLINK("http://x")'
    assert first["comment"] == "'+1"
    assert (first["rank"], first["rating"], first["place_shown"]) == ("2", "2", "2")
    assert first["flags"] == "opinion violent"
    assert second["completion"] == 'two\nlines, "quoted"'
    assert second["place_shown"] == "1"


def test_halves_of_characters_do_not_stop_an_export(label, tmp_path):
    rows = [label("t", "ann", [1, 2], completions=["ok \ud83d", "fine"])]
    export_labels(rows, ExportSettings("rankings"), folder=tmp_path)
    export_labels(rows, ExportSettings("csv"), folder=tmp_path)
    line = (tmp_path / "rankings.jsonl").read_text(encoding="utf-8")
    assert json.loads(line)["completions"][0] == "ok \ud83d"


def test_what_json_cannot_hold_is_told(label, tmp_path):
    rows = [label("t", "ann", [1, 2], new={"meta": {"score": float("nan")}})]
    with pytest.raises(SourceError, match="a number that JSON can't"):
        export_labels(rows, ExportSettings("rankings"), folder=tmp_path)


def test_what_an_earlier_export_left_in_a_prompt_is_not_carried_on(label):
    rows = [label("t", "ann", [1, 2], new={"meta": {"_label": 1, "_votes": 2, "topic": "tea"}})]
    for consolidation in ("per_annotator", "majority"):
        parts, _ = export_parts(rows, ExportSettings("rankings", consolidation=consolidation))
        meta = loaded(parts["rankings.jsonl"])[0]["meta"]
        assert meta.pop("topic") == "tea"
        assert not {1, 2} & {value for value in meta.values() if isinstance(value, int)}


def test_the_csv_is_one_table(rows):
    parts, _ = export_parts(rows, ExportSettings("csv"))
    table = list(csv.reader(io.StringIO("".join(parts["labels.csv"]))))
    assert len(table) == 1 + 3 + 3 + 2
    assert len({len(line) for line in table}) == 1
