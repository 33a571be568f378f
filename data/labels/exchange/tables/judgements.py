"""Rows of other tools as plain rows, one for each judgement; what is no judgement is counted.

- Argilla 2: rows of `to_list(flatten=True)` and `to_datasets()`, nested ones of `to_list()`,
  `to_json()` and `to_disk()`, records of its REST API; data sets of Argilla 1. Drafts and
  discarded responses are left out, and those that the file does not tell from them.
- Label Studio: tasks of JSON, rows of JSON_MIN, CSV and TSV. Cancelled annotations, drafts and
  predictions are left out.
- Potato: rows of CSV, TSV and JSON lines, and `user_state.json`.

A nested row of Argilla does not say which responses were submitted. Of a record that is completed
at least one was, so that a single one is sure; others are taken where the caller says so.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data.labels.exchange.tables.columns import LETTERS, SAID
from data.sources.read import ReadReport
from data.sources.values import RowError, listed

Row = Mapping[str, Any]
WHO = "annotator"
WHICH = "_judgement"
"""Key under which stands what tells a judgement from others of its file, whatever their order."""
SUBMITTED = "submitted"
UNSURE = (
    "a response that the file does not tell from a draft or a discarded one (export it by "
    "to_list(flatten=True), or take it by --unconfirmed)"
)
_STATE = "instance_id_to_label_to_value"
_POTATO = ("labels", "label_annotations")
_TRUE = ("true", "True", "on")


def judgements(
    row: Row, columns: Mapping[str, str], report: ReadReport, *, unconfirmed: bool = False
) -> Iterator[Row]:
    """Yield a plain row for each judgement that counts.

    Args:
        row: as the file has it.
        columns: theirs, by our names.
        report: where judgements that are left out, or taken unconfirmed, are counted.
        unconfirmed: take responses of Argilla that may be drafts.
    """
    who = columns.get(WHO, WHO)
    questions = [columns[name] for name in SAID if name in columns]
    # Whoever passes over a question has no answer to it in the file.
    silent: dict[str, Any] = dict.fromkeys(questions)
    if any(f"{question}.responses" in row for question in questions):
        given = _flat(row, questions, who)
        yield from _submitted({**silent, **row}, given, row.get("status"), report, unconfirmed)
    elif isinstance(row.get("fields"), Mapping) and "responses" in row:
        # So has a record whose prompt has fewer answers than others.
        silent |= dict.fromkeys(columns[one] for one in LETTERS[2:] if one in columns)
        plain = {**silent, **row, **row["fields"], **(row.get("metadata") or {})}
        given = _nested(row["responses"], who)
        yield from _submitted(plain, given, row.get("status"), report, unconfirmed)
    elif any(_responses(row.get(question)) for question in questions):
        held = {question: _responses(row.get(question)) for question in questions}
        yield from _submitted(
            {**row, **silent}, _nested(held, who), row.get("status"), report, unconfirmed
        )
    elif isinstance(row.get("data"), Mapping) and "annotations" in row:
        for said in _label_studio(row, who, report.dropped):
            yield {**silent, **said}
    elif isinstance(row.get(_STATE), Mapping):
        for instance, pairs in row[_STATE].items():
            labels: dict[str, dict[str, Any]] = {}
            for label, value in pairs:
                labels.setdefault(label["schema"], {})[label["name"]] = value
            who_said = {"instance_id": instance, who: row.get("user_id")}
            yield {**who_said, **_flattened(labels, questions)}
    elif "instance_id" in row and any(isinstance(row.get(name), Mapping) for name in _POTATO):
        labels = next(row[name] for name in _POTATO if isinstance(row.get(name), Mapping))
        yield {who: row.get("user_id"), **row, **_flattened(labels, questions)}
    elif "instance_id" in row and "user_id" in row:
        yield {who: row["user_id"], **row}
    elif row.get("annotation_id") not in (None, ""):
        yield {**silent, **row, WHICH: f"annotation {row['annotation_id']}"}
    else:
        yield row


def _submitted(
    row: Row, given: list[dict[str, Any]], record: Any, report: ReadReport, unconfirmed: bool
) -> Iterator[Row]:
    """Yield the row with each annotator's answers, if they were submitted."""
    if not given:
        report.dropped["a record without responses"] += 1
    sure = record == "completed" and len(given) == 1
    for answers in given:
        status = answers.pop("status") or (SUBMITTED if sure else None)
        if status is None and unconfirmed:
            report.notes["took a response that may be a draft, by --unconfirmed"] += 1
        elif status is None:
            report.dropped[UNSURE] += 1
            continue
        elif status != SUBMITTED:
            report.dropped["a response that is a draft or discarded"] += 1
            continue
        name = row.get("external_id") or row.get("id")
        yield {**row, **answers, **({WHICH: f"record {name}"} if name else {})}


def _flat(row: Row, questions: Sequence[str], who: str) -> list[dict[str, Any]]:
    """Return each annotator's answers to the questions; a question may have fewer than others."""
    by_user: dict[Any, dict[str, Any]] = {}
    for question in questions:
        name = f"{question}.responses"
        values, users, statuses = (
            _listed(row.get(f"{name}{end}"), f"{name}{end}") for end in ("", ".users", ".status")
        )
        if any(held and len(held) != len(values) for held in (users, statuses)):
            raise RowError(f"'{name}', '{name}.users' and '{name}.status' differ in length")
        for place, value in enumerate(values):
            user = users[place] if users else None
            state = by_user.setdefault(place if user is None else user, {who: user, "status": None})
            if question in state:
                raise RowError(f"'{name}' has two answers of user {str(user)[:40]}")
            state[question] = value
            state["status"] = statuses[place] if statuses else None
    return list(by_user.values())


def _listed(value: Any, column: str) -> list[Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except ValueError:
            raise RowError(
                f"column '{column}' holds no list; CSV does not keep lists: export the records "
                "as JSON or Parquet"
            ) from None
    if value is not None and not isinstance(value, list):
        raise RowError(f"column '{column}' holds no list of responses")
    return value or []


def _nested(responses: Any, who: str) -> list[dict[str, Any]]:
    """Return each annotator's answers of a nested record, by question or by response."""
    by_user: dict[Any, dict[str, Any]] = {}
    if isinstance(responses, Mapping):
        for question, answers in responses.items():
            for place, one in enumerate(answers or []):
                user = one.get("user_id")
                key = place if user is None else user
                state = by_user.setdefault(key, {who: user, "status": one.get("status")})
                state[question] = one["value"]
        return list(by_user.values())
    return [
        {
            who: one.get("user_id"),
            "status": one.get("status"),
            **{question: held["value"] for question, held in (one.get("values") or {}).items()},
        }
        for one in responses or []
    ]


def _responses(value: Any) -> list[Mapping[str, Any]]:
    """Return the responses in a question's column, as data sets of Argilla 1 on the hub have it."""
    if isinstance(value, Mapping) and isinstance(value.get("user_id"), list):
        columns = [one for one in value.items() if isinstance(one[1], list)]
        value = [
            dict(zip((name for name, _ in columns), cells, strict=True))
            for cells in zip(*(held for _, held in columns), strict=True)
        ]
    named = isinstance(value, list) and all(
        isinstance(one, Mapping) and {"value", "user_id"} <= set(one) for one in value
    )
    return value if named else []


def _label_studio(row: Row, who: str, dropped: Counter[str]) -> Iterator[Row]:
    for _ in row.get("drafts") or []:
        dropped["an annotation that is a draft"] += 1
    for one in row["annotations"]:
        if one.get("was_cancelled"):
            dropped["an annotation that was cancelled"] += 1
            continue
        values: dict[str, list[Any]] = {}
        for result in one["result"]:
            values.setdefault(result["from_name"], []).append(result["value"])
        told = {who: one.get("completed_by"), WHICH: f"annotation {one.get('id')}"}
        yield {**row["data"], **values, **told}


def _flattened(labels: Mapping[str, Any], questions: Sequence[str]) -> dict[str, Any]:
    """Return Potato's labels as its CSV has them, with nothing for a question passed over."""
    flat: dict[str, Any] = {}
    for scheme, given in labels.items():
        if not isinstance(given, Mapping):
            flat[scheme] = given
            continue
        for label, value in given.items():
            flat[f"{scheme}.{label}"] = label if value is True or value in _TRUE else value
    said = {one for name in flat for one in (name, name.partition(".")[0])}
    return {**{question: None for question in questions if question not in said}, **flat}


def told_by_columns(row: Row) -> str:
    """Return what a row looks like that `--columns` must tell of, and an example; "" for others."""
    pair = "prompt=FIELD,a=FIELD,b=FIELD,winner=QUESTION"
    if any(name.endswith(".responses") for name in row) or {"fields", "responses"} <= set(row):
        return f'an export of Argilla comes in by --columns "{pair}"'
    if any(
        isinstance(row.get(name), list) and row[name] and is_record(row[name][0]) for name in row
    ):
        return f'a page of Argilla\'s records comes in by --columns "{pair}"'
    if {"data", "annotations"} <= set(row) or "annotation_id" in row:
        return (
            f'an export of Label Studio comes in by --columns "{pair.replace("QUESTION", "TAG")}"'
        )
    if "instance_id" in row or _STATE in row:
        example = "prompt=text,answers=COLUMN,winner=SCHEME"
        return f'answers of Potato come in by --items DATA_FILE --columns "{example}"'
    return ""


def is_record(row: Any) -> bool:
    """Tell whether a value is a record of Argilla or a task of Label Studio."""
    return isinstance(row, Mapping) and any(
        isinstance(row.get(name), Mapping) for name in ("fields", "data")
    )


def value_of(row: Row, column: str) -> Any:
    """Return what a row holds in a column, of one with parts (`preference.selection`) the part.

    Raises:
        RowError: there is no such column, or several of its parts hold something.
    """
    if column in row:
        return row[column]
    parts = {name: value for name, value in row.items() if name.startswith(f"{column}.")}
    held = {name: value for name, value in parts.items() if value not in (None, "")}
    if len(held) > 1:
        raise RowError(f"several columns hold something of '{column}': {', '.join(held)}; name one")
    if parts:
        return next(iter(held.values()), None)
    value: Any = row
    for name in column.split("."):
        if isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
            continue
        if not isinstance(value, Mapping) or name not in value:
            known = listed(one for one in row if one != WHICH)
            raise RowError(f"there is no column '{column}'; there are {known}")
        value = value[name]
    return value
