"""The report on a campaign's labels: one for all annotators and a line for each.

Which labels enter which figure: agreement, tau, places, lengths, ties and ratings take tasks given
to be labelled (`purpose` "label"), accuracy takes gold tasks, self-consistency takes repeats; the
qualification, which gives feedback, enters none but the count and the time. Only last revisions
count, and of an adjudicated task what the annotators said.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from data.labels.agreement import agreement, annotator_behaviour
from data.labels.agreement.annotator_behaviour import Seconds, Seen
from data.labels.agreement.ceiling import Ceiling, accuracy_ceiling
from data.labels.agreement.figures import Figure
from data.labels.campaign.label_filter import cluster_of, labels_of
from data.labels.records import RATINGS, AnnotatorKind, LabelRow, Purpose, Skip

FIGURES: dict[str, tuple[str, str]] = {
    "agreement": ("Pair agreement, ties count", "two annotators say the same of two answers"),
    "agreement_no_ties": ("Pair agreement without ties", "the same where both took a side"),
    "alpha_pairs": ("Alpha of pairs", "Krippendorff's, nominal; 0 is chance, 1 is full agreement"),
    "alpha_ratings": ("Alpha of ratings", "Krippendorff's, ordinal"),
    "tau": ("Tau-b to the others", "Kendall's, to the mean ranks of the other annotators; -1 to 1"),
    "gold_accuracy": ("Accuracy on gold", "share of the known order that is kept"),
    "self_consistency": ("Self-consistency", "the same said when a task comes again"),
    "first_shown_wins": ("First shown wins", "50 % unless the place sways"),
    "longer_wins": ("Longer answer wins", "among answers of different length"),
    "tie_rate": ("Ties", "share of pairs"),
    "skip_rate": ("Skipped", "share of tasks met"),
}
"""Figures by name: their title and what they say."""
PLAIN = frozenset({"alpha_pairs", "alpha_ratings", "tau"})
"""Figures that are no shares."""


@dataclass(frozen=True)
class Group:
    """The figures of a group of labels: a campaign's, or one annotator's.

    Attributes:
        labels: last revisions, of any purpose.
        tasks: different tasks among them.
        figures: by the names of `FIGURES`; alphas only for a campaign.
        seconds: time on the tasks.
        skip_reasons: how often each was given.
        flags: how often each was set.
    """

    labels: int
    tasks: int
    figures: dict[str, Figure]
    seconds: Seconds
    skip_reasons: dict[str, int]
    flags: dict[str, int]


@dataclass(frozen=True)
class AnnotatorStatistics:
    """One annotator's figures; agreement and tau are with the others."""

    id: str
    name: str
    kind: AnnotatorKind
    group: Group


@dataclass(frozen=True)
class LabelStatistics:
    """The report on a campaign.

    Attributes:
        campaign: its name.
        overlapping: tasks that two annotators or more labelled, what agreement rests on.
        whole: figures over all annotators.
        ceiling: what the agreement allows a reward model.
        annotators: the most labels first.
        n_tasks: tasks of the campaign, labelled or not, gold ones apart; None where not known.
        kinds: whose labels these are; empty for everybody's.
        adjudicated: tasks that an admin decided; no figure counts what was said there.
    """

    campaign: str
    overlapping: int
    whole: Group
    ceiling: Ceiling
    annotators: list[AnnotatorStatistics]
    n_tasks: int | None = None
    kinds: tuple[AnnotatorKind, ...] = ()
    adjudicated: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON object; no value is NaN."""
        return {**asdict(self), "ceiling": self.ceiling._asdict()}


def label_statistics(
    rows: Iterable[LabelRow],
    skips: Iterable[Skip] = (),
    *,
    campaign: str = "",
    kinds: Collection[AnnotatorKind] | None = None,
    n_tasks: int | None = None,
    seed: int = 0,
) -> LabelStatistics:
    """Return the report on a campaign's labels.

    Args:
        rows: its labels; of several revisions the last counts.
        skips: what was skipped.
        campaign: its name.
        kinds: only labels of these kinds of annotators; None takes all.
        n_tasks: tasks of the campaign, labelled or not.
        seed: of the turns of pairs.
    """
    everything = labels_of(rows, purposes=None)
    adjudicated = sum(row.assignment.purpose == "adjudication" for row in everything)
    labels = labels_of(everything, purposes=None, kinds=kinds, adjudicated=False)
    skipped = [skip for skip in skips if kinds is None or skip.annotator.kind in kinds]
    tasks = _task_ranks(_of(labels, "label"))
    everybody = _group(labels, skipped, tasks, None)
    everybody.figures.update(_alphas(labels, tasks, seed))
    annotators = {row.annotator.id: row.annotator for row in labels}
    annotators.update({skip.annotator.id: skip.annotator for skip in skipped})
    own: dict[str, _Own] = defaultdict(lambda: _Own([], [], []))
    for row in labels:
        own[row.annotator.id].labels.append(row)
    for skip in skipped:
        own[skip.annotator.id].skips.append(skip)
    for task in tasks:
        for person in task.ranks:
            own[person].tasks.append(task)
    each = [
        AnnotatorStatistics(
            id=person.id,
            name=person.name,
            kind=person.kind,
            group=_group(*own[person.id], person.id),
        )
        for person in annotators.values()
    ]
    return LabelStatistics(
        campaign=campaign or (labels[0].campaign if labels else ""),
        overlapping=sum(len(task.ranks) > 1 for task in tasks),
        whole=everybody,
        ceiling=accuracy_ceiling(agreement=everybody.figures["agreement_no_ties"]),
        annotators=sorted(each, key=lambda one: (-one.group.labels, one.name, one.id)),
        n_tasks=n_tasks,
        kinds=tuple(kinds or ()),
        adjudicated=adjudicated,
    )


class _Own(NamedTuple):
    """What one annotator did, and the tasks of which they said something."""

    labels: list[LabelRow]
    skips: list[Skip]
    tasks: list[agreement.TaskRanks]


def _of(labels: Iterable[LabelRow], purpose: Purpose) -> list[LabelRow]:
    return [row for row in labels if row.assignment.purpose == purpose]


def _task_ranks(labels: Iterable[LabelRow]) -> list[agreement.TaskRanks]:
    """Return what was said by task; of an annotator's labels of one task the first counts."""
    by_task: dict[str, dict[str, Sequence[int]]] = defaultdict(dict)
    prompts: dict[str, str] = {}
    for row in labels:
        task = row.assignment.task
        prompts[task.id] = cluster_of(row)
        by_task[task.id].setdefault(row.annotator.id, row.label.submission.ranks)
    return [agreement.TaskRanks(prompts[task], task, ranks) for task, ranks in by_task.items()]


def _group(
    labels: list[LabelRow],
    skips: list[Skip],
    tasks: list[agreement.TaskRanks],
    annotator: str | None,
) -> Group:
    plain = [_seen(row) for row in _of(labels, "label")]
    gold = [
        (row.label.submission.ranks, row.assignment.task.new.gold_ranks)
        for row in _of(labels, "gold")
        if row.assignment.task.new.gold_ranks
    ]
    figures = {
        "agreement": agreement.pair_agreement(tasks=tasks, ties=True, annotator=annotator),
        "agreement_no_ties": agreement.pair_agreement(tasks=tasks, ties=False, annotator=annotator),
        "tau": agreement.tau_to_others(tasks=tasks, annotator=annotator),
        "gold_accuracy": agreement.gold_accuracy(
            labels=[(ranks, known) for ranks, known in gold if known]
        ),
        "self_consistency": agreement.self_consistency(repeats=_repeats(labels)),
        "first_shown_wins": annotator_behaviour.first_shown_wins(labels=plain),
        "longer_wins": annotator_behaviour.longer_wins(labels=plain),
        "tie_rate": annotator_behaviour.tie_rate(labels=plain),
        "skip_rate": annotator_behaviour.skip_rate(labels=len(labels), skips=len(skips)),
    }
    flags = Counter(
        flag for row in labels for answer in row.label.submission.flags for flag in answer
    )
    return Group(
        labels=len(labels),
        tasks=len({row.assignment.task.id for row in labels}),
        figures=figures,
        seconds=annotator_behaviour.seconds(times=[row.label.submission.seconds for row in labels]),
        skip_reasons=dict(Counter(skip.reason for skip in skips).most_common()),
        flags=dict(flags.most_common()),
    )


def _alphas(
    labels: list[LabelRow], tasks: list[agreement.TaskRanks], seed: int
) -> dict[str, Figure]:
    rated: dict[tuple[str, int], dict[str, int]] = defaultdict(dict)
    prompts: dict[str, str] = {}
    for row in _of(labels, "label"):
        task = row.assignment.task.id
        prompts[task] = cluster_of(row)
        for place, rating in enumerate(row.label.submission.ratings):
            rated[task, place].setdefault(row.annotator.id, rating)
    return {
        "alpha_pairs": agreement.pair_alpha(tasks=tasks, seed=seed),
        "alpha_ratings": agreement.rating_alpha(
            ratings=[(prompts[task], list(by.values())) for (task, _), by in rated.items()],
            values=RATINGS,
        ),
    }


def _seen(row: LabelRow) -> Seen:
    return Seen(
        prompt=cluster_of(row),
        ranks=row.label.submission.ranks,
        order=row.assignment.order,
        lengths=[len(text) for text in row.assignment.task.new.completions],
    )


def _repeats(labels: Iterable[LabelRow]) -> list[tuple[str, Sequence[int], Sequence[int]]]:
    """Return each repeat with the same annotator's first label of its task."""
    first: dict[tuple[str, str], LabelRow] = {}
    again: list[LabelRow] = []
    for row in sorted(labels, key=lambda row: row.label.created_at):
        if row.assignment.purpose == "repeat":
            again.append(row)
        else:
            first.setdefault((row.annotator.id, row.assignment.task.id), row)
    repeats: list[tuple[str, Sequence[int], Sequence[int]]] = []
    for row in again:
        before = first.get((row.annotator.id, row.assignment.task.id))
        if before is not None:
            ranks = before.label.submission.ranks
            repeats.append((cluster_of(row), ranks, row.label.submission.ranks))
    return repeats
