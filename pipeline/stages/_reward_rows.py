"""Reads the rankings of a reward stage: from its sources, or from the stage that made them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import SourceError
from pipeline.config import SourceSettings

if TYPE_CHECKING:
    from data.records import Ranking
    from pipeline.context import StageContext


def referred_rankings(context: StageContext[Any], field: str) -> list[Ranking]:
    """Read the rankings of another stage, or of an external file, folder or hub id.

    Args:
        context: of the stage that reads.
        field: setting that names it, or that holds a list of such names.
    """
    places = [name for name in context.inputs if name.startswith(f"{field}.")]
    return [row for name in places or [field] for row in _referred(context, name)]


def _referred(context: StageContext[Any], field: str) -> list[Ranking]:
    artifact = context.input_artifact(field)
    if artifact is not None:
        source = SourceSettings(path=str(artifact.folder / "rankings.jsonl"), max_bad_share=0.0)
    else:
        location = str(context.input(field))
        stage_file = Path(location).expanduser() / "rankings.jsonl"
        location = str(stage_file) if stage_file.is_file() else location
        local = Path(location).expanduser().exists() or location.startswith((".", "/", "~"))
        source = SourceSettings(**{"path" if local else "hub": location})
    return read_rankings(context, (source,), field)


def read_rankings(
    context: StageContext[Any], sources: tuple[SourceSettings, ...], field: str
) -> list[Ranking]:
    """Read the rankings of some sources and say what was lost on the way.

    Raises:
        SourceError: a row is something else.
    """
    from data.records import Ranking
    from data.sources import ReadReport, read

    found: list[Ranking] = []
    for place, source in enumerate(sources):
        report = ReadReport()
        for record in read(**source.read_arguments(), report=report):
            if not isinstance(record, Ranking):
                raise SourceError(
                    f"stage {context.name}: {field}.{place} holds {type(record).__name__} rows; "
                    "a reward model learns rankings or chosen/rejected pairs: set `format` or "
                    "`columns`"
                )
            found.append(record)
        for line in report.lines():
            context.say(f"{field}.{place}: {line}")
    return found
