"""What an evaluation tells the console, and the stage's final metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from data.words import counted

PLAIN_FIGURES = (
    "perplexity",
    "bits_per_byte",
    "gold_reward",
    "proxy_reward",
    "kl_to_reference",
    "mean_length",
    "ended_share",
    "repetition",
    "distinct_1",
    "distinct_2",
    "distinct_3",
)


def stage_metrics(results: Mapping[str, Any]) -> dict[str, float | int | str]:
    """Return the final metrics: every figure as `<checkpoint>/<figure>`, and the main win rate."""
    metrics: dict[str, float | int | str] = {"n_prompts": results["prompts"]["n"]}
    for name, figures in results["checkpoints"].items():
        named = {key: figures.get(key) for key in PLAIN_FIGURES}
        named |= {key: entry["share"] for key, entry in figures.get("shares", {}).items()}
        metrics |= {f"{name}/{key}": value for key, value in named.items() if value is not None}
    main = main_win_rate(results)
    if main is not None:
        metrics |= {"win_rate": main["rate"], "win_rate/judge": main["judge"]}
        metrics |= {"win_rate/low": main["ci95"][0], "win_rate/high": main["ci95"][1]}
    return metrics


def main_win_rate(results: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the win rate of the last checkpoint over the one before, by gold if gold judged."""
    names = list(results["checkpoints"])
    for judge in ("gold", "proxy"):
        for rate in results["win_rates"]:
            facts = [rate["b"], rate["a"], rate["judge"]]
            if facts == [*names[-2:], judge] and rate["rate"] is not None:
                return dict(rate)
    return None


def say_results(results: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Tell the main figures in a few lines."""
    for name, figures in results["checkpoints"].items():
        parts = [
            f"{label} {figures[key]:.{digits}f}"
            for key, label, digits in (
                ("gold_reward", "gold", 3),
                ("proxy_reward", "proxy", 3),
                ("kl_to_reference", "KL", 2),
                ("mean_length", "length", 1),
                ("perplexity", "perplexity", 2),
            )
            if figures.get(key) is not None
        ]
        say(f"{name}: {', '.join(parts)}")
    for rate in results["win_rates"]:
        low, high = rate["ci95"]
        say(
            f"{rate['a']} over {rate['b']} by {rate['judge']}: {rate['rate']:.1%} "
            f"({low:.1%} to {high:.1%}) of {counted(rate['n'], 'prompt')}"
        )
