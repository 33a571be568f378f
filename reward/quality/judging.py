"""What a reward stage writes of its model's quality: one JSON object and the pairs behind it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.records import Ranking
from reward.quality.calibration import Calibration
from reward.quality.quality import quality, scored_pairs


@dataclass(frozen=True)
class ScoredRanking:
    """A held-out ranking with the scores of its completions, bias included."""

    ranking: Ranking
    scores: list[float]


def judge(sets: Mapping[str, Sequence[ScoredRanking]], calibration: Calibration) -> dict[str, Any]:
    """Return the content of `quality.json`.

    Args:
        sets: held-out rankings by name; the first one's quality is the model's, the others stand
            beside it under their names.
        calibration: where the bias is from.
    """
    blocks = {
        name: quality(scored_pairs([r.ranking for r in rows], [r.scores for r in rows]))
        for name, rows in sets.items()
    }
    primary = next(iter(blocks))
    return {
        "judged_by": primary,
        **blocks.pop(primary),
        **blocks,
        "bias": {
            "reward_bias": calibration.bias,
            "demonstrations": calibration.n,
            "deviation": calibration.deviation,
        },
    }


def summary(content: Mapping[str, Any]) -> dict[str, float]:
    """Return the final metrics of a stage from the content of `quality.json`."""
    low, high = content["ci95"]
    figures = {
        "eval/accuracy": content["accuracy"],
        "eval/accuracy_low": low,
        "eval/accuracy_high": high,
        "eval/longer_wins": content["longer_wins"],
        "eval/shorter_wins": content["shorter_wins"],
        "eval/accuracy_length_matched": content["accuracy_length_matched"],
        "eval/n_pairs": content["n_pairs"],
        "eval/ece": content["calibration"]["ece"],
        "eval/log_loss": content["calibration"]["log_loss"],
        "reward_bias": content["bias"]["reward_bias"],
    }
    return {name: value for name, value in figures.items() if value is not None}


def pair_rows(sets: Mapping[str, Sequence[ScoredRanking]]) -> Iterator[dict[str, Any]]:
    """Yield every strictly ranked pair with its scores, so that the figures can be counted again.

    A share is counted over these rows: `better_score` above `worse_score`, half where equal.
    """
    for name, rows in sets.items():
        for row in rows:
            ranking, scores = row.ranking, row.scores
            places = range(len(scores))
            for a, b in ((a, b) for a in places for b in places):
                if ranking.ranks[a] < ranking.ranks[b]:
                    yield {
                        "set": name,
                        "id": ranking.id,
                        "annotator": ranking.annotator,
                        "prompt": ranking.prompt,
                        "better": ranking.completions[a],
                        "worse": ranking.completions[b],
                        "better_ended": ranking.endings[a],
                        "worse_ended": ranking.endings[b],
                        "better_score": scores[a],
                        "worse_score": scores[b],
                    }
