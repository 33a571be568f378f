"""A live conversation: a message, the wait for its answers, and the way to their ranking.

The ranking itself is the page of a task. Until the answers are whole the page shows what there is
of them, in the order in which the task will show them; who writes which is in no response.
"""

from __future__ import annotations

import secrets

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import JSONResponse, RedirectResponse, Response

from data.errors import InvalidLabelError, NotYoursError
from data.labels.live.conversations import LONGEST, Conversation, Turn, shown_order
from data.labels.records import Campaign
from data.labels.web import own
from data.labels.web.pages import render
from data.labels.web.sessions import Visit, hold, refuse_nul


class Written(BaseModel):
    """A message as the script sends it; a draft has no key."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    key: str = Field(default="", max_length=64)
    text: str = Field(max_length=LONGEST)


def talk(visit: Visit) -> Response:
    """Show the conversation: to write, or to wait; or go to the answers that are to be ranked."""
    campaign = _live(visit)
    now = visit.site.live.current(visit.me.id, campaign.id)
    last = now.last if now else None
    if last is not None and last.state == "answered":
        return RedirectResponse(f"/t/{last.assignment_id}", 303)
    over = _over(now, campaign)
    begins = now is None or not now.turns or bool(over)
    seed = f"{visit.me.id} {now.id if now else ''}"
    return render(
        visit,
        "talk.html",
        campaign=campaign,
        turns=now.turns if now else [],
        waiting=last if last and last.state == "asked" else None,
        over=over,
        openings=visit.site.live.openings(campaign.id, seed) if begins else [],
        draft=visit.site.live.draft(visit.me.id, campaign.id),
        key=secrets.token_urlsafe(16),
        longest=LONGEST,
        pace=own.pace(visit.site.database, visit.me.id, campaign.id),
        progress=visit.site.progress(campaign.id),
    )


def _over(now: Conversation | None, campaign: Campaign) -> str:
    """Return why nothing can be said after the last turn, "" where something can."""
    last = now.last if now else None
    if now is None or last is None or last.state == "asked":
        return ""
    if last.state == "failed":
        return last.failure
    if last.state == "skipped":
        return "you skipped its last answers"
    if len(now.turns) >= campaign.settings.most_turns:
        return f"it has all of its {campaign.settings.most_turns} messages"
    return ""


def write(visit: Visit) -> Response:
    """Take a message; the answer is sent when it is on the disk."""
    hold(visit.site.limits.submit.take(visit.me.id))
    campaign, written = _live(visit), _written(visit)
    turn = visit.site.live.write(visit.me.id, campaign.id, written.key, written.text)
    if visit.site.relay is not None:
        visit.site.relay.wake()
    return JSONResponse(_standing(visit, campaign, turn))


def look(visit: Visit) -> Response:
    """Tell how far the answers to a message are."""
    hold(visit.site.limits.look.take(visit.me.id))
    campaign = _live(visit)
    turn = visit.site.live.turn(visit.part("turn"), visit.me.id)
    return JSONResponse(_standing(visit, campaign, turn))


def _standing(visit: Visit, campaign: Campaign, turn: Turn) -> dict[str, object]:
    if turn.state == "answered":
        return {"next": f"/t/{turn.assignment_id}"}
    if turn.state != "asked":
        return {"next": f"/c/{campaign.id}/talk"}
    relay, count = visit.site.relay, campaign.settings.answers
    said = (relay.texts(turn.id) if relay else None) or []
    order = shown_order(turn.id, count)
    return {
        "turn": turn.id,
        "texts": [said[place] for place in order] if len(said) == count else [],
        "worker": relay is not None and relay.connected,
    }


def save_draft(visit: Visit) -> Response:
    """Keep a message that is not sent yet."""
    hold(visit.site.limits.draft.take(visit.me.id))
    visit.site.live.save_draft(visit.me.id, _live(visit).id, _written(visit).text)
    return Response(status_code=204)


def end(visit: Visit) -> Response:
    """End the conversation."""
    hold(visit.site.limits.submit.take(visit.me.id))
    campaign = _live(visit)
    visit.site.live.end(visit.me.id, campaign.id)
    return RedirectResponse(f"/c/{campaign.id}/next", 303)


def _live(visit: Visit) -> Campaign:
    campaign = visit.campaign()
    if not campaign.settings.live:
        raise NotYoursError("there is no such page")
    return campaign


def _written(visit: Visit) -> Written:
    try:
        written = Written.model_validate_json(visit.body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the body"
        raise InvalidLabelError(f"{where}: {first['msg'].lower()}") from error
    refuse_nul(written.key, written.text)
    return written
