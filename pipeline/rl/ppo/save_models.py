"""Takes a run of PPO apart into what is published."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from data.errors import ModelError
from data.storage import storage_errors, write_atomically
from pipeline.models.load import save_model, value_head
from pipeline.models.saving import try_saving
from pipeline.rl.policy import POLICY, ValueModel, ValueReader
from pipeline.rl.ppo.loop import Ppo

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pipeline.contract.context import StageContext
    from reward.network.lora import Trunk

HEAD = "value_head.safetensors"
UPDATE = "update.json"
"""How many updates the policy beside it has; written last, so that it is whole."""


def save_models(ppo: Ppo, folder: Path) -> None:
    """Write `model/`, the average if there is one, and what gives the values.

    Called on every process, the weights being gathered; the main process writes. On a shared trunk
    the policy's adapter is merged into both (the reward model's into a value model that reads its
    hidden states), and stands in `adapter/` too. The policy is written first.

    A value model is a token classifier in `value_model/`. Where transformers has none of the
    architecture, a head on the policy's trunk is written alone, as `value_head.safetensors`; of an
    encoder-decoder beside the `value_model/` that it reads, if that is separate.
    """
    run, main = ppo.optimization, ppo.world.rank == 0
    trunk: Trunk | None = ppo.policy.trunk

    def merged(name: str | None) -> AbstractContextManager[None]:
        return nullcontext() if trunk is None or name is None else trunk.merged(name)

    @contextmanager
    def values() -> Iterator[ValueParts]:
        """Give what gives the values; a value model is whole within the block alone."""
        seen = POLICY if ppo.reader is None else ppo.reader.module.name
        with (run.value or run.policy).full_module() as module, merged(seen):
            yield _value_parts(ppo, module) if main else ValueParts()

    # A head on the policy's trunk belongs to the trained weights, which the average overwrites;
    # it is copied with its trunk, and stays.
    copied: ValueParts | None = None
    if run.average is not None and run.value is None:
        with values() as copied:
            pass
    if run.average is not None:
        run.average.copy_to(ppo.policy)
    with run.policy.full_module() as policy, merged(POLICY):
        if main:
            save_model(policy.model, ppo.tokenizer, folder / "model")
    if trunk is not None and main:
        trunk.save(POLICY, folder / "adapter", task="CAUSAL_LM")
    with values() if copied is None else nullcontext(copied) as parts:
        _save_values(ppo, parts, folder)


def keep_policy(ppo: Ppo, folder: Path, update: int) -> None:
    """Write the policy of now to `folder/model`, in place of one that was kept before.

    Called on every process; `folder/update.json` tells the number of finished updates. A run that
    is killed meanwhile and goes on comes to the same policy again, and keeps it anew.
    """
    trunk: Trunk | None = ppo.policy.trunk
    with (
        ppo.optimization.policy.full_module() as policy,
        nullcontext() if trunk is None else trunk.merged(POLICY),
    ):
        if ppo.world.rank == 0:
            with storage_errors(folder):
                shutil.rmtree(folder, ignore_errors=True)
                save_model(policy.model, ppo.tokenizer, folder / "model")
                write_atomically(folder / UPDATE, json.dumps({"update": update}))


def _save_values(ppo: Ppo, parts: ValueParts, folder: Path) -> None:
    if parts.model is not None:
        save_model(parts.model, ppo.tokenizer, folder / "value_model")
    if parts.head is not None:
        with storage_errors(folder):
            save_file(parts.head, folder / HEAD)


def try_saving_models(context: StageContext[Any], ppo: Ppo) -> None:
    """Find out before the first update whether what `save_models` writes can be saved.

    Raises:
        ModelError: transformers refuses, with its reason.
    """
    try_saving(context, ppo.policy.model, ppo.tokenizer)
    run = ppo.optimization
    if run.value is not None and isinstance(ppo.world.unwrapped(run.value.module), ValueModel):
        try_saving(context, ppo.world.unwrapped(run.value.module).model, ppo.tokenizer)
    elif _token_classifier(ppo.policy.model.config) is None:
        context.say(
            f"transformers has no token classifier for {ppo.policy.model.config.model_type}: the "
            f"value head is published alone, as {HEAD}"
        )


@dataclass(frozen=True)
class ValueParts:
    """What gives the values: a model, and a head where there is no class of both.

    Neither on a process that writes nothing.
    """

    model: Any = None
    head: dict[str, Tensor] | None = None


def _value_parts(ppo: Ppo, module: nn.Module) -> ValueParts:
    """Return the value model, whole; a head is put onto the trunk that it reads."""
    if isinstance(module, ValueModel):
        return ValueParts(module.model, _weights(module.value_head))
    trunk: Any = ppo.policy.model if isinstance(module, ValueReader) else module.model
    head = module.value_head
    assert isinstance(head, nn.Linear)
    if _token_classifier(trunk.config) is None:
        return ValueParts(head=_weights(head))
    return ValueParts(_as_value_model(trunk, head))


def _weights(head: nn.Linear | None) -> dict[str, Tensor] | None:
    if head is None:
        return None
    return {name: tensor.detach().cpu().clone() for name, tensor in head.state_dict().items()}


def _token_classifier(config: Any) -> Any:
    """Return a token classifier of one label without weights; None where there is no fitting one.

    Fitting is one whose head is a linear layer with a bias. Those of encoder-decoders are none:
    T5's reads the encoder alone.
    """
    from transformers import AutoModelForTokenClassification

    if config.is_encoder_decoder:
        return None
    config = copy.deepcopy(config)
    config.num_labels = 1
    try:
        with torch.device("meta"):
            value = AutoModelForTokenClassification.from_config(config)
        return None if value_head(value).bias is None else value
    except (ModelError, ValueError, KeyError):
        return None


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
        target.bias.copy_(head.bias)
    return value
