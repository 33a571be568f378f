"""TRL's trainers that sample groups of answers, on the host of all of TRL's trainers.

What differs from TRL beside what `training/trl.py` tells, and why:
- Prompts come as the policy is asked everywhere here, answers are sampled by the own decoder with
  random numbers that follow from seed, update and place, and scored by the recipe's rewards as PPO
  scores them (`rl/rewards.py`), which read text through their own template. A reward that gives no
  finite number stops the run; in TRL a None leaves its answer out of the group's mean.
- Answers without an end are scored by `end_rule`. TRL's `mask_truncated_completions`, which leaves
  them out of the loss and with them out of what DAPO divides by, is off.
- Each update has as many whole groups; TRL drops the prompts of an epoch that fill no update, and
  of an epoch that fills none it says that `max_steps` is wrong.
- The reference is the recipe's; TRL loads one from where the policy's configuration says that it
  came from, and takes none.

One update is one optimiser's step on answers that were sampled for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import datasets
import torch
from accelerate.utils import gather
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from data.json_lines import append_json_lines
from pipeline.generation.generate import Sampling
from pipeline.models.load import eos_ids, require_distinct_pad
from pipeline.models.unused_ids import leave_out_unused
from pipeline.rl.health.best_policy import AlarmMonitor, alarm_lines, alarm_row
from pipeline.rl.health.doctor import ENTROPY_SHARE
from pipeline.rl.ppo.evaluation import HeldOut, Subject, evaluate
from pipeline.rl.ppo.metrics import response_metrics
from pipeline.rl.processes import World
from pipeline.rl.prompts import Order as PromptOrder
from pipeline.rl.rewards import RewardSum, Scores
from pipeline.rl.rollout.rollout import Episodes, LocalEngine, respond
from pipeline.training.trl import Order, TrlHost, trainer_arguments

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pipeline.contract.context import StageContext
    from pipeline.rl.health.doctor import Finding
    from pipeline.rl.prompts import PreparedPrompt
    from pipeline.stages.grpo.settings import GroupSettings, GrpoSettings

FIGURES = {
    "entropy": "policy/entropy_avg",
    "clip_ratio/region_mean": "policy/clipfrac_avg",
    "frac_reward_zero_std": "objective/equal_groups_share",
}
"""TRL's name of a figure -> PPO's, or ours where PPO has none."""


class Groups(Order):
    """Places of prompts: of each update every prompt's answers, as often as TRL asks for them."""

    def __init__(
        self, size: int, *, seed: int, updates: int, groups: int, group_size: int, repeats: int
    ) -> None:
        self.order = PromptOrder(size, seed=seed, purpose="prompts")
        self.updates, self.groups, self.group_size = updates, groups, group_size
        self.repeats = repeats

    def __len__(self) -> int:
        return self.updates * self.groups * self.group_size * self.repeats

    def __iter__(self) -> Iterator[int]:
        for update in range(self.updates):
            first = update * self.groups
            places = [self.order[first + group] for group in range(self.groups)]
            for _ in range(self.repeats):
                yield from (place for place in places for _ in range(self.group_size))


class GroupTrainer(TrlHost):
    """What stands before one of TRL's trainers that sample groups of answers."""

    judged_as = "evaluation/"

    def __init__(
        self,
        *,
        context: StageContext[GroupSettings],
        prompts: Sequence[PreparedPrompt],
        rewards: RewardSum,
        reference: PreTrainedModel | None,
        evaluated_on: HeldOut | None = None,
        **kwargs: Any,
    ) -> None:
        self.prompts, self.rewards, self.evaluated_on = prompts, rewards, evaluated_on
        self.watch = AlarmMonitor(context.settings)
        self.episodes: Episodes
        self.scores: Scores
        rows = datasets.Dataset.from_dict({"prompt": [str(at) for at in range(len(prompts))]})
        super().__init__(context=context, train_dataset=rows, reward_funcs=[_score], **kwargs)
        settings, tokenizer = context.settings, self.processing_class
        self.world = World(self.accelerator, context.seed)
        self.engine = LocalEngine(
            policy=self,
            sampling=Sampling(settings.max_new_tokens, settings.temperature),
            end_ids=eos_ids(tokenizer, self.model),
            pad_id=require_distinct_pad(tokenizer, settings.policy),
            batch_size=settings.generation_batch_size,
            world=self.world,
            say=context.say,
        )
        leave_out_unused(self.model, tokenizer)
        self.ref_model = reference
        if reference is not None:
            self.beta = settings.kl_coefficient
            reference.eval().requires_grad_(False)
            add_fused_lm_head(reference, temperature=settings.temperature)
            self.ref_model = self.accelerator.prepare_model(reference, evaluation_mode=True)

    @contextmanager
    def full_module(self) -> Iterator[Any]:
        """Give the policy as who samples from it takes it: in the precision of the sampler.

        accelerate computes in bf16 inside of `forward`, and hands out fp32, whoever calls.
        """
        model = self.accelerator.unwrap_model(self.model)
        mixed = model.forward
        model.forward = getattr(model, "_original_forward", mixed)
        try:
            yield SimpleNamespace(model=model)
        finally:
            model.forward = mixed

    def make_order(self) -> Groups:
        """Return the prompts of all updates."""
        settings = self.context.settings
        return Groups(
            len(self.prompts),
            seed=self.context.seed,
            updates=settings.updates,
            groups=settings.batch_size // settings.group_size,
            group_size=settings.group_size,
            repeats=self.args.gradient_accumulation_steps,
        )

    def count_steps(self) -> int:
        """Return the updates."""
        return int(self.context.settings.updates)

    # The way of a batch: asked, answered, scored.

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        self.asked = [self.prompts[int(place)] for place in prompts]
        return [asked.ids for asked in self.asked], None, {}

    def _answers(self) -> list[list[int]]:
        """Sample an answer to each prompt asked last."""
        self.episodes = respond(
            self.engine,
            self.asked,
            start=self.world.rank * len(self.asked),
            generator=self.world.generator("rollout", int(self.state.global_step)),
            max_new_tokens=self.context.settings.max_new_tokens,
            tokenizer=self.processing_class,
        )
        return [sample.token_ids for sample in self.episodes.samples]

    def _calculate_rewards(self, *_: Any) -> Tensor:
        settings = self.context.settings
        self.scores = self.rewards.score(self.episodes, hyper=settings, world=self.world)
        scores_B1: Tensor = gather(self.scores.final_B.unsqueeze(1))
        return scores_B1

    def held_out(self) -> dict[str, float]:
        """Return what the rewards and the second judge say of answers to prompts kept apart."""
        if self.evaluated_on is None:
            return {}
        figures, rows = evaluate(
            Subject(
                int(self.state.global_step), self.engine, self.rewards, self.processing_class,
                self.world, self.context.settings.max_new_tokens,
            ),
            self.evaluated_on,
        )  # fmt: skip
        if self.context.main_process:
            append_json_lines(self.context.folder / "evaluation.jsonl", rows)
        own = self.judged_as
        return {name.removeprefix(own): n for name, n in figures.items() if name.startswith(own)}

    # What is told of an update.

    def extra_line(self, sums: dict[str, Sequence[float]]) -> dict[str, float]:
        """Return the figures of an update under PPO's names, and what the doctor says of them."""
        line = {ours: _mean(sums[name]) for name, ours in FIGURES.items() if sums.get(name)}
        line |= self._objective(sums)
        line |= response_metrics(self.episodes, self.scores, world=self.world)
        line[ENTROPY_SHARE] = line["policy/entropy_avg"] / math.log(len(self.processing_class))
        # One step on answers of the policy itself: the ratio is 1, and there is no value model.
        steady = {"policy/approxkl_avg": 0.0, "val/explained_variance": 0.0}
        figures, begins = self.watch.observe({**line, **steady})
        self._tell(begins)
        return {**line, **figures}

    def _tell(self, begins: dict[str, Finding]) -> None:
        """Say which alarms begin to ring, and write them and samples down."""
        context, step = self.context, int(self.state.global_step)
        for told in alarm_lines(begins, update=step):
            context.say(told)
        if not context.main_process:
            return
        if begins:
            rows = [alarm_row(name, found, update=step) for name, found in begins.items()]
            append_json_lines(context.folder / "doctor.jsonl", rows)
        every = context.settings.sample_every
        if every and (step == 1 or step % every == 0):
            append_json_lines(context.folder / "samples.jsonl", self._samples(step))

    def _objective(self, sums: dict[str, Sequence[float]]) -> dict[str, float]:
        """Return means over the episodes of all processes."""
        scores, samples = self.scores, self.episodes.samples
        parts = scores.parts if len(scores.parts) > 1 else {}
        by_episode = {
            "objective/scores": scores.final_B,
            "objective/scores_raw": scores.raw_B,
            **{f"objective/scores/{name}": part_B for name, part_B in parts.items()},
            "objective/response_length": torch.tensor([len(s.token_ids) for s in samples]),
            "objective/ended_share": torch.tensor([s.ended for s in samples]),
        }
        device = self.world.device
        own = torch.stack([each_B.double().sum().to(device) for each_B in by_episode.values()])
        means = self.world.sum(own) / self.context.settings.batch_size
        line = dict(zip(by_episode, means.tolist(), strict=True))
        # TRL's is the mean over tokens: k3 of GRPO, k1 of RLOO.
        line["objective/kl"] = _mean(sums.get("kl") or [0.0]) * line["objective/response_length"]
        return line

    def _samples(self, step: int) -> list[dict[str, object]]:
        count = min(self.context.settings.sample_count, len(self.episodes))
        return [
            {
                "update": step,
                "prompt": self.episodes.prompts[at].prompt,
                "response": self.episodes.texts[at],
                "score": round(float(self.scores.final_B[at]), 4),
                "scores": {
                    name: round(float(part[at]), 4) for name, part in self.scores.parts.items()
                },
                "tokens": len(self.episodes.samples[at].token_ids),
                "ended": self.episodes.samples[at].ended,
            }
            for at in range(count)
        ]

    def progress(self) -> dict[str, Any]:
        """Return what a state keeps beside weights and optimiser."""
        own = {"rewards": self.rewards.state(), "watch": self.watch.state()}
        return {**super().progress(), **own}

    def restore(self, progress: dict[str, Any]) -> None:
        """Take up the statistics of rewards and the doctor's history."""
        super().restore(progress)
        self.rewards.restore(progress["rewards"])
        self.watch.restore(progress["watch"])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _score(**_: Any) -> list[float]:
    """Stand where TRL asks for a function: scores come from `_calculate_rewards`."""
    raise AssertionError("the rewards of the recipe score")


class GrpoTrainer(GroupTrainer, GRPOTrainer):  # type: ignore[misc]
    """GRPOTrainer on the recipe's prompts and rewards."""

    def _generate_single_turn(self, *_: Any, **__: Any) -> tuple[list[list[int]], None]:
        return self._answers(), None


def group_arguments(settings: GroupSettings, shape: tuple[int, int]) -> dict[str, Any]:
    """Return what TRL's trainers of groups are told alike; `shape` as `micro_batches` gives it."""
    return {
        "activation_checkpointing": settings.gradient_checkpointing,
        "num_train_epochs": 1,
        "num_generations": settings.group_size,
        "steps_per_generation": shape[1],
        "max_completion_length": settings.max_new_tokens,
        "temperature": settings.temperature,
        "epsilon": settings.clip,
        "beta": 0.0,  # no reference of TRL's: ours is put in its place
    }


def build_trainer(
    context: StageContext[GrpoSettings],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    shape: tuple[int, int],
    **own: Any,
) -> GroupTrainer:
    """Return a trainer that is ready to train or to resume; `own` is a `GroupTrainer`'s."""
    settings = context.settings
    scaled: Any = settings.scale_rewards
    return GrpoTrainer(
        context=context,
        model=model,
        processing_class=tokenizer,
        args=trainer_arguments(
            GRPOConfig,
            context,
            shape,
            loss_type=settings.loss,
            scale_rewards=scaled,
            **group_arguments(settings, shape),
        ),
        **own,
    )
