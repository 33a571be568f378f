"""What the label server and a worker say to each other: lines of JSON over a local socket.

The worker listens on this machine and writes its address and a token into `RUN/labels/worker.json`,
which its owner alone can read. Who connects sends the token first; one that does not is let go.

    server -> worker   {"token": "..."}
                       {"ask": TURN, "messages": [...], "answers": 3}
    worker -> server   {"turn": TURN, "texts": ["so far", ...]}
                       {"turn": TURN, "done": {"texts", "policies", "ended", "tokens", "failure"}}

The worker keeps nothing: a server that connects asks for all that waits, as often as it connects.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.errors import ArtifactError
from data.json_lines import read_json_object
from data.labels.store.private import make_file, make_folder
from data.storage import storage_errors

LONGEST_LINE = 2**22
"""Bytes; the longest conversation has fewer."""
_SEND_SECONDS = 5.0
_PIECE = 2**16


class ChannelClosedError(OSError):
    """The other side is gone, or speaks another language."""


def worker_file(run: Path) -> Path:
    """Return the file that a worker keeps its address in."""
    return run / "labels" / "worker.json"


class Channel:
    """One end of a connection.

    Attributes:
        socket: for `select`.
    """

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.socket.settimeout(_SEND_SECONDS)
        self._held = b""

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message.

        Raises:
            OSError: it can't be, in some seconds.
        """
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]]:
        """Return the messages that are there, having waited for a part of one.

        Raises:
            ChannelClosedError: the other side is gone, or what it says is no message.
            OSError: it can't be read.
        """
        piece = self.socket.recv(_PIECE)
        if not piece:
            raise ChannelClosedError("the other side is gone")
        *lines, self._held = (self._held + piece).split(b"\n")
        if len(self._held) > LONGEST_LINE:
            raise ChannelClosedError("a message is too long")
        try:
            messages = [json.loads(line) for line in lines]
        except ValueError as error:
            raise ChannelClosedError("a message is no JSON") from error
        if not all(isinstance(message, dict) for message in messages):
            raise ChannelClosedError("a message is no object")
        return messages

    def close(self) -> None:
        """End the connection."""
        self.socket.close()


@contextmanager
def listening(file: Path) -> Iterator[tuple[socket.socket, str]]:
    """Give a socket that a label server can connect to, and the token that it will send.

    Args:
        file: where its address stands meanwhile.
    """
    token = secrets.token_urlsafe(32)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        host, port = taken.getsockname()
        body = json.dumps({"host": host, "port": port, "token": token, "pid": os.getpid()})
        make_folder(file.parent)
        with storage_errors(file):
            file.unlink(missing_ok=True)
            make_file(file)
            file.write_text(body + "\n", encoding="utf-8")
        try:
            yield taken, token
        finally:
            # Another worker may have taken over meanwhile.
            with contextlib.suppress(OSError):
                if file.read_text(encoding="utf-8").strip() == body:
                    file.unlink()


def may_come_in(message: Mapping[str, Any], token: str) -> bool:
    """Tell whether the first message of a connection holds the token."""
    sent = message.get("token")
    return isinstance(sent, str) and hmac.compare_digest(sent.encode(), token.encode())


def connect(file: Path) -> Channel | None:
    """Return a connection to the worker that a file names; None where there is none.

    Raises:
        OSError: it can't be reached.
    """
    try:
        place = read_json_object(file)
    except ArtifactError:
        return None
    host, port, token = (place.get(name) for name in ("host", "port", "token"))
    if host != "127.0.0.1" or type(port) is not int or not isinstance(token, str):
        return None
    channel = Channel(socket.create_connection((host, port), timeout=_SEND_SECONDS))
    try:
        channel.send({"token": token})
    except OSError:
        channel.close()
        raise
    return channel
