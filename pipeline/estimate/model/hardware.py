"""Accelerators: memory, peak speed and bandwidth, as their makers' public data sheets give them.

Peaks are of dense matrix products, without sparsity. NVIDIA: data sheets of A100 (2021), H100 and
H200 (SXM), L40S, HGX B200, and the Ada architecture's white paper (RTX 4090, products in bf16 that
add up in fp32). AMD: MI300X data sheet. Where a sheet prints a figure with sparsity, half of it
stands here. The B200's fp32 figure is that of the HGX board's sheet over its eight GPUs.

Sheets say "80 GB" where the driver counts 80 GiB, so the memory is read as GiB; what the driver,
the CUDA context and the allocator's gaps take is the reserve that `Cluster` keeps free.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from data.errors import UsageError, nearest

GIB = 2**30


@dataclass(frozen=True)
class Accelerator:
    """One accelerator.

    Attributes:
        name: as `--gpus` takes it.
        memory: bytes.
        bf16: peak of bf16 matrix products, FLOP/s; 0 where it has none in hardware.
        fp32: peak of fp32 matrix products without TF32, FLOP/s.
        bandwidth: of its memory, bytes/s.
        note: what of this is assumed, measured or worth knowing; empty for a data sheet's figures.
    """

    name: str
    memory: float
    bf16: float
    fp32: float
    bandwidth: float
    note: str = ""

    def peak(self, *, bf16: bool) -> float:
        """Return the peak of matrix products in FLOP/s."""
        return self.bf16 if bf16 and self.bf16 else self.fp32


def _sheet(name: str, gib: float, bf16: float, fp32: float, bandwidth: float) -> Accelerator:
    """Return an accelerator from GiB, TFLOP/s, TFLOP/s and TB/s."""
    return Accelerator(name, gib * GIB, bf16 * 1e12, fp32 * 1e12, bandwidth * 1e12)


TABLE = {
    sheet.name: sheet
    for sheet in (
        _sheet("A100-40GB", 40, 312, 19.5, 1.555),
        _sheet("A100-80GB", 80, 312, 19.5, 2.039),
        _sheet("H100-80GB", 80, 989.4, 67, 3.35),
        _sheet("H200-141GB", 141, 989.4, 67, 4.8),
        _sheet("B200-180GB", 180, 2250, 80, 8.0),
        _sheet("L40S-48GB", 48, 362.05, 91.6, 0.864),
        _sheet("RTX4090-24GB", 24, 165.2, 82.6, 1.008),
        _sheet("MI300X-192GB", 192, 1307.4, 163.4, 5.3),
    )
}
"""The accelerators that are known by name; "B200" alone is enough where there is one of a name."""

FP32_SHARE = 1 / 16
"""Share of the bf16 peak that a custom accelerator is assumed to reach in fp32 (A100: 1/16)."""
FLOPS_PER_BYTE = 200
"""FLOP for each byte of bandwidth that a custom accelerator is assumed to have (RTX 4090: 164,
A100-80GB: 153, H100: 295)."""

_COUNTED = re.compile(r"(?:(\d+)\s*x)?\s*(.+)", re.IGNORECASE)
_CUSTOM = re.compile(
    r"(\d+(?:\.\d+)?)\s*GB\s*@\s*(\d+(?:\.\d+)?)\s*TFLOPS(?:\s*@\s*(\d+(?:\.\d+)?)\s*GB/s)?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Cluster:
    """Equal accelerators on equal nodes.

    Attributes:
        accelerator: each of them.
        per_node: of one node.
        nodes: how many.
        reserve: share of the memory that is left free for driver, libraries and gaps.
    """

    accelerator: Accelerator
    per_node: int = 1
    nodes: int = 1
    reserve: float = 0.1

    @property
    def size(self) -> int:
        """Number of accelerators."""
        return self.per_node * self.nodes

    @property
    def usable(self) -> float:
        """Bytes of each accelerator that a run may fill."""
        return self.accelerator.memory * (1 - self.reserve)

    @property
    def title(self) -> str:
        """How the cluster is called."""
        nodes = f", {self.nodes} nodes" if self.nodes > 1 else ""
        return f"{self.size} x {self.accelerator.name}{nodes}"


def parse_gpus(text: str, *, nodes: int = 1, reserve: float = 0.1) -> Cluster:
    """Read `8xH100-80GB`, `H100`, `4x24GB@165TFLOPS`, `4x24GB@165TFLOPS@1000GB/s`, `cpu`, `2xcpu`.

    Args:
        text: accelerators of one node.
        nodes: how many nodes.
        reserve: share of the memory that is left free.

    Raises:
        UsageError: no such accelerator; names the nearest.
    """
    counted = _COUNTED.fullmatch(text.strip())
    if counted is None or counted[1] == "0":
        raise UsageError(f"--gpus {text!r}: write it as 8xH100-80GB or 4x24GB@165TFLOPS")
    name = counted[2].strip()
    custom = _CUSTOM.fullmatch(name)
    if custom is not None:
        accelerator = _custom(name, *custom.groups())
    elif name.lower() == "cpu":
        accelerator = this_machine(int(counted[1] or 1))
    else:
        accelerator = _known(name, text)
    return Cluster(accelerator, int(counted[1] or 1), nodes, reserve)


def _known(name: str, text: str) -> Accelerator:
    wanted = re.sub(r"[\s_]", "-", name.upper())
    fitting = [a for key, a in TABLE.items() if key == wanted or key.split("-")[0] == wanted]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise UsageError(f"--gpus {text}: say which: {' or '.join(a.name for a in fitting)}")
    known = ", ".join([*TABLE, "cpu"])
    raise UsageError(
        f"--gpus {text}: '{name}' is no accelerator that is known here; known: {known}; any other "
        f"as 4x24GB@165TFLOPS (bf16, without sparsity).{nearest(wanted, [*TABLE, 'cpu'])}"
    )


def _custom(name: str, memory: str, speed: str, bandwidth: str | None) -> Accelerator:
    peak = float(speed) * 1e12
    note = f"fp32 assumed at 1/16 of its bf16 peak ({peak * FP32_SHARE / 1e12:.3g} TFLOP/s)"
    if not float(memory) or not peak or (bandwidth is not None and not float(bandwidth)):
        raise UsageError(f"--gpus {name}: memory, speed and bandwidth must be above 0")
    if bandwidth is None:
        note += f"; bandwidth assumed at {peak / FLOPS_PER_BYTE / 1e9:.0f} GB/s"
    return Accelerator(
        name=name,
        memory=float(memory) * GIB,
        bf16=peak,
        fp32=peak * FP32_SHARE,
        bandwidth=float(bandwidth) * 1e9 if bandwidth else peak / FLOPS_PER_BYTE,
        note=note,
    )


def this_machine(processes: int = 1) -> Accelerator:
    """Return this machine's processor, its speed measured by a matrix product and a copy.

    Args:
        processes: that share memory and cores.
    """
    import os
    import time

    import torch

    from pipeline.models.load import bf16_supported

    def seconds(work: object, repeat: int = 15) -> float:
        assert callable(work)
        work()
        times = []
        for _ in range(repeat):
            started = time.perf_counter()
            work()
            times.append(time.perf_counter() - started)
        return min(times)

    def product_rate(dtype: torch.dtype, width: int = 1024) -> float:
        matrix = torch.rand(width, width).to(dtype)
        return 2 * width**3 / seconds(lambda: matrix @ matrix)

    fp32 = product_rate(torch.float32)
    bf16 = product_rate(torch.bfloat16) if bf16_supported("cpu") else 0.0
    large = torch.rand(2**24)
    copy = torch.empty_like(large)
    bandwidth = 2 * 4 * large.numel() / seconds(lambda: copy.copy_(large))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Accelerator(
        name="cpu",
        memory=memory / processes,
        bf16=bf16 / processes,
        fp32=fp32 / processes,
        bandwidth=bandwidth / processes,
        note=f"this machine, measured: {fp32 / 1e9:.0f} GFLOP/s in fp32 products"
        + (f" and {bf16 / 1e9:.0f} in bf16" if bf16 else "")
        + f" of {torch.get_num_threads()} threads, {bandwidth / 1e9:.0f} GB/s",
    )
