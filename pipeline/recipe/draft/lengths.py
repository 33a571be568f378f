"""How long rows are in tokens, from a sample, and which limits most of them stay below."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from data.errors import ControlTokenError, ModelError
from data.records import Completion, Conversation, Message, Ranking, Record, prompt_of
from data.text.chat import render_demonstration, render_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class Lengths:
    """Tokens of rows.

    Attributes:
        rows: of each with its answer, the longest where there are several.
        prompts: of each prompt.
        answers: of each answer, its end among them.
    """

    rows: list[int] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)


def measure(tokenizer: PreTrainedTokenizerBase, records: Iterable[Record]) -> Lengths:
    """Count the tokens of rows that ask something, as the stages will have them.

    Raises:
        ModelError: the chat template refuses all rows.
    """
    lengths, refused = Lengths(), None
    for record in records:
        try:
            asked = len(render_prompt(tokenizer, prompt_of(record)))
            whole = [len(render_demonstration(tokenizer, one).ids) for one in _answered(record)]
        except ControlTokenError:  # the stages leave such rows out, and count them
            continue
        except ModelError as error:
            refused = error
            continue
        lengths.prompts.append(asked)
        if whole:
            lengths.rows.append(max(whole))
            lengths.answers += [length - asked for length in whole]
    if refused is not None and not lengths.prompts:
        raise refused
    return lengths


def together(parts: Iterable[Lengths]) -> Lengths:
    """Return the tokens of the rows of several."""
    all_ = Lengths()
    for one in parts:
        all_.rows += one.rows
        all_.prompts += one.prompts
        all_.answers += one.answers
    return all_


def _answered(record: Record) -> Iterator[Conversation | Completion]:
    """Yield each answer of a record behind its prompt."""
    if isinstance(record, (Conversation, Completion)):
        yield record
    elif isinstance(record, Ranking):
        for text in record.completions:
            if isinstance(record.prompt, str):
                yield Completion(record.prompt, text)
            else:
                turn: Message = {"role": "assistant", "content": text}
                yield Conversation([*record.prompt, turn])


def limit(lengths: Sequence[int], share: float, *, multiple: int, most: float) -> int:
    """Return a limit below which a share of rows stays, a multiple if that is not beyond `most`."""
    ordered = sorted(lengths)
    longest = ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else multiple
    return int(min(most, math.ceil(longest / multiple) * multiple))


def beyond(lengths: Sequence[int], most: int) -> float:
    """Return the share of rows that are longer."""
    return sum(length > most for length in lengths) / max(1, len(lengths))


def count_texts(tokenizer: Any, texts: Iterable[str]) -> float:
    """Return the mean tokens of texts."""
    counts = [
        len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) + 1
        for text in texts
    ]
    return sum(counts) / max(1, len(counts))
