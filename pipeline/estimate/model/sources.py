"""How many rows a stage reads and how long they are, from the sources where they are at hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from os.path import commonprefix
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.records import (
    Document,
    Extract,
    Labelled,
    Prompt,
    Ranking,
    Record,
    Tagged,
    prompt_of,
    turn_text,
)
from data.sources.read import read
from pipeline.estimate.model.assumptions import (
    ANSWER_TOKENS,
    BYTES_PER_TOKEN,
    PROMPT_TOKENS,
    ROWS,
    SIDE_TOKENS,
    Assumptions,
)

if TYPE_CHECKING:
    from pipeline.contract.settings import SourceSettings

MEASURED = 1000
"""So many rows of each source are measured; the rest is counted."""
SECONDS = 10.0
"""A source that takes longer is not read to its end."""

Count = Callable[[str], int]
"""Returns the tokens of a text."""


@dataclass(frozen=True)
class Tree:
    """A ranking as the reward model computes it: what its sequences begin with is there once.

    Attributes:
        prefix: tokens that are there once.
        branch: tokens of a branch, on average.
        widest: tokens of the longest branch, to which attention pads the others.
        branches: how many there are.
    """

    prefix: float
    branch: float
    widest: float
    branches: float

    @property
    def tokens(self) -> float:
        """All tokens; none is padding."""
        return self.prefix + self.branches * self.branch

    @property
    def squares(self) -> float:
        """Pairs of tokens in attention: prefix on itself, branches on it and themselves."""
        attended = self.prefix + self.widest
        return self.prefix**2 + self.branches * self.widest * attended


@dataclass
class Lengths:
    """Rows, and the tokens of those that were measured.

    Attributes:
        rows: how many there are.
        prompts: tokens of each measured prompt; 0 for a document.
        answers: tokens of each measured answer (mean of a ranking's completions), or document.
        widest: tokens of each measured answer, the longest of a ranking's completions.
        completions: mean completions of a row.
        shared: tokens that all completions of each measured ranking begin with; empty for none.
    """

    rows: float = 0.0
    prompts: list[float] = field(default_factory=list)
    answers: list[float] = field(default_factory=list)
    widest: list[float] = field(default_factory=list)
    completions: float = 1.0
    shared: list[float] = field(default_factory=list)

    @property
    def prompt_mean(self) -> float:
        """Mean tokens of a prompt."""
        return sum(self.prompts) / max(1, len(self.prompts))

    def behind(self, tokens: float) -> Lengths:
        """Return the rows with so many tokens more before what each asks."""
        return replace(self, prompts=[prompt + tokens for prompt in self.prompts])

    def whole(self, limit: float | None = None) -> list[float]:
        """Return the tokens of each measured row, cut at a limit."""
        cut = limit if limit is not None else float("inf")
        return [min(p + a, cut) for p, a in zip(self.prompts, self.answers, strict=True)]

    def trees(self, limit: float) -> list[Tree]:
        """Return each measured ranking as a tree, its sequences cut at a limit."""
        trees = []
        rows = zip(self.prompts, self.answers, self.widest, self._begun(), strict=True)
        for prompt, answer, widest, begun in rows:
            sequence, longest = min(prompt + answer, limit), min(prompt + widest, limit)
            # A branch keeps a token of its own.
            prefix = max(0.0, min(prompt + begun, sequence - 1)) if self.completions > 1 else 0.0
            trees.append(Tree(prefix, sequence - prefix, longest - prefix, self.completions))
        return trees

    def _begun(self) -> list[float]:
        return self.shared or [0.0] * len(self.prompts)

    def __add__(self, other: Lengths) -> Lengths:
        rows = self.rows + other.rows
        total = self.rows * self.completions + other.rows * other.completions
        return Lengths(
            rows,
            self.prompts + other.prompts,
            self.answers + other.answers,
            self.widest + other.widest,
            total / rows if rows else 1.0,
            self._begun() + other._begun(),
        )


@dataclass
class Reader:
    """Measures sources, each once.

    Attributes:
        assumed: what was given and assumed.
        seconds: after which a source is not read on.
    """

    assumed: Assumptions
    seconds: float = SECONDS
    _seen: dict[str, tuple[Lengths, str]] = field(default_factory=dict)

    def measure(
        self,
        stage: str,
        sources: Sequence[SourceSettings],
        count: Count,
        *,
        key: str = "",
        heldout: bool = False,
    ) -> Lengths:
        """Return the lengths of all sources together.

        Args:
            stage: for whose sake, for `--assume` and the notes.
            sources: what it reads.
            count: tokens of a text.
            key: tells counts apart.
            heldout: of rows kept apart; `--assume` is about those that a stage works on.

        Raises:
            SourceError: a local source can't be read.
        """
        lengths = Lengths()
        for source in sources:
            place = f"{key} {source.model_dump_json()}"
            if place not in self._seen:
                self._seen[place] = self._measure(source, count)
            measured, note = self._seen[place]
            if note:
                self.assumed.tell(stage, note)
            lengths = lengths + measured
        return lengths if heldout else self._given(stage, lengths)

    def _given(self, stage: str, lengths: Lengths) -> Lengths:
        rows = self.assumed.get(stage, "rows")
        prompt = self.assumed.get(stage, "prompt_tokens")
        answer = self.assumed.get(stage, "answer_tokens")
        if rows is not None:
            lengths.rows = rows
        if prompt is not None:
            lengths.prompts = [prompt] * max(1, len(lengths.prompts))
        if answer is not None:
            lengths.answers = lengths.widest = [answer] * max(1, len(lengths.answers))
        if prompt is not None or answer is not None:
            lengths.shared = []
        return lengths

    def _measure(self, source: SourceSettings, count: Count) -> tuple[Lengths, str]:
        unread = source.hub if source.hub and not Path(source.hub).is_dir() else source.stage
        if unread is not None:
            rows = source.limit or ROWS
            return Lengths(rows, [PROMPT_TOKENS], [ANSWER_TOKENS], [ANSWER_TOKENS]), (
                f"{unread} is not read: {rows:,} rows{'' if source.limit else ' assumed'}, "
                f"{PROMPT_TOKENS} tokens a prompt and {ANSWER_TOKENS} an answer assumed"
            )
        lengths, started, note = Lengths(), time.monotonic(), ""
        completions = 0
        for record in read(source.source()):
            if lengths.rows < MEASURED:
                prompt, answers = _texts(record)
                completions += len(answers)
                lengths.prompts.append(float(_prompt_tokens(prompt, count)))
                sizes = [count(answer) + SIDE_TOKENS for answer in answers]
                lengths.answers.append(sum(sizes) / max(1, len(sizes)))
                lengths.widest.append(float(max(sizes, default=0)))
                begun = commonprefix(answers) if len(answers) > 1 else ""  # noqa: RUF071
                lengths.shared.append(float(count(begun)) if begun else 0.0)
            lengths.rows += 1
            if time.monotonic() - started > self.seconds:
                note = (
                    f"{source.path or source.hub or source.world} was read for "
                    f"{self.seconds:g} s: {lengths.rows:,.0f} rows at the least"
                )
                break
        lengths.completions = completions / max(1, len(lengths.answers))
        return lengths, note


def _texts(record: Record) -> tuple[Prompt, list[str]]:
    """Return a record's prompt and answers; a document is an answer to nothing."""
    if isinstance(record, (Document, Tagged)):
        return "", [record.text]
    if isinstance(record, Labelled):
        return record.text, [record.pair]
    if isinstance(record, Extract):
        return record.question, [record.context]
    if isinstance(record, Ranking):
        return record.prompt, list(record.completions)
    answered: Any = record
    if hasattr(answered, "completion"):
        return prompt_of(record), [answered.completion]
    if hasattr(answered, "messages"):
        return prompt_of(record), [turn_text(answered.messages[-1])]
    return prompt_of(record), []


def _prompt_tokens(prompt: Prompt, count: Count) -> int:
    if isinstance(prompt, str):
        return count(prompt)
    return sum(count(turn_text(turn)) + SIDE_TOKENS for turn in prompt)


def count_bytes(text: str) -> int:
    """Return the tokens of a text by the bytes that a token is assumed to hold."""
    return round(len(text.encode("utf-8", "surrogatepass")) / BYTES_PER_TOKEN)
