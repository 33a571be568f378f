"""Pages for admins: campaigns, annotators, statistics, exports, the audit log."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from data.errors import RlhfError, StoreDownError, UsageError
from data.labels.agreement import statistics_text
from data.labels.agreement.statistics import FIGURES, PLAIN, LabelStatistics, label_statistics
from data.labels.exchange.consolidation import Consolidation
from data.labels.exchange.exporting import MOST_HELDOUT, ExportSettings, What, export_parts
from data.labels.exchange.training_rows import Margin
from data.labels.records import Campaign, Role
from data.labels.store.audit import Audit
from data.labels.web import overview
from data.labels.web.pages import render
from data.labels.web.sessions import Visit

EXPORTS: dict[What, str] = {
    "rankings": "Rankings, all there is; what the reward stage and the import read",
    "preferences": "Preference pairs for TRL",
    "hh": "Preference pairs as Human:/Assistant: dialogues",
    "ties": "Ties",
    "unpaired": "Unpaired rows for KTO",
    "csv": "Spreadsheet",
}
_MEDIA = {
    "csv": "text/csv; charset=utf-8",
    "jsonl": "application/x-ndjson",
    "zip": "application/zip",
}
_ENTRIES = 200
_GIVEAWAYS = 100
_HOURS = 72.0


def campaigns(visit: Visit) -> Response:
    """Show all campaigns with their progress."""
    rows = [(one, visit.site.store.progress(one.id)) for one in visit.site.campaigns()]
    return render(visit, "admin_campaigns.html", rows=rows)


def campaign(visit: Visit) -> Response:
    """Show one campaign."""
    one = visit.campaign()
    return render(
        visit,
        "admin_campaign.html",
        campaign=one,
        progress=visit.site.store.progress(one.id),
        exports=EXPORTS,
        consolidations=get_args(Consolidation),
        margins=get_args(Margin),
        most_heldout=MOST_HELDOUT,
        problem="",
    )


def close(visit: Visit) -> Response:
    """Give out no more tasks of a campaign."""
    one = visit.campaign()
    visit.site.store.close(one.id, by=visit.me.id)
    return RedirectResponse(f"/admin/campaigns/{one.id}", 303)


def giveaways(visit: Visit) -> Response:
    """Show the answers that tell who wrote them."""
    one = visit.campaign()
    found = overview.find_giveaways(visit.site.database, one.id, limit=_GIVEAWAYS)
    return render(visit, "admin_giveaways.html", campaign=one, found=found)


def statistics(visit: Visit) -> Response:
    """Show the report on a campaign's labels."""
    one = visit.campaign()
    report = _report(visit, one)
    return render(
        visit,
        "admin_statistics.html",
        campaign=one,
        report=report,
        lines=statistics_text.lines(report),
        summary=statistics_text.summary(report),
        columns=[(name, FIGURES[name][0]) for name in statistics_text.COLUMNS],
        plain=PLAIN,
    )


def _report(visit: Visit, one: Campaign) -> LabelStatistics:
    submissions = visit.site.submissions
    tasks = visit.site.store.progress(one.id).tasks
    labels, skips = submissions.labels(one.id), submissions.skips(one.id)
    return label_statistics(labels, skips, campaign=one.name, n_tasks=tasks)


def export(visit: Visit) -> Response:
    """Send an export; the address holds ids and one of the known kinds, never a path."""
    one = visit.campaign()
    what = next((kind for kind in EXPORTS if kind == visit.part("what")), None)
    if what is None:
        raise HTTPException(404)
    settings = _export_settings(visit, what)
    parts, _ = export_parts(visit.site.submissions.labels(one.id), settings)
    with visit.site.database.write() as connection:
        Audit(visit.site.database).write(
            connection, visit.me.id, "export", one.id,
            what=what, how=settings.consolidation, blind=settings.blind,
        )  # fmt: skip
    kind = "csv" if what == "csv" else "jsonl" if len(parts) == 1 else "zip"
    return Response(
        _packed(parts) if kind == "zip" else _text(next(iter(parts.values()))),
        media_type=_MEDIA[kind],
        headers={"content-disposition": f'attachment; filename="{one.id}-{what}.{kind}"'},
    )


def _export_settings(visit: Visit, what: What) -> ExportSettings:
    """Return what the form asks, which is what `rlhf label export` takes.

    Raises:
        UsageError: a field holds what can't be asked.
    """
    try:
        heldout = float(visit.field("heldout") or 0)
    except ValueError:
        raise UsageError("the held-out share is no number") from None
    chosen: dict[str, Any] = {
        "consolidation": visit.field("consolidation") or "per_annotator",
        "margin": visit.field("margin") or "none",
    }
    return ExportSettings(
        what,
        blind=visit.field("blind") == "yes",
        implicit=visit.field("implicit") == "yes",
        heldout=heldout,
        **chosen,
    )


def _text(lines: Iterable[str]) -> bytes:
    return "".join(lines).encode("utf-8")


def _packed(parts: Mapping[str, Iterable[str]]) -> bytes:
    """Return several files as one that a browser can take."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, lines in parts.items():
            archive.writestr(name, _text(lines))
    return packed.getvalue()


def annotators(visit: Visit) -> Response:
    """Show who labels and who is invited."""
    return _annotators(visit)


def invite(visit: Visit) -> Response:
    """Make an invite, and show its link this once."""
    role: Role = "admin" if visit.field("role") == "admin" else "annotator"
    try:
        hours = float(visit.field("hours") or _HOURS)
        if hours != hours:
            raise ValueError("not a number")
    except ValueError:
        return _annotators(visit, status=422, problem="the hours are no number")
    try:
        made, token = visit.site.accounts.invite(role, visit.field("name"), hours, visit.me.id)
    except StoreDownError:
        raise
    except RlhfError as error:
        return _annotators(visit, status=422, problem=str(error))
    scheme = "https" if visit.site.secure else "http"
    link = f"{scheme}://{visit.request.headers['host']}/invite/{token}"
    return _annotators(visit, link=link, invited=made.name)


def revoke_invite(visit: Visit) -> Response:
    """Make an invite void."""
    visit.site.accounts.revoke_invite(visit.part("invite"), by=visit.me.id)
    return RedirectResponse("/admin/annotators", 303)


def sign_out(visit: Visit) -> Response:
    """End all sessions of an annotator, and make their unused invites void."""
    visit.site.accounts.revoke_all(visit.part("annotator"), by=visit.me.id)
    return RedirectResponse("/admin/annotators", 303)


def remove_password(visit: Visit) -> Response:
    """Let an annotator in by a new invite alone, where they set a password anew."""
    if visit.part("annotator") == visit.me.id:
        raise UsageError("you can't remove your own password: change it under your name")
    visit.site.accounts.remove_password(visit.part("annotator"), by=visit.me.id)
    return RedirectResponse("/admin/annotators", 303)


def deactivate(visit: Visit) -> Response:
    """Let an annotator in no more; their labels stay."""
    if visit.part("annotator") == visit.me.id:
        raise UsageError("you can't deactivate yourself")
    visit.site.accounts.deactivate(visit.part("annotator"), by=visit.me.id)
    return RedirectResponse("/admin/annotators", 303)


def audit(visit: Visit) -> Response:
    """Show the last entries of the audit log."""
    entries = list(Audit(visit.site.database).entries(limit=_ENTRIES))
    names = {one.id: one.name for one in visit.site.accounts.list()}
    names |= {one.id: one.name for one in visit.site.campaigns()}
    return render(visit, "admin_audit.html", entries=entries, names=names)


def _annotators(
    visit: Visit, *, status: int = 200, problem: str = "", link: str = "", invited: str = ""
) -> Response:
    now = visit.site.database.now()
    waiting = [
        one
        for one in visit.site.accounts.invites()
        if one.used_at is None and one.revoked_at is None and one.expires_at > now
    ]
    return render(
        visit,
        "admin_annotators.html",
        status=status,
        accounts=visit.site.accounts.list(),
        with_password=visit.site.accounts.with_password(),
        done=overview.done_by(visit.site.database),
        invites=waiting,
        problem=problem,
        link=link,
        invited=invited,
        hours=_HOURS,
    )
