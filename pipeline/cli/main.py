"""The `rlhf` command. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import errno
import functools
import io
import os
import signal
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.checkpoints import chat, evaluate, score
from pipeline.cli.init import init
from pipeline.cli.labels import label
from pipeline.cli.options import (
    AssumeOption,
    OutOption,
    PluginOption,
    QuietOption,
    RecipeArgument,
    SeedOption,
    SetOption,
    command_line,
    load_plugins,
)
from pipeline.cli.publish import publish
from pipeline.cli.reports import compare, report
from pipeline.cli.scaling import scaling
from pipeline.cli.shipped import copy, recipes
from pipeline.cli.tokenizer import tokenizer
from pipeline.cli.watch import watch

if TYPE_CHECKING:
    from pipeline.recipe.load import Recipe
    from pipeline.run.runner import Outcome
    from pipeline.run.seeds import Turn

app = typer.Typer(
    help="From a text corpus to an assistant: pretraining, SFT, ranking reward model, PPO.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(version("rlhf-pipeline"))
        raise typer.Exit


@app.callback()
def _options(
    asked: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Tell the version."),
    ] = False,
) -> None:
    """Take the options of the command itself."""


def _recipe(path: Path, overrides: list[str] | None, seed: int | None = None) -> Recipe:
    from pipeline.recipe.load import load_recipe

    changes = [*(overrides or []), *([f"seed={seed}"] if seed is not None else [])]
    return load_recipe(path, changes)


@app.command()
def run(
    recipe: RecipeArgument,
    out: OutOption = None,
    overrides: SetOption = None,
    seed: SeedOption = None,
    seeds: Annotated[
        str | None,
        typer.Option(metavar="0-4", help="A run a seed; stages before --from have the first one."),
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="First stage; earlier ones are used as they are.")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", help="Last stage.")] = None,
    only: Annotated[str | None, typer.Option("--only", help="This stage alone.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Run the selected stages even if up to date.")
    ] = False,
    reuse: Annotated[
        list[Path] | None,
        typer.Option("--reuse", metavar="RUN", help="Take over its stages that would be the same."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what would run, and why; change nothing.")
    ] = False,
    processes: Annotated[
        int | None,
        typer.Option("--processes", min=1, max=2**20, help="Processes of a training stage."),
    ] = None,
    plugin: PluginOption = None,
    quiet: QuietOption = False,
) -> None:
    """Run a recipe; done stages are skipped, cut off ones go on."""
    from pipeline.run.listing import run_folder
    from pipeline.run.planning import Selection
    from pipeline.run.seeds import Turn, report_seeds, turns

    load_plugins(plugin)
    others = [run_folder(place) for place in reuse or ()]
    if seeds is None:
        checked = _recipe(recipe, overrides, seed)
        selection = Selection(start=start, until=until, only=only, force=force)
        todo = [Turn(checked, out or Path("runs") / checked.name, selection, others)]
    else:
        _refuse_beside_seeds(overrides, {"--seed": seed, "--only": only, "--force": force or None})
        changed = functools.partial(_changed, recipe, overrides or [])
        todo = turns(changed, seeds, out=out, start=start, until=until, reuse=others)
    if dry_run:
        _show_plans(todo)
        return
    # Without --force, which would begin done stages again.
    same = command_line("run", recipe, {
        "--out": out, "--set": overrides, "--seed": seed, "--seeds": seeds, "--from": start,
        "--until": until, "--only": only, "--reuse": reuse, "--processes": processes,
        "--plugin": plugin, "--quiet": quiet,
    })  # fmt: skip
    for turn in todo:
        _execute(turn, processes=processes, quiet=quiet, same=same)
    if seeds is not None:
        typer.echo(f"All seeds: {report_seeds(todo)}")


def _changed(path: Path, overrides: list[str], more: list[str]) -> Recipe:
    return _recipe(path, [*overrides, *more])


def _refuse_beside_seeds(overrides: list[str] | None, others: dict[str, object]) -> None:
    from data.errors import UsageError

    given = [name for name, value in others.items() if value is not None]
    given += [f"--set {one}" for one in overrides or () if one.partition("=")[0] == "seed"]
    if given:
        raise UsageError(f"--seeds does not go with {' and '.join(given)}; give one of them")


def _show_plans(todo: list[Turn]) -> None:
    """Print what each run would do; of several, the name of its folder before each stage."""
    from pipeline.run.planning import Planner
    from pipeline.run.runner import plan
    from pipeline.run.seeds import same_stages

    first, *others = todo
    for turn in todo:
        run = f"{turn.folder.name}/" if others else ""
        shared = () if turn is first else same_stages(turn.recipe, first.recipe)
        for step in plan(Planner(*turn)):
            action, reason = step.action, step.reason
            if action in ("run", "resume") and step.stage in shared:
                action, reason = "reuse", f"of {first.folder}, which runs before"
            typer.echo(f"{run}{step.stage}: {action}{f' ({reason})' if reason else ''}")


def _execute(turn: Turn, *, processes: int | None, quiet: bool, same: str) -> None:
    """Carry out a run; where it is stopped, tell the same command again."""
    from data.errors import Interrupted
    from pipeline.contract.console import Console
    from pipeline.run.runner import execute

    recipe, folder, selection, reuse = turn
    launch = recipe.top.launch
    if processes is not None:
        launch = launch.model_copy(update={"processes": processes})
    try:
        outcome = execute(
            recipe,
            folder,
            selection=selection,
            reuse=reuse,
            launch=launch,
            console=Console(quiet=quiet),
        )
    except (Interrupted, KeyboardInterrupt) as stopped:
        reason = str(stopped) or "stopped at once"
        raise Interrupted(f"{reason}; to go on: {same}") from stopped
    if not quiet:
        _show_answers(folder, outcome)


def _show_answers(folder: Path, outcome: Outcome) -> None:
    """Print the same prompts answered by each checkpoint, and where the report is."""
    from pipeline.evaluation.report.table import answers_table

    for stage, artifact in outcome.artifacts.items():
        if artifact.kind == "evaluate" and stage not in outcome.not_done:
            typer.echo(answers_table(artifact.folder))
    report = folder / "report" / "index.html"
    if report.is_file():
        typer.echo(f"The report: {report}")


@app.command()
def validate(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    out: OutOption = None,
    plugin: PluginOption = None,
) -> None:
    """Check a recipe and all its hand-overs without loading any weights."""
    from pipeline.contract.artifacts import require_writable_place
    from pipeline.run.checking import check_recipe

    load_plugins(plugin)
    checked = _recipe(recipe, overrides)
    folder = out or Path("runs") / checked.name
    require_writable_place(folder)
    for line in check_recipe(checked, folder):
        typer.echo(line, err=True)
    noun = "stage" if len(checked.stages) == 1 else "stages"
    typer.echo(f"{recipe}: valid; {len(checked.stages)} {noun}: {', '.join(checked.stages)}")


@app.command()
def plan(
    recipe: RecipeArgument,
    gpus: Annotated[
        str,
        typer.Option(help="Of one node: 8xH100-80GB, 4x24GB@165TFLOPS (bf16), cpu."),
    ] = "cpu",
    nodes: Annotated[int, typer.Option(min=1, help="Nodes of so many GPUs.")] = 1,
    overrides: SetOption = None,
    sharding: Annotated[
        str | None,
        typer.Option(help="ddp or fsdp2; what launch.config says when not given."),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option("--size", metavar="CHECKPOINT=7B", help="Parameters of a model not at hand."),
    ] = None,
    assume: AssumeOption = None,
    utilisation: Annotated[
        float, typer.Option(help="Share of the peak that products reach.")
    ] = 0.35,
    bandwidth: Annotated[
        float, typer.Option(help="Share of the memory bandwidth that decoding reaches.")
    ] = 0.6,
    overhead: Annotated[
        float, typer.Option(min=0, help="Least milliseconds of a block's forward pass.")
    ] = 0.6,
    reserve: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of the memory that is left free.")
    ] = 0.1,
    read_seconds: Annotated[
        float, typer.Option(min=0, help="Seconds after which a source is not read on.")
    ] = 10.0,
    plugin: PluginOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Estimate memory, FLOPs and hours of every stage before anything is started."""
    from pipeline.estimate.model.assumptions import Assumptions, Rates, parse_assumed, parse_sizes
    from pipeline.estimate.model.hardware import parse_gpus
    from pipeline.estimate.planner import check_sharding, estimate_recipe
    from pipeline.estimate.render import print_plan
    from pipeline.run.checking import check_recipe

    load_plugins(plugin)
    checked = _recipe(recipe, overrides)
    kind = check_sharding(sharding)
    assumed = Assumptions(
        given=parse_assumed(assume or [], stages=checked.stages),
        sizes=parse_sizes(size or []),
        rates=Rates(utilisation, bandwidth, overhead / 1000),
    )
    for line in check_recipe(checked, Path("runs") / checked.name, absent=assumed.sizes):
        typer.echo(line, err=True)
    estimate = estimate_recipe(
        checked,
        parse_gpus(gpus, nodes=nodes, reserve=reserve),
        sharding=kind,
        assumed=assumed,
        seconds=read_seconds,
    )
    print_plan(estimate, as_json=as_json, terminal=sys.stdout.isatty())


@app.command()
def show(
    recipe: Annotated[
        Path,
        typer.Argument(
            help="Recipe file, a name of `rlhf recipes`, or a kind of stage, such as ppo.",
            metavar="RECIPE|KIND",
        ),
    ],
    overrides: SetOption = None,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Tell what each setting means and where its value is from."),
    ] = False,
) -> None:
    """Print the resolved recipe with every default, or all settings of a kind of stage."""
    from data.errors import UsageError
    from pipeline.recipe.explain import explain as explained
    from pipeline.recipe.explain import load_explained
    from pipeline.recipe.kinds import explain_kind, is_kind
    from pipeline.recipe.shipped import find_file

    if is_kind(str(recipe)) and not find_file(recipe).is_file():
        if overrides:
            raise UsageError(
                f"--set is for a recipe, and {recipe} is a kind of stage; leave it out"
            )
        typer.echo(explain_kind(str(recipe)), nl=False)
    elif explain:
        typer.echo(explained(load_explained(recipe, overrides or ())), nl=False)
    else:
        typer.echo(_recipe(recipe, overrides).to_yaml(), nl=False)


@app.command(name="ls")
def list_stages(
    run_folder: Annotated[Path, typer.Argument(help="Run folder.", metavar="RUN")],
) -> None:
    """List the stages of a run: state, age, size, parents, main metric."""
    from rich.console import Console as RichConsole
    from rich.table import Table
    from rich.text import Text

    from pipeline.run.listing import COLUMNS, list_run

    rows = list_run(run_folder)
    if not sys.stdout.isatty():
        for row in (COLUMNS, *rows):
            typer.echo("\t".join(row))
        return
    table = Table(*COLUMNS, box=None, header_style="bold")
    for row in rows:
        table.add_row(*map(Text, row))  # what is quoted is no markup
    RichConsole().print(table)


app.command()(watch)
app.command()(init)
app.command()(recipes)
app.command()(copy)
app.command(name="eval")(evaluate)
app.command()(compare)
app.command()(report)
app.command()(chat)
app.command()(score)
app.command()(publish)
app.add_typer(label, name="label")
app.add_typer(scaling, name="scaling")
app.add_typer(tokenizer, name="tokenizer")


@app.command(name="run-stage", hidden=True)
def run_stage_on_rank(
    run_folder: Path,
    stage: str,
    key: Annotated[str, typer.Option()],
    plugin: PluginOption = None,
    plugin_sha256: Annotated[list[str] | None, typer.Option()] = None,
    quiet: QuietOption = False,
) -> None:
    """Run one stage on this rank; started by `accelerate launch`."""
    from pipeline.recipe.load import load_recipe
    from pipeline.run.execution import run_as_rank
    from pipeline.run.runner import RESOLVED

    load_plugins(plugin, plugin_sha256)
    run_as_rank(load_recipe(run_folder / RESOLVED), stage, run_folder, key, quiet=quiet)


def _require_own_packages() -> None:
    """Stop when another package named `data`, `reward` or `pipeline` shadows ours."""
    import data
    import pipeline
    import reward
    from data.errors import UsageError

    root = Path(__file__).resolve().parents[2]
    for package in (data, pipeline, reward):
        imported = Path(str(package.__file__)).resolve()
        if imported.parent.parent != root:
            raise UsageError(
                f"the package '{package.__name__}' is taken from {imported}, not from {root}; "
                "install this project in a virtual environment of its own"
            )


_NO_PLACE = (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM)


def _shown(*sentences: object) -> str:
    """Return a sentence a line, nothing in it that moves a terminal, the middle of long ones cut.

    They quote names and values of files, which may be anything.
    """
    from data.errors import one_line

    lines = [one_line(str(sentence)) for sentence in sentences]
    return "\n".join(n if len(n) <= 1500 else f"{n[:900]} ... {n[-500:]}" for n in lines)


def main() -> None:
    """Run the command; a user's mistake is one sentence and exit code 2."""
    from data.errors import Interrupted, RlhfError, StageFailedError

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if isinstance(sys.stdout, io.TextIOWrapper):  # names may hold what it can't encode
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        _require_own_packages()
        app()
    except StageFailedError as error:
        print(f"rlhf: {_shown(*error.args)}", file=sys.stderr)
        sys.exit(1)
    except RlhfError as error:
        # Behind an empty line stands what may be pasted into a recipe, as deep as it stands there.
        *others, last = error.args
        sentence, deep, lines = str(last).partition("\n\n  ")
        print(f"rlhf: {_shown(*others, sentence)}", file=sys.stderr)
        if lines:
            print(deep.strip("\n") + lines)
        sys.exit(2)
    except OSError as error:
        # Of places that no command can look at; of another kind it is a bug of ours.
        if error.errno not in _NO_PLACE or error.filename is None:
            raise
        trouble = f"{os.fsdecode(error.filename)} can't be used ({error.strerror}); name another"
        print(f"rlhf: {_shown(trouble)}", file=sys.stderr)
        sys.exit(2)
    except (Interrupted, KeyboardInterrupt) as stopped:
        print(f"rlhf: {str(stopped) or 'stopped at once'}", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
