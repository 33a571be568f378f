"""`rlhf scaling`: how loss falls with size and tokens, fitted, planned by, and measured.

Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import QuietOption, command_line

scaling = typer.Typer(
    help="Scaling laws: run a grid, fit a law to runs, plan a budget by it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

FileArgument = Annotated[
    str,
    typer.Argument(
        metavar="FILE",
        help="CSV or JSON Lines of parameters, tokens and loss, a finished run a row.",
    ),
]
ColumnOption = Annotated[
    list[str] | None,
    typer.Option("--column", metavar="OURS=THEIRS", help="Its name in the file; repeatable."),
]
ResamplesOption = Annotated[
    int, typer.Option(min=40, max=100_000, help="Refits on runs drawn anew, for the intervals.")
]
SeedOption = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the draws.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@scaling.command()
def fit(
    file: FileArgument,
    column: ColumnOption = None,
    resamples: ResamplesOption = 400,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Fit Chinchilla's law to runs, with intervals, and Kaplan's beside it."""
    from data.sources.values import plain
    from pipeline.cli.score_file import parse_columns
    from pipeline.evaluation.scaling.fit import fit_report
    from pipeline.evaluation.scaling.points import read_points
    from pipeline.evaluation.scaling.text import fit_lines

    points = read_points(file, parse_columns(column or []))
    _, report = fit_report(points, resamples=resamples, seed=seed)
    # What the runs do not tell may be no number.
    typer.echo(json.dumps(plain(report), indent=2) if as_json else "\n".join(fit_lines(report)))


@scaling.command()
def plan(
    file: FileArgument,
    flops: Annotated[
        str | None, typer.Option(metavar="N", help="The budget, such as 1e21.")
    ] = None,
    hours: Annotated[
        float | None, typer.Option(min=0, help="The budget instead, on --gpus.")
    ] = None,
    gpus: Annotated[
        str | None, typer.Option(help="Of one node: 8xH100-80GB, 4x24GB@165TFLOPS (bf16), cpu.")
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes of so many GPUs.")] = 1,
    utilisation: Annotated[
        float, typer.Option(help="Share of the peak that training reaches.")
    ] = 0.35,
    column: ColumnOption = None,
    resamples: ResamplesOption = 400,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Tell the size and tokens with the lowest loss for a budget, by the law of these runs."""
    from data.errors import UsageError
    from data.sources.values import plain
    from pipeline.cli.score_file import parse_columns
    from pipeline.evaluation.scaling.fit import fit_chinchilla
    from pipeline.evaluation.scaling.plan import best_for, compute_factor
    from pipeline.evaluation.scaling.points import MOST_VALUE, read_points
    from pipeline.evaluation.scaling.text import plan_lines

    budget, hardware = _budget(flops, hours, gpus, nodes, utilisation)
    if not 1 <= budget < MOST_VALUE:
        raise UsageError(f"a budget of {budget:g} FLOPs: give one from 1 to below {MOST_VALUE:g}")
    points = read_points(file, parse_columns(column or []))
    fitted = fit_chinchilla(points, resamples=resamples, seed=seed)
    factor = compute_factor(points)
    found = {**best_for(fitted, points, budget, factor), "hardware": hardware}
    typer.echo(json.dumps(plain(found), indent=2) if as_json else "\n".join(plan_lines(found)))


@scaling.command()
def run(
    grid: Annotated[
        str,
        typer.Argument(metavar="[GRID]", help="YAML file of a grid, or the name of a shipped one."),
    ] = "world",
    out: Annotated[
        Path | None, typer.Option(help="Run folder; runs/scaling-GRID when not given.")
    ] = None,
    resamples: ResamplesOption = 400,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Pretrain a grid of small models and fit the law to them; a grid that was cut off goes on."""
    from data.errors import Interrupted
    from pipeline.contract.console import Console
    from pipeline.evaluation.scaling.text import fit_lines
    from pipeline.recipe.grid import load_grid

    path, settings = load_grid(grid)  # before torch is imported
    from pipeline.cli.scaling_grid import PAGE, run_grid

    console = Console(quiet=quiet or as_json)
    same = command_line("scaling run", Path(grid), {
        "--out": out, "--resamples": resamples, "--json": as_json, "--quiet": quiet,
    })  # fmt: skip
    try:
        folder, report = run_grid(path, settings, out, resamples=resamples, console=console)
    except (Interrupted, KeyboardInterrupt) as stopped:
        reason = str(stopped) or "stopped at once"
        raise Interrupted(f"{reason}; to go on: {same}") from stopped
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    elif not quiet:
        typer.echo("\n".join([*fit_lines(report), f"The page: {folder / PAGE}"]))


def _budget(
    flops: str | None, hours: float | None, gpus: str | None, nodes: int, utilisation: float
) -> tuple[float, str]:
    """Return the FLOPs of a budget, and what hardware they were reckoned from."""
    from data.errors import UsageError
    from pipeline.estimate.model.assumptions import Rates, parse_number
    from pipeline.estimate.model.hardware import parse_gpus

    if (flops is None) == (hours is None) or (hours is None) != (gpus is None):
        raise UsageError("a budget is --flops 1e21, or --hours 24 with --gpus 8xH100-80GB")
    if flops is not None:
        return parse_number(flops, option="--flops"), ""
    assert hours is not None and gpus is not None
    if not hours:
        raise UsageError("--hours 0: a budget is above 0")
    cluster, share = parse_gpus(gpus, nodes=nodes), Rates(utilisation).utilisation
    peak = cluster.accelerator.peak(bf16=True)
    kind = "bf16" if cluster.accelerator.bf16 else "fp32"
    told = (
        f", {hours:g} h of {cluster.title} at {share:.0%} (--utilisation, an assumption) of "
        f"{peak / 1e12:.4g} TFLOP/s in {kind} each"
    )
    note = f"; {cluster.accelerator.note}" if cluster.accelerator.note else ""
    return hours * 3600 * cluster.size * peak * share, told + note
