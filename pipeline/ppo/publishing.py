"""Takes a run of PPO apart into what is published."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from data.errors import ModelError
from pipeline.models import save_model, value_head
from pipeline.ppo.loop import Ppo
from pipeline.ppo.modules import POLICY, ValueModel, ValueReader

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from reward.adapters import Trunk


def publish(ppo: Ppo, folder: Path) -> None:
    """Write `model/`, the average if there is one, and `value_model/`.

    Called on every process, the weights being gathered; the main process writes. On a shared trunk
    the policy's adapter is merged into both (the reward model's into a value model that reads its
    hidden states), and stands in `adapter/` too.
    """
    run, main = ppo.optimization, ppo.ranks.rank == 0
    trunk: Trunk | None = ppo.policy.trunk

    def merged(name: str | None) -> AbstractContextManager[None]:
        return nullcontext() if trunk is None or name is None else trunk.merged(name)

    seen = POLICY if ppo.reader is None else ppo.reader.module.name
    with (run.value or run.policy).whole() as module, merged(seen):
        if main:
            save_model(_value_model(ppo, module), ppo.tokenizer, folder / "value_model")
    if run.average is not None:
        run.average.copy_to(ppo.policy)
    with run.policy.whole() as policy, merged(POLICY):
        if main:
            save_model(policy.model, ppo.tokenizer, folder / "model")
    if trunk is not None and main:
        trunk.save(POLICY, folder / "adapter", task="CAUSAL_LM")


def _value_model(ppo: Ppo, module: nn.Module) -> Any:
    """Return the value model, whole; a head is put onto the trunk that it reads."""
    if isinstance(module, ValueModel):
        return module.model
    trunk: Any = ppo.policy.model if isinstance(module, ValueReader) else module.model
    assert isinstance(module.value_head, nn.Linear)
    return _as_value_model(trunk, module.value_head)


def _as_value_model(model: PreTrainedModel, head: nn.Linear) -> Any:
    """Return trunk and head as a token classifier, so that it loads in transformers."""
    from transformers import AutoModelForTokenClassification

    config = copy.deepcopy(model.config)
    config.num_labels = 1
    value = AutoModelForTokenClassification.from_config(config)
    value.base_model.load_state_dict(model.base_model.state_dict())
    target = value_head(value)
    with torch.no_grad():
        target.weight.copy_(head.weight)
        if target.bias is None:
            raise ModelError(f"{type(value).__name__} has no bias in its head; use value: separate")
        target.bias.copy_(head.bias)
    return value
