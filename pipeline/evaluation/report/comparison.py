"""Two checkpoints in one table: how often one's answers are judged better than the other's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.errors import UsageError
from data.json_lines import read_json_lines
from data.words import counted
from pipeline.evaluation.judge.figures import figures
from pipeline.evaluation.judge.summary import judge_lines
from pipeline.evaluation.judge.verdict import verdict
from pipeline.evaluation.report.collect import read_evaluation

_COLUMNS = ("judge", "won", "tied", "lost", "rate", "95 %", "equal length", "95 %")


def judged_samples(a: str, folder_a: Path | None, b: str, folder_b: Path | None) -> dict[str, Any]:
    """Return the figures of the last checkpoints of two evaluations, on the prompts of both.

    What reward models said is left out: two evaluations may have asked different ones.

    Args:
        a: what the first is called.
        folder_a: where its evaluation is; None where none is.
        b: what the second is called.
        folder_b: the same of the second.

    Raises:
        UsageError: there is no evaluation, or the two can't be compared.
    """
    way_out = "name prompts that both answer anew, with --prompts"
    if a == b:
        raise UsageError(f"{a} is compared with itself; name two")
    rows, asked = [], []
    for name, folder in ((b, folder_b), (a, folder_a)):
        if folder is None:
            raise UsageError(f"{name} holds no finished evaluation; {way_out}")
        results = read_evaluation(folder)
        last = [*results["checkpoints"]][-1:]
        decoded = {row["checkpoint"]: row["decoding"] for row in results.get("provenance") or ()}
        asked.append(decoded.get(last[0], results["sampling"]) if last else results["sampling"])
        mine = [r for r in read_json_lines(folder / "samples.jsonl") if [r["checkpoint"]] == last]
        rows.append({json.dumps(row["prompt"]): {**row, "checkpoint": name} for row in mine})
    both = [prompt for prompt in rows[0] if prompt in rows[1]]
    if not both or asked[0] != asked[1]:
        why = "decoded otherwise" if both else "judged on other prompts"
        raise UsageError(f"{a} was {why} than {b}; {way_out}")
    samples = [
        {**mine[prompt], "index": index, "proxy": None, "scores": {}}
        for mine in rows
        for index, prompt in enumerate(both)
    ]
    found: dict[str, Any] = {**figures(samples), "judges": {}}
    if not found["win_rates"]:
        raise UsageError(
            f"no judge but a reward model judged both {a} and {b}, and each may have had its own; "
            f"{way_out} and --reward or --judge"
        )
    return found


def comparison(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return verdict, win rates, paired differences and lengths of two checkpoints, and judges."""
    b, a = results["checkpoints"]
    lengths = {name: results["checkpoints"][name]["mean_length"] for name in (a, b)}
    return {
        "verdict": verdict(results),
        "win_rates": [rate for rate in results["win_rates"] if (rate["a"], rate["b"]) == (a, b)],
        "differences": [
            row for row in results.get("differences", ()) if (row["a"], row["b"]) == (a, b)
        ],
        "mean_length": lengths,
        "judges": results["judges"],
    }


def comparison_lines(found: Mapping[str, Any]) -> list[str]:
    """Return the verdict and the table of a comparison, for the console, or why there is none."""
    if "not_compared" in found:
        return [found["not_compared"]]
    rows = [_COLUMNS, *(_cells(rate) for rate in found["win_rates"])]
    widths = [max(len(row[place]) for row in rows) for place in range(len(_COLUMNS))]
    table = [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lengths = ", ".join(f"{name} {size:.1f}" for name, size in found["mean_length"].items())
    n = max((rate["n"] for rate in found["win_rates"]), default=0)
    return [
        *found["verdict"],
        "",
        *table,
        "",
        f"{counted(n, 'prompt')}; mean length in tokens: {lengths}",
        *(
            f"{row['measure'].replace('_', ' ')}: {row['difference']:+.3f} "
            f"[{row['ci95'][0]:+.3f}, {row['ci95'][1]:+.3f}]"
            for row in found["differences"]
            if row["ci95"] and row["measure"] != "mean_length"
        ),
        *judge_lines(found),
    ]


def _cells(rate: Mapping[str, Any]) -> tuple[str, ...]:
    counts = (str(rate[key]) for key in ("wins", "ties", "losses"))
    even = rate.get("rate_length_controlled")
    return (
        rate["judge"],
        *counts,
        f"{100 * rate['rate']:.1f} %",
        _ends(rate["ci95"]),
        "" if even is None else f"{100 * even:.1f} %",
        _ends(rate.get("ci95_length_controlled")),
    )


def _ends(ci95: Sequence[float] | None) -> str:
    return f"{100 * ci95[0]:.1f} to {100 * ci95[1]:.1f}" if ci95 else ""
