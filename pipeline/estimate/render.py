"""An estimate as a table, as plain lines, and as JSON."""

from __future__ import annotations

import json
from typing import Any

from pipeline.estimate.model.costs import StageCost
from pipeline.estimate.model.hardware import GIB
from pipeline.estimate.planner import Plan, Verdict

COLUMNS = ("stage", "parameters", "steps", "tokens", "FLOPs", "hours", "GiB a GPU", "fits")


def count(value: float) -> str:
    """Return a number with three digits and a unit.

    >>> count(134_515_008), count(950)
    ('135M', '950')
    """
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:,.0f}"


def gib(value: float) -> str:
    """Return bytes as GiB, in three digits."""
    return f"{value / GIB:.3g}"


def hours(value: float) -> str:
    """Return hours, minutes or seconds, whichever reads well."""
    if value >= 1:
        return f"{value:.3g} h"
    return f"{value * 60:.2g} min" if value * 60 >= 1 else f"{value * 3600:.2g} s"


def row_of(verdict: Verdict) -> tuple[str, ...]:
    """Return a stage's line of the table, as `COLUMNS`."""
    cost = verdict.cost
    return (
        cost.stage,
        count(sum(cost.parameters.values())),
        "" if cost.steps is None else f"{cost.steps:,}",
        count(sum(part.tokens for part in cost.parts)),
        f"{cost.flops:.2e}",
        hours(cost.hours),
        gib(cost.peak.total),
        "yes" if verdict.fits else "NO",
    )


def details(plan: Plan) -> list[str]:
    """Return the lines below the table: memory by component, work, assumptions, changes."""
    lines = []
    for verdict in plan.verdicts:
        cost = verdict.cost
        lines += ["", f"{cost.stage} ({cost.kind}, {_spread(cost)})"]
        lines += [f"  {line}" for line in _stage_lines(plan, verdict)]
    rates = plan.assumed.rates
    accelerator = plan.cluster.accelerator
    lines += [
        "",
        f"assumed: {rates.utilisation:.0%} of a peak of {accelerator.bf16 / 1e12:.4g} TFLOP/s in "
        f"bf16 and {accelerator.fp32 / 1e12:.3g} in fp32 (--utilisation), {rates.bandwidth:.0%} of "
        f"{accelerator.bandwidth / 1e9:,.0f} GB/s in decoding (--bandwidth), no block faster than "
        f"{rates.overhead * 1e3:g} ms (--overhead), {plan.cluster.reserve:.0%} of the memory left "
        "free (--reserve)",
    ]
    if accelerator.note:
        lines.append(f"{accelerator.name}: {accelerator.note}")
    lines.append(f"all stages: {hours(plan.hours)}, {_device_hours(plan)} GPU hours")
    return lines


def _device_hours(plan: Plan) -> str:
    return f"{sum(v.cost.hours * v.cost.layout.processes for v in plan.verdicts):.3g}"


def _spread(cost: StageCost) -> str:
    if cost.layout.processes == 1:
        return "one GPU"
    return f"{cost.layout.processes} GPUs, {cost.layout.sharding}"


def _stage_lines(plan: Plan, verdict: Verdict) -> list[str]:
    cost = verdict.cost
    models = ", ".join(f"{name} {size:,}" for name, size in cost.parameters.items())
    lines = [f"models: {models}"]
    parts = [f"{n} {gib(b)}" for n, b in cost.peak.components.items() if b >= 0.0005 * GIB]
    lines.append(f"memory, {cost.peak.name}: {' + '.join(parts)} = {gib(cost.peak.total)} GiB")
    work = [
        f"{part.name} {part.flops:.2e} FLOP {hours(part.seconds / 3600)}" for part in cost.parts
    ]
    lines.append(f"work: {'; '.join(work)}")
    lines += [f"assumed: {sentence}" for sentence in verdict.assumed]
    lines += [f"problem: {sentence}" for sentence in cost.problems]
    if verdict.fits:
        return lines
    usable = gib(plan.cluster.usable)
    lines.append(f"does not fit: {gib(cost.peak.total)} GiB of {usable} GiB")
    for advice in verdict.advice:
        verb = "fits with" if advice.fits else "nearest, but too large still:"
        lines.append(f"{verb} {advice.change}: {gib(advice.memory)} GiB")
    if not verdict.advice:
        lines.append("nothing to change in its settings: take a larger GPU or a smaller model")
    return lines


def print_plan(plan: Plan, *, as_json: bool, terminal: bool) -> None:
    """Print an estimate: JSON, a table on a terminal, tab-separated lines elsewhere."""
    if as_json:
        print(json.dumps(to_json(plan), indent=2))
        return
    usable = f"{gib(plan.cluster.usable)} GiB usable each"
    print(f"{plan.recipe} on {plan.cluster.title}, {usable}; nothing is started")
    rows = [row_of(verdict) for verdict in plan.verdicts]
    if terminal:
        from rich.console import Console
        from rich.table import Table

        table = Table(*COLUMNS, box=None, header_style="bold")
        for row in rows:
            table.add_row(*row, style=None if row[-1] == "yes" else "bold red")
        Console().print(table)
    else:
        for row in (COLUMNS, *rows):
            print("\t".join(row))
    print("\n".join(details(plan)))


def to_json(plan: Plan) -> dict[str, Any]:
    """Return an estimate as JSON holds it; bytes, FLOPs, seconds."""
    cluster, rates = plan.cluster, plan.assumed.rates
    return {
        "recipe": plan.recipe,
        "accelerator": {
            "name": cluster.accelerator.name,
            "count": cluster.size,
            "nodes": cluster.nodes,
            "memory_bytes": cluster.accelerator.memory,
            "usable_bytes": cluster.usable,
            "bf16_flops_per_second": cluster.accelerator.bf16,
            "fp32_flops_per_second": cluster.accelerator.fp32,
            "bandwidth_bytes_per_second": cluster.accelerator.bandwidth,
            "note": cluster.accelerator.note,
        },
        "assumed": {
            "utilisation": rates.utilisation,
            "bandwidth": rates.bandwidth,
            "overhead_seconds": rates.overhead,
            "reserve": cluster.reserve,
        },
        "hours": plan.hours,
        "stages": [_stage_json(verdict) for verdict in plan.verdicts],
    }


def _stage_json(verdict: Verdict) -> dict[str, Any]:
    cost = verdict.cost
    return {
        "stage": cost.stage,
        "kind": cost.kind,
        "gpus": cost.layout.processes,
        "sharding": cost.layout.sharding,
        "parameters": cost.parameters,
        "steps": cost.steps,
        "flops": cost.flops,
        "hours": cost.hours,
        "memory_bytes": cost.peak.total,
        "fits": verdict.fits,
        "phases": [
            {"name": phase.name, "bytes": phase.total, "components": phase.components}
            for phase in cost.phases
        ],
        "parts": [
            {"name": p.name, "flops": p.flops, "seconds": p.seconds, "tokens": p.tokens}
            for p in cost.parts
        ],
        "assumed": verdict.assumed,
        "problems": cost.problems,
        "advice": [
            {"change": a.change, "memory_bytes": a.memory, "fits": a.fits} for a in verdict.advice
        ],
    }
