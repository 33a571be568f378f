"""PPO-ptx takes its rows from what the recipe's pretrain stage learned, and from nothing else."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.errors import HandOverError
from data.sources.split import is_heldout_text
from pipeline.contract.handover import HandOver
from pipeline.models.load import load_tokenizer
from pipeline.stages.ppo.checks import check
from pipeline.stages.ppo.sources import pretraining_rows
from pipeline.stages.ppo.stage import run
from pipeline.stages.pretrain.settings import PretrainSettings
from pipeline.stages.sft.settings import SftSettings

TEXTS = [f"{number} mills stand at the river" for number in range(40)]
Build = Callable[..., Any]


@pytest.fixture
def carrying(setting: Build, tmp_path: Path) -> Build:
    """Return a builder of PPO contexts whose recipe has a pretrain and an SFT stage."""

    def build(base: dict[str, Any] | None = None, **changes: Any) -> Any:
        text = tmp_path / "text.jsonl"
        text.write_text("".join(json.dumps({"text": line}) + "\n" for line in TEXTS))
        context = setting(**{"pretraining": "base", "ptx_coefficient": 2.0, **changes})
        train = [{"path": str(text)}]
        before = {
            "base": PretrainSettings(
                model=context.settings.policy, train=train, **{"steps": 1, **(base or {})}
            ),
            "sft": SftSettings(model=context.settings.policy, train=train),
        }
        return dataclasses.replace(context, hand=HandOver("ppo", before, lambda _: None))

    return build


def rows_as_text(context: Any) -> list[str]:
    tokenizer = load_tokenizer(context.settings.policy)
    rows = pretraining_rows(context, tokenizer)
    assert rows is not None
    return [tokenizer.decode(row) for row in rows]


def test_rows_are_those_the_pretrain_stage_learned(carrying: Build) -> None:
    assert rows_as_text(carrying()) == TEXTS
    kept = [text for text in TEXTS if not is_heldout_text(text, share=0.3)]
    assert 0 < len(kept) < len(TEXTS)
    assert rows_as_text(carrying({"heldout_share": 0.3})) == kept
    # Sources to judge by leave the share unused, in the pretrain stage as here.
    apart = {"heldout_share": 0.3, "heldout": [{"path": "other.jsonl"}]}
    assert rows_as_text(carrying(apart)) == TEXTS


def test_a_run_learns_from_carried_rows(carrying: Build) -> None:
    context = carrying(episodes=8, pretraining_row_tokens=64)
    check(context.settings, context.hand)
    run(context)
    (row,) = map(json.loads, (context.folder / "metrics.jsonl").read_text().splitlines())
    assert row["loss/pretraining_avg"] > 0


@pytest.mark.parametrize("named", ["sft", "./folder"])
def test_only_a_pretrain_stage_carries_rows(carrying: Build, named: str) -> None:
    context = carrying(pretraining=named)
    with pytest.raises(HandOverError, match=rf"pretraining names {named}, which is no pretrain"):
        check(context.settings, context.hand)


def test_rows_longer_than_the_context_are_refused(carrying: Build) -> None:
    context = carrying(pretraining_row_tokens=129)
    with pytest.raises(HandOverError, match=r"pretraining_row_tokens is 129 tokens, .* holds 128"):
        check(context.settings, context.hand)
