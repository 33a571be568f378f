"""JSON from an HTTP server, with further tries where a failure may pass: the client of them all.

What may pass is no connection, no whole answer in time, one that is cut off, the statuses `PASSING`
and all from 500 on. It is tried again after 1, 2, 4 ... seconds, or as many as the server asks for
by `Retry-After`, `LONGEST_WAIT` at most. No redirect is followed: what is sent, a key among it, is
for the address that the user gave.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from time import sleep
from typing import Any

import requests
from urllib3 import Retry
from urllib3.exceptions import InvalidHeader

PASSING = (408, 409, 425, 429)
"""Statuses below 500 that another try may get over."""
LONGEST_WAIT = 60.0
"""Seconds between two tries, at most."""
MOST_BYTES = 64 << 20
"""Of an answer that are read."""
_SHOWN = 80
_RETRY = Retry()


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
    exchange = partial(_exchange, url, body, headers or {}, timeout, proxies)
    for tried in range(retries + 1):
        try:
            return _within(timeout, exchange)
        except UnansweredError as failure:
            if tried == retries:
                raise
            sleep(min(max(2.0**tried, failure.after), LONGEST_WAIT))
    raise AssertionError("unreachable")


def _within(seconds: float, exchange: Callable[[], Any]) -> Any:
    # Neither requests nor Retry knows a time for all of a try: theirs begins anew with each byte,
    # looking up a name has none, and Retry's tries end where an answer's body begins. So a try has
    # a thread of its own, which is left behind where it takes too long, and tries are counted here.
    outcome: Future[Any] = Future()

    def run() -> None:
        try:
            outcome.set_result(exchange())
        except BaseException as error:  # raised where the result is waited for
            outcome.set_exception(error)

    threading.Thread(target=run, name="http", daemon=True).start()
    try:
        return outcome.result(seconds)
    except ValueError:  # its text may hold the key
        raise RefusedError("no request can be made of this address and key") from None
    except (TimeoutError, requests.RequestException) as error:
        cause = _first_cause(error)
        if isinstance(cause, TimeoutError):
            why = f"timed out: no whole answer in {seconds:g} seconds"
        else:
            why = getattr(cause, "strerror", None) or f"{type(cause).__name__}: {cause}"
        raise UnansweredError(why, slow=isinstance(cause, TimeoutError)) from error


def _exchange(
    url: str, body: bytes | None, headers: Mapping[str, str], timeout: float, proxies: bool
) -> Any:
    method = "GET" if body is None else "POST"
    with requests.Session() as session:
        session.trust_env = proxies
        with session.request(
            method,
            url,
            data=body,
            headers={"Content-Type": "application/json", **headers},
            auth=lambda request: request,  # else a ~/.netrc takes the place of the key
            timeout=timeout,
            allow_redirects=False,
            stream=True,
        ) as answer:
            if not 200 <= answer.status_code < 300:
                raise _refusal(answer)
            content = bytearray()
            for part in answer.iter_content(1 << 16):
                content += part
                if len(content) > MOST_BYTES:
                    raise WrongAnswerError(f"more than {MOST_BYTES:,} bytes", answer.status_code)
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        shown = content[:_SHOWN].decode("utf-8", "replace")
        raise WrongAnswerError(repr(shown), answer.status_code) from None


def _refusal(answer: requests.Response) -> HttpError:
    status = answer.status_code
    what = f"status {status} {answer.reason or ''}".strip()
    if answer.is_redirect:
        to = answer.headers["Location"]
        return RefusedError(
            f"{what}, it sends on to {to:.200}: give the address it has now", status
        )
    told = next(answer.iter_content(200), b"").decode("utf-8", "replace").strip()
    what += f" ({told})" if told else ""
    if status in PASSING or status >= 500:
        return UnansweredError(what, status, after=_after(answer.headers.get("Retry-After", "")))
    return RefusedError(what, status)


def _after(told: str) -> float:
    """Return the seconds that a `Retry-After` asks for, 0 where it can't be read."""
    try:
        return _RETRY.parse_retry_after(told)
    except (InvalidHeader, ValueError, OverflowError):
        return 0.0


def _first_cause(error: BaseException) -> BaseException:
    """Return what the system said, below all that the libraries made of it."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error
