"""Calls of a language model over an OpenAI-compatible address: retried, budgeted, logged, cached.

The log is the cache and the book: a line of JSONL for each call that was answered, with what was
asked, what came back and the tokens it took. A call that stands in the log is not made again, and
what the log holds counts towards the budget, also after a restart. The key of the service is read
from the environment and is written nowhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import LabelError, UsageError
from data.http_json import (
    HttpError,
    RefusedError,
    UnansweredError,
    WrongAnswerError,
    ask_json,
    shown_answer,
    without_secrets,
)
from data.json_lines import append_json_lines, read_json_lines

_MOST_TOKENS = 10**9
"""Of one call; a server that counts more does not count."""
_RAISE = "raise {} and run again, what was answered is kept"


class BudgetSpentError(LabelError):
    """The calls or tokens that the recipe allows are used up."""


class CallRefusedError(LabelError):
    """The server is there and does not take this call, such as one too long for its context."""


@dataclass(frozen=True)
class Spent:
    """What the log holds: calls that were answered, and their tokens in and out."""

    calls: int = 0
    tokens: int = 0


class Calls:
    """Asks a model; safe to use from several threads.

    Args:
        url: base address, such as http://localhost:8000/v1.
        model: its name there.
        log: JSONL that every answered call goes to.
        key_variable: environment variable that holds the service's key; none is sent without.
        max_calls: calls that may be made in all.
        max_tokens: tokens, in and out, after which no call is made any more.
        timeout: seconds that one try may take.
        retries: further tries after the first, see `data.http_json`.

    Raises:
        UsageError: the variable is not set, or holds what can't be sent.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        log: Path,
        key_variable: str | None = None,
        max_calls: int | None = None,
        max_tokens: int | None = None,
        timeout: float = 60.0,
        retries: int = 5,
    ) -> None:
        self.url = url.rstrip("/") + "/chat/completions"
        self.model, self.log = model, log
        self.max_calls, self.max_tokens = max_calls, max_tokens
        self.timeout, self.retries = timeout, retries
        self._headers: dict[str, str] = {}
        if key_variable is not None:
            self._headers["Authorization"] = f"Bearer {service_key(key_variable, url)}"
        self._lock = threading.Lock()
        self._answers: dict[str, str] = {}
        self._begun = self._tokens = 0
        self._given_up: LabelError | None = None
        self._read_log()

    def models(self) -> list[str]:
        """Return the models that the service says it has; none where it does not say."""
        place = self.url.removesuffix("/chat/completions") + "/models"
        try:
            answer = ask_json(place, headers=self._headers, timeout=self.timeout)
        except HttpError:
            return []
        listed = answer.get("data") if isinstance(answer, dict) else None
        entries = listed if isinstance(listed, list) else []
        named = [one.get("id") for one in entries if isinstance(one, dict)]
        return [name for name in named if isinstance(name, str)]

    @property
    def spent(self) -> Spent:
        """Return what was spent so far, earlier runs among it."""
        with self._lock:
            return Spent(len(self._answers), self._tokens)

    def ask(self, messages: list[dict[str, str]], **options: Any) -> str:
        """Return the model's answer to a dialogue.

        Args:
            messages: turns with `role` and `content`.
            options: further fields of the request, such as `temperature`.

        Raises:
            BudgetSpentError: no call is left.
            CallRefusedError: the server does not take the call.
            LabelError: the server can't be reached, or answers something else.
        """
        request = {"model": self.model, "messages": messages, **options}
        body = json.dumps(request, sort_keys=True).encode("utf-8")
        name = hashlib.sha256(self.url.encode() + b"\n" + body).hexdigest()
        with self._lock:
            if name in self._answers:
                return self._answers[name]
            self._begin()
        started = time.monotonic()
        try:
            text, tokens = self._parsed(self._post(body), request)
        except BaseException:
            with self._lock:
                self._begun -= 1
            raise
        entry = {
            "call": name,
            "request": request,
            "answer": text,
            "tokens": tokens,
            "seconds": round(time.monotonic() - started, 3),
        }
        self._keep(name, text, tokens, entry)
        return text

    def _begin(self) -> None:
        if self._given_up is not None:  # else every thread would wait for as many tries
            raise self._given_up
        if self.max_calls is not None and self._begun >= self.max_calls:
            raise BudgetSpentError(
                f"all {self.max_calls} calls of {self.model} are used up; "
                f"{_RAISE.format('max_calls')}"
            )
        if self.max_tokens is not None and self._tokens >= self.max_tokens:
            raise BudgetSpentError(
                f"{self.model} has taken {self._tokens:,} tokens of {self.max_tokens:,}; "
                f"{_RAISE.format('max_tokens')}"
            )
        self._begun += 1

    def _keep(self, name: str, text: str, tokens: int, entry: Mapping[str, Any]) -> None:
        with self._lock:
            self._answers[name] = text
            self._tokens += tokens
            self.log.parent.mkdir(parents=True, exist_ok=True)
            append_json_lines(self.log, [entry], sync=True)

    def _read_log(self) -> None:
        if not self.log.is_file():
            return
        # Where a killed process left a broken line, that call is made again.
        for entry in read_json_lines(self.log, skip_broken=True):
            match entry:
                case {"call": str(name), "answer": str(text), "tokens": int(tokens)}:
                    self._answers[name] = text
                    self._tokens += tokens
        self._begun = len(self._answers)

    def _post(self, body: bytes) -> Any:
        try:
            return ask_json(
                self.url,
                body,
                headers=self._headers,
                timeout=self.timeout,
                retries=self.retries,
            )
        except UnansweredError as failure:
            self._given_up = LabelError(
                f"the judge at url {self.url} gave no answer in {self.retries + 1} tries, the last "
                f"time: {failure}; look at the server, what was answered is kept"
            )
            raise self._given_up from failure
        except RefusedError as failure:
            raise CallRefusedError(
                f"the judge at url {self.url} refused: {failure}; look at its url, model and "
                "key_variable, what was answered is kept"
            ) from failure
        except WrongAnswerError as failure:
            raise self._no_completion(failure) from failure

    def _parsed(self, answer: Any, request: Mapping[str, Any]) -> tuple[str, int]:
        match answer:
            case {"choices": [{"message": {"content": str(text)}}, *_]}:
                # A server may send the key back, and the log may not hold it.
                text = without_secrets(text, self.url, self._headers)
            case {"choices": [{"message": {"content": None}}, *_]}:
                text = ""  # it refused, or spent all its tokens on thinking
            case _:
                raise self._no_completion(shown_answer(answer, self.url, self._headers))
        match answer.get("usage"):
            case {"total_tokens": int(tokens)} if 0 <= tokens <= _MOST_TOKENS:
                return text, tokens
        # Not every server counts; four bytes a token is the usual rule of thumb.
        return text, (len(json.dumps(request["messages"])) + len(text)) // 4

    def _no_completion(self, shown: object) -> LabelError:
        return LabelError(
            f"the judge at url {self.url} answered {shown}, no chat completion of the OpenAI form; "
            "its url is the base address, such as http://localhost:8000/v1"
        )


def service_key(variable: str, url: str) -> str:
    """Return the key of the service at a URL; no error tells it.

    Raises:
        UsageError: the environment variable is not set, or holds what can't be sent.
    """
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UsageError(
            f"the environment variable {variable} is not set; it holds the key for {url}: set it"
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(
            f"the environment variable {variable} holds no key that can be sent to {url}; set it "
            "to letters, digits and signs of plain ASCII, without spaces or line ends"
        )
    return key
