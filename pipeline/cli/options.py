"""Options that several commands of `rlhf` take."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pipeline.contract.retrieval import ReadingSettings
    from pipeline.contract.settings import SourceSettings

RecipeArgument = Annotated[
    Path, typer.Argument(help="Recipe file, or a name of `rlhf recipes`.", metavar="RECIPE")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Change a setting; stage.key=value works too."),
]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="Run folder; runs/<recipe> when not given.")
]
PluginOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin", metavar="FILE", help="Python file with reward functions or tools; repeatable."
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]
AssumeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--assume",
        metavar="STAGE.QUANTITY=N",
        help="rows, prompt_tokens, answer_tokens, longest, response_tokens of a stage.",
    ),
]
RetrieveOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CORPUS",
        help="Look each prompt up in a file, a folder or world:PART; repeatable.",
    ),
]
PassagesOption = Annotated[
    int | None, typer.Option(min=1, max=100, help="Passages of a prompt; 3 when not given.")
]
PassageTokensOption = Annotated[
    int | None, typer.Option(min=1, help="Tokens of all passages of a prompt; 200 when not given.")
]
ToolsOption = Annotated[
    str | None,
    typer.Option(metavar="NAMES", help="Tools that answers may call, such as calculator,search."),
]
CorpusOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CORPUS",
        help="What the tool search looks up: a file, a folder or world:PART; repeatable.",
    ),
]
ToolFormOption = Annotated[
    str | None,
    typer.Option(
        metavar="inline|template",
        help="How calls are written: <<1+1=2>>, or as the checkpoint's chat template has them.",
    ),
]
SeedOption = Annotated[int | None, typer.Option(help="Seed of the recipe.")]


def load_plugins(paths: list[Path] | None, expected: list[str] | None = None) -> None:
    """Run the user's files, each as it was for the process that started this one, if one did."""
    if paths:
        from reward.plugins import load_plugin

        for place, path in enumerate(paths):
            load_plugin(path, sha256=expected[place] if expected else None)


def source_of(text: str) -> SourceSettings:
    """Return the source that a file, `world:PART` or `hub:ID` names."""
    from pipeline.contract.settings import SourceSettings

    if text.startswith("world:"):
        return SourceSettings(world=text.removeprefix("world:"))
    if text.startswith("hub:"):
        return SourceSettings(hub=text.removeprefix("hub:"))
    return SourceSettings(path=text)


def reading_of(
    corpus: list[str] | None, passages: int | None, passage_tokens: int | None
) -> ReadingSettings | None:
    """Return how prompts are looked up; None where no corpus is named.

    Raises:
        UsageError: of passages something is asked without a corpus.
    """
    from data.errors import UsageError
    from pipeline.contract.retrieval import ReadingSettings

    given = {"passages": passages, "passage_tokens": passage_tokens}
    asked: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if not corpus:
        if asked:
            option = next(iter(asked)).replace("_", "-")
            raise UsageError(f"--{option} is for --retrieve; name a corpus with it")
        return None
    return ReadingSettings(corpus=tuple(map(source_of, corpus)), **asked)


def tools_of(names: str | None, corpus: list[str] | None, form: str | None = None) -> Any:
    """Return the tools that a line of names, a corpus of search and a form stand for, as settings.

    Raises:
        UsageError: there is a corpus and no search, or a form and no tool.
    """
    from data.errors import UsageError
    from pipeline.contract.tool_settings import SEARCH

    use = [name for each in (names or "").split(",") if (name := each.strip())]
    given: dict[str, Any] = {}
    if form is not None:
        if not use:
            raise UsageError("--tool-form is for tools; name them in --tools")
        given["form"] = form
    if corpus:
        if SEARCH not in use:
            raise UsageError("--corpus is for the tool search; name it in --tools")
        use.remove(SEARCH)
        given["search"] = {"corpus": list(map(source_of, corpus))}
    return {**given, **({"use": use} if use else {})} if given else names


def command_line(command: str, argument: Path, options: Mapping[str, object]) -> str:
    """Return a command as it is typed.

    Args:
        command: of `rlhf`.
        argument: its argument.
        options: value by option; a list repeats it, true is a flag, None and false leave it out.
    """
    words = ["rlhf", *command.split(), str(argument)]
    for option, value in options.items():
        if value is True:
            words.append(option)
        elif isinstance(value, list):
            words += [word for item in value for word in (option, str(item))]
        elif value is not None and value is not False:
            words += [option, str(value)]
    return shlex.join(words)
