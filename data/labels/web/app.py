"""The application: which page answers which address."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from data.errors import (
    InvalidLabelError,
    LabelConflictError,
    NotYoursError,
    RlhfError,
    StoreDownError,
)
from data.labels.campaign.accounts import IDLE_HOURS
from data.labels.live.relay import Relay
from data.labels.store.database import Database
from data.labels.web import views_admin as admin
from data.labels.web import views_entry as entry
from data.labels.web import views_label as label
from data.labels.web import views_live as live
from data.labels.web import views_review as review
from data.labels.web.pages import STATIC, render
from data.labels.web.security import LOOPBACK, Shield
from data.labels.web.sessions import BUSY, RETRY_AFTER, Handler, Needs, Visit, endpoint
from data.labels.web.site import Site

LOG = logging.getLogger(__name__)
_TITLES = {
    400: "That can't be read",
    403: "That is not allowed",
    404: "There is no such page",
    409: "Somebody was faster",
    413: "That is too large",
    422: "Something is missing",
    429: "Too fast",
    503: "One moment",
}


def create_app(
    database: Database,
    *,
    campaigns: Sequence[str] | None = None,
    secure: bool = False,
    allowed_hosts: Sequence[str] = LOOPBACK,
    idle_hours: float = IDLE_HOURS,
    relay: Relay | None = None,
) -> Starlette:
    """Return the pages for annotators and admins as an ASGI application.

    Limits are counted in the process: serve it with one.

    Args:
        database: where everything is.
        campaigns: names of those to serve; None serves all there are, also ones made later.
        secure: whether browsers come by https, here or at a proxy before it.
        allowed_hosts: names under which it may be asked for, without ports.
        idle_hours: after which a browser that does not come is signed out.
        relay: to the worker that answers live conversations.
    """
    app = Starlette(
        routes=_routes(),
        exception_handlers={HTTPException: _refuse, RlhfError: _refuse, Exception: _refuse},
    )
    # Around the page of an error of ours too, which Starlette sends from outside its middleware.
    guarded = app.build_middleware_stack()
    app.middleware_stack = Shield(guarded, secure=secure, allowed_hosts=allowed_hosts)
    app.state.site = Site(
        database, names=campaigns, secure=secure, idle_hours=idle_hours, relay=relay
    )
    return app


def _routes() -> list[BaseRoute]:
    return [
        Route("/health", entry.health, methods=["GET"]),
        _get("/", entry.home),
        _get("/invite/{token}", entry.invite, "nothing"),
        _post("/invite/{token}", entry.accept_invite, "nothing"),
        _get("/login", entry.sign_in, "nothing"),
        _post("/login", entry.send_sign_in, "nothing"),
        _post("/logout", entry.sign_out),
        _get("/account", entry.account),
        _post("/account", entry.set_password),
        _post("/account/notices/{notice}/dismiss", entry.dismiss_notice),
        _get("/help", entry.show_help, "nothing"),
        _get("/c/{campaign}/next", label.go_on),
        _get("/c/{campaign}/guidelines", label.guidelines),
        _post("/c/{campaign}/guidelines", label.accept_guidelines),
        _get("/c/{campaign}/mine", label.mine),
        _get("/c/{campaign}/end", label.end),
        _get("/c/{campaign}/talk", live.talk),
        _post("/c/{campaign}/talk", live.write),
        _post("/c/{campaign}/talk/draft", live.save_draft),
        _post("/c/{campaign}/talk/end", live.end),
        _get("/c/{campaign}/talk/{turn}", live.look),
        _get("/t/{assignment}", label.task),
        _post("/t/{assignment}/draft", label.save_draft),
        _post("/t/{assignment}/submit", label.submit),
        _post("/t/{assignment}/skip", label.skip),
        _get("/t/{assignment}/feedback", label.feedback),
        _get("/t/{assignment}/revise", label.revision),
        _post("/t/{assignment}/revise", label.revise),
        _post("/t/{assignment}/revise/draft", label.save_revision_draft),
        *_admin_routes(),
        Mount("/static/{version}", _Static(directory=STATIC)),
    ]


def _admin_routes() -> list[BaseRoute]:
    one = "/admin/campaigns/{campaign}"
    return [
        _get("/admin", admin.campaigns, "admin"),
        _get(one, admin.campaign, "admin"),
        _get(f"{one}/statistics", admin.statistics, "admin"),
        _get(f"{one}/giveaways", admin.giveaways, "admin"),
        _post(f"{one}/exports/{{what}}", admin.export, "admin"),
        _post(f"{one}/close", admin.close, "admin"),
        _get(f"{one}/wording", review.wording, "admin"),
        _post(f"{one}/title", review.set_title, "admin"),
        _post(f"{one}/guidelines", review.edit_guidelines, "admin"),
        _get(f"{one}/comparisons", review.comparisons, "admin"),
        _get(f"{one}/comparisons/{{task}}", review.comparison, "admin"),
        _post(f"{one}/comparisons/{{task}}/adjudicate", review.adjudicate, "admin"),
        _post(f"{one}/comparisons/{{task}}/undo", review.undo, "admin"),
        _get("/admin/annotators", admin.annotators, "admin"),
        _post("/admin/annotators/{annotator}/sign-out", admin.sign_out, "admin"),
        _post("/admin/annotators/{annotator}/remove-password", admin.remove_password, "admin"),
        _post("/admin/annotators/{annotator}/deactivate", admin.deactivate, "admin"),
        _post("/admin/invites", admin.invite, "admin"),
        _post("/admin/invites/{invite}/revoke", admin.revoke_invite, "admin"),
        _get("/admin/audit", admin.audit, "admin"),
    ]


def _get(path: str, handler: Handler, needs: Needs = "annotator") -> Route:
    return Route(path, endpoint(handler, needs=needs), methods=["GET"])


def _post(path: str, handler: Handler, needs: Needs = "annotator") -> Route:
    return Route(path, endpoint(handler, needs=needs), methods=["POST"])


class _Static(StaticFiles):
    """Our scripts and style; their address changes with them, so browsers keep them.

    What changes stands before the name, so that a script asks for its modules under it too.
    """

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["cache-control"] = "public, max-age=31536000, immutable"
        return response


async def _refuse(request: Request, error: Exception) -> Response:
    """Tell what went wrong, to our script or as a page."""
    status, why, headers = _told(error)
    if request.headers.get("accept") == "application/json":
        return JSONResponse({"error": why}, status_code=status, headers=headers)
    if status == 401:
        return RedirectResponse("/login", 303)
    response = await run_in_threadpool(partial(_error_page, request, status, why))
    response.headers.update(headers)
    return response


def _told(error: Exception) -> tuple[int, str, dict[str, str]]:
    if isinstance(error, HTTPException):
        why = "" if error.status_code == 404 else str(error.detail)
        return error.status_code, why, dict(error.headers or {})
    if isinstance(error, StoreDownError):
        LOG.warning("%s", error)  # its address and reason are not for everybody
        return 503, BUSY, RETRY_AFTER
    if not isinstance(error, RlhfError):
        return 500, "a fault of this program, told in the server's log; your draft is kept", {}
    kinds: list[tuple[type[Exception], int]] = [
        (NotYoursError, 404),
        (LabelConflictError, 409),
        (InvalidLabelError, 422),
        (RlhfError, 422),
    ]
    status = next(code for kind, code in kinds if isinstance(error, kind))
    return status, str(error), {}


def _error_page(request: Request, status: int, why: str) -> Response:
    site: Site = request.app.state.site
    visit = Visit(site, request, None)
    title: Any = _TITLES.get(status, "That did not work")
    return render(visit, "error.html", status=status, title=title, why=why)
