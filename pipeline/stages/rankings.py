"""Stage `rankings`: several completions a prompt, ranked by a labeler.

Reference: Ouyang et al. 2022 (InstructGPT), section 3.4: K = 4 to 9 completions a prompt, all
pairs of a ranking learnt together. Kept as ranks with ties, never as pairs.

`labeler: gold` samples the completions from `model` and has them ranked by the embedded world's
annotator; `labeler: file` takes rankings or pairs that exist. Who else may rank is told in
`_labelers.py`.

Completions of a prompt that read the same are kept once; a prompt with fewer than two is dropped.
Both are counted. A prompt's `meta` tells for each completion whether it ended by itself.

Leaves `rankings.jsonl`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from data.errors import HandOverError
from pipeline.config import (
    Number,
    PositiveInt,
    Ref,
    Share,
    SourceSettings,
    StageKind,
    StageSettings,
)

if TYPE_CHECKING:
    from pipeline.context import StageContext
    from pipeline.handover import HandOver

NonNegative = Annotated[Number, Field(ge=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]


class RankingsSettings(StageSettings):
    """Settings of a rankings stage."""

    kind: Literal["rankings"] = "rankings"
    """Kind of stage."""
    labeler: Literal["gold", "file"] = "gold"
    """Who ranks: the embedded world's annotator, or nobody, since `rankings` hold ranks already."""
    model: Annotated[str | None, Ref("policy")] = None
    """Checkpoint that answers the prompts."""
    prompts: tuple[SourceSettings, ...] = ()
    """What it answers; of a conversation or ranking the prompt alone is used."""
    rankings: tuple[SourceSettings, ...] = ()
    """With `labeler: file`: sources of rankings or of chosen/rejected pairs."""
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
    batch_size: PositiveInt = 64
    """Completions sampled together."""
    max_too_long_share: Share = 0.05
    """Share of prompts too long for the context above which the stage stops."""
    bf16: bool | Literal["auto"] = "auto"
    """Sample in bfloat16; "auto" where the hardware has it."""
    trust_remote_code: bool = False
    """Run code that the checkpoint carries."""

    @model_validator(mode="after")
    def _fits_the_labeler(self) -> RankingsSettings:
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
        worlds = {source.world_seed if source.world else None for source in self.prompts}
        if None in worlds or len(worlds) > 1:
            raise ValueError(
                "labeler: gold ranks answers to the embedded world's prompts alone; let all "
                "`prompts` be of one world, or use labeler: file"
            )
        return self


def check(settings: RankingsSettings, hand: HandOver) -> None:
    """Refuse a checkpoint that can't answer.

    Raises:
        HandOverError: with the values that do not fit.
    """
    if settings.model is None:
        return
    hand.require_usable_tokenizer(settings.model)
    hand.require_fits_context(settings.model, settings.max_new_tokens, "max_new_tokens")
    facts = hand.facts(settings.model)
    architecture = facts.architecture if facts is not None else None
    if architecture and not architecture.endswith(("ForCausalLM", "LMHeadModel")):
        raise HandOverError(
            f"stage {hand.name}: {settings.model} is a {architecture}; completions are sampled "
            "from a causal language model"
        )


def run(context: StageContext[RankingsSettings]) -> dict[str, float | int | str]:
    """Sample, rank and write; return the final metrics."""
    from pipeline.stages._ranking_work import copy_rankings, sample_and_rank

    if context.settings.labeler == "file":
        return copy_rankings(context)
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
