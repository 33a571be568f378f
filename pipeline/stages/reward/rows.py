"""The rankings of a reward stage: from its sources, or from the stage that made them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data.errors import SourceError
from data.records import to_ranking
from data.storage import expand
from data.text.chat import spelled_line
from data.text.prompt_notes import PromptNotes
from data.words import counted
from pipeline.contract.settings import SourceSettings
from pipeline.contract.sources import RANKINGS

if TYPE_CHECKING:
    from data.records import Ranking
    from pipeline.contract.context import StageContext
    from pipeline.stages.reward.settings import RewardSettings
    from reward.learned.model import RewardModel


@dataclass(frozen=True)
class RankingRows:
    """The rankings of a stage: to learn, held out, and those the quality is taken from."""

    training: list[Ranking]
    heldout: list[Ranking]
    evaluation: list[Ranking]

    @property
    def judged(self) -> list[Ranking]:
        """The rankings that the quality is taken from."""
        return self.evaluation or self.heldout


def referred_rankings(context: StageContext[Any], field: str) -> list[Ranking]:
    """Read the rankings of what a setting names, or each of a list: a stage, path or hub id."""
    places = [name for name in context.inputs if name.startswith(f"{field}.")]
    return [row for name in places or [field] for row in _referred(context, name)]


def _referred(context: StageContext[Any], field: str) -> list[Ranking]:
    artifact = context.input_artifact(field)
    if artifact is not None:
        source = SourceSettings(path=str(artifact.folder / "rankings.jsonl"), max_bad_share=0.0)
    else:
        source = rankings_source(str(context.input(field)))
    return read_rankings(context, (source,), field)


def rankings_source(location: str) -> SourceSettings:
    """Return the source of rankings made elsewhere: a stage's folder, a file or a hub id."""
    stage_file = expand(location) / "rankings.jsonl"
    location = str(stage_file) if stage_file.is_file() else location
    local = expand(location).exists() or location.startswith((".", "/", "~"))
    return SourceSettings(**{"path" if local else "hub": location})


def read_rankings(
    context: StageContext[Any], sources: tuple[SourceSettings, ...], field: str
) -> list[Ranking]:
    """Read the rankings of some sources, other rows refused, and say what was lost on the way."""
    return [*context.read(field, sources, to_ranking, wanted=RANKINGS)]


def read_rows(context: StageContext[Any]) -> RankingRows:
    """Read what a stage learns of rankings and is judged by; no prompt is in both.

    Raises:
        SourceError: there is nothing to learn, or nothing to judge by; all is held out.
    """
    from data.records import prompt_hash
    from data.sources.split import split_by_prompt

    settings = context.settings
    training = read_rankings(context, settings.train, "train")
    if settings.rankings is not None:
        training += referred_rankings(context, "rankings")
    heldout = read_rankings(context, settings.heldout, "heldout")
    evaluation = (
        referred_rankings(context, "eval_rankings") if settings.eval_rankings is not None else []
    )
    if not training:
        raise SourceError(f"stage {context.name}: its sources hold no ranking; nothing to learn")
    if settings.eval_rankings is not None and not evaluation:
        raise SourceError(f"stage {context.name}: eval_rankings hold no ranking; nothing to judge")
    judged = {prompt_hash(r.prompt) for r in (*heldout, *evaluation)}
    learned = [r for r in training if prompt_hash(r.prompt) not in judged]
    if len(learned) < len(training):
        context.say(
            f"{counted(len(training) - len(learned), 'ranking')} left out of training: "
            "what they answer is held out"
        )
    if not learned:
        raise SourceError(
            f"stage {context.name}: every prompt to learn from is held out too, by "
            f"{'heldout' if heldout else 'eval_rankings'}; nothing is left to learn"
        )
    if not settings.heldout:
        learned, heldout = split_by_prompt(learned, share=settings.heldout_share, seed=context.seed)
    return RankingRows(training=learned, heldout=heldout, evaluation=evaluation)


def report_rows(
    context: StageContext[RewardSettings], rows: RankingRows, dropped: int, model: RewardModel
) -> None:
    """Say what is learnt and what was lost on the way; stop where too much was.

    Raises:
        SourceError: more texts were truncated than the recipe allows.
    """
    soft = sum(bool(row.probabilities) for row in rows.training)
    context.say(
        f"{counted(len(rows.training), 'ranking')} to learn, {len(rows.heldout)} held out"
        + (f", {len(rows.evaluation)} to judge by" if rows.evaluation else "")
        + (f"; {soft} to learn by soft labels" if soft else "")
    )
    if dropped:
        context.say(f"{counted(dropped, 'ranking')} dropped: all completions tie")
    encoder = model.encoder
    read = (row.prompt for row in (*rows.training, *rows.heldout, *rows.evaluation))
    for what, count in PromptNotes.of(encoder.tokenizer, read).not_shown.most_common():
        context.say(f"the chat template leaves out {what} of {count:,} rankings' prompts")
    if encoder.spelling:
        context.say(spelled_line(encoder.spelling, "texts"))
    if encoder.truncated:
        share = encoder.truncated / encoder.seen
        lost = (
            f"{encoder.truncated} of {encoder.seen} texts ({share:.1%}) are longer than "
            f"{encoder.max_length} tokens"
        )
        if share > context.settings.max_truncated_share:
            raise SourceError(
                f"stage {context.name}: {lost}, more than max_truncated_share allows; raise "
                "max_length, or that share to cut them on the left"
            )
        context.say(f"{lost} and were cut on the left")
