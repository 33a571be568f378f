"""Whether the Hugging Face hub answers, asked once, before a library asks for half a minute.

`huggingface_hub` tries five times with pauses that double, and so does every library above it. So
before anything is taken from the hub, one small request of at most two seconds tells whether it
answers. Where it does not, the libraries are told that they are offline: what lies in their cache
is still used, and what does not is an error at once. Downloads keep their own, longer patience.
"""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass

SECONDS = 2.0
"""How long the hub may take to answer."""
_AGAIN = 60.0
"""Seconds after which an answer, or none, is no longer believed."""


@dataclass
class _Look:
    """What the last look found, and when."""

    at: float = float("-inf")
    trouble: str | None = None


_last = _Look()


def hub_trouble() -> str | None:
    """Return why nothing can be taken from the hub, None where it answers.

    Where it does not, the libraries work offline until it answers again. What the user set by
    `HF_HUB_OFFLINE` stays.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE and _last.trouble is None:
        return "HF_HUB_OFFLINE is set"
    if time.monotonic() - _last.at > _AGAIN:
        if _last.trouble is not None:
            _set_offline(False)
        _last.trouble = _look(constants.ENDPOINT)
        _last.at = time.monotonic()
        if _last.trouble is not None:
            _set_offline(True)
    return _last.trouble


def _look(endpoint: str) -> str | None:
    """Ask an address for its head; any answer will do. Return why there is none."""
    troubles = [f"{endpoint} did not answer within {SECONDS:g} seconds"]

    def ask() -> None:
        from huggingface_hub import get_session

        try:
            get_session().head(endpoint, timeout=SECONDS)
            troubles.append("")
        except Exception as error:  # the client's own kinds differ between its versions
            troubles.append(f"{endpoint} can't be reached: {error or type(error).__name__}")

    # In a thread of its own: looking up a name takes what time it likes.
    thread = threading.Thread(target=ask, name="hub", daemon=True)
    thread.start()
    thread.join(SECONDS)
    return troubles[-1] or None


def _set_offline(offline: bool) -> None:
    """Tell the libraries whether they are offline; they look at these at every request."""
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = offline
    # Where it is not imported yet it will take over what was just set.
    datasets = sys.modules.get("datasets")
    if datasets is not None:
        datasets.config.HF_HUB_OFFLINE = offline
