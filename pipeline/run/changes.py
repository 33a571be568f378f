"""How two keys of a stage differ, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def why_changed(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    beside: tuple[Mapping[str, Any], Mapping[str, Any]],
) -> str:
    """Tell in words how two keys of a stage differ.

    Args:
        before: the key of what is there.
        now: the key of the recipe as it is.
        beside: the settings that are no part of each; one may be part of the other.
    """
    reasons = []
    for part, label in (("seed", "seed"), ("version", "code of the stage"), ("kind", "kind")):
        if before.get(part) != now.get(part):
            reasons.append(f"{label}: {before.get(part)} -> {now.get(part)}")
    keyed = [_flat(key.get("settings", {})) for key in (before, now)]
    settings = [{**_flat(rest), **part} for rest, part in zip(beside, keyed, strict=True)]
    either = keyed[0].keys() | keyed[1].keys()
    reasons += changes(*({n: v for n, v in each.items() if n in either} for each in settings))
    for part, label in (
        ("parents", "stage"),
        ("sources", "source"),
        ("external", "checkpoint"),
        ("functions", "reward function"),
        ("tools", "tool"),
    ):
        older, newer = before.get(part, {}), now.get(part, {})
        for key in sorted(older.keys() | newer.keys()):
            if older.get(key) != newer.get(key):
                reasons.append(f"{label} {key} changed")
    shown = "; ".join(reasons[:3])
    return f"{shown}; and {len(reasons) - 3} more" if len(reasons) > 3 else shown


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return in words which settings differ."""
    old, new = _flat(before), _flat(now)
    return [
        f"{key}: {old.get(key)!r:.40} -> {new.get(key)!r:.40}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def differing(recipes: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the settings that several recipes do not share, each with its value in every one."""
    flat = [_flat(recipe) for recipe in recipes]
    names = list(dict.fromkeys(name for one in flat for name in one))
    values = {name: [one.get(name) for one in flat] for name in names}
    return {name: given for name, given in values.items() if any(v != given[0] for v in given)}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        items: Any = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        return {prefix.rstrip("."): value}
    flat: dict[str, Any] = {}
    for key, item in items:
        flat |= _flat(item, f"{prefix}{key}.")
    return flat
