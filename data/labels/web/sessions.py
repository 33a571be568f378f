"""Who asks: the session's cookie, the token of its forms, roles, and the thread that answers.

Pages are plain functions of a `Visit`. They run in a thread, since the database blocks; the body is
read before, up to its cap. A request that gets no thread in time is refused, to be sent again.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response

from data.labels.campaign.accounts import SESSION_HOURS
from data.labels.records import Annotator, Campaign, Session
from data.labels.web.security import BODY_CAP
from data.labels.web.site import Site

BUSY = "the labels can't be reached or kept just now: your draft is kept, try again in some seconds"
RETRY_AFTER = {"retry-after": "5"}
_THREAD_SECONDS = 5.0
"""How long a request waits for a thread."""
MOST_FIELDS = 200
"""Of a form: nine answers with a rank, a rating and all flags each are the most."""
_LONGEST_PART = 64
"""Characters; ids and tokens have fewer, and no index of PostgreSQL takes thousands."""

Needs = Literal["nothing", "annotator", "admin"]


@dataclass(frozen=True)
class Visit:
    """A request with who makes it.

    Attributes:
        session: None where nobody is signed in.
        body: of a POST; else empty.
    """

    site: Site
    request: Request
    session: Session | None
    body: bytes = b""

    @property
    def me(self) -> Annotator:
        """Who is signed in."""
        assert self.session is not None
        return self.session.annotator

    @property
    def client(self) -> str:
        """The address that the request comes from."""
        return self.request.client.host if self.request.client else "?"

    @property
    def wants_json(self) -> bool:
        """Whether our script asks, and not the browser itself."""
        return self.request.headers.get("accept") == "application/json"

    def part(self, name: str) -> str:
        """Return a part of the address.

        Raises:
            HTTPException: 404, it holds what no id does and databases refuse.
        """
        part = str(self.request.path_params[name])
        if len(part) > _LONGEST_PART or not part.isprintable():
            raise HTTPException(404)
        return part

    def field(self, name: str) -> str:
        """Return a field of the form that was sent, or ""; status 400 where it holds no text."""
        return _fields(self.body).get(name, "")

    def query(self, name: str) -> str:
        """Return what the address says behind its "?", or ""."""
        return str(self.request.query_params.get(name, ""))

    def campaign(self) -> Campaign:
        """Return the campaign that the address names, if it is served here."""
        return self.site.campaign(self.part("campaign"))


Handler = Callable[[Visit], Response]


def endpoint(
    handler: Handler, *, needs: Needs = "annotator"
) -> Callable[[Request], Awaitable[Response]]:
    """Return what Starlette calls for a page.

    Args:
        handler: the page.
        needs: who may see it; "nothing" is anybody. Others are sent to sign in, and annotators are
            told that there is no such page where admins are needed.
    """

    async def answer(request: Request) -> Response:
        body = await _read(request) if request.method == "POST" else b""
        site: Site = request.app.state.site
        work = site.threads.submit(_answer, request, body, handler, needs)
        done = asyncio.wrap_future(work)
        await asyncio.wait({done}, timeout=_THREAD_SECONDS)
        if work.cancel():  # it had not begun
            raise HTTPException(503, BUSY, headers=RETRY_AFTER)
        return await done

    return answer


def _answer(request: Request, body: bytes, handler: Handler, needs: Needs) -> Response:
    site: Site = request.app.state.site
    token = request.cookies.get(cookie_name(site), "")
    session = site.accounts.session(token) if token else None
    visit = Visit(site, request, session, body)
    if needs != "nothing":
        if session is None:
            if visit.wants_json:
                raise HTTPException(401, "you are signed out: sign in again, your draft is kept")
            return RedirectResponse("/login", 303)
        if needs == "admin" and session.annotator.role != "admin":
            raise HTTPException(404)
    if request.method == "POST" and session is not None and needs != "nothing":
        sent = request.headers.get("x-csrf-token") or visit.field("csrf")
        if not hmac.compare_digest(sent.encode(), session.csrf.encode()):
            raise HTTPException(403, "the page is too old: reload it and try again")
    return handler(visit)


async def _read(request: Request) -> bytes:
    parts, size = [], 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > BODY_CAP:
                raise HTTPException(413, f"too large: at most {BODY_CAP} bytes")
            parts.append(chunk)
    except ClientDisconnect:
        raise HTTPException(400, "the request ended in its middle") from None
    return b"".join(parts)


def _fields(body: bytes) -> dict[str, str]:
    try:
        text = body.decode("ascii")
        fields = dict(
            parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MOST_FIELDS)
        )
    except ValueError:
        raise HTTPException(400, "the form can't be read") from None
    refuse_nul(text, *fields, *fields.values())
    return fields


def refuse_nul(*texts: str) -> None:
    """Refuse, with status 400, texts that no database keeps."""
    if any("\0" in text for text in texts):
        raise HTTPException(400, "what was sent holds the character NUL")


def hold(wait: float) -> None:
    """Refuse the request if a limit says that there are seconds to wait.

    Raises:
        HTTPException: 429, with the seconds.
    """
    if wait > 0:
        seconds = math.ceil(wait)
        raise HTTPException(
            429, f"too many tries: wait {seconds} s", headers={"retry-after": str(seconds)}
        )


def cookie_name(site: Site) -> str:
    """Return the name of the cookie; browsers share cookies between the ports of a host."""
    mark = hashlib.sha256(site.database.url.encode()).hexdigest()[:8]
    return f"__Host-labels-{mark}" if site.secure else f"labels-{mark}"


def set_cookie(response: Response, site: Site, token: str) -> None:
    """Sign the browser in."""
    response.set_cookie(
        cookie_name(site),
        token,
        max_age=int(SESSION_HOURS * 3600),
        path="/",
        secure=site.secure,
        httponly=True,
        samesite="lax",
    )


def forget_cookie(response: Response, site: Site) -> None:
    """Sign the browser out."""
    response.delete_cookie(
        cookie_name(site), path="/", secure=site.secure, httponly=True, samesite="lax"
    )
