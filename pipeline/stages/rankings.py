"""Stage `rankings`: several completions a prompt, ranked by a labeler.

Reference: Ouyang et al. 2022 (InstructGPT), section 3.4: K = 4 to 9 completions a prompt, all
pairs of a ranking learnt together. Kept as ranks with ties, never as pairs.

`labeler: gold` samples the completions from `model` and has them ranked by the embedded world's
annotator; `labeler: people` samples them into `tasks.jsonl` and waits until people have ranked them
(`rlhf label serve RUN`); `labeler: file` takes rankings or pairs that exist.

Completions of a prompt that read the same are kept once; a prompt with fewer than two is dropped.
Both are counted. `ended` tells of each completion whether it ended by itself: one that was cut off
is learnt without the mark of an end.

Leaves `rankings.jsonl`; with `labeler: people` also `tasks.jsonl`, what they were shown. The labels
themselves are outside the stage's folder, in the database of the run, and survive it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

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
from pipeline.stages._checks import require_prompts, require_rankings
from pipeline.stages._people_settings import PeopleSettings

if TYPE_CHECKING:
    from pipeline.context import StageContext
    from pipeline.handover import HandOver

NonNegative = Annotated[Number, Field(ge=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
MOST_COMPLETIONS = 9
"""Completions that a person can keep apart; InstructGPT: 4 to 9."""
CHUNK = 64
"""Prompts that are sampled from one seed; another number gives other samples."""


class RankingsSettings(StageSettings):
    """Settings of a rankings stage."""

    kind: Literal["rankings"] = "rankings"
    """Kind of stage."""
    labeler: Literal["gold", "people", "file"] = "gold"
    """Who ranks: the embedded world's annotator, people, or nobody, `rankings` holding ranks."""
    model: Annotated[str | None, Ref("policy")] = None
    """Checkpoint that answers the prompts."""
    prompts: tuple[SourceSettings, ...] = ()
    """What it answers; of a conversation or ranking the prompt alone is used."""
    rankings: tuple[SourceSettings, ...] = ()
    """With `labeler: file`: sources of rankings or of chosen/rejected pairs."""
    people: PeopleSettings | None = None
    """With `labeler: people`: how they are asked, and when enough is labelled."""
    limit: PositiveInt | None = None
    """At most so many prompts, drawn by the seed."""
    completions: Annotated[int, Field(ge=2)] = 4
    """Completions sampled for each prompt; InstructGPT: 4 to 9."""
    noise: NonNegative = 0.0
    """Standard deviation of the gold annotator's error, in units of its score (0 to 1)."""
    max_new_tokens: PositiveInt = 64
    """Most tokens of a completion."""
    temperature: Annotated[Number, Field(gt=0)] = 1.0
    """Divides the logits."""
    top_k: NonNegativeInt = 0
    """Draw among so many of the likeliest tokens; 0 draws among all."""
    top_p: Annotated[Number, Field(gt=0, le=1)] = 1.0
    """Draw among the likeliest tokens whose probabilities reach this sum."""
    batch_size: Annotated[PositiveInt, SameResult()] = 64
    """Completions sampled together."""
    max_too_long_share: Annotated[Share, SameResult()] = 0.05
    """Share of prompts too long for the context above which the stage stops."""
    bf16: bool | Literal["auto"] = "auto"
    """Sample in bfloat16; "auto" where the hardware has it."""
    trust_remote_code: bool = False
    """Run code that the checkpoint carries."""

    @model_validator(mode="after")
    def _fits_the_labeler(self) -> RankingsSettings:
        if self.people is not None and self.labeler != "people":
            raise ValueError(f"`people` is for labeler: people, this is labeler: {self.labeler}")
        sampled = {"model": self.model, "prompts": self.prompts}
        if self.labeler == "file":
            unused = [name for name, value in sampled.items() if value]
            if unused or not self.rankings:
                raise ValueError(
                    "labeler: file takes `rankings` sources as they are"
                    + (f", so drop {' and '.join(unused)}" if unused else " and has none")
                )
            return self
        missing = [name for name, value in sampled.items() if not value]
        if missing or self.rankings:
            raise ValueError(
                f"labeler: {self.labeler} ranks what a model answers: "
                + (f"give {' and '.join(missing)}" if missing else "drop `rankings`")
            )
        if self.labeler == "people":
            self._fits_people()
        worlds = {source.world_seed if source.world else None for source in self.prompts}
        judged = self.labeler == "gold" or self.asked.judges_the_world
        if judged and (None in worlds or len(worlds) > 1):
            who = "labeler: gold" if self.labeler == "gold" else "the gold annotator"
            raise ValueError(
                f"{who} ranks answers to the embedded world's prompts alone; let all "
                "`prompts` be of one world, or use labeler: file"
            )
        return self

    def _fits_people(self) -> None:
        asked = self.asked
        if self.completions > MOST_COMPLETIONS:
            raise ValueError(
                f"people rank 2 to {MOST_COMPLETIONS} completions, this asks {self.completions}"
            )
        if asked.mode == "pairs" and self.completions != 2:
            raise ValueError(f"people.mode: pairs compares 2 completions, not {self.completions}")
        if self.limit is not None and asked.needed > max(1, self.limit):
            raise ValueError(
                f"people.needed asks for {asked.needed:g} tasks, limit makes {self.limit} at most"
            )

    @property
    def asked(self) -> PeopleSettings:
        """How people are asked."""
        return self.people or PeopleSettings()

    def recorded_settings(self) -> dict[str, Any]:
        """Return all settings that apply, as JSON; the seed apart."""
        found = super().recorded_settings()
        del found["people"]
        if self.labeler == "people":
            found["people"] = self.asked.recorded_settings()
        return found


def check(settings: RankingsSettings, hand: HandOver) -> None:
    """Refuse a checkpoint that can't answer.

    Raises:
        HandOverError: with the values that do not fit.
    """
    require_rankings(hand, "rankings", settings.rankings)
    if settings.model is None:
        return
    hand.require_rows(settings.model)
    hand.require_fits_context(
        settings.model, settings.max_new_tokens + 1, "a prompt of one token and max_new_tokens"
    )
    why = "completions are sampled from a causal language model"
    hand.require_writer(settings.model, "model", why)
    require_prompts(hand, settings.prompts)
    if settings.labeler == "people":
        settings.asked.read_guidelines()
        for reference in settings.asked.scored_by:
            hand.require_reward_head(reference)


def run(context: StageContext[RankingsSettings]) -> dict[str, float | int | str]:
    """Sample, rank and write; return the final metrics."""
    from pipeline.stages._ranking_work import copy_rankings, sample_and_rank

    if context.settings.labeler == "file":
        return copy_rankings(context)
    if context.settings.labeler == "people":
        from pipeline.stages._people import ask_people

        return ask_people(context)
    return sample_and_rank(context)


KIND = StageKind(
    name="rankings",
    settings=RankingsSettings,
    run=run,
    check=check,
    provides=frozenset({"rankings"}),
    main_metric="n_pairs",
    version=1,
    trains=False,
)
