"""What a PPO stage is evaluated on while it runs: prompts kept apart from its own, and judges."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from data.errors import SourceError
from data.json_lines import read_json_lines, read_json_object
from data.sources.split import opening
from data.storage import write_atomically
from data.words import counted
from pipeline.stages.ppo.sources import read_prompts
from pipeline.stages.reward_terms import load_terms

if TYPE_CHECKING:
    from data.records import Prompt
    from pipeline.contract.context import StageContext
    from pipeline.rl.ppo.evaluation import HeldOut
    from pipeline.rl.prompts import PreparedPrompt
    from pipeline.rl.rewards import RewardSum
    from pipeline.stages.ppo.settings import PpoSettings


BEST = "best"
"""Folder of the best policy evaluated, by the second judge."""


class GoldScorer:
    """The embedded world's annotator as a judge of evaluations; no reward of PPO can be one."""

    name = "gold"

    def __init__(self, world_seed: int) -> None:
        from data.world.annotator import GoldAnnotator

        self.annotator = GoldAnnotator(world_seed)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """Return what the annotator gives each response, in [0, 1]."""
        return [self.annotator.score(*each) for each in zip(prompts, responses, strict=True)]


def held_out(
    context: StageContext[Any],
    tokenizer: Any,
    trained_on: Sequence[PreparedPrompt],
    device: Any,
    *,
    behind: Mapping[str, Any] | None = None,
    **batches: Any,
) -> HeldOut | None:
    """Return what the policy is evaluated on, None where it is not.

    Args:
        context: of the stage, whose settings are `EvaluatedSettings`.
        tokenizer: of the policy.
        trained_on: the prompts that are left out.
        device: where a second judge scores.
        behind: what prompts stand behind, see `prepare_prompts`.
        batches: sizes of the judge's, see `load_terms`.

    Raises:
        SourceError: no prompt is left.
    """
    from pipeline.rl.ppo.evaluation import HeldOut

    if context.settings.evaluate_every == 0:
        return None
    prompts = _prompts(context, tokenizer, trained_on, behind or {})
    return HeldOut(prompts, _judge(context, prompts[0], device, batches))


def _prompts(
    context: StageContext[Any],
    tokenizer: Any,
    trained_on: Sequence[PreparedPrompt],
    behind: Mapping[str, Any],
) -> list[PreparedPrompt]:
    """Return the prompts whose opening, letter case and spacing aside, is not trained on."""
    trained = context.settings.kind.upper()
    read, report = read_prompts(context, "evaluation_prompts", tokenizer, **behind)
    seen = {opening(each.prompt) for each in trained_on}
    prompts = [each for each in read if opening(each.prompt) not in seen]
    shared = len(read) - len(prompts)
    if shared:
        left = counted(shared, "evaluation prompt")
        context.say(f"left out {left}: {trained} samples on the same")
    for line in report.lines()[1:]:
        context.say(f"evaluation prompts: {line}")
    if not prompts:
        raise SourceError(
            f"stage {context.name}: evaluation_prompts holds {counted(len(read), 'prompt')} that "
            f"fit, and {trained} samples on {shared} of them; name prompts apart from `prompts`"
        )
    context.say(f"{counted(len(prompts), 'prompt')} held out for evaluations")
    return prompts


def _judge(
    context: StageContext[Any], asked: PreparedPrompt, device: Any, batches: Mapping[str, Any]
) -> RewardSum | None:
    from pipeline.rl.rewards import RewardSum, Term

    settings = context.settings
    if settings.evaluation_gold:
        return RewardSum([Term(GoldScorer(settings.evaluation_prompts[0].world_seed))])
    if settings.evaluation_reward is None:
        return None
    return RewardSum(
        load_terms(
            context,
            settings.evaluation_terms,
            prompt=asked.prompt,
            device=device,
            **batches,
        )
    )


def tell_over_optimisation(context: StageContext[PpoSettings]) -> None:
    """Write and say whether gold turned along training, and which policy to take instead."""
    from pipeline.evaluation.judge.over_optimisation import FILE, along_training

    rows = context.folder / "evaluation.jsonl"
    if not (context.main_process and context.settings.evaluate_every and rows.is_file()):
        return
    found = along_training([*read_json_lines(rows)], seed=context.seed)
    if found is None:
        return
    if found["turn"] is not None:
        step, kept = found["turn"]["step"], context.folder / BEST / "update.json"
        is_kept = kept.is_file() and read_json_object(kept)["update"] == step
        found["turn"]["state"] = f"{BEST}/model" if is_kept else None
        if is_kept:
            found["sentence"] += f", which is kept in {context.name}/{BEST}/model"
        elif step == 0:
            found["sentence"] += ", the policy that PPO started from"
    write_atomically(context.folder / FILE, json.dumps(found, indent=2, allow_nan=False) + "\n")
    context.say(found["sentence"])
