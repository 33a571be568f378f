"""Settings that are no more: what they always are now, and what to set instead.

A recipe that gives one its former default says nothing new, and goes on; another value is refused.
The keys of stages hold them as ever, so that what is finished, or was begun, stays as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Retired(NamedTuple):
    """A setting that is no more.

    Attributes:
        place: dotted, inside its stage.
        value: its former default, which is what it always is now, as JSON.
        instead: what to do instead, to go on in a sentence.
        same_result: as the mark of this name: it was no part of the stage's key.
    """

    place: str
    value: Any
    instead: str
    same_result: bool = False


def _threshold(name: str, value: float, *alarms: str) -> Retired:
    ignored = ", ".join(alarms)
    return Retired(f"doctor.{name}", value, f"doctor.ignore: [{ignored}] silences the alarm")


def _rows(place: str, value: int, sources: str) -> Retired:
    return Retired(place, value, f"a `limit` of each source of {sources} asks for fewer, or more")


RETIRED: Mapping[str, tuple[Retired, ...]] = {
    "tokenizer": (Retired("min_frequency", 2, "a lower vocab_size leaves rare merges out"),),
    "pretrain": (
        Retired("heldout_chunks", 256, "a `limit` of the sources of heldout asks for less"),
    ),
    "sft": (_rows("max_heldout", 2000, "heldout"),),
    "rankings": (
        Retired("people.gold_tasks", 50, "a file of fewer rankings as people.gold asks for less"),
    ),
    "reward": (_rows("max_demonstrations", 500, "demonstrations"),),
    "select": (
        _rows("n_prompts", 256, "prompts"),
        Retired("top_k", 0, "temperature alone shapes what the candidates say"),
        Retired("top_p", 1.0, "temperature alone shapes what the candidates say"),
    ),
    "evaluate": (_rows("max_texts", 500, "perplexity"),),
    "ppo": (
        Retired(
            "score_batch_size", 64, "tokens_per_micro_batch bounds all passes", same_result=True
        ),
        Retired(
            "kl_estimator",
            "k1",
            "k2 and k3 in the reward do not give the gradient of the KL, so that the policy ends "
            "elsewhere than at the best score less kl_coefficient times KL; they are logged as "
            "objective/kl_k2 and objective/kl_k3",
        ),
        _threshold("score_drop", 1.0, "collapse"),
        _threshold("length_factor", 2.0, "length_hacking"),
        _threshold("length_correlation", 0.5, "length_hacking"),
        _threshold("ended_share", 0.5, "lost_ends"),
        _threshold("negative_kl", 1.0, "negative_kl"),
        _threshold("approximate_kl", 0.2, "large_steps"),
        _threshold("explained_variance", 0.02, "dead_value"),
        _threshold("value_grace", 30, "dead_value"),
        _threshold("entropy_share", 0.1, "entropy_collapse"),
        _threshold("repeated_share", 0.5, "repetition"),
        _threshold("distinct_share", 0.25, "identical_responses"),
        _threshold("start_responses", 64, "never_ends", "equal_scores"),
        _threshold("random_share", 0.7, "random_start"),
    ),
}
"""By kind of stage."""


def take_out(kind: str, given: dict[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """Take the retired settings of a kind out of a recipe's stage.

    Args:
        kind: of the stage.
        given: its settings; changed in place.

    Yields:
        Dotted place, value and what is wrong, for each that differs from what it always is now.
    """
    for one in RETIRED.get(kind, ()):
        holder, name = _holder(given, one.place)
        if holder is None or name not in holder:
            continue
        value = holder.pop(name)
        if value != one.value:
            yield one.place, value, f"no setting any more, {one.value!r} holds; {one.instead}"


def put_back(kind: str, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stage's settings, as JSON, with the retired ones of its kind."""
    settings = copy.deepcopy(dict(recorded))
    for one in RETIRED.get(kind, ()):
        holder, name = _holder(settings, one.place)
        if holder is not None:
            holder[name] = one.value
    return settings


def _holder(settings: dict[str, Any], place: str) -> tuple[dict[str, Any] | None, str]:
    """Return the mapping that a place is in, None where there is none, and its name there."""
    *keys, name = place.split(".")
    holder: Any = settings
    for key in keys:
        holder = holder.get(key) if isinstance(holder, dict) else None
    return (holder if isinstance(holder, dict) else None), name
