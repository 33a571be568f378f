"""Stage `tool_annotate`: calls of tools put into text where their results help.

Reference: Schick et al. 2023 (Toolformer), section 2. Of a text the likeliest places for a call are
found, calls sampled there and executed; one is kept if its result lowers the loss of what follows
by `gain` against the lesser loss of no call and of the call without its result. The loss is of five
tokens, weighted 1, .8, .6, .4, .2 and divided by the sum of these.

Departures: calls are written as `<<48/2=24>>`, before a word behind its space, as in GSM8K's
solutions; the probability of the opening is that of its first token; each place keeps its best call
alone; texts without a call are kept as they are, so that where none helps is learned, too; of
conversations and pairs the last answer is annotated.

Leaves `rows.jsonl`, rows as they came with calls in their texts, which `{stage: NAME}` names as a
source, and `calls.jsonl`: each call with its place, result, gain and whether it was kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.contract.kind import StageKind
from pipeline.stages.checks import require_texts
from pipeline.stages.tool_annotate.settings import ToolAnnotateSettings

if TYPE_CHECKING:
    from pipeline.contract.context import StageContext
    from pipeline.contract.handover import HandOver


def check(settings: ToolAnnotateSettings, hand: HandOver) -> None:
    """Refuse checkpoints that can't write or judge calls.

    Raises:
        HandOverError: with the values that do not fit.
    """
    for setting, named in (("model", settings.model), ("caller", settings.caller)):
        if named is None:
            continue
        hand.require_rows(named)
        hand.require_writer(named, setting, "calls are written and judged by a language model")
        hand.require_fits_context(
            named, settings.max_call_tokens + 2, "a text of two tokens and max_call_tokens"
        )
    if settings.caller is not None:
        hand.require_same_tokenizer(settings.model, settings.caller)
    require_texts(hand, "train", settings.train)


def run(context: StageContext[ToolAnnotateSettings]) -> dict[str, float | int | str]:
    """Annotate all texts; return how many calls of each tool were tried and kept."""
    from pipeline.stages.tool_annotate.run import annotate_all

    return annotate_all(context)


KIND = StageKind(
    name="tool_annotate",
    settings=ToolAnnotateSettings,
    run=run,
    check=check,
    provides=frozenset({"rows"}),
    main_metric="n_calls",
    version=1,
    trains=False,
)
