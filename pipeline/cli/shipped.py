"""`rlhf recipes` and `rlhf copy`: what comes with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def recipes() -> None:
    """List the recipes that come with rlhf, and the configurations to launch processes with."""
    from pipeline.recipe.shipped import headline, shipped_files

    files = shipped_files()
    width = max(map(len, files))
    for name, path in files.items():
        typer.echo(f"{name:{width}}  {headline(path)}")


def copy(
    name: Annotated[str, typer.Argument(help="A name of `rlhf recipes`.", metavar="NAME")],
    file: Annotated[
        Path | None, typer.Argument(help="Where to; here when not given.", metavar="[FILE]")
    ] = None,
) -> None:
    """Copy a recipe that comes with rlhf, to change it."""
    import yaml

    from data.errors import UsageError, nearest
    from data.storage import storage_errors, write_atomically
    from pipeline.recipe.shipped import find_shipped, shipped_files

    shipped = find_shipped(name)
    if shipped is None:
        raise UsageError(
            f"{name}: nothing of that name comes with rlhf, see `rlhf recipes`."
            f"{nearest(name, shipped_files())}"
        )
    target, text = file or Path(shipped.name), shipped.read_text(encoding="utf-8")
    if target.exists():
        raise UsageError(f"{target} is there already; name another file: rlhf copy {name} FILE")
    with storage_errors(target):
        write_atomically(target, text)
    bases = yaml.safe_load(text).get("extends", ())
    names = ", ".join([bases] if isinstance(bases, str) else bases)
    also = f"; it extends {names}, yours if beside it, else rlhf's" if names else ""
    typer.echo(f"{target}: copied{also}")
