"""The ppo stage: trains a policy against a reward, held near a reference.

The algorithm, and where it departs from InstructGPT, N+ and TRL, stands in `pipeline/ppo/loop.py`.
What is left behind: `model/` (the policy, or its average), `adapter/` (of it, on a shared trunk, in
peft's layout), `value_model/` (a token classifier with one label; where transformers has none for
the architecture, `value_head.safetensors` of a head on the policy's trunk), `samples.jsonl`
(episodes with their scores, every so many updates), `metrics.jsonl`, and `doctor.jsonl` where an
alarm rang.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from data.errors import HandOverError, RewardError, RolloutError, SourceError
from data.storage import storage_errors
from pipeline.config import (
    Lora,
    PositiveInt,
    Ref,
    SameResult,
    Share,
    SourceSettings,
    StageKind,
    StageSettings,
)
from pipeline.ppo.settings import Hyperparameters
from pipeline.stages._ppo_checks import check, check_processes
from pipeline.stages._ppo_sources import pretraining_rows, records
from pipeline.stages._rewards import (
    Reward,
    RewardTerm,
    load_terms,
    model_references,
    reported_name,
    reward_terms,
)

if TYPE_CHECKING:
    from pipeline.context import StageContext
    from pipeline.ppo.prompts import PreparedPrompt
    from pipeline.ppo.scoring import Term
    from pipeline.ppo.trunk import TrunkReward
    from reward.scorers import Scorer


class PpoSettings(StageSettings, Hyperparameters):
    """Settings of the ppo stage; those of the algorithm are in `Hyperparameters`."""

    kind: Literal["ppo"] = "ppo"
    """Kind of stage."""
    policy: Annotated[str, Ref("policy")]
    """Checkpoint the policy starts from, as a rule the sft stage's."""
    tokenizer: Annotated[str | None, Ref("tokenizer")] = None
    """Tokenizer instead of the policy's own, such as one adopted with another padding token."""
    reward: Annotated[Reward, Ref("reward")]
    """Reward model, or a list of rewards."""
    reference: Annotated[str | None, Ref("policy")] = None
    """Checkpoint of the reference; the policy's start when not given (InstructGPT, N+)."""
    value: Literal["separate", "shared", "reward"] = "separate"
    """A model of its own (N+), a head on the policy's trunk, or on the reward model's adapter."""
    trunk: Literal["separate", "shared"] = "separate"
    """Models of their own, or one, with adapters for policy and reward and a head for the value."""
    lora: Lora | None = None
    """Adapter of the policy on a shared trunk; rank 16 on all linear layers when not given."""
    value_start: Annotated[str | None, Ref("reward")] = None
    """Reward model the value model starts from; the first one of `reward` (InstructGPT, N+)."""
    prompts: Annotated[tuple[SourceSettings, ...], Field(min_length=1)]
    """Where the prompts come from."""
    max_prompt_tokens: PositiveInt = 512
    """Longest prompt in tokens; longer ones are dropped and counted."""
    max_dropped_share: Annotated[Share, SameResult()] = 0.5
    """Share of dropped prompts above which the stage stops."""
    end_tokens: tuple[str, ...] = ()
    """Tokens that end a response beside the model's own, such as `<|endoftext|>`."""
    prefix_tokens: PositiveInt | None = None
    """Tokens of a plain text that are its prompt (lm-human-preferences)."""
    pretraining: Annotated[str | None, Ref("policy")] = None
    """Pretrain stage whose sources PPO-ptx draws rows from."""
    pretraining_sources: tuple[SourceSettings, ...] = ()
    """Sources of text PPO-ptx draws rows from, instead."""
    pretraining_row_tokens: PositiveInt = 256
    """Tokens of a row for PPO-ptx, at most."""
    trust_remote_code: bool = False
    """Run code that the policy's checkpoint carries."""

    @model_validator(mode="before")
    @classmethod
    def _the_value_follows_the_trunk(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("trunk") == "shared":
            return {"value": "shared", "lora": Lora(), **given}
        return given

    @model_validator(mode="after")
    def _one_trunk(self) -> PpoSettings:
        if self.trunk == "separate":
            if self.lora is not None:
                raise ValueError("lora is for trunk: shared; set that, or leave lora out")
            if self.value == "reward":
                raise ValueError(
                    "value: reward reads the reward model's adapter on trunk: shared; set that, or "
                    "value: separate"
                )
            return self
        if self.value == "separate":
            raise ValueError("trunk: shared has one model for all; drop it or value: separate")
        if self.reference is not None:
            raise ValueError(
                "trunk: shared takes the policy's start as reference; drop it or `reference`"
            )
        return self

    @model_validator(mode="after")
    def _fits(self) -> PpoSettings:
        given = (self.pretraining is not None) + bool(self.pretraining_sources)
        if self.ptx_coefficient > 0 and given != 1:
            raise ValueError(
                "ptx_coefficient is above 0: name either `pretraining` or `pretraining_sources`"
            )
        if self.ptx_coefficient == 0 and given:
            raise ValueError("pretraining rows are named but ptx_coefficient is 0; set it above 0")
        if not self.reward:
            raise ValueError("reward names no reward")
        if self.value != "separate" and self.value_start is not None:
            raise ValueError("value_start is for value: separate; a head has a start of its own")
        if self.value == "shared" and self.score_position == "past_last":
            raise ValueError(
                "score_position: past_last needs a value of the state after the last token, which "
                "a head on the policy's trunk has not; set value: separate or score_position: last"
            )
        if self.end_after and not self.end_tokens:
            raise ValueError("end_after is for end_tokens, and none are named")
        return self

    def recorded_settings(self) -> dict[str, Any]:
        """Leave out the doctor unless it decides what is published, and a server there is not.

        Nor is a limit there that is not set: runs from before there was one go on.
        """
        found = super().recorded_settings()
        if self.tokens_per_micro_batch is None:
            del found["tokens_per_micro_batch"]
        if self.tokenizer is None:
            del found["tokenizer"]
        del found["rollout"]
        if self.rollout.engine != "own":
            found["rollout"] = {"engine": self.rollout.engine}
        if self.doctor_only_tells:
            del found["doctor"]
        return found

    @property
    def terms(self) -> dict[str, RewardTerm]:
        """The rewards by the path of what they come from."""
        return reward_terms(self.reward)


def run(context: StageContext[PpoSettings]) -> dict[str, float | int | str]:
    """Train, publish policy and value model, return the last update's metrics."""
    from pipeline.models import load_tokenizer, pick_device, resolve_bf16
    from pipeline.ppo.assemble import assemble
    from pipeline.ppo.loop import restore, save
    from pipeline.ppo.publishing import publish, try_publishing
    from pipeline.ppo.ranks import Ranks, make_accelerator
    from pipeline.ppo.train import Outlets, train

    settings = context.settings
    bf16 = resolve_bf16(settings.bf16, pick_device())
    ranks = Ranks(make_accelerator(bf16=bf16), context.seed)
    check_processes(settings, ranks.size)
    source = context.input("policy")
    tokenizer = load_tokenizer(
        source if settings.tokenizer is None else context.input("tokenizer"),
        trust_remote_code=settings.trust_remote_code,
    )
    prompts = _prompts(context, tokenizer)
    ppo = assemble(
        policy_source=source,
        reference_source=context.input("reference") if settings.reference else None,
        value_source=_value_source(context, tokenizer),
        scorers=_rewards(context, prompts[0], ranks.device),
        tokenizer=tokenizer,
        prompts=prompts,
        pretraining=pretraining_rows(context, copy.deepcopy(tokenizer)),
        end_ids=_end_ids(settings, tokenizer),
        hyper=settings,
        ranks=ranks,
        trust_remote_code=settings.trust_remote_code,
        lora=settings.lora,
        scratch=context.folder / "work", say=context.say,
        read_values=settings.value == "reward",
    )  # fmt: skip
    try_publishing(context, ppo)
    samples, alarms = context.folder / "samples.jsonl", context.folder / "doctor.jsonl"
    context.resume.track(samples, alarms)
    if restore(ppo, context.resume):
        context.say(f"going on after update {ppo.update} of {settings.updates}")
    with context.progress(settings.updates, "ppo", done=ppo.update, unit="updates") as bar:
        outlets = Outlets(
            log=context.metrics.log,
            write_samples=lambda rows: _append(samples, rows) if context.main_process else None,
            write_alarms=lambda rows: _append(alarms, rows) if context.main_process else None,
            say=context.say,
            advance=lambda m: bar.advance(
                1, score=m["objective/scores"], kl=m["objective/kl"], loss=m["loss/policy_avg"]
            ),
        )
        try:
            metrics = train(
                ppo, states=context.resume, outlets=outlets, should_stop=context.should_stop
            )
        except (RewardError, RolloutError):
            # Both come before an update changes anything: the state is that of the last one.
            save(ppo, context.resume)
            raise
    publish(ppo, context.folder)
    return {**metrics, "updates": ppo.update, "prompts": len(prompts)}


def _prompts(context: StageContext[PpoSettings], tokenizer: Any) -> list[PreparedPrompt]:
    from pipeline.ppo.prompts import PromptReport, prepare_prompts

    settings, report = context.settings, PromptReport()
    prompts = prepare_prompts(
        records(context, settings.prompts, "prompts"),
        # To use one forgets how it fills up and cuts; it is published as it came.
        tokenizer=copy.deepcopy(tokenizer),
        max_tokens=settings.max_prompt_tokens,
        prefix_tokens=settings.prefix_tokens,
        report=report,
    )
    for line in report.lines():
        context.say(line)
    lost = report.dropped.total() - report.dropped["the same prompt again"]
    if not prompts or lost > settings.max_dropped_share * (lost + len(prompts)):
        raise SourceError(
            f"stage {context.name}: {lost} of {lost + len(prompts)} prompts were dropped "
            f"({'; '.join(report.lines()[1:]) or 'the sources hold none'}); raise "
            "max_prompt_tokens, set prefix_tokens, or name other sources"
        )
    return prompts


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
    """Load what scores responses; adapters of reward models are left to be hung onto a trunk."""
    from pipeline.ppo.scoring import Term
    from pipeline.ppo.trunk import TrunkReward
    from reward.adapter_files import adapter_folder

    settings = context.settings
    found: list[Term[Scorer | TrunkReward]] = []
    for path, term in settings.terms.items():
        if settings.trunk == "shared" and term.model is not None:
            name, folder = reported_name(term.model), context.input(path)
            if adapter_folder(folder) is not None:
                hung = TrunkReward(folder, name, *settings.score_limit)
                found.append(Term(hung, term.weight, term.clip, term.normalize))
                continue
            context.say(f"{name} is a whole model, held beside the trunk; train it with `lora`")
        found += load_terms(
            context,
            {path: term},
            prompt=prompt.prompt,
            device=device,
            batch_size=settings.score_batch_size,
            batch_tokens=settings.tokens_per_micro_batch,
        )
    return found


def _value_source(context: StageContext[PpoSettings], tokenizer: Any) -> str | Path | None:
    """Return the checkpoint a separate value model starts from; None when the trunk is shared.

    Without a reward model that could become one, the policy's checkpoint with a head of zeros.
    """
    from pipeline.ppo.assemble import fits_as_value_model

    settings = context.settings
    if settings.value != "separate":
        return None
    if settings.value_start is not None:
        return context.input("value_start")
    models = [path for item in settings.terms.items() for path in model_references(*item)]
    first = next(iter(models), None)
    if first is None:
        return context.input("policy")
    problem = fits_as_value_model(context.input(first), tokenizer)
    if problem is None:
        return context.input(first)
    context.say(f"the value model starts from the policy, not from the reward model: {problem}")
    return context.input("policy")


def _append(path: Path, rows: list[Mapping[str, object]]) -> None:
    if not rows:
        return
    with storage_errors(path), path.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


KIND = StageKind(
    name="ppo",
    settings=PpoSettings,
    run=run,
    check=check,
    provides=frozenset({"policy", "tokenizer"}),
    main_metric="objective/scores",
    version=1,
)
