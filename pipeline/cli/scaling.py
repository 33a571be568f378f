"""`rlhf scaling`: how loss falls with size and tokens, fitted, planned by, and measured.

Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import json
from typing import Annotated

import typer

scaling = typer.Typer(
    help="Scaling laws: fit one to runs, and plan by it.",
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
