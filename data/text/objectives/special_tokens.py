"""The control tokens that an objective needs, and what a tokenizer puts around a text.

A row is framed in pretraining as the tokenizer frames any text later: `[CLS] ... [SEP]` by BERT's,
`<s> ... </s>` by RoBERTa's and BART's, `... </s>` by T5's.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from data.errors import ModelError
from data.text.control_tokens import encode_ids
from data.text.objectives import ObjectiveName
from data.text.packing import Ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MASK = "<|mask|>"
SENTINELS = tuple(f"<extra_id_{number}>" for number in range(100))
"""T5's, under its names."""
_PROBE = "a few words"
_SENTINEL = re.compile(r"<extra_id_(\d+)>")


def special_tokens(objective: ObjectiveName) -> tuple[str, ...]:
    """Return the control tokens that an objective adds to a tokenizer learned here."""
    needed = {"masked": (MASK,), "denoising": (MASK,), "span_corruption": SENTINELS}
    return needed.get(objective, ())


def equip(tokenizer: PreTrainedTokenizerBase, objective: ObjectiveName) -> None:
    """Give a tokenizer what it lacks for an objective: a mask, sentinels, a frame for texts."""
    if objective == "causal":
        return
    if objective == "span_corruption":
        if not len(sentinel_ids(tokenizer)):
            tokenizer.add_special_tokens(
                {"extra_special_tokens": list(SENTINELS)}, replace_extra_special_tokens=False
            )
    elif tokenizer.mask_token is None:
        tokenizer.add_special_tokens({"mask_token": MASK})
    if frame(tokenizer) == Frame([], [], []):
        _frame(tokenizer, objective)


def _frame(tokenizer: PreTrainedTokenizerBase, objective: ObjectiveName) -> None:
    from tokenizers.processors import TemplateProcessing

    front = [] if objective == "span_corruption" else [tokenizer.bos_token]
    ends = tokenizer.eos_token
    if ends is None or None in front:
        return
    if objective == "masked":  # what classifiers and pairs of texts go by
        tokenizer.cls_token, tokenizer.sep_token = front[0], ends
    backend: Any = tokenizer.backend_tokenizer
    backend.post_processor = TemplateProcessing(
        single=[*front, "$A", ends],
        pair=[*front, "$A", ends, "$B:1", f"{ends}:1"],
        special_tokens=[
            (name, tokenizer.convert_tokens_to_ids(name)) for name in dict.fromkeys([*front, ends])
        ],
    )


class Frame(NamedTuple):
    """Ids around a text: in front, between the two of a pair, and at the end."""

    front: list[int]
    middle: list[int]
    end: list[int]


def frame(tokenizer: PreTrainedTokenizerBase) -> Frame:
    """Return what a tokenizer puts around one text, and between two."""
    body = encode_ids(tokenizer, _PROBE)
    single = list(tokenizer(_PROBE, verbose=False)["input_ids"])
    pair = list(tokenizer(_PROBE, _PROBE, verbose=False)["input_ids"])
    size = len(body)
    starts = [at for at in range(len(single)) if single[at : at + size] == body]
    if not body or not starts:
        return Frame([], [], [])
    front, end = single[: starts[0]], single[starts[0] + size :]
    return Frame(front, pair[len(front) + size : len(pair) - len(end) - size], end)


def sentinel_ids(tokenizer: PreTrainedTokenizerBase) -> Ids:
    """Return the ids of `<extra_id_0>`, `<extra_id_1>` ... as far as there are any."""
    found = {
        int(match[1]): number
        for name, number in tokenizer.get_vocab().items()
        if (match := _SENTINEL.fullmatch(name)) is not None
    }
    return np.array([found[place] for place in sorted(found)], dtype=np.int64)


def require_equipped(
    tokenizer: PreTrainedTokenizerBase, objective: ObjectiveName, *, source: str, spans: int = 0
) -> None:
    """Refuse a tokenizer that lacks what an objective needs.

    Args:
        tokenizer: is looked at.
        objective: that is learned with it.
        source: what it is called.
        spans: sentinels that a row needs.

    Raises:
        ModelError: with what is missing.
    """
    missing = None
    if objective in ("masked", "denoising") and tokenizer.mask_token_id is None:
        missing = "has no mask token"
    elif objective == "span_corruption" and len(sentinel_ids(tokenizer)) < spans:
        missing = f"has {len(sentinel_ids(tokenizer))} sentinels (<extra_id_0> ...), a row {spans}"
    elif objective in ("span_corruption", "denoising") and not frame(tokenizer).end:
        missing = "puts no token at the end of a text, by which a decoder would learn to end"
    if missing is not None:
        raise ModelError(
            f"objective {objective}: the tokenizer of {source} {missing}; make or adopt one in a "
            f"tokenizer stage with objective: {objective}"
        )
