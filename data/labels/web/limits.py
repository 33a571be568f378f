"""How often somebody may try: token buckets in memory, one a key."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

_KEYS = 10_000
"""Buckets kept; the longest unused is forgotten first, so that nobody fills the memory."""


class Limit:
    """Lets a key do something `burst` times at once, and `per_minute` times a minute after that.

    Args:
        burst: size of the bucket.
        per_minute: how fast it fills again.
        clock: seconds that only go up; tests put their own here.
    """

    def __init__(
        self, burst: int, per_minute: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.burst = burst
        self.per_minute = per_minute
        self.clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, key: str) -> float:
        """Take one and return 0, or return the seconds until there is one again."""
        return self._look(key, 1.0)

    def wait(self, key: str) -> float:
        """Return the seconds until there is one, 0 if there is; takes none."""
        return self._look(key, 0.0)

    def _look(self, key: str, cost: float) -> float:
        with self._lock:
            now = self.clock()
            left, then = self._buckets.pop(key, (float(self.burst), now))
            left = min(float(self.burst), left + (now - then) * self.per_minute / 60)
            missing = 1.0 - left
            if missing <= 0:
                left -= cost
            self._buckets[key] = (left, now)
            if len(self._buckets) > _KEYS:
                self._buckets.popitem(last=False)
        return max(0.0, missing * 60 / self.per_minute)
