"""`rlhf init`: a first recipe, written for data and a model that are looked at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import command_line, source_of

if TYPE_CHECKING:
    from pipeline.contract.settings import SourceSettings
    from pipeline.recipe.draft.draft import Draft

_PLACE = "FILE"
_WAYS = "A file, folder, glob, world:PART or hub:ID"


def init(
    file: Annotated[Path, typer.Argument(help="The recipe to write.", metavar="RECIPE")],
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="What it starts from: a folder, .gguf file or hub id."),
    ] = None,
    sft: Annotated[
        list[str] | None,
        typer.Option(metavar=_PLACE, help=f"Demonstrations; repeatable. {_WAYS}."),
    ] = None,
    pairs: Annotated[
        list[str] | None, typer.Option(metavar=_PLACE, help="Pairs of a better and a worse answer.")
    ] = None,
    rankings: Annotated[
        list[str] | None, typer.Option(metavar=_PLACE, help="Ranked answers, two or more a prompt.")
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(metavar=_PLACE, help="Further prompts for PPO, beside those of the others."),
    ] = None,
    texts: Annotated[
        list[str] | None,
        typer.Option(metavar=_PLACE, help="Texts to pretrain on; without a model from nothing."),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OPTION:OURS=THEIRS,...",
            help="Which columns to read, such as sft:prompt=q,completion=a; repeatable.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace RECIPE if it is there.")] = False,
) -> None:
    """Look at your data and model, and write a short recipe that runs on them."""
    from data.errors import UsageError
    from data.storage import require_file_place
    from pipeline.recipe.draft.draft import draft

    if file.suffix not in (".yaml", ".yml"):
        raise UsageError(f"{file}: a recipe's name ends in .yaml; name another file")
    if not file.parent.is_dir():
        raise UsageError(f"{file}: there is no folder {file.parent}; make it first")
    require_file_place(file)
    if file.exists() and not force:
        raise UsageError(f"{file} is there already; name another file, or replace it by --force")
    named = {"sft": sft, "pairs": pairs, "rankings": rankings, "prompts": prompts, "texts": texts}
    typed = command_line("init", file, {
        "--model": model, **{f"--{kind}": given for kind, given in named.items()},
        "--columns": columns,
    })  # fmt: skip
    sources = _mapped(named, columns or [])
    made = draft(model, sources, path=file, command=typed)
    _write(made, file)


def _write(made: Draft, file: Path) -> None:
    """Write a recipe once its stages are known to fit, and tell what is in it and what is next."""
    from data.storage import storage_errors, write_atomically
    from pipeline.run.checking import check_recipe

    warnings = check_recipe(made.recipe, Path("runs") / made.recipe.name)
    for line in (*made.told, *warnings):
        typer.echo(line)
    with storage_errors(file):
        write_atomically(file, made.text)
    typer.echo(f"{file}: written; stages: {', '.join(made.recipe.stages)}")
    typer.echo(f"next: {command_line('run', file, {})}")


def _mapped(
    named: dict[str, list[str] | None], columns: list[str]
) -> dict[str, list[SourceSettings]]:
    """Return the sources of each option, with the columns that are given for them.

    Raises:
        UsageError: columns are no `OPTION:OURS=THEIRS`, or of an option that is not given.
    """
    from data.errors import UsageError

    given = {kind: places for kind, places in named.items() if places}
    maps: dict[str, dict[str, str]] = {}
    for text in columns:
        kind, colon, pairs = text.partition(":")
        if not colon and len(given) == 1:
            (kind,), pairs = given, text
        parts = [part.partition("=") for part in pairs.split(",")]
        if kind not in given or not all(ours.strip() and theirs for ours, _, theirs in parts):
            raise UsageError(
                f"--columns {text}: write it as {next(iter(given), 'sft')}:prompt=COLUMN,"
                "completion=COLUMN, with an option that is given before the colon"
            )
        maps[kind] = {ours.strip(): theirs for ours, _, theirs in parts}
    return {
        kind: [source_of(p).model_copy(update={"columns": maps.get(kind)}) for p in places]
        for kind, places in given.items()
    }
