"""Campaigns and their tasks."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from data.errors import LabelConflictError, LabelError, UsageError
from data.labels.campaign import active_selection
from data.labels.records import Campaign, CampaignSettings, NewTask, Progress, size_problem
from data.labels.store import tables
from data.labels.store.audit import Audit
from data.labels.store.database import Database, free_ids, kept_id, new_id

IMPORT = "import"
"""Who creates the campaigns of labels that are brought in."""
LONGEST_TITLE = 100
"""Characters of what pages call a campaign."""
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
        title: str = "",
    ) -> Campaign:
        """Store a campaign, or return the one that is there with the same settings.

        Changed guidelines become a new version; labels keep the version they were given under. What
        an admin made of them on the page stays as long as `guidelines` are what they were.

        Args:
            name: of the campaign.
            settings: what it asks.
            guidelines: what annotators read first.
            by: who creates it, for the audit log.
            wanted_id: that of another database, taken where it is free.
            title: of a new campaign; one that is there keeps its own.

        Raises:
            UsageError: settings or a title that make no sense, or other settings than it was begun
                with.
        """
        _check(settings)
        new = Campaign("", name, settings, guidelines, guidelines_version=1, title=_title(title))
        try:
            return self._create(new, by, wanted_id)
        except sa.exc.IntegrityError:
            # Somebody else created it just now, so that now it is found.
            return self._create(new, by, wanted_id)

    def _create(self, new: Campaign, by: str, wanted_id: str) -> Campaign:
        with self.database.write() as connection:
            by_name = _BY_NAME.with_for_update(of=tables.campaigns)
            row = connection.execute(by_name, {"value": new.name}).one_or_none()
            if row is None:
                campaign_id = kept_id(connection, tables.campaigns, wanted_id)
                return self._insert(connection, dataclasses.replace(new, id=campaign_id), by)
            _same(new.name, CampaignSettings(**row.settings), new.settings)
            campaign = _campaign(row)
            if new.guidelines in (campaign.guidelines, _given_guidelines(connection, campaign.id)):
                return campaign
            return self._next_guidelines(connection, campaign, new.guidelines, by)

    def set_title(self, campaign_id: str, title: str, *, by: str) -> None:
        """Call a campaign something else on the pages; "" is by its name.

        Raises:
            UsageError: it is no title.
        """
        title = _title(title)
        with self.database.write() as connection:
            connection.execute(
                tables.campaigns.update()
                .where(tables.campaigns.c.id == campaign_id)
                .values(title=title or None)
            )
            self.audit.write(connection, by, "title", campaign_id, title=title)

    def edit_guidelines(self, campaign_id: str, body: str, *, version: int, by: str) -> Campaign:
        """Store other guidelines of a campaign that has no label yet, as a new version.

        Args:
            campaign_id: of which.
            body: Markdown.
            version: that was edited.
            by: id of the admin.

        Raises:
            LabelConflictError: a label is there, or another admin was faster.
            LabelError: there is no such campaign.
        """
        body = body.replace("\r\n", "\n").strip()
        with self.database.write() as connection:
            row = connection.execute(
                _BY_ID.with_for_update(of=tables.campaigns), {"value": campaign_id}
            ).one_or_none()
            if row is None:
                raise LabelError(f"there is no campaign {campaign_id}")
            campaign = _campaign(row)
            if body == campaign.guidelines.strip():
                return campaign
            if has_labels(connection, campaign_id):
                raise LabelConflictError(
                    "the first label is given, so the guidelines stay as they are here: labels "
                    "before and after would follow different ones. Close this campaign and begin "
                    "another one; or give its recipe or command other guidelines, which everybody "
                    "then accepts anew, and each label tells its version"
                )
            if campaign.guidelines_version != version:
                raise LabelConflictError(
                    "the guidelines were changed meanwhile, to version "
                    f"{campaign.guidelines_version}: copy your text, load the page again and put "
                    "it in there"
                )
            return self._next_guidelines(connection, campaign, body, by, edited_by=by)

    def has_labels(self, campaign_id: str) -> bool:
        """Tell whether anybody has labelled anything of a campaign."""
        with self.database.look() as connection:
            return has_labels(connection, campaign_id)

    def _next_guidelines(
        self,
        connection: sa.Connection,
        campaign: Campaign,
        body: str,
        by: str,
        edited_by: str | None = None,
    ) -> Campaign:
        version = campaign.guidelines_version + 1
        self._guidelines(connection, campaign.id, version, body, by, edited_by)
        connection.execute(
            tables.campaigns.update()
            .where(tables.campaigns.c.id == campaign.id)
            .values(guidelines_version=version)
        )
        return dataclasses.replace(campaign, guidelines=body, guidelines_version=version)

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
                title=campaign.title or None,
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
        self,
        connection: sa.Connection,
        campaign_id: str,
        version: int,
        body: str,
        by: str,
        edited_by: str | None = None,
    ) -> None:
        connection.execute(
            tables.guidelines.insert().values(
                campaign_id=campaign_id,
                version=version,
                body=body,
                created_at=self.database.now(),
                edited_by=edited_by,
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
        title=row.title or "",
    )


def has_labels(connection: sa.Connection, campaign_id: str) -> bool:
    """Tell whether anybody has labelled anything of a campaign."""
    given = tables.assignments.c
    query = sa.select(given.id).where(given.campaign_id == campaign_id, given.state == "done")
    return connection.execute(query.limit(1)).first() is not None


def _given_guidelines(connection: sa.Connection, campaign_id: str) -> str | None:
    """Return the last guidelines that a recipe or a command gave, and no admin on the page."""
    one = tables.guidelines.c
    query = sa.select(one.body).where(one.campaign_id == campaign_id, one.edited_by.is_(None))
    return connection.scalar(query.order_by(one.version.desc()).limit(1))


def _title(title: str) -> str:
    title = " ".join(title.split())
    if len(title) > LONGEST_TITLE or not title.isprintable():
        raise UsageError(
            f"a title has up to {LONGEST_TITLE} characters, all of which can be seen; this one has "
            f"{len(title)}: {title[:LONGEST_TITLE]!r}"
        )
    return title


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
