"""Rounds of a recipe: the loop turns again on the answers of the model it made.

Reference: Ouyang et al. 2022 (InstructGPT), section 3.1: comparisons are collected on the current
best policy, a new reward model is trained on all of them, and then a new policy. Stiennon et al.
2020 did the same with summaries.

`rounds: {times: 2, stages: [rankings, reward, ppo]}` is short for writing the stages `rankings_2`,
`reward_2` and `ppo_2` after the first three; without a reward model the loop is `[rankings, dpo]`.
They are the stages they are named after, but

- a rankings stage samples from the policy of the round before;
- what learns from rankings (reward, dpo, kto) learns those of its own round and of all before;
- whatever else names a stage of `stages` means that of its own round, in a rankings stage (which
  begins a round) that of the round before;
- a rankings stage has a seed of its own: the one it is named after has, plus the round, minus one.

All else stays: where PPO starts from `sft`, it starts from there in each round, as InstructGPT's
did. What a recipe says under `rankings_2`, or `--set rankings_2.limit=100`, changes that alone:
`dpo_2: {model: dpo}` goes on from the first round's policy.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field, field_validator

from data.errors import RecipeError, nearest
from data.plain_yaml import Keys, Places
from pipeline.contract.settings import Settings, references
from pipeline.recipe.files import keys_of, merge
from pipeline.stages.registry import stage_kind

LEARN_RANKINGS = ("reward", "dpo", "kto")
LEAVE_POLICIES = ("ppo", "grpo", "rloo", "dpo", "kto")


class RoundsSettings(Settings):
    """Stages that are run several times, each time on what the former time made."""

    times: Annotated[int, Field(ge=1, le=9)]
    """Rounds in all; 1 runs the stages once."""
    stages: tuple[str, ...] = ("rankings", "reward", "ppo")
    """Names of the stages: one or more of kind rankings, and one whose policy learns (ppo, grpo,
    rloo, dpo or kto)."""

    @field_validator("stages")
    @classmethod
    def _are_different(cls, stages: tuple[str, ...]) -> tuple[str, ...]:
        if not stages or len(set(stages)) < len(stages):
            raise ValueError("name each stage of a round once")
        return stages


def name_in(stage: str, number: int) -> str:
    """Return the name of a stage in a round; the first keeps its own."""
    return stage if number == 1 else f"{stage}_{number}"


def is_copy(name: str, content: Mapping[str, Any]) -> bool:
    """Tell whether a recipe's rounds make a stage of this name."""
    rounds = content.get("rounds")
    if not isinstance(rounds, dict):
        return False
    fields = RoundsSettings.model_fields
    times, stages = rounds.get("times"), rounds.get("stages", fields["stages"].default)
    if not isinstance(times, int) or not isinstance(stages, (list, tuple)):
        return False
    return any(
        name == name_in(str(stage), number) for stage in stages for number in range(2, times + 1)
    )


def write_out(rounds: RoundsSettings, content: dict[str, Any], places: Places) -> None:
    """Write the stages of all rounds into a recipe's content, and take `rounds` out.

    Args:
        rounds: checked.
        content: of the recipe; its stages are changed.
        places: of its values; a copy's stand where those they are copied from do.

    Raises:
        RecipeError: a stage is missing or of the wrong kind.
    """
    stages: dict[str, Any] = content["stages"]
    policy = _check(rounds, stages)
    for number in range(2, rounds.times + 1):
        for stage in rounds.stages:
            name = name_in(stage, number)
            made = _copy(rounds, content, stage, number, policy)
            own = stages.pop(name, None)
            if own is not None and not isinstance(own, dict):
                raise RecipeError(f"stages.{name}: this is a mapping of settings")
            merge(made, own or {})
            stages[name] = made
            for keys in [k for k in places if k[:2] == ("stages", stage)]:
                places.setdefault(("stages", name, *keys[2:]), places[keys])
    del content["rounds"]


def _check(rounds: RoundsSettings, stages: Mapping[str, Any]) -> str:
    """Return the stage whose policy the next round's rankings are sampled from."""
    kinds = {}
    for stage in rounds.stages:
        if not isinstance(stages.get(stage), dict):
            raise RecipeError(
                f"rounds.stages: no stage is named '{stage}'.{nearest(stage, stages)}"
            )
        kinds[stage] = stages[stage].get("kind")
    policies = [stage for stage, kind in kinds.items() if kind in LEAVE_POLICIES]
    ranked = [stage for stage, kind in kinds.items() if kind == "rankings"]
    if len(policies) != 1 or not ranked:
        raise RecipeError(
            f"rounds.stages: a round has one stage of kind {', '.join(LEAVE_POLICIES)} and a stage "
            f"of kind rankings, this has {', '.join(f'{s} ({kind})' for s, kind in kinds.items())}"
        )
    for stage in ranked:
        if stages[stage].get("labeler") == "file":
            raise RecipeError(
                f"rounds.stages: {stage} takes rankings of files, which are the same in each "
                "round; leave it out"
            )
    return policies[0]


def _copy(
    rounds: RoundsSettings, content: Mapping[str, Any], stage: str, number: int, policy: str
) -> dict[str, Any]:
    stages = content["stages"]
    made: dict[str, Any] = copy.deepcopy(stages[stage])
    kind = made.get("kind")
    meant = number - 1 if kind == "rankings" else number
    for keys in _references(made):
        holder, last = _holder(made, keys)
        if holder[last] in rounds.stages:
            holder[last] = name_in(holder[last], meant)
    if kind == "rankings":
        made["model"] = name_in(policy, number - 1)
        own = made.get("seed")
        seed = content.get("seed", 0) if own is None else own
        if isinstance(seed, int):
            made["seed"] = seed + number - 1
    if kind in LEARN_RANKINGS:
        made["rankings"] = _all_rankings(rounds, stages[stage].get("rankings"), number)
    return made


def _all_rankings(rounds: RoundsSettings, named: Any, number: int) -> Any:
    """Return the rankings of this and all rounds before of what a first round's stage names."""
    first = [named] if isinstance(named, str) else list(named or ())
    if not any(target in rounds.stages for target in first):
        return named
    return [
        name
        for target in first
        for name in (
            [name_in(target, past) for past in range(1, number + 1)]
            if target in rounds.stages
            else [target]
        )
    ]


def _references(settings: Mapping[str, Any]) -> Iterator[Keys]:
    """Yield where settings name stages; nothing where they are not valid, which is told later."""
    try:
        checked = stage_kind(str(settings.get("kind"))).settings.model_validate(settings)
    except ValueError:
        return
    yield from map(keys_of, references(checked))


def _holder(settings: Any, keys: Keys) -> tuple[Any, Any]:
    for key in keys[:-1]:
        settings = settings[key]
    return settings, keys[-1]
