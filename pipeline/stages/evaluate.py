"""Stage `evaluate`: every named checkpoint on the same held-out prompts.

For each: perplexity of held-out texts, gold and proxy reward, KL to the reference, length and end
of responses, repetition and variety; between each two, win rates by each judge. How KL and proxy
reward are measured is told in `pipeline/evaluation/engine.py`.

A base model has never seen the tokens of a chat template. `plain` names the checkpoints that are
given the bare question and a line break instead, as one prompts a base model. In answer to plain
text the end of a document ends a response, too. Every checkpoint answers at most `max_new_tokens`.

Leaves `samples.jsonl`, one judged sample a line, and `evaluation.json`, each figure of which
`pipeline.evaluation.recount` counts again from the samples.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from data.errors import HandOverError, RecipeError, nearest
from pipeline.config import (
    Number,
    PositiveInt,
    Ref,
    SameResult,
    Share,
    SourceSettings,
    StageKind,
    StageSettings,
)
from pipeline.stages._checks import require_prompts, require_texts
from pipeline.stages._rewards import (
    Reward,
    RewardTerm,
    check_rewards,
    load_judge,
    require_steady,
    reward_terms,
)

if TYPE_CHECKING:
    from data.records import Prompt, PromptRow
    from pipeline.context import StageContext
    from pipeline.evaluation.engine import Plan
    from pipeline.evaluation.inputs import Opening
    from pipeline.handover import HandOver

CheckpointName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$", max_length=40)]
NonNegative = Annotated[Number, Field(ge=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]


class EvaluateSettings(StageSettings):
    """Settings of an evaluation."""

    kind: Literal["evaluate"] = "evaluate"
    """Kind of stage."""
    checkpoints: dict[CheckpointName, Annotated[str, Ref("policy")]] = Field(min_length=1)
    """Name in the report -> stage, path or hub id; in the order of training."""
    prompts: tuple[SourceSettings, ...] = Field(min_length=1)
    """Held-out prompts; of a conversation or ranking the prompt alone is used."""
    limit: PositiveInt | None = None
    """At most so many prompts, drawn by the seed."""
    max_too_long_share: Annotated[Share, SameResult()] = 0.05
    """Share of prompts too long for a checkpoint's context above which the stage stops."""
    prefix_tokens: PositiveInt | None = None
    """Tokens of a document, by the reference's tokenizer, that are a prompt to go on from."""
    perplexity: tuple[SourceSettings, ...] = ()
    """Held-out texts for the perplexity."""
    max_texts: PositiveInt = 500
    """At most so many of them."""
    reference: str | None = None
    """Checkpoint that KL is measured to; `sft` when there is one, else the first."""
    plain: tuple[str, ...] = ()
    """Checkpoints prompted with plain text, without the chat template."""
    gold: bool = False
    """Judge by the embedded world's annotator; the prompts must all be of one world."""
    reward: Annotated[Reward | None, Ref("reward")] = None
    """Reward model that judges as `proxy`, or a list of rewards as PPO takes, added up."""
    rule: str | None = None
    """Rule (`reward.rules`) that judges as `proxy` instead of a reward model."""
    rule_options: dict[str, Any] = Field(default_factory=dict)
    """Options of the rule."""
    max_new_tokens: PositiveInt = 64
    """Most tokens of a response."""
    temperature: NonNegative = 1.0
    """Divides the logits; 0 takes the likeliest token. KL is measured at it, too."""
    top_k: NonNegativeInt = 0
    """Draw among so many of the likeliest tokens; 0 draws among all."""
    top_p: Annotated[Number, Field(gt=0, le=1)] = 1.0
    """Draw among the likeliest tokens whose probabilities reach this sum."""
    batch_size: Annotated[PositiveInt, SameResult()] = 64
    """Responses sampled together."""
    bf16: bool | Literal["auto"] = False
    """Compute in bfloat16; off, since it blurs the KL."""
    resamples: PositiveInt = 2000
    """Draws of each bootstrap interval."""
    trust_remote_code: bool = False
    """Run code that a checkpoint carries."""

    @model_validator(mode="after")
    def _names_and_judges(self) -> EvaluateSettings:
        for field, names in (("plain", self.plain), ("reference", (self.reference,))):
            for name in names:
                if name is not None and name not in self.checkpoints:
                    raise ValueError(
                        f"{field}: '{name}' is none of the checkpoints "
                        f"({', '.join(self.checkpoints)}).{nearest(name, self.checkpoints)}"
                    )
        if self.reward is not None and self.rule is not None:
            raise ValueError("`reward` and `rule` both name the proxy judge; keep one")
        require_steady(self.terms)
        worlds = {source.world_seed if source.world else None for source in self.prompts}
        if self.gold and (None in worlds or len(worlds) > 1):
            raise ValueError(
                "gold: the annotator judges the embedded world's prompts alone; let all `prompts` "
                "be of one world, or set gold: false"
            )
        return self

    @property
    def terms(self) -> dict[str, RewardTerm]:
        """The rewards that judge as `proxy` by the path of what they come from."""
        return {} if self.reward is None else reward_terms(self.reward)

    @property
    def measured_to(self) -> str:
        """Name of the checkpoint that KL is measured to."""
        return self.reference or (
            "sft" if "sft" in self.checkpoints else next(iter(self.checkpoints))
        )


def check(settings: EvaluateSettings, hand: HandOver) -> None:
    """Refuse a reward model without head, and responses that no context holds.

    Raises:
        HandOverError: with the values that do not fit.
    """
    opening = settings.prefix_tokens or 1
    for name, reference in settings.checkpoints.items():
        what = "prefix_tokens" if settings.prefix_tokens else "a prompt of one token"
        hand.require_fits_context(
            reference, opening + settings.max_new_tokens, f"{what} and max_new_tokens"
        )
        why = "checkpoints that answer are causal language models"
        hand.require_writer(reference, f"checkpoints.{name}", why)
    if settings.rule is not None:
        from reward.rules import rule

        try:
            rule(settings.rule, **settings.rule_options)
        except RecipeError as error:
            raise HandOverError(f"stage {hand.name}: rule: {error}") from error
    check_rewards(settings.terms, hand)
    require_prompts(hand, settings.prompts, openings=settings.prefix_tokens is not None)
    require_texts(hand, "perplexity", settings.perplexity)


def run(context: StageContext[EvaluateSettings]) -> dict[str, float | int | str]:
    """Judge all checkpoints; return the final metrics."""
    from pipeline.evaluation.engine import Desk, evaluate
    from pipeline.evaluation.overlap import seen_lines
    from pipeline.evaluation.summary import say_results, stage_metrics

    plan = _plan(context)
    desk = Desk(context.folder, _key(context), context.console, context.stop_if_asked)
    results = evaluate(plan, desk)
    say_results(results, context.say)
    for line in seen_lines(
        results["seen"], n_prompts=results["prompts"]["n"], n_texts=results["texts"]
    ):
        context.say(line)
    return stage_metrics(results)


def _plan(context: StageContext[EvaluateSettings]) -> Plan:
    from pipeline.evaluation.engine import Plan
    from pipeline.evaluation.overlap import seen_before
    from pipeline.generation import Sampling
    from pipeline.models import pick_device, resolve_bf16
    from pipeline.stages._readings import made_elsewhere, readings

    settings, prompts = context.settings, _prompts(context)
    return Plan(
        checkpoints={name: context.input(f"checkpoints.{name}") for name in settings.checkpoints},
        prompts=prompts,
        texts=_texts(context),
        reference=settings.measured_to,
        plain=frozenset(settings.plain),
        world_seed=settings.prompts[0].world_seed if settings.gold else None,
        scorer=_scorer(context, prompts[0].prompt if prompts else ""),
        sampling=Sampling(
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
        ),
        batch_size=settings.batch_size,
        bf16=resolve_bf16(settings.bf16, pick_device()),
        max_too_long_share=settings.max_too_long_share,
        resamples=settings.resamples,
        seed=context.seed,
        trust_remote_code=settings.trust_remote_code,
        seen=lambda prompts, texts: seen_before(
            prompts,
            texts,
            readings=readings(context.hand),
            elsewhere=made_elsewhere(context.hand),
            document_prompt=_opening(context),
        ),
    )


def _prompts(context: StageContext[EvaluateSettings]) -> list[PromptRow]:
    from pipeline.evaluation.inputs import read_prompts

    settings = context.settings
    sources = [source.read_arguments() for source in settings.prompts]
    return read_prompts(
        sources, limit=settings.limit, seed=context.seed, say=context.say, opening=_opening(context)
    )


def _opening(context: StageContext[EvaluateSettings]) -> Opening | None:
    """Return what makes documents into prompts, None where the recipe doesn't ask for it."""
    from pipeline.evaluation.inputs import document_opening
    from pipeline.models import load_tokenizer

    settings = context.settings
    if settings.prefix_tokens is None:
        return None
    tokenizer = load_tokenizer(
        context.input(f"checkpoints.{settings.measured_to}"),
        trust_remote_code=settings.trust_remote_code,
    )
    return document_opening(tokenizer, settings.prefix_tokens)


def _texts(context: StageContext[EvaluateSettings]) -> list[str]:
    from pipeline.evaluation.inputs import read_texts

    settings = context.settings
    sources = [source.read_arguments() for source in settings.perplexity]
    return read_texts(sources, limit=settings.max_texts, say=context.say)


def _scorer(context: StageContext[EvaluateSettings], prompt: Prompt) -> Any:
    """Return what loads the proxy judge, None when the recipe names none."""
    settings = context.settings
    if settings.rule is not None:
        from reward.rules import rule

        found = rule(settings.rule, **settings.rule_options)
        return lambda: found
    if settings.reward is None:
        return None

    reward = settings.reward
    return lambda: load_judge(
        context,
        reward,
        prompt=prompt,
        batch_size=settings.batch_size,
        trust_remote_code=settings.trust_remote_code,
    )


def _key(context: StageContext[EvaluateSettings]) -> str:
    """Return the digest that work of an earlier try must have."""
    parts = [context.resume.key, json.dumps(context.settings.key_settings()), str(context.seed)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


KIND = StageKind(
    name="evaluate",
    settings=EvaluateSettings,
    run=run,
    check=check,
    provides=frozenset({"evaluation"}),
    main_metric="win_rate",
    version=1,
    trains=False,
)
