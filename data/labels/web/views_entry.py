"""Coming in and going out: invites, signing in, the campaigns to choose from, help."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from data.errors import NotYoursError, RlhfError, StoreDownError
from data.labels.campaign.notices import dismiss
from data.labels.names import skeleton
from data.labels.web import own
from data.labels.web.pages import render
from data.labels.web.sessions import Visit, forget_cookie, hold, set_cookie

_HELP = Path(__file__).parents[1] / "ANNOTATORS.md"


async def health(_request: Request) -> Response:
    """Say that the server is up; without a thread, so that nothing is in its way."""
    return JSONResponse({"status": "ok"})


def home(visit: Visit) -> Response:
    """Go to the only campaign, or show which there are."""
    campaigns = visit.site.campaigns()
    if len(campaigns) == 1 and visit.me.role == "annotator":
        return RedirectResponse(f"/c/{campaigns[0].id}/next", 303)
    paces = [own.pace(visit.site.database, visit.me.id, one.id) for one in campaigns]
    return render(visit, "home.html", campaigns=list(zip(campaigns, paces, strict=True)))


def invite(visit: Visit) -> Response:
    """Show the door: only the button uses the invite up, since mail programs open links."""
    return render(visit, "invite.html", problem="")


def accept_invite(visit: Visit) -> Response:
    """Use an invite up and sign in."""
    hold(visit.site.limits.invite.wait(visit.client))
    try:
        _, token, _ = visit.site.accounts.accept(visit.part("token"), visit.client)
    except NotYoursError as error:
        visit.site.limits.invite.take(visit.client)
        return render(visit, "invite.html", status=403, problem=str(error))
    return _signed_in(visit, token)


def sign_in(visit: Visit) -> Response:
    """Ask for name and password."""
    if visit.session is not None:
        return RedirectResponse("/", 303)
    return render(visit, "login.html", problem="", name="")


def send_sign_in(visit: Visit) -> Response:
    """Check name and password."""
    name = visit.field("name")[:200]
    # One name has one limit, however it is written.
    for key in (f"from {visit.client}", f"name {skeleton(name)}"):
        hold(visit.site.limits.sign_in.take(key))
    try:
        _, token, _ = visit.site.accounts.login(name, visit.field("password"), visit.client)
    except NotYoursError as error:
        return render(visit, "login.html", status=403, problem=str(error), name=name)
    return _signed_in(visit, token)


def sign_out(visit: Visit) -> Response:
    """End this session."""
    assert visit.session is not None
    visit.site.accounts.revoke(visit.session.id, by=visit.me.id)
    response = RedirectResponse("/login", 303)
    forget_cookie(response, visit.site)
    return response


def account(visit: Visit) -> Response:
    """Show how to set a password and how to sign out."""
    return _account(visit)


def set_password(visit: Visit) -> Response:
    """Set the password to sign in with from now on; other browsers are signed out."""
    assert visit.session is not None
    hold(visit.site.limits.sign_in.take(f"password {visit.me.id}"))
    password = visit.field("password")
    if password != visit.field("again"):
        return _account(visit, status=422, problem="the two passwords differ")
    try:
        visit.site.accounts.set_password(
            visit.me.id, password, old=visit.field("old"), keep=visit.session.id
        )
    except StoreDownError:
        raise
    except RlhfError as error:
        return _account(visit, status=422, problem=str(error))
    return _account(visit, done=True)


def _account(visit: Visit, *, status: int = 200, problem: str = "", done: bool = False) -> Response:
    has_password = visit.me.id in visit.site.accounts.with_password()
    return render(
        visit, "account.html", status=status, problem=problem, done=done, has_password=has_password
    )


def dismiss_notice(visit: Visit) -> Response:
    """Tell no more of a sign-in."""
    assert visit.session is not None
    dismiss(visit.site.database, visit.part("notice"), visit.session)
    return RedirectResponse("/", 303)


def show_help(visit: Visit) -> Response:
    """Show the page for annotators."""
    return render(visit, "help.html", text=_help())


@cache
def _help() -> str:
    return _HELP.read_text(encoding="utf-8")


def _signed_in(visit: Visit, token: str) -> Response:
    # A session that this browser had before, perhaps somebody else's, ends.
    if visit.session is not None:
        visit.site.accounts.revoke(visit.session.id, by=visit.me.id)
    response = RedirectResponse("/", 303)
    set_cookie(response, visit.site, token)
    return response
