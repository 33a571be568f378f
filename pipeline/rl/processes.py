"""The processes of a run, through one `Accelerator`: sums over them, gradients, random numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from data.errors import RlhfError, UsageError
from pipeline.training.accelerator import make_accelerator

__all__ = ["World", "derived_seed", "make_accelerator"]

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class World:
    """The processes of a run.

    Attributes:
        accelerator: accelerate's, which wrapped the modules and optimisers.
        seed: of the stage.
    """

    accelerator: Any
    seed: int

    def __post_init__(self) -> None:
        """Refuse an engine that steps by itself and takes one model alone.

        Raises:
            UsageError: DeepSpeed is to run the processes.
        """
        if str(getattr(self.accelerator, "distributed_type", "")).endswith("DEEPSPEED"):
            raise UsageError(
                "launch.config asks for DeepSpeed, which takes one model a run, and PPO trains a "
                "policy and a value model; use an FSDP2 configuration (recipes/launch/fsdp2.yaml)"
            )

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        return int(self.accelerator.process_index)

    @property
    def size(self) -> int:
        """Number of processes."""
        return int(self.accelerator.num_processes)

    @property
    def device(self) -> torch.device:
        """Device of this process."""
        device: torch.device = self.accelerator.device
        return device

    @property
    def bf16(self) -> bool:
        """Whether products are in bf16."""
        return bool(self.accelerator.mixed_precision == "bf16")

    def sum(self, values: Tensor) -> Tensor:
        """Add up a tensor over all processes."""
        if self.size == 1:
            return values
        summed: Tensor = self.accelerator.reduce(values, reduction="sum")
        return summed

    def every(self, value: int) -> list[int]:
        """Return the number that each process has."""
        if self.size == 1:
            return [value]
        gathered = self.accelerator.gather(torch.tensor([value], device=self.device))
        return [int(v) for v in gathered.tolist()]

    def gather(self, value: Any) -> list[Any]:
        """Return the value of each process, on every process."""
        if self.size == 1:
            return [value]
        from accelerate.utils import gather_object

        gathered: list[Any] = gather_object([value])
        return gathered

    def everywhere(self, compute: Callable[[], T], *, failure: type[RlhfError]) -> T:
        """Compute on every process, and fail on all of them alike where one does.

        Else the others would wait for it until they time out, and none could save its state.

        Args:
            compute: the work of this process.
            failure: what is raised on many processes, with the first one's sentence.
        """
        if self.size == 1:
            return compute()
        error: RlhfError | None = None
        results: list[T] = []
        try:
            results.append(compute())
        except RlhfError as raised:
            error = raised
        failures = [text for text in self.gather(None if error is None else str(error)) if text]
        if failures:
            raise failure(failures[0]) from error
        return results[0]

    def share(self, items: Sequence[T]) -> list[T]:
        """Return this process's share of what all processes hold; sizes differ by one at most."""
        return list(items[self.rank :: self.size])

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part of the weights alone."""
        return bool(getattr(self.accelerator, "sharded", False))

    def place(self, module: M) -> M:
        """Shard a module that is not trained, in place, if weights are sharded."""
        if self.sharded:
            self.accelerator.shard(module)
        return module

    def autocast(self) -> Any:
        """Return the context of mixed precision for calls that bypass the wrapped modules."""
        return self.accelerator.autocast()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss that is a sum over a *global* count."""
        # Data parallelism takes the mean of the gradients over processes, the count wants the sum.
        self.accelerator.backward(loss * self.size)

    def unwrapped(self, module: nn.Module) -> Any:
        """Return a module without what data parallelism wrapped it in."""
        return self.accelerator.unwrap_model(module)

    def generator(self, purpose: str, *numbers: int) -> torch.Generator:
        """Return a random generator that depends on the seed, a purpose and numbers alone."""
        # Made anew where it is used, so that a resumed run needs no state of it.
        return torch.Generator().manual_seed(derived_seed(self.seed, purpose, *numbers))


def derived_seed(seed: int, purpose: str, *numbers: int) -> int:
    """Return a seed for one purpose, unrelated to those of others."""
    text = "/".join(map(str, (seed, purpose, *numbers)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
