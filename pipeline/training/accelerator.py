"""The one place that knows how a model is spread over processes: as copies (DDP) or shards (FSDP2).

`TrainingAccelerator` is what pretraining, SFT, the reward model and PPO get from
`make_accelerator`. Where an accelerate configuration asks for FSDP, it calls torch's `fully_shard`
itself, on CPU and GPU alike: accelerate 1.15 turns such a configuration into DDP on a CPU without a
word, and so what runs on GPUs is what was tested on CPUs.

- Every decoder layer gathers its weights for itself, the rest of the model gathers its own at once;
  all give them back after their forward pass. Only the module that was prepared may be called.
- Gradients of a micro-batch are reduced at once, so that no process ever holds all of them.
- Saved states hold full tensors, so that they are the same on any number of processes, sharded or
  not; loading shards them again. They are gathered one by one, and kept on process 0 alone.
"""

from __future__ import annotations

import contextlib
import copy
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from data.errors import UsageError
from pipeline.contract.resume import load_state, restore_rng, rng_state, save_state
from pipeline.training.malloc import keep_freed_memory

SHARD = "RLHF_SHARD_WEIGHTS"
"""Set in the environment once a configuration's wish for FSDP has been taken over."""


def take_over_sharding() -> bool:
    """Take the wish for FSDP out of the environment that `accelerate launch` made; tell of it.

    accelerate and transformers would act on it by themselves: load weights on one process alone,
    or wrap modules in ways that differ between CPU and GPU.

    Raises:
        UsageError: the configuration asks for what is not done here.
    """
    wished = os.environ.pop("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if wished and os.environ.get("FSDP_VERSION", "1") != "2":
        raise UsageError("launch.config asks for FSDP 1; set fsdp_version: 2 in its fsdp_config")
    if wished and os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true":
        raise UsageError(
            "launch.config sets fsdp_offload_params, which is not supported; set it to false"
        )
    if wished:
        os.environ[SHARD] = "true"
    return SHARD in os.environ


def join_processes(*, max_norm: float | None) -> PartialState:
    """Join the processes of a launch and return accelerate's state of them.

    Args:
        max_norm: that a stage clips gradients to, for DeepSpeed, which clips by itself.

    Raises:
        UsageError: the configuration asks for what can't be done here.
    """
    take_over_sharding()
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        _require_deepspeed()
        os.environ["ACCELERATE_GRADIENT_CLIPPING"] = str(max_norm or 0.0)
        if not torch.cuda.is_available():
            return PartialState(backend="gloo")  # accelerate knows of none for it on processors
    return PartialState(cpu=not torch.cuda.is_available())


def make_accelerator(*, bf16: bool) -> TrainingAccelerator:
    """Return the accelerator of this process.

    The precision of an accelerator that an earlier stage made in this process is forgotten; its
    process group stays. The recipe's precision holds, whatever the configuration says.

    Raises:
        UsageError: the configuration asks for what can't be done here.
    """
    from accelerate.state import AcceleratorState

    take_over_sharding()
    AcceleratorState._reset_state(reset_partial_state=False)
    accelerator = TrainingAccelerator(mixed_precision="bf16" if bf16 else "no")
    if accelerator.deepspeed:
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        # accelerate refuses to go without where no data loader is prepared.
        engine = accelerator.state.deepspeed_plugin.deepspeed_config
        engine["train_micro_batch_size_per_gpu"] = 1
        # Else transformers would load sharded weights, whatever `zero3_init_flag` says.
        unset_hf_deepspeed_config()
    return accelerator


def _require_deepspeed() -> None:
    from importlib.util import find_spec

    if find_spec("deepspeed") is None:
        raise UsageError(
            "launch.config asks for DeepSpeed, and the package deepspeed is not installed; install "
            "it, or use an FSDP2 configuration, such as recipes/launch/fsdp2.yaml"
        )


class TrainingAccelerator(Accelerator):  # type: ignore[misc]
    """accelerate's, that shards by `fully_shard` and saves full tensors."""

    @classmethod
    def adopt(cls, accelerator: Accelerator) -> TrainingAccelerator:
        """Make one of an accelerator that a library made; it has no state of its own."""
        accelerator.__class__ = cls
        assert isinstance(accelerator, cls)
        return accelerator

    @property
    def sharded(self) -> bool:
        """Whether no process holds all weights."""
        return SHARD in os.environ and self.num_processes > 1

    @property
    def deepspeed(self) -> bool:
        """Whether DeepSpeed clips, steps and saves."""
        return bool(self.distributed_type == DistributedType.DEEPSPEED)

    def prepare(self, *objects: Any, **options: Any) -> Any:
        """Spread modules and their optimisers, given in one call, over the processes."""
        modules = [o for o in objects if isinstance(o, nn.Module)]
        if self.device.type == "cpu":
            keep_freed_memory(
                largest=max((p.nbytes for m in modules for p in m.parameters()), default=0)
            )
        if not self.sharded or not modules:
            return super().prepare(*objects, **options)
        before = {id(p): (m, n) for m in modules for n, p in m.named_parameters()}
        for module in modules:
            self.shard(module)
        after = {m: dict(m.named_parameters()) for m in modules}
        prepared = []
        for thing in objects:
            if isinstance(thing, torch.optim.Optimizer):
                for group in thing.param_groups:
                    places = [before[id(p)] for p in group["params"]]
                    group["params"] = [after[module][name] for module, name in places]
                hooks: Any = thing
                hooks.register_load_state_dict_pre_hook(_shard_optimizer_state)
                thing = super().prepare(thing, **options)
            prepared.append(thing)
        return prepared[0] if len(prepared) == 1 else tuple(prepared)

    def shard(self, module: nn.Module) -> nn.Module:
        """Shard a module in place if weights are sharded, and return it."""
        if not self.sharded:
            return module
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        # No caller writes into what a module returned.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
        self.prepare_model(module, evaluation_mode=True)  # device and mixed precision
        mesh = init_device_mesh(self.device.type, (self.num_processes,))
        kinds = {
            kind
            for part in module.modules()
            for kind in getattr(part, "_no_split_modules", None) or ()
        }
        uses = _uses(module)
        for part in list(module.modules()):
            # Weights that are tied to some outside of a part, as an encoder's embedding to its
            # output head, are gathered with the rest of the model.
            whole = all(uses[tensor] == count for tensor, count in _uses(part).items())
            if type(part).__name__ in kinds and part is not module and whole:
                fully_shard(part, mesh=mesh, reshard_after_forward=True)
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
        untyped: Any = module
        untyped.register_load_state_dict_pre_hook(_shard_module_state)
        return module

    def no_sync(self, model: nn.Module) -> contextlib.AbstractContextManager[Any]:
        """Keep the gradients of a micro-batch here; sharded ones are always reduced."""
        if self.sharded:
            return contextlib.nullcontext()
        context: contextlib.AbstractContextManager[Any] = super().no_sync(model)
        return context

    def gradient_sync(self, *models: nn.Module, when: bool) -> contextlib.ExitStack:
        """Return a context in which gradients are summed over processes only if `when`."""
        self.gradient_state._set_sync_gradients(when)  # DeepSpeed steps by this
        stack = contextlib.ExitStack()
        if not when:
            for model in models:
                stack.enter_context(self.no_sync(model))
        return stack

    def summed(self, numbers: Sequence[float]) -> list[float]:
        """Return the sum of each number over all processes."""
        if self.num_processes == 1:
            return list(numbers)
        summands = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        sums: list[float] = self.reduce(summands, reduction="sum").tolist()
        return sums

    def clip_grad_norm_(self, parameters: Any, max_norm: float, norm_type: float = 2) -> Any:
        """Clip the gradient's global norm and return it."""
        norm = super().clip_grad_norm_(parameters, max_norm, norm_type)
        return full_tensor(norm) if isinstance(norm, Tensor) else norm

    def get_state_dict(self, model: nn.Module, unwrap: bool = True) -> dict[str, Any]:
        """Return the `gathered` weights under the bare module's names."""
        if self.deepspeed and self.state.deepspeed_plugin.zero_stage == 3:
            weights: dict[str, Any] = super().get_state_dict(model, unwrap)
            return weights
        return gathered_state(self.unwrap_model(model))

    def save_state(self, folder: str, **options: Any) -> Any:
        """Save modules, optimisers and this process's random state; called on every process."""
        if self.deepspeed:
            return super().save_state(folder, **options)
        state = {
            "models": [self.get_state_dict(model) for model in self._models],
            "optimizers": [gathered_optimizer_state(optimizer) for optimizer in self._optimizers],
        }
        save_state(Path(folder) / f"rng-{self.process_index}.pt", rng_state())
        if self.is_main_process:
            save_state(Path(folder) / "accelerator.pt", state)
        return folder

    def load_state(self, folder: str, **options: Any) -> None:
        """Restore what `save_state` saved, on any number of processes."""
        if self.deepspeed:
            super().load_state(folder, **options)
            return
        state = load_state(Path(folder) / "accelerator.pt")
        for model, weights in zip(self._models, state["models"], strict=True):
            self.unwrap_model(model).load_state_dict(weights)
        for optimizer, content in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(content)
        restore_own_rng(Path(folder), self.process_index)


def _uses(module: nn.Module) -> Counter[int]:
    """Return how often a module has each of its parameters, by their ids."""
    return Counter(id(p) for _, p in module.named_parameters(remove_duplicate=False))


def restore_own_rng(folder: Path, rank: int) -> None:
    """Restore a process's random state, if the state was saved with as many processes."""
    path = folder / f"rng-{rank}.pt"
    if path.is_file():
        restore_rng(load_state(path))


def is_sharded(module: nn.Module) -> bool:
    """Tell whether a module's weights are spread over processes."""
    return any(isinstance(p, DTensor) for p in module.parameters())


def full_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor with the parts of all processes; on every process."""
    if not isinstance(tensor, DTensor):
        return tensor
    full: Tensor = tensor.full_tensor()
    return full


# torch.distributed.checkpoint.state_dict (torch 2.13) gathers too. But asked for the state of an
# optimiser that has none yet it takes a step, so that Adam counts one too many; it can't load
# moments that are numbered, as ours are; and it gathers and saves a tied weight under each name.


def gathered(tensor: Tensor) -> Tensor:
    """Return a tensor with the parts of all processes, for process 0 to save.

    A sharded one comes to its processor; the others, which call it too, get an empty tensor: the
    whole model and its moments need not fit onto a device.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    full = full_tensor(tensor)
    return full.cpu() if tensor.device_mesh.get_rank() == 0 else full.new_empty(0)


def gathered_state(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's `gathered` weights by name; a tensor of two names is gathered once."""
    by_id: dict[int, Tensor] = {}
    state = module.state_dict(keep_vars=True)
    for tensor in state.values():
        if id(tensor) not in by_id:
            by_id[id(tensor)] = gathered(tensor.detach())
    return {name: by_id[id(tensor)] for name, tensor in state.items()}


def gathered_optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimiser's state with `gathered` tensors."""
    state: dict[str, Any] = optimizer.state_dict()
    moments = {
        number: {k: gathered(v) if isinstance(v, Tensor) else v for k, v in entry.items()}
        for number, entry in state["state"].items()
    }
    return {**state, "state": moments}


def sharded_like(full: Tensor, like: Tensor) -> Tensor:
    """Return this process's part of a full tensor, where `like` is sharded; else the tensor."""
    if not isinstance(like, DTensor) or isinstance(full, DTensor):
        return full
    # Every process holds the full tensor, so that none has to be sent.
    return distribute_tensor(
        full.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )


def _shard_module_state(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Shard full weights before they are loaded; a tensor of two names may be there as one."""
    names: dict[int, list[str]] = {}
    tensors = module.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), []).append(prefix + name)
    for tensor in tensors.values():
        alike = names[id(tensor)]
        given = [state[name] for name in alike if name in state]
        if given:
            state.update(dict.fromkeys(alike, sharded_like(given[0], tensor)))


def _shard_optimizer_state(
    optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
) -> dict[str, Any]:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    moments = dict(state["state"])
    for number, parameter in zip(numbers, parameters, strict=True):
        if number in moments:
            moments[number] = {
                name: sharded_like(value, parameter)
                if isinstance(value, Tensor) and value.shape == parameter.shape
                else value
                for name, value in moments[number].items()
            }
    return {**state, "state": moments}


def hollow_copy(module: nn.Module) -> nn.Module:
    """Return a copy of a module whose parameters are empty, to be filled by `filled`."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(p.detach().new_empty(0), requires_grad=False)
        for p in module.parameters()
    }
    return copy.deepcopy(module, memo)


@contextlib.contextmanager
def filled(hollow: nn.Module, module: nn.Module) -> Iterator[nn.Module]:
    """Fill a hollow copy with the full weights of its sharded module while the block runs.

    So that a process can call it when and as often as it likes, without the others: responses end
    at different steps. Called on every process.
    """
    named = dict(hollow.named_parameters())
    for name, parameter in module.named_parameters():
        named[name].data = full_tensor(parameter.detach())
    try:
        yield hollow
    finally:
        for parameter in named.values():
            parameter.data = parameter.data.new_empty(0)
