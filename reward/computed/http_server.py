"""Rewards from an HTTP server: any model or program, on any machine, in any language.

The server is sent `{"prompts": [...], "responses": [...]}` as JSON by POST, a prompt being a text
or a list of messages, and answers `{"scores": [...]}`, one number a response. Where it is known
whether the responses ended by themselves, `"ended": [...]` says so of each. What may pass (no
connection, a time-out, status 408, 425, 429 or 5xx) is tried again after 1, 2, 4 ... seconds,
at most 30, or as many as the server asks for by `Retry-After`; anything else is an error at once.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data.errors import RewardError
from data.http_json import RefusedError, UnansweredError, post_json
from reward.scorer import Facts, require_same_length, require_scores

if TYPE_CHECKING:
    from data.records import Prompt

PASSING = (408, 425, 429)
LONGEST_WAIT = 30.0
"""Seconds."""


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
        """Return the server's score of each response, without facts."""
        return self.score_informed(prompts, responses, Facts(rows=[{} for _ in prompts]))

    def score_informed(
        self, prompts: Sequence[Prompt], responses: Sequence[str], facts: Facts
    ) -> list[float]:
        """Return the server's score of each response, which is told whether they ended.

        Raises:
            RewardError: the server can't be reached, refuses, or answers something else.
        """
        require_same_length(prompts, responses)
        scores: list[float] = []
        for start in range(0, len(responses), self.batch_size):
            part = slice(start, start + self.batch_size)
            content: dict[str, list[Any]] = {
                "prompts": list(prompts[part]),
                "responses": list(responses[part]),
            }
            if facts.ended is not None:
                content["ended"] = list(facts.ended[part])
            scores += self._request(content)
        return scores

    def _request(self, content: dict[str, list[Any]]) -> list[float]:
        body = json.dumps(content).encode()
        try:
            answer = post_json(
                self.url,
                body,
                timeout=self.timeout,
                retries=self.retries,
                passing=PASSING,
                longest_wait=LONGEST_WAIT,
                wait=self.wait,
            )
        except UnansweredError as failure:
            raise RewardError(
                f"the reward server {self.url} gave no scores in {self.retries + 1} tries, "
                f"the last time: {failure}; look at the server, what was trained is kept"
            ) from failure
        except RefusedError as failure:
            raise RewardError(
                f"the reward server {self.url} refused: {failure}; it takes POST of "
                '{"prompts": [...], "responses": [...]}'
            ) from failure
        return self._scores(answer, len(content["responses"]))

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
