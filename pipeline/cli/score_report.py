"""What `rlhf score` prints of rows with ranks: a table of shares, calibration, the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data.words import counted
from reward.quality.length_rule import verdict


def quality_lines(quality: Mapping[str, Any]) -> Iterator[str]:
    """Yield the figures of scored rankings, each with its 95 % interval, a line each."""
    ties = quality["annotator_ties"]
    yield (
        f"judged by {counted(quality['n_pairs'], 'ranked pair')} of "
        f"{counted(quality['n_prompts'], 'prompt')}; annotators leave {_percent(ties['share'])} "
        "of all pairs tied"
    )
    words, ceiling = quality["bag_of_words"], quality["ceiling"]
    rows = [
        ("accuracy", quality["accuracy"], quality["ci95"], ""),
        ("always the longer", quality["longer_wins"], quality["ci95_longer_wins"], ""),
        ("always the shorter", quality["shorter_wins"], quality["ci95_shorter_wins"], ""),
        ("bag of words", words["accuracy"], words["ci95"], "by folds over prompts")
        if words["accuracy"] is not None
        else ("bag of words", None, None, "too few prompts to learn it by folds"),
        ("two annotators agree", ceiling["agreement"], ceiling["ci95"], ceiling["note"]),
        ("equal scores", quality["equal_scores"]["share"], quality["equal_scores"]["ci95"], ""),
    ]
    for row in rows:
        yield _line(*row)
    yield from _calibration(quality["calibration"])
    for part in quality["by_subset"]:
        rules = f"longer {_percent(part['longer_wins'])}, shorter {_percent(part['shorter_wins'])}"
        told = f"{rules}, {counted(part['n_pairs'], 'pair')}: {part['beats_length']['state']}"
        yield _line(f"subset {part['subset']}", part["accuracy"], part["ci95"], told)
    yield str(verdict(quality))


def _calibration(found: Mapping[str, Any]) -> Iterator[str]:
    yield f"  {_errors('as probabilities', found)}"
    temperature = found["temperature"]
    if temperature is None:
        yield "  no temperature makes them better probabilities, or too few prompts tell it"
        return
    value = f"{temperature['value']:.3g}{_ends(temperature['ci95'], '.3g')}"
    yield f"  {_errors(f'divided by {value}', temperature)}, on prompts it was not fitted on"


def _errors(label: str, found: Mapping[str, Any]) -> str:
    ece = f"calibration error {found['ece']:.3f}{_ends(found['ci95_ece'], '.3f')}"
    return f"{label}: {ece}, log loss {found['log_loss']:.3f}{_ends(found['ci95_log_loss'], '.3f')}"


def _line(label: str, share: float | None, ends: Sequence[float] | None, note: str) -> str:
    interval = "" if share is None or not ends else f"{100 * ends[0]:5.1f} to {100 * ends[1]:.1f}"
    return f"  {label:<24}{_percent(share):>8}  {interval:<14}  {note}".rstrip()


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _ends(ends: Sequence[float] | None, form: str) -> str:
    return "" if ends is None else f" [{ends[0]:{form}}, {ends[1]:{form}}]"
