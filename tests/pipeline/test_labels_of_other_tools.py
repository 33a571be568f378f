"""Answers given in Argilla: imported, exported for TRL, and learned by a reward model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.stages.reward import stage as reward
from pipeline.stages.reward.settings import RewardSettings

WRITTEN = Path(__file__).parents[1] / "data" / "labels" / "exchange" / "written"
COLUMNS = "prompt=instruction,a=response-1,b=response-2,winner=best"


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    """An export as Argilla writes it, of twelve records in place of four."""
    (row, *_) = json.loads((WRITTEN / "argilla" / "flat.json").read_text())
    rows = [{**row, "id": f"r{n}", "instruction": f"say {n}"} for n in range(12)]
    (tmp_path / "answers.json").write_text(json.dumps(rows))
    (tmp_path / "run").mkdir()
    return tmp_path / "answers.json"


def test_argilla_s_answers_reach_trl_and_a_reward_model(
    rlhf: Any, make_context: Any, save_policy: Any, tiny_tokenizer: Any, answers: Path
) -> None:
    told = rlhf("label", "import", "run", answers, "--columns", COLUMNS)
    assert "24 new labels of 24" in told.out and "a draft or discarded" in told.out
    told = rlhf("label", "export", "run", "--what", "preferences", "--out", "out")
    # One of two annotators prefers the first answer, the other calls it a tie, a third has a draft.
    assert "preferences/train.jsonl: 12 rows" in told.out and "left out 12: tied" in told.out
    policy = save_policy(tiny_tokenizer(vocab_size=320))
    assert trl_trains(policy, answers.parent / "out" / "preferences" / "train.jsonl") == 12
    rlhf("label", "export", "run", "--out", "out")
    settings = RewardSettings(
        model=str(policy), train=({"path": str(answers.parent / "out" / "rankings.jsonl")},),
        heldout_share=0.25, epochs=3, prompts_per_step=8, learning_rate=1e-2, evaluate_every=0,
        save_every=0, bf16=False,
    )  # fmt: skip
    context = make_context(settings, {"model": str(policy)}, answers.parent / "rm", name="rm")
    metrics: dict[str, Any] = reward.run(context)
    assert metrics["eval/accuracy"] == 1.0


def trl_trains(policy: Path, file: Path) -> int:
    """Return the rows that TRL's trainer took, after a step on them."""
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    rows = Dataset.from_list([json.loads(line) for line in file.read_text().splitlines()])
    model = AutoModelForSequenceClassification.from_pretrained(policy, num_labels=1)
    settings = RewardConfig(
        output_dir=str(file.parent / "trl"), max_steps=1, per_device_train_batch_size=4,
        use_cpu=True, bf16=False, report_to=[], save_strategy="no", disable_tqdm=True,
        activation_checkpointing=False,
    )  # fmt: skip
    trainer = RewardTrainer(
        model=model, args=settings, train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(policy),
    )  # fmt: skip
    trainer.train()
    return len(trainer.train_dataset)
