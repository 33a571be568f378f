"""From sources of demonstrations to token ids and masks, with a count of what was lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from data.errors import ModelError, SourceError
from data.records import Completion, Conversation, prompt_of
from data.sources.split import is_heldout, opening
from data.text.answers import Split
from data.text.chat import Rendered, RenderReport, render_demonstrations
from data.text.prompting import behind_examples, drawn
from pipeline.rl.prompts import Order

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from data.retrieval.reading import Retriever


Demonstration = Conversation | Completion


@dataclass(frozen=True)
class Rows:
    """Tokenised demonstrations of at most `max_length`, and how many were cut and dropped.

    `unlearnable` are those without an answer that can be learned, `ends` the tokens that end the
    answers of chats, `texts` the rows of `train` that are raw text.
    """

    train: list[Rendered]
    heldout: list[Rendered]
    max_length: int
    cut: int = 0
    dropped: int = 0
    unlearnable: int = 0
    ends: frozenset[int] = frozenset()
    texts: int = 0


def prepare_rows(
    training: list[Demonstration],
    heldout: list[Demonstration],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    too_long: Literal["cut", "drop"],
    max_too_long_share: float,
    heldout_share: float,
    max_heldout: int,
    seed: int,
    say: Callable[[str], None],
    pairs: bool = False,
    shots: int = 0,
    split: Split | None = None,
    retriever: Retriever | None = None,
) -> Rows:
    """Hold out, tokenise and count.

    Without held-out records a share of the prompts is held out. Records whose prompt is held out
    are left out of training. `pairs` are rows for an encoder-decoder. Before each stand `shots`
    others of training. `split` finds what tools put into answers, `retriever` the passages that the
    prompt of each stands behind.

    Raises:
        SourceError: more are too long than allowed.
        ModelError: no demonstration can be learned with this chat template.
    """
    learned, heldout = _parted(training, heldout, share=heldout_share, seed=seed, say=say)
    if len(heldout) > max_heldout:
        say(f"{len(heldout)} held-out demonstrations, the first {max_heldout} are measured")
    given: Any = {"pool": learned, "shots": shots, "seed": seed, "retriever": retriever}
    learned, heldout = (_given(rows, tokenizer, **given) for rows in (learned, heldout))
    report, heldout_report = RenderReport(), RenderReport()
    how: Any = {"max_length": max_length, "too_long": too_long, "pairs": pairs, "split": split}
    rows = list(render_demonstrations(tokenizer, learned, **how, report=report))
    measured = heldout[:max_heldout]
    held = list(render_demonstrations(tokenizer, measured, **how, report=heldout_report))
    for line in report.lines():
        say(f"train: {line}")
    if report.unlearnable and not rows:
        why = "; ".join(report.answers.lines())
        raise ModelError(f"no demonstration holds an answer that can be learned: {why}")
    say(f"heldout: {len(held):,} demonstrations")
    cut = report.truncated + heldout_report.truncated
    dropped = report.dropped + heldout_report.dropped
    seen = len(learned) + len(measured)
    if seen and (cut + dropped) / seen > max_too_long_share:
        raise SourceError(
            f"{cut + dropped} of {seen} demonstrations are longer than max_length {max_length} "
            f"({cut} cut, {dropped} dropped), more than max_too_long_share {max_too_long_share} "
            "allows; raise max_length, or that share to go on without them"
        )
    unlearnable = report.unlearnable + heldout_report.unlearnable
    ends = frozenset(report.answers.ends)
    return Rows(rows, held, max_length, cut, dropped, unlearnable, ends)


def with_texts(rows: Rows, texts: Sequence[Sequence[int]], *, share: float, seed: int) -> Rows:
    """Return rows with so many of raw text among them, drawn by the seed, that they are a share.

    Where there are too few of them they come again.
    """
    count = round(len(rows.train) * share / (1 - share))
    order = Order(len(texts), seed=seed, purpose="pretraining")
    rows_of_text = [[*texts[order[place]]] for place in range(count)]
    learned = [Rendered(ids, [True] * len(ids)) for ids in rows_of_text]
    return replace(rows, train=[*rows.train, *learned], texts=count)


def _given(
    rows: list[Demonstration],
    tokenizer: PreTrainedTokenizerBase,
    *,
    pool: list[Demonstration],
    shots: int,
    seed: int,
    retriever: Retriever | None,
) -> list[Demonstration]:
    """Return rows with their passages, behind examples from a pool, other ones for each."""
    read = rows if retriever is None else [retriever.demonstrated(r, tokenizer) for r in rows]
    if not shots:
        return read
    return [
        behind_examples(one, drawn(pool, shots, draw=place, seed=seed)(row))
        for place, (row, one) in enumerate(zip(rows, read, strict=True))
    ]


class Results:
    """Finds what tools put into answers, and counts it."""

    def __init__(self, split: Split) -> None:
        self.split, self.found = split, 0

    def __call__(self, text: str) -> Sequence[tuple[str, bool]]:
        """Return the pieces of an answer."""
        pieces = self.split(text)
        self.found += sum(not own for _, own in pieces)
        return pieces


def _parted(
    training: list[Demonstration],
    heldout: list[Demonstration],
    *,
    share: float,
    seed: int,
    say: Callable[[str], None],
) -> tuple[list[Demonstration], list[Demonstration]]:
    """Return what is learned and what is held out; no prompt is in both."""
    if heldout:
        judged = {opening(prompt_of(record)) for record in heldout}
        learned = [r for r in training if opening(prompt_of(r)) not in judged]
        if len(learned) < len(training):
            left_out = len(training) - len(learned)
            say(f"{left_out} demonstrations left out: their prompts are held out")
    else:
        sides = [is_heldout(prompt_of(r), share=share, seed=seed) for r in training]
        learned = [r for r, out in zip(training, sides, strict=True) if not out]
        heldout = [r for r, out in zip(training, sides, strict=True) if out]
    return learned, heldout
