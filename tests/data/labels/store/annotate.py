"""Label until nothing is left, with many threads; run as a process of its own by the tests.

    python annotate.py URL CAMPAIGN PREFIX THREADS

Each thread is a person; a line is printed for each label once the store has acknowledged it.
"""

from __future__ import annotations

import sys
import threading

from data.labels.campaign.accounts import Accounts
from data.labels.campaign.campaigns import Campaigns
from data.labels.campaign.queue import Queue
from data.labels.campaign.submissions import Submissions
from data.labels.records import Submission
from data.labels.store.database import open_database

OUT = threading.Lock()


def annotate(queue: Queue, submissions: Submissions, annotator_id: str, campaign_id: str) -> None:
    while (given := queue.next(annotator_id, campaign_id)) is not None:
        ranks = [place + 1 for place in range(len(given.task.new.completions))]
        label = submissions.submit(given.id, annotator_id, Submission(f"key {given.id}", ranks))
        with OUT:
            print(label.id, flush=True)


def main(url: str, campaign: str, prefix: str, threads: str) -> None:
    database = open_database(url)
    found = Campaigns(database).get(campaign)
    assert found is not None
    accounts = [Accounts(database).add(f"{prefix}{n}", "person") for n in range(int(threads))]
    failures: list[BaseException] = []

    def run(annotator_id: str) -> None:
        try:
            annotate(Queue(database), Submissions(database), annotator_id, found.id)
        except BaseException as error:
            failures.append(error)
            raise

    workers = [threading.Thread(target=run, args=(person.id,)) for person in accounts]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    database.close()
    sys.exit(len(failures))


if __name__ == "__main__":
    main(*sys.argv[1:])
