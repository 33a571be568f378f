"""Serve the pages with uvicorn."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import uvicorn

from data.errors import UsageError
from data.labels.campaign.accounts import IDLE_HOURS
from data.labels.store.database import Database
from data.labels.store.private import make_folder
from data.labels.web.app import create_app
from data.labels.web.pages import load_templates
from data.labels.web.security import LOOPBACK
from data.storage import storage_errors, write_atomically

DEFAULT_PORT = 8470
_LOOPBACK_HOSTS = ("127.0.0.1", "::1", "localhost")


def serve(
    database: Database,
    *,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    campaigns: Sequence[str] | None = None,
    allowed_hosts: Sequence[str] = (),
    certificate: Path | None = None,
    key: Path | None = None,
    behind_proxy: bool = False,
    idle_hours: float = IDLE_HOURS,
    address_file: Path | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        database: where everything is.
        host: address of the interface; only this machine by default.
        port: 0 takes a free one.
        campaigns: names of those to serve; None serves all.
        allowed_hosts: further names under which browsers ask for it.
        certificate: PEM file, to serve https.
        key: PEM file of its key.
        behind_proxy: whether a proxy on this machine takes https off.
        idle_hours: after which a browser that does not come is signed out.
        address_file: where the address is written while it is served.
        on_ready: called with the address once browsers can come.

    Raises:
        UsageError: the port is taken, or people would come over a network without https.
    """
    secure = behind_proxy or certificate is not None
    if host not in _LOOPBACK_HOSTS and not secure:
        raise UsageError(
            f"host {host} can be reached over the network, where invites and sessions would be "
            "read along: give a certificate and its key, or serve it behind a proxy with https"
        )
    load_templates()
    hosts = [*LOOPBACK, *allowed_hosts, *([f"[{host}]"] if ":" in host else [host])]
    with bound(host, port) as listening:
        address = _address(listening, host=host, https=certificate is not None)
        config = uvicorn.Config(
            create_app(
                database,
                campaigns=campaigns,
                secure=secure,
                allowed_hosts=hosts,
                idle_hours=idle_hours,
            ),
            ssl_certfile=certificate,
            ssl_keyfile=key,
            proxy_headers=behind_proxy,
            **UVICORN,
        )
        with _announced(address_file, address):
            if on_ready is not None:
                on_ready(address)
            _Server(config).run(sockets=[listening])


UVICORN: dict[str, Any] = {
    "access_log": False,  # an invite's token is in its address
    "log_level": "warning",
    "server_header": False,
    "lifespan": "off",
    "ws": "none",
    "timeout_keep_alive": 30,
    "timeout_graceful_shutdown": 10,
}


class _Server(uvicorn.Server):
    """Ends quietly at a signal: uvicorn's own raises it again, before we have cleaned up."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
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
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """Give a listening socket.

    Raises:
        UsageError: it can't be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With its protocol named, asyncio turns Nagle's algorithm off on what it accepts; else the end
    # of every larger page waits some 40 ms for the browser's delayed acknowledgement.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
            listening.listen(1024)
        except OSError as error:
            raise UsageError(f"{host}:{port} can't be served: {error.strerror}") from error
        yield listening
    finally:
        listening.close()


def _address(listening: socket.socket, *, host: str, https: bool) -> str:
    port = listening.getsockname()[1]
    name = f"[{host}]" if ":" in host else host
    return f"{'https' if https else 'http'}://{name}:{port}"


@contextlib.contextmanager
def _announced(path: Path | None, address: str) -> Iterator[None]:
    """Keep a file with the address while the server runs."""
    if path is None:
        yield
        return
    body = json.dumps({"address": address, "pid": os.getpid()})
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
