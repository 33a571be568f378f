"""JSON from an HTTP server, with further tries where a failure may pass: the client of them all.

What may pass is no connection, no whole answer in time, one that is cut off, the statuses `PASSING`
and all from 500 on. It is tried again after 1, 2, 4 ... seconds, or as many as the server asks for
by `Retry-After`, `LONGEST_WAIT` at most. No redirect is followed: what is sent, a key among it, is
for the address that the user gave. What is told of a server is one short line without the key,
whatever it said.
"""

from __future__ import annotations

import http.client
import io
import logging
import re
import reprlib
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from html import unescape
from time import monotonic, sleep
from typing import Any
from urllib.parse import unquote_plus, urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3 import Retry
from urllib3.exceptions import HTTPError, InvalidHeader

from data.json_lines import parse_json

PASSING = (408, 409, 425, 429)
"""Statuses below 500 that another try may get over."""
LONGEST_WAIT = 60.0
"""Seconds between two tries, at most."""
MOST_BYTES = 32 << 20
"""Of an answer that are read; as values of Python they take up to 25 times as much."""
_READ_TO_SHOW = 4096
_NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST")
_NO_BUNDLE = "NO_CERTIFICATE_OR_CRL_FOUND"
_SHORTEST_SECRET = 6
"""Characters; shorter keys, such as `none`, are no secret and stand in many a text."""
_PART_OF_SECRET = 8
"""Characters in a row of a longer key that are told no more than all of it."""
_WRITTEN = re.compile(
    r"\\{1,2}u([0-9a-f]{4})|%([0-9a-f]{2})|&#\d{1,6};|&#x[0-9a-f]{1,5};"
    r"|&(?:amp|lt|gt|quot);|\\{1,2}.|.",
    re.DOTALL | re.IGNORECASE,
)
_RETRY = Retry()
# It warns of headers that it can't parse, with a traceback and all that the server sent.
logging.getLogger("urllib3").setLevel(logging.ERROR)


class HttpError(Exception):
    """There is no answer that can be used, and why.

    Attributes:
        status: of the answer, if there was one.
        slow: whether it took too long.
        after: seconds until another try, as the server asks for.
    """

    def __init__(
        self, why: str, status: int | None = None, *, slow: bool = False, after: float = 0.0
    ) -> None:
        super().__init__(why)
        self.status, self.slow, self.after = status, slow, after


class RefusedError(HttpError):
    """The server said no, and would say so again."""


class WrongAnswerError(HttpError):
    """The server answered with something else than JSON; says with what."""


class UnansweredError(HttpError):
    """All tries failed; says how the last one did."""


def ask_json(
    url: str,
    body: bytes | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    timeout: float,
    retries: int = 0,
    proxies: bool = True,
) -> Any:
    """Return the JSON of a server's answer.

    Args:
        url: where to.
        body: JSON to POST; None is a GET.
        headers: sent beside those of JSON.
        timeout: seconds that one try may take, the last byte of its answer included.
        retries: further tries after the first.
        proxies: whether those of the environment are used.

    Raises:
        RefusedError: a status that no other try gets over, or an address that can't be asked.
        WrongAnswerError: no JSON, or more than `MOST_BYTES`.
        UnansweredError: of the last try.
    """
    one = _Try(url, body, {"Content-Type": "application/json", **(headers or {})}, timeout, proxies)
    for tried in range(retries + 1):
        try:
            return one.made()
        except UnansweredError as failure:
            if tried == retries:
                raise
            sleep(min(max(2.0 ** min(tried, 10), failure.after), LONGEST_WAIT))
    raise AssertionError("unreachable")


def without_secrets(text: str, url: str, headers: Mapping[str, str]) -> str:
    """Return a text with stars in place of what only the asked server may know, or a part of it.

    That is what the headers say, but for the type of the content, and each part of the URL's query.
    """
    sent = {value.rpartition(" ")[2] for name, value in headers.items() if name != "Content-Type"}
    asked = re.split("[&=]", urlsplit(url).query)
    parts: set[str] = set()
    for secret in sent.union(asked, map(unquote_plus, asked)):
        signs = [meant for _, meant in _signs(secret)]
        size = min(len(signs), _PART_OF_SECRET)
        if size >= _SHORTEST_SECRET:
            parts.update("".join(signs[n : n + size]) for n in range(len(signs) - size + 1))
    shown = _signs(text)
    meant = "".join(sign for _, sign in shown)
    hidden = {
        place
        for size in {len(part) for part in parts}
        for n in range(len(meant) - size + 1)
        if meant[n : n + size] in parts
        for place in range(n, n + size)
    }
    return "".join("*" if n in hidden else written for n, (written, _) in enumerate(shown))


def _signs(text: str) -> list[tuple[str, str]]:
    """Return the characters of a text, as they are written and as they are meant.

    A key that was sent in one way comes back in another: as in addresses, JSON, HTML.
    """
    return [(found[0], _meant(found)) for found in _WRITTEN.finditer(text)]


def _meant(sign: re.Match[str]) -> str:
    if code := sign[1] or sign[2]:
        return chr(int(code, 16))
    # A number that names no character is unescaped to nothing.
    return (unescape(sign[0]) or " ") if sign[0][0] == "&" else sign[0][-1]


def shown_answer(answer: Any, url: str, headers: Mapping[str, str] | None = None) -> str:
    """Return an answer in short, without what only the asked server may know."""
    short = _Short()
    short.clean = partial(without_secrets, url=url, headers=headers or {})
    return short.repr(answer)


class _Short(reprlib.Repr):
    clean: Callable[[str], str]

    def repr_str(self, x: str, level: int) -> str:
        return super().repr_str(self.clean(x), level)


class _Reader(io.RawIOBase):
    """Reads a socket until its timeout has passed in all, and no more than `MOST_BYTES`."""

    def __init__(self, connection: socket.socket) -> None:
        self.raw = connection.makefile("rb", buffering=0)
        self.until = monotonic() + (connection.gettimeout() or 0.0)
        self.left = MOST_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        count = self.raw.readinto(buffer)
        self.left -= count or 0
        if self.left < 0:
            raise _too_long()
        if monotonic() > self.until:
            raise TimeoutError
        return count

    def close(self) -> None:
        self.raw.close()
        super().close()


class _Answer(http.client.HTTPResponse):
    """An answer of which the parts that http.client sets no bound to have one: all of them."""

    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp.close()
        self.fp = io.BufferedReader(_Reader(sock))

    def _read_status(self) -> tuple[str, int, str]:
        """Pass over what comes before an answer, of which http.client knows 100 alone."""
        version, status, reason = super()._read_status()  # type: ignore[misc]
        before = 100 < status < 200 and status != http.HTTPStatus.SWITCHING_PROTOCOLS
        return version, http.HTTPStatus.CONTINUE if before else status, reason


class _Adapter(HTTPAdapter):
    def get_connection_with_tls_context(self, *args: Any, **options: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **options)
        pool.ConnectionCls = type("Bounded", (pool.ConnectionCls,), {"response_class": _Answer})
        return pool


class _Session(requests.Session):
    def __init__(self, *, proxies: bool) -> None:
        super().__init__()
        self.trust_env = proxies
        for scheme in ("http://", "https://"):
            self.mount(scheme, _Adapter())

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Say that there is none: else it is prepared, and the whole body read, unfollowed too."""


@dataclass(frozen=True)
class _Try:
    """What every try sends, and what is told of its answer."""

    url: str
    body: bytes | None
    headers: Mapping[str, str]
    timeout: float
    proxies: bool

    def made(self) -> Any:
        """Return the JSON of the answer to one try.

        Neither requests nor Retry knows a time for all of a try: theirs begins anew with each byte,
        looking up a name has none, and Retry's tries end where an answer's body begins. So a try
        has a thread of its own, which is left behind where it takes too long, and tries are counted
        elsewhere. `_Reader` ends a thread that was left behind before it has taken as long again.
        """
        outcome: Future[Any] = Future()
        refused: list[HttpError] = []

        def run() -> None:
            try:
                outcome.set_result(self._exchange(refused))
            except BaseException as error:  # raised where the result is waited for
                outcome.set_exception(error)

        threading.Thread(target=run, name="http", daemon=True).start()
        try:
            return outcome.result(self.timeout)
        # Not `from` it: a log shows causes too, and their texts may hold the key.
        except (OSError, HTTPError, http.client.HTTPException, ValueError) as error:
            raise (refused[0] if refused else self._failure(_first_cause(error))) from None

    def _exchange(self, refused: list[HttpError]) -> Any:
        """Ask; note that the server refused before the words for it are read, which may stall."""
        with _Session(proxies=self.proxies) as session, self._answer(session) as answer:
            if not 200 <= answer.status_code < 300:
                refused.append(self._refusal(answer, ""))
                words = b"" if answer.is_redirect else _read(answer, _READ_TO_SHOW)
                raise self._refusal(answer, words.decode("utf-8", "replace"))
            content = _read(answer, MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise _too_long()
        try:
            return parse_json(content)
        except ValueError:
            shown = self._shown(content[:_READ_TO_SHOW].decode("utf-8", "replace"))
            raise WrongAnswerError(repr(shown), answer.status_code) from None

    def _answer(self, session: requests.Session) -> requests.Response:
        try:
            return session.request(
                "GET" if self.body is None else "POST",
                self.url,
                data=self.body,
                headers=self.headers,
                auth=lambda request: request,  # else a ~/.netrc takes the place of the key
                timeout=self.timeout,
                allow_redirects=False,
                stream=True,
            )
        except ValueError as error:  # its text may hold the key
            if getattr(error, "request", None) and isinstance(
                error, requests.exceptions.InvalidHeader
            ):
                raise UnansweredError("its headers contradict each other") from None
            raise RefusedError(
                "no request can be made of this address and key, or of HTTP_PROXY and HTTPS_PROXY"
            ) from None

    def _refusal(self, answer: requests.Response, words: str) -> HttpError:
        status = answer.status_code
        what = f"status {status} {self._shown(answer.reason or '')}".strip()
        if answer.is_redirect:
            to = self._shown(answer.headers["Location"], most=200)
            return RefusedError(f"{what}, it sends on to {to}: give the address it has now", status)
        shown = self._shown(words, most=200)
        what += f" ({shown})" if shown else ""
        if status in PASSING or status >= 500:
            after = _after(answer.headers.get("Retry-After", ""))
            return UnansweredError(what, status, after=after)
        return RefusedError(what, status)

    def _failure(self, cause: BaseException) -> HttpError:
        if isinstance(cause, TimeoutError):
            return UnansweredError(
                f"timed out: no whole answer in {self.timeout:g} seconds", slow=True
            )
        if isinstance(cause, ssl.SSLCertVerificationError):
            return RefusedError(
                f"its certificate is not trusted ({cause.verify_message}); look at the address, or "
                "name the file of who signed it in the environment variable REQUESTS_CA_BUNDLE"
            )
        if "CA certificate bundle" in str(cause) or getattr(cause, "reason", None) == _NO_BUNDLE:
            return RefusedError(
                "REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE of the environment names no file of "
                "certificates"
            )
        if getattr(cause, "reason", None) in _NO_TLS:
            return RefusedError("it does not speak TLS: its address may begin with http://")
        why = getattr(cause, "strerror", None) or f"{type(cause).__name__}: {cause}"
        return UnansweredError(self._shown(why, most=200))

    def _shown(self, text: str, *, most: int = 80) -> str:
        """Return the start of a text in one line, without the key, that any terminal can show."""
        known = without_secrets(text, self.url, self.headers)
        line = " ".join("".join(c if c.isprintable() else " " for c in known).split())
        return line if len(line) <= most else f"{line[:most]}..."


def _too_long() -> WrongAnswerError:
    return WrongAnswerError(f"more than {MOST_BYTES:,} bytes")


def _read(answer: requests.Response, most: int) -> bytearray:
    content = bytearray()
    for part in answer.iter_content(1 << 16):
        content += part
        if len(content) >= most:
            break
    return content[:most]


def _after(header: str) -> float:
    """Return the seconds that a `Retry-After` asks for, 0 where it can't be read."""
    try:
        return _RETRY.parse_retry_after(header)
    except (InvalidHeader, ValueError, OverflowError):
        return 0.0


def _first_cause(error: BaseException) -> BaseException:
    """Return what the system said, below all that the libraries made of it."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error
