"""The tools that a recipe names, and what stages' keys hold of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from data.errors import RecipeError, SourceError
from pipeline.contract.tool_settings import ToolsSettings
from pipeline.generation.tools.registry import TOOLS, tool
from pipeline.generation.tools.toolbox import ToolBox
from pipeline.recipe.load import load_recipe
from pipeline.run.changes import why_changed
from pipeline.run.checking import check_recipe
from pipeline.run.planning import stage_inputs
from reward import plugins
from reward.plugins import load_plugin

MINE = """
from pipeline.generation.tools.registry import tool
@tool("mine")
def mine(text: str) -> str:
    return text
"""


def mine(text: str, *, key: str) -> str:
    return text + key


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_plugins", {})
    monkeypatch.setattr(TOOLS, "functions", dict(TOOLS.functions))


def inputs(folder: Path, tools: Any = None) -> dict[str, Any]:
    """Return what the rankings of a recipe with these tools follow from."""
    stage: dict[str, Any] = {
        "kind": "rankings", "model": str(folder / "policy"), "prompts": [{"world": "rm_prompts"}],
    }  # fmt: skip
    stage |= {} if tools is None else {"tools": tools}
    (folder / "policy").mkdir(exist_ok=True)
    recipe = folder / "r.yaml"
    recipe.write_text(yaml.safe_dump({"stages": {"rank": stage}}))
    return stage_inputs(load_recipe(recipe), "rank")


def test_names_and_mappings_say_the_same() -> None:
    listed = ToolsSettings.model_validate(["calculator", {"name": "translate"}])
    written = {"use": [{"name": "calculator", "options": {}}, "translate"], "max_calls": 8}
    assert listed == ToolsSettings.model_validate(written)
    box = ToolBox.of(listed, tokenizer=None)
    assert [*box.tools] == ["calculator", "translate"] and box.max_calls == 8


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        (["calculator", "calculator"], "tool 'calculator' is named twice"),
        ([], "at least 1 item"),
        ({"max_calls": 3}, "no tool is named; name one in `use`, or a corpus in `search`"),
        ({"use": ["search"], "search": {"corpus": [{"world": "corpus"}]}}, "'search' is named tw"),
        ({"use": ["calculator"], "form": "json"}, "'inline' or 'template'"),
        ({"search": {"corpus": []}}, "at least 1 item"),
        ({"search": {"passages": 2}}, "search.corpus"),
        ({"use": ["calculator"], "max_calls": 0}, "greater than 0"),
        ({"use": ["calculator"], "max_characters": 3}, "greater than or equal to 20"),
        ([{"nam": "calculator"}], "nam"),
    ],
)
def test_what_makes_no_sense_is_refused(tools: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ToolsSettings.model_validate(tools)


def test_without_tools_a_key_is_what_it_was(tmp_path: Path) -> None:
    plain = inputs(tmp_path)
    assert "tools" not in plain and "tools" not in plain["settings"]
    called = inputs(tmp_path, ["calculator"])
    # Ours are a part of the program, whose version the key has.
    assert "tools" not in called and called["settings"]["tools"]["max_calls"] == 8
    assert {k: v for k, v in called["settings"].items() if k != "tools"} == plain["settings"]


def test_a_users_tool_is_part_of_the_key_by_its_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    plugin = load_plugin(file)
    before = inputs(tmp_path, ["mine"])
    assert before["tools"] == {"mine": plugin.sha256}
    file.write_text(MINE + "# changed\n")
    load_plugin(file)
    now = inputs(tmp_path, ["mine"])
    assert why_changed(before, now, beside=({}, {})) == "tool mine changed"


def test_files_that_tools_read_are_part_of_the_key(tmp_path: Path) -> None:
    words = tmp_path / "words.tsv"
    tools = [{"name": "translate", "options": {"words": str(words)}}]
    with pytest.raises(SourceError, match=r"stages.rank.tools.use.0: .*words.tsv"):
        inputs(tmp_path, tools)
    words.write_text("a\tb\n")
    before = inputs(tmp_path, tools)["sources"]
    words.write_text("a\tc\n")
    assert before != inputs(tmp_path, tools)["sources"]


def test_the_corpus_of_a_search_is_part_of_the_key(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("Mara keeps 12 goats.\n")
    tools = {"use": ["calculator"], "search": {"corpus": [{"path": str(corpus)}]}}
    before = inputs(tmp_path, tools)
    assert "search" not in inputs(tmp_path, ["calculator"])["settings"]["tools"]
    corpus.write_text("Mara keeps 13 goats.\n")
    now = inputs(tmp_path, tools)
    assert "tools.search.corpus.0" in why_changed(before, now, beside=({}, {}))


def test_a_corpus_that_cannot_be_searched_is_refused_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"\xe9t\xe9")
    search = {"corpus": [{"path": str(tmp_path / "latin.txt")}]}
    stage = {"kind": "rankings", "model": "base/model", "prompts": [{"world": "rm_prompts"}]}
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump({"stages": {"rank": stage | {"tools": {"search": search}}}}))
    with pytest.raises(SourceError, match=r"rank: tools.search.corpus.*latin.txt is not UTF-8"):
        check_recipe(load_recipe(recipe), tmp_path / "run")


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        (["search"], "tool 'search' needs a corpus: write"),
        (["mine"], "tool 'mine' needs its setting key"),
        (["calculater"], "no tool is called 'calculater'.*Did you mean 'calculator'"),
        ([{"name": "calculator", "options": {"a": 1}}], "tool 'calculator' has no setting a"),
    ],
)
def test_a_tool_that_cannot_be_had_is_refused(tmp_path: Path, tools: Any, message: str) -> None:
    tool("mine")(mine)
    with pytest.raises(RecipeError, match=f"stages.rank.tools.use.0: {message}"):
        inputs(tmp_path, tools)
