"""Between the pages and the worker: asks for what waits, holds what is being said, stores the rest.

One thread beside the pages. What is half said is in its memory alone; what is said to its end goes
into the database in one piece. When the worker goes, its half answers are forgotten, and the next
worker is asked for all that still waits.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.errors import RlhfError
from data.labels.live.conversations import Answers, Conversations
from data.labels.live.protocol import Channel, ChannelClosedError, connect

LOG = logging.getLogger(__name__)
_RETRY_SECONDS = 0.5
"""Between two looks for a worker, and before what could not be stored is asked again."""
_LOOK_SECONDS = 1.0
"""Between two looks for messages that another process took."""


class Relay:
    """Asks a worker for answers.

    Args:
        conversations: where messages wait.
        file: that a worker keeps its address in.
    """

    def __init__(self, conversations: Conversations, file: Path) -> None:
        self.conversations = conversations
        self.file = file
        self.connected = False
        self._texts: dict[str, list[str]] = {}
        self._asked: set[str] = set()
        self._stopping = threading.Event()
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)

    @contextmanager
    def running(self) -> Iterator[Relay]:
        """Ask while the block runs."""
        thread = threading.Thread(target=self._run, name="relay", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._stopping.set()
            self.wake()
            thread.join()
            self._woken.close()
            self._waker.close()

    def wake(self) -> None:
        """Tell that a message waits."""
        with contextlib.suppress(BlockingIOError):  # it has been told often enough
            self._waker.send(b"!")

    def texts(self, turn_id: str) -> list[str] | None:
        """Return what was said so far; None while nothing is."""
        return self._texts.get(turn_id)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                channel = connect(self.file)
                if channel is not None:
                    try:
                        self._serve(channel)
                    finally:
                        channel.close()
            except OSError as error:
                LOG.info("no worker answers: %s", error)
            except RlhfError as error:
                LOG.warning("%s", error)  # the database is down: what was said is asked again
            finally:
                self.connected = False
                self._texts.clear()
                self._asked.clear()
            self._stopping.wait(_RETRY_SECONDS)

    def _serve(self, channel: Channel) -> None:
        """Ask and listen until the worker goes."""
        looked = 0.0
        while not self._stopping.is_set():
            if time.monotonic() - looked >= _LOOK_SECONDS:
                self._ask(channel)
                looked = time.monotonic()
            ready, _, _ = select.select([channel.socket, self._woken], [], [], _LOOK_SECONDS)
            if self._woken in ready:
                self._woken.recv(4096)
                looked = 0.0
            if channel.socket in ready:
                for message in channel.receive():
                    self._take(message)

    def _ask(self, channel: Channel) -> None:
        waiting = self.conversations.asked()
        self._asked &= {one.turn_id for one in waiting}
        for one in waiting:
            if one.turn_id not in self._asked:
                channel.send({"ask": one.turn_id, "messages": one.messages, "answers": one.answers})
                self._asked.add(one.turn_id)

    def _take(self, message: Mapping[str, Any]) -> None:
        """Keep what the worker says; what makes no sense ends the connection."""
        self.connected = True  # it says nothing before the token was right
        turn_id = message.get("turn")
        if turn_id is None:
            return
        try:
            if "done" in message:
                self.conversations.answer(str(turn_id), Answers(**message["done"]))
                self._texts.pop(str(turn_id), None)
            else:
                self._texts[str(turn_id)] = [str(text) for text in message["texts"]]
        except (TypeError, KeyError) as error:
            raise ChannelClosedError(f"the worker said what is no answer: {error}") from error
