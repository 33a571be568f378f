"""Whether a reward model beats the better length rule, and the sentence that says so.

"Always the longer answer" and "always the shorter one" cost nothing, and on some sets of human
preferences one of them is right as often as a trained model. A policy trained against a model that
does not beat it may learn little but length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data.intervals import clustered_outcomes
from reward.quality.pairs import ScoredPair
from reward.quality.shares import half_if_equal


def beats_length(pairs: Sequence[ScoredPair]) -> dict[str, Any] | None:
    """Return the accuracy less that of the better length rule, over the same pairs.

    Each rule has its paired difference with a score interval over prompts, and the lower of their
    ends are taken: to beat the better rule is to beat both, and which one that is was chosen by
    these very pairs (an intersection-union test, Berger 1982).

    Returns:
        `rule` ("longer" or "shorter"), `rule_accuracy`, `difference`, `ci95` and `state`: "beats",
        "not shown" or "beaten". None without pairs.
    """
    if not pairs:
        return None
    right = [half_if_equal(p.better, p.worse) for p in pairs]
    longer = [half_if_equal(p.better_length, p.worse_length) for p in pairs]
    reached = {"longer": longer, "shorter": [1 - value for value in longer]}
    rule = max(reached, key=lambda name: sum(reached[name]))
    over = {
        name: clustered_outcomes(
            [a - b for a, b in zip(right, values, strict=True)], [p.prompt for p in pairs]
        )
        for name, values in reached.items()
    }
    low, high = (min(ends) for ends in zip(*(o.ci95 or () for o in over.values()), strict=True))
    return {
        "rule": rule,
        "rule_accuracy": sum(reached[rule]) / len(pairs),
        "difference": over[rule].value,
        "ci95": [low, high],
        "state": "beats" if low > 0 else "beaten" if high < 0 else "not shown",
    }


def verdict(quality: Mapping[str, Any]) -> str | None:
    """Return in one sentence how a reward model stands to the better length rule.

    Args:
        quality: figures of scored pairs, with `beats_length`; None where there are no pairs.
    """
    found = quality.get("beats_length")
    if found is None:
        return None
    begun = {
        "beats": "the reward model beats",
        "not shown": "the reward model is not shown to beat",
        "beaten": "the reward model is beaten by",
    }
    low, high = (100 * end for end in found["ci95"])
    return (
        f"{begun[found['state']]} always taking the {found['rule']} answer: right on "
        f"{100 * quality['accuracy']:.1f} % against {100 * found['rule_accuracy']:.1f} % of "
        f"{quality['n_pairs']:,} pairs (difference {100 * found['difference']:+.1f} "
        f"points, 95 % interval {low:+.1f} to {high:+.1f})"
    )


def warning(quality: Mapping[str, Any]) -> str | None:
    """Return the verdict where the model is not shown to beat the rule, else None."""
    beats = quality.get("beats_length")
    return None if beats is None or beats["state"] == "beats" else verdict(quality)
