"""Several answers to each of many messages, sampled side by side.

Messages that came while a token was sampled begin together, as a batch of the decoder; batches take
turns, a token each, so that nobody waits for somebody else's answer to end. Who answers is spread
evenly over the checkpoints; all of them are a token further before any is told, so that how fast an
answer comes does not tell whose it is. What is sampled follows from the message's name, whoever
else is answered meanwhile: asked again, after a crash, it has the same answers.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from data.labels.live.conversations import Answers
from data.text.continuation import continuation_text
from pipeline.generation.decoder import Decoder
from pipeline.generation.generate import Sampling, decoding, uniforms
from pipeline.generation.trial import fitting_memory
from pipeline.models.load import context_length, eos_ids
from pipeline.models.seq2seq import asked_ids, is_encoder_decoder, response_room

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from data.records import Message

MOST_BATCHES = 8
"""Batches at a time; messages that come then wait for one to end, and begin together."""
TRIES = 3
"""How often an answer is sampled that says what another one says."""
TRIED = 1024
"""Tokens of a conversation up to which the decoder's memory is tried before anybody asks."""
LEAST_ROOM = 8
"""Tokens of an answer that the context must leave room for."""
FULL = "the conversation has become too long for the model: begin another one"


@dataclass(frozen=True)
class Speaker:
    """A checkpoint that answers; `name` is what tasks say of who wrote an answer."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def ids(self, messages: list[Message]) -> list[int]:
        """Return the tokens after which an answer is sampled."""
        paired = is_encoder_decoder(self.model)
        return asked_ids(self.tokenizer, messages, encoder_decoder=paired)

    def room(self, ids: list[int]) -> int | None:
        """Return how many tokens an answer may have; None where nothing bounds it."""
        paired = is_encoder_decoder(self.model)
        return response_room(context_length(self.model), len(ids), encoder_decoder=paired)


@dataclass
class Reply:
    """What a message is answered: who gives which answer, and what there is of each.

    Attributes:
        speakers: number of the checkpoint that gives each answer.
        missing: places of the answers that are not whole.
        tries: how often answers were sampled.
        tokens: sampled so far, in answers that are whole.
    """

    turn_id: str
    messages: list[Message]
    speakers: list[int]
    texts: list[str]
    ended: list[bool]
    missing: set[int]
    tries: int = 0
    tokens: int = 0


@dataclass
class Batch:
    """Replies that are sampled together.

    Attributes:
        replies: those that are not whole.
        decoders: for each checkpoint, with the reply and the place that each response is for.
    """

    replies: list[Reply]
    decoders: list[tuple[Speaker, Decoder, list[tuple[Reply, int]]]] = field(default_factory=list)


class Answerer:
    """Answers messages by one or several checkpoints.

    Args:
        speakers: the checkpoints.
        sampling: how tokens are drawn.
    """

    def __init__(self, speakers: Sequence[Speaker], sampling: Sampling) -> None:
        self.speakers = list(speakers)
        self.sampling = sampling
        self._waiting: deque[Reply] = deque()
        self._batches: list[Batch] = []
        for speaker in speakers:  # tried now, and not while somebody waits
            longest = context_length(speaker.model) or TRIED
            fitting_memory(speaker.model, length=min(longest, TRIED))

    @property
    def busy(self) -> bool:
        """Whether there is something to answer."""
        return bool(self._waiting or self._batches)

    def ask(self, turn_id: str, messages: list[Message], answers: int) -> Answers | None:
        """Take a message; return what there is to say at once, where it can't be answered.

        Args:
            turn_id: names it; the answers follow from it.
            messages: a chat whose last turn is the user's.
            answers: how many are wanted.
        """
        for speaker in self.speakers:
            room = speaker.room(speaker.ids(messages))
            if room is not None and room < min(LEAST_ROOM, self.sampling.max_new_tokens):
                return Answers([], [], [], failure=FULL)
        # As evenly as can be, and by chance who gives one more.
        first = random.Random(f"speaker {turn_id}").randrange(len(self.speakers))
        who = [(first + place) % len(self.speakers) for place in range(answers)]
        empty, missing = [""] * answers, set(range(answers))
        self._waiting.append(Reply(turn_id, messages, who, empty, [False] * answers, missing))
        return None

    def forget(self, turns: set[str]) -> None:
        """Sample no further for these messages, whose server is gone."""
        self._waiting = deque(one for one in self._waiting if one.turn_id not in turns)
        for batch in self._batches:
            batch.replies = [one for one in batch.replies if one.turn_id not in turns]
        self._batches = [batch for batch in self._batches if batch.replies]

    def step(self, *, tell: bool = True) -> dict[str, list[str] | Answers]:
        """Sample a token of everything that is being answered.

        Args:
            tell: of every message; else of those alone whose first word or last one came.

        Returns:
            By message what it was answered: so far, or to the end.
        """
        if self._waiting and len(self._batches) < MOST_BATCHES:
            self._batches.append(self._begin([*self._waiting]))
            self._waiting.clear()
        told: dict[str, list[str] | Answers] = {}
        for batch in self._batches:
            for _, decoder, _ in batch.decoders:
                if not decoder.done:
                    decoder.step()
            begun = {reply.turn_id for reply in batch.replies if any(reply.texts)}
            self._read(batch, tell)
            for reply in batch.replies:
                if not reply.missing:
                    told[reply.turn_id] = self._whole(reply)
                elif tell or (reply.turn_id not in begun and any(reply.texts)):
                    told[reply.turn_id] = list(reply.texts)
            batch.replies = [reply for reply in batch.replies if reply.missing]
        self._batches = [batch for batch in self._batches if batch.replies]
        return told

    def _begin(self, replies: list[Reply]) -> Batch:
        batch = Batch(replies)
        for number, speaker in enumerate(self.speakers):
            whose = [
                (reply, place)
                for reply in replies
                for place in sorted(reply.missing)
                if reply.speakers[place] == number
            ]
            if not whose:
                continue
            decoder, order = decoding(
                speaker.model,
                [speaker.ids(reply.messages) for reply, _ in whose],
                sampling=self.sampling,
                uniforms_NT=torch.cat([self._numbers(*one) for one in whose]),
                eos_token_ids=eos_ids(speaker.tokenizer, speaker.model),
                pad_token_id=int(speaker.tokenizer.pad_token_id or 0),
            )
            batch.decoders.append((speaker, decoder, [whose[place] for place in order]))
        return batch

    def _numbers(self, reply: Reply, place: int) -> torch.Tensor:
        """Return the random numbers of an answer [1, T]."""
        name = f"{reply.turn_id} {place} {reply.tries}"
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1
        return uniforms(1, self.sampling, torch.Generator().manual_seed(seed))

    def _read(self, batch: Batch, tell: bool) -> None:
        """Note what has ended, and what was answered so far where that is told."""
        for speaker, decoder, whose in batch.decoders:
            running = {row.place for row in decoder.rows} | set(decoder.waiting)
            for row, (reply, place) in enumerate(whose):
                known = row in running and not tell and reply.texts[place]
                if known or place not in reply.missing:
                    continue
                response = decoder.responses[row]
                text = continuation_text(speaker.tokenizer, [], response.token_ids).strip()
                if row in running:
                    reply.texts[place] = text.rstrip("\ufffd")  # half a character
                    continue
                reply.texts[place], reply.ended[place] = text, response.ended
                reply.tokens += len(response.token_ids)
                reply.missing.discard(place)

    def _whole(self, reply: Reply) -> list[str] | Answers:
        """Return the answers; where two are the same what there is, as one is sampled again."""
        first = {text: place for place, text in reversed([*enumerate(reply.texts)])}
        same = {place for place, text in enumerate(reply.texts) if first[text] != place}
        if same and reply.tries + 1 < TRIES:
            # Another one: this batch still has the old responses of this one.
            texts = ["" if place in same else text for place, text in enumerate(reply.texts)]
            self._waiting.append(replace(reply, texts=texts, missing=same, tries=reply.tries + 1))
            return texts
        kept = sorted(first.values())
        return Answers(
            texts=[reply.texts[place] for place in kept],
            policies=[self.speakers[reply.speakers[place]].name for place in kept],
            ended=[reply.ended[place] for place in kept],
            tokens=reply.tokens,
        )
