"""The loop: guidelines, qualification, a task, the next task."""

from __future__ import annotations

import secrets
from datetime import timedelta
from typing import Any

from starlette.responses import JSONResponse, RedirectResponse, Response

from data.errors import LabelConflictError, NotYoursError
from data.labels.campaign.submissions import REVISABLE
from data.labels.records import SKIP_REASONS, Assignment, Campaign, LabelRow
from data.labels.web import consent, own
from data.labels.web.forms import from_submission, read_sheet, to_submission
from data.labels.web.pages import render
from data.labels.web.sessions import Visit, hold
from data.records import Prompt, turn_text

_SAID = ("tiers", "ratings", "flags", "choice", "comment")
"""What a correction may change of a label."""
STRENGTHS = {1: "slightly better", 2: "better", 3: "much better"}


def go_on(visit: Visit) -> Response:
    """Go to what is next: the guidelines, a task, or the end."""
    campaign = visit.campaign()
    accepted = consent.accepted_version(visit.site.database, visit.me.id, campaign.id)
    if accepted < campaign.guidelines_version:
        return RedirectResponse(f"/c/{campaign.id}/guidelines", 303)
    if campaign.settings.live:
        return RedirectResponse(f"/c/{campaign.id}/talk", 303)
    assignment = visit.site.queue.next(visit.me.id, campaign.id)
    if assignment is not None:
        return RedirectResponse(f"/t/{assignment.id}", 303)
    return RedirectResponse(f"/c/{campaign.id}/end", 303)


def guidelines(visit: Visit) -> Response:
    """Show the guidelines, to be accepted where that is to be done."""
    campaign = visit.campaign()
    accepted = consent.accepted_version(visit.site.database, visit.me.id, campaign.id)
    return render(visit, "guidelines.html", campaign=campaign, accepted=accepted)


def accept_guidelines(visit: Visit) -> Response:
    """Note that the guidelines are accepted, unless they changed meanwhile."""
    campaign = visit.campaign()
    if visit.field("version") == str(campaign.guidelines_version):
        consent.accept(visit.site.database, visit.me.id, campaign)
    return RedirectResponse(f"/c/{campaign.id}/next", 303)


def end(visit: Visit) -> Response:
    """Say that there is nothing to do, and why."""
    campaign = visit.campaign()
    status = visit.site.queue.qualification(visit.me.id, campaign.id)
    pace = own.pace(visit.site.database, visit.me.id, campaign.id)
    return render(visit, "end.html", campaign=campaign, qualification=status, pace=pace)


def task(visit: Visit) -> Response:
    """Show a task."""
    given = visit.site.queue.given(visit.part("assignment"), visit.me.id)
    if given is None:
        raise _not_yours()
    assignment, state = given
    campaign = visit.site.campaign(assignment.task.campaign_id)
    if state in ("done", "skipped"):
        return RedirectResponse(f"/c/{campaign.id}/next", 303)
    draft = visit.site.submissions.draft(assignment.id, visit.me.id)
    return _page(visit, assignment, campaign, sheet=draft, label_id="")


def save_draft(visit: Visit) -> Response:
    """Keep what was filled in, and with it the lease."""
    hold(visit.site.limits.draft.take(visit.me.id))
    assignment, campaign = _given(visit)
    sheet = read_sheet(visit.body, completions=len(assignment.order))
    visit.site.submissions.save_draft(assignment.id, visit.me.id, sheet.model_dump())
    half = timedelta(seconds=campaign.settings.lease_seconds / 2)
    running_out = assignment.leased_until - visit.site.database.now() < half
    # A task that was taken back meanwhile has no lease to extend.
    if running_out and visit.site.queue.state(assignment.id, visit.me.id) == "open":
        visit.site.queue.extend(assignment.id, visit.me.id)
    return Response(status_code=204)


def submit(visit: Visit) -> Response:
    """Store a label; the answer is sent when it is on the disk."""
    hold(visit.site.limits.submit.take(visit.me.id))
    assignment, campaign = _given(visit)
    sheet = read_sheet(visit.body, completions=len(assignment.order))
    submission = to_submission(sheet, order=assignment.order, mode=campaign.settings.mode)
    visit.site.submissions.submit(assignment.id, visit.me.id, submission)
    if assignment.purpose == "qualification":
        return JSONResponse({"next": f"/t/{assignment.id}/feedback"})
    return JSONResponse({"next": f"/c/{campaign.id}/next"})


def skip(visit: Visit) -> Response:
    """Give a task back for good."""
    hold(visit.site.limits.submit.take(visit.me.id))
    assignment, campaign = _given(visit)
    visit.site.submissions.skip(assignment.id, visit.me.id, visit.field("reason"))
    return RedirectResponse(f"/c/{campaign.id}/next", 303)


def feedback(visit: Visit) -> Response:
    """Tell how a task of the qualification was done."""
    assignment, campaign = _given(visit)
    row = find_own(visit, assignment)
    compared = visit.site.submissions.gold_feedback(row.label)
    if compared is None:
        raise NotYoursError("there is no such page")
    status = visit.site.queue.qualification(visit.me.id, campaign.id)
    return render(
        visit,
        "feedback.html",
        campaign=campaign,
        assignment=assignment,
        feedback=compared,
        qualification=status,
    )


def mine(visit: Visit) -> Response:
    """Show one's own last labels and figures."""
    campaign = visit.campaign()
    return render(
        visit,
        "mine.html",
        campaign=campaign,
        rows=visit.site.submissions.mine(visit.me.id, campaign.id, REVISABLE),
        pace=own.pace(visit.site.database, visit.me.id, campaign.id),
        gold=own.gold_agreement(visit.site.database, visit.me.id, campaign.id),
        gold_every=own.GOLD_EVERY,
        qualification=visit.site.queue.qualification(visit.me.id, campaign.id),
        progress=visit.site.progress(campaign.id),
    )


def revision(visit: Visit) -> Response:
    """Show one of the own last labels, to be corrected."""
    assignment, campaign = _given(visit)
    row = find_own(visit, assignment)
    if assignment.purpose == "qualification":
        raise LabelConflictError("labels of the qualification are not revised")
    sent = from_submission(row.label.submission, order=assignment.order)
    draft = visit.site.submissions.draft(assignment.id, visit.me.id)
    if draft is not None and all(draft[name] == sent[name] for name in _SAID):
        draft = None
    return _page(
        visit,
        assignment,
        campaign,
        sheet=draft or sent,
        label_id=row.label.id,
        sent=sent if draft else None,
    )


def save_revision_draft(visit: Visit) -> Response:
    """Keep a correction that is not sent yet."""
    hold(visit.site.limits.draft.take(visit.me.id))
    assignment, _ = _given(visit)
    find_own(visit, assignment)
    sheet = read_sheet(visit.body, completions=len(assignment.order))
    visit.site.submissions.save_draft(assignment.id, visit.me.id, sheet.model_dump(), revising=True)
    return Response(status_code=204)


def revise(visit: Visit) -> Response:
    """Store a further revision of a label."""
    hold(visit.site.limits.submit.take(visit.me.id))
    assignment, campaign = _given(visit)
    row = find_own(visit, assignment)
    sheet = read_sheet(visit.body, completions=len(assignment.order))
    submission = to_submission(sheet, order=assignment.order, mode=campaign.settings.mode)
    visit.site.submissions.revise(row.label.id, visit.me.id, submission)
    return JSONResponse({"next": f"/c/{campaign.id}/mine"})


def find_own(visit: Visit, assignment: Assignment) -> LabelRow:
    """Return the own label of an assignment among the last ones.

    Raises:
        NotYoursError: there is none, or it is too old.
    """
    for row in visit.site.submissions.mine(visit.me.id, assignment.task.campaign_id, REVISABLE):
        if row.assignment.id == assignment.id:
            return row
    raise NotYoursError("there is no such label among your last ones")


def turns_of(prompt: Prompt) -> list[dict[str, str]]:
    """Return a prompt as turns to show; a plain one is the user's."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [{"role": turn["role"], "content": turn_text(turn)} for turn in prompt]


def _given(visit: Visit) -> tuple[Assignment, Campaign]:
    assignment = visit.site.queue.assignment(visit.part("assignment"), visit.me.id)
    if assignment is None:
        raise _not_yours()
    return assignment, visit.site.campaign(assignment.task.campaign_id)


def _not_yours() -> NotYoursError:
    return NotYoursError("there is no such task of yours")


def _page(
    visit: Visit,
    assignment: Assignment,
    campaign: Campaign,
    *,
    sheet: dict[str, Any] | None,
    label_id: str,
    sent: dict[str, Any] | None = None,
) -> Response:
    """Return the page of a task; of the task only prompt and answers go into it.

    `sent` is the label behind a correction that is not sent yet.
    """
    new, mode = assignment.task.new, campaign.settings.mode
    pace = own.pace(visit.site.database, visit.me.id, campaign.id)
    qualifying = assignment.purpose == "qualification"
    status = visit.site.queue.qualification(visit.me.id, campaign.id) if qualifying else None
    return render(
        visit,
        "task.html",
        campaign=campaign,
        assignment_id=assignment.id,
        mode=mode,
        turns=turns_of(new.prompt),
        chat=not isinstance(new.prompt, str),
        answers=[new.completions[index] for index in assignment.order],
        sheet=sheet,
        sent=sent,
        revising=bool(label_id),
        key=secrets.token_urlsafe(16),
        strengths=STRENGTHS,
        skip_reasons=SKIP_REASONS,
        qualification=status,
        pace=pace,
        share=own.share(visit.site.database, visit.me.id, campaign, pace),
    )
