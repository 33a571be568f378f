"""From a prompt and a response to the token ids that a reward model sees.

The one place where this is done: training, PPO, `select` and `rlhf score` all come through here, so
that a text has the same score wherever it is scored.

- Decoder: the prompt as the policy sees it (chat template with generation prompt, or plain
  tokenisation), the response, and the token that ends a turn. The score is read at that token.
- Encoder: prompt and response as a pair, with the encoder's own separators and one segment id for
  both.

A response counts as finished unless the caller says it was cut off; then it gets no end marker.
What is too long loses tokens from its left, the prompt's side, but keeps a leading
beginning-of-sequence token.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from data.chat import render_prompt, response_ids, spells_control_tokens
from data.errors import ModelError

if TYPE_CHECKING:
    from data.records import Prompt

_MARK = "qzxjk"


@dataclass
class Encoder:
    """Turns texts into ids, and counts what it had to cut.

    Attributes:
        tokenizer: the reward model's own.
        max_length: longest input in tokens.
        pairs: whether prompt and response go in as a pair, as encoders want it.
        seen: texts encoded so far.
        truncated: how many of them were too long.
        spelling: how many spell control tokens, which stay text.
    """

    tokenizer: Any
    max_length: int
    pairs: bool = False
    seen: int = 0
    truncated: int = 0
    spelling: int = 0
    _end_of_turn: int | None = field(default=None, init=False)

    def encode(self, prompt: Prompt, response: str, *, ended: bool = True) -> list[int]:
        """Return the ids of one prompt with one response, at most `max_length` of them.

        Args:
            prompt: plain text to be continued, or a chat whose last turn is the user's.
            response: the text of the response without special tokens.
            ended: False for a response that was cut off before its end.
        """
        self.seen += 1
        spells = spells_control_tokens(self.tokenizer, prompt, response)
        self.spelling += spells
        if self.pairs:
            return self._encode_pair(prompt, response, as_text=spells)
        if not isinstance(prompt, str):
            response = response.strip()
        ids = list(render_prompt(self.tokenizer, prompt))
        ids += response_ids(self.tokenizer, response)
        if ended:
            ids.append(self._end(prompt))
        if not ids:
            raise ModelError("an empty prompt with an empty, unfinished response has no score")
        return self._cut(ids)

    def _plain_ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _cut(self, ids: list[int]) -> list[int]:
        over = len(ids) - self.max_length
        if over <= 0:
            return ids
        self.truncated += 1
        if ids[0] == self.tokenizer.bos_token_id:
            return [ids[0], *ids[over + 1 :]]
        return ids[over:]

    def _encode_pair(self, prompt: Prompt, response: str, *, as_text: bool) -> list[int]:
        texts = (self._as_text(prompt), response.strip())
        ids: list[int] = self.tokenizer(*texts, split_special_tokens=as_text, verbose=False)[
            "input_ids"
        ]
        if len(ids) <= self.max_length:
            return ids
        self.truncated += 1
        frame = self.tokenizer.num_special_tokens_to_add(pair=True)
        room = self.max_length - frame - len(self._plain_ids(texts[1]))
        self.tokenizer.truncation_side = "left"
        cut: list[int] = self.tokenizer(
            *texts,
            truncation="only_first" if room > 0 else "longest_first",
            max_length=self.max_length,
            split_special_tokens=as_text,
        )["input_ids"]
        return cut

    def _as_text(self, prompt: Prompt) -> str:
        if isinstance(prompt, str):
            return prompt
        if self.tokenizer.chat_template:
            text: str = self.tokenizer.apply_chat_template(
                prompt, tokenize=False, add_generation_prompt=True
            )
            return text
        if len(prompt) == 1:
            return prompt[0]["content"]
        return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)

    def _end(self, prompt: Prompt) -> int:
        if isinstance(prompt, str):
            return self._eos()
        if self._end_of_turn is None:
            self._end_of_turn = self._find_end_of_turn()
        return self._end_of_turn

    def _find_end_of_turn(self) -> int:
        # Some templates end a turn with another token than the end-of-sequence token.
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _MARK}]
        text = self.tokenizer.apply_chat_template(turns, tokenize=False)
        added = self.tokenizer.added_tokens_decoder
        special = {*self.tokenizer.all_special_ids, *(i for i, t in added.items() if t.special)}
        for token in self._plain_ids(text.rpartition(_MARK)[2]):
            if token in special:
                return token
        return self._eos()

    def _eos(self) -> int:
        if self.tokenizer.eos_token_id is None:
            raise ModelError(
                "the reward model's tokenizer has no end-of-sequence token; set `eos_token` in it"
            )
        return int(self.tokenizer.eos_token_id)


def longest_input(config: Any, tokenizer: Any) -> int:
    """Return the longest input in tokens that both a model and its tokenizer take."""
    limits = [
        getattr(config, "max_position_embeddings", None),
        getattr(config, "n_positions", None),
        getattr(tokenizer, "model_max_length", None),
    ]
    return min((int(n) for n in limits if n and n < 10**7), default=10**7)
