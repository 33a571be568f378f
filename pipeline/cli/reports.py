"""The commands of `rlhf` that show what was judged: the report of a run, and two compared."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli.checkpoints import (
    BF16Option,
    JudgeOption,
    MaxNewTokensOption,
    PrefixTokensOption,
    RewardOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
)


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run folder, or the --out of `rlhf eval`.")
    ],
    show: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Make the report of a run or evaluation anew, of what is there, and tell where it is."""
    page = _page(folder)
    typer.echo(str(page))
    if show:
        import webbrowser

        from data.errors import UsageError

        if not webbrowser.open(page.resolve().as_uri()):
            raise UsageError(f"there is no browser here; open {page} in one")


def _page(folder: Path) -> Path:
    from pipeline.contract.artifacts import MANIFEST
    from pipeline.evaluation.report.collect import EVALUATION
    from pipeline.evaluation.report.report import write_evaluation_report
    from pipeline.run.listing import load_run
    from pipeline.run.runner import renew_report

    if (folder / EVALUATION).is_file() and not (folder / MANIFEST).exists():
        return write_evaluation_report(folder)
    return renew_report(load_run(folder))


def _as_judged(a: str, b: str, context: typer.Context) -> dict[str, Any]:
    """Return the figures of two checkpoints that were evaluated before; nothing is computed."""
    from data.errors import UsageError
    from pipeline.evaluation.report.comparison import judged_samples
    from pipeline.run.listing import evaluation_in

    beside = ("a", "b", "seed", "quiet", "as_json")
    asked = {name: value for name, value in context.params.items() if name not in beside}
    given = [
        f"--{name.replace('_', '-')}"
        for name, value in asked.items()
        if value or isinstance(value, float)
    ]
    if given:
        raise UsageError(
            f"nothing is answered anew without --prompts, as {' and '.join(given)} would have "
            "it; name some"
        )
    names = [Path(place).resolve().name for place in (a, b)]
    names = [a, b] if names[0] == names[1] else names
    return judged_samples(names[0], evaluation_in(a), names[1], evaluation_in(b))


def compare(
    context: typer.Context,
    a: Annotated[str, typer.Argument(help="Checkpoint, or the folder of a run or evaluation.")],
    b: Annotated[str, typer.Argument(help="What it is compared with.")],
    prompts: Annotated[
        str | None,
        typer.Option(help="Both answer these; of runs, their evaluations' own where they agree."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to keep what was judged.")] = None,
    reward: RewardOption = None,
    judge: JudgeOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many prompts.")] = None,
    prefix_tokens: PrefixTokensOption = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    max_new_tokens: MaxNewTokensOption = None,
    bf16: BF16Option = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1)] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print how often A's answers are judged better than B's; runs stand for their last policy."""
    from data.errors import UsageError
    from pipeline.cli.checkpoints import evaluated, named, weighted
    from pipeline.cli.options import source_of
    from pipeline.contract.console import Console
    from pipeline.evaluation.judge.settings import LlmJudge
    from pipeline.evaluation.judge.standalone import Request
    from pipeline.evaluation.report.comparison import comparison, comparison_lines
    from pipeline.recipe.answers import parse_answers
    from pipeline.recipe.judges import parse_judges
    from pipeline.run.listing import last_policy

    if prompts is None:
        results = _as_judged(a, b, context)
    else:
        judges = parse_judges(judge or [])
        if out is None and any(isinstance(one, LlmJudge) for one in judges.values()):
            raise UsageError(
                "what a language model says is kept in --out, so that it is not asked twice; name "
                "a folder"
            )
        answers = parse_answers(context.params)
        places = [last_policy(place) for place in (b, a)]
        with tempfile.TemporaryDirectory() as scratch:
            request = Request(
                checkpoints=named(places),
                prompts=source_of(prompts),
                rewards=weighted(reward or []),
                judges=judges,
                limit=limit,
                answers=answers,
                seed=seed,
            )
            console = Console(quiet=True, beside=None if quiet else sys.stderr)
            results = evaluated(request, out or Path(scratch), console)
    found = comparison(results)
    typer.echo(json.dumps(found, indent=2) if as_json else "\n".join(comparison_lines(found)))
