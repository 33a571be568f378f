"""People as a judge: pairs of answers as tasks of the label service, labels as judgements.

A task is a prompt and two different answers to it, in no order that tells who wrote which; no
checkpoint's name goes into the database. A task's key is a digest of the prompt and both answers,
so that a label counts for these answers and no others; `people.json` tells which checkpoints wrote
them. The campaign's name ends in a digest of all keys: where some answers change, another campaign
asks for those that nobody compared yet.

Two answers that read the same are not shown to anybody and tie: while labels are still coming in,
as large a part of them enters as is labelled of the others.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from data.json_lines import read_json_object
from data.labels.agreement.agreement import TaskRanks, pair_agreement, pair_alpha
from data.labels.agreement.annotator_behaviour import Seen, first_shown_wins
from data.labels.records import AnnotatorKind, Campaign, CampaignSettings, LabelRow, NewTask
from data.records import Prompt, prompt_hash
from data.storage import write_atomically
from data.words import counted
from pipeline.evaluation.judge.figures import compared
from pipeline.evaluation.judge.plan import Judged, PairJudge

if TYPE_CHECKING:
    from data.labels.store.database import Database

Row = Mapping[str, Any]
PEOPLE = "people"
"""What the judge is called."""
FILE = "people.json"
CAMPAIGN = "comparison-"
"""Begins the name of each campaign: people see it, so that it names no checkpoint or folder."""
KINDS: tuple[AnnotatorKind, ...] = ("person", "imported")
"""Whose labels count: the service has annotators who are no people, too."""


@dataclass(frozen=True)
class People:
    """How people are asked.

    Attributes:
        run: the folder that the commands of `rlhf label` name.
        opened: opens the label database.
        overlap: share of the pairs that several people compare.
        annotators_per_task: how many compare each of those.
        guidelines: what they read first.
        title: what the pages call it.
        wait: returns once enough is labelled; without it, what is there is taken.
    """

    run: Path
    opened: Callable[[], AbstractContextManager[Database]]
    overlap: float = CampaignSettings.overlap
    annotators_per_task: int = 2
    guidelines: str = ""
    title: str = ""
    wait: Callable[[Database, Campaign], None] = lambda database, campaign: None


class _Writers(NamedTuple):
    """Who wrote two answers to the prompt at an index; `place` is that of `a`'s among them."""

    at: int
    a: str
    b: str
    place: int


@dataclass
class _Pair:
    """Two answers to a prompt, in the order of the alphabet, and whose they are."""

    prompt: Prompt
    answers: list[str]
    writers: list[_Writers] = field(default_factory=list)


def people_judge(
    people: People, *, folder: Path, seed: int, say: Callable[[str], None]
) -> PairJudge:
    """Return what asks people to compare answers, and takes what they said so far.

    Args:
        people: how they are asked.
        folder: gets `people.json`.
        seed: of the orders in which answers are shown.
        say: takes a line for the reader.
    """

    def judge(rows: Sequence[Row]) -> Judged:
        pairs, same = _pairs(rows)
        with people.opened() as database:
            earlier, gone = _asked_before(folder / FILE, database)
            for name in gone:
                say(
                    f"people: {database.url} does not hold campaign {name} any more: what was said "
                    "in it is not counted, and all is asked anew; bring the database back, or name "
                    "the folder where it is"
                )
            campaign = _ask(database, people, pairs, seed)
            earlier = [name for name in earlier if name != campaign.name]
            _write_down(folder / FILE, [*earlier, campaign.name], pairs)
            people.wait(database, campaign)
            labels, progress = _labels(database, pairs), _progress(database, campaign, pairs)
            own = _labels(database, pairs, adjudicated=False)
            not_taken = _not_taken(database, earlier, pairs)
        for name, count in not_taken.items():
            say(
                f"people: {counted(count, 'label')} of campaign {name} not taken, of answers that "
                "changed since or are compared no more; end it with: "
                f"rlhf label tasks {people.run} --close {name}"
            )
        if progress["closed"]:
            say(
                f"people: campaign {campaign.name} is closed at {progress['complete']} of "
                f"{counted(len(pairs), 'pair')}; to hear more, evaluate again after: "
                f"rlhf label tasks {people.run} --reopen {campaign.name}"
            )
        judgements = _judgements(pairs, same, labels)
        told = {
            "kind": "people",
            "campaign": campaign.name,
            "labelled": len({row.assignment.task.new.key for row in labels}),
            **progress,
            "labels": len(own),
            "annotators": len({row.annotator.id for row in own}),
            "adjudicated": sum(row.assignment.purpose == "adjudication" for row in labels),
            "same_answers": len(same),
            "labels_not_taken": sum(not_taken.values()),
            # People agree by what they said themselves, whatever an admin made of it.
            **people_figures(_judgements(pairs, same, own), seed=seed),
        }
        return Judged(judgements, told)

    return judge


def people_figures(rows: Iterable[Row], *, seed: int) -> dict[str, Any]:
    """Return how well people agree, and how often the answer on the left won, of judgements.

    The latter is one half where nothing but the place tells the two apart, for they are shuffled.
    """
    ranks: dict[tuple[str, str], dict[str, list[int]]] = defaultdict(dict)
    seen: list[Seen] = []
    first: dict[str, tuple[int, str, str]] = {}
    for row in rows:
        # An answer that two checkpoints gave stands for several pairs; it was one task.
        place = (row["index"], row["a"], row["b"])
        if row["annotator"] is None or first.setdefault(row["task"], place) != place:
            continue
        given = {1.0: [1, 2], 0.5: [1, 1], 0.0: [2, 1]}[row["outcome"]]
        ranks[row["prompt"], row["task"]][row["annotator"]] = given
        order = [[0, 1], [1, 0], []][[row["a"], row["b"], None].index(row["left"])]
        seen.append(Seen(prompt=row["prompt"], ranks=given, order=order, lengths=[]))
    tasks = [TaskRanks(prompt, task, by) for (prompt, task), by in ranks.items()]
    found = {
        "agreement": pair_agreement(tasks=tasks, ties=True),
        "agreement_no_ties": pair_agreement(tasks=tasks, ties=False),
        "alpha": pair_alpha(tasks=tasks, seed=seed),
        "left_wins": first_shown_wins(labels=seen),
    }
    return {name: figure.to_json() for name, figure in found.items()}


def _pairs(rows: Sequence[Row]) -> tuple[dict[str, _Pair], list[_Writers]]:
    """Return the pairs of different answers by key; and where two read the same."""
    pairs: dict[str, _Pair] = {}
    same = []
    for a, b in compared(rows):
        answers = sorted([a["response"], b["response"]])
        place = answers.index(a["response"])
        writers = _Writers(a["index"], a["checkpoint"], b["checkpoint"], place)
        if answers[0] == answers[1]:
            same.append(writers)
            continue
        key = _digest(["compare", prompt_hash(a["prompt"]), answers])[:32]
        pairs.setdefault(key, _Pair(a["prompt"], answers)).writers.append(writers)
    return pairs, same


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _ask(database: Database, people: People, pairs: Mapping[str, _Pair], seed: int) -> Campaign:
    """Store the campaign, with a task for each pair that no other one has labels of."""
    from data.labels.campaign.campaigns import Campaigns

    campaigns = Campaigns(database)
    settings = CampaignSettings(
        mode="pairs",
        overlap=people.overlap,
        annotators_per_task=people.annotators_per_task,
        seed=seed,
    )
    name = CAMPAIGN + _digest([asdict(settings), sorted(pairs)])[:8]
    campaign = campaigns.create(
        name, settings, people.guidelines, by="evaluation", title=people.title
    )
    there = {
        row.assignment.task.new.key for row in _labels(database, pairs) if row.campaign != name
    }
    asked = [
        NewTask(key=key, prompt=pair.prompt, completions=pair.answers)
        for key, pair in pairs.items()
        if key not in there
    ]
    campaigns.add_tasks(campaign.id, asked)
    return campaign


def _asked_before(path: Path, database: Database) -> tuple[list[str], list[str]]:
    """Return the campaigns that were asked before, and those that the database has lost."""
    from data.labels.campaign.campaigns import Campaigns

    before = read_json_object(path).get("campaigns", []) if path.is_file() else []
    there = [name for name in before if Campaigns(database).get(name) is not None]
    return there, [name for name in before if name not in there]


def _write_down(path: Path, campaigns: Sequence[str], pairs: Mapping[str, _Pair]) -> None:
    """Write whose answers the tasks show, and which campaigns ask."""
    tasks = {
        key: [
            {"index": w.at, "completions": [w.b, w.a] if w.place else [w.a, w.b]}
            for w in pair.writers
        ]
        for key, pair in pairs.items()
    }
    content = {"campaigns": campaigns, "tasks": tasks}
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def _labels(
    database: Database, pairs: Mapping[str, _Pair], *, adjudicated: bool = True
) -> list[LabelRow]:
    """Return what people said of these pairs, in whichever campaign they were asked.

    With `adjudicated` an admin's word takes the place of what annotators said.
    """
    from data.labels.campaign.campaigns import Campaigns

    return [
        row
        for campaign in Campaigns(database).list()
        if campaign.name.startswith(CAMPAIGN)
        for row in _labels_in(database, campaign, adjudicated=adjudicated)
        if _is_of(row, pairs)
    ]


def _labels_in(
    database: Database, campaign: Campaign, *, adjudicated: bool = True
) -> list[LabelRow]:
    from data.labels.campaign.label_filter import labels_of
    from data.labels.campaign.submissions import Submissions

    rows = Submissions(database).labels(campaign.id)
    return labels_of(rows, kinds=KINDS, adjudicated=adjudicated)


def _is_of(row: LabelRow, pairs: Mapping[str, _Pair]) -> bool:
    task = row.assignment.task.new
    return task.key in pairs and sorted(task.completions) == pairs[task.key].answers


def _progress(database: Database, campaign: Campaign, pairs: Mapping[str, _Pair]) -> dict[str, Any]:
    """Return how many pairs there are, how many have all their labels, and what of the rest."""
    from data.labels.campaign.campaigns import Campaigns

    campaigns = Campaigns(database)
    progress, known = campaigns.progress(campaign.id), campaigns.by_id(campaign.id)
    done = len(pairs) - progress.tasks + progress.complete
    closed = known is not None and known.closed
    left = done < len(pairs)
    states = {"open": left and not closed, "closed": left and closed}
    return {"pairs": len(pairs), "complete": done, **states}


def _not_taken(
    database: Database, earlier: Iterable[str], pairs: Mapping[str, _Pair]
) -> dict[str, int]:
    """Return how many labels of campaigns before this one are of other answers."""
    from data.labels.campaign.campaigns import Campaigns

    found = {}
    for name in earlier:
        campaign = Campaigns(database).get(name)
        if campaign is not None:
            labels = _labels_in(database, campaign)
            found[name] = sum(not _is_of(row, pairs) for row in labels)
    return {name: count for name, count in found.items() if count}


def _judgements(
    pairs: Mapping[str, _Pair], same: Sequence[_Writers], labels: Iterable[LabelRow]
) -> list[dict[str, Any]]:
    """Return a row for each label and each two checkpoints that it compares, and the ties."""
    rows = []
    for label in labels:
        task = label.assignment.task.new
        pair, ranks = pairs[task.key], label.label.submission.ranks
        left = [task.completions[place] for place in label.assignment.order[:1]]
        rank = dict(zip(task.completions, ranks, strict=True))
        for at, a, b, place in pair.writers:
            ours, theirs = rank[pair.answers[place]], rank[pair.answers[1 - place]]
            rows.append(
                {
                    "index": at,
                    "a": a,
                    "b": b,
                    "outcome": (1 + (ours < theirs) - (ours > theirs)) / 2,
                    "task": task.key,
                    "prompt": prompt_hash(pair.prompt),
                    "annotator": label.annotator.id,
                    "left": (a if left == [pair.answers[place]] else b) if left else None,
                }
            )
    return rows + _ties(pairs, same, rows)


def _ties(
    pairs: Mapping[str, _Pair], same: Sequence[_Writers], rows: Sequence[Row]
) -> list[dict[str, Any]]:
    """Return ties for answers that read the same, of as large a part as is labelled of the rest."""
    asked = Counter((w.a, w.b) for pair in pairs.values() for w in pair.writers)
    said = Counter((a, b) for _, a, b in {(row["index"], row["a"], row["b"]) for row in rows})
    ties: dict[tuple[str, str], list[int]] = defaultdict(list)
    for writers in same:
        ties[writers.a, writers.b].append(writers.at)
    unsaid = dict.fromkeys(("task", "prompt", "annotator", "left"))
    return [
        {"index": at, "a": a, "b": b, "outcome": 0.5, **unsaid}
        for (a, b), mine in ties.items()
        for part in [said[a, b] / asked[a, b] if asked[a, b] else 1]
        for at in sorted(mine, key=_digest)[: round(part * len(mine))]
    ]
