import datetime
import decimal
import json
import uuid

import numpy
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.records import to_json
from data.sources.read import read
from data.sources.source import Source
from data.sources.values import plain

DAY = datetime.date(2025, 3, 1)
NAME = uuid.UUID(int=5)


@pytest.mark.parametrize(
    ("value", "readable"),
    [
        (DAY, "2025-03-01"),
        (datetime.datetime(2025, 3, 1, 9, 30), "2025-03-01T09:30:00"),
        (datetime.datetime(2025, 3, 1, tzinfo=datetime.UTC), "2025-03-01T00:00:00+00:00"),
        (datetime.time(9, 30), "09:30:00"),
        (datetime.timedelta(hours=1), "1:00:00"),
        (decimal.Decimal("1.50"), "1.50"),
        (NAME, str(NAME)),
        (b"caf\xc3\xa9", "café"),
        (b"\xff\x00", "/wA="),
        (float("nan"), None),
        (float("-inf"), None),
        (numpy.float32(0.5), 0.5),
        (numpy.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        ({1: (DAY,)}, {"1": ["2025-03-01"]}),
        ({"a"}, ["a"]),
        (True, True),
        ("007", "007"),
    ],
)
def test_what_json_can_not_hold_becomes_readable(value, readable):
    assert plain(value) == readable
    json.dumps(plain(value), allow_nan=False)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)  # fmt: skip


@given(JSON)
def test_what_json_can_hold_stays_as_it_is(value):
    assert plain(value) == value


def test_columns_of_any_type_are_passed_on(tmp_path):
    moment = datetime.datetime(2025, 1, 2, 3, 4, 5)
    columns = {
        "prompt": ["Where?"],
        "created": [moment],
        "fine": pyarrow.array([1], pyarrow.timestamp("ns")),
        "never": pyarrow.array([None], pyarrow.timestamp("ns")),
        "day": [DAY],
        "price": [decimal.Decimal("2.50")],
        "raw": [b"\xff"],
        "share": [float("nan")],
        "took": [datetime.timedelta(seconds=2)],
        "many": [[moment]],
        "inside": [{"at": moment}],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    (row,) = read(Source(path=str(tmp_path / "a.parquet")))
    written = json.loads(json.dumps(to_json(row), allow_nan=False))
    assert written["meta"] == {
        "created": "2025-01-02T03:04:05",
        "fine": "1970-01-01T00:00:00.000000001",
        "never": None,
        "day": "2025-03-01",
        "price": "2.50",
        "raw": "/w==",
        "share": None,
        "took": "0:00:02",
        "many": ["2025-01-02T03:04:05"],
        "inside": {"at": "2025-01-02T03:04:05"},
    }


def test_answers_that_are_dates_are_read(tmp_path):
    columns = {"question": ["When?"], "answer": [DAY]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    (row,) = read(Source(path=str(tmp_path / "a.parquet")))
    assert row.messages[1]["content"] == "2025-03-01"
