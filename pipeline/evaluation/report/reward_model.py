"""The report's part on the reward model: accuracy beside what costs nothing, and where it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.evaluation.report.view import interval, number
from reward.quality.length_rule import verdict

Figures = Mapping[str, Any]


def quality_rows(quality: Figures | None) -> list[dict[str, Any]]:
    """Return accuracy, and beside it what length, a bag of words and annotators reach."""
    if not quality:
        return []
    pairs = {"n_pairs": quality.get("n_pairs")}
    words, ceiling = quality.get("bag_of_words") or {}, quality.get("ceiling") or {}
    matched = quality.get("accuracy_length_matched")
    rows = [_row("Reward model", quality.get("accuracy"), quality.get("ci95"), pairs, "main")]
    rows += [
        _row(
            f"The {rule} answer wins",
            quality.get(f"{rule}_wins"),
            quality.get(f"ci95_{rule}_wins"),
            pairs,
            "rule",
        )
        for rule in ("longer", "shorter")
    ]
    rows += [
        _row("A bag of words", words.get("accuracy"), words.get("ci95"), words, "rule"),
        _row(
            "Annotators with each other", ceiling.get("agreement"), ceiling.get("ci95"), {}, "rule"
        ),
        _row(
            "Lengths within 10\u00a0%",
            matched,
            quality.get("ci95_length_matched"),
            {"n_pairs": quality.get("n_pairs_length_matched")},
            "main",
        ),
    ]
    return [row for row in rows if row["value"] != "–"]


def quality_groups(quality: Figures | None) -> list[dict[str, Any]]:
    """Return accuracy by length, margin, place, agreement and subset: heading and rows of each."""
    quality = quality or {}
    groups = [
        ("By length", _parts(quality.get("by_length_difference"), lambda row: row["label"])),
        ("By how far the scores are apart", _parts(quality.get("by_margin"), lambda r: r["label"])),
        ("By place in the ranking", _parts(quality.get("by_place"), lambda row: row["label"])),
        (
            "By agreement of annotators",
            _parts(
                quality.get("by_agreement"), lambda row: f"{100 * row['agreement']:.0f} % agree"
            ),
        ),
        ("By subset", _parts(quality.get("by_subset"), _subset)),
    ]
    return [{"heading": heading, "rows": rows} for heading, rows in groups if len(rows) > 1]


def quality_facts(quality: Figures | None) -> list[str]:
    """Return what else is known of the reward model, a sentence each."""
    quality = quality or {}
    facts = []
    told = verdict(quality)
    if told:
        facts.append(told[0].upper() + told[1:] + ".")
    ceiling = quality.get("ceiling") or {}
    if ceiling.get("low") is not None and ceiling.get("high") is not None:
        ends = interval([ceiling["low"], ceiling["high"]], "percent")
        facts.append(f"As annotators agree, the best possible accuracy is {ends}\u00a0%.")
    calibration = quality.get("calibration") or {}
    if calibration.get("ece") is not None:
        text = f"Expected calibration error {_with_interval(calibration, 'ece', 'percent')}"
        temperature = calibration.get("temperature")
        if temperature:
            value = number(temperature["value"])
            ends = interval(temperature.get("ci95"))
            text += f"; scores divided by {value}{f' ({ends})' if ends else ''} are calibrated best"
        facts.append(text + ".")
    for key, what in (
        ("equal_scores", "of the pairs get equal scores"),
        ("annotator_ties", "of all pairs were left tied by annotators"),
    ):
        share = (quality.get(key) or {}).get("share")
        if share:
            facts.append(f"{number(share, 'percent')} {what}.")
    return facts


def _with_interval(figures: Figures, key: str, kind: str) -> str:
    ends = interval(figures.get(f"ci95_{key}"), kind)
    return number(figures[key], kind) + (f" ({ends})" if ends else "")


def _agreement(row: Figures) -> str:
    return f"{100 * row['agreement']:.0f}\u00a0% of annotators agree"


def _subset(row: Figures) -> str:
    best = max(row.get("longer_wins") or 0.0, row.get("shorter_wins") or 0.0)
    rule = f", length alone {number(best, 'percent')}" if best else ""
    return f"{row['subset']}{rule}"


def _parts(rows: Sequence[Figures] | None, label: Callable[[Figures], str]) -> list[dict[str, Any]]:
    found = [_row(label(row), row["accuracy"], row["ci95"], row, "part") for row in rows or ()]
    return [row for row in found if row["value"] != "–"]


def _row(
    label: str, share: float | None, ends: Sequence[float] | None, counts: Figures, style: str
) -> dict[str, Any]:
    return {
        "label": label,
        "value": number(share, "percent"),
        "ci95": interval(ends, "percent"),
        "n": counts.get("n_pairs"),
        "width": 100 * (share or 0),
        "low": 100 * ends[0] if ends else None,
        "high": 100 * ends[1] if ends else None,
        "style": style,
    }
