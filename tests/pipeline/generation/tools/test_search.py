"""The tool that looks up a corpus."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.options import tools_of
from pipeline.contract.tool_settings import ToolsSettings
from pipeline.generation.tools.calls import Asked
from pipeline.generation.tools.toolbox import ToolBox

CORPUS = "The price of C is 7. The price of D is 12. The price of E is 1,200.50."


@pytest.fixture
def box(
    tiny_tokenizer: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., ToolBox]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "corpus.txt").write_text(CORPUS.replace(". ", ".\n"))

    def build(**changes: Any) -> ToolBox:
        search = {"corpus": [{"path": str(tmp_path / "corpus.txt")}], **changes}
        said: list[str] = []
        settings = ToolsSettings.model_validate({"search": search, "max_seconds": 1e-9})
        made = ToolBox.of(settings, tiny_tokenizer(), said.append)
        assert made is not None and said[-1].startswith("index of ")
        made.max_seconds = 10.0  # an index that was made within a call would have had no time
        (tmp_path / "corpus.txt").unlink()
        return made

    return build


def test_numbers_and_names_of_one_letter_are_found(box: Callable[..., ToolBox]) -> None:
    made = box(passage_tokens=8)  # a sentence a passage
    asked = {
        "What is D?": "D is 12.",
        "12": "D is 12.",
        "1200.50": "E is 1,200.50.",
        "c": "C is 7.",
    }
    made.tools["search"].call({"query": "C"})
    for query, found in asked.items():
        call = made.call(Asked("search", [query]))
        assert call.arguments == {"query": query} and not call.error
        assert f"The price of {found}".startswith(call.result)


def test_what_is_not_found_is_told_and_what_is_too_long_is_cut(
    box: Callable[..., ToolBox], tiny_tokenizer: Callable[..., Any]
) -> None:
    made = box(passages=3, passage_tokens=12)
    call = made.call(Asked("search", ["weather in Rome"]))
    assert call.error and call.result == "error: no passage has a word of 'weather in Rome'"
    call = made.call(Asked("search", ["price"]))
    tokens = tiny_tokenizer()(call.result)["input_ids"]
    assert CORPUS.startswith(call.result) and len(tokens) <= 12


def test_a_command_line_names_its_corpus() -> None:
    made = ToolsSettings.model_validate(tools_of("calculator, search", ["world:corpus"]))
    assert made.names == ["calculator", "search"] and made.search
    assert made.search.corpus[0].world == "corpus" and made.search.passages == 1
    assert tools_of("calculator", None) == "calculator"
    made = ToolsSettings.model_validate(tools_of("calculator", None, "template"))
    assert made.names == ["calculator"] and made.form == "template"
