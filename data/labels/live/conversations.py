"""Conversations with models whose answers are ranked, turn by turn.

An annotator writes a message; a worker answers it 2 to 4 times; the annotator ranks the answers;
the conversation goes on with the best one. What is ranked is a task like any other, given to this
annotator alone: pages, drafts, revisions, statistics and exports are those of tasks. A turn:

| state | on the disk | who goes on, and how often |
|---|---|---|
| `written` | the draft of the message | the annotator: `write` takes a key once |
| `asked` | the turn | whoever asks the worker, again and again: `answer` takes the first |
| `answered` | its task, answers, assignment | the annotator: `submit` takes a key once; or skip |
| `told` | its one answer: all were the same | the annotator: the next message |
| `ranked` | the label | the annotator: the next message |
| `failed` | why there is no answer | nobody: the conversation is over |

While answers are made, nothing of them is on the disk: the pages show what the worker has said so
far, and if one of the two dies the turn is asked again. A conversation goes on with the answer that
its label first said is best; of a tie, with the one shown first. A later revision changes the label
and not what was said after it.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa

from data.errors import InvalidLabelError, LabelConflictError, NotYoursError
from data.labels.records import CampaignSettings
from data.labels.store import tables
from data.labels.store.database import Database, new_id
from data.records import ENDED, Message

State = Literal["asked", "answered", "told", "ranked", "skipped", "failed"]
LONGEST = 8000
"""Characters of a message."""
_campaign, _talk, _turn = tables.campaigns.c, tables.conversations.c, tables.turns.c
_given, _task, _label = tables.assignments.c, tables.tasks.c, tables.labels.c


@dataclass(frozen=True)
class Turn:
    """A message and what came of it.

    Attributes:
        answer: what the conversation goes on with; None where nothing is chosen yet.
        assignment_id: of its answers, "" where there are none to rank.
        failure: why there is no answer.
    """

    id: str
    number: int
    text: str
    state: State
    answer: str | None
    assignment_id: str
    failure: str


@dataclass(frozen=True)
class Conversation:
    """An annotator's open conversation."""

    id: str
    campaign_id: str
    turns: list[Turn]

    @property
    def last(self) -> Turn | None:
        """The newest turn."""
        return self.turns[-1] if self.turns else None


@dataclass(frozen=True)
class Asked:
    """A message that waits for answers.

    Attributes:
        messages: the conversation up to it.
        answers: how many are wanted.
    """

    turn_id: str
    messages: list[Message]
    answers: int


@dataclass(frozen=True)
class Answers:
    """What a worker made of a message.

    Attributes:
        texts: the answers, all different; a single one where all were the same.
        policies: who wrote each.
        ended: whether each ended by itself.
        tokens: sampled in all.
        failure: why there are none.
    """

    texts: list[str]
    policies: list[str]
    ended: list[bool]
    tokens: int = 0
    failure: str = ""


def shown_order(turn_id: str, count: int) -> list[int]:
    """Return which answer of a turn stands at which place; the same while and after it is made."""
    order = list(range(count))
    random.Random(f"order {turn_id}").shuffle(order)
    return order


class Conversations:
    """The live conversations of one database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def suggest(self, campaign_id: str, texts: Iterable[str]) -> None:
        """Store openings that are suggested, in place of those there are."""
        rows = [
            {"campaign_id": campaign_id, "place": place, "text": text}
            for place, text in enumerate(texts)
        ]
        opening = tables.openings
        with self.database.write() as connection:
            connection.execute(opening.delete().where(opening.c.campaign_id == campaign_id))
            if rows:
                connection.execute(opening.insert(), rows)

    def openings(self, campaign_id: str, seed: object, count: int = 3) -> list[str]:
        """Return some of the openings, drawn by a seed."""
        place, text = tables.openings.c.place, tables.openings.c.text
        mine = tables.openings.c.campaign_id == campaign_id
        with self.database.look() as connection:
            total = connection.scalar(sa.select(sa.func.count()).where(mine)) or 0
            drawn = random.Random(f"{seed}").sample(range(total), min(count, total))
            query = sa.select(place, text).where(mine, place.in_(drawn))
            found = {row.place: row.text for row in connection.execute(query)}
        return [found[one] for one in drawn]

    def current(self, annotator_id: str, campaign_id: str) -> Conversation | None:
        """Return the annotator's open conversation, None where the next message begins one."""
        with self.database.read() as connection:
            return _current(connection, annotator_id, campaign_id)

    def write(self, annotator_id: str, campaign_id: str, key: str, text: str) -> Turn:
        """Store a message, which begins a conversation or goes on with it; it is on the disk then.

        Raises:
            InvalidLabelError: it is empty or too long.
            LabelConflictError: an answer is awaited or to be ranked, another message was sent under
                the key, the campaign is closed or its budget is spent.
        """
        text = text.strip()
        if not text or len(text) > LONGEST:
            raise InvalidLabelError(f"a message has 1 to {LONGEST} characters, not {len(text)}")
        if not 16 <= len(key) <= 64:
            raise InvalidLabelError("the message has no key: reload the page")
        try:
            return self._write(annotator_id, campaign_id, key, text)
        except sa.exc.IntegrityError:
            # The same annotator wrote in another tab just now, so that now it is found.
            return self._write(annotator_id, campaign_id, key, text)

    def _write(self, annotator_id: str, campaign_id: str, key: str, text: str) -> Turn:
        now = self.database.now()
        with self.database.write() as connection:
            # One message at a time: the budget is that of all.
            query = sa.select(tables.campaigns).where(_campaign.id == campaign_id).with_for_update()
            campaign = connection.execute(query).one()
            known = _sent(connection, annotator_id, campaign_id, key)
            if known is not None:
                if known.text != text:
                    raise LabelConflictError("another message was sent from this page: reload it")
                return known
            talk = _current(connection, annotator_id, campaign_id)
            settings = CampaignSettings(**campaign.settings)
            _require_open(connection, campaign, settings)
            last = talk.last if talk else None
            if last is not None and last.state in ("asked", "answered"):
                raise LabelConflictError("your last message has no ranked answer yet: go on to it")
            if talk is None or len(talk.turns) >= settings.most_turns or not _goes_on(last):
                if talk is not None:
                    _end(connection, talk.id, now)
                talk = Conversation(new_id(), campaign_id, [])
                connection.execute(
                    tables.conversations.insert().values(
                        id=talk.id,
                        campaign_id=campaign_id,
                        annotator_id=annotator_id,
                        started_at=now,
                    )
                )
            turn = Turn(new_id(), len(talk.turns) + 1, text, "asked", None, "", "")
            connection.execute(
                tables.turns.insert().values(
                    id=turn.id,
                    conversation_id=talk.id,
                    number=turn.number,
                    submission_key=key,
                    text=text,
                    asked_at=now,
                    tokens=0,
                )
            )
            _forget_draft(connection, annotator_id, campaign_id)
            return turn

    def end(self, annotator_id: str, campaign_id: str) -> None:
        """End the annotator's conversation, so that the next message begins another.

        Raises:
            LabelConflictError: answers are there to be ranked or skipped.
        """
        with self.database.write() as connection:
            talk = _current(connection, annotator_id, campaign_id)
            if talk is None:
                return
            if talk.last is not None and talk.last.state == "answered":
                raise LabelConflictError("rank the answers first, or skip them")
            _end(connection, talk.id, self.database.now())

    def asked(self) -> list[Asked]:
        """Return the messages that wait for answers, the oldest first."""
        query = (
            sa.select(_turn.id, _turn.conversation_id, _campaign.settings)
            .select_from(_with_campaign())
            .where(_turn.answered_at.is_(None), _talk.ended_at.is_(None))
            .order_by(_turn.asked_at, _turn.id)
        )
        with self.database.read() as connection:
            return [
                Asked(
                    row.id,
                    _messages(_turns(connection, row.conversation_id)),
                    CampaignSettings(**row.settings).answers,
                )
                for row in connection.execute(query).all()
            ]

    def answer(self, turn_id: str, answers: Answers) -> bool:
        """Store what a message was answered, in one piece; return whether it was still asked.

        Raises:
            InvalidLabelError: it is no answer.
        """
        if not answers.failure and not answers.texts:
            raise InvalidLabelError("there are neither answers nor a reason why")
        now = self.database.now()
        query = (
            sa.select(tables.turns, *(_talk.campaign_id, _talk.annotator_id, _talk.ended_at))
            .join(tables.conversations, _talk.id == _turn.conversation_id)
            .where(_turn.id == turn_id)
            .with_for_update(of=tables.turns)
        )
        with self.database.write() as connection:
            turn = connection.execute(query).one_or_none()
            if turn is None or turn.answered_at is not None or turn.ended_at is not None:
                return False
            values: dict[str, Any] = {"answered_at": now, "tokens": answers.tokens}
            if answers.failure:
                values["failure"] = answers.failure
            elif len(answers.texts) == 1:
                values["only"] = answers.texts[0]
            else:
                values["assignment_id"] = self._give(connection, turn, answers, now)
            connection.execute(tables.turns.update().where(_turn.id == turn_id).values(**values))
            return True

    def _give(self, connection: sa.Connection, turn: Any, answers: Answers, now: datetime) -> str:
        """Store answers as a task in front of the annotator; return the assignment's id."""
        messages = _messages(_turns(connection, turn.conversation_id))
        task_id, assignment_id, count = new_id(), new_id(), len(answers.texts)
        meta = {"conversation": turn.conversation_id, "turn": turn.number, ENDED: answers.ended}
        connection.execute(
            tables.tasks.insert().values(
                id=task_id,
                campaign_id=turn.campaign_id,
                key=f"turn {turn.id}",
                prompt=messages,
                completions=answers.texts,
                policies=answers.policies,
                scores=[],
                gold_note="",
                meta=meta,
                gold=False,
                wanted=1,
                slots_left=0,
                done=0,
                place=0.0,
                priority=0.0,
                created_at=now,
            )
        )
        version = sa.select(_campaign.guidelines_version).where(_campaign.id == turn.campaign_id)
        connection.execute(
            tables.assignments.insert().values(
                id=assignment_id,
                task_id=task_id,
                campaign_id=turn.campaign_id,
                annotator_id=turn.annotator_id,
                purpose="label",
                state="open",
                takes_slot=False,  # nobody else can take it, so no lease of it runs out
                shown=shown_order(turn.id, count),
                strategy="random",
                probability=1.0,
                guidelines_version=connection.scalar(version),
                given_at=now,
                leased_until=now,
            )
        )
        return assignment_id

    def turn(self, turn_id: str, annotator_id: str) -> Turn:
        """Return one of the annotator's turns.

        Raises:
            NotYoursError: there is none.
        """
        where = (_turn.id == turn_id, _talk.annotator_id == annotator_id)
        with self.database.look() as connection:
            row = connection.execute(_READ.where(*where)).one_or_none()
        if row is None:
            raise NotYoursError("there is no such message of yours")
        return _read(row)

    def save_draft(self, annotator_id: str, campaign_id: str, text: str) -> None:
        """Keep a message that is not sent yet, over what was kept before."""
        values = {"text": text[:LONGEST], "updated_at": self.database.now()}
        with self.database.write(durable=False) as connection:
            _forget_draft(connection, annotator_id, campaign_id)
            connection.execute(
                tables.message_drafts.insert().values(
                    annotator_id=annotator_id, campaign_id=campaign_id, **values
                )
            )

    def draft(self, annotator_id: str, campaign_id: str) -> str:
        """Return the message that is not sent yet, or ""."""
        with self.database.look() as connection:
            query = sa.select(tables.message_drafts.c.text)
            text = connection.scalar(query.where(*_whose(annotator_id, campaign_id)))
        return text or ""


def spent(connection: sa.Connection, campaign_id: str, settings: CampaignSettings) -> str:
    """Return which budget of a campaign is spent, "" where none is.

    Messages that came to nothing that can be ranked are none of the messages, but of the tokens.
    """
    if not settings.all_turns and not settings.all_tokens:
        return ""
    waits = sa.and_(_turn.answered_at.is_(None), _talk.ended_at.is_(None))
    ranked = sa.and_(_turn.assignment_id.is_not(None), _given.state != "skipped")
    counts = sa.case((sa.or_(waits, ranked), 1), else_=0)
    query = (
        sa.select(*(sa.func.coalesce(sa.func.sum(one), 0) for one in (counts, _turn.tokens)))
        .select_from(
            tables.turns.join(tables.conversations, _talk.id == _turn.conversation_id).outerjoin(
                tables.assignments, _given.id == _turn.assignment_id
            )
        )
        .where(_talk.campaign_id == campaign_id)
    )
    turns, tokens = connection.execute(query).one()
    if settings.all_turns and turns >= settings.all_turns:
        return f"the campaign's {settings.all_turns:,} messages"
    if settings.all_tokens and tokens >= settings.all_tokens:
        return f"the campaign's {settings.all_tokens:,} tokens"
    return ""


def _require_open(connection: sa.Connection, campaign: Any, settings: CampaignSettings) -> None:
    if campaign.closed:
        raise LabelConflictError("this campaign is closed: no more messages are taken")
    if what := spent(connection, campaign.id, settings):
        raise LabelConflictError(f"{what} are used up: no more messages are taken")


def _goes_on(last: Turn | None) -> bool:
    """Whether something can be said after a turn."""
    return last is None or last.state in ("ranked", "told")


# A turn with its assignment, and the label that first ranked it.
_READ = (
    sa.select(
        tables.turns,
        _talk.ended_at,
        _given.state.label("given_state"),
        _given.shown,
        _task.completions,
        _label.ranks,
    )
    .select_from(
        tables.turns.join(tables.conversations, _talk.id == _turn.conversation_id)
        .outerjoin(tables.assignments, _given.id == _turn.assignment_id)
        .outerjoin(tables.tasks, _task.id == _given.task_id)
        .outerjoin(tables.labels, sa.and_(_label.assignment_id == _given.id, _label.revision == 1))
    )
    .order_by(_turn.number)
)


def _read(row: Any) -> Turn:
    answer = row.only
    if row.answered_at is None:
        state: State = "asked" if row.ended_at is None else "failed"  # nobody waits any more
    elif row.failure is not None:
        state = "failed"
    elif row.only is not None:
        state = "told"
    elif row.ranks is not None:
        state = "ranked"
        answer = row.completions[min(row.shown, key=row.ranks.__getitem__)]
    else:
        state = "skipped" if row.given_state == "skipped" else "answered"
    return Turn(
        row.id, row.number, row.text, state, answer, row.assignment_id or "", row.failure or ""
    )


def _turns(connection: sa.Connection, conversation_id: str) -> list[Turn]:
    query = _READ.where(_turn.conversation_id == conversation_id)
    return [_read(row) for row in connection.execute(query).all()]


def _sent(connection: sa.Connection, annotator_id: str, campaign_id: str, key: str) -> Turn | None:
    """Return the turn that a message of this key made."""
    where = (
        _turn.submission_key == key,
        _talk.annotator_id == annotator_id,
        _talk.campaign_id == campaign_id,
    )
    row = connection.execute(_READ.where(*where)).first()
    return None if row is None else _read(row)


def _current(connection: sa.Connection, annotator_id: str, campaign_id: str) -> Conversation | None:
    query = sa.select(_talk.id).where(
        _talk.annotator_id == annotator_id,
        _talk.campaign_id == campaign_id,
        _talk.ended_at.is_(None),
    )
    talk_id = connection.scalar(query)
    if talk_id is None:
        return None
    return Conversation(talk_id, campaign_id, _turns(connection, talk_id))


def _messages(turns: Sequence[Turn]) -> list[Message]:
    """Return a conversation up to its last message."""
    said: list[Message] = []
    for turn in turns:
        said.append({"role": "user", "content": turn.text})
        if turn.answer is not None:
            said.append({"role": "assistant", "content": turn.answer})
    return said


def _end(connection: sa.Connection, talk_id: str, now: datetime) -> None:
    connection.execute(
        tables.conversations.update().where(_talk.id == talk_id).values(ended_at=now)
    )


def _whose(annotator_id: str, campaign_id: str) -> Collection[sa.ColumnElement[bool]]:
    draft = tables.message_drafts.c
    return draft.annotator_id == annotator_id, draft.campaign_id == campaign_id


def _forget_draft(connection: sa.Connection, annotator_id: str, campaign_id: str) -> None:
    connection.execute(tables.message_drafts.delete().where(*_whose(annotator_id, campaign_id)))


def _with_campaign() -> sa.Join:
    return tables.turns.join(tables.conversations, _talk.id == _turn.conversation_id).join(
        tables.campaigns, _campaign.id == _talk.campaign_id
    )
