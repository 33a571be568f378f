"""What a PPO stage reads beside its models: prompts, and the rows of PPO-ptx."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from data.errors import HandOverError
from pipeline.config import SourceSettings

if TYPE_CHECKING:
    from data.records import Record
    from pipeline.context import StageContext
    from pipeline.handover import HandOver
    from pipeline.stages.ppo import PpoSettings


def records(
    context: StageContext[PpoSettings], sources: tuple[SourceSettings, ...], field: str
) -> Iterator[Record]:
    """Yield the records of sources; say what was left out of them."""
    from data.sources import ReadReport, read

    for place, source in enumerate(sources):
        report = ReadReport()
        yield from read(**source.read_arguments(), report=report)
        for line in report.lines():
            context.say(f"{field}.{place}: {line}")


def pretraining_rows(context: StageContext[PpoSettings], tokenizer: Any) -> list[list[int]] | None:
    """Return the rows of PPO-ptx, None without."""
    settings = context.settings
    if settings.ptx_coefficient == 0:
        return None
    from pipeline.ppo.pretraining import text_rows

    sources = settings.pretraining_sources or carried_sources(settings, context.hand)
    rows = text_rows(
        records(context, sources, "pretraining"),
        tokenizer=tokenizer,
        row_tokens=settings.pretraining_row_tokens,
    )
    context.say(f"{len(rows):,} pretraining rows")
    return rows


def carried_sources(settings: PpoSettings, hand: HandOver) -> tuple[SourceSettings, ...]:
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
