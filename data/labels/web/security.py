"""What guards every request, before any page sees it.

Hosts: only names that we were told, so that no foreign name can be pointed at this machine (DNS
rebinding). Origin: what changes something must come from our own pages; together with a token in
every form (see `sessions`) and SameSite cookies. Bodies: at most `BODY_CAP`. Headers: a policy that
lets the browser load nothing but our own script and style.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_CAP = 64 * 1024
"""Bytes of a request's body."""
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
SAFE_METHODS = ("GET", "HEAD")

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
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
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
                if self.secure:
                    headers["strict-transport-security"] = "max-age=31536000"
            await send(message)

        refused = self._refusal(scope["method"], Headers(scope=scope))
        if refused is None:
            await self.app(scope, receive, send_guarded)
            return
        status, why = refused
        response = PlainTextResponse(why + "\n", status_code=status)
        await response(scope, receive, send_guarded)

    def _refusal(self, method: str, headers: Headers) -> tuple[int, str] | None:
        host = headers.get("host", "").lower()
        if not self._is_ours(_name(host)):
            return 400, "this host name is not served here"
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            return 400, "the length of the body is no number"
        if int(length) > BODY_CAP:
            return 413, f"too large: at most {BODY_CAP} bytes"
        if method in SAFE_METHODS:
            return None
        if method != "POST":
            return 405, "only GET and POST are answered"
        origin = urlsplit(headers.get("origin", ""))
        scheme = "https" if self.secure else "http"
        if (origin.scheme, origin.netloc.lower()) != (scheme, host):
            return 403, "this request does not come from a page of this site"
        return None

    def _is_ours(self, name: str) -> bool:
        return any(
            name == host or (host.startswith("*.") and name.endswith(host[1:]))
            for host in self.allowed_hosts
        )


def _name(host: str) -> str:
    """Return a Host header without its port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]
