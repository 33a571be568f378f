"""What an update learns from: episodes as tensors, with everything that is fixed before it.

Shapes: B episodes of this process, T response tokens, M episodes of a micro-batch, L tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.ppo.advantages import (
    Moments,
    generalized_advantages,
    moments,
    shaped_rewards,
    whitened,
)
from pipeline.ppo.kl import kl_estimate
from pipeline.ppo.masking import length_mask
from pipeline.ppo.modules import Policy, ValueModel
from pipeline.ppo.ranks import Ranks
from pipeline.ppo.rollout import Episodes
from pipeline.ppo.settings import Hyperparameters


class Piece(NamedTuple):
    """Some episodes, padded to the longest of them."""

    rows_M: Tensor
    ids_ML: Tensor
    starts_M: Tensor
    mask_MT: Tensor


@dataclass(frozen=True)
class Tokens:
    """The tokens of a process's episodes.

    Attributes:
        ids: prompt and response of each episode.
        starts_B: where the response begins.
        mask_BT: response tokens, the end of sequence included.
        pad_id: fills up rows on the right; its value changes nothing.
        device: where pieces go.
    """

    ids: list[list[int]]
    starts_B: Tensor
    mask_BT: Tensor
    pad_id: int
    device: torch.device

    @classmethod
    def of(cls, episodes: Episodes, *, pad_id: int, device: torch.device) -> Tokens:
        """Lay out episodes."""
        lengths_B = torch.tensor([len(s.token_ids) for s in episodes.samples], device=device)
        pairs = zip(episodes.prompts, episodes.samples, strict=True)
        return cls(
            ids=[p.ids + s.token_ids for p, s in pairs],
            starts_B=torch.tensor([len(p.ids) for p in episodes.prompts], device=device),
            mask_BT=length_mask(lengths_B=lengths_B, size=int(lengths_B.max())),
            pad_id=pad_id,
            device=device,
        )

    def pieces(self, rows: Sequence[int], *, size: int) -> Iterator[Piece]:
        """Cut episodes into pieces of like lengths, the longest first."""
        order = sorted(rows, key=lambda row: (-len(self.ids[row]), row))
        for start in range(0, len(order), size):
            yield self._piece(order[start : start + size])

    def _piece(self, rows: list[int]) -> Piece:
        width = max(len(self.ids[row]) for row in rows)
        padded = [self.ids[row] + [self.pad_id] * (width - len(self.ids[row])) for row in rows]
        rows_M = torch.tensor(rows, device=self.device)
        mask_MT = self.mask_BT[rows_M]
        return Piece(
            rows_M=rows_M,
            ids_ML=torch.tensor(padded, device=self.device),
            starts_M=self.starts_B[rows_M],
            mask_MT=mask_MT[:, : int(mask_MT.sum(dim=1).max())],
        )


@dataclass(frozen=True)
class Experience:
    """Everything an update learns from; tensors are (B, T), 0 outside the mask.

    Attributes:
        tokens: of the episodes.
        logprobs_BT: of the policy before the update.
        entropies_BT: of its distributions.
        kl_BT: estimate of the KL to the reference that goes into the reward.
        log_ratio_BT: policy's minus reference's log-probabilities (the k1 estimate).
        values_BT: of the value model before the update.
        rewards_BT: KL penalty, and the score at the last token; before whitening.
        advantages_BT: whitened as the settings say.
        returns_BT: targets of the values.
    """

    tokens: Tokens
    logprobs_BT: Tensor
    entropies_BT: Tensor
    kl_BT: Tensor
    log_ratio_BT: Tensor
    values_BT: Tensor
    rewards_BT: Tensor
    advantages_BT: Tensor
    returns_BT: Tensor


class PolicyScores(NamedTuple):
    """What policy, reference and value model say of the tokens before an update."""

    logprobs_BT: Tensor
    entropies_BT: Tensor
    reference_BT: Tensor
    values_BT: Tensor


@torch.no_grad()
def score_tokens(
    tokens: Tokens,
    *,
    policy: Policy,
    reference: Policy,
    value: ValueModel | None,
    hyper: Hyperparameters,
    ranks: Ranks,
) -> PolicyScores:
    """Score all response tokens without gradients; values come from the policy if it has a head."""
    found = [torch.zeros(tokens.mask_BT.shape, device=tokens.device) for _ in range(4)]
    for piece in tokens.pieces(range(len(tokens.ids)), size=hyper.score_batch_size):
        batch = (piece.ids_ML, piece.starts_M, piece.mask_MT)
        with ranks.autocast():
            own = policy(*batch, hyper.temperature, True)
            other = reference(*batch, hyper.temperature)
            values_MT = own.values_BT if value is None else value(*batch)
        width = piece.mask_MT.shape[1]
        parts = (own.logprobs_BT, own.entropies_BT, other.logprobs_BT, values_MT)
        for whole, part in zip(found, parts, strict=True):
            whole[piece.rows_M, :width] = part
    return PolicyScores(*found)


def make_experience(
    tokens: Tokens,
    scored: PolicyScores,
    *,
    scores_B: Tensor,
    kl_coefficient: float,
    hyper: Hyperparameters,
    ranks: Ranks,
) -> Experience:
    """Shape the rewards and estimate the advantages; whitening is over the global batch."""
    mask_BT = tokens.mask_BT
    both = {"logprobs_BT": scored.logprobs_BT, "reference_BT": scored.reference_BT}
    kl_BT = kl_estimate(**both, estimator=hyper.kl_estimator)
    rewards_BT = shaped_rewards(
        scores_B=scores_B, kl_BT=kl_BT, mask_BT=mask_BT, coefficient=kl_coefficient
    )
    learned_BT = rewards_BT
    if hyper.whiten_rewards:
        learned_BT = whitened(
            rewards_BT, mask_BT, of=global_moments(rewards_BT, mask_BT, ranks), shift_mean=False
        )
    advantages_BT, returns_BT = generalized_advantages(
        rewards_BT=learned_BT,
        values_BT=scored.values_BT,
        mask_BT=mask_BT,
        gamma=hyper.gamma,
        lam=hyper.gae_lambda,
    )
    if hyper.whiten_advantages is True:
        advantages_BT = whitened(
            advantages_BT, mask_BT, of=global_moments(advantages_BT, mask_BT, ranks)
        )
    return Experience(
        tokens=tokens,
        logprobs_BT=scored.logprobs_BT,
        entropies_BT=scored.entropies_BT,
        kl_BT=kl_BT,
        log_ratio_BT=scored.logprobs_BT - scored.reference_BT,
        values_BT=scored.values_BT,
        rewards_BT=rewards_BT,
        advantages_BT=advantages_BT,
        returns_BT=returns_BT,
    )


def global_moments(values: Tensor, mask: Tensor, ranks: Ranks) -> Moments:
    """Return the moments of the values of all processes."""
    return Moments(*ranks.sum(torch.stack(moments(values, mask))).unbind())
