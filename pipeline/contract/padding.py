"""The way out for a model that pads with its end-of-sequence token, as lines of a recipe."""

from __future__ import annotations

import itertools
import json
from collections.abc import Container

from data.text.tokenizer import PAD, SEPARATOR
from pipeline.contract.facts import ModelFacts


def another_pad(facts: ModelFacts, model: str, *, stage: str, taken: Container[str]) -> str | None:
    """Return what to add to a recipe so that a stage pads with a token that ends nothing.

    The lines stand as they do under `stages:`, and mean the same in a recipe that `extends` the
    one they are for. It is not done unasked: the tokenizer is part of what is published, and the
    token is one that the user's own data must not hold.

    Args:
        facts: of the model.
        model: path or hub id of it.
        stage: that takes its tokenizer.
        taken: names of stages.

    Returns:
        None where the model has no token to spare.
    """
    token = pad_token_for(facts)
    if token is None:
        return None
    names = (f"{stage}_tokenizer{number or ''}" for number in itertools.count())
    name = next(n for n in names if n not in taken)
    source, pad = (json.dumps(text, ensure_ascii=False) for text in (model, token))
    return (
        "set `pad_token` to another one, by these lines under `stages:`\n\n"
        f"  {name}: {{kind: tokenizer, adopt: {source}, pad_token: {pad}}}\n"
        f"  {stage}:\n"
        f"    tokenizer: {name}"
    )


def pad_token_for(facts: ModelFacts) -> str | None:
    """Return a padding token for a model whose own ends its texts; None where there is none.

    A new one where the embedding has a row for it, else a special token that no text holds.
    """
    if facts.vocab_size and facts.tokenizer_size and facts.tokenizer_size < facts.vocab_size:
        return PAD
    return min(facts.spare_tokens, key=_less_apt, default=None)


def _less_apt(token: str) -> int:
    for place, mark in enumerate(("pad", "reserved", "unused")):
        if mark in token.lower():
            return place
    return 4 if token == SEPARATOR else 3
