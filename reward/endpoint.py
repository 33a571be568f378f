"""Rewards from an HTTP server: any model or program, on any machine, in any language.

The server is sent `{"prompts": [...], "responses": [...]}` as JSON by POST, a prompt being a text
or a list of messages, and answers `{"scores": [...]}`, one number a response. What may pass (no
connection, a time-out, status 408, 425, 429 or 5xx) is tried again after 1, 2, 4 ... seconds,
at most 30, or as many as the server asks for by `Retry-After`; anything else is an error at once.
"""

from __future__ import annotations

import http.client
import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data.errors import RewardError
from reward.scorers import require_same_length, require_scores

if TYPE_CHECKING:
    from data.records import Prompt

PASSING = (408, 425, 429)
LONGEST_WAIT = 30.0
"""Seconds."""


class _Passing(Exception):
    """A failure that another try may get over.

    Attributes:
        wait: seconds the server asks to wait, None when it doesn't say.
    """

    def __init__(self, what: str, wait: float | None = None) -> None:
        super().__init__(what)
        self.wait = wait


@dataclass(frozen=True)
class Endpoint:
    """A server that scores; a `Scorer`.

    Attributes:
        url: where requests are sent.
        timeout: seconds without an answer after which a try has failed.
        retries: further tries after the first.
        batch_size: responses of one request.
        name: what reports call it.
        wait: sleeps so many seconds.
    """

    url: str
    timeout: float = 60.0
    retries: int = 5
    batch_size: int = 64
    name: str = "endpoint"
    wait: Callable[[float], None] = time.sleep

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """Return the server's score of each response.

        Raises:
            RewardError: the server can't be reached, refuses, or answers something else.
        """
        require_same_length(prompts, responses)
        scores: list[float] = []
        for start in range(0, len(responses), self.batch_size):
            part = slice(start, start + self.batch_size)
            scores += self._request(list(prompts[part]), list(responses[part]))
        return scores

    def _request(self, prompts: list[Prompt], responses: list[str]) -> list[float]:
        body = json.dumps({"prompts": prompts, "responses": responses}).encode()
        for left in range(self.retries, -1, -1):
            try:
                answer = self._post(body)
                break
            except _Passing as failure:
                if left == 0:
                    raise RewardError(
                        f"the reward server {self.url} gave no scores in {self.retries + 1} tries, "
                        f"the last time: {failure}; look at the server, what was trained is kept"
                    ) from failure
                doubled = 2.0 ** (self.retries - left)
                self.wait(min(max(doubled, failure.wait or 0.0), LONGEST_WAIT))
        return self._scores(answer, len(responses))

    def _post(self, body: bytes) -> bytes:
        request = urllib.request.Request(
            self.url, data=body, headers={"Content-Type": "application/json"}, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                content: bytes = answer.read()
                return content
        except urllib.error.HTTPError as error:
            with error:
                told = error.read(200).decode("utf-8", "replace").strip()
                wait = error.headers.get("Retry-After", "")
            what = f"status {error.code} {error.reason}{f' ({told})' if told else ''}"
            if error.code in PASSING or error.code >= 500:
                raise _Passing(what, float(wait) if wait.isdigit() else None) from None
            raise RewardError(
                f"the reward server {self.url} refused: {what}; it takes POST of "
                '{"prompts": [...], "responses": [...]}'
            ) from None
        except urllib.error.URLError as error:
            raise _Passing(str(error.reason)) from error
        except (OSError, http.client.HTTPException) as error:
            raise _Passing(f"{type(error).__name__}: {error}") from error

    def _scores(self, answer: bytes, count: int) -> list[float]:
        origin = f"the reward server {self.url}"
        try:
            content: Any = json.loads(answer)
            given = content["scores"]
        except (ValueError, TypeError, KeyError) as error:
            shown = answer[:80].decode("utf-8", "replace")
            raise RewardError(
                f'{origin} answered {shown!r} where {{"scores": [...]}} is needed'
            ) from error
        scores = require_scores(given, count=count, origin=origin)
        if not all(math.isfinite(score) for score in scores):
            raise RewardError(f"{origin} gave a score that is not finite; look at the server")
        return scores
