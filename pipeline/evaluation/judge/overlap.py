"""Counts how much of what checkpoints are judged on was seen while they were made.

A prompt is the same where its opening is (`data.sources.split`): letter case and spacing aside, the
first turn of the user or the plain text. A text for the perplexity is the same where it is word for
word. Sources are read once more, row by row: only what is judged is held in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.errors import SourceError
from data.records import Document, PromptRow, Record, prompt_of, to_text
from data.sources.read import read
from data.sources.source import Source
from data.sources.split import opening
from data.words import counted
from pipeline.evaluation.judge.inputs import Opening

DOINGS: Mapping[str, str] = {
    "pretrain": "learnt by",
    "distill": "learnt by",
    "sft": "learnt by",
    "rankings": "ranked in",
    "reward": "learnt by",
    "select": "chosen by in",
    "dpo": "learnt by",
    "kto": "learnt by",
    "grpo": "sampled on in",
    "rloo": "sampled on in",
    "ppo": "sampled on in",
}
"""What the stages of each kind do with their prompts; the name of the stage follows."""
OF_TEXT = ("pretrain", "distill")
"""Kinds that read documents, not prompts."""


@dataclass(frozen=True)
class Reading:
    """What a stage read.

    Attributes:
        kind: of the stage.
        sources: what it worked on.
        judged_by: the same, of what it held out of that.
        held_out: tells whether it held a row out.
    """

    kind: str
    sources: Sequence[Source]
    judged_by: Sequence[Source] = ()
    held_out: Callable[[Record], bool] = lambda record: False


def seen_before(
    prompts: Sequence[PromptRow],
    texts: Sequence[str],
    *,
    readings: Mapping[str, Reading],
    elsewhere: Iterable[str] = (),
    document_prompt: Opening | None = None,
) -> dict[str, Any]:
    """Return how many prompts and texts each stage has seen, and all stages together.

    Args:
        prompts: what checkpoints answer.
        texts: what their perplexity is taken of.
        readings: what each stage read, by its name.
        elsewhere: checkpoints that were made elsewhere.
        document_prompt: makes documents into prompts, where the evaluation does.

    Returns:
        `prompts`, `texts`: how many were seen; `stages`: the same of each that saw any, with its
        kind; `compared`: stages that were looked at; `unread`: those whose sources can't be read
        again; `elsewhere`: checkpoints made elsewhere.
    """
    keys = [_key(opening(row.prompt)) for row in prompts]
    text_keys = [_key(" ".join(text.split())) for text in texts]
    stages, all_prompts, all_texts = {}, set[bytes](), set[bytes]()
    unread = []
    for name, reading in readings.items():
        seen = _Seen(set(keys), set(text_keys), document_prompt)
        try:
            mine, mine_texts = seen.by(reading)
        except SourceError:
            unread.append(name)
            continue
        all_prompts |= mine
        all_texts |= mine_texts
        if mine or mine_texts:
            counts = {"prompts": _count(keys, mine), "texts": _count(text_keys, mine_texts)}
            stages[name] = {"kind": reading.kind, **counts}
    return {
        "prompts": _count(keys, all_prompts),
        "texts": _count(text_keys, all_texts),
        "stages": stages,
        "compared": [name for name in readings if name not in unread],
        "unread": unread,
        "elsewhere": list(elsewhere),
    }


def overlap(
    seen: Mapping[str, Any], made_by: Mapping[str, Sequence[str]], *, n: int
) -> list[dict[str, Any]]:
    """Return of each checkpoint how many prompts each stage that made it has seen.

    Args:
        seen: what `seen_before` returns.
        made_by: the stages by which each checkpoint came to be.
        n: prompts in all.

    Returns:
        `checkpoint`, `stage`, `shared_prompts` (None where the stage's sources can't be read
        again) and `n`.
    """

    def shared(stage: str) -> int | None:
        counts = seen["stages"].get(stage, {"prompts": 0})
        return None if stage in seen["unread"] else counts["prompts"]

    return [
        {"checkpoint": checkpoint, "stage": stage, "shared_prompts": shared(stage), "n": n}
        for checkpoint, stages in made_by.items()
        for stage in stages
    ]


@dataclass(frozen=True)
class _Seen:
    """What is looked for."""

    prompts: set[bytes]
    texts: set[bytes]
    document_prompt: Opening | None

    def by(self, reading: Reading) -> tuple[set[bytes], set[bytes]]:
        """Return which prompts and texts a stage worked on."""
        if reading.kind in OF_TEXT and not self.texts and self.document_prompt is None:
            return set(), set()  # a corpus is long, and documents ask nothing
        apart = [self._keys(record) for record in _records(reading.judged_by)]
        out = {key for key, _ in apart} | {key for _, key in apart}
        prompts, texts = set(), set()
        for record in _records(reading.sources):
            if reading.held_out(record):
                continue
            prompt, text = self._keys(record)
            if prompt in self.prompts and prompt not in out:
                prompts.add(prompt)
            if text in self.texts and text not in out:
                texts.add(text)
        return {key for key in prompts if key}, {key for key in texts if key}

    def _keys(self, record: Record) -> tuple[bytes | None, bytes | None]:
        """Return what tells a row's prompt and its text from others."""
        text = _key(" ".join(to_text(record).split())) if self.texts else None
        if not isinstance(record, Document):
            return _key(opening(prompt_of(record))), text
        row = self.document_prompt(record) if self.document_prompt is not None else None
        return (None if row is None else _key(opening(row.prompt))), text


def _records(sources: Sequence[Source]) -> Iterable[Record]:
    for source in sources:
        yield from read(source)


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:12]


def _count(keys: Sequence[bytes], seen: set[bytes]) -> int:
    return sum(key in seen for key in keys)


def seen_lines(evaluation: Mapping[str, Any]) -> list[str]:
    """Return what an evaluation's `seen` tells, as sentences: prompts, texts, what is not known."""
    seen, lines = evaluation["seen"], []
    for key, count in (("prompts", evaluation["prompts"]["n"]), ("texts", evaluation["texts"])):
        if seen[key]:
            by = [
                f"{stage[key]:,} {DOINGS[stage['kind']]} {name}"
                for name, stage in seen["stages"].items()
                if stage[key]
            ]
            share = 100 * seen[key] / count
            lines.append(
                f"{seen[key]:,} of {counted(count, key.removesuffix('s'))} ({share:.0f} %) "
                f"not held out: {', '.join(by)}."
            )
    unknown = [*seen["unread"], *seen["elsewhere"]]
    if unknown:
        lines.append(f"What {', '.join(unknown)} learnt from is not known here.")
    return lines


def held_out(evaluation: Mapping[str, Any], key: str = "prompts") -> str:
    """Return "held-out " where the prompts (or texts) are known to be new to all, else "".

    What a checkpoint that was made elsewhere learnt from is not known.
    """
    seen = evaluation.get("seen")
    if not seen or not seen["compared"] or seen["unread"] or seen["elsewhere"]:
        return ""
    return "" if seen[key] else "held-out "
