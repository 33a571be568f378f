"""The loss of a reward model over rankings; torch only.

Shapes: N prompts, K completions a prompt (padded to the largest), S sequences (all completions of a
batch, one after the other). Masks: True counts.

Soft labels: the share p of annotators who prefer one of two completions is the target, and the loss
of a pair whose scores differ by d is the cross-entropy of the Bradley-Terry probability with it,
-p log sigmoid(d) - (1 - p) log sigmoid(-d), least at d = log(p / (1 - p)). A margin is asked beyond
that, towards the one that more prefer. Wang et al. 2024 (Secrets of RLHF, part II) soften labels of
reward models in this form, and Mitchell 2023 those of DPO (conservative DPO), with one p for many
pairs; here each pair has its own, and p of 0, 1/2 and 1 are the ranks of one annotator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Ties = Literal["drop", "half"]


class RankingLoss(NamedTuple):
    """What `ranking_loss` returns.

    Attributes:
        loss: scalar; the sum over the given prompts divided by the global number of prompts.
        correct: scalar; number of strictly ranked pairs in the right order, equal scores counting
            half (no gradient). Pairs count alike, as in a stage's final accuracy, whatever K.
        n_ranked: number of strictly ranked pairs, what `correct` is out of.
        n_used: number of prompts that the loss counts.
    """

    loss: Tensor
    correct: Tensor
    n_ranked: int
    n_used: int


class PaddedRankings(NamedTuple):
    """Scores and ranks laid out one prompt a row; targets as `ranking_loss` takes them."""

    scores_NK: Tensor
    ranks_NK: Tensor
    mask_NK: Tensor
    targets_NKK: Tensor | None = None


def has_comparable_pair(ranks: list[int], *, ties: Ties = "drop", soft: bool = False) -> bool:
    """Tell whether a ranking teaches anything: two completions that differ in rank.

    Where ties are pulled to one half, or there are soft labels, any two completions will do.
    """
    return len(ranks) > 1 and (soft or ties == "half" or len(set(ranks)) > 1)


def pad_rankings(
    *,
    scores_S: Tensor,
    ranks: list[list[int]],
    probabilities: Sequence[Sequence[Sequence[float]]] = (),
) -> PaddedRankings:
    """Lay out the scores of consecutive prompts, which may differ in K, as rows.

    Args:
        scores_S: scores of all completions, prompt after prompt.
        ranks: one list of ranks a prompt; their lengths add up to S.
        probabilities: soft labels of each prompt, K rows of K, or empty for a prompt without; no
            list at all where no prompt has any.
    """
    width = max(len(row) for row in ranks)
    sizes = torch.tensor([len(row) for row in ranks])
    assert int(sizes.sum()) == scores_S.shape[0], "one rank a score"
    mask_NK = (torch.arange(width)[None] < sizes[:, None]).to(scores_S.device)
    ranks_NK = torch.tensor([row + [0] * (width - len(row)) for row in ranks])
    # Row by row, as the scores come; it passes their gradient on, and what fills up rows has none.
    scores_NK = scores_S.new_zeros(mask_NK.shape).masked_scatter(mask_NK, scores_S)
    if not any(probabilities):
        return PaddedRankings(scores_NK, ranks_NK.to(scores_S.device), mask_NK)
    targets_NKK = torch.full((len(ranks), width, width), math.nan)  # NaN: the ranks tell
    for row_KK, shares in zip(targets_NKK, probabilities, strict=True):
        if shares:
            row_KK[: len(shares), : len(shares)] = torch.tensor(shares)
    return PaddedRankings(
        scores_NK, ranks_NK.to(scores_S.device), mask_NK, targets_NKK.to(scores_S.device)
    )


def ranking_loss(
    *,
    scores_NK: Tensor,
    ranks_NK: Tensor,
    mask_NK: Tensor,
    targets_NKK: Tensor | None = None,
    n_prompts: int,
    margin: float = 0.0,
    ties: Ties = "drop",
) -> RankingLoss:
    """Mean over prompts of the mean over comparable pairs of -log sigmoid(better - worse).

    A prompt counts once whatever its K. Where nothing ties, the inner mean is InstructGPT's
    1 / C(K, 2) (Ouyang et al. 2022, equation 1). A prompt without a comparable pair adds nothing,
    one with soft labels counts all its pairs (see the module).

    Args:
        scores_NK: reward of each completion.
        ranks_NK: rank of each completion, 1 is best, equal is a tie.
        mask_NK: True where there is a completion.
        n_prompts: global number of prompts of the optimiser's step, over all ranks and
            micro-batches; the losses of the parts then add up to the loss of the whole.
        targets_NKK: p of each pair (i, j), p of (j, i) being 1 - p; NaN where ranks alone tell.
        margin: asked of the difference of a strictly ranked pair.
        ties: "drop" leaves tied pairs out; "half" pulls the probability that one of them is
            better to one half, and counts them among the prompt's pairs. Not of soft labels.

    Raises:
        ValueError: `n_prompts` is not positive.
    """
    if n_prompts < 1:
        raise ValueError(f"n_prompts must be positive, not {n_prompts}")
    # A prompt's K completions give K x K pairs (i, j); all masks below pick among those.
    scores_NK = scores_NK.float()
    both_NKK = mask_NK[:, :, None] & mask_NK[:, None, :]
    ahead_NKK = both_NKK & (ranks_NK[:, :, None] < ranks_NK[:, None, :])  # i is the better one
    difference_NKK = scores_NK[:, :, None] - scores_NK[:, None, :]
    hard_NKK = both_NKK if targets_NKK is None else both_NKK & targets_NKK.isnan()

    # -log sigmoid(better - worse), each pair once: (i, j) is `ahead`, (j, i) is not.
    total_N = _masked_sum(-logsigmoid(difference_NKK - margin), ahead_NKK & hard_NKK)
    n_pairs_N = (ahead_NKK & hard_NKK).sum((1, 2))
    if ties == "half":  # cross-entropy with 1/2, least where the two scores are equal
        tied_NKK = (hard_NKK & (ranks_NK[:, :, None] == ranks_NK[:, None, :])).triu(diagonal=1)
        either_NKK = -0.5 * (logsigmoid(difference_NKK) + logsigmoid(-difference_NKK))
        total_N = total_N + _masked_sum(either_NKK, tied_NKK)
        n_pairs_N = n_pairs_N + tied_NKK.sum((1, 2))
    if targets_NKK is not None:  # cross-entropy with the share of annotators
        soft_NKK = (both_NKK & ~hard_NKK).triu(diagonal=1)
        soft_N = _cross_entropy_sum(difference_NKK, targets_NKK, soft_NKK, margin)
        total_N, n_pairs_N = total_N + soft_N, n_pairs_N + soft_NKK.sum((1, 2))

    # The mean over a prompt's pairs, then over the prompts of the whole step.
    return RankingLoss(
        loss=(total_N / n_pairs_N.clamp(min=1)).sum() / n_prompts,
        correct=_won(difference_NKK, ahead_NKK),
        n_ranked=int(ahead_NKK.sum()),
        n_used=int((n_pairs_N > 0).sum()),
    )


@torch.no_grad()
def _won(difference_NKK: Tensor, ahead_NKK: Tensor) -> Tensor:
    """Return the number of pairs in the right order; equal scores are a coin's throw."""
    won_NKK = (difference_NKK > 0).float() + 0.5 * (difference_NKK == 0).float()
    return _masked_sum(won_NKK, ahead_NKK).sum()


def _cross_entropy_sum(
    difference_NKK: Tensor, targets_NKK: Tensor, mask_NKK: Tensor, margin: float
) -> Tensor:
    # A NaN behind a mask would still come out of the gradient: 0 times NaN is NaN.
    p_NKK = targets_NKK.nan_to_num()
    asked_NKK = difference_NKK - margin * (2 * p_NKK - 1).sign()
    crossed_NKK = -p_NKK * logsigmoid(asked_NKK) - (1 - p_NKK) * logsigmoid(-asked_NKK)
    return _masked_sum(crossed_NKK, mask_NKK)


def _masked_sum(values_NKK: Tensor, mask_NKK: Tensor) -> Tensor:
    # where, not a product: what is masked may be infinite. [N, K, K] -> [N]
    return torch.where(mask_NKK, values_NKK, 0.0).sum((1, 2))
