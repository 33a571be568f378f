"""The ppo stage: trains a policy against a reward, held near a reference.

The algorithm, and where it departs from InstructGPT, N+ and TRL, stands in
`pipeline/rl/ppo/loop.py`. What is left behind: `model/` (the policy, or its average), `adapter/`
(of it, on a shared trunk, in peft's layout), `value_model/` (a token classifier with one label;
where transformers has none for the architecture, `value_head.safetensors` of a head on the policy's
trunk, or of an encoder-decoder on that in `value_model/`), `samples.jsonl` (episodes with their
scores, every so many updates, the first two with what became of each token), `metrics.jsonl`,
`doctor.jsonl` where an alarm rang, and `evaluation.jsonl` (the judged answers to prompts kept
apart) where `evaluate_every` asks for it. With a second judge also `over_optimisation.json`
(points, fits and the turn of gold along training) and `best/model`, the best policy evaluated, by
that judge, unless that is the start.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import HandOverError, RewardError, RolloutError
from data.json_lines import append_json_lines
from pipeline.contract.kind import StageKind
from pipeline.stages.ppo.checks import check, check_start, warnings
from pipeline.stages.ppo.evaluation import BEST, held_out, tell_over_optimisation
from pipeline.stages.ppo.settings import PpoSettings
from pipeline.stages.ppo.sources import (
    pretraining_rows,
    prompts_to_answer,
    reads_apart,
    stands_behind,
)
from pipeline.stages.reward_terms import (
    load_terms,
    model_references,
    reported_name,
)

if TYPE_CHECKING:
    from pipeline.contract.console import Progress
    from pipeline.contract.context import StageContext
    from pipeline.rl.ppo.evaluation import HeldOut
    from pipeline.rl.ppo.loop import Ppo
    from pipeline.rl.ppo.train import Outlets
    from pipeline.rl.prompts import PreparedPrompt
    from pipeline.rl.rewards import Term
    from pipeline.rl.trunk import TrunkReward
    from reward.scorer import Scorer


def run(context: StageContext[PpoSettings]) -> dict[str, float | int | str]:
    """Train, publish policy and value model, return the last update's metrics."""
    from pipeline.models.load import load_tokenizer, pick_device, resolve_bf16
    from pipeline.rl.ppo.build import build_ppo
    from pipeline.rl.ppo.loop import restore, save
    from pipeline.rl.ppo.save_models import save_models, try_saving_models
    from pipeline.rl.ppo.train import train
    from pipeline.rl.processes import World, make_accelerator

    settings = context.settings
    bf16 = resolve_bf16(settings.bf16, pick_device())
    world = World(make_accelerator(bf16=bf16), context.seed)
    check_start(settings, world.size, encoder_decoder=reads_apart(context))
    source, trust = context.input("policy"), settings.trust_remote_code
    tokenizer = load_tokenizer(
        source if settings.tokenizer is None else context.input("tokenizer"),
        trust_remote_code=trust,
    )
    prompts = prompts_to_answer(context, tokenizer, **stands_behind(context))
    for line in warnings(settings, context.hand):
        context.say(line)
    ppo = build_ppo(
        policy_source=source,
        reference_source=context.input("reference") if settings.reference else None,
        value_source=_value_source(context, tokenizer),
        scorers=_rewards(context, prompts[0], world.device),
        tokenizer=tokenizer,
        prompts=prompts,
        pretraining=pretraining_rows(context, copy.deepcopy(tokenizer)),
        end_ids=_end_ids(settings, tokenizer),
        hyper=settings,
        world=world,
        trust_remote_code=trust,
        lora=settings.lora,
        scratch=context.folder / "work", say=context.say,
        read_values=settings.value == "reward",
    )  # fmt: skip
    evaluated_on = _kept_apart(context, tokenizer, prompts, world.device)
    try_saving_models(context, ppo)
    context.resume.track(*_logs(context.folder))
    if restore(ppo, context.resume):
        context.say(f"going on after update {ppo.update} of {settings.updates}")
    with context.progress(settings.updates, "ppo", done=ppo.update, unit="updates") as bar:
        outlets = _outlets(context, ppo, bar)
        try:
            metrics = train(
                ppo,
                states=context.resume,
                outlets=outlets,
                should_stop=context.should_stop,
                held_out=evaluated_on,
            )
        except (RewardError, RolloutError):
            # Both come before an update or an evaluation changes anything: the state is that of the
            # last update.
            save(ppo, context.resume)
            raise
    save_models(ppo, context.folder)
    tell_over_optimisation(context)
    return {**metrics, "updates": ppo.update, "prompts": len(prompts)}


def _kept_apart(
    context: StageContext[PpoSettings],
    tokenizer: Any,
    prompts: Sequence[PreparedPrompt],
    device: Any,
) -> HeldOut | None:
    """Return what the policy is evaluated on, None where it is not."""
    return held_out(
        context, tokenizer, prompts, device,
        behind=stands_behind(context),
        batch_size=context.settings.score_limit.rows,
        batch_tokens=context.settings.tokens_per_micro_batch,
    )  # fmt: skip


def _logs(folder: Path) -> tuple[Path, Path, Path]:
    return folder / "samples.jsonl", folder / "doctor.jsonl", folder / "evaluation.jsonl"


def _outlets(context: StageContext[PpoSettings], ppo: Ppo, bar: Progress) -> Outlets:
    from pipeline.rl.ppo.save_models import keep_policy
    from pipeline.rl.ppo.train import Outlets

    samples, alarms, evaluation = _logs(context.folder)
    append = append_json_lines if context.main_process else lambda path, rows: None
    return Outlets(
        log=context.metrics.log,
        write_samples=partial(append, samples),
        write_alarms=partial(append, alarms),
        write_evaluation=partial(append, evaluation),
        say=context.say,
        keep=partial(keep_policy, ppo, context.folder / BEST),
        advance=lambda m: bar.advance(
            1, score=m["objective/scores"], kl=m["objective/kl"], loss=m["loss/policy_avg"]
        ),
    )


def _end_ids(settings: PpoSettings, tokenizer: Any) -> list[int]:
    vocabulary = tokenizer.get_vocab()
    for token in settings.end_tokens:
        if token not in vocabulary:
            raise HandOverError(
                f"end_tokens names {token!r}, which is no token of {settings.policy}; leave it out"
            )
    return [vocabulary[token] for token in settings.end_tokens]


def _rewards(
    context: StageContext[PpoSettings], prompt: PreparedPrompt, device: Any
) -> list[Term[Scorer | TrunkReward]]:
    """Load what scores responses; adapters of reward models are left to be attached to a trunk."""
    from pipeline.rl.rewards import Term
    from pipeline.rl.trunk import TrunkReward
    from reward.network.lora_files import adapter_folder

    settings = context.settings
    terms: list[Term[Scorer | TrunkReward]] = []
    for path, term in settings.terms.items():
        if settings.trunk == "shared" and term.model is not None:
            name, folder = reported_name(term.model), context.input(path)
            if adapter_folder(folder) is not None:
                attached = TrunkReward(folder, name, *settings.score_limit)
                terms.append(Term(attached, term.weight, term.clip, term.normalize))
                continue
            context.say(f"{name} is a whole model, held beside the trunk; train it with `lora`")
        terms += load_terms(
            context,
            {path: term},
            prompt=prompt.prompt,
            device=device,
            batch_size=settings.score_limit.rows,
            batch_tokens=settings.tokens_per_micro_batch,
        )
    return terms


def _value_source(context: StageContext[PpoSettings], tokenizer: Any) -> str | Path | None:
    """Return the checkpoint a separate value model starts from; None when the trunk is shared.

    Without a reward model that could become one, the policy's checkpoint with a head of zeros; of
    an encoder-decoder always that, unless `value_start` names another.
    """
    from pipeline.rl.ppo.build import fits_as_value_model

    settings = context.settings
    if settings.value != "separate":
        return None
    if settings.value_start is not None:
        return context.input("value_start")
    models = [path for item in settings.terms.items() for path in model_references(*item)]
    first = next(iter(models), None)
    if first is None or reads_apart(context):
        return context.input("policy")
    problem = fits_as_value_model(context.input(first), tokenizer)
    if problem is None:
        return context.input(first)
    context.say(f"the value model starts from the policy, not from the reward model: {problem}")
    return context.input("policy")


KIND = StageKind(
    name="ppo",
    settings=PpoSettings,
    run=run,
    check=check,
    provides=frozenset({"policy", "tokenizer"}),
    main_metric="objective/scores",
    version=1,
)
