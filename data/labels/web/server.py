"""Serve the pages with uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import resource
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import uvicorn

from data.errors import UsageError
from data.labels.campaign.accounts import IDLE_HOURS
from data.labels.live.conversations import Conversations
from data.labels.live.relay import Relay
from data.labels.store.database import Database
from data.labels.store.private import make_folder
from data.labels.web.address import announcement
from data.labels.web.app import LOG, create_app
from data.labels.web.connections import BACKLOG, MOST, Listening, Protocol, Sparing
from data.labels.web.front import Front, resolved
from data.labels.web.pages import load_templates
from data.labels.web.security import HEADER_CAP
from data.storage import storage_errors, write_atomically


def serve(
    database: Database,
    front: Front | None = None,
    *,
    campaigns: Sequence[str] | None = None,
    idle_hours: float = IDLE_HOURS,
    address_file: Path | None = None,
    worker_file: Path | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        database: where everything is.
        front: what it listens on and how it is reached; this machine alone by default.
        campaigns: names of those to serve; None serves all.
        idle_hours: after which a browser that does not come is signed out.
        address_file: where the address is written while it is served.
        worker_file: where a worker that answers live conversations writes its own.
        on_ready: called with the address once browsers can come.

    Raises:
        UsageError: the port is taken.
    """
    front = front or Front()
    load_templates()
    relay = None if worker_file is None else Relay(Conversations(database), worker_file)
    app = create_app(
        database,
        campaigns=campaigns,
        secure=front.secure,
        allowed_hosts=front.names,
        idle_hours=idle_hours,
        relay=relay,
    )
    with (
        bound(front.host, front.port) as listening,
        _sparing_logs(),
        relay.running() if relay else contextlib.nullcontext(),
    ):
        address = front.address(listening.getsockname()[1])
        config = uvicorn.Config(app, proxy_headers=front.behind_proxy, **UVICORN)
        with _announced(address_file, address):
            if on_ready is not None:
                on_ready(address)
            Server(config, tls=front.tls).run(sockets=[listening])


UVICORN: dict[str, Any] = {
    "access_log": False,  # an invite's token is in its address
    "log_level": "warning",
    "server_header": False,
    "http": Protocol,
    "workers": 1,  # also where WEB_CONCURRENCY says otherwise
    "loop": "asyncio",  # which takes connections by our socket
    "h11_max_incomplete_event_size": HEADER_CAP,
    "lifespan": "off",
    "ws": "none",
    "timeout_keep_alive": 30,
    "timeout_graceful_shutdown": 10,
}


class Server(uvicorn.Server):
    """uvicorn's, with bounds on what connections take, and a quiet end at a signal.

    Args:
        config: of uvicorn.
        tls: serves https.
    """

    def __init__(self, config: uvicorn.Config, *, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(config)
        self.tls = tls

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen; uvicorn's own gives a TLS handshake a minute."""
        make = functools.partial(
            Protocol, config=self.config, server_state=self.server_state, app_state={}
        )
        handshake = Protocol.request_seconds if self.tls else None
        for one in sockets or ():
            if isinstance(one, Listening):
                one.busy = self._busy
        self.servers = [
            await asyncio.get_running_loop().create_server(
                make, sock=one, backlog=BACKLOG, ssl=self.tls, ssl_handshake_timeout=handshake
            )
            for one in sockets or ()
        ]
        self.started = True

    def _busy(self) -> set[int]:
        return {
            one.transport.get_extra_info("socket").fileno()
            for one in self.server_state.connections
            if isinstance(one, Protocol) and one.waits_for_answer()
        }

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, which raises the signal again before we have cleaned up."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            number: signal.signal(number, self.handle_exit)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def bound(host: str, port: int) -> Iterator[Listening]:
    """Give a listening socket.

    Raises:
        UsageError: it can't be had.
    """
    family, place = resolved(host, port)
    # With its protocol named, asyncio turns Nagle's algorithm off on what it accepts; else the end
    # of every larger page waits some 40 ms for the browser's delayed acknowledgement.
    listening = Listening(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.most = min(MOST, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(place)
            listening.listen(BACKLOG)
        except OSError as error:
            raise UsageError(
                f"{host}:{port} can't be served: {error.strerror}; choose another --port or --host"
            ) from error
        yield listening
    finally:
        listening.close()


@contextlib.contextmanager
def _sparing_logs() -> Iterator[None]:
    """Bound what is logged of clients: each can have a line written at every connection."""
    sparing = Sparing()
    loggers = [logging.getLogger(name) for name in ("uvicorn.error", "asyncio", LOG.name)]
    for logger in loggers:
        logger.addFilter(sparing)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(sparing)


@contextlib.contextmanager
def _announced(path: Path | None, address: str) -> Iterator[None]:
    """Keep a file with the address while the server runs."""
    if path is None:
        yield
        return
    body = announcement(address)
    make_folder(path.parent)
    write_atomically(path, body + "\n")
    with storage_errors(path):
        path.chmod(0o600)
    try:
        yield
    finally:
        # Another server may have taken over meanwhile.
        with contextlib.suppress(OSError):
            if path.read_text(encoding="utf-8").strip() == body:
                path.unlink()
