"""The tokenizer that a stage leaves is the one it took, file by file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.stages.dpo import stage as dpo
from pipeline.stages.dpo.settings import DpoSettings
from pipeline.stages.grpo import stage as grpo
from pipeline.stages.grpo.settings import GrpoSettings
from pipeline.stages.ppo import stage as ppo
from pipeline.stages.pretrain import stage as pretrain
from pipeline.stages.pretrain.settings import PretrainSettings
from pipeline.stages.reward import stage as reward
from pipeline.stages.reward.settings import RewardSettings
from pipeline.stages.sft import stage as sft
from pipeline.stages.tokenizer import stage as adopting
from pipeline.stages.tokenizer.settings import TokenizerSettings

FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def make_strange(folder: Path) -> None:
    """Have a tokenizer cut and fill up on the left, to sizes of its own, as its files tell."""
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(
        folder, padding_side="left", truncation_side="left", model_max_length=120
    )
    words._tokenizer.enable_truncation(100, direction="left")
    words._tokenizer.enable_padding(length=60, direction="left")
    words.save_pretrained(folder)


@pytest.fixture
def source(tiny_tokenizer: Callable[..., Any], save_policy: Callable[..., Path]) -> Path:
    folder = save_policy(tiny_tokenizer())
    make_strange(folder)
    return folder


@pytest.fixture
def untouched(tmp_path: Path) -> Callable[[Path], dict[str, str]]:
    """Return what transformers writes of a tokenizer that was loaded and not used."""
    from transformers import AutoTokenizer

    def build(folder: Path) -> dict[str, str]:
        AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "untouched")
        found = left(tmp_path / "untouched")
        config = json.loads(found["tokenizer_config.json"])
        assert config["padding_side"] == "left" and config["model_max_length"] == 120
        assert json.loads(found["tokenizer.json"])["truncation"]["max_length"] == 100
        return found

    return build


def left(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in FILES}


def write(path: Path, rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [{"path": str(path)}]


def test_by_the_tokenizer_stage(untouched: Any, make_context: Any, source: Path) -> None:
    settings = TokenizerSettings(adopt=str(source))
    context = make_context(settings, {"adopt": source})
    adopting.run(context)
    assert left(context.folder / "tokenizer") == untouched(source)


def test_by_pretraining(untouched: Any, make_context: Any, source: Path, tmp_path: Path) -> None:
    corpus = write(tmp_path / "corpus.jsonl", [{"text": f"The mill {i}. " * 20} for i in range(9)])
    settings = PretrainSettings(
        tokenizer=str(source), train=corpus, steps=1, hidden_size=16, layers=1, heads=2,
        context_length=32, batch_size=2,
    )  # fmt: skip
    context = make_context(settings, {"tokenizer": source})
    pretrain.run(context)
    assert left(context.folder / "model") == untouched(source)


def test_by_fine_tuning(untouched: Any, make_context: Any, sft_settings: Any, source: Path) -> None:
    context = make_context(sft_settings(source, max_steps=1), {"model": source})
    sft.run(context)
    assert left(context.folder / "model") == untouched(source)


def test_by_the_reward_model(
    untouched: Any, make_context: Any, source: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": f"say {i}", "chosen": "good " * 9, "rejected": "bad"} for i in range(9)]
    settings = RewardSettings(
        model=str(source), train=write(tmp_path / "pairs.jsonl", rows), heldout_share=0.2,
        max_length=14, max_truncated_share=1.0,
    )  # fmt: skip
    context = make_context(settings, {"model": source})
    assert reward.run(context)["n_truncated"] > 0
    assert left(context.folder / "model") == untouched(source)


def test_by_dpo(untouched: Any, make_context: Any, source: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"say {i}", "chosen": "good", "rejected": "bad"} for i in range(5)]
    pairs = write(tmp_path / "pairs.jsonl", rows)
    context = make_context(
        DpoSettings(model=str(source), train=pairs, heldout_share=0, batch_size=8),
        {"model": source},
    )
    dpo.run(context)
    assert left(context.folder / "model") == untouched(source)


def test_by_grpo(untouched: Any, make_context: Any, source: Path, tmp_path: Path) -> None:
    settings = GrpoSettings(
        policy=str(source), prompts=write(tmp_path / "prompts.jsonl", [{"prompt": "say 1"}]),
        reward=[{"rule": "repetition"}], max_prompt_tokens=20, max_new_tokens=3, group_size=2,
        batch_size=4, episodes=4,
    )  # fmt: skip
    context = make_context(settings, {"policy": source})
    grpo.run(context)
    assert left(context.folder / "model") == untouched(source)


def test_by_ppo(setting: Callable[..., Any], untouched: Any) -> None:
    context = setting(episodes=8)
    policy = Path(context.settings.policy)
    make_strange(policy)
    ppo.run(context)
    for folder in ("model", "value_model"):
        assert left(context.folder / folder) == untouched(policy)
