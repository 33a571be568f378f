"""`rlhf publish`: a finished stage's model as a folder, or on the hub, for anybody to use."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import PluginOption, QuietOption, load_plugins

_HUB = "hub:"


def publish(
    stage: Annotated[
        str,
        typer.Argument(
            metavar="STAGE",
            help="Folder of a finished stage, or of a model in one: ppo/best/model, ppo/adapter.",
        ),
    ],
    target: Annotated[
        str, typer.Argument(metavar="DIR|hub:ORG/NAME", help="New folder, or repository.")
    ],
    license_id: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="Licence, such as apache-2.0.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(metavar="[ORG/]NAME", help="What the card calls it; else as the target."),
    ] = None,
    about: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Intended use, Markdown; else left to be filled in."),
    ] = None,
    evaluations: Annotated[
        list[Path] | None,
        typer.Option(
            "--evaluation", metavar="DIR", help="Folder of `rlhf eval` that judged it; repeatable."
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="ORG/NAME", help="Public name of what it began from, or adapts."),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Show a repository to all; else its owner alone.")
    ] = False,
    update: Annotated[
        bool, typer.Option("--update", help="Commit to a repository in place of what it holds.")
    ] = False,
    outdated: Annotated[
        bool, typer.Option("--outdated", help="Publish though its recipe or data were changed.")
    ] = False,
    plugin: PluginOption = None,
    quiet: QuietOption = False,
) -> None:
    """Publish a model with a card of how it was made, how good it is and how it is used."""
    from pipeline.contract.console import Console
    from pipeline.publish.card import Wishes
    from pipeline.publish.folder import require_new_place, write_folder
    from pipeline.publish.hub import require_repository, upload
    from pipeline.publish.publish import prepare, told
    from pipeline.publish.subject import find_subject

    load_plugins(plugin)
    repository = target.removeprefix(_HUB) if target.startswith(_HUB) else ""
    folder = Path(target).expanduser()
    _require_fitting(target, repository, {"--public": public, "--update": update}, base)
    subject = find_subject(stage)
    if repository:
        require_repository(repository, update=update)
    else:
        require_new_place(folder)
    called = name or repository or folder.name
    _require_name(called)
    wishes = Wishes(called, license_id, base, _text_of(about))
    package = prepare(subject, wishes, evaluations=evaluations or (), outdated=outdated)
    if repository:
        message = f"Publish stage {subject.stage.name}, {subject.stage.digest[:16]}"
        place = upload(package.files, repository, public=public, message=message, quiet=quiet)
    else:
        write_folder(package.files, folder)
        place = str(folder)
    console = Console(quiet=quiet)
    told(package, place, console)
    if repository and not (public or update):
        console.say(
            "  its owner alone sees it; show it to all on its page, or by --public at first"
        )
    if about is None:
        console.say("  README.md: fill in its intended use, or give it by --about FILE")


def _require_fitting(
    target: str, repository: str, for_hub: dict[str, bool], base: str | None
) -> None:
    from data.errors import UsageError

    given = [option for option, value in for_hub.items() if value]
    if given and not repository:
        raise UsageError(f"{given[0]} is for hub:ORG/NAME; leave it out for the folder {target}")
    if not target.strip() or target == _HUB:
        raise UsageError(f"'{target}' names no place; write a new folder, or hub:ORG/NAME")
    if base is not None and base.strip("/").count("/") != 1:
        raise UsageError(f"--base {base}: write ORG/NAME, as the hub names it")


def _require_name(called: str) -> None:
    from data.errors import UsageError

    # It stands in lines of Python and of a shell.
    if not re.fullmatch(r"([A-Za-z0-9._-]+/)?[A-Za-z0-9._-]+", called):
        raise UsageError(
            f"{called!a} can't stand in the card's commands; give --name NAME, of letters, digits, "
            "dots, hyphens and underscores"
        )


def _text_of(about: Path | None) -> str:
    from data.errors import UsageError, in_words
    from data.small_files import read_file

    if about is None:
        return ""
    try:
        return read_file(about).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or in_words(error)
        raise UsageError(f"--about {about} can't be read ({why}); name a text in UTF-8") from error
