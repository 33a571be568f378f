"""The seam between trainers and accelerate, on one process; on many see test_processes.py."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from data.errors import UsageError
from pipeline.rl.processes import World
from pipeline.training.accelerator import (
    SHARD,
    TrainingAccelerator,
    filled,
    hollow_copy,
    is_sharded,
    join_processes,
    make_accelerator,
    take_over_sharding,
)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = dict(os.environ)
    for name in (SHARD, "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "FSDP_VERSION"):
        monkeypatch.delenv(name, raising=False)
    yield
    for name in set(os.environ) - set(before):
        del os.environ[name]


def test_fsdp_is_taken_over_once_and_hidden_from_libraries(monkeypatch: Any) -> None:
    assert not take_over_sharding()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert take_over_sharding() and take_over_sharding()
    assert "ACCELERATE_USE_FSDP" not in os.environ


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"FSDP_VERSION": "1"}, "set fsdp_version: 2"),
        ({}, "set fsdp_version: 2"),
        ({"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params"),
    ],
)
def test_other_kinds_of_fsdp_are_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str
) -> None:
    for name, value in {"ACCELERATE_USE_FSDP": "true", **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=message):
        make_accelerator(bf16=False)


@pytest.mark.skipif(find_spec("deepspeed") is not None, reason="it is installed")
def test_deepspeed_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UsageError, match="deepspeed is not installed; install it"):
        join_processes(max_norm=1.0)


def test_ppo_refuses_deepspeed() -> None:
    from types import SimpleNamespace

    from accelerate.utils import DistributedType

    with pytest.raises(UsageError, match="one model a run"):
        World(SimpleNamespace(distributed_type=DistributedType.DEEPSPEED), 0)


def prepared(seed: int) -> tuple[TrainingAccelerator, nn.Linear, Any]:
    torch.manual_seed(seed)
    accelerator = make_accelerator(bf16=False)
    module = nn.Linear(3, 2)
    return accelerator, *accelerator.prepare(module, torch.optim.AdamW(module.parameters(), lr=0.1))


def step(module: nn.Module, optimizer: Any) -> None:
    module(torch.rand(4, 3)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_saved_state_goes_on_bit_for_bit(tmp_path: Path) -> None:
    accelerator, module, optimizer = prepared(0)
    step(module, optimizer)
    accelerator.save_state(str(tmp_path))
    step(module, optimizer)
    again, other, other_optimizer = prepared(1)
    assert not torch.equal(other.weight, module.weight)
    again.load_state(str(tmp_path))
    step(other, other_optimizer)  # its rows come from the restored generator
    assert torch.equal(other.weight, module.weight)


def test_one_process_is_never_sharded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    accelerator, module, _ = prepared(0)
    assert not accelerator.sharded and not is_sharded(module)


def test_a_hollow_copy_is_filled_for_a_while(
    tiny_tokenizer: Callable[..., Any], tiny_policy: Callable[..., Any]
) -> None:
    model = tiny_policy(tiny_tokenizer())
    hollow: Any = hollow_copy(model)
    assert all(p.numel() == 0 for p in hollow.parameters())
    assert hollow.lm_head.weight is hollow.model.embed_tokens.weight  # still tied
    ids = torch.arange(8, 14)[None]
    with filled(hollow, model), torch.no_grad():
        assert torch.equal(hollow(ids).logits, model(ids).logits)
    assert all(p.numel() == 0 for p in hollow.parameters())
    assert model.lm_head.weight.numel() > 0
