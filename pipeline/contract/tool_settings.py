"""Settings of the tools that responses may call; what they do is in `pipeline.generation.tools`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, model_validator

from pipeline.contract.retrieval import SearchSettings
from pipeline.contract.settings import PositiveInt, PositiveNumber, SameResult, Settings

SEARCH = "search"
"""The tool that looks up a corpus."""
NO_TURNS = (
    "is an encoder-decoder, whose decoder writes no turns of a chat, and with `form: template` "
    "calls and results are such turns; set `form: inline` of its tools"
)
"""Ends the sentence that refuses such a checkpoint."""


class ToolChoice(Settings):
    """A tool; its name alone, where it takes no settings."""

    name: str
    """calculator, calendar, translate, or one of yours in a Python file that `--plugin` gives."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """Its settings, such as `today: 2026-01-01` of the calendar."""

    @model_validator(mode="before")
    @classmethod
    def _may_be_a_name(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given


class ToolsSettings(Settings):
    """The tools that responses may call; a list or a line of names, where the limits stay."""

    use: Annotated[tuple[ToolChoice, ...], Field(min_length=1)] = ()
    """Each a name, or a mapping of name and options."""
    # Left out where it is not given: runs from before there was such a setting go on.
    search: SearchSettings | None = Field(None, exclude_if=lambda given: given is None)
    """The tool `search`, which looks up a corpus, such as {corpus: [{world: corpus}]}."""
    form: Literal["inline", "template"] = Field(
        "inline", exclude_if=lambda given: given == "inline"
    )
    """How calls are written: `<<48/2=24>>`, or as the checkpoint's chat template writes them, which
    tells of the tools, too."""
    max_calls: PositiveInt = 8
    """Most calls of a response; those after them are text."""
    max_characters: Annotated[int, Field(ge=20)] = 500
    """Most characters of a result; what is more is cut off."""
    max_seconds: PositiveNumber = 10.0
    """Most seconds of a call."""

    @model_validator(mode="before")
    @classmethod
    def _may_be_a_list(cls, given: Any) -> Any:
        if isinstance(given, str):
            given = [name.strip() for name in given.split(",")]
        return {"use": given} if isinstance(given, list | tuple) else given

    @model_validator(mode="after")
    def _names_apart(self) -> ToolsSettings:
        if not self.names:
            raise ValueError("no tool is named; name one in `use`, or a corpus in `search`")
        twice = next((name for name in self.names if self.names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"tool '{twice}' is named twice; name it once")
        return self

    @property
    def names(self) -> list[str]:
        """The names of the tools."""
        return [choice.name for choice in self.use] + ([SEARCH] if self.search else [])


def inline_alone(tools: ToolsSettings | None) -> ToolsSettings | None:
    """Refuse calls in the form of a chat template where calls stand in texts.

    Raises:
        ValueError: they are in that form.
    """
    if tools is not None and tools.form != "inline":
        raise ValueError(
            "calls in the form of a chat template are turns of a chat, whose results are learned "
            "nowhere: leave out `form`"
        )
    return tools


class CallsTools(Settings):
    """What stages have that sample from a checkpoint."""

    tools: Annotated[ToolsSettings | None, SameResult(where="calls_no_tools")] = None
    """Tools that responses may call, such as [calculator]; none when not given."""

    @property
    def calls_no_tools(self) -> bool:
        """Whether there are no tools; they are no part of the key then."""
        return self.tools is None
