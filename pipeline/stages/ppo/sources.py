"""What a PPO stage reads beside its models: prompts, and the rows of PPO-ptx."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Literal

from data.errors import HandOverError, SourceError
from pipeline.contract.settings import SourceSettings
from pipeline.contract.sources import PROMPTS, TEXTS, as_it_is

if TYPE_CHECKING:
    from pipeline.contract.context import StageContext
    from pipeline.contract.handover import HandOver
    from pipeline.rl.prompts import PreparedPrompt, PromptReport
    from pipeline.stages.ppo.settings import PpoSettings


def read_prompts(
    context: StageContext[Any],
    field: Literal["prompts", "evaluation_prompts"],
    tokenizer: Any,
    **behind: Any,
) -> tuple[list[PreparedPrompt], PromptReport]:
    """Return the prompts of a setting as the policy takes them, and what became of the rows.

    Args:
        context: of the stage.
        field: the setting.
        tokenizer: of the policy.
        behind: what prompts stand behind, see `prepare_prompts`.
    """
    from pipeline.rl.prompts import PromptReport, prepare_prompts

    settings, report = context.settings, PromptReport()
    prompts = prepare_prompts(
        context.read(field, getattr(settings, field), as_it_is, wanted=PROMPTS),
        # To use one forgets how it fills up and cuts; it is published as it came.
        tokenizer=copy.deepcopy(tokenizer),
        max_tokens=settings.max_prompt_tokens,
        prefix_tokens=settings.prefix_tokens,
        report=report,
        encoder_decoder=reads_apart(context),
        **behind,
    )
    return prompts, report


def stands_behind(context: StageContext[PpoSettings]) -> dict[str, Any]:
    """Return what prompts of PPO stand behind, see `prepare_prompts`."""
    settings = context.settings
    return {"tools": settings.tools, "retriever": settings.retriever(context.say)}


def prompts_to_answer(
    context: StageContext[Any], tokenizer: Any, **behind: Any
) -> list[PreparedPrompt]:
    """Return the prompts that a policy learns on, and say what became of the rows.

    Raises:
        SourceError: none is left, or more were dropped than the settings allow.
    """
    settings = context.settings
    prompts, report = read_prompts(context, "prompts", tokenizer, **behind)
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


def reads_apart(context: StageContext[Any]) -> bool:
    """Tell whether the policy is an encoder-decoder, whose encoder alone reads the prompt."""
    from pipeline.models.load import load_config

    trust = context.settings.trust_remote_code
    return bool(load_config(context.input("policy"), trust_remote_code=trust).is_encoder_decoder)


def pretraining_rows(context: StageContext[PpoSettings], tokenizer: Any) -> list[list[int]] | None:
    """Return the rows of PPO-ptx, None without."""
    settings = context.settings
    if settings.ptx_coefficient == 0:
        return None
    from data.records import to_text
    from data.sources.split import is_heldout_text
    from pipeline.rl.pretraining_mix import text_rows

    sources, heldout_share = settings.pretraining_sources, 0.0
    if settings.pretraining is not None:
        sources, heldout_share = carried_sources(settings, context.hand)
    rows = text_rows(
        (
            record
            for record in context.read("pretraining", sources, as_it_is, wanted=TEXTS)
            if not is_heldout_text(to_text(record), share=heldout_share)
        ),
        tokenizer=tokenizer,
        row_tokens=settings.pretraining_row_tokens,
    )
    context.say(f"{len(rows):,} pretraining rows")
    return rows


def carried_sources(
    settings: PpoSettings, hand: HandOver
) -> tuple[tuple[SourceSettings, ...], float]:
    """Return what the stage that `pretraining` names trains on: its sources, less a share.

    Returns:
        The sources, and the share of their texts that the stage holds out to judge its model.

    Raises:
        HandOverError: it is no pretrain stage.
    """
    from pipeline.stages.pretrain.settings import PretrainSettings

    assert settings.pretraining is not None
    named = hand.settings(settings.pretraining)
    if not isinstance(named, PretrainSettings):
        raise HandOverError(
            f"stage {hand.name}: pretraining names {settings.pretraining}, which is no pretrain "
            "stage of this recipe; name one, or use pretraining_sources"
        )
    return named.train, 0.0 if named.heldout else float(named.heldout_share)
