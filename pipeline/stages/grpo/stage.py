"""Stage `grpo`: trains a policy against a reward, an answer beside others to the same prompt.

Reference: Shao et al. 2024 (DeepSeekMath), section 4.1: 64 answers to each of 16 prompts; a score
less its group's mean, over its deviation, is the advantage; KL (k3) in the loss by 0.04, learning
rate 1e-6 for 7B, one step an update.

TRL's GRPOTrainer trains; departures from it stand in `trainer.py`. Departures from the paper: AdamW
and the schedule of all stages, linear to 0; 16 answers a prompt.

Leaves `model/`, `samples.jsonl` (episodes with their scores, every so many updates),
`evaluation.jsonl` with `evaluate_every`, and `doctor.jsonl` where an alarm rang. Figures have PPO's
names; `objective/kl` is the k3 that the loss has, and `objective/equal_groups_share` the share of
groups whose answers all score alike, of which nothing is learned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from data.errors import UsageError
from pipeline.contract.kind import StageKind
from pipeline.stages.checks import require_prompts, require_reference, start_warnings
from pipeline.stages.grpo.settings import GroupSettings, GrpoSettings
from pipeline.stages.ppo.evaluation import held_out
from pipeline.stages.ppo.sources import prompts_to_answer
from pipeline.stages.reward_terms import check_rewards, length_warnings, load_terms
from pipeline.training.settings import micro_batches

if TYPE_CHECKING:
    from pipeline.contract.context import StageContext
    from pipeline.contract.handover import HandOver
    from pipeline.stages.grpo.trainer import GroupTrainer

    Build = Callable[..., GroupTrainer]

LOGS = ("samples.jsonl", "doctor.jsonl", "evaluation.jsonl")


def check(settings: GroupSettings, hand: HandOver) -> None:
    """Refuse checkpoints that do not fit each other, and prompts that do not fit the context.

    Raises:
        HandOverError: naming both.
    """
    hand.require_tokenizer_for(settings.policy, settings.tokenizer)
    hand.require_writer(settings.policy, "policy", "this policy is a causal language model")
    hand.require_class(
        settings.policy, "policy", "causal", way_out="name another policy",
        trust=settings.trust_remote_code,
    )  # fmt: skip
    require_reference(hand, settings.policy, settings.reference)
    tokens = settings.max_prompt_tokens + settings.max_new_tokens
    hand.require_fits_context(settings.policy, tokens, "max_prompt_tokens + max_new_tokens")
    micro_batches(settings.batch_size, settings.micro_batch_size, hand.processes)
    openings = settings.prefix_tokens is not None
    for field in ("prompts", "evaluation_prompts"):
        require_prompts(hand, getattr(settings, field), openings=openings, setting=field)
    check_rewards(settings.terms | settings.evaluation_terms, hand)


def warnings(settings: GroupSettings, hand: HandOver) -> list[str]:
    """Return what does not stop the stage, and its reader had better know."""
    return [*start_warnings(settings.policy, hand), *length_warnings(settings.terms, hand)]


def run(context: StageContext[GrpoSettings]) -> dict[str, float | int | str]:
    """Train and publish; return the final metrics."""
    from pipeline.stages.grpo.trainer import build_trainer

    return learn(context, build_trainer)


def learn(context: StageContext[Any], build: Build) -> dict[str, float | int | str]:
    """Train a policy on groups of its answers by one of TRL's trainers, and publish it.

    Args:
        context: of the stage.
        build: returns the trainer, as `grpo.trainer.build_trainer` does.
    """
    from pipeline.models.load import load_policy, pick_device
    from pipeline.rl.rewards import RewardSum
    from pipeline.training.accelerator import take_over_sharding
    from pipeline.training.trl import load_start, quiet_libraries

    settings = context.settings
    if take_over_sharding() and context.world_size > 1:
        raise UsageError(
            f"stage {context.name}: the policy samples by whole weights, and launch.config shards "
            "them; launch with ddp.yaml"
        )
    with quiet_libraries(context.say):
        model, tokenizer = load_start(context, "policy")
        prompts = prompts_to_answer(context, tokenizer)
        for line in warnings(settings, context.hand):
            context.say(line)
        reference = None
        if settings.kl_coefficient:
            reference = load_policy(
                context.input("policy" if settings.reference is None else "reference"),
                trust_remote_code=settings.trust_remote_code,
            )
        context.resume.track(*(context.folder / name for name in LOGS))
        shape = micro_batches(settings.batch_size, settings.micro_batch_size, context.world_size)
        rewards = load_terms(
            context, settings.terms, prompt=prompts[0].prompt, device=pick_device(), batch_size=64
        )
        trainer = build(
            context, model, tokenizer, shape, prompts=prompts, reference=reference,
            rewards=RewardSum(rewards),
            evaluated_on=held_out(context, tokenizer, prompts, pick_device(), batch_size=64),
        )  # fmt: skip
        trainer.run()
    judged = {f"{trainer.judged_as}{name}": value for name, value in trainer.judged.items()}
    return {**trainer.last_line, **judged, "updates": trainer.total_steps, "prompts": len(prompts)}


KIND = StageKind(
    name="grpo",
    settings=GrpoSettings,
    run=run,
    check=check,
    provides=frozenset({"policy", "tokenizer"}),
    main_metric="objective/scores",
    version=1,
)
