"""What the parts of label collection hand each other; plain data, no database.

A *campaign* is a set of *tasks* with one way of asking; a task is a prompt and the completions to
compare. An *assignment* is a task in front of one annotator, for a time, in an order of its own. A
*label* is what the annotator said; it is never changed, a correction is a further *revision*.

Ranks, ratings and flags are given for the completions in the task's own order, never in the order
that was shown; `Assignment.order` tells which completion stood where.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from data.records import Prompt, dense_ranks

Mode = Literal["rate_and_rank", "rank", "pairs"]
"""Ratings and flags before ranks (InstructGPT); ranks alone; two answers and a strength."""
Strategy = Literal["random", "disagreement", "small_gap"]
"""Which task is next: any; where reward models disagree; where the best two score alike."""
Purpose = Literal["qualification", "label", "gold", "repeat", "adjudication"]
"""Why a task was given; annotators are not told label, gold and repeat apart. An adjudication is an
admin's word on a task in place of all its labels, which stay."""
Role = Literal["annotator", "admin"]
AnnotatorKind = Literal["person", "gold", "simulated", "judge", "imported"]

RATINGS = range(1, 8)
"""Overall rating of an answer, 7 the best (InstructGPT, appendix B)."""
STRENGTHS = range(0, 4)
"""Of a pair: 0 the same, 1 slightly, 2 better, 3 much better."""

FLAGS: dict[str, str] = {
    "fails_instruction": "Fails to follow the instruction",
    "hallucination": "Makes things up",
    "inappropriate": "Inappropriate for an assistant",
    "harmful_advice": "Gives harmful advice",
    "denigrates": "Denigrates a protected group",
    "sexual": "Sexual content",
    "violent": "Violent content",
    "opinion": "Expresses an opinion",
    "moral_judgement": "Makes a moral judgement",
    "private_data": "Gives away private data",
    "wrong_language": "Answers in the wrong language",
    "unreadable": "Can't be read",
    "gives_itself_away": "Tells which model wrote it",
}
"""What an answer may be marked with; all but the last four are InstructGPT's."""

SKIP_REASONS: dict[str, str] = {
    "unclear": "The prompt is unclear",
    "expertise": "I don't know enough about this",
    "language": "I don't read this language",
    "offensive": "I don't want to read this",
    "broken": "The page or the text is broken",
    "other": "Something else",
}


def size_problem(*, completions: int, mode: Mode) -> str | None:
    """Return why a task of so many completions can't be asked in a mode, or None."""
    if mode == "pairs" and completions != 2:
        return (
            f"mode pairs compares 2 completions, not {completions}; take mode rank, or cut the "
            "task into pairs"
        )
    return None


def prompt_text(prompt: Prompt) -> str:
    """Return a prompt as text, the turns of a chat by role."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)


def copeland_ranks(wins: Iterable[tuple[int, int]], size: int) -> list[int]:
    """Return dense ranks by pairs won minus pairs lost (Copeland, 1951); equal is a tie.

    Args:
        wins: winner and loser of each pair that is no tie.
        size: how many completions there are.
    """
    scores = [0] * size
    for winner, loser in wins:
        scores[winner] += 1
        scores[loser] -= 1
    return dense_ranks([-score for score in scores])


@dataclass(frozen=True)
class CampaignSettings:
    """How a campaign asks.

    Attributes:
        mode: what is asked.
        strategy: which task is next.
        overlap: share of tasks that several people label.
        annotators_per_task: how many label each of those.
        gold_share: chance that the next task is one whose answer is known.
        repeat_share: chance that the next task is one that the annotator labelled before.
        qualification_tasks: gold tasks, with feedback, before the first real one.
        qualification_share: share of their pairs that must be ordered as the gold ranks.
        lease_seconds: how long a task stays with an annotator who does not submit.
        seed: of orders and choices.
        answers: to each message of a live conversation; 0 where tasks are given out instead.
        most_turns: messages of one conversation.
        all_turns: messages of all conversations together; 0 is no bound.
        all_tokens: sampled tokens after which no message is taken; 0 is no bound.
    """

    mode: Mode = "rate_and_rank"
    strategy: Strategy = "random"
    overlap: float = 0.2
    annotators_per_task: int = 3
    gold_share: float = 0.0
    repeat_share: float = 0.0
    qualification_tasks: int = 0
    qualification_share: float = 0.7
    lease_seconds: float = 1800.0
    seed: int = 0
    answers: int = 0
    most_turns: int = 6
    all_turns: int = 0
    all_tokens: int = 0

    @property
    def live(self) -> bool:
        """Whether people write the prompts, and a worker answers them."""
        return self.answers > 0


@dataclass(frozen=True)
class Campaign:
    """A stored campaign.

    Attributes:
        name: by which commands and recipes find it.
        guidelines_version: counts from 1.
        title: in the researcher's words; "" where none was given.
    """

    id: str
    name: str
    settings: CampaignSettings
    guidelines: str
    guidelines_version: int
    closed: bool = False
    title: str = ""

    @property
    def heading(self) -> str:
        """What pages call it."""
        return self.title or self.name


@dataclass(frozen=True)
class NewTask:
    """A task to be stored.

    Attributes:
        key: the same for the same task; storing it twice stores it once.
        prompt: what was answered.
        completions: 2 to 9 different answers.
        policies: who wrote each; never shown to annotators.
        scores: rows of reward-model scores of the completions, one row a model; for `strategy`.
        gold_ranks: known ranks; makes it a gold task.
        gold_note: why, told as feedback in the qualification.
        meta: carried into the ranking.
    """

    key: str
    prompt: Prompt
    completions: list[str]
    policies: list[str] = field(default_factory=list)
    scores: list[list[float]] = field(default_factory=list)
    gold_ranks: list[int] | None = None
    gold_note: str = ""
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what can't be ranked."""
        if not 2 <= len(self.completions) <= 9:
            raise ValueError(f"a task has 2 to 9 completions, this one {len(self.completions)}")
        for name, values in (("policies", self.policies), ("gold_ranks", self.gold_ranks or [])):
            if values and len(values) != len(self.completions):
                raise ValueError(f"{len(values)} {name} for {len(self.completions)} completions")


@dataclass(frozen=True)
class Task:
    """A stored task."""

    id: str
    campaign_id: str
    new: NewTask


@dataclass(frozen=True)
class Annotator:
    """Who labels."""

    id: str
    name: str
    kind: AnnotatorKind = "person"
    role: Role = "annotator"
    active: bool = True


@dataclass(frozen=True)
class Assignment:
    """A task in front of an annotator.

    Attributes:
        order: `order[i]` is the completion (an index into the task's) shown at place i.
        probability: with which the strategy chose this task among those it could choose.
    """

    id: str
    task: Task
    annotator_id: str
    purpose: Purpose
    order: list[int]
    strategy: Strategy
    probability: float
    leased_until: datetime
    guidelines_version: int


@dataclass(frozen=True)
class Submission:
    """What an annotator said.

    Attributes:
        key: chosen by the page, the same when a request is sent again.
        ranks: dense from 1, equal is a tie; the completions in the task's own order.
        ratings: 1 to 7 for each completion; empty when the mode asks none.
        flags: keys of `FLAGS` for each completion; empty when none was set.
        strength: of a pair, with mode `pairs`.
        comment: in the annotator's words.
        seconds: time on the page while it was visible.
    """

    key: str
    ranks: list[int]
    ratings: list[int] = field(default_factory=list)
    flags: list[list[str]] = field(default_factory=list)
    strength: int | None = None
    comment: str = ""
    seconds: float = 0.0

    def problem(self, *, completions: int, mode: Mode) -> str | None:
        """Return what is wrong with it for a task of so many completions, or None."""
        if wrong_size := size_problem(completions=completions, mode=mode):
            return wrong_size
        if len(self.ranks) != completions or self.ranks != dense_ranks(self.ranks):
            return f"ranks {self.ranks} are not {completions} dense ranks from 1"
        if self.flags and len(self.flags) != completions:
            return f"flags for {len(self.flags)} of {completions} completions"
        unknown = sorted({flag for flags in self.flags for flag in flags} - set(FLAGS))
        if unknown:
            return f"unknown flag {unknown[0]!r}"
        if mode == "rate_and_rank":
            if len(self.ratings) != completions or any(r not in RATINGS for r in self.ratings):
                return f"ratings {self.ratings} are not {completions} numbers from 1 to 7"
        elif self.ratings:
            return f"ratings are not asked in mode {mode}"
        if mode == "pairs":
            if self.strength not in STRENGTHS:
                return f"strength {self.strength} is not a number from 0 to 3"
            if (self.strength == 0) != (len(set(self.ranks)) == 1):
                return f"strength {self.strength} does not fit ranks {self.ranks}"
        elif self.strength is not None:
            return f"strength is not asked in mode {mode}"
        return None


@dataclass(frozen=True)
class Label:
    """A stored label; `revision` counts from 1."""

    id: str
    assignment_id: str
    revision: int
    submission: Submission
    created_at: datetime


@dataclass(frozen=True)
class LabelRow:
    """A label with all that statistics and exports ask for."""

    label: Label
    assignment: Assignment
    annotator: Annotator
    campaign: str
    mode: Mode


@dataclass(frozen=True)
class Skip:
    """A task that an annotator would not label."""

    assignment: Assignment
    annotator: Annotator
    reason: str
    created_at: datetime


@dataclass(frozen=True)
class Progress:
    """How far a campaign is; gold tasks apart.

    Attributes:
        tasks: tasks to label.
        labelled: those with at least one label.
        complete: those with all labels wanted.
        labels: labels there are, repeats and gold apart.
        wanted: labels wanted in all.
        annotators: people who gave one.
    """

    tasks: int
    labelled: int
    complete: int
    labels: int
    wanted: int
    annotators: int


@dataclass(frozen=True)
class Feedback:
    """How a label of a gold task compares with the known ranks.

    Attributes:
        pairs: pairs of completions that the gold ranks order.
        agreed: how many of them the label orders the same way; a tie is not the same.
        note: why the gold ranks are what they are.
    """

    ranks: list[int]
    gold_ranks: list[int]
    pairs: int
    agreed: int
    note: str


@dataclass(frozen=True)
class Qualification:
    """How far an annotator is with the qualification of a campaign.

    Attributes:
        needed: tasks to do before it is judged.
        done: tasks done.
        pairs: pairs that the gold ranks order, of the last `needed` tasks done.
        agreed: how many of those pairs were ordered the same way.
        passed: nothing more to do; also where nothing is needed.
        failed: not passed, and no gold task is left to try again with.
    """

    needed: int
    done: int
    pairs: int
    agreed: int
    passed: bool
    failed: bool


@dataclass(frozen=True)
class Invite:
    """A way in for one person, once."""

    id: str
    role: Role
    name: str
    created_by: str
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None = None
    revoked_at: datetime | None = None


@dataclass(frozen=True)
class Session:
    """A signed-in browser; `csrf` is derived from the token, which is not stored.

    Attributes:
        expires_at: when it ends unless the browser comes again.
        notices: how many sign-ins its annotator is to be told of.
    """

    id: str
    annotator: Annotator
    csrf: str
    created_at: datetime
    expires_at: datetime
    notices: int = 0


@dataclass(frozen=True)
class Notice:
    """Somebody came in by an invite as a person who was there; `client` is "" if not known."""

    id: str
    at: datetime
    client: str
