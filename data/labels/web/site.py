"""What all pages share: the store, which campaigns are served, and the limits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from data.errors import NotYoursError
from data.labels.campaign.accounts import IDLE_HOURS, Accounts
from data.labels.campaign.campaigns import Campaigns
from data.labels.campaign.queue import Queue
from data.labels.campaign.submissions import Submissions
from data.labels.live.conversations import Conversations
from data.labels.live.relay import Relay
from data.labels.records import Campaign, Progress
from data.labels.store.database import CONNECTIONS, Database
from data.labels.web.limits import Limit

_PROGRESS_SECONDS = 5.0
"""How old a campaign's progress may be: counting it for each page would be most of the work."""


@dataclass
class Limits:
    """How often one may try; `sign_in` by address and by name, what stands below by annotator.

    Only invites that are refused count, so that a class that starts together is let in.
    """

    invite: Limit = field(default_factory=lambda: Limit(20, 10))
    sign_in: Limit = field(default_factory=lambda: Limit(10, 10))
    submit: Limit = field(default_factory=lambda: Limit(30, 60))
    draft: Limit = field(default_factory=lambda: Limit(60, 120))
    look: Limit = field(default_factory=lambda: Limit(120, 600))


class Site:
    """The store behind the pages.

    Args:
        database: where everything is.
        names: of the campaigns served; None serves all.
        secure: whether browsers come by https.
        idle_hours: after which a browser that does not come is signed out.
        relay: to the worker that answers live conversations.
        clock: seconds that only go up.
    """

    def __init__(
        self,
        database: Database,
        *,
        names: Sequence[str] | None,
        secure: bool,
        idle_hours: float = IDLE_HOURS,
        relay: Relay | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.database = database
        self.names = None if names is None else frozenset(names)
        self.secure = secure
        self.clock = clock
        self.accounts = Accounts(database, idle_hours=idle_hours)
        self.store = Campaigns(database)
        self.queue = Queue(database)
        self.submissions = Submissions(database)
        self.live = Conversations(database)
        self.relay = relay
        self.limits = Limits()
        # As many as there are connections: more would only get in each other's way.
        self.threads = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="page")
        self._progress: dict[str, tuple[float, Progress]] = {}
        self._lock = threading.Lock()

    def campaigns(self) -> list[Campaign]:
        """Return the campaigns served."""
        return [one for one in self.store.list() if self._served(one)]

    def campaign(self, campaign_id: str) -> Campaign:
        """Return a campaign that is served.

        Raises:
            NotYoursError: there is none of this id.
        """
        campaign = self.store.by_id(campaign_id)
        if campaign is None or not self._served(campaign):
            raise NotYoursError("there is no such campaign")
        return campaign

    def progress(self, campaign_id: str) -> Progress:
        """Return how far a campaign is, as of a few seconds ago."""
        now = self.clock()
        with self._lock:
            known = self._progress.get(campaign_id)
            if known is not None:
                if now - known[0] < _PROGRESS_SECONDS:
                    return known[1]
                # This request counts; the others take the old figures meanwhile.
                self._progress[campaign_id] = (now, known[1])
        progress = self.store.progress(campaign_id)
        with self._lock:
            self._progress[campaign_id] = (now, progress)
        return progress

    def _served(self, campaign: Campaign) -> bool:
        return self.names is None or campaign.name in self.names
