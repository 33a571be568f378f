"""Campaigns and their tasks."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from data.errors import LabelError, UsageError
from data.labels.campaign import active_selection
from data.labels.records import Campaign, CampaignSettings, NewTask, Progress, size_problem
from data.labels.store import tables
from data.labels.store.audit import Audit
from data.labels.store.database import Database, free_ids, kept_id, new_id

IMPORT = "import"
"""Who creates the campaigns of labels that are brought in."""
MOST_ANSWERS = 4
"""To a message of a live conversation, which people read while they wait."""
_BATCH = 200
"""Tasks stored in one transaction: annotators never wait long behind a large import."""

_CAMPAIGN = sa.select(tables.campaigns, tables.guidelines.c.body.label("guidelines")).join(
    tables.guidelines,
    sa.and_(
        tables.guidelines.c.campaign_id == tables.campaigns.c.id,
        tables.guidelines.c.version == tables.campaigns.c.guidelines_version,
    ),
)
# Built once, as in `next_task`: nearly every request asks for it.
_BY_ID = _CAMPAIGN.where(tables.campaigns.c.id == sa.bindparam("value"))
_BY_NAME = _CAMPAIGN.where(tables.campaigns.c.name == sa.bindparam("value"))


class Campaigns:
    """The campaigns of one database."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.audit = Audit(database)

    def create(
        self,
        name: str,
        settings: CampaignSettings,
        guidelines: str,
        *,
        by: str = "system",
        wanted_id: str = "",
    ) -> Campaign:
        """Store a campaign, or return the one that is there with the same settings.

        Changed guidelines become a new version; labels keep the version they were given under.

        Args:
            name: of the campaign.
            settings: what it asks.
            guidelines: what annotators read first.
            by: who creates it, for the audit log.
            wanted_id: that of another database, taken where it is free.

        Raises:
            UsageError: settings that make no sense, or other ones than it was begun with.
        """
        _check(settings)
        try:
            return self._create(name, settings, guidelines, by, wanted_id)
        except sa.exc.IntegrityError:
            # Somebody else created it just now, so that now it is found.
            return self._create(name, settings, guidelines, by, wanted_id)

    def _create(
        self, name: str, settings: CampaignSettings, guidelines: str, by: str, wanted_id: str
    ) -> Campaign:
        with self.database.write() as connection:
            by_name = _BY_NAME.with_for_update(of=tables.campaigns)
            row = connection.execute(by_name, {"value": name}).one_or_none()
            if row is None:
                campaign_id = kept_id(connection, tables.campaigns, wanted_id)
                campaign = Campaign(campaign_id, name, settings, guidelines, guidelines_version=1)
                return self._insert(connection, campaign, by)
            _same(name, CampaignSettings(**row.settings), settings)
            campaign = _campaign(row)
            if campaign.guidelines == guidelines:
                return campaign
            version = campaign.guidelines_version + 1
            self._guidelines(connection, campaign.id, version, guidelines, by)
            connection.execute(
                tables.campaigns.update()
                .where(tables.campaigns.c.id == campaign.id)
                .values(guidelines_version=version)
            )
            return dataclasses.replace(campaign, guidelines=guidelines, guidelines_version=version)

    def get(self, name: str) -> Campaign | None:
        """Return the campaign of this name."""
        return self._one(_BY_NAME, name)

    def by_id(self, campaign_id: str) -> Campaign | None:
        """Return the campaign of this id."""
        return self._one(_BY_ID, campaign_id)

    def list(self) -> list[Campaign]:
        """Return all campaigns, oldest first."""
        query = _CAMPAIGN.order_by(tables.campaigns.c.created_at, tables.campaigns.c.name)
        with self.database.look() as connection:
            return [_campaign(row) for row in connection.execute(query).all()]

    def imported(self) -> set[str]:
        """Return the ids of the campaigns that an import made, from the audit log."""
        entry = tables.audit.c
        query = sa.select(entry.subject).where(entry.who == IMPORT, entry.action == "create")
        with self.database.look() as connection:
            return set(connection.execute(query).scalars())

    def add_tasks(
        self,
        campaign_id: str,
        new_tasks: Iterable[NewTask],
        *,
        wanted_ids: Mapping[str, str] | None = None,
    ) -> int:
        """Store the tasks whose key is not there yet, and return how many those were.

        Args:
            campaign_id: where to.
            new_tasks: what is to be labelled.
            wanted_ids: by key those of another database, taken where they are free.

        Raises:
            LabelError: there is no such campaign.
            UsageError: a task lacks the scores that the campaign's strategy needs, or has more
                completions than its mode compares.
        """
        campaign = self._known(campaign_id)
        added = 0
        iterator = iter(new_tasks)
        while batch := list(itertools.islice(iterator, _BATCH)):
            rows = [self._task_row(campaign, task) for task in batch]
            wanted = {row["key"]: (wanted_ids or {}).get(row["key"], "") for row in rows}
            with self.database.write() as connection:
                free = free_ids(connection, tables.tasks, wanted.values())
                for row in rows:
                    if (theirs := wanted[row["key"]]) in free:
                        free.remove(theirs)
                        row["id"] = theirs
                result = connection.execute(self._insert_new().returning(tables.tasks.c.id), rows)
                added += len(result.all())
        if added and campaign.settings.strategy != "random":
            self._weigh(campaign)
        return added

    def progress(self, campaign_id: str) -> Progress:
        """Return how far the campaign is."""
        task, given = tables.tasks.c, tables.assignments.c
        counted = sa.select(
            sa.func.count(),
            sa.func.coalesce(sa.func.sum(sa.case((task.done > 0, 1), else_=0)), 0),
            sa.func.coalesce(sa.func.sum(sa.case((task.done >= task.wanted, 1), else_=0)), 0),
            sa.func.coalesce(sa.func.sum(task.done), 0),
            sa.func.coalesce(sa.func.sum(task.wanted), 0),
        ).where(task.campaign_id == campaign_id, task.gold.is_(False))
        people = sa.select(sa.func.count(given.annotator_id.distinct())).where(
            given.campaign_id == campaign_id, given.purpose == "label", given.state == "done"
        )
        with self.database.read() as connection:
            tasks, labelled, complete, labels, wanted = connection.execute(counted).one()
            annotators = connection.execute(people).scalar_one()
        return Progress(
            tasks=tasks,
            labelled=int(labelled),
            complete=int(complete),
            labels=int(labels),
            wanted=int(wanted),
            annotators=annotators,
        )

    def close(self, campaign_id: str, *, by: str = "system") -> None:
        """Give out no more tasks; labels of tasks that are out are still taken."""
        self._set_closed(campaign_id, True, by)

    def reopen(self, campaign_id: str, *, by: str = "system") -> None:
        """Give out the tasks of a campaign that was closed again."""
        self._set_closed(campaign_id, False, by)

    def _set_closed(self, campaign_id: str, closed: bool, by: str) -> None:
        with self.database.write() as connection:
            connection.execute(
                tables.campaigns.update()
                .where(tables.campaigns.c.id == campaign_id)
                .values(closed=closed)
            )
            self.audit.write(connection, by, "close" if closed else "reopen", campaign_id)

    def _known(self, campaign_id: str) -> Campaign:
        campaign = self.by_id(campaign_id)
        if campaign is None:
            raise LabelError(f"there is no campaign {campaign_id}")
        return campaign

    def _one(self, query: sa.Select[Any], value: str) -> Campaign | None:
        with self.database.look() as connection:
            row = connection.execute(query, {"value": value}).one_or_none()
        return None if row is None else _campaign(row)

    def _insert(self, connection: sa.Connection, campaign: Campaign, by: str) -> Campaign:
        connection.execute(
            tables.campaigns.insert().values(
                id=campaign.id,
                name=campaign.name,
                settings=dataclasses.asdict(campaign.settings),
                guidelines_version=1,
                closed=False,
                created_at=self.database.now(),
            )
        )
        self.audit.write(connection, by, "create", campaign.id, name=campaign.name)
        self._guidelines(connection, campaign.id, 1, campaign.guidelines, by)
        return campaign

    def _guidelines(
        self, connection: sa.Connection, campaign_id: str, version: int, body: str, by: str
    ) -> None:
        connection.execute(
            tables.guidelines.insert().values(
                campaign_id=campaign_id, version=version, body=body, created_at=self.database.now()
            )
        )
        self.audit.write(connection, by, "guidelines", campaign_id, version=version)

    def _task_row(self, campaign: Campaign, task: NewTask) -> dict[str, Any]:
        settings = campaign.settings
        gold, completions = task.gold_ranks is not None, len(task.completions)
        problem = size_problem(completions=completions, mode=settings.mode)
        if problem is None and not gold:
            problem = active_selection.problem(
                task.scores, completions=completions, strategy=settings.strategy
            )
        if problem:
            raise UsageError(f"campaign {campaign.name!r}, task {task.key!r}: {problem}")
        several = active_selection.fraction(settings.seed, "overlap", task.key) < settings.overlap
        wanted = settings.annotators_per_task if several else 1
        return dataclasses.asdict(task) | {
            "id": new_id(),
            "campaign_id": campaign.id,
            "gold": gold,
            "wanted": 0 if gold else wanted,
            "slots_left": 0 if gold else wanted,
            "done": 0,
            "place": active_selection.fraction(settings.seed, "place", task.key),
            "priority": 0.0,
            "created_at": self.database.now(),
        }

    def _insert_new(self) -> Any:
        # Both have ON CONFLICT, but SQLAlchemy's general insert has not.
        if self.database.is_sqlite:
            from sqlalchemy.dialects.sqlite import insert as sqlite_insert

            return sqlite_insert(tables.tasks).on_conflict_do_nothing()
        from sqlalchemy.dialects.postgresql import insert as postgresql_insert

        return postgresql_insert(tables.tasks).on_conflict_do_nothing()

    def _weigh(self, campaign: Campaign) -> None:
        """Weigh every task anew: the scale of a model's scores changes with each task added."""
        task = tables.tasks.c
        query = sa.select(task.id, task.scores).where(
            task.campaign_id == campaign.id, task.gold.is_(False)
        )
        with self.database.read() as connection:
            rows = connection.execute(query).all()
        scale = active_selection.scales([row.scores for row in rows])
        update = (
            tables.tasks.update()
            .where(task.id == sa.bindparam("task"))
            .values(priority=sa.bindparam("worth"), place=-sa.bindparam("worth", type_=sa.Float))
        )
        strategy = campaign.settings.strategy
        for start in range(0, len(rows), _BATCH):
            batch = [
                {
                    "task": row.id,
                    "worth": active_selection.priority(row.scores, scale=scale, strategy=strategy),
                }
                for row in rows[start : start + _BATCH]
            ]
            with self.database.write() as connection:
                connection.execute(update, batch)


def _campaign(row: Any) -> Campaign:
    return Campaign(
        id=row.id,
        name=row.name,
        settings=CampaignSettings(**row.settings),
        guidelines=row.guidelines,
        guidelines_version=row.guidelines_version,
        closed=row.closed,
    )


def _check(settings: CampaignSettings) -> None:
    for name in ("overlap", "gold_share", "repeat_share", "qualification_share"):
        value = getattr(settings, name)
        if not 0 <= value <= 1:
            raise UsageError(f"{name} is {value}; it is a share from 0 to 1")
    if settings.gold_share + settings.repeat_share >= 1:
        raise UsageError(
            f"gold_share {settings.gold_share} and repeat_share {settings.repeat_share} "
            "leave no room for tasks: together they are below 1"
        )
    if settings.annotators_per_task < 1:
        raise UsageError(f"annotators_per_task is {settings.annotators_per_task}; 1 or more")
    if settings.qualification_tasks < 0:
        raise UsageError(f"qualification_tasks is {settings.qualification_tasks}; 0 or more")
    if not (settings.lease_seconds > 0 and math.isfinite(settings.lease_seconds)):
        raise UsageError(f"lease_seconds is {settings.lease_seconds}; more than 0")
    if settings.live:
        _check_live(settings)


def _check_live(settings: CampaignSettings) -> None:
    if not 2 <= settings.answers <= MOST_ANSWERS:
        raise UsageError(f"answers is {settings.answers}; each message gets 2 to {MOST_ANSWERS}")
    if problem := size_problem(completions=settings.answers, mode=settings.mode):
        raise UsageError(f"answers is {settings.answers}: {problem}")
    for name, least in (("most_turns", 1), ("all_turns", 0), ("all_tokens", 0)):
        if getattr(settings, name) < least:
            raise UsageError(f"{name} is {getattr(settings, name)}; {least} or more")
    for name in ("gold_share", "repeat_share", "qualification_tasks"):
        if getattr(settings, name):
            raise UsageError(
                f"{name} is {getattr(settings, name)}, but live conversations have no tasks that "
                "somebody knows the answer of; leave it out"
            )


def _same(name: str, old: CampaignSettings, new: CampaignSettings) -> None:
    for field in dataclasses.fields(old):
        was, wanted = getattr(old, field.name), getattr(new, field.name)
        if was != wanted:
            raise UsageError(
                f"campaign {name!r} was begun with {field.name} {was!r}, now it is {wanted!r}: "
                "go back to that, or give the campaign another name"
            )
