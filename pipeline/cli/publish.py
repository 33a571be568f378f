"""`rlhf publish`: a finished stage's model as a folder, or on the hub, for anybody to use."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import PluginOption, QuietOption, load_plugins

StageArgument = Annotated[
    str,
    typer.Argument(
        metavar="STAGE",
        help="Folder of a finished stage, or of a model in one: ppo/best/model, ppo/adapter.",
    ),
]
TargetArgument = Annotated[
    str, typer.Argument(metavar="DIR|hub:ORG/NAME", help="New folder, or repository.")
]
LicenseOption = Annotated[
    str | None, typer.Option("--license", metavar="ID", help="Licence, such as apache-2.0.")
]
NameOption = Annotated[
    str | None,
    typer.Option(metavar="[ORG/]NAME", help="What the card calls it; else as the target."),
]
AboutOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Intended use, Markdown; else left to be filled in."),
]
EvaluationOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--evaluation", metavar="DIR", help="Folder of `rlhf eval` that judged it; repeatable."
    ),
]
BaseOption = Annotated[
    str | None,
    typer.Option(metavar="ORG/NAME", help="Public name of what it began from, or adapts."),
]


def publish(
    stage: StageArgument,
    target: TargetArgument,
    license_id: LicenseOption = None,
    name: NameOption = None,
    about: AboutOption = None,
    evaluations: EvaluationOption = None,
    base: BaseOption = None,
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
    from pipeline.publish.publish import prepare
    from pipeline.publish.subject import find_subject
    from pipeline.publish.target import parse_target

    load_plugins(plugin)
    place = parse_target(target, public=public, update=update)
    wishes = Wishes(_fitting(name or place.name), license_id, _base(base), _text_of(about))
    subject = find_subject(stage)
    place.require_free()
    package = prepare(subject, wishes, evaluations=evaluations or (), outdated=outdated)
    message = f"Publish stage {subject.stage.name}, {subject.stage.digest[:16]}"
    where = place.put(package.files, message, quiet=quiet)
    console = Console(quiet=quiet)
    for line in package.lines(where):
        console.say(line)
    if place.on_hub and not (public or update):
        console.say("  its owner alone sees it; show it to all on its page, or by --public at once")
    if about is None:
        console.say("  README.md: fill in its intended use, or give it by --about FILE")


def _fitting(name: str) -> str:
    """Return a name that can stand in lines of Python and of a shell."""
    from data.errors import UsageError

    if not re.fullmatch(r"([A-Za-z0-9._-]+/)?[A-Za-z0-9._-]+", name):
        raise UsageError(
            f"{name!a} can't stand in the card's commands; give --name NAME, of letters, digits, "
            "dots, hyphens and underscores"
        )
    return name


def _base(base: str | None) -> str | None:
    from data.errors import UsageError

    if base is not None and not re.fullmatch(r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+", base):
        raise UsageError(f"--base {base}: write ORG/NAME, as the hub names it")
    return base


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
