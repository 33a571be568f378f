"""What each head makes of a row: windows of tokens, a loss, and from logits what it says.

Rows go in as the model's own tokenizer frames them, so that plain transformers gives the same. What
padding holds changes nothing, which a trial of two windows finds out before anything is learned.

Shapes: B windows of T tokens, C classes or tags.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.errors import ModelError
from data.records import Extract, Labelled, Tagged
from data.sources.labelled import from_tags
from data.text.objectives.words import token_kinds, word_numbers
from pipeline.models.trials import OBJECTIONS, gap, on_trial
from pipeline.stages.finetune.rows import Learned
from pipeline.stages.finetune.settings import HeadName
from pipeline.training.objectives.rows import IGNORED, on_tensors, seen_mask, stack

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Place = tuple[int, int]
NOWHERE: Place = (0, 0)


class Window(NamedTuple):
    """What goes through a model at once: a row, or a part of one.

    Attributes:
        ids: its tokens.
        segments: which of two texts each is of; empty where the tokenizer tells none.
        targets: a class; first and last token of an answer, the first of all where none is in it;
            or a tag of each token.
        places: the characters of each token that may answer or be tagged, else `NOWHERE`.
    """

    ids: list[int]
    segments: list[int]
    targets: list[int]
    places: list[Place]


class Example(NamedTuple):
    """A row and its windows."""

    row: Learned
    windows: list[Window]


class HeadBatch(NamedTuple):
    """Windows as tensors.

    Attributes:
        tokens_BT: ids.
        targets: (B,), (B, 2) or (B, T), `IGNORED` where nothing is asked.
        seen_BT: which places hold tokens; None where all do.
        segments_BT: segments; None where the model takes none.
    """

    tokens_BT: Tensor
    targets: Tensor
    seen_BT: Tensor | None
    segments_BT: Tensor | None

    def predicted(self) -> int:
        """Return the number of targets."""
        return int((self.targets != IGNORED).sum())

    def learned(self) -> int:
        """Return the number of tokens read."""
        return self.tokens_BT.numel() if self.seen_BT is None else int(self.seen_BT.sum())

    def to(self, device: torch.device) -> HeadBatch:
        """Return the batch on a device."""
        return on_tensors(self, lambda part: part.to(device))

    def rows(self, start: int, stop: int) -> HeadBatch:
        """Return some of the windows."""
        return on_tensors(self, lambda part: part[start:stop])


@dataclass
class Head(ABC):
    """A head in training.

    Attributes:
        tokenizer: the model's own.
        labels: of classes, or of entities.
        max_length: longest window in tokens.
        segments: whether the model has an embedding for each of two texts.
        lost: what rows lost on the way, with how many.
    """

    tokenizer: PreTrainedTokenizerBase
    labels: Sequence[str]
    max_length: int
    segments: bool
    lost: Counter[str] = field(default_factory=Counter)

    @staticmethod
    def classes(labels: Sequence[str]) -> list[str]:
        """Return what the model calls its logits, in their order; nothing of a span's."""
        return list(labels)

    @abstractmethod
    def windows(self, row: Any) -> list[Window]:
        """Return the windows of a row; none where it can't be read at all."""

    @abstractmethod
    def logits(self, output: Any) -> Tensor:
        """Return the logits of what the model gave: (B, C), or (B, T, 2) of ends, (B, T, C)."""

    @abstractmethod
    def prediction(self, example: Example, logits: Sequence[Tensor]) -> dict[str, Any]:
        """Return what is said of a row, by the float32 logits of its windows, as JSON."""

    def examples(self, rows: Sequence[Learned]) -> list[Example]:
        """Return rows with their windows; those without any are counted."""
        made = [Example(row, self.windows(row)) for row in rows]
        return [example for example in made if example.windows]

    def batch(self, windows: Sequence[Window]) -> HeadBatch:
        """Return windows as a batch, filled up on the right."""
        ids = [np.array(window.ids) for window in windows]
        told = self.segments and all(window.segments for window in windows)
        return HeadBatch(
            stack(ids, fill=self.tokenizer.pad_token_id or 0),
            self._targets(windows),
            seen_mask(ids),
            stack([window.segments for window in windows], fill=0) if told else None,
        )

    def _targets(self, windows: Sequence[Window]) -> Tensor:
        return stack([window.targets for window in windows], fill=IGNORED)

    def forward(self, model: Any, batch: HeadBatch) -> Tensor:
        """Return the float32 logits of a batch."""
        named = {
            "input_ids": batch.tokens_BT,
            "attention_mask": batch.seen_BT if batch.seen_BT is None else batch.seen_BT.long(),
            "token_type_ids": batch.segments_BT,
        }
        output = model(**{name: value for name, value in named.items() if value is not None})
        return self.logits(output).float()

    def summed_loss(self, model: Any, batch: HeadBatch) -> Tensor:
        """Return the cross-entropy of all targets, summed, in nats."""
        logits = self.forward(model, batch)
        if logits.ndim == 3:  # torch has what is chosen among in the second place
            logits = self._chosen_second(logits, batch)
        return F.cross_entropy(logits, batch.targets, ignore_index=IGNORED, reduction="sum")

    def _chosen_second(self, logits: Tensor, batch: HeadBatch) -> Tensor:
        return logits.transpose(1, 2)

    def _encoded(self, *texts: str, **options: Any) -> Any:
        """Return what the tokenizer makes of texts; control tokens that they spell stay text."""
        return self.tokenizer(*texts, split_special_tokens=True, verbose=False, **options)

    def _cut(self, *texts: str, stride: int = 0) -> Iterator[tuple[list[int], list[int], Any, Any]]:
        """Yield the windows of the last of some texts: ids, segments, texts and characters.

        Of each token the text that it is of, None for control tokens, and its characters there.
        """
        encoded = self._encoded(
            *texts,
            max_length=self.max_length,
            truncation="only_second" if len(texts) == 2 else True,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        for part, ids in enumerate(encoded["input_ids"]):
            segments = encoded["token_type_ids"][part] if "token_type_ids" in encoded else []
            yield ids, segments, encoded.sequence_ids(part), encoded["offset_mapping"][part]


class Classify(Head):
    """A class of a text, or of two that go together; what is too long is cut from its end."""

    def windows(self, row: Labelled) -> list[Window]:
        """Return the row as one window."""
        texts = [row.text, row.pair] if row.pair else [row.text]
        encoded = self._encoded(*texts)
        if len(encoded["input_ids"]) > self.max_length:
            self.lost["cut"] += 1
            encoded = self._encoded(*texts, truncation=True, max_length=self.max_length)
        target = self.labels.index(row.label)
        return [Window(encoded["input_ids"], encoded.get("token_type_ids") or [], [target], [])]

    def _targets(self, windows: Sequence[Window]) -> Tensor:
        return torch.tensor([window.targets[0] for window in windows])

    def logits(self, output: Any) -> Tensor:
        """Return those of classes (B, C)."""
        logits: Tensor = output.logits
        return logits

    def prediction(self, example: Example, logits: Sequence[Tensor]) -> dict[str, Any]:
        """Return the likeliest class and its probability."""
        shares_C = logits[0].softmax(-1)
        best = int(shares_C.argmax())
        return {"label": self.labels[best], "probability": float(shares_C[best])}


@dataclass
class Span(Head):
    """The answer to a question as a place in its context; long contexts go in by windows.

    A window without the answer points at its first token. What is said of a row is the likeliest
    place of all its windows.

    Attributes:
        stride: tokens that two windows share.
        max_answer: tokens of an answer at most.
    """

    stride: int = 0
    max_answer: int = 30

    def windows(self, row: Extract) -> list[Window]:
        """Return the windows of question and context."""
        framed = len(self._encoded(row.question, "")["input_ids"])
        if framed + self.stride >= self.max_length:
            self.lost["dropped: the question leaves its context no room"] += 1
            return []
        start, answer = row.answers[0]
        found = []
        for ids, segments, texts, characters in self._cut(
            row.question, row.context, stride=self.stride
        ):
            places = [
                _bare(place, row.context) if text == 1 else NOWHERE
                for text, place in zip(texts, characters, strict=True)
            ]
            inside = _within(places, (start, start + len(answer)))
            found.append(Window(ids, segments, inside, places))
        self.lost["further windows of long contexts"] += len(found) - 1
        return found

    def logits(self, output: Any) -> Tensor:
        """Return those of first and last token (B, T, 2)."""
        return torch.stack([output.start_logits, output.end_logits], dim=-1)

    def _chosen_second(self, logits: Tensor, batch: HeadBatch) -> Tensor:
        # No end lies in padding, of which there is more in one batch than in another.
        return logits if batch.seen_BT is None else _hidden(logits, batch.seen_BT)

    def prediction(self, example: Example, logits: Sequence[Tensor]) -> dict[str, Any]:
        """Return the likeliest answer, where it begins, and its log-probability."""
        row = example.row
        assert isinstance(row, Extract), "a question has a context"
        best, answer = -float("inf"), NOWHERE
        for window, logits_T2 in zip(example.windows, logits, strict=True):
            likely_T2 = logits_T2.log_softmax(0)
            may_T = torch.tensor([place != NOWHERE for place in window.places])
            ends_TT = likely_T2[:, :1] + likely_T2[:, 1]  # first token, last token
            allowed_TT = (may_T[:, None] & may_T).triu() & ~may_T.new_ones(ends_TT.shape).triu(
                self.max_answer
            )
            ends_TT = ends_TT.masked_fill(~allowed_TT, -float("inf"))
            if float(ends_TT.max()) > best:
                best = float(ends_TT.max())
                first, last = divmod(int(ends_TT.argmax()), len(may_T))
                answer = window.places[first][0], window.places[last][1]
        text = row.context[slice(*answer)]
        return {"answer": text, "start": answer[0], "log_probability": best}


@dataclass
class Tag(Head):
    """The entities of a text, by a tag of each word; long texts go in piece by piece.

    All tokens of a word are learned. What a word is, is read off all of them, and off its first
    token whether it opens an entity.
    """

    def __post_init__(self) -> None:
        """Look at the vocabulary."""
        self.kinds = token_kinds(self.tokenizer)

    @staticmethod
    def classes(labels: Sequence[str]) -> list[str]:
        """Return O, and of each label B and I."""
        return ["O", *(f"{kind}-{label}" for label in labels for kind in "BI")]

    def windows(self, row: Tagged) -> list[Window]:
        """Return the pieces of a text, with the tag of each token."""
        found, opened, edges = [], set[Place](), set[int]()
        for ids, segments, texts, characters in self._cut(row.text):
            places = [
                NOWHERE if text is None else _bare(place, row.text)
                for text, place in zip(texts, characters, strict=True)
            ]
            targets = []
            for place in places:
                span = next((s for s in row.spans if s[0] < place[1] and place[0] < s[1]), None)
                if span is None:
                    targets.append(IGNORED if place == NOWHERE else 0)
                    continue
                targets.append(1 + 2 * self.labels.index(span[2]) + (span[:2] in opened))
                opened.add(span[:2])
            found.append(Window(ids, segments, targets, places))
            edges.update(edge for at in self._words(found[-1]) for edge in _around(at, places))
        odd = sum(not {start, stop} <= edges for start, stop, _ in row.spans)
        self.lost["entities that do not begin and end where words do"] += odd
        self.lost["further pieces of long texts"] += len(found) - 1
        return found

    def _words(self, window: Window) -> Iterator[list[int]]:
        """Yield the tokens of each word."""
        numbers = word_numbers(np.array(window.ids), self.kinds).tolist()
        for _, group in groupby(range(len(numbers)), key=numbers.__getitem__):
            tokens = [at for at in group if window.places[at] != NOWHERE]
            if tokens:
                yield tokens

    def logits(self, output: Any) -> Tensor:
        """Return those of tags (B, T, C)."""
        logits: Tensor = output.logits
        return logits

    def prediction(self, example: Example, logits: Sequence[Tensor]) -> dict[str, Any]:
        """Return the entities: first character, the one behind it, label."""
        tagged: list[tuple[Place, str]] = []
        for window, logits_TC in zip(example.windows, logits, strict=True):
            shares_TC = logits_TC.softmax(-1).numpy()
            for tokens in self._words(window):
                mean_C = shares_TC[tokens].mean(0)
                kinds = [mean_C[0], *(mean_C[1::2] + mean_C[2::2])]
                best = int(np.argmax(kinds))
                begins, goes_on = (
                    shares_TC[tokens[0], 2 * best - 1 : 2 * best + 1] if best else (0, 0)
                )
                kind = "B" if begins >= goes_on else "I"
                tag = f"{kind}-{self.labels[best - 1]}" if best else "O"
                tagged.append((_around(tokens, window.places), tag))
        return {"spans": [list(span) for span in from_tags(tagged)]}


KINDS: Mapping[HeadName, type[Head]] = {"classify": Classify, "span": Span, "tag": Tag}


def _bare(place: Place, text: str) -> Place:
    """Return the characters of a token without the white space that it begins or ends with."""
    start, stop = place
    token = text[start:stop]
    if not token.strip():
        return NOWHERE
    return start + len(token) - len(token.lstrip()), stop - len(token) + len(token.rstrip())


def _within(places: Sequence[Place], answer: Place) -> list[int]:
    """Return the first and the last token of an answer; 0 twice where it is not all there."""
    tokens = [
        at for at, place in enumerate(places) if place[0] < answer[1] and answer[0] < place[1]
    ]
    if not tokens or places[tokens[0]][0] > answer[0] or places[tokens[-1]][1] < answer[1]:
        return [0, 0]
    return [tokens[0], tokens[-1]]


def _around(tokens: Sequence[int], places: Sequence[Place]) -> Place:
    return places[tokens[0]][0], places[tokens[-1]][1]


def _hidden(logits_BTC: Tensor, seen_BT: Tensor) -> Tensor:
    return logits_BTC.masked_fill(~seen_BT[..., None], torch.finfo(logits_BTC.dtype).min)


def require_blind_to_padding(model: PreTrainedModel, head: Head, windows: Sequence[Window]) -> None:
    """Refuse a model that says something else of a row once it is filled up.

    Raises:
        ModelError: it does, or it can't be driven as its class is.
    """
    device = next(model.parameters()).device
    long = max(windows, key=lambda window: len(window.ids))
    short = min(windows, key=lambda window: len(window.ids))
    if len(short.ids) == len(long.ids):
        cut = max(1, len(long.ids) - 2)
        short = long._replace(ids=long.ids[:cut], segments=long.segments[:cut])
    both, alone = head.batch([short, long]).to(device), head.batch([short]).to(device)
    with on_trial(model) as exact:
        try:
            beside, wanted = head.forward(model, both)[:1], head.forward(model, alone)
        except OBJECTIONS as error:
            raise ModelError(
                f"a {type(model).__name__} can't be asked for {type(head).__name__.lower()} as its "
                f"like are ({error}); take another architecture"
            ) from error
    if beside.ndim == 3:
        beside = beside[:, : wanted.shape[1]]
    if gap(beside, wanted) > (1e-4 if exact else 5e-2):
        raise ModelError(
            f"a {type(model).__name__} says something else of a text once it is padded, so that "
            "its answer depends on the batch; take another architecture"
        )
