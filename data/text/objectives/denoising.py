"""Denoising: a row is spoiled in several ways, the target is the row as it was.

BART (Lewis et al. 2020, 2.2): token masking, token deletion, text infilling (spans of a length
drawn from Poisson(3) become one mask token; one of length 0 is a mask put in), sentence
permutation and document rotation. Its released models infill 30 % of the tokens and permute all
sentences (3.2).

Departure: no more masks are put in than tokens were taken out, so that no row outgrows its place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.text.objectives.spans import Mask, covered, place_spans
from data.text.packing import Ids


@dataclass(frozen=True)
class Noise:
    """How a row is spoiled.

    Attributes:
        infill: share of the tokens that are hidden in spans, each behind one mask.
        mean_span: mean tokens of such a span, those of length 0 included.
        mask: share of the tokens that are masked one by one.
        delete: share of the tokens that are deleted.
        permute: share of the rows whose sentences are shuffled.
        rotate: share of the rows that begin at another token.
    """

    infill: float = 0.3
    mean_span: float = 3.0
    mask: float = 0.0
    delete: float = 0.0
    permute: float = 1.0
    rotate: float = 0.0


def spoil(
    ids_T: Ids, *, noise: Noise, ends_T: Mask, mask_id: int, generator: np.random.Generator
) -> Ids:
    """Return a row spoiled in every way that the noise has; never longer than it was.

    Args:
        ids_T: the row.
        noise: how.
        ends_T: tokens that end a sentence.
        mask_id: of the mask token.
        generator: draws.
    """
    spoiled = ids_T
    if generator.random() < noise.permute:
        spoiled = permute_sentences(spoiled, ends_T, generator)
    if noise.infill:
        spoiled = infill(spoiled, noise.infill, noise.mean_span, mask_id, generator)
    if noise.mask:
        chosen = generator.permutation(len(spoiled))[: round(noise.mask * len(spoiled))]
        spoiled = spoiled.copy()
        spoiled[chosen] = mask_id
    if noise.delete:
        lost = generator.permutation(len(spoiled))[: round(noise.delete * len(spoiled))]
        spoiled = np.delete(spoiled, lost[: len(spoiled) - 1])
    if generator.random() < noise.rotate:
        spoiled = np.roll(spoiled, -int(generator.integers(len(spoiled))))
    return spoiled


def permute_sentences(ids_T: Ids, ends_T: Mask, generator: np.random.Generator) -> Ids:
    """Return a row with its sentences shuffled; what ends in no full stop counts as one too."""
    cuts = np.flatnonzero(ends_T[:-1]) + 1
    sentences = np.split(ids_T, cuts)
    return np.concatenate([sentences[place] for place in generator.permutation(len(sentences))])


def infill(
    ids_T: Ids, share: float, mean_span: float, mask_id: int, generator: np.random.Generator
) -> Ids:
    """Return a row in which spans of a share of its tokens are one mask each, and masks put in."""
    wanted = round(share * len(ids_T))
    if not wanted:
        return ids_T
    # So many that their sum reaches what is wanted, all but surely; what is beyond is cut off.
    drawn = generator.poisson(mean_span, size=2 * wanted + 16)
    total = np.cumsum(drawn)
    count = int(np.searchsorted(total, wanted)) + 1
    lengths = drawn[:count].astype(np.int64)
    lengths[-1] -= max(0, int(total[min(count, len(total)) - 1]) - wanted)
    lengths_K = lengths[lengths > 0]
    room = len(ids_T) - int(lengths_K.sum()) + 1  # spans that tokens between them keep apart
    lengths_K = lengths_K[:room]
    starts_K = place_spans(lengths_K, len(ids_T), generator)
    kept_T = ~covered(starts_K, lengths_K, len(ids_T))
    kept_T[starts_K] = True
    masked_T = ids_T.copy()
    masked_T[starts_K] = mask_id
    filled = masked_T[kept_T]
    put_in = min(int((lengths == 0).sum()), len(ids_T) - len(filled))
    return np.insert(filled, generator.integers(len(filled) + 1, size=put_in), mask_id)
