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


def _as_judged(places: list[str], context: typer.Context) -> list[dict[str, Any]]:
    """Return what evaluations of before say of each place against the last; nothing is computed.

    Runs that were not judged alike are refused, but for their page, which has more to show.
    """
    from data.errors import UsageError
    from pipeline.evaluation.report.comparison import comparison, judged_samples
    from pipeline.run.listing import evaluation_in

    beside = ("places", "out", "seed", "quiet", "as_json")
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
    if len({Path(place).resolve() for place in places}) < len(places):
        raise UsageError(f"{', '.join(places)}: one is named twice; name each once")
    names = _names(places)
    *others, last = ((names[place], evaluation_in(place)) for place in places)
    found: list[dict[str, Any]] = []
    for other in others:
        try:
            found.append(comparison(judged_samples(*other, *last)))
        except UsageError as error:
            if context.params["out"] is None:
                raise
            found.append({"not_compared": str(error)})
    return found


def _names(places: list[str]) -> dict[str, str]:
    """Return what each place is called: its folder, or the place where two folders are alike."""
    names = [Path(place).resolve().name for place in places]
    return dict(zip(places, names if len({*names}) == len(places) else places, strict=True))


def _judged_anew(a: str, b: str, context: typer.Context) -> dict[str, Any]:
    """Return what judges say of two checkpoints' answers to prompts that are named."""
    from data.errors import UsageError
    from pipeline.cli.checkpoints import evaluated, named, weighted
    from pipeline.cli.options import source_of
    from pipeline.contract.console import Console
    from pipeline.evaluation.judge.settings import LlmJudge
    from pipeline.evaluation.judge.standalone import Request
    from pipeline.recipe.answers import parse_answers
    from pipeline.recipe.judges import parse_judges
    from pipeline.run.listing import last_policy

    asked = context.params
    judges = parse_judges(asked["judge"] or [])
    if asked["out"] is None and any(isinstance(one, LlmJudge) for one in judges.values()):
        raise UsageError(
            "what a language model says is kept in --out, so that it is not asked twice; name a "
            "folder"
        )
    request = Request(
        checkpoints=named([last_policy(place) for place in (b, a)]),
        prompts=source_of(asked["prompts"]),
        rewards=weighted(asked["reward"] or []),
        judges=judges,
        limit=asked["limit"],
        answers=parse_answers(asked),
        seed=asked["seed"],
    )
    console = Console(quiet=True, beside=None if asked["quiet"] else sys.stderr)
    with tempfile.TemporaryDirectory() as scratch:
        return evaluated(request, asked["out"] or Path(scratch), console)


def compare(
    context: typer.Context,
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="A B ...",
            help="Checkpoints, or folders of runs or evaluations; each is compared with the last.",
        ),
    ],
    prompts: Annotated[
        str | None,
        typer.Option(help="Both answer these; of runs, their evaluations' own where they agree."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the page of runs, or to keep what was judged.")
    ] = None,
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
    from pipeline.evaluation.report.comparison import comparison, comparison_lines

    if len(places) < 2 or (prompts is not None and len(places) > 2):
        raise UsageError("name two to compare on --prompts, or two or more that were judged before")
    if prompts is None:
        found = _as_judged(places, context)
    else:
        found = [comparison(_judged_anew(places[0], places[1], context))]
    settings, page = _runs_beside(places, found, None if prompts else out)
    if as_json:
        told = found[0] if len(found) == 1 else {"comparisons": found, "settings": settings}
        typer.echo(json.dumps(told, indent=2))
        return
    typer.echo("\n\n".join("\n".join(comparison_lines(one)) for one in found))
    for name, values in settings.items():
        typer.echo(f"{name}: {', '.join(map(str, values))}")
    if page is not None:
        typer.echo(f"The page: {page}")


def _runs_beside(
    places: list[str], found: list[dict[str, Any]], out: Path | None
) -> tuple[dict[str, list[Any]], Path | None]:
    """Return what was set otherwise in runs, and their page, if a folder is named for it."""
    import yaml

    from data.errors import UsageError
    from pipeline.evaluation.report.comparison import comparison_lines
    from pipeline.evaluation.report.side_by_side import write_side_by_side
    from pipeline.run.changes import differing
    from pipeline.run.runner import RESOLVED

    recipes = [Path(place) / RESOLVED for place in places]
    if not all(path.is_file() for path in recipes):
        if out is not None:
            raise UsageError("--out takes the page of runs; what was judged is kept of --prompts")
        return {}, None
    settings = differing([yaml.safe_load(path.read_text(encoding="utf-8")) for path in recipes])
    if out is None:
        return settings, None
    paired = [{**one, "lines": comparison_lines(one)} for one in found]
    runs = {name: Path(place) for place, name in _names(places).items()}
    return settings, write_side_by_side(out, runs, settings=settings, paired=paired)
