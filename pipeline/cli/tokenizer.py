"""`rlhf tokenizer`: how a tokenizer cuts a text.

Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import json
from typing import Annotated

import typer

tokenizer = typer.Typer(
    help="Tokenizers: the pieces of a text, and the merges that made them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@tokenizer.callback()
def _commands() -> None:
    """Be a group although there is but one command."""


@tokenizer.command()
def show(
    model: Annotated[str, typer.Argument(help="Stage folder, model folder, .gguf file or hub id.")],
    text: Annotated[str, typer.Argument(help="What is cut.")],
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code a checkpoint carries.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the pieces of a text, their ids and bytes, and which pairs merged in which order."""
    from data.storage import expand
    from data.text import merges
    from data.words import counted
    from pipeline.contract.handover import model_folder
    from pipeline.models.load import load_tokenizer

    folder = expand(model)
    found = merges.pieces(
        load_tokenizer(
            model_folder(folder) if folder.is_dir() else model, trust_remote_code=trust_remote_code
        ),
        text,
    )
    size = sum(len(piece.bytes) for piece in found)
    rate = size / max(1, len(found))
    if as_json:
        rows = [
            {**one._asdict(), "bytes": one.bytes.hex(" "), "made": merges.as_json(one.made)}
            for one in found
        ]
        content = {"text": text, "pieces": rows, "bytes": size, "bytes_per_token": rate}
        typer.echo(json.dumps(content, indent=2))
        return
    typer.echo(f"{counted(len(found), 'token')}, {counted(size, 'byte')}, {rate:.2f} bytes a token")
    for one in found:
        typer.echo(f"{one.name}  id {one.id}, bytes {one.bytes.hex(' ') or 'none'}")
        for line in merges.picture(one.made, deep=1) if one.made is not None else ():
            typer.echo(line)
    if any(one.made is None for one in found):
        typer.echo("no picture: the merges of this tokenizer, if it has any, come to other pieces")
