"""The worker: listens for the label server on this machine, and answers what it asks.

One thread does it all: it reads what was asked, samples a token of every answer, and says what came
of it. Nothing is kept: who connects asks for all that still waits.
"""

from __future__ import annotations

import dataclasses
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
from data.labels.live.conversations import Answers
from data.labels.live.protocol import Channel, listening, may_come_in
from pipeline.generation.live.answering import Answerer

LOG = logging.getLogger(__name__)
UNREADABLE = "the model can't read this message: begin another one"
_TOLD_SECONDS = 0.1
"""Between two words on an answer that is not whole."""
_IDLE_SECONDS = 0.5
_MOST_CONNECTIONS = 16


class AnswerService:
    """Answers what label servers ask.

    Args:
        answerer: what samples.
        file: where its address and token stand while it runs.

    Attributes:
        answered: messages that were answered to the end.
        error: what ended it, if anything did.
    """

    def __init__(self, answerer: Answerer, file: Path) -> None:
        self.answerer = answerer
        self.file = file
        self.answered = 0
        self.error: Exception | None = None
        self._stopping = threading.Event()
        self._token = ""
        self._channels: dict[Channel, set[str] | None] = {}  # turns asked; None: no token yet
        self._told_at = 0.0

    @contextmanager
    def running(self) -> Iterator[AnswerService]:
        """Answer in a thread while the block runs."""
        with listening(self.file) as (taken, self._token):
            thread = threading.Thread(target=self._run, args=(taken,), name="answers", daemon=True)
            thread.start()
            try:
                yield self
            finally:
                self._stopping.set()
                thread.join()
                for channel in self._channels:
                    channel.close()

    def _run(self, taken: socket.socket) -> None:
        try:
            while not self._stopping.is_set():
                self._listen(taken, 0.0 if self.answerer.busy else _IDLE_SECONDS)
                if self.answerer.busy:
                    self._tell(self.answerer.step(tell=self._is_time()))
        except Exception as error:
            self.error = error  # for the thread that waits for it

    def _listen(self, taken: socket.socket, seconds: float) -> None:
        """Take what was asked, having waited for some seconds at most."""
        channels = {channel.socket: channel for channel in self._channels}
        ready, _, _ = select.select([taken, *channels], [], [], seconds)
        for one in ready:
            if one is not taken:
                self._hear(channels[one])
            elif len(self._channels) < _MOST_CONNECTIONS:
                self._channels[Channel(taken.accept()[0])] = None
            else:
                taken.accept()[0].close()

    def _hear(self, channel: Channel) -> None:
        try:
            for message in channel.receive():
                if self._channels[channel] is None:
                    if not may_come_in(message, self._token):
                        raise OSError("no token")
                    self._channels[channel] = set()
                    channel.send({"ready": True})
                else:
                    self._take(channel, message)
        except (OSError, KeyError, TypeError):
            self._drop(channel)

    def _take(self, channel: Channel, message: Mapping[str, Any]) -> None:
        turn_id, asked = str(message["ask"]), self._channels[channel]
        assert asked is not None
        asked.add(turn_id)
        messages, answers = list(message["messages"]), int(message["answers"])
        try:
            refused = self.answerer.ask(turn_id, messages, answers)
        except RlhfError as error:
            LOG.warning("a message can't be answered: %s", error)  # it may name the checkpoint
            refused = Answers([], [], [], failure=UNREADABLE)
        if refused is not None:
            self._tell({turn_id: refused})

    def _tell(self, told: Mapping[str, list[str] | Answers]) -> None:
        for turn_id, said in told.items():
            if isinstance(said, Answers):
                self.answered += 1
                self._send(turn_id, {"turn": turn_id, "done": dataclasses.asdict(said)})
            else:
                self._send(turn_id, {"turn": turn_id, "texts": said})

    def _is_time(self) -> bool:
        """Tell whether the next words are due."""
        now = time.monotonic()
        due = now - self._told_at >= _TOLD_SECONDS
        if due:
            self._told_at = now
        return due

    def _send(self, turn_id: str, message: Mapping[str, Any]) -> None:
        for channel, asked in [*self._channels.items()]:
            if asked and turn_id in asked:
                try:
                    channel.send(message)
                except OSError:
                    self._drop(channel)
                else:
                    if "done" in message:
                        asked.discard(turn_id)

    def _drop(self, channel: Channel) -> None:
        """Let a server go; what nobody else asked for is sampled no further."""
        gone = self._channels.pop(channel, None) or set()  # it may be gone already
        channel.close()
        for others in self._channels.values():
            gone -= others or set()
        self.answerer.forget(gone)
