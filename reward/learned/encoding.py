"""From a prompt and a response to the token ids that a reward model sees.

The one place where this is done: training, PPO, `select` and `rlhf score` all come through here, so
that a text has the same score wherever it is scored.

- Decoder: the prompt as the policy sees it (chat template with generation prompt, or plain
  tokenisation), the response, and the token that ends a turn. The score is read at that token.
- Encoder: prompt and response as a pair, with the encoder's own separators and segment ids.

A response is stripped but for one that a decoder reads on from plain text: there it is taken as it
stands. It counts as finished unless the caller says it was cut off; then it gets no end marker.

A checkpoint that was trained elsewhere is given what `transformers` and TRL give it: a chat with
its answer as the template writes all of it, and what is read is the last token that is no padding,
also where the end of a sequence is padding (`unread`).

What is too long loses tokens from its left, the prompt's side, but keeps a leading
beginning-of-sequence token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from data.errors import ModelError
from data.records import turn_text
from data.text.chat import render_prompt, render_text, response_ids, spells_control_tokens
from data.text.control_tokens import control_spans, encode_ids, render, spelled

if TYPE_CHECKING:
    from data.records import Message, Prompt

_MARK = "qzxjk"
LENGTH = "reward_max_length"
"""Where a configuration has the longest input that the model was trained with."""


class Pair(list[int]):
    """Ids of a pair of texts, with the segment of each.

    Attributes:
        segments: one an id, empty where the tokenizer tells none.
    """

    def __init__(self, ids: Iterable[int], segments: Iterable[int] = ()) -> None:
        super().__init__(ids)
        self.segments = list(segments)


@dataclass
class Encoder:
    """Turns texts into ids, and counts what it had to cut.

    Attributes:
        tokenizer: the reward model's own.
        max_length: longest input in tokens.
        pairs: whether prompt and response go in as a pair, as encoders want it.
        unread: padding, which the model passes over at the end and reads what stands before.
        whole_turns: whether a chat and its answer are what the template makes of them together,
            and not the prompt, the answer and the token that ends the turn.
        seen: texts encoded so far.
        truncated: how many of them were too long.
        spelling: how many spell control tokens, which stay text.
    """

    tokenizer: Any
    max_length: int
    pairs: bool = False
    unread: int | None = None
    whole_turns: bool = False
    seen: int = 0
    truncated: int = 0
    spelling: int = 0
    _end_of_turn: list[int] | None = field(default=None, init=False)

    def encode(self, prompt: Prompt, response: str, *, ended: bool = True) -> list[int]:
        """Return the ids of one prompt with one response, at most `max_length` of them.

        Args:
            prompt: plain text to be continued, or a chat whose last turn is the user's.
            response: the text of the response without special tokens; what goes on from a plain
                prompt begins with the space before its first word.
            ended: False for a response that was cut off before its end.
        """
        self.seen += 1
        spells = spells_control_tokens(self.tokenizer, prompt, response)
        self.spelling += spells
        if self.pairs or not isinstance(prompt, str):
            response = response.strip()
        if self.pairs:
            return self._encode_pair(prompt, response, as_text=spells)
        ids = self._decoder_ids(prompt, response, ended=ended)
        if not ids:
            raise ModelError("an empty prompt with an empty, unfinished response has no score")
        # In a causal model what stands behind the token that is read changes nothing.
        while len(ids) > 1 and ids[-1] == self.unread:
            ids.pop()
        return self._cut(ids)

    def _decoder_ids(self, prompt: Prompt, response: str, *, ended: bool) -> list[int]:
        if self.whole_turns and not isinstance(prompt, str):
            chat_ids = self._whole_chat(prompt, response, ended=ended)
            if chat_ids is not None:
                return chat_ids
        ids = list(render_prompt(self.tokenizer, prompt))
        behind = prompt if isinstance(prompt, str) else ""
        ids += response_ids(self.tokenizer, response, behind=behind)
        return ids + self.end_ids(prompt) if ended else ids

    def _whole_chat(
        self, prompt: Sequence[Message], response: str, *, ended: bool
    ) -> list[int] | None:
        """Return a chat as its template writes it, one that was cut off up to its last word.

        None where the template does not show those words as they are.
        """
        turns: list[Message] = [*prompt, {"role": "assistant", "content": response}]
        text, _, typed = render(self.tokenizer, turns, answer_next=False)
        if not ended:
            at = text.rfind(response) if response else -1
            if at < 0:
                return None
            text = text[: at + len(response)]
        return encode_ids(self.tokenizer, text, [span for span in typed if span[1] <= len(text)])

    def _cut(self, ids: list[int]) -> list[int]:
        over = len(ids) - self.max_length
        if over <= 0:
            return ids
        self.truncated += 1
        if ids[0] == self.tokenizer.bos_token_id:
            return [ids[0], *ids[over + 1 :]]
        return ids[over:]

    def _encode_pair(self, prompt: Prompt, response: str, *, as_text: bool) -> Pair:
        framed = as_text and self.tokenizer.is_fast
        texts = (_MARK, _MARK) if framed else (self._as_text(prompt), response)
        encoded = self.tokenizer(
            *texts, split_special_tokens=as_text, return_special_tokens_mask=True, verbose=False
        )
        pair = Pair(encoded["input_ids"], encoded.get("token_type_ids") or ())
        sources = [None if special else 0 for special in encoded["special_tokens_mask"]]
        if framed:
            pair, sources = self._framed(prompt, response, pair, encoded.sequence_ids())
        over = len(pair) - self.max_length
        if over <= 0:
            return pair
        self.truncated += 1
        cut = set([at for at, source in enumerate(sources) if source is not None][:over])
        left = [at for at in range(len(pair)) if at not in cut]
        return Pair([pair[at] for at in left], [pair.segments[at] for at in left if pair.segments])

    def _framed(
        self, prompt: Prompt, response: str, frame: Pair, sources: Sequence[int | None]
    ) -> tuple[Pair, list[int | None]]:
        """Put two texts that spell control tokens where two others stand in a pair."""
        if isinstance(prompt, str) or not self.tokenizer.chat_template:
            text = self._as_text(prompt)
            typed = spelled(self.tokenizer, text)
        else:
            text, _, typed = render(self.tokenizer, prompt, answer_next=True)
        texts = (encode_ids(self.tokenizer, text, typed), response_ids(self.tokenizer, response))
        ids: list[int] = []
        segments: list[int] = []
        origins: list[int | None] = []
        for at, source in enumerate(sources):
            if source is not None and at and sources[at - 1] == source:
                continue
            put = [frame[at]] if source is None else texts[source]
            ids.extend(put)
            segments.extend(frame.segments[at : at + 1] * len(put))
            origins.extend([source] * len(put))
        return Pair(ids, segments), origins

    def _as_text(self, prompt: Prompt) -> str:
        if isinstance(prompt, str):
            return prompt
        if self.tokenizer.chat_template:
            return render_text(self.tokenizer, prompt, answer_next=True)
        if len(prompt) == 1:
            return turn_text(prompt[0])
        return "\n\n".join(f"{turn['role']}: {turn_text(turn)}" for turn in prompt)

    def end_ids(self, prompt: Prompt) -> list[int]:
        """Return the ids behind a finished response to a prompt of this kind."""
        if isinstance(prompt, str):
            return [self._eos()]
        if self._end_of_turn is None:
            self._end_of_turn = self._find_end_of_turn()
        return self._end_of_turn

    def _find_end_of_turn(self) -> list[int]:
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _MARK}]
        rendering = render(self.tokenizer, turns, answer_next=False)
        answer_at = rendering.text.rindex(_MARK)
        # Some templates end a turn with another token than the end-of-sequence token.
        for start, stop in control_spans(self.tokenizer, rendering):
            if start > answer_at:
                return [int(self.tokenizer.convert_tokens_to_ids(rendering.text[start:stop]))]
        return [self._eos()]

    def _eos(self) -> int:
        if self.tokenizer.eos_token_id is None:
            raise ModelError(
                "the reward model's tokenizer has no end-of-sequence token; set `eos_token` in it"
            )
        return int(self.tokenizer.eos_token_id)


def longest_input(config: Any, tokenizer: Any) -> int:
    """Return the longest input in tokens that both a model and its tokenizer take."""
    limits = [
        getattr(config, LENGTH, None),
        getattr(config, "max_position_embeddings", None),
        getattr(config, "n_positions", None),
        getattr(tokenizer, "model_max_length", None),
    ]
    return min((int(n) for n in limits if n and 0 < n < 10**7), default=10**7)
