"""What several people said, as soft labels: from the store to a reward model's scores."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from data.labels.campaign.accounts import Accounts
from data.labels.campaign.campaigns import Campaigns
from data.labels.campaign.queue import Queue
from data.labels.campaign.submissions import Submissions
from data.labels.records import CampaignSettings, NewTask, Submission
from data.labels.store.database import open_database
from data.records import chat
from pipeline.stages.reward import stage as reward
from pipeline.stages.reward.settings import RewardSettings

VOTERS = ("Ann", "Ben", "Cleo", "Dan")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """A run of 24 tasks of two answers; three of four people prefer the one with the z's."""
    folder = tmp_path / "run"
    folder.mkdir()
    database = open_database(str(folder / "labels" / "labels.sqlite"))
    asked = CampaignSettings(mode="rank", overlap=1.0, annotators_per_task=4)
    campaign = Campaigns(database).create("votes", asked, "")
    pairs = [("zzzzzz", "abcabc") if n % 2 else ("abcabc", "zzzzzz") for n in range(24)]
    tasks = [NewTask(f"t{n}", chat(f"say {n}"), list(pair)) for n, pair in enumerate(pairs)]
    Campaigns(database).add_tasks(campaign.id, tasks)
    for name in VOTERS:
        who = Accounts(database).add(name, "person").id
        while given := Queue(database).next(who, campaign.id):
            first_is_z = given.task.new.completions[0].startswith("z")
            ranks = [1, 2] if first_is_z != (name == "Dan") else [2, 1]
            Submissions(database).submit(given.id, who, Submission(given.id, ranks))
    database.close()
    yield folder


def trained(make_context: Any, policy: Path, file: Path, name: str) -> tuple[float, float]:
    """Return accuracy and the mean lead of the z's over the others on held-out prompts."""
    settings = RewardSettings(
        model=str(policy), train=({"path": str(file)},), heldout_share=0.25, epochs=20,
        prompts_per_step=18, learning_rate=1e-2, evaluate_every=0, save_every=0, bf16=False,
    )  # fmt: skip
    context = make_context(settings, {"model": str(policy)}, file.parent / name, name=name)
    metrics: dict[str, Any] = reward.run(context)
    rows = (context.folder / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(row) for row in rows]
    leads = [row["better_score"] - row["worse_score"] for row in found]
    return metrics["eval/accuracy"], fmean(leads)


@pytest.mark.parametrize("what", ["rankings", pytest.param("preferences", marks=pytest.mark.slow)])
def test_the_reward_stage_learns_the_share_of_people(
    rlhf: Any, make_context: Any, save_policy: Any, tiny_tokenizer: Any, run: Path, what: str
) -> None:
    policy = save_policy(tiny_tokenizer(vocab_size=263))
    leads = {}
    for how in ("soft", "majority"):
        arguments = ("--what", what, "--consolidation", how, "--out", how)
        told = rlhf("label", "export", run, *arguments)
        assert "24 rows" in told.out, told.err
        file = (
            run.parent / how / ("rankings.jsonl" if what == "rankings" else f"{what}/train.jsonl")
        )
        accuracy, leads[how] = trained(make_context, policy, file, f"reward-{how}")
        assert accuracy == 1.0
    # The majority pulls without end; three of four pull to a chance of 3/4, a lead of log 3.
    assert leads["soft"] == pytest.approx(math.log(3), abs=0.1)
    assert leads["majority"] > 2 * math.log(3)
