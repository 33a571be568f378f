"""What a connection may take: so many at once, and so long for a request.

uvicorn bounds how long a connection rests between requests and how large a head is, but not how
long the first request, or any, takes to come; its `limit_concurrency` counts idle connections and
then answers nobody. So requests get a time here, and where all places are taken, the oldest
connection that waits for no answer makes room.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Collection
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from data.labels.web.limits import Limit
from data.labels.web.security import HEADERS

BACKLOG = 64
"""Connections that the system keeps before we take them, and that we take at a time."""
MOST = 512
"""Connections open at once; also at most half of the files that the process may open."""
REQUEST_SECONDS = 10.0
"""From the beginning of a connection, or of a further request, to the end of the request."""
ANSWER_SECONDS = 60.0
"""How long a client may leave a full buffer of an answer unread."""


class Listening(socket.socket):
    """A listening socket that closes connections beyond its number.

    Attributes:
        most: connections open at once, those in a TLS handshake too.
        busy: returns the file numbers of those that wait for an answer.
    """

    most: int = MOST
    busy: Callable[[], Collection[int]] = staticmethod(tuple)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._taken: list[socket.socket] = []

    def accept(self) -> tuple[socket.socket, Any]:
        """Take a connection; asyncio's loop goes on where it is told that it was aborted."""
        taken, address = super().accept()
        self._taken = [one for one in self._taken if one.fileno() >= 0]
        if len(self._taken) >= self.most:
            busy = self.busy()
            oldest = next((one for one in self._taken if one.fileno() not in busy), None)
            if oldest is None:
                taken.close()
                raise ConnectionAbortedError
            self._taken.remove(oldest)
            with contextlib.suppress(OSError):  # it is not connected any more
                oldest.shutdown(socket.SHUT_RDWR)  # the loop then reads its end
        self._taken.append(taken)
        return taken, address


class Protocol(H11Protocol):
    """uvicorn's protocol, with a time for each request and for the reading of each answer."""

    request_seconds = REQUEST_SECONDS
    answer_seconds = ANSWER_SECONDS
    _request_timer: asyncio.TimerHandle | None = None
    _answer_timer: asyncio.TimerHandle | None = None

    def waits_for_answer(self) -> bool:
        """Tell whether a whole request has come that is not answered yet."""
        return (
            self._request_timer is None
            and self.cycle is not None
            and not self.cycle.response_complete
        )

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._time_request()

    def data_received(self, data: bytes) -> None:
        """Take a part of a request."""
        super().data_received(data)
        self._time_request()

    def on_response_complete(self) -> None:
        """Take up what was sent before the answer; no part of it may be all that ever comes."""
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY or self.conn.trailing_data[0]:
            self._time_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        for timer in (self._request_timer, self._answer_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Begin to wait for the client to read."""
        super().pause_writing()
        self._answer_timer = self.loop.call_later(self.answer_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        if self._answer_timer is not None:
            self._answer_timer.cancel()
            self._answer_timer = None

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, with the headers that every answer has."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()  # an answer is on its way already
            return
        headers = {"content-type": "text/plain; charset=utf-8", "connection": "close"} | HEADERS
        text = msg.encode()
        events = (
            h11.Response(status_code=400, headers=list(headers.items()), reason=b"Bad Request"),
            h11.Data(data=text),
            h11.EndOfMessage(),
        )
        self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self.transport.close()

    def _time_request(self) -> None:
        unfinished = self.conn.their_state in (h11.IDLE, h11.SEND_BODY)
        if unfinished and self._request_timer is None:
            self._request_timer = self.loop.call_later(self.request_seconds, self.transport.abort)
        elif not unfinished and self._request_timer is not None:
            self._request_timer.cancel()
            self._request_timer = None


class Sparing(logging.Filter):
    """Lets through so much of each logger that no client can fill the disk with the log."""

    def __init__(self) -> None:
        super().__init__()
        self._limit = Limit(20, 20)

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether the record is written."""
        return self._limit.take(record.name) == 0
