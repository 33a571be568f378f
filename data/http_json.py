"""JSON sent to an HTTP server by POST, with further tries where a failure may pass.

What may pass is no connection, a time-out, a status that the caller names, and all from 500 on. It
is tried again after 1, 2, 4 ... seconds, or as many as the server asks for by `Retry-After`.
"""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Mapping


class RefusedError(Exception):
    """The server said no, and would say so again."""


class UnansweredError(Exception):
    """All tries failed; says how the last one did."""


class _Passing(Exception):
    """A failure that another try may get over; `wait` is what the server asks for, in seconds."""

    def __init__(self, what: str, wait: float = 0.0) -> None:
        super().__init__(what)
        self.wait = wait


def post_json(
    url: str,
    body: bytes,
    *,
    headers: Mapping[str, str] | None = None,
    timeout: float,
    retries: int,
    passing: Collection[int],
    longest_wait: float,
    wait: Callable[[float], None],
    most_bytes: int = -1,
) -> bytes:
    """Return the body of the server's answer.

    Args:
        url: where to.
        body: JSON.
        headers: sent beside the content's type.
        timeout: seconds without an answer after which a try has failed.
        retries: further tries after the first.
        passing: statuses below 500 that another try may get over.
        longest_wait: seconds between two tries, at most.
        wait: sleeps so many seconds.
        most_bytes: of an answer that are read; below 0 all.

    Raises:
        RefusedError: with the status.
        UnansweredError: with the last try's failure.
    """
    request = urllib.request.Request(
        url, data=body, headers={"Content-Type": "application/json", **(headers or {})}
    )
    for tried in range(retries + 1):
        try:
            return _once(request, timeout=timeout, passing=passing, most_bytes=most_bytes)
        except _Passing as failure:
            if tried == retries:
                raise UnansweredError(str(failure)) from failure
            wait(min(max(2.0**tried, failure.wait), longest_wait))
    raise AssertionError("unreachable")


def _once(
    request: urllib.request.Request, *, timeout: float, passing: Collection[int], most_bytes: int
) -> bytes:
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            content: bytes = answer.read(most_bytes)
            return content
    except urllib.error.HTTPError as error:
        with error:
            told = error.read(200).decode("utf-8", "replace").strip()
            after = error.headers.get("Retry-After", "")
        what = f"status {error.code} {error.reason}{f' ({told})' if told else ''}"
        if error.code in passing or error.code >= 500:
            raise _Passing(what, float(after) if after.isdigit() else 0.0) from None
        raise RefusedError(what) from None
    except urllib.error.URLError as error:
        raise _Passing(str(error.reason)) from error
    except (OSError, http.client.HTTPException) as error:
        raise _Passing(f"{type(error).__name__}: {error}") from error
