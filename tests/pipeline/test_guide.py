"""The guide in commands, `recipes/README.md`: each of its commands is what the product takes."""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import typer

from pipeline.cli.main import app
from pipeline.recipe.load import Recipe, load_recipe
from pipeline.recipe.shipped import find_shipped
from pipeline.run.checking import check_stages
from pipeline.run.planning import Planner

ROOT = Path(__file__).parents[2]
ROWS = [
    re.split(r"(?<!\\)\|", line)[1:-1]
    for line in (ROOT / "recipes" / "README.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("|")
][2:]
COMMANDS = [command for row in ROWS for command in re.findall(r"`([^`]+)`", row[1])]
QUICK = [one for one in COMMANDS if one.startswith(("rlhf tokenizer", "rlhf chat runs/quickstart"))]


def parsed(words: list[str]) -> click.Context:
    """Return what the command line understands of `rlhf WORDS`."""
    command: Any = typer.main.get_command(app)
    context = command.make_context("rlhf", words)
    while isinstance(command, click.Group):
        name, command, rest = command.resolve_command(
            context, [*context.protected_args, *context.args]
        )
        context = command.make_context(name, rest, parent=context)
    return context


def recipe_of(run: str) -> Recipe:
    shipped = find_shipped(run)
    assert shipped is not None, run
    return load_recipe(shipped, [])


def test_every_row_has_an_idea_commands_a_time_and_what_was_seen() -> None:
    assert len(ROWS) > 15 and all(len(row) == 4 for row in ROWS)
    assert all(cell.strip() for row in ROWS for cell in row)
    assert all("`" in row[1] for row in ROWS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_understood(command: str, tmp_path: Path) -> None:
    words = shlex.split(command.partition(" <<< ")[0])
    for run, stage in re.findall(r"runs/(\w+)/(\w+)", command):
        assert stage in recipe_of(run).stages
    if words[0] == "python":
        file = next(word for word in words if word.endswith(".py"))
        text = (ROOT / file).read_text(encoding="utf-8")
        assert "-k" not in words or words[words.index("-k") + 1] in text
        return
    assert words[0] == "rlhf"
    context = parsed(words[1:])
    if context.info_name == "run":
        given = context.params
        recipe = load_recipe(find_shipped(str(given["recipe"])) or Path(), given["overrides"] or [])
        planner = Planner(recipe, tmp_path)
        planner.plan()
        check_stages(planner)
        assert given["until"] is None or given["until"] in recipe.stages


@pytest.mark.parametrize("command", QUICK)
def test_what_takes_seconds_runs(
    command: str, rlhf: Callable[..., Any], finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for ours in ("tok", "base", "sft", "ppo"):
        stage = Path("runs/quickstart", {"tok": "tokenizer"}.get(ours, ours))
        stage.parent.mkdir(exist_ok=True)
        stage.symlink_to((finished / ours).resolve())
    words, _, given = command.partition(" <<< ")
    said = subprocess.run(["bash", "-c", f"printf %s {given}"], capture_output=True, check=True)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(said.stdout)))
    short = ["--max-new-tokens", "4"] if " chat " in words else []
    result = rlhf(*shlex.split(words)[1:], *short)
    assert result.code == 0 and result.out.strip() and not result.err, result


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clone")
    for name in ("recipes", "tests", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_runs(command: str, clone: Path) -> None:
    bin_folder = Path(sys.executable).parent
    needed = dict.fromkeys(run for run, _ in re.findall(r"runs/(\w+)/(\w+)", command))
    for line in (*(f"rlhf run {run}" for run in needed), command):
        words = f'PATH="{bin_folder}:$PATH"; {line}'
        subprocess.run(["bash", "-ec", words], cwd=clone, check=True)
