"""Finds places for calls of tools in texts, samples and executes calls, and judges their results.

Shapes: B texts, T their tokens, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from data.records import Completion, Conversation, Document, Message, prompt_of
from data.text.chat import render_prompt, response_ids, spells_control_tokens
from data.text.inline_calls import CLOSES, GIVES, OPENS, opens_at
from data.text.prompting import document_end_ids, plain_ids
from pipeline.evaluation.benchmarks.loglikelihood import Pair, loglikelihoods
from pipeline.generation.generate import Sampling, generate
from pipeline.generation.tools.calls import Asked, Call, asked_inline
from pipeline.models.load import context_length, eos_ids
from pipeline.models.trials import evaluating
from pipeline.stages.tool_annotate.settings import TEXT, ToolAnnotateSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pipeline.generation.tools.toolbox import ToolBox

REACH = 5
"""Tokens behind a call whose loss is judged: those with a weight above 0."""

Annotated = Document | Completion | Conversation


class Passage(NamedTuple):
    """A text whose calls are looked for.

    Attributes:
        record: what it is from.
        text: the document, or the answer.
        before: tokens in front of it, such as a prompt's.
        ids: its tokens, as many as fit the context with a call.
        starts: the character at which each of them begins; -1 inside a character.
    """

    record: Annotated
    text: str
    before: list[int]
    ids: list[int]
    starts: list[int]

    def space(self, token: int) -> str:
        """Return the space that a word's token begins with, behind which a call stands."""
        begin = max(0, self.starts[token])
        alone = self.starts[token + 1 : token + 2] == [begin + 1]
        return " " if self.text.startswith(" ", begin) and not alone else ""

    def place(self, token: int) -> int:
        """Return the character before which a call at a token stands."""
        return self.starts[token] + len(self.space(token))


class Place(NamedTuple):
    """A place for a call: before a token of one of a chunk's passages."""

    passage: int
    token: int


@dataclass(frozen=True)
class Candidate:
    """A call that was executed at a place.

    Attributes:
        place: where.
        written: what the caller wrote, from the opening to the `=`.
        call: with its result.
        gain: loss that its result saves; of a failed call nothing is measured.
    """

    place: Place
    written: str
    call: Call
    gain: float | None = None

    @property
    def whole(self) -> str:
        """The call with its result."""
        return f"{self.written}{self.call.result}{CLOSES}"

    @property
    def bare(self) -> str:
        """The call without its result."""
        return f"{self.written}{CLOSES}"


@dataclass
class Annotator:
    """Who writes and judges calls, and what was counted."""

    settings: ToolAnnotateSettings
    model: PreTrainedModel
    caller: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    box: ToolBox
    counts: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def passage(self, record: Annotated) -> Passage:
        """Return a record's text as tokens; of one that spells control tokens none are told."""
        text, tokenizer = annotated_text(record), self.tokenizer
        before = self._before(record)
        if spells_control_tokens(tokenizer, "", text):
            return Passage(record, text, before, [], [])
        made = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        starts, end = [], 0
        for start, stop in made["offset_mapping"]:
            starts.append(start if start >= end else -1)
            end = stop
        passage = Passage(record, text, before, list(made["input_ids"]), starts)
        contexts = [one for one in map(context_length, (self.model, self.caller)) if one]
        front = max(len(before), len(self.read_before(passage)))
        # A result is taken to have about as many tokens as its call, at most.
        room = min(contexts, default=len(text)) - front - 2 * self.settings.max_call_tokens
        return passage._replace(ids=passage.ids[: max(0, room)])

    def _before(self, record: Annotated) -> list[int]:
        if isinstance(record, Document):
            return document_end_ids(self.tokenizer) or render_prompt(self.tokenizer, "")
        return render_prompt(self.tokenizer, prompt_of(record))

    def _ids(self, text: str) -> list[int]:
        return response_ids(self.tokenizer, text, behind="\n")

    def read_before(self, passage: Passage) -> list[int]:
        """Return the tokens that the caller reads before a passage."""
        if self.settings.prompt is None:
            return passage.before
        return plain_ids(self.tokenizer, self.settings.prompt.replace(TEXT, passage.text))

    def places(self, passages: Sequence[Passage]) -> list[Place]:
        """Return the likeliest places of passages for a call, in the order of the text."""
        openings = self._opening_probabilities(passages)
        found = []
        for number, (passage, likely) in enumerate(zip(passages, openings, strict=True)):
            allowed = [
                token
                for token in range(1, len(passage.ids))
                if likely[token] > self.settings.opening_probability
                and passage.starts[token] >= 0
                and _takes_call(passage.text, passage.place(token))
            ]
            best = sorted(allowed, key=lambda token: -likely[token])[: self.settings.places]
            found += [Place(number, token) for token in sorted(best)]
        return found

    @torch.inference_mode()
    def _opening_probabilities(self, passages: Sequence[Passage]) -> list[list[float]]:
        """Return before each token of each passage the probability of a call's opening."""
        found = list[list[float]]()
        openings = {space: self._ids(space + OPENS)[0] for space in ("", " ")}
        for start in range(0, len(passages), self.settings.batch_size):
            batch = passages[start : start + self.settings.batch_size]
            befores = [self.read_before(one) for one in batch]
            rows = [[*b, *one.ids] for b, one in zip(befores, batch, strict=True)]
            longest, device = max(map(len, rows)), self.caller.device
            ids_BT = torch.zeros(len(rows), longest, dtype=torch.long)
            mask_BT = torch.zeros_like(ids_BT)
            for row, ids in enumerate(rows):
                ids_BT[row, : len(ids)] = torch.tensor(ids)
                mask_BT[row, : len(ids)] = 1
            with evaluating(self.caller):
                made = self.caller(ids_BT.to(device), attention_mask=mask_BT.to(device))
            logits_BTV = made.logits.float()
            total_BT = logits_BTV.logsumexp(-1)
            told = {
                space: (logits_BTV[..., opening] - total_BT).exp().tolist()
                for space, opening in openings.items()
            }
            for row, (before, one) in enumerate(zip(befores, batch, strict=True)):
                # What is told at a token is of the one behind it.
                found.append(
                    [told[one.space(i)][row][len(before) - 1 + i] for i in range(len(one.ids))]
                )
        return found

    def candidates(
        self, passages: Sequence[Passage], places: Sequence[Place], seed: int
    ) -> list[Candidate]:
        """Sample calls at places and execute them; the same call at a place counts once."""
        settings = self.settings
        prompts = [
            [*self.read_before(passage), *passage.ids[: place.token], *opening]
            for place in places
            for passage in [passages[place.passage]]
            for opening in [self._ids(passage.space(place.token) + OPENS)]
            for _ in range(settings.calls)
        ]
        samples = generate(
            self.caller,
            prompts,
            sampling=Sampling(settings.max_call_tokens, settings.temperature),
            eos_token_ids=eos_ids(self.tokenizer, self.caller),
            pad_token_id=int(self.tokenizer.pad_token_id or 0),
            generator=torch.Generator().manual_seed(seed),
            batch_size=settings.batch_size,
            stop=lambda ids: ids[-1] in self._gives,
        )
        tried: dict[tuple[Place, str], Asked] = {}
        for number, sample in enumerate(samples):
            written = OPENS + self.tokenizer.decode(
                sample.token_ids, clean_up_tokenization_spaces=False
            )
            asked = asked_inline(written, self.box.tools)
            if asked is None or not written.startswith(OPENS) or written.count(OPENS) > 1:
                self.counts["n_no_calls"] += 1
            else:
                tried.setdefault((places[number // settings.calls], written), asked)
        return [Candidate(*where, self.box.call(asked)) for where, asked in tried.items()]

    @cached_property
    def _gives(self) -> set[int]:
        """Return the tokens that end with what gives a call's result."""
        tokenizer = self.tokenizer
        return {i for i in range(len(tokenizer)) if tokenizer.decode([i]).endswith(GIVES)}

    def judged(
        self, passages: Sequence[Passage], candidates: Sequence[Candidate]
    ) -> list[Candidate]:
        """Return candidates with what their results save."""
        working = [one for one in candidates if not one.call.error]
        asked: dict[tuple[Place, str], list[Pair]] = {}
        for one in working:
            for call in ("", one.bare, one.whole):
                if (one.place, call) not in asked:
                    asked[one.place, call] = self._pairs(passages[one.place.passage], one, call)
        pairs = [pair for group in asked.values() for pair in group]
        scored = iter(loglikelihoods(self.model, pairs, batch_size=self.settings.batch_size))
        losses = {
            key: weighted_loss([next(scored).logprob for _ in group])
            for key, group in asked.items()
        }
        gains = iter(
            min(losses[one.place, ""], losses[one.place, one.bare]) - losses[one.place, one.whole]
            for one in working
        )
        return [one if one.call.error else replace(one, gain=next(gains)) for one in candidates]

    def _pairs(self, passage: Passage, one: Candidate, call: str) -> list[Pair]:
        """Return what stands before a place, with each number of tokens that follow it."""
        token = one.place.token
        before, ids, follow = passage.before, passage.ids[:token], passage.ids[token:]
        inside = self.settings.result == "inside"
        space = passage.space(token) if inside else ""
        written = self._ids(space + call) if call else []
        context = [*before, *ids, *written] if inside else [*before, *written, *ids]
        if space and call:  # what follows begins without its space
            follow = self._ids(passage.text[passage.place(token) :])
        return [Pair(context, follow[:size]) for size in range(1, len(follow[:REACH]) + 1)]


def weighted_loss(sums: Sequence[float]) -> float:
    """Return the weighted loss of the tokens behind a place, from sums of their log-probabilities.

    The weights are max(0, 1 - .2 t) over their sum 3, t = 0 for the first token (Toolformer,
    section 4.1). A token t counts in each of the sums of more than t tokens, so that all five sums
    together have it 5 - t times, which is five times its weight.

    Args:
        sums: of the first token, the first two, and so on; at most five.

    >>> round(weighted_loss([-1.0, -3.0]), 4)  # (1 * 1 + .8 * 2) / 3
    0.8667
    """
    # Where the text ends sooner, no token follows and the last sum stays.
    return -sum([*sums, *[sums[-1]] * (REACH - len(sums))]) / (REACH * 3)


def annotated_text(record: Annotated) -> str:
    """Return the text of a record into which calls are put."""
    if isinstance(record, Document):
        return record.text
    if isinstance(record, Completion):
        return record.completion
    return record.messages[-1]["content"]


def with_text(record: Annotated, text: str) -> Annotated:
    """Return a record with another text."""
    if isinstance(record, Document):
        return replace(record, text=text)
    if isinstance(record, Completion):
        return replace(record, completion=text)
    answer: Message = {**record.messages[-1], "content": text}
    return replace(record, messages=[*record.messages[:-1], answer])


def _takes_call(text: str, at: int) -> bool:
    """Tell whether a call that is put before a character would be one."""
    return opens_at(text[:at] + OPENS, at)


def annotate(
    annotator: Annotator, records: Sequence[Annotated], seed: int
) -> tuple[list[Annotated], list[dict[str, Any]]]:
    """Return records with calls in their texts, and a row for each call that was tried."""
    passages = [annotator.passage(record) for record in records]
    places = annotator.places(passages)
    tried = annotator.judged(passages, annotator.candidates(passages, places, seed))
    kept: set[int] = set()
    for _, same in groupby(enumerate(tried), key=lambda item: item[1].place):
        measured = [(one.gain, number) for number, one in same if one.gain is not None]
        best, number = max(measured, key=itemgetter(0), default=(None, -1))
        if best is not None and best >= annotator.settings.gain:
            kept.add(number)
    rows = []
    for number, passage in enumerate(passages):
        mine = [tried[at] for at in sorted(kept) if tried[at].place.passage == number]
        text = passage.text
        for one in sorted(mine, key=lambda one: -one.place.token):
            at = passage.place(one.place.token)
            text = f"{text[:at]}{one.whole}{text[at:]}"
        rows.append(with_text(passage.record, text) if mine else passage.record)
        annotator.counts["n_annotated"] += bool(mine)
    for number, one in enumerate(tried):
        name, ours = one.call.name, number in kept
        annotator.counts[f"tried/{name}"] += 1
        annotator.counts[f"failed/{name}"] += one.call.error
        annotator.counts[f"kept/{name}"] += ours
        if ours and one.gain is not None:
            annotator.counts[f"gain/{name}"] += one.gain
    return rows, [_row(passages, one, n in kept) for n, one in enumerate(tried)]


def _row(passages: Sequence[Passage], one: Candidate, kept: bool) -> dict[str, Any]:
    passage = passages[one.place.passage]
    return {
        "id": passage.record.id,
        "at": passage.place(one.place.token),
        "tool": one.call.name,
        "call": one.written,
        "result": one.call.result,
        "failed": one.call.error,
        "gain": one.gain,
        "kept": kept,
    }
