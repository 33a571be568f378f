"""What `samples.jsonl` holds of a checkpoint's answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any

from pipeline.evaluation.judge.gold import gold_judge
from pipeline.evaluation.judge.plan import Plan


def own_sizes(answers: Mapping[str, Any]) -> list[int]:
    """Return how many tokens of each response are the checkpoint's own."""
    owns = answers.get("own") or repeat(None)
    return [
        len(ids) if own is None else sum(own)
        for ids, own in zip(answers["tokens"], owns, strict=False)
    ]


def sample_rows(
    plan: Plan,
    name: str,
    answers: Mapping[str, Any],
    kl: Sequence[float] | None,
    scores: Mapping[str, Mapping[str, Sequence[float]]],
) -> list[dict[str, Any]]:
    """Return the samples of a checkpoint as `samples.jsonl` holds them."""
    judge = gold_judge(plan.world_seed)
    mine = {who: given[name] for who, given in scores.items()}
    proxy = mine.pop("proxy", None)
    rows, sizes = [], own_sizes(answers)
    for place, (row, text) in enumerate(zip(plan.prompts, answers["texts"], strict=True)):
        gold, assessment = judge(row, text)
        rows.append(
            {
                "index": place,
                "id": row.id,
                "prompt": row.prompt,
                "checkpoint": name,
                "plain": answers["plain"],
                "response": text,
                "n_tokens": sizes[place],
                "ended": answers["ended"][place],
                "kl": None if kl is None else kl[place],
                "probability": answers.get("probabilities", {place: None})[place],
                "gold": gold,
                "proxy": None if proxy is None else proxy[place],
                "assessment": assessment,
                **({"calls": answers["calls"][place]} if plan.decodings[name].tools else {}),
                **({"scores": {who: given[place] for who, given in mine.items()}} if mine else {}),
                **({"sources": answers["sources"][place]} if answers.get("sources") else {}),
            }
        )
    return rows
