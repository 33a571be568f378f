"""What guards every request, before any page sees it.

Hosts: only names that we were told, so that no foreign name can be pointed at this machine (DNS
rebinding). Origin: what changes something must come from our own pages; together with a token in
every form (see `sessions`) and SameSite cookies. Bodies: at most `BODY_CAP`. Text: neither NUL nor
half a character, which a database refuses. Headers: a policy that lets the browser load nothing but
our own script and style; every answer has them, errors too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_CAP = 64 * 1024
"""Bytes of a request's body."""
HEADER_CAP = 32 * 1024
"""Bytes of a request's address and headers."""
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
SAFE_METHODS = ("GET", "HEAD")

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Not no-referrer: that makes browsers send "Origin: null" with our own forms. Other sites are
    # told nothing either way.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
}
# NUL, and the bytes of a surrogate: plain, by percent, or as cookies write them.
_NO_TEXT = re.compile(rb"\x00|%00|\\000|(?:\xed|%ed)(?:[\xa0-\xbf]|%[ab][0-9a-f])", re.IGNORECASE)
_HOST = re.compile(r"([^:\[\]]+|\[[^\[\]]*\])(?::\d{1,5})?")


class Shield:
    """ASGI middleware around everything.

    Args:
        app: what it guards.
        secure: whether browsers come by https.
        allowed_hosts: names without ports; `*.example.org` takes all below it.
    """

    def __init__(self, app: ASGIApp, *, secure: bool, allowed_hosts: Sequence[str]) -> None:
        self.app = app
        self.secure = secure
        self.allowed_hosts = [host.lower() for host in allowed_hosts]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
                if self.secure:
                    headers["strict-transport-security"] = "max-age=31536000"
            await send(message)

        # Whatever a proxy says of it: where we send on, we send on to https.
        scope["scheme"] = "https" if self.secure else "http"
        refused = _unreadable(scope) or self._refusal(scope["method"], Headers(scope=scope))
        if refused is None:
            await self.app(scope, receive, send_guarded)
            return
        status, why = refused
        headers = {"connection": "close"}  # what follows may be a part of its body
        response = PlainTextResponse(why + "\n", status_code=status, headers=headers)
        await response(scope, receive, send_guarded)

    def _refusal(self, method: str, headers: Headers) -> tuple[int, str] | None:
        host = headers.get("host", "").lower()
        named = _HOST.fullmatch(host)
        if named is None or not self._is_ours(named[1]):
            return 400, "this host name is not served here"
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            return 400, "the length of the body is no number"
        if "content-length" in headers and "transfer-encoding" in headers:
            return 400, "the length of the body is given in two ways"
        if len(length) > 18 or int(length) > BODY_CAP:
            return 413, f"too large: at most {BODY_CAP} bytes"
        if method in SAFE_METHODS:
            return None
        if method != "POST":
            return 405, "only GET and POST are answered"
        if headers.get("origin", "").lower() != f"http{'s' * self.secure}://{host}":
            return 403, "this request does not come from a page of this site"
        return None

    def _is_ours(self, name: str) -> bool:
        return any(
            name == host or (host.startswith("*.") and name.endswith(host[1:]))
            for host in self.allowed_hosts
        )


def _unreadable(scope: Scope) -> tuple[int, str] | None:
    path = scope.get("raw_path") or scope["path"].encode("utf-8", "surrogatepass")
    texts = [path, scope["query_string"], *(part for pair in scope["headers"] for part in pair)]
    if sum(map(len, texts)) > HEADER_CAP:
        return 431, f"the address and the headers are too large: at most {HEADER_CAP} bytes"
    if any(_NO_TEXT.search(text) for text in texts):
        return 400, "the address or a header holds what is no text"
    return None
