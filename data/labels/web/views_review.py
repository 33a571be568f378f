"""Pages on which admins look at labels, decide comparisons, and word a campaign."""

from __future__ import annotations

import secrets
from statistics import fmean
from typing import Any, cast
from urllib.parse import urlencode

from starlette.responses import RedirectResponse, Response

from data.errors import InvalidLabelError, LabelConflictError, UsageError
from data.labels.campaign.campaigns import LONGEST_TITLE
from data.labels.exchange.consolidation import majority_ranks
from data.labels.records import FLAGS, RATINGS, Campaign, LabelRow, Mode, Submission
from data.labels.review.adjudication import Adjudication, order_of
from data.labels.review.comparisons import Comparisons, Said, Wanted
from data.labels.web.forms import Sheet, from_submission, to_submission
from data.labels.web.pages import LETTERS, render
from data.labels.web.sessions import Visit
from data.labels.web.views_label import STRENGTHS, turns_of


def comparisons(visit: Visit) -> Response:
    """List what was labelled, by what is looked for."""
    one, wanted = visit.campaign(), _wanted(visit)
    store = Comparisons(visit.site.database)
    listing = store.find(one.id, wanted, page=_page_number(visit))
    return render(
        visit,
        "admin_comparisons.html",
        campaign=one,
        listing=listing,
        wanted=wanted,
        query=_query(wanted),
        annotators=store.annotators(one.id),
        flags=FLAGS,
    )


def comparison(visit: Visit) -> Response:
    """Show a comparison with all that was said of it."""
    return _comparison(visit)


def adjudicate(visit: Visit) -> Response:
    """Store an admin's word on a comparison."""
    one, task_id = visit.campaign(), visit.part("task")
    task, _ = Comparisons(visit.site.database).said(one.id, task_id)
    order = order_of(task.id, len(task.new.completions))
    sheet = None
    try:
        sheet = _sheet(visit, len(order))
        said = to_submission(sheet, order=order, mode=one.settings.mode)
        Adjudication(visit.site.database).decide(
            task_id, visit.me.id, said, instead_of=visit.field("instead_of")
        )
    except (InvalidLabelError, LabelConflictError) as error:
        status = 409 if isinstance(error, LabelConflictError) else 422
        return _comparison(visit, status=status, problem=str(error), sheet=sheet)
    return _back(visit)


def undo(visit: Visit) -> Response:
    """Take an admin's word on a comparison back."""
    one, task_id = visit.campaign(), visit.part("task")
    Comparisons(visit.site.database).said(one.id, task_id)  # of this campaign, which is served
    try:
        Adjudication(visit.site.database).undo(
            task_id, visit.me.id, label_id=visit.field("instead_of")
        )
    except LabelConflictError as error:
        return _comparison(visit, status=409, problem=str(error))
    return _back(visit)


def wording(visit: Visit) -> Response:
    """Show title and guidelines, to be changed."""
    return _wording(visit, visit.campaign())


def set_title(visit: Visit) -> Response:
    """Call a campaign something else."""
    one, title = visit.campaign(), visit.field("title")
    try:
        visit.site.store.set_title(one.id, title, by=visit.me.id)
    except UsageError as error:
        return _wording(visit, one, status=422, problem=str(error), title=title)
    return RedirectResponse(f"/admin/campaigns/{one.id}", 303)


def edit_guidelines(visit: Visit) -> Response:
    """Store other guidelines; what was typed is shown again where that is refused."""
    one, body = visit.campaign(), visit.field("guidelines")
    version = visit.field("version")
    if not (version.isascii() and version.isdigit() and len(version) < 10):
        raise UsageError("the page tells no version of the guidelines: load it again")
    try:
        visit.site.store.edit_guidelines(one.id, body, version=int(version), by=visit.me.id)
    except LabelConflictError as error:
        return _wording(visit, one, status=409, problem=str(error), typed=body)
    return RedirectResponse(f"/c/{one.id}/guidelines", 303)


def _wording(
    visit: Visit,
    one: Campaign,
    *,
    status: int = 200,
    problem: str = "",
    title: str | None = None,
    typed: str | None = None,
) -> Response:
    return render(
        visit,
        "admin_wording.html",
        status=status,
        campaign=one,
        problem=problem,
        title=one.title if title is None else title,
        typed=one.guidelines if typed is None else typed,
        longest=LONGEST_TITLE,
        fixed=visit.site.store.has_labels(one.id),
    )


def _comparison(
    visit: Visit, *, status: int = 200, problem: str = "", sheet: Sheet | None = None
) -> Response:
    one, task_id, wanted = visit.campaign(), visit.part("task"), _wanted(visit)
    store = Comparisons(visit.site.database)
    task, said = store.said(one.id, task_id)
    order = order_of(task.id, len(task.new.completions))
    counts = [each.row for each in said if each.counts]
    standing = next((row for row in counts if row.assignment.purpose == "adjudication"), None)
    labels = [row for row in counts if row.assignment.purpose == "label"]
    if sheet is not None:
        filled = sheet.model_dump()
    elif standing is not None:
        filled = from_submission(standing.label.submission, order=order)
    else:
        filled = from_submission(consensus(labels), order=order) if labels else {}
    before, after = store.neighbours(one.id, wanted, task_id)
    return render(
        visit,
        "admin_comparison.html",
        status=status,
        problem=problem,
        campaign=one,
        task=task,
        turns=turns_of(task.new.prompt),
        chat=not isinstance(task.new.prompt, str),
        answers=[task.new.completions[index] for index in order],
        policies=[task.new.policies[index] for index in order] if task.new.policies else [],
        said=[_line(each, order, one.settings.mode) for each in said],
        differ=len({tuple(row.label.submission.ranks) for row in labels}) > 1,
        standing=standing,
        decidable=bool(labels),
        filled=filled,
        mode=one.settings.mode,
        strengths=STRENGTHS,
        ratings=list(RATINGS),
        flags=FLAGS,
        key=secrets.token_urlsafe(16),
        query=_query(wanted),
        before=before,
        after=after,
    )


def consensus(labels: list[LabelRow]) -> Submission:
    """Return what labels of one task say together, for an admin to begin with."""
    given = [row.label.submission for row in labels]
    ranks = majority_ranks([one.ranks for one in given])
    rated = [one.ratings for one in given if one.ratings]
    strengths = [one.strength for one in given if one.strength is not None]
    half = len(given) / 2
    flags = [
        [name for name in FLAGS if sum(name in one.flags[i] for one in given if one.flags) > half]
        for i in range(len(ranks))
    ]
    strength = None
    if strengths:
        strength = max(1, round(fmean(strengths))) if len(set(ranks)) > 1 else 0
    ratings = [round(fmean(column)) for column in zip(*rated, strict=True)]
    return Submission("", ranks, ratings, flags, strength)


def _line(each: Said, order: list[int], mode: Mode) -> dict[str, Any]:
    """Return a label as a line of the page, its answers by the letters that they have there."""
    row, submission = each.row, each.row.label.submission
    tiers: dict[int, list[str]] = {}
    for place, index in enumerate(order):
        tiers.setdefault(submission.ranks[index], []).append(LETTERS[place])
    ranking = " > ".join(" = ".join(letters) for _, letters in sorted(tiers.items()))
    strength = STRENGTHS.get(submission.strength or 0) if mode == "pairs" else None
    rated = [str(submission.ratings[index]) for index in order] if submission.ratings else []
    flags = [
        f"{LETTERS[place]}: {FLAGS.get(flag, flag)}"
        for place, index in enumerate(order)
        for flag in (submission.flags[index] if submission.flags else [])
    ]
    return {
        "name": row.annotator.name,
        "purpose": row.assignment.purpose,
        "ranking": ranking if strength is None else f"{ranking}, {strength}",
        "rated": ", ".join(f"{LETTERS[i]} {one}" for i, one in enumerate(rated)),
        "flags": flags,
        "comment": submission.comment,
        "seconds": submission.seconds,
        "at": row.label.created_at,
        "revision": row.label.revision,
        "counts": each.counts,
    }


def _sheet(visit: Visit, count: int) -> Sheet:
    """Return what the form says; lists go by the place shown."""
    return Sheet(
        key=visit.field("key")[:64],
        tiers=[_number(visit, f"tier-{place}", count) for place in range(count)],
        ratings=[_number(visit, f"rating-{place}", RATINGS[-1]) for place in range(count)],
        flags=[
            [name for name in FLAGS if visit.field(f"flag-{place}-{name}")]
            for place in range(count)
        ],
        choice=_choice(visit),
        comment=visit.field("comment").replace("\r\n", "\n")[:4000],
    )


def _number(visit: Visit, field: str, most: int) -> int | None:
    """Return a field from 1 to a number, None where it is left out."""
    text = visit.field(field)
    if not text:
        return None
    if text not in map(str, range(1, most + 1)):
        raise InvalidLabelError(f"{field} is {text[:20]!r}; it is a number from 1 to {most}")
    return int(text)


def _choice(visit: Visit) -> int | None:
    text = visit.field("choice")
    if text and text not in map(str, range(-3, 4)):
        raise InvalidLabelError(f"choice is {text[:20]!r}; it is a number from -3 to 3")
    return int(text) if text else None


def _wanted(visit: Visit) -> Wanted:
    """Return what the address looks for.

    Raises:
        UsageError: there is nothing of that name.
    """
    annotator, flag = visit.query("annotator"), visit.query("flag")
    adjudicated = visit.query("adjudicated")
    if flag and flag not in FLAGS:
        raise UsageError(f"there is no flag {flag[:40]!r}: choose one of the list")
    if adjudicated not in ("", "yes", "no"):
        raise UsageError(f"adjudicated is {adjudicated[:40]!r}; it is yes or no, or left out")
    if annotator and all(one.id != annotator for one in visit.site.accounts.list()):
        raise UsageError("there is no such annotator: choose one of the list")
    return Wanted(
        disagreement=visit.query("disagreement") == "yes",
        annotator=annotator,
        flag=flag,
        comment=visit.query("comment") == "yes",
        adjudicated=cast(Any, adjudicated),
    )


def _query(wanted: Wanted) -> str:
    """Return what is looked for as it stands in an address."""
    fields = {
        "disagreement": "yes" if wanted.disagreement else "",
        "annotator": wanted.annotator,
        "flag": wanted.flag,
        "comment": "yes" if wanted.comment else "",
        "adjudicated": wanted.adjudicated,
    }
    return urlencode({name: value for name, value in fields.items() if value})


def _page_number(visit: Visit) -> int:
    text = visit.query("page")
    if text and not (text.isascii() and text.isdigit() and len(text) < 10):
        raise UsageError(f"there is no page {text[:20]!r} of the list")
    return int(text) if text else 1


def _back(visit: Visit) -> Response:
    """Show the comparison anew, so that going back and loading again send nothing."""
    query = _query(_wanted(visit))
    place = f"/admin/campaigns/{visit.part('campaign')}/comparisons/{visit.part('task')}"
    return RedirectResponse(f"{place}?{query}" if query else place, 303)
