"""From rows of the tables to the records that are handed around."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from data.labels.records import (
    Annotator,
    Assignment,
    CampaignSettings,
    Label,
    LabelRow,
    NewTask,
    Submission,
    Task,
)
from data.labels.store import tables


def _prefixed(table: sa.Table, prefix: str) -> list[sa.ColumnElement[Any]]:
    return [column.label(prefix + column.name) for column in table.columns]


TASK = _prefixed(tables.tasks, "t_")
ASSIGNMENT = _prefixed(tables.assignments, "a_") + TASK
"""Columns for `assignment`, of assignments joined with tasks."""
LABEL = _prefixed(tables.labels, "l_")
ANNOTATOR = _prefixed(tables.annotators, "p_")


def joined() -> sa.Join:
    """Return assignments with their tasks."""
    return tables.assignments.join(tables.tasks, tables.assignments.c.task_id == tables.tasks.c.id)


def assignment(row: Any) -> Assignment:
    """Return the assignment of a row that has the columns `ASSIGNMENT`."""
    return Assignment(
        id=row.a_id,
        task=task(row),
        annotator_id=row.a_annotator_id,
        purpose=row.a_purpose,
        order=row.a_shown,
        strategy=row.a_strategy,
        probability=row.a_probability,
        leased_until=row.a_leased_until,
        guidelines_version=row.a_guidelines_version,
    )


def task(row: Any) -> Task:
    """Return the task of a row that has the columns of tasks with the prefix `t_`."""
    new = NewTask(
        key=row.t_key,
        prompt=row.t_prompt,
        completions=row.t_completions,
        policies=row.t_policies,
        scores=row.t_scores,
        gold_ranks=row.t_gold_ranks,
        gold_note=row.t_gold_note,
        meta=row.t_meta,
    )
    return Task(id=row.t_id, campaign_id=row.t_campaign_id, new=new)


def label(row: Any) -> Label:
    """Return the label of a row that has the columns `LABEL`."""
    submission = Submission(
        key=row.l_submission_key,
        ranks=row.l_ranks,
        ratings=row.l_ratings,
        flags=row.l_flags,
        strength=row.l_strength,
        comment=row.l_comment,
        seconds=row.l_seconds,
    )
    return Label(
        id=row.l_id,
        assignment_id=row.l_assignment_id,
        revision=row.l_revision,
        submission=submission,
        created_at=row.l_created_at,
    )


def annotator(row: Any) -> Annotator:
    """Return the annotator of a row that has the columns `ANNOTATOR`."""
    return Annotator(
        id=row.p_id, name=row.p_name, kind=row.p_kind, role=row.p_role, active=row.p_active
    )


def label_row(row: Any) -> LabelRow:
    """Return a label with all around it, of a row that also has `c_name` and `c_settings`."""
    return LabelRow(
        label=label(row),
        assignment=assignment(row),
        annotator=annotator(row),
        campaign=row.c_name,
        mode=CampaignSettings(**row.c_settings).mode,
    )
