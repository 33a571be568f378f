"""Where the time of a step goes, and how near its matrix products come to products alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm")
TRIES = 4


def tell_profile(step: Callable[[], Any], *, bf16: bool, seconds: float) -> None:
    """Print a step's slowest operators; its products' share and speed, and their speed alone.

    The same shapes are multiplied alone, the fastest of some tries counts: what the products of a
    step could reach on this machine if nothing stood between them. The profiler makes a step much
    longer, so that this is set against a step that ran without it.

    Args:
        step: what to look at.
        bf16: whether the step's products are in bf16, fp32 else.
        seconds: of such a step without the profiler.
    """
    import torch

    with torch.profiler.profile(record_shapes=True, with_flops=True) as profile:
        step()
    print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=15))
    events = profile.key_averages(group_by_input_shape=True)
    spent = sum(event.self_cpu_time_total for event in events)
    dtype = torch.bfloat16 if bf16 else torch.float32
    busy = flops = alone = 0.0
    for event in events:
        shapes = [shape for shape in event.input_shapes if len(shape) > 1][:2]
        if event.key not in PRODUCTS or len(shapes) < 2 or not event.flops:
            continue
        busy += event.self_cpu_time_total
        flops += event.flops
        a, b = (torch.randn(*shape, dtype=dtype) for shape in shapes)
        alone += event.count * min(_seconds(partial(torch.matmul, a, b)) for _ in range(TRIES))
    print(
        f"matrix products: {busy / spent:.0%} of the profiled time; the same shapes alone take "
        f"{alone:.2f} s at {flops / alone / 1e9:.0f} GFLOP/s, and a step without the profiler "
        f"{seconds:.2f} s, {seconds / alone:.1f} times as long, which is "
        f"{flops / seconds / 1e9:.0f} GFLOP/s"
    )


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
