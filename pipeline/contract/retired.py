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


RETIRED: Mapping[str, tuple[Retired, ...]] = {
    "ppo": (
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
            yield one.place, value, f"this is {one.value!r} always now; {one.instead}"


def put_back(kind: str, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stage's settings, as JSON, with the retired ones of its kind."""
    whole = copy.deepcopy(dict(recorded))
    for one in RETIRED.get(kind, ()):
        holder, name = _holder(whole, one.place)
        if holder is not None:
            holder[name] = one.value
    return whole


def _holder(settings: dict[str, Any], place: str) -> tuple[dict[str, Any] | None, str]:
    """Return the mapping that a place is in, None where there is none, and its name there."""
    *keys, name = place.split(".")
    holder: Any = settings
    for key in keys:
        holder = holder.get(key) if isinstance(holder, dict) else None
    return (holder if isinstance(holder, dict) else None), name
