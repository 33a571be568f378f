"""Rewards from an HTTP server: any model or program, on any machine, in any language.

The server is sent `{"prompts": [...], "responses": [...]}` as JSON by POST, a prompt being a text
or a list of messages, and answers `{"scores": [...]}`, one number a response. Where it is known
whether the responses ended by themselves, `"ended": [...]` says so of each. What may pass is tried
again, see `data.http_json`; anything else is an error at once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data.errors import RewardError
from data.http_json import (
    RefusedError,
    UnansweredError,
    WrongAnswerError,
    ask_json,
    shown_answer,
)
from reward.scorer import Facts, require_same_length, require_scores

if TYPE_CHECKING:
    from data.records import Prompt


@dataclass(frozen=True)
class Endpoint:
    """A server that scores; a `Scorer`.

    Attributes:
        url: where requests are sent.
        timeout: seconds that one try may take.
        retries: further tries after the first.
        batch_size: responses of one request.
        name: what reports call it.
    """

    url: str
    timeout: float = 60.0
    retries: int = 5
    batch_size: int = 64
    name: str = "endpoint"

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
        address = self.url.partition("?")[0]  # behind it may stand a key
        origin = f"the reward server at url {address}"
        body = json.dumps(content).encode()
        try:
            answer = ask_json(self.url, body, timeout=self.timeout, retries=self.retries)
        except UnansweredError as failure:
            raise RewardError(
                f"{origin} gave no scores in {self.retries + 1} tries, the last time: {failure}; "
                "look at the server, what was trained is kept"
            ) from failure
        except RefusedError as failure:
            raise RewardError(
                f"{origin} refused: {failure}; it takes POST of "
                '{"prompts": [...], "responses": [...]}, what was trained is kept'
            ) from failure
        except WrongAnswerError as failure:
            raise RewardError(_not_scores(origin, failure)) from failure
        if not isinstance(answer, dict) or "scores" not in answer:
            raise RewardError(_not_scores(origin, shown_answer(answer, self.url)))
        scores = require_scores(answer["scores"], count=len(content["responses"]), origin=origin)
        # A function in Python may answer True for 1; what a server means by true nobody knows.
        if any(isinstance(score, bool) for score in answer["scores"]):
            raise RewardError(f"{origin} gave true or false for a score; a number is needed")
        if not all(math.isfinite(score) for score in scores):
            raise RewardError(f"{origin} gave a score that is not finite; look at the server")
        return scores


def _not_scores(origin: str, shown: object) -> str:
    return f'{origin} answered {shown} where {{"scores": [...]}} is needed; look at the server'
