"""`rlhf label export`: labels as files, ours and other tools'."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import typer

from data.errors import UsageError

if TYPE_CHECKING:
    from data.labels.exchange.exporting import Exported
    from data.labels.records import Campaign
    from data.labels.store.database import Database

_NOT_FOR_TOOLS: dict[str, Any] = {
    "consolidation": "per_annotator",
    "implicit": False,
    "margin": "none",
    "heldout": 0.0,
    "seed": 0,
    "revisions": "last",
}
"""Options that say nothing about another tool's tasks, as they are when they are not given."""


def write_labels(
    run: Path,
    place: str | None,
    campaign: str | None,
    out: Path,
    what: str,
    *,
    users: str | None,
    every_purpose: bool,
    kind: list[str] | None,
    **how: Any,
) -> None:
    """Write labels into a folder and tell what was written.

    Args:
        run: run folder.
        place: of the database, the run's own when not given.
        campaign: name of the campaign, that of the run's stage when not given.
        out: folder to write into.
        what: one of the files of `exporting`, or a tool of `for_tools`.
        users: the tool's, by our annotators' names.
        every_purpose: gold tasks, repeats and qualification, too.
        kind: only labels of these kinds of annotators.
        how: further settings of `ExportSettings`.

    Raises:
        UsageError: options that do not go together.
    """
    from pipeline.cli.label_store import kinds_of, opened, take_campaign

    with opened(run, place) as store:
        from data.labels.campaign.label_filter import TRAINING
        from data.labels.campaign.submissions import Submissions
        from data.labels.exchange.exporting import ExportSettings, export_labels
        from data.labels.exchange.for_tools import Tool

        purposes = None if every_purpose else TRAINING
        kept: dict[str, Any] = {"purposes": purposes, "kinds": kinds_of(kind)}
        for_tool = what in get_args(Tool)
        unfit = [name for name, unset in _NOT_FOR_TOOLS.items() if how[name] != unset]
        if for_tool and unfit:
            raise UsageError(
                f"--{unfit[0]} does not go with --what {what}, which holds each annotator's label"
            )
        if users is not None and not for_tool:
            raise UsageError(f"--users goes with --what {' or '.join(get_args(Tool))}")
        settings = None if for_tool else ExportSettings(what, **kept, **how)  # type: ignore[arg-type]
        stored, others = take_campaign(run, store, campaign, recipe_may_fail=place is not None)
        if settings is None:
            exported = _for_tool(store, stored, out, what, users, kept)
        else:
            rows = Submissions(store).labels(stored.id, revisions=settings.revisions)
            exported = export_labels(rows, settings, folder=out)
    if others:
        typer.echo(others, err=True)
    for line in exported.lines():
        typer.echo(line)


def _for_tool(
    store: Database,
    campaign: Campaign,
    out: Path,
    tool: Any,
    users: str | None,
    kept: dict[str, Any],
) -> Exported:
    from data.labels.campaign.label_filter import labels_of
    from data.labels.campaign.submissions import Submissions
    from data.labels.campaign.task_list import tasks_of
    from data.labels.exchange.for_tools import export_tasks
    from data.labels.exchange.tables.columns import parse_users

    named = {} if users is None else parse_users(users)
    return export_tasks(
        tool,
        tasks_of(store, campaign.id, gold=kept["purposes"] is None),
        labels_of(Submissions(store).labels(campaign.id), **kept),
        folder=out,
        name=campaign.name,
        guidelines=campaign.guidelines,
        users=named,
    )
