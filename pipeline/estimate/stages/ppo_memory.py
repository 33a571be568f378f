"""The memory of the ppo stage: its models, its rows, and what is there at which moment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.estimate.model.costs import Phase, StageCost
from pipeline.estimate.model.flops import Rows
from pipeline.estimate.model.memory import (
    ADAM,
    BF16,
    FP32,
    LOGITS_IN_POLICY,
    LOGITS_KEPT,
    LOGITS_LOOKED_AT,
    LOGITS_WITH_ENTROPY,
    activation_bytes,
    adapter_parameters,
    block_bytes,
    cast_bytes,
    decoding_memory,
    gathered_bytes,
    logit_bytes,
    working_bytes,
)
from pipeline.estimate.model.shapes import ModelShape
from pipeline.estimate.stages.training import LOGITS_AT_ONCE, one_block

if TYPE_CHECKING:
    from pipeline.stages.ppo.settings import PpoSettings


@dataclass(frozen=True)
class Actors:
    """The models of a run.

    Attributes:
        policy: what is trained.
        value: a separate value model, None for a head on the policy's trunk.
        reference: what the policy is held near.
        judges: reward models, by name.
        attached: names of those that are adapters on the policy's trunk.
        rank: of the adapter that makes the policy on a trunk that all share; None without one.
        judge_rank: of the reward models' adapters.
        second: reward models that judge in evaluations alone, by name.
    """

    policy: ModelShape
    value: ModelShape | None
    reference: ModelShape
    judges: dict[str, ModelShape]
    attached: frozenset[str] = frozenset()
    rank: int | None = None
    judge_rank: int = 16
    second: dict[str, ModelShape] = field(default_factory=dict)

    @property
    def on_policy(self) -> float:
        """Parameters of the policy, and of a value head on it, with gradients."""
        head = self.policy.hidden + 1 if self.value is None else 0
        if self.rank is not None:
            return adapter_parameters(self.policy, rank=self.rank) + head
        return self.policy.parameters + head

    @property
    def on_value(self) -> float:
        """Parameters of a separate value model."""
        return 0 if self.value is None else self.value.scorer + 1

    @property
    def trained(self) -> float:
        """Parameters with gradients and Adam's moments."""
        return self.on_policy + self.on_value

    def judge_parameters(self, name: str) -> int:
        """Return the parameters that a reward model adds."""
        judge = self.judges[name]
        if name in self.attached:
            return adapter_parameters(judge, rank=self.judge_rank) + judge.hidden
        return judge.scorer


@dataclass(frozen=True)
class Work:
    """The rows of an update.

    Attributes:
        mine: episodes of one process.
        micro: of one backward pass; as many as fit of the longest where tokens bound it.
        scored: of one pass without gradients, likewise.
        accumulating: whether an optimiser's step takes several.
        prompt: tokens of the longest prompt.
        prompt_mean: mean tokens of a prompt.
        new: mean tokens of a response.
        most: most tokens of a response.
        rows: all episodes of an update, on all processes.
    """

    mine: int
    micro: int
    scored: int
    accumulating: bool
    prompt: int
    prompt_mean: float
    new: float
    most: int
    rows: Rows

    @property
    def mean(self) -> float:
        """Mean tokens of a prompt with its response."""
        return self.prompt_mean + self.new


def ppo_phases(
    cost: StageCost, settings: PpoSettings, actors: Actors, work: Work, *, bf16: bool, on_cpu: bool
) -> list[Phase]:
    """Return the memory of sampling, scoring, looking, optimising and publishing.

    All models stay where they are the whole time. Under autocast keys with rotary positions are
    cached in fp32, since cosines are fp32, values in bf16.
    """
    policy, layout = actors.policy, cost.layout
    resident = _kept(settings, actors, cost, bf16=bf16)
    casts = cast_bytes(policy, bf16=bf16) if layout.sharding != "fsdp2" else 0.0
    width = BF16 if bf16 else FP32
    sampling = decoding_memory(
        policy,
        responses=work.mine,
        batch=settings.generation_batch_size,
        prompt=work.prompt,
        new=work.most,
        key=FP32 if policy.rotary else width,
        value=width,
        bf16=bf16,
    )
    if actors.rank is not None:  # the adapter is merged into a copy of the matrices meanwhile
        sampling["merged weights"] = float(FP32 * policy.matrices)
    phases = [Phase("sampling", {**resident, "bf16 copies": casts, **sampling})]
    rows, length = work.scored, work.prompt + work.most
    if actors.judges:
        read = bf16 and settings.value == "reward"
        widest = max(
            working_bytes(judge, tokens=rows * length, bf16=read and name in actors.attached)
            for name, judge in actors.judges.items()
        )
        phases.append(Phase("scoring", {**resident, "activations": widest}))
    looked_at = min(rows * work.most, LOGITS_AT_ONCE / policy.vocabulary)
    blocks = {
        "activations": working_bytes(policy, tokens=rows * length, bf16=bf16),
        "bf16 copies": casts,
    }
    # By then nothing is left of the blocks but their result.
    looking = {
        "activations": float(FP32 * rows * length * policy.hidden),
        "bf16 copies": casts,
        "logits": logit_bytes(policy, positions=looked_at, copies=LOGITS_LOOKED_AT),
    }
    phases.append(Phase("blocks of the policy", {**resident, **blocks}))
    phases.append(Phase("log-probabilities", {**resident, **looking}))
    phases += _optimising(cost, settings, actors, work, resident, bf16=bf16)
    if actors.value is None:
        phases.append(_publishing(actors, resident, on_cpu=on_cpu))
    return phases


def _publishing(actors: Actors, resident: dict[str, float], *, on_cpu: bool) -> Phase:
    """Return the memory of writing trunk and head as a value model, whole; on the processor."""
    saved = dict(resident)
    if actors.rank is not None:
        saved["merged weights"] = float(FP32 * actors.policy.matrices)
    if on_cpu:
        saved["value model to be saved"] = float(FP32 * actors.policy.trunk)
    return Phase("publishing", saved)


def _kept(
    settings: PpoSettings, actors: Actors, cost: StageCost, *, bf16: bool
) -> dict[str, float]:
    """Return what is there the whole time: four models or more, and Adam's moments."""
    layout, policy = cost.layout, actors.policy
    frozen = policy.parameters if actors.rank is not None else 0
    resident = {
        "weights": FP32 * (frozen + layout.share(actors.on_policy)),
        "Adam": ADAM * layout.share(actors.trained),
    }
    if actors.rank is None:
        resident["reference"] = float(FP32 * actors.reference.parameters)
        if bf16 and layout.sharding != "fsdp2":  # its products' weights alone
            apart = 0 if actors.reference.tied else actors.reference.head
            resident["reference"] -= (FP32 - BF16) * (actors.reference.matrices + apart)
    if actors.value is not None:
        resident["value model"] = FP32 * layout.share(actors.on_value)
    if actors.judges:
        resident["reward model"] = float(FP32 * sum(map(actors.judge_parameters, actors.judges)))
    if actors.second:
        judges = sum(judge.scorer for judge in actors.second.values())
        resident["second judge"] = float(FP32 * judges)
    if settings.value == "reward":  # of all processes' episodes, as every one holds them
        states = settings.batch_size * settings.max_new_tokens * policy.hidden
        resident["states that values are read off"] = float(FP32 * states)
    if settings.ema_decay is not None:
        resident["average"] = FP32 * layout.share(actors.on_policy)
    return resident


def _optimising(
    cost: StageCost,
    settings: PpoSettings,
    actors: Actors,
    work: Work,
    resident: dict[str, float],
    *,
    bf16: bool,
) -> list[Phase]:
    """Return the memory where the backward pass begins, reaches the policy, and ends.

    The value model, called last, comes first; then the policy's logits are unfolded.
    """
    value, layout = actors.value, cost.layout
    policy = actors.policy if actors.rank is None else actors.policy.frozen()
    length = work.prompt + work.most
    sizes: dict[str, Any] = {"rows": work.micro, "length": length, "bf16": bf16}
    again = settings.gradient_checkpointing

    def kept_by(model: ModelShape) -> float:
        return activation_bytes(model, **sizes, checkpointed=again)

    logits_kept, logits_there = _logits(policy, settings, work, bf16=bf16)
    gradients = layout.gradients(actors.trained)
    buckets = gradients - FP32 * layout.share(actors.trained)
    first = FP32 * layout.share(policy.head if actors.rank is None else 0)
    casts = cast_bytes(policy, bf16=bf16)
    if layout.sharding == "fsdp2":
        models, casts = [policy, *([value] if value is not None else [])], 0.0
        gathered = sum(gathered_bytes(model, bf16=bf16) for model in models)
        resident = {**resident, "gathered weights": gathered}
    phases = []
    if value is not None:
        both = {
            **resident,
            "gradients": gradients if work.accumulating else buckets,
            "activations": kept_by(policy) + kept_by(value),
            "bf16 copies": casts + (cast_bytes(value, bf16=bf16, head=False) if casts else 0.0),
            "logits": logits_kept,
        }
        phases.append(Phase("backward begins", both))
        first += FP32 * layout.share(actors.on_value)
    at_policy = {
        **resident,
        "gradients": gradients if work.accumulating else buckets + first,
        "activations": kept_by(policy),
        "bf16 copies": casts,
        "logits": logits_there,
    }
    ends = {**resident, "gradients": gradients}
    ends["activations"] = working_bytes(policy, tokens=work.micro * length, bf16=bf16)
    if settings.ptx_coefficient > 0:
        ends["gradients"] += FP32 * layout.share(actors.on_policy)  # to compare the two norms
    phases += [Phase("backward of the policy", at_policy), Phase("backward ends", ends)]
    if again:
        phases.append(one_block(at_policy, kept_by(policy) + block_bytes(policy, **sizes)))
    if again and value is not None:  # the policy's logits are still to be unfolded
        more = {"activations": both["activations"] + block_bytes(value, **sizes)}
        phases.append(Phase("backward of a block of the value model", {**both, **more}))
    return phases


def _logits(
    policy: ModelShape, settings: PpoSettings, work: Work, *, bf16: bool
) -> tuple[float, float]:
    """Return the bytes of logits after the policy's forward pass, and in its backward pass."""
    positions = min(work.micro * work.most, LOGITS_AT_ONCE / policy.vocabulary)
    if settings.entropy_coefficient > 0:
        both = logit_bytes(policy, positions=positions, copies=LOGITS_WITH_ENTROPY)
        return both, both
    copies, width = (LOGITS_KEPT, LOGITS_IN_POLICY), BF16 if bf16 else FP32
    resident, there = (
        logit_bytes(policy, positions=positions, copies=n, width=width) for n in copies
    )
    return resident, there
