"""Masked language modelling: some tokens are hidden, the row around them tells which they were.

BERT (Devlin et al. 2019, 3.1): 15 % of the tokens are chosen; of these 80 % become the mask token,
10 % any other, 10 % stay. Chosen anew each epoch, as RoBERTa's are (Liu et al. 2019, 4.1).

Departures: the number of tokens chosen is the share of the row to the nearest word, not a coin for
each; control tokens are never chosen, nor drawn as "any other".
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from data.text.objectives.spans import Mask
from data.text.packing import Ids

MASKED, RANDOM = 0.8, 0.1
"""Shares of the chosen tokens that become the mask token, and any other."""


class MaskedRow(NamedTuple):
    """A row with tokens hidden: what goes in, and which places are asked for."""

    ids_T: Ids
    chosen_T: Mask


def mask_tokens(
    ids_T: Ids,
    *,
    candidates_T: Mask,
    mask_id: int,
    others: Ids,
    share: float,
    generator: np.random.Generator,
    words_T: Ids | None = None,
) -> MaskedRow:
    """Hide a share of a row's tokens, one at least where there is a candidate.

    Args:
        ids_T: the row.
        candidates_T: tokens that may be chosen.
        mask_id: of the mask token.
        others: ids that a token may be replaced by.
        share: of the candidates that are chosen.
        generator: draws.
        words_T: number of each token's word, ascending: whole words are chosen then; tokens of one
            word are masked, replaced or kept one by one.
    """
    places = np.flatnonzero(candidates_T)
    chosen_T = np.zeros(len(ids_T), dtype=np.bool_)
    if not len(places):
        return MaskedRow(ids_T.copy(), chosen_T)
    units = places if words_T is None else words_T[places]
    names, sizes = np.unique(units, return_counts=True)
    order = generator.permutation(len(names))
    taken = np.cumsum(sizes[order])
    count = int(np.argmin(np.abs(taken - share * len(places)))) + 1
    chosen_T[places] = np.isin(units, names[order[:count]])
    drawn_T = generator.random(len(ids_T))
    hidden_T = np.where(chosen_T & (drawn_T < MASKED), mask_id, ids_T)
    swapped_T = chosen_T & (drawn_T >= MASKED) & (drawn_T < MASKED + RANDOM)
    return MaskedRow(np.where(swapped_T, generator.choice(others, len(ids_T)), hidden_T), chosen_T)


class SentencePair(NamedTuple):
    """Two halves of a row, and whether the second goes on from the first in its document."""

    first: Ids
    second: Ids
    follows: bool


def pair_up(
    ids_T: Ids,
    documents_T: Ids,
    other_T: Ids,
    other_documents_T: Ids,
    generator: np.random.Generator,
) -> SentencePair:
    """Cut a row into a pair; in half of the cases the second comes from another document.

    BERT's next-sentence prediction, with any place inside a document for the end of a sentence, and
    a pair as long as the row, so that rows stay full.

    Args:
        ids_T: the row.
        documents_T: document of each token.
        other_T: a row as long, or longer, that the second may be taken from.
        other_documents_T: its documents. Where the places at hand hold the first one's document,
            the pair is a following one.
        generator: draws.
    """
    length = len(ids_T)
    places = np.arange(1, length)
    inside = documents_T[1:] == documents_T[:-1]
    middle = (places >= length // 4) & (places <= length - length // 4)
    fitting = places[inside & middle] if (inside & middle).any() else places[inside]
    if not len(fitting):
        return SentencePair(ids_T[: length // 2], ids_T[length // 2 :], False)
    cut = int(generator.choice(fitting))
    stop = len(other_T)
    second = other_T[stop - (length - cut) : stop]
    foreign = bool((other_documents_T[stop - len(second) :] != documents_T[cut - 1]).all())
    if generator.random() < 0.5 and foreign:
        return SentencePair(ids_T[:cut], second, False)
    return SentencePair(ids_T[:cut], ids_T[cut:], True)
