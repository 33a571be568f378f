"""Rankings by a reward, and the best of n that an sft stage learns of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from data.records import Ranking, to_best
from pipeline.contract.settings import SourceSettings
from pipeline.stages.rankings import stage
from pipeline.stages.rankings.settings import RankingsSettings

RULE = {"rule": "regex", "options": {"pattern": "e"}}
LENGTH = {"rule": "length_penalty", "weight": 0.1}


@pytest.fixture
def asked(policy: Path, tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"say {n}"}) + "\n" for n in range(4)))
    return {"model": str(policy), "prompts": [{"path": str(path)}], "max_new_tokens": 6}


def test_the_reward_ranks_and_the_best_is_what_is_imitated(
    asked: dict[str, Any], make_context: Any, make_artifact: Any, policy: Path
) -> None:
    settings = RankingsSettings(
        **asked, labeler="reward", reward=[RULE, LENGTH], completions=8, bf16=False
    )
    context = make_context(settings, {"model": policy})
    metrics = stage.run(context)
    assert metrics["n_prompts"] == 4
    lines = (context.folder / "rankings.jsonl").read_text().splitlines()
    for ranking in (Ranking(**json.loads(line)) for line in lines):
        assert ranking.annotator == "reward"
        has = [bool(re.search("e", text)) for text in ranking.completions]
        by_rank = sorted(zip(ranking.ranks, has, strict=True))
        # 6 tokens cost less than the letter is worth: those with it come before those without.
        assert [letter for _, letter in by_rank] == sorted(has, reverse=True)
        ended = [
            text for text, end in zip(ranking.completions, ranking.endings, strict=True) if end
        ]
        assert to_best(ranking).completion in (ended or ranking.completions)
    made = make_artifact(context.folder, stage="best", kind="rankings")
    hand = make_context(settings, {"model": policy}, name="sft").hand
    found = hand.__class__("sft", {"best": settings}, lambda _: made)
    placed = found.placed(SourceSettings(stage="best"))
    assert placed is not None and placed.path == str(context.folder / "rankings.jsonl")


def test_rewards_and_labelers_that_do_not_fit_are_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="labeler: reward ranks by `reward`; name one"):
        RankingsSettings(**asked, labeler="reward")
    with pytest.raises(ValueError, match="`reward` is for labeler: reward"):
        RankingsSettings(**asked, labeler="people", reward="rm")
    with pytest.raises(ValueError, match="may not depend on what it scored before"):
        RankingsSettings(**asked, labeler="reward", reward=[{**RULE, "normalize": True}])
