"""Stage `rankings`: several completions a prompt, ranked by a labeler.

Reference: Ouyang et al. 2022 (InstructGPT), section 3.4: K = 4 to 9 completions a prompt, all
pairs of a ranking learnt together. Kept as ranks with ties, never as pairs.

`labeler: gold` samples the completions from `model` and has them ranked by the embedded world's
annotator, `labeler: truth` by their truth alone, whatever their manner; `labeler: people` samples
them into `tasks.jsonl` and waits until people have ranked them (`rlhf label serve RUN`); `labeler:
reward` has them ranked by a reward model or other rewards, so that an sft stage that learns
`{stage: NAME}` imitates the best of them: rejection sampling, or best of n (Nakano et al. 2021;
Touvron et al. 2023); `labeler: file` takes rankings or pairs that exist.

Completions of a prompt that read the same are kept once; a prompt with fewer than two is dropped.
Both are counted. `ended` tells of each completion whether it ended by itself: one that was cut off
is learnt without the mark of an end.

Leaves `rankings.jsonl`; with `labeler: people` also `tasks.jsonl`, what they were shown. The labels
themselves are outside the stage's folder, in the database of the run, and survive it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.contract.kind import StageKind
from pipeline.stages.checks import (
    require_caller,
    require_corpus,
    require_label_store,
    require_prompts,
    require_rankings,
    require_room,
)
from pipeline.stages.rankings.settings import RankingsSettings
from pipeline.stages.reward_terms import check_rewards

if TYPE_CHECKING:
    from pipeline.contract.context import StageContext
    from pipeline.contract.handover import HandOver


def check(settings: RankingsSettings, hand: HandOver) -> None:
    """Refuse a checkpoint that can't answer.

    Raises:
        HandOverError: with the values that do not fit.
    """
    require_rankings(hand, "rankings", settings.rankings)
    if settings.model is None:
        return
    hand.require_rows(settings.model)
    require_room(hand, settings.model, settings, settings.max_new_tokens)
    require_corpus(hand, settings.retrieve)
    why = "completions are sampled from a language model that writes"
    hand.require_writer(settings.model, "model", why, encoder_decoder=True)
    require_caller(hand, settings.model, settings.tools)
    if settings.labeler == "people":
        require_label_store(hand, settings.asked.database)
    talks = settings.asked.conversations
    if talks is not None and talks.against is not None:
        hand.require_rows(talks.against)
        field = "people.conversations.against"
        hand.require_writer(talks.against, field, why, encoder_decoder=True)
    require_prompts(hand, settings.prompts)
    check_rewards(settings.terms, hand)
    if settings.labeler == "people":
        settings.asked.read_guidelines()
        for reference in settings.asked.scored_by:
            hand.require_reward_head(reference)


def run(context: StageContext[RankingsSettings]) -> dict[str, float | int | str]:
    """Sample, rank and write; return the final metrics."""
    from pipeline.stages.rankings.sampling import copy_rankings, sample_and_rank

    if context.settings.labeler == "file":
        return copy_rankings(context)
    if context.settings.asked.conversations is not None:
        from pipeline.stages.rankings.conversations import ask_in_conversations

        return ask_in_conversations(context)
    if context.settings.labeler == "people":
        from pipeline.stages.rankings.people import ask_people

        return ask_people(context)
    return sample_and_rank(context)


KIND = StageKind(
    name="rankings",
    settings=RankingsSettings,
    run=run,
    check=check,
    provides=frozenset({"rankings", "rows"}),
    main_metric="n_pairs",
    version=1,
    trains=False,
)
