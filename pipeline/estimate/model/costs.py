"""What an estimate of a stage consists of, and how FLOPs become hours."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pipeline.estimate.model.assumptions import Rates
from pipeline.estimate.model.flops import decoding_flops
from pipeline.estimate.model.hardware import Accelerator, Cluster
from pipeline.estimate.model.memory import gradient_bytes
from pipeline.estimate.model.shapes import ModelShape

Sharding = Literal["none", "ddp", "fsdp2"]


@dataclass(frozen=True)
class Layout:
    """How a stage is spread over accelerators.

    Attributes:
        processes: accelerators that work on it.
        sharding: "none" on one, "ddp" with whole copies, "fsdp2" with weights, gradients and
            Adam's moments in equal shards.
    """

    processes: int
    sharding: Sharding

    def share(self, parameters: float) -> float:
        """Return the trained parameters whose state one accelerator keeps."""
        return parameters / self.processes if self.sharding == "fsdp2" else parameters

    def gradients(self, parameters: float) -> float:
        """Return the bytes of the gradients on one accelerator."""
        return gradient_bytes(self.share(parameters), buckets=self.sharding == "ddp")


@dataclass(frozen=True)
class Phase:
    """A moment of a stage and the bytes on each accelerator by component."""

    name: str
    components: dict[str, float]

    @property
    def total(self) -> float:
        """Bytes in all."""
        return sum(self.components.values())


@dataclass(frozen=True)
class Part:
    """Part of a stage's work.

    Attributes:
        name: what is done.
        flops: over all accelerators.
        seconds: on all of them together.
        tokens: that it goes over.
    """

    name: str
    flops: float
    seconds: float
    tokens: float


@dataclass
class StageCost:
    """What a stage would cost.

    Attributes:
        stage: its name.
        kind: its kind.
        layout: how it is spread.
        accelerator: each of those it is spread over.
        rates: how much of their peak is reached.
        parameters: of each model that it works with.
        phases: memory at each moment.
        parts: the work.
        steps: optimiser's steps, None where nothing is trained.
        problems: why it would not start as it is.
    """

    stage: str
    kind: str
    layout: Layout
    accelerator: Accelerator
    rates: Rates
    parameters: dict[str, int] = field(default_factory=dict)
    phases: list[Phase] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    steps: int | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def peak(self) -> Phase:
        """The moment that takes the most memory."""
        return max(self.phases, key=lambda phase: phase.total, default=Phase("", {}))

    @property
    def flops(self) -> float:
        """FLOPs of the whole stage."""
        return sum(part.flops for part in self.parts)

    @property
    def hours(self) -> float:
        """Hours of the whole stage."""
        return sum(part.seconds for part in self.parts) / 3600

    def fits(self, cluster: Cluster) -> bool:
        """Tell whether the most memory is what an accelerator has to give."""
        return self.peak.total <= cluster.usable

    def compute(
        self, name: str, shape: ModelShape, *, flops: float, tokens: float, passes: float,
        bf16: bool, training: bool = False,
    ) -> None:  # fmt: skip
        """Add a part whose time follows from its products, or from the number of passes.

        FLOPs and tokens are those of all accelerators, forward passes those of one.
        """
        least = passes * shape.layers * self.rates.overhead * (3 if training else 1)
        self.parts.append(Part(name, flops, max(self._busy(flops, bf16), least), tokens))

    def decode(
        self, name: str, shape: ModelShape, *, rows: float, batch: int, prompt: float, new: float,
        steps: float, bf16: bool, answers: int = 1,
    ) -> None:  # fmt: skip
        """Add the sampling of responses: each step reads all weights and the cache once.

        Pope et al. 2022, section 2.2: decoding small batches is bound by memory, a step takes the
        longer of its products and of reading weights and cache. `rows` are the responses on all
        accelerators, `answers` of them to each prompt; `batch` is decoded together on one, in so
        many steps; `prompt` and `new` are mean tokens.
        """
        flops = decoding_flops(shape, rows=rows, prompt=prompt, new=new, answers=answers)
        processes = self.layout.processes
        passes = max(1.0, rows / (processes * batch)) * steps
        width = 2 if bf16 else 4
        cache = 2 * width * shape.layers * shape.key_width * (prompt + new / 2)
        read = width * (shape.matrices + shape.head) + min(batch, rows / processes) * cache
        reading = passes * read / (self.accelerator.bandwidth * self.rates.bandwidth)
        least = passes * shape.layers * self.rates.overhead
        seconds = max(self._busy(flops, bf16), reading, least)
        self.parts.append(Part(name, flops, seconds, rows * new))

    def _busy(self, flops: float, bf16: bool) -> float:
        """Return the seconds that all accelerators together take for products."""
        peak = self.layout.processes * self.accelerator.peak(bf16=bf16)
        return flops / (peak * self.rates.utilisation)
