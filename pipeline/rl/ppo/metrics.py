"""The figures of an update, under TRL's names where it has them.

Means are over all processes. `objective/*` are means over episodes of sums over tokens, in nats;
`objective/kl` is the k1 estimate, which shapes the reward; `objective/kl_k2` and `objective/kl_k3`
are figures alone (`pipeline.rl.maths.kl`). `objective/entropy` is minus the sampled tokens' summed
log-probabilities, as TRL has it; `policy/entropy_avg` the mean entropy of a token's distribution,
before the update, where TRL takes it during the update, and `policy/entropy_share` that over the
entropy of tokens drawn evenly. `val/ratio_var` is the variance over
optimiser steps of the mean ratio (TRL: over micro-batches). `val/num_eos_tokens` counts ended
responses, TRL end tokens. Tokens that a tool put into a response count nowhere. `time/*` are
seconds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from statistics import variance as sample_variance
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from data.text.continuation import token_texts
from pipeline.rl.maths.kl import Estimator, kl_estimate
from pipeline.rl.maths.masking import masked_sum
from pipeline.rl.ppo.experience import Experience
from pipeline.rl.ppo.optimize import Steps
from pipeline.rl.processes import World
from pipeline.rl.rewards import Scores
from pipeline.rl.rollout.rollout import Episodes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKEN_ROWS = 2
"""Episodes of a sampled update whose tokens are written with their figures."""


def objective_metrics(
    episodes: Episodes,
    scores: Scores,
    experience: Experience,
    *,
    kl_coefficient: float,
    world: World,
) -> dict[str, float]:
    """Return what tells how the policy does."""
    mask_BT = experience.tokens.mask_BT
    ended = sum(sample.ended for sample in episodes.samples)
    sums: dict[str, Tensor | float] = {
        "objective/kl": masked_sum(experience.log_ratio_BT, mask_BT),
        "objective/kl_k2": masked_sum(_estimate(experience, "k2"), mask_BT),
        "objective/kl_k3": masked_sum(_estimate(experience, "k3"), mask_BT),
        "objective/entropy": masked_sum(-experience.logprobs_BT, mask_BT),
        "objective/non_score_reward": masked_sum(
            -kl_coefficient * experience.log_ratio_BT, mask_BT
        ),
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
    total = world.sum(torch.stack([figure.to(world.device) for figure in packed])).tolist()
    count, tokens = total[-1], total[list(sums).index("objective/response_length")]
    metrics = {name: value / count for name, value in zip(sums, total, strict=False)}
    means = total[len(sums) : len(sums) + len(inner)]
    metrics |= {name: value / tokens for name, value in zip(inner, means, strict=True)}
    metrics["objective/rlhf_reward"] = (
        metrics["objective/non_score_reward"] + metrics["objective/scores"]
    )
    variance = max(total[-2] / count - metrics["objective/scores"] ** 2, 0.0)
    metrics["objective/scores_std"] = variance**0.5
    metrics["objective/kl_coefficient"] = kl_coefficient
    metrics["val/num_eos_tokens"] = metrics["objective/ended_share"] * count
    spread = metrics.pop("val/return_square") - metrics["val/return_avg"] ** 2
    error = metrics.pop("val/error_square")
    # 1 where the values foretell the returns, 0 where a constant would do as well.
    metrics["val/explained_variance"] = 1.0 - error / spread if spread > 1e-12 else 0.0
    return metrics


def _estimate(experience: Experience, estimator: Estimator) -> Tensor:
    """Return the KL at each token as another estimator tells it."""
    logprobs_BT = experience.logprobs_BT
    reference_BT = logprobs_BT - experience.log_ratio_BT
    return kl_estimate(logprobs_BT=logprobs_BT, reference_BT=reference_BT, estimator=estimator)


def response_metrics(episodes: Episodes, scores: Scores, *, world: World) -> dict[str, float]:
    """Return what tells how responses are made, for the doctor.

    `objective/repeated_share` is the mean share of a response's four-token runs that stood in it
    before; `objective/distinct_share` different responses over all; the correlation is Pearson's,
    of a response's raw score and its tokens, 0 where either does not vary.
    """
    # Moments add up over processes, so that the correlation is that of the whole batch.
    lengths_B = scores.raw_B.new_tensor([len(s.own_ids) for s in episodes.samples]).double()
    raw_B = scores.raw_B.double()
    repeated = sum(repeated_share(s.own_ids) for s in episodes.samples)
    sums = [
        raw_B.sum(),
        raw_B.square().sum(),
        lengths_B.sum(),
        lengths_B.square().sum(),
        (raw_B * lengths_B).sum(),
        raw_B.new_tensor(repeated),
        raw_B.new_tensor(float(len(episodes))),
    ]
    *totals, count = world.sum(torch.stack(sums)).tolist()
    score, square, length, length_square, product, repeated = (total / count for total in totals)
    spread = max(square - score**2, 0.0) ** 0.5
    length_spread = max(length_square - length**2, 0.0) ** 0.5
    varies = spread > 1e-6 and length_spread > 1e-6
    return {
        "objective/scores_raw_std": spread,
        "objective/score_length_correlation": (product - score * length) / (spread * length_spread)
        if varies
        else 0.0,
        "objective/repeated_share": repeated,
        "objective/distinct_share": _different(episodes, world) / count,
    }


def call_metrics(episodes: Episodes, *, world: World) -> dict[str, float]:
    """Return how many tools a response calls, and the share of calls that failed."""
    calls = [call for sample in episodes.samples for call in sample.calls]
    own = [len(episodes), len(calls), sum(call.error for call in calls)]
    count, called, failed = world.sum(torch.tensor(own, device=world.device).float()).tolist()
    return {
        "objective/calls": called / count,
        "objective/failed_call_share": failed / max(called, 1.0),
    }


def repeated_share(ids: Sequence[int]) -> float:
    """Return the share of runs of four tokens that stood in the response before (seq-rep-4).

    Source: Welleck et al. 2020, "Neural text generation with unlikelihood training", section 6.
    """
    runs = [tuple(ids[i : i + 4]) for i in range(len(ids) - 3)]
    return 1.0 - len(set(runs)) / len(runs) if runs else 0.0


def _different(episodes: Episodes, world: World) -> int:
    """Count the different responses of all processes."""
    # A tuple of numbers has the same hash in every process.
    own = [hash(tuple(sample.token_ids)) for sample in episodes.samples]
    if world.size == 1:
        return len(set(own))
    return len(set(world.accelerator.gather(torch.tensor(own, device=world.device)).tolist()))


def step_metrics(steps: Steps) -> dict[str, float]:
    """Return what the optimiser steps of an update tell, as means over them."""
    taken = steps.steps
    metrics = {
        "loss/policy_avg": fmean(s.policy_loss for s in taken),
        "loss/value_avg": fmean(s.value_loss for s in taken),
        "policy/approxkl_avg": fmean(s.approximate_kl for s in taken),
        "policy/clipfrac_avg": fmean(s.clip_share for s in taken),
        "val/clipfrac_avg": fmean(s.value_clip_share for s in taken),
        "val/ratio": fmean(s.ratio for s in taken),
        "val/ratio_var": sample_variance(s.ratio for s in taken) if len(taken) > 1 else 0.0,
        "val/steps": len(taken),
    }
    metrics |= {f"gradient_norm/{name}": fmean(norms) for name, norms in steps.norms.items()}
    if steps.pretraining:
        metrics["loss/pretraining_avg"] = fmean(steps.pretraining)
    if steps.norm_ratio is not None:
        metrics["gradient_norm/pretraining_to_ppo"] = steps.norm_ratio
    return metrics


def sample_rows(
    episodes: Episodes,
    scores: Scores,
    experience: Experience,
    *,
    update: int,
    count: int,
    tokenizer: PreTrainedTokenizerBase,
) -> list[Mapping[str, object]]:
    """Return some episodes as rows of samples.jsonl, the first with the figures of each token."""
    kl_B = torch.where(experience.tokens.mask_BT, experience.log_ratio_BT, 0.0).sum(dim=1)
    rows: list[Mapping[str, object]] = []
    for i in range(min(count, len(episodes))):
        row: dict[str, object] = {
            "update": update,
            "prompt": episodes.prompts[i].prompt,
            "response": episodes.texts[i],
            "score": round(float(scores.final_B[i]), 4),
            "scores": {name: round(float(part[i]), 4) for name, part in scores.parts.items()},
            "kl": round(float(kl_B[i]), 4),
            "tokens": len(episodes.samples[i].own_ids),
            "ended": episodes.samples[i].ended,
        }
        own = episodes.samples[i].own
        if own is not None:
            row["tool_tokens"] = own.count(False)
            row["calls"] = [*map(asdict, episodes.samples[i].calls)]
        if i < TOKEN_ROWS:
            row["by_token"] = _by_token(episodes, experience, i, tokenizer)
        rows.append(row)
    return rows


def _by_token(
    episodes: Episodes, experience: Experience, i: int, tokenizer: PreTrainedTokenizerBase
) -> dict[str, list[str] | list[float] | list[bool]]:
    """Return the text of each token of an episode, and beside it what PPO made of it.

    `own` is False where a tool put it; without such tokens there is no `own`.
    """
    sample = episodes.samples[i]
    ids = sample.token_ids
    figures = {
        "kl": experience.log_ratio_BT,
        "value": experience.values_BT,
        "advantage": experience.advantages_BT,
    }
    return {
        "text": token_texts(tokenizer, episodes.prompts[i].ids, ids),
        **{
            name: [round(value, 4) for value in figure_BT[i, : len(ids)].tolist()]
            for name, figure_BT in figures.items()
        },
        **({} if sample.own is None else {"own": sample.own}),
    }


class Clock:
    """Seconds between laps."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Note the seconds since the last lap under a name."""
        now = time.perf_counter()
        self.laps[name] = round(now - self.last, 4)
        self.last = now
