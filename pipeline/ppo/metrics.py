"""The figures of an update, under TRL's names where it has them.

Means are over all processes. `objective/*` are means over episodes of sums over tokens, in nats;
`objective/kl` is the k1 estimate whatever estimator shapes the reward. `objective/entropy` is
minus the sampled tokens' summed log-probabilities, as TRL has it; `policy/entropy_avg` the mean
entropy of a token's distribution.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

import torch
from torch import Tensor

from pipeline.ppo.experience import Experience
from pipeline.ppo.masking import masked_sum
from pipeline.ppo.optimize import Steps
from pipeline.ppo.ranks import Ranks
from pipeline.ppo.rollout import Episodes
from pipeline.ppo.scoring import Scores


def objective_metrics(
    episodes: Episodes,
    scores: Scores,
    experience: Experience,
    *,
    kl_coefficient: float,
    ranks: Ranks,
) -> dict[str, float]:
    """Return what tells how the policy does."""
    mask_BT = experience.tokens.mask_BT
    ended = sum(sample.ended for sample in episodes.samples)
    sums: dict[str, Tensor | float] = {
        "objective/kl": masked_sum(experience.log_ratio_BT, mask_BT),
        "objective/entropy": masked_sum(-experience.logprobs_BT, mask_BT),
        "objective/non_score_reward": masked_sum(-kl_coefficient * experience.kl_BT, mask_BT),
        "objective/scores": scores.final_B.sum(),
        "objective/scores_raw": scores.raw_B.sum(),
        "objective/response_length": float(mask_BT.sum()),
        "objective/ended_share": float(ended),
    }
    if len(scores.parts) > 1:
        sums |= {f"objective/scores/{name}": part.sum() for name, part in scores.parts.items()}
    inner = {  # means over tokens
        "policy/entropy_avg": masked_sum(experience.entropies_BT, mask_BT),
        "val/value_avg": masked_sum(experience.values_BT, mask_BT),
        "val/return_avg": masked_sum(experience.returns_BT, mask_BT),
        "val/return_square": masked_sum(experience.returns_BT.square(), mask_BT),
        "val/error_square": masked_sum(
            (experience.returns_BT - experience.values_BT).square(), mask_BT
        ),
    }
    squares = (scores.final_B.square()).sum()
    figures = [torch.as_tensor(v, dtype=torch.float64) for v in (*sums.values(), *inner.values())]
    packed = [*figures, squares.double(), torch.tensor(float(len(episodes)), dtype=torch.float64)]
    total = ranks.sum(torch.stack([figure.to(ranks.device) for figure in packed])).tolist()
    count, tokens = total[-1], total[list(sums).index("objective/response_length")]
    found = {name: value / count for name, value in zip(sums, total, strict=False)}
    means = total[len(sums) : len(sums) + len(inner)]
    found |= {name: value / tokens for name, value in zip(inner, means, strict=True)}
    found["objective/rlhf_reward"] = found["objective/non_score_reward"] + found["objective/scores"]
    variance = max(total[-2] / count - found["objective/scores"] ** 2, 0.0)
    found["objective/scores_std"] = variance**0.5
    found["objective/kl_coefficient"] = kl_coefficient
    found["val/num_eos_tokens"] = found["objective/ended_share"] * count
    spread = found.pop("val/return_square") - found["val/return_avg"] ** 2
    error = found.pop("val/error_square")
    # 1 where the values foretell the returns, 0 where a constant would do as well.
    found["val/explained_variance"] = 1.0 - error / spread if spread > 1e-12 else 0.0
    return found


def step_metrics(steps: Steps) -> dict[str, float]:
    """Return what the optimiser steps of an update tell, as means over them."""
    taken = steps.steps
    found = {
        "loss/policy_avg": fmean(s.policy_loss for s in taken),
        "loss/value_avg": fmean(s.value_loss for s in taken),
        "policy/approxkl_avg": fmean(s.approximate_kl for s in taken),
        "policy/clipfrac_avg": fmean(s.clip_share for s in taken),
        "val/clipfrac_avg": fmean(s.value_clip_share for s in taken),
        "val/ratio": fmean(s.ratio for s in taken),
        "val/steps": len(taken),
    }
    found |= {f"gradient_norm/{name}": fmean(norms) for name, norms in steps.norms.items()}
    if steps.pretraining:
        found["loss/pretraining_avg"] = fmean(steps.pretraining)
    if steps.norm_ratio is not None:
        found["gradient_norm/pretraining_to_ppo"] = steps.norm_ratio
    return found


def sample_rows(
    episodes: Episodes, scores: Scores, experience: Experience, *, update: int, count: int
) -> list[Mapping[str, object]]:
    """Return some episodes as rows of samples.jsonl."""
    kl_B = torch.where(experience.tokens.mask_BT, experience.log_ratio_BT, 0.0).sum(dim=1)
    return [
        {
            "update": update,
            "prompt": episodes.prompts[i].prompt,
            "response": episodes.texts[i],
            "score": round(float(scores.final_B[i]), 4),
            "scores": {name: round(float(part[i]), 4) for name, part in scores.parts.items()},
            "kl": round(float(kl_B[i]), 4),
            "tokens": len(episodes.samples[i].token_ids),
            "ended": episodes.samples[i].ended,
        }
        for i in range(min(count, len(episodes)))
    ]
