"""What an update learns from: episodes as tensors, with everything that is fixed before it.

    Tokens         prompts and responses, and masks over the responses
    PolicyScores   log pi, log pi_ref and V of each response token (`score_tokens`)
    Experience     rewards, advantages and returns made of them (`make_experience`)

What a tool put into a response is read as the prompt is: no mask covers it, so that in all that is
learned, counted or averaged a response has the policy's own tokens alone.

Shapes: B episodes of this process, T response tokens, M episodes of a micro-batch, L tokens of
prompt and response, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.rl.maths.advantages import (
    Moments,
    generalized_advantages,
    moments,
    shaped_rewards,
    whitened,
)
from pipeline.rl.maths.kl import kl_estimate
from pipeline.rl.maths.masking import (
    ScorePosition,
    length_mask,
    masked_sum,
    response_width,
    value_mask,
)
from pipeline.rl.micro_batches import Limit, cut, split
from pipeline.rl.policy import Policy, ValueModel, ValueReader
from pipeline.rl.processes import World
from pipeline.rl.rollout.rollout import Episodes
from pipeline.rl.settings import Hyperparameters

CHECKED_SHARE = 8
"""One in so many episodes is computed again to see whether the roll-out's figures can be reused."""
AGREEMENT, AGREEMENT_BF16 = 1e-4, 1e-2
"""Mean absolute difference of log-probabilities up to which the roll-out's are reused; the wider
one for bf16 and for a server, which sums in another order or precision."""


class MicroBatch(NamedTuple):
    """Some episodes, padded on the right to the longest; the masks are those of `Tokens`."""

    rows_M: Tensor
    ids_ML: Tensor
    starts_M: Tensor
    mask_MT: Tensor
    value_mask_MT: Tensor


@dataclass(frozen=True)
class Tokens:
    """The tokens of a process's episodes.

    Attributes:
        ids: prompt and response of each episode.
        starts_B: where the response begins.
        mask_BT: response tokens that the policy chose, the end of sequence included.
        value_mask_BT: states whose values count; `mask_BT` but for `score_position: past_last`.
        pad_id: fills up rows on the right; its value changes nothing.
        device: where pieces go.
    """

    ids: list[list[int]]
    starts_B: Tensor
    mask_BT: Tensor
    value_mask_BT: Tensor
    pad_id: int
    device: torch.device

    @classmethod
    def of(
        cls,
        episodes: Episodes,
        *,
        pad_id: int,
        device: torch.device,
        max_new_tokens: int,
        score_position: ScorePosition = "last",
    ) -> Tokens:
        """Lay out episodes whose responses have `max_new_tokens` at most."""
        lengths = [len(s.token_ids) for s in episodes.samples]
        width = response_width(lengths, score_position=score_position, most=max_new_tokens)
        mask_BT = length_mask(lengths_B=torch.tensor(lengths, device=device), size=width)
        for row, sample in enumerate(episodes.samples):
            if sample.own is not None:
                mask_BT[row, : len(sample.own)] = torch.tensor(sample.own, device=device)
        pairs = zip(episodes.prompts, episodes.samples, strict=True)
        return cls(
            ids=[p.ids + s.token_ids for p, s in pairs],
            starts_B=torch.tensor([len(p.ids) for p in episodes.prompts], device=device),
            mask_BT=mask_BT,
            value_mask_BT=value_mask(mask_BT=mask_BT, score_position=score_position),
            pad_id=pad_id,
            device=device,
        )

    def micro_batches(
        self, rows: Sequence[int], *, limit: Limit, world: World | None = None
    ) -> Iterator[MicroBatch]:
        """Cut episodes into micro-batches of like lengths, the longest first.

        Args:
            rows: the episodes.
            limit: of a micro-batch.
            world: the processes, where each cuts as many episodes and shall get as many pieces.
        """
        order = sorted(rows, key=lambda row: (-len(self.ids[row]), row))
        lengths = [len(self.ids[row]) for row in order]
        pieces = cut(lengths, limit=limit)
        if world is not None and limit.tokens is not None:
            pieces = split(pieces, lengths, count=max(world.every(len(pieces))))
        for piece in pieces:
            yield self._micro_batch(order[piece.start : piece.stop])

    def _micro_batch(self, rows: list[int]) -> MicroBatch:
        width = max(len(self.ids[row]) for row in rows)
        padded = [self.ids[row] + [self.pad_id] * (width - len(self.ids[row])) for row in rows]
        rows_M = torch.tensor(rows, device=self.device)
        value_mask_MT = self.value_mask_BT[rows_M]
        steps = int(value_mask_MT.any(dim=0).nonzero().max()) + 1  # up to the last that counts
        return MicroBatch(
            rows_M=rows_M,
            ids_ML=torch.tensor(padded, device=self.device),
            starts_M=self.starts_B[rows_M],
            mask_MT=self.mask_BT[rows_M, :steps],
            value_mask_MT=value_mask_MT[:, :steps],
        )


@dataclass(frozen=True)
class Experience:
    """Everything an update learns from; tensors are (B, T), 0 outside the mask.

    Values, rewards and returns are 0 outside the value mask.

    Attributes:
        tokens: of the episodes.
        logprobs_BT: of the policy before the update.
        entropies_BT: of its distributions.
        log_ratio_BT: policy's minus reference's log-probabilities: the k1 estimate of the KL, which
            goes into the reward.
        values_BT: of the value model before the update.
        rewards_BT: KL penalty, and the score where `score_position` says; before whitening.
        advantages_BT: whitened as the settings say.
        returns_BT: targets of the values.
        states_BTH: hidden states that values are read off (`value: reward`), of this process's own
            episodes whoever's the other tensors hold; else None.
        first: place of this process's first episode among those that are held.
    """

    tokens: Tokens
    logprobs_BT: Tensor
    entropies_BT: Tensor
    log_ratio_BT: Tensor
    values_BT: Tensor
    rewards_BT: Tensor
    advantages_BT: Tensor
    returns_BT: Tensor
    states_BTH: Tensor | None = None
    first: int = 0

    @property
    def own(self) -> range:
        """Places of this process's episodes that `states_BTH` is of."""
        assert self.states_BTH is not None
        return range(self.first, self.first + len(self.states_BTH))


class PolicyScores(NamedTuple):
    """What policy, reference and value model say of the tokens before an update.

    Attributes:
        logprobs_BT: of the policy.
        entropies_BT: of its distributions; minus the log-probabilities, which are an estimate of
            them from one token each, where the roll-out's are reused.
        reference_BT: log-probabilities of the reference.
        values_BT: of the value model.
        difference: mean absolute difference of roll-out and policy, over all processes: in fp32
            what rounding makes of another order of sums, 1e-8 to 1e-6.
        states_BTH: hidden states that values are read off; None where they are not.
    """

    logprobs_BT: Tensor
    entropies_BT: Tensor
    reference_BT: Tensor
    values_BT: Tensor
    difference: float
    states_BTH: Tensor | None = None


def sampled_logprobs(episodes: Episodes, mask_BT: Tensor) -> Tensor:
    """Return the log-probabilities that the roll-out gave its tokens, 0 outside the mask."""
    sampled_BT = torch.zeros(mask_BT.shape, device=mask_BT.device)
    for row, sample in enumerate(episodes.samples):
        sampled_BT[row, : len(sample.logprobs)] = sampled_BT.new_tensor(sample.logprobs)
    return sampled_BT


@torch.no_grad()
def score_tokens(
    tokens: Tokens,
    *,
    sampled_BT: Tensor,
    policy: Policy,
    reference: Policy,
    value: ValueModel | ValueReader | None,
    hyper: Hyperparameters,
    world: World,
    states_BTH: Tensor | None = None,
) -> PolicyScores:
    """Take log pi, log pi_ref and V of all response tokens, without gradients.

    Values come from the policy's own head where `value` is None; a `ValueReader` needs the hidden
    states that it reads.

    With `reuse_logprobs` the policy is run on some episodes alone; where it agrees with the
    roll-out there, the roll-out's figures stand for all. Whether it does is a function of the
    episodes, so that a resumed run decides alike.
    """
    assert value is not None or tokens.value_mask_BT is tokens.mask_BT, "the trunk's head has none"
    rows, mask_BT = range(len(tokens.ids)), tokens.mask_BT
    # The policy: the roll-out's figures if they may be reused, else a pass over all episodes.
    reused = False
    if hyper.reuse_logprobs:
        some = range(max(1, len(rows) // CHECKED_SHARE))
        checked_BT, _, _ = _run_policy(tokens, some, policy, hyper, world)
        part = slice(some.stop)
        difference = _difference(checked_BT[part], sampled_BT[part], mask_BT[part], world)
        rounded = world.bf16 or hyper.rollout.engine != "own"
        reused = difference <= (AGREEMENT_BF16 if rounded else AGREEMENT)
    if reused:
        logprobs_BT, entropies_BT, own_values_BT = sampled_BT, -sampled_BT, None
    else:
        logprobs_BT, entropies_BT, own_values_BT = _run_policy(tokens, rows, policy, hyper, world)
        difference = _difference(logprobs_BT, sampled_BT, mask_BT, world)
    # The reference, and the values that the pass above did not give.
    reference_BT, values_BT = (torch.zeros_like(logprobs_BT) for _ in range(2))
    for micro in tokens.micro_batches(rows, limit=hyper.score_limit, world=world):
        batch, width = (micro.ids_ML, micro.starts_M, micro.mask_MT), micro.mask_MT.shape[1]
        with world.autocast():
            reference_BT[micro.rows_M, :width] = reference(*batch, hyper.temperature).logprobs_BT
            if states_BTH is not None:
                continue
            if value is not None:
                values_MT = value(micro.ids_ML, micro.starts_M, micro.value_mask_MT)
                values_BT[micro.rows_M, :width] = values_MT
            elif reused:
                values_BT[micro.rows_M, :width] = policy(*batch, only_values=True).values_BT
    if states_BTH is not None:
        assert isinstance(value, ValueReader)
        values_BT = value(states_BTH, tokens.value_mask_BT)
    if own_values_BT is not None:
        values_BT = own_values_BT
    return PolicyScores(logprobs_BT, entropies_BT, reference_BT, values_BT, difference, states_BTH)


@torch.no_grad()
def log_ratio(
    tokens: Tokens, *, policy: Policy, reference: Policy, hyper: Hyperparameters, world: World
) -> Tensor:
    """Return log pi - log pi_ref of all response tokens (B, T), 0 outside the mask."""
    rows = range(len(tokens.ids))
    ours_BT, _, _ = _run_policy(tokens, rows, policy, hyper, world)
    theirs_BT, _, _ = _run_policy(tokens, rows, reference, hyper, world)
    return torch.where(tokens.mask_BT, ours_BT - theirs_BT, 0.0)


def _run_policy(
    tokens: Tokens, rows: Sequence[int], policy: Policy, hyper: Hyperparameters, world: World
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the policy's log-probabilities, entropies and values (if it has a head) of rows."""
    logprobs_BT, entropies_BT, values_BT = (
        torch.zeros(tokens.mask_BT.shape, device=tokens.device) for _ in range(3)
    )
    for micro in tokens.micro_batches(rows, limit=hyper.score_limit, world=world):
        rows_M, width = micro.rows_M, micro.mask_MT.shape[1]
        with world.autocast():
            output = policy(micro.ids_ML, micro.starts_M, micro.mask_MT, hyper.temperature, True)
        logprobs_BT[rows_M, :width] = output.logprobs_BT
        entropies_BT[rows_M, :width] = output.entropies_BT
        if output.values_BT is not None:
            values_BT[rows_M, :width] = output.values_BT
    return logprobs_BT, entropies_BT, None if policy.value_head is None else values_BT


def _difference(own_BT: Tensor, sampled_BT: Tensor, mask_BT: Tensor, world: World) -> float:
    """Return the mean absolute difference of roll-out and policy, over all processes."""
    apart = masked_sum((sampled_BT - own_BT).abs(), mask_BT)
    total, count = world.sum(torch.stack([apart, mask_BT.sum().float()])).tolist()
    return float(total / count)


def make_experience(
    tokens: Tokens,
    scored: PolicyScores,
    *,
    scores_B: Tensor,
    kl_coefficient: float,
    hyper: Hyperparameters,
    world: World,
) -> Experience:
    """Shape the rewards and estimate the advantages; whitening is over the global batch."""
    mask_BT, value_mask_BT = tokens.mask_BT, tokens.value_mask_BT
    # log pi - log pi_ref of each token, k1 of KL(pi || pi_ref) [B, T]: k2 and k3 would not give the
    # gradient of the KL in a reward, which is detached.
    both = {"logprobs_BT": scored.logprobs_BT, "reference_BT": scored.reference_BT}
    log_ratio_BT = kl_estimate(**both, estimator="k1")
    # r_t = -b * log ratio, + the score at the last token [B, T]
    rewards_BT = shaped_rewards(
        scores_B=scores_B,
        kl_BT=log_ratio_BT,
        mask_BT=mask_BT,
        coefficient=kl_coefficient,
        score_position=hyper.score_position,
    )
    learned_BT = rewards_BT
    if hyper.whiten_rewards:
        of = global_moments(rewards_BT, value_mask_BT, world)
        learned_BT = whitened(rewards_BT, value_mask_BT, of=of, shift_mean=False)
    # A_t = sum over l of (gamma * lambda)^l * delta_{t+l}; returns are A_t + V_t [B, T]
    advantages_BT, returns_BT = generalized_advantages(
        rewards_BT=learned_BT,
        values_BT=scored.values_BT,
        mask_BT=value_mask_BT,
        gamma=hyper.gamma,
        lam=hyper.gae_lambda,
    )
    # No token is chosen after the last one, so that the state there has no advantage to learn.
    advantages_BT = torch.where(mask_BT, advantages_BT, torch.zeros_like(advantages_BT))
    if hyper.whiten_advantages is True:
        of = global_moments(advantages_BT, mask_BT, world)
        advantages_BT = whitened(advantages_BT, mask_BT, of=of)
    return Experience(
        tokens=tokens,
        logprobs_BT=scored.logprobs_BT,
        entropies_BT=scored.entropies_BT,
        log_ratio_BT=log_ratio_BT,
        values_BT=scored.values_BT,
        rewards_BT=rewards_BT,
        advantages_BT=advantages_BT,
        returns_BT=returns_BT,
        states_BTH=scored.states_BTH,
    )


def everyones(experience: Experience, world: World) -> Experience:
    """Return the experience of all processes, in their order, on every process.

    Hidden states, a thousand times a token's other figures, stay where they were computed.
    """
    if world.size == 1:
        return experience
    apart_fields = ("tokens", "states_BTH", "first")
    names = [f.name for f in fields(Experience) if f.name not in apart_fields]
    own, tokens = {name: getattr(experience, name).cpu() for name in names}, experience.tokens
    masks = (tokens.mask_BT.cpu(), tokens.value_mask_BT.cpu())
    parts = world.gather((tokens.ids, tokens.starts_B.cpu(), masks, own))
    # Each process has the width of its own longest response: all are padded to the widest.
    width = max(mask_BT.shape[1] for _, _, (mask_BT, _), _ in parts)

    def joined(rows: list[Tensor]) -> Tensor:
        wide = [functional.pad(w, (0, width - w.shape[1])) for w in rows]
        return torch.cat(wide).to(tokens.device)

    mask_BT = joined([mask_BT for _, _, (mask_BT, _), _ in parts])
    apart = tokens.value_mask_BT is not tokens.mask_BT
    all_tokens = Tokens(
        ids=[row for ids, *_ in parts for row in ids],
        starts_B=torch.cat([starts_B for _, starts_B, _, _ in parts]).to(tokens.device),
        mask_BT=mask_BT,
        value_mask_BT=joined([value for _, _, (_, value), _ in parts]) if apart else mask_BT,
        pad_id=tokens.pad_id,
        device=tokens.device,
    )
    return Experience(
        all_tokens,
        **{name: joined([p[3][name] for p in parts]) for name in names},
        states_BTH=experience.states_BTH,
        first=sum(len(ids) for ids, *_ in parts[: world.rank]),
    )


def global_moments(values: Tensor, mask: Tensor, world: World) -> Moments:
    """Return the moments of the values of all processes."""
    return Moments(*world.sum(torch.stack(moments(values, mask))).unbind())
