"""The ppo stage: trains a policy against a reward, held near a reference.

The algorithm, and where it departs from InstructGPT, N+ and TRL, stands in `pipeline/ppo/loop.py`.
What is left behind: `model/` (the policy, or its average), `value_model/` (a token classifier with
one label), `samples.jsonl` (episodes with their scores, every so many updates), `metrics.jsonl`,
and `doctor.jsonl` where an alarm rang.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from data.errors import HandOverError, SourceError
from pipeline.artifacts import storage_errors
from pipeline.config import (
    Number,
    PositiveInt,
    Ref,
    Settings,
    Share,
    SourceSettings,
    StageKind,
    StageSettings,
    is_external,
)
from pipeline.ppo.settings import Hyperparameters

if TYPE_CHECKING:
    from data.records import Record
    from pipeline.context import StageContext
    from pipeline.handover import HandOver
    from pipeline.ppo.prompts import PreparedPrompt
    from reward.scorers import Scorer


class RewardTerm(Settings):
    """One of several rewards: a reward model or a rule, with its weight."""

    model: Annotated[str | None, Ref("reward")] = None
    """Reward model: a reward stage, a path or a hub id."""
    rule: str | None = None
    """Rule, such as `sentiment`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the rule."""
    weight: Number = 1.0
    """Its score is multiplied by this before all are added up."""

    @model_validator(mode="after")
    def _one_origin(self) -> RewardTerm:
        if (self.model is None) == (self.rule is None):
            raise ValueError("a reward names either a model or a rule")
        if self.options and self.rule is None:
            raise ValueError("options are for rules; a reward model has none")
        return self


class PpoSettings(StageSettings, Hyperparameters):
    """Settings of the ppo stage; those of the algorithm are in `Hyperparameters`."""

    kind: Literal["ppo"] = "ppo"
    """Kind of stage."""
    policy: Annotated[str, Ref("policy")]
    """Checkpoint the policy starts from, as a rule the sft stage's."""
    reward: Annotated[str | tuple[RewardTerm, ...], Ref("reward")]
    """Reward model, or a list of rewards."""
    reference: Annotated[str | None, Ref("policy")] = None
    """Checkpoint of the reference; the policy's start when not given (InstructGPT, N+)."""
    value: Literal["separate", "shared"] = "separate"
    """A value model of its own (N+), or a head on the policy's trunk."""
    value_start: Annotated[str | None, Ref("reward")] = None
    """Reward model the value model starts from; the first one of `reward` (InstructGPT, N+)."""
    prompts: Annotated[tuple[SourceSettings, ...], Field(min_length=1)]
    """Where the prompts come from."""
    max_prompt_tokens: PositiveInt = 512
    """Longest prompt in tokens; longer ones are dropped and counted."""
    max_dropped_share: Share = 0.5
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
        if self.value == "shared" and self.value_start is not None:
            raise ValueError("value_start is for value: separate; a shared head starts at 0")
        if self.end_after and not self.end_tokens:
            raise ValueError("end_after is for end_tokens, and none are named")
        return self

    def key_settings(self) -> dict[str, Any]:
        """Leave out the doctor unless it decides which policy is published."""
        found = super().key_settings()
        if self.doctor.on_alarm != "best":
            del found["doctor"]
        return found

    @property
    def terms(self) -> dict[str, RewardTerm]:
        """The rewards by the path of their reference."""
        if isinstance(self.reward, str):
            return {"reward": RewardTerm(model=self.reward)}
        return {f"reward.{place}.model": term for place, term in enumerate(self.reward)}


def check(settings: PpoSettings, hand: HandOver) -> None:
    """Refuse checkpoints that do not fit each other, and prompts that do not fit the context.

    Raises:
        HandOverError: naming both.
    """
    hand.require_usable_tokenizer(settings.policy)
    hand.require_fits_context(
        settings.policy,
        settings.max_prompt_tokens + settings.max_new_tokens,
        "max_prompt_tokens + max_new_tokens",
    )
    if settings.reference is not None:
        hand.require_same_tokenizer(settings.policy, settings.reference)
    if settings.pretraining is not None:
        _carried_sources(settings, hand)
    if settings.value_start is not None:
        hand.require_same_tokenizer(settings.policy, settings.value_start)
        hand.require_reward_head(settings.value_start)
    for term in settings.terms.values():
        if term.model is not None:
            hand.require_reward_head(term.model)
        elif term.rule is not None:
            _check_rule(term.rule, hand)


def _check_rule(name: str, hand: HandOver) -> None:
    from data.errors import nearest
    from reward.rules import RULES

    if name not in RULES:
        raise HandOverError(
            f"stage {hand.name}: unknown rule '{name}'; known: {', '.join(RULES)}."
            f"{nearest(name, RULES)}"
        )


def run(context: StageContext[PpoSettings]) -> dict[str, float | int | str]:
    """Train, publish policy and value model, return the last update's metrics."""
    from pipeline.models import load_tokenizer, pick_device, resolve_bf16
    from pipeline.ppo.assemble import assemble, publish
    from pipeline.ppo.loop import restore
    from pipeline.ppo.ranks import Ranks, make_accelerator
    from pipeline.ppo.train import Outlets, train

    settings = context.settings
    bf16 = resolve_bf16(settings.bf16, pick_device())
    ranks = Ranks(make_accelerator(bf16=bf16), context.seed)
    _check_processes(settings, ranks.size)
    source = context.input("policy")
    tokenizer = load_tokenizer(source, trust_remote_code=settings.trust_remote_code)
    prompts = _prompts(context, tokenizer)
    ppo = assemble(
        policy_source=source,
        reference_source=context.input("reference") if settings.reference else None,
        value_source=_value_source(context, tokenizer),
        scorers=_scorers(context, ranks.device),
        tokenizer=tokenizer,
        prompts=prompts,
        pretraining=_pretraining(context, tokenizer),
        end_ids=_end_ids(settings, tokenizer),
        hyper=settings,
        ranks=ranks,
        trust_remote_code=settings.trust_remote_code,
    )
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
        metrics = train(
            ppo, states=context.resume, outlets=outlets, should_stop=context.should_stop
        )
    publish(ppo, context.folder)
    return {**metrics, "updates": ppo.update, "prompts": len(prompts)}


def _check_processes(settings: PpoSettings, processes: int) -> None:
    share = processes * settings.minibatches
    if settings.batch_size % share:
        raise HandOverError(
            f"batch_size {settings.batch_size} does not divide by {processes} processes times "
            f"{settings.minibatches} minibatches; choose a multiple of {share}"
        )


def _prompts(context: StageContext[PpoSettings], tokenizer: Any) -> list[PreparedPrompt]:
    from pipeline.ppo.prompts import PromptReport, prepare_prompts

    settings, report = context.settings, PromptReport()
    prompts = prepare_prompts(
        _records(context, settings.prompts, "prompts"),
        tokenizer=tokenizer,
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


def _records(
    context: StageContext[PpoSettings], sources: tuple[SourceSettings, ...], field: str
) -> Iterator[Record]:
    from data.sources import ReadReport, read

    for place, source in enumerate(sources):
        report = ReadReport()
        yield from read(**source.read_arguments(), report=report)
        for line in report.lines():
            context.say(f"{field}.{place}: {line}")


def _scorers(context: StageContext[PpoSettings], device: Any) -> list[tuple[Scorer, float]]:
    from reward.model import RewardModel
    from reward.rules import rule

    found: list[tuple[Scorer, float]] = []
    for path, term in context.settings.terms.items():
        if term.rule is not None:
            found.append((rule(term.rule, **term.options), term.weight))
            continue
        model = RewardModel.load(
            context.input(path), device=device, batch_size=context.settings.score_batch_size
        )
        assert term.model is not None
        model.name = Path(term.model).name if is_external(term.model) else term.model
        found.append((model, term.weight))
    return found


def _value_source(context: StageContext[PpoSettings], tokenizer: Any) -> str | Path | None:
    """Return the checkpoint a separate value model starts from; None when the trunk is shared.

    Without a reward model that could become one, the policy's checkpoint with a head of zeros.
    """
    from pipeline.ppo.assemble import fits_as_value_model

    settings = context.settings
    if settings.value == "shared":
        return None
    if settings.value_start is not None:
        return context.input("value_start")
    first = next((path for path, term in settings.terms.items() if term.model), None)
    if first is None:
        return context.input("policy")
    problem = fits_as_value_model(context.input(first), tokenizer)
    if problem is None:
        return context.input(first)
    context.say(f"the value model starts from the policy, not from the reward model: {problem}")
    return context.input("policy")


def _pretraining(context: StageContext[PpoSettings], tokenizer: Any) -> list[list[int]] | None:
    """Return the rows of PPO-ptx, None without."""
    settings = context.settings
    if settings.ptx_coefficient == 0:
        return None
    from pipeline.ppo.pretraining import text_rows

    sources = settings.pretraining_sources or _carried_sources(settings, context.hand)
    rows = text_rows(
        _records(context, sources, "pretraining"),
        tokenizer=tokenizer,
        row_tokens=settings.pretraining_row_tokens,
    )
    context.say(f"{len(rows):,} pretraining rows")
    return rows


def _carried_sources(settings: PpoSettings, hand: HandOver) -> tuple[SourceSettings, ...]:
    """Return the training sources of the stage that `pretraining` names.

    Raises:
        HandOverError: it is no stage with text to train on.
    """
    assert settings.pretraining is not None
    sources = getattr(hand.settings(settings.pretraining), "train", None)
    if not sources:
        raise HandOverError(
            f"stage {hand.name}: pretraining names {settings.pretraining}, which has no `train` "
            "sources; name a pretrain stage of this recipe, or use pretraining_sources"
        )
    return tuple(sources)


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
