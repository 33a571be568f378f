"""`rlhf label prepare` and `start`: a run's tasks for people, and all of it in one command."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data.errors import Interrupted, UsageError
from data.labels.web.address import read_address
from pipeline.cli.options import PluginOption, QuietOption, command_line, load_plugins

if TYPE_CHECKING:
    from pipeline.contract.stop import StopFlag

RunArgument = Annotated[
    Path, typer.Argument(help="Run folder, of a recipe that asks people.", metavar="RUN")
]
UntilOption = Annotated[str | None, typer.Option("--until", help="Last stage.")]
_SERVER_SECONDS = 60.0


def prepare(run: RunArgument, plugin: PluginOption = None, quiet: QuietOption = False) -> None:
    """Make the tasks that are labelled next, running what comes before; then end."""
    from pipeline.cli.label_store import people_stages
    from pipeline.contract.stop import StopFlag

    load_plugins(plugin)
    stop = StopFlag(waits=False)
    last = [*_require_asking(run, people_stages(run))][-1]
    try:
        _go_on(run, until=last, quiet=quiet, stop=stop)
    except Interrupted as stopped:
        if stop.asked:
            raise
        typer.echo(str(stopped.__cause__ or stopped))
        typer.echo(f"let people label: rlhf label start {run} --people NAME,NAME")
        return
    typer.echo(f"all that {run} asks people is labelled; rlhf label start goes on")


def start(
    run: RunArgument,
    people: Annotated[
        str, typer.Option(metavar="NAME,NAME", help="Who labels; a link is printed for each.")
    ] = "",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of the pages, on this machine; 0: a free one.")
    ] = 8470,
    hours: Annotated[float, typer.Option(help="After which a link is void.")] = 72.0,
    until: UntilOption = None,
    plugin: PluginOption = None,
    quiet: QuietOption = False,
) -> None:
    """Make tasks, serve them, print links, and go on with the recipe when enough is labelled.

    Where a server of the run is up, as one with a certificate, its pages are used.
    """
    from data.extras import PAGES, STORE, require_packages
    from data.labels.names import clean_name
    from pipeline.cli.label_store import people_stages
    from pipeline.run.listing import load_run
    from pipeline.run.planning import Selection

    require_packages(*STORE, *PAGES)
    from data.labels.campaign.accounts import require_hours

    require_hours(hours)
    load_plugins(plugin)
    _require_asking(run, people_stages(run))
    Selection(until=until).stages(load_run(run).recipe)  # refused before anybody is invited
    names = [clean_name(name) for name in people.split(",") if name.strip()]
    with _served(run, port) as address:
        for name, link in _links(run, names, hours, address):
            typer.echo(f"{name}\t{link}")
        try:
            _go_on(run, until=until, quiet=quiet)
        except (Interrupted, KeyboardInterrupt) as stopped:
            same = command_line("label start", run, {
                "--port": port if port != 8470 else None, "--until": until, "--plugin": plugin,
                "--quiet": quiet,
            })  # fmt: skip
            reason = str(stopped) or "stopped at once"
            raise Interrupted(f"{reason}; to go on: {same}") from stopped


def _require_asking(run: Path, stages: Mapping[str, object]) -> Mapping[str, object]:
    if not run.is_dir():
        raise UsageError(f"{run}: no such run folder; name the one that `rlhf run` works in")
    if not stages:
        raise UsageError(
            f"{run} has no stage that asks people; run a recipe with `labeler: people` first, as "
            "`rlhf run RECIPE --set rankings.labeler=people --until sft`"
        )
    return stages


def _links(
    run: Path, names: Sequence[str], hours: float, address: str
) -> Iterator[tuple[str, str]]:
    """Invite people, and yield each one's name and way in."""
    if not names:
        return
    from data.labels.campaign.accounts import Accounts
    from pipeline.cli.label_store import opened

    with opened(run, None, create=True) as store:
        for made, token in Accounts(store).invite_all("annotator", names, hours, by="command"):
            yield made.name, f"{address}/invite/{token}"


@contextmanager
def _served(run: Path, port: int) -> Iterator[str]:
    """Give the address of the run's pages: of the server that is up, or of one started here.

    It is a process of its own, in which no model is ever loaded.
    """
    if address := read_address(run):
        yield address
        return
    command = [str(Path(sys.executable).with_name("rlhf")), "label", "serve", str(run)]
    server = subprocess.Popen([*command, "--port", str(port)])
    try:
        yield _address(run, server)
    finally:
        server.terminate()
        server.wait()


def _address(run: Path, server: subprocess.Popen[bytes]) -> str:
    end = time.monotonic() + _SERVER_SECONDS
    while time.monotonic() < end and server.poll() is None:
        if address := read_address(run):
            return address
        time.sleep(0.05)
    raise UsageError("the pages are not served, so nobody can label; the line above says why")


def _go_on(run: Path, *, until: str | None, quiet: bool, stop: StopFlag | None = None) -> None:
    """Run the recipe of a run folder from where it is."""
    from pipeline.contract.console import Console
    from pipeline.recipe.load import load_recipe
    from pipeline.run.planning import Selection
    from pipeline.run.runner import RESOLVED, execute

    selection = Selection(until=until)
    execute(load_recipe(run / RESOLVED), run, selection=selection, console=Console(quiet=quiet),
            stop=stop)  # fmt: skip
