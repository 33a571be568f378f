"""Judges the policy on prompts apart from those it is trained on, while it is trained.

Each prompt is answered once, at the temperature of the roll-outs and with the same random numbers
in every evaluation, so that two of them differ by what was learned in between and not by the draw.
Nothing that training draws from or counts is touched: with evaluations it ends in the same weights
as without. It is the policy itself that is judged, not its average (`ema_decay`).

    evaluation/scores           the terms of `reward` as they are: weighted, neither normalised nor
                                clipped, no end rule
    evaluation/gold             the second judge's, where there is one
    evaluation/kl               sum over the response of log pi - log pi_ref, k1, in nats
    evaluation/response_length  in tokens, the end included
    evaluation/ended_share      of responses
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING

import torch

from pipeline.contract.resume import restore_rng, rng_state
from pipeline.rl.ppo.experience import Tokens, log_ratio
from pipeline.rl.ppo.loop import Ppo
from pipeline.rl.processes import World
from pipeline.rl.prompts import PreparedPrompt
from pipeline.rl.rewards import RewardSum
from pipeline.rl.rollout.rollout import Episodes, RolloutEngine, respond

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = Mapping[str, object]
FIGURES = {
    "evaluation/scores": "proxy",
    "evaluation/gold": "gold",
    "evaluation/kl": "kl",
    "evaluation/response_length": "n_tokens",
    "evaluation/ended_share": "ended",
}
"""Metric -> the column of evaluation.jsonl that it is the mean of."""


@dataclass(frozen=True)
class HeldOut:
    """What a policy is evaluated on.

    Attributes:
        prompts: answered at each evaluation.
        judge: scores beside the rewards that the policy is trained on; None without one.
    """

    prompts: Sequence[PreparedPrompt]
    judge: RewardSum | None = None


@dataclass(frozen=True)
class Subject:
    """Who is judged: the policy of an update, as it is trained.

    Attributes:
        update: its number.
        engine: samples from it.
        rewards: what it is paid by.
        tokenizer: its own.
        world: the processes.
        max_new_tokens: longest response.
        kl: returns log pi - log pi_ref of each response; None where it is not asked for.
        end_ids: as in `roll_out`.
        end_after: likewise.
    """

    update: int
    engine: RolloutEngine
    rewards: RewardSum
    tokenizer: PreTrainedTokenizerBase
    world: World
    max_new_tokens: int
    kl: Callable[[Episodes], torch.Tensor] | None = None
    end_ids: Sequence[int] = ()
    end_after: int = 0

    @classmethod
    def of(cls, ppo: Ppo) -> Subject:
        """Return the policy of PPO."""
        hyper = ppo.hyper
        return cls(
            ppo.update, ppo.engine, ppo.rewards, ppo.tokenizer, ppo.world, hyper.max_new_tokens,
            partial(_kl, ppo), ppo.later_end_ids, hyper.end_after,
        )  # fmt: skip


def evaluate(subject: Subject, held_out: HeldOut) -> tuple[dict[str, float], list[Row]]:
    """Judge the policy of now; called on every process, each answers its share of the prompts.

    Returns:
        The figures and the rows of evaluation.jsonl, of all prompts, on every process.

    Raises:
        RewardError: a scorer fails.
        RolloutError: the server that samples fails.
    """
    started, generators = time.perf_counter(), rng_state()
    try:
        parts = subject.world.gather(_own_rows(subject, held_out))
    finally:  # a reward of the user's may have drawn from them
        restore_rng(generators)
    rows = [row for part in parts for row in part]
    figures = figures_of(rows)
    return {**figures, "time/evaluation": round(time.perf_counter() - started, 4)}, rows


def figures_of(rows: Sequence[Mapping[str, object]]) -> dict[str, float]:
    """Return the figures of one evaluation, counted from its rows."""
    figures = {}
    for name, column in FIGURES.items():
        values = [value for row in rows if isinstance(value := row[column], (int, float))]
        if values:
            figures[name] = fmean(values)
    return figures


def _own_rows(subject: Subject, held_out: HeldOut) -> list[Row]:
    """Return the rows of this process's share of the prompts."""
    world, count = subject.world, len(held_out.prompts)
    # As many for every process, since sharded models are called together: the last may answer some
    # of the first prompts once more, which are left out below.
    share = -(-count // world.size)
    start = share * world.rank
    episodes = respond(
        subject.engine,
        [held_out.prompts[place % count] for place in range(start, start + share)],
        start=start,
        generator=world.generator("evaluation"),
        max_new_tokens=subject.max_new_tokens,
        tokenizer=subject.tokenizer,
        end_ids=subject.end_ids,
        end_after=subject.end_after,
    )
    proxy_B = subject.rewards.unshaped(episodes, world=world)
    gold_B = None if held_out.judge is None else held_out.judge.unshaped(episodes, world=world)
    kl_B = None if subject.kl is None else subject.kl(episodes)
    return [
        {
            "update": subject.update,
            "index": start + place,
            "id": asked.id,
            "prompt": asked.prompt,
            "response": episodes.texts[place],
            "n_tokens": len(sample.own_ids),
            "ended": sample.ended,
            "kl": None if kl_B is None else float(kl_B[place]),
            "gold": None if gold_B is None else float(gold_B[place]),
            "proxy": float(proxy_B[place]),
            **({"calls": [*map(asdict, sample.calls)]} if sample.calls else {}),
        }
        for place, (asked, sample) in enumerate(
            zip(episodes.prompts, episodes.samples, strict=True)
        )
        if start + place < count
    ]


def _kl(ppo: Ppo, episodes: Episodes) -> torch.Tensor:
    tokens = Tokens.of(
        episodes,
        pad_id=ppo.pad_id,
        device=ppo.world.device,
        max_new_tokens=ppo.hyper.max_new_tokens,
    )
    models = {"policy": ppo.policy, "reference": ppo.reference}
    return log_ratio(tokens, **models, hyper=ppo.hyper, world=ppo.world).sum(dim=1)
