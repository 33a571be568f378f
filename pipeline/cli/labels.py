"""`rlhf label`: serve tasks to people, bring labels in and out, tell how well they agree.

Nothing of the label store is imported before a command runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from data.words import counted
from pipeline.cli.converse import converse
from pipeline.cli.label_work import prepare, start
from pipeline.cli.options import QuietOption

if TYPE_CHECKING:
    from data.labels.exchange.importing import ImportedLabel
    from data.labels.records import Role

label = typer.Typer(
    help="Collect preference labels from people.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

label.command()(start)
label.command()(prepare)
label.command()(converse)

RunArgument = Annotated[Path, typer.Argument(help="Run folder.", metavar="RUN")]
DatabaseOption = Annotated[
    str | None,
    typer.Option("--database", help="Instead of the run's: an address, env:NAME, or a file."),
]
CampaignOption = Annotated[
    str | None,
    typer.Option("--campaign", help="Campaign; that of the run's stage when not given."),
]
KindOption = Annotated[
    list[str] | None,
    typer.Option("--kind", help="Only labels of this kind of annotator; repeatable."),
]


@label.command()
def serve(
    run: RunArgument,
    host: Annotated[str, typer.Option(help="Address of the interface.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8470,
    campaign: Annotated[
        list[str] | None, typer.Option("--campaign", help="Serve this alone; repeatable.")
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option("--allowed-host", help="Further name browsers ask for; repeatable."),
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Address that people reach it by, as the proxy's; in links.")
    ] = None,
    certificate: Annotated[Path | None, typer.Option(help="PEM file, to serve https.")] = None,
    key: Annotated[Path | None, typer.Option(help="PEM file of the certificate's key.")] = None,
    behind_proxy: Annotated[
        bool, typer.Option("--behind-proxy", help="A proxy on this machine takes https off.")
    ] = False,
    idle_hours: Annotated[
        float, typer.Option(min=0.1, max=168, help="Who does not come is signed out after.")
    ] = 12.0,
    database: DatabaseOption = None,
) -> None:
    """Serve the tasks of a run to people's browsers until Ctrl-C."""
    from data.extras import PAGES, STORE, require_packages
    from data.labels.live.protocol import worker_file
    from data.labels.web.address import server_file
    from pipeline.cli.label_store import find_campaign, first_invite, opened

    require_packages(*STORE, *PAGES)
    from data.labels.web.front import Front
    from data.labels.web.server import serve as serve_pages

    front = Front(
        host=host, port=port, url=url, allowed_hosts=allowed_host or [], certificate=certificate,
        key=key, behind_proxy=behind_proxy,
    )  # fmt: skip
    with opened(run, database, create=True) as store:
        names = [find_campaign(store, name).name for name in campaign or ()]

        def ready(address: str) -> None:
            typer.echo(f"serving {run} at {address}; Ctrl-C ends it, the labels stay")
            token = first_invite(store)
            if token is not None:
                typer.echo(f"nobody is there yet; your way in, good once: {address}/invite/{token}")
            typer.echo(f"let people in with: rlhf label invite {run} NAME")

        serve_pages(
            store,
            front,
            campaigns=names or None,
            idle_hours=idle_hours,
            address_file=server_file(run),
            worker_file=worker_file(run),
            on_ready=ready,
        )


@label.command()
def invite(
    run: RunArgument,
    names: Annotated[list[str], typer.Argument(help="How exports call them.", metavar="NAME...")],
    admin: Annotated[bool, typer.Option("--admin", help="They see the figures, too.")] = False,
    hours: Annotated[float, typer.Option(help="After which the link is void.")] = 72.0,
    address: Annotated[
        str | None, typer.Option(help="Of the server, as they reach it; the running one's.")
    ] = None,
    database: DatabaseOption = None,
) -> None:
    """Print a link for each person that lets them in, once."""
    from data.labels.names import clean_name
    from data.labels.web.address import checked_url, read_address
    from pipeline.cli.label_store import opened

    def check() -> None:
        from data.labels.campaign.accounts import require_hours

        require_hours(hours)
        for name in names:
            clean_name(name)

    place = checked_url(address) if address is not None else read_address(run) or ""
    with opened(run, database, create=True, before=check) as store:
        from data.labels.campaign.accounts import Accounts

        role: Role = "admin" if admin else "annotator"
        for made, token in Accounts(store).invite_all(role, names, hours, by="command"):
            typer.echo(f"{made.name}\t{place}/invite/{token}")
    if not place:
        typer.echo("no server is running; put its address before the links", err=True)


@label.command()
def tasks(
    run: RunArgument,
    close: Annotated[
        str | None,
        typer.Option("--close", metavar="CAMPAIGN", help="Give out no more tasks of it."),
    ] = None,
    reopen: Annotated[
        str | None,
        typer.Option("--reopen", metavar="CAMPAIGN", help="Give out tasks of a closed one again."),
    ] = None,
    database: DatabaseOption = None,
) -> None:
    """List the campaigns of a run, and how far their tasks are."""
    from pipeline.cli.label_store import TASK_COLUMNS, campaign_rows, find_campaign, opened

    with opened(run, database) as store:
        from data.labels.campaign.campaigns import Campaigns

        campaigns = Campaigns(store)
        for name, change in ((close, campaigns.close), (reopen, campaigns.reopen)):
            if name is not None:
                change(find_campaign(store, name).id, by="command")
        for row in (TASK_COLUMNS, *campaign_rows(store)):
            typer.echo("\t".join(row))


@label.command()
def stats(
    run: RunArgument,
    campaign: CampaignOption = None,
    kind: KindOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    database: DatabaseOption = None,
) -> None:
    """Tell how well the annotators agree with each other, with gold and with themselves."""
    from data.extras import FIGURES, require_packages
    from pipeline.cli.label_store import kinds_of, opened, take_campaign

    require_packages(*FIGURES)
    with opened(run, database) as store:
        from data.labels.agreement.statistics import label_statistics
        from data.labels.agreement.statistics_text import to_text
        from data.labels.campaign.campaigns import Campaigns
        from data.labels.campaign.submissions import Submissions

        submissions = Submissions(store)
        stored, others = take_campaign(run, store, campaign, recipe_may_fail=database is not None)
        figures = label_statistics(
            submissions.labels(stored.id),
            submissions.skips(stored.id),
            campaign=stored.name,
            kinds=kinds_of(kind),
            n_tasks=Campaigns(store).progress(stored.id).tasks,
            seed=seed,
        )
    if others:
        typer.echo(others, err=True)
    typer.echo(json.dumps(figures.to_json(), indent=2) if as_json else to_text(figures), nl=as_json)


@label.command()
def export(
    run: RunArgument,
    out: Annotated[Path, typer.Option(help="Folder to write into.")],
    what: Annotated[
        Literal[
            "rankings", "preferences", "hh", "ties", "unpaired", "csv", "argilla", "label_studio"
        ],
        typer.Option(
            help="Lossless rankings, TRL preferences, HH dialogues, ties, KTO rows, CSV; or tasks "
            "and labels for another tool."
        ),
    ] = "rankings",
    consolidation: Annotated[
        Literal["per_annotator", "majority", "soft"],
        typer.Option(help="What several labels of a task become."),
    ] = "per_annotator",
    campaign: CampaignOption = None,
    kind: KindOption = None,
    blind: Annotated[bool, typer.Option("--blind", help="Leave out who wrote an answer.")] = False,
    implicit: Annotated[
        bool, typer.Option("--implicit", help="Preferences hold the prompt in both dialogues.")
    ] = False,
    margin: Annotated[
        Literal["none", "strength", "ratings", "ranks", "votes"],
        typer.Option(help="Margin of preferences."),
    ] = "none",
    heldout: Annotated[float, typer.Option(min=0, max=0.9, help="Share of prompts apart.")] = 0.0,
    every_purpose: Annotated[
        bool, typer.Option("--every-purpose", help="Gold tasks, repeats and qualification, too.")
    ] = False,
    revisions: Annotated[
        Literal["last", "all"],
        typer.Option(help="Of a label that was revised; all for keeping, not for training."),
    ] = "last",
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    users: Annotated[
        str | None,
        typer.Option(metavar="Ada=USER,Bo=USER", help="The other tool's, whose labels go along."),
    ] = None,
    database: DatabaseOption = None,
) -> None:
    """Write labels as files."""
    from pipeline.cli.label_export import write_labels

    write_labels(
        run, database, campaign, out, what, users=users, every_purpose=every_purpose, kind=kind,
        consolidation=consolidation, blind=blind, implicit=implicit, margin=margin,
        heldout=heldout, seed=seed, revisions=revisions,
    )  # fmt: skip


@label.command(name="import")
def bring_in(
    run: RunArgument,
    source: Annotated[str, typer.Argument(help="File, folder or glob; or hub:ID.")],
    campaign: Annotated[
        str | None, typer.Option("--campaign", help="Campaign they go to; the file's own names.")
    ] = None,
    annotator: Annotated[
        str, typer.Option(help="Who gave labels whose file names nobody.")
    ] = "imported",
    format: Annotated[
        str, typer.Option(help="labels, rankings, preference, hh, oasst, or auto.")
    ] = "auto",
    columns: Annotated[
        str | None,
        typer.Option(metavar="prompt=Q,a=A,b=B,winner=W", help="Of a table; see RESEARCHERS.md."),
    ] = None,
    items: Annotated[
        str | None, typer.Option(help="What a table's rows were said of, joined by an id (Potato).")
    ] = None,
    unconfirmed: Annotated[
        bool, typer.Option("--unconfirmed", help="Argilla's responses that may be drafts, too.")
    ] = False,
    users: Annotated[
        str | None, typer.Option(metavar="Ada=USER,Bo=USER", help="Names of a table's annotators.")
    ] = None,
    max_bad_share: Annotated[float, typer.Option(min=0, max=1)] = 0.01,
    split: Annotated[str, typer.Option(help="Of a hub data set.")] = "train",
    database: DatabaseOption = None,
) -> None:
    """Bring in our own exports, rankings, pairs, HH dialogues, OASST messages or tables."""
    from data.errors import UsageError
    from data.labels.exchange.tables.columns import Table, parse_columns, parse_users
    from pipeline.cli.label_store import import_file, opened

    given = {"--items": items, "--unconfirmed": unconfirmed or None, "--users": users}
    if columns is None and (alone := [name for name, value in given.items() if value is not None]):
        raise UsageError(f"{alone[0]} goes with --columns")
    names = {user: name for name, user in parse_users(users).items()} if users else {}
    table = None if columns is None else Table(parse_columns(columns), items, unconfirmed, names)
    asked: dict[str, Any] = {"format": format, "max_bad_share": max_bad_share, "hub_split": split}

    def read(**rest: Any) -> Iterator[ImportedLabel]:
        from data.labels.exchange.importing import read_labels

        return read_labels(source, annotator=annotator, table=table, **asked, **rest)

    def readable() -> None:
        from data.labels.exchange.importing import require_names

        for one in read(when=datetime.now(UTC)):
            to = campaign or one.row.campaign
            require_names(source, campaign=to, annotator=one.annotator.name)

    with opened(run, database, create=True, before=readable) as store:
        lines = import_file(store, source, campaign=campaign, read=read)
    for line in lines:
        typer.echo(line)


@label.command(name="run")
def run_annotators(
    run: RunArgument,
    stage: Annotated[str, typer.Argument(help="Rankings stage with people.annotators.")],
    limit: Annotated[int | None, typer.Option(min=1, help="Tasks of each annotator.")] = None,
    quiet: QuietOption = False,
    database: DatabaseOption = None,
) -> None:
    """Let the annotators of a stage that are no people label, without waiting for the stage."""
    from pipeline.cli.label_store import let_label, opened
    from pipeline.contract.console import Console
    from pipeline.contract.stop import StopFlag

    console = Console(quiet=quiet)
    with StopFlag().installed() as stop, opened(run, database, stage=stage) as store:
        for name, given in let_label(run, store, stage, limit=limit, stop=stop):
            console.say(f"{name}: {counted(given, 'label')}")
