"""Tools by their names: typed Python functions that a model calls while it writes.

What a call gives are the parameters that stand by position: texts, numbers, true or false. What
follows a `*` are settings that a recipe gives; a `Path` among them is a file or folder whose
content the result follows from. A function gives a text, the same for the same arguments. The first
paragraph of its docstring is what a model is told. Whoever has one of their own puts it into a
file for `--plugin` (`reward.plugins`):

    from pipeline.generation.tools.registry import tool

    @tool("weather")
    def weather(city: str, days: int = 1, *, unit: str = "C") -> str:
        "Tell the weather of a city in so many days."
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_type_hints

from data.errors import RecipeError, UsageError, in_words
from reward.plugins import Function, Registry

TOOLS = Registry("tool", label="tool", example="weather")
"""All tools by their names."""

_JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}
_READ: dict[type, Callable[[str], Any]] = {
    str: str, int: int, float: float, bool: lambda text: ("false", "true").index(text.lower()) == 1
}  # fmt: skip
_NAME = r"[A-Za-z_][A-Za-z0-9_]*"


def tool(name: str) -> Callable[[Function], Function]:
    """Register a function as the tool of this name; the function itself stays as it is.

    Raises:
        UsageError: another tool has the name, or it is none; or the function is none that a model
            can call.
    """

    def register(function: Function) -> Function:
        ToolSpec.of(name, function)
        return TOOLS.decorator(name)(function)

    return register


@dataclass(frozen=True)
class ToolSpec:
    """A tool, and what a model must know to call it.

    Attributes:
        name: what it is called.
        parameters: name and type of what a call gives, in order.
        required: those of them that have no default.
        description: what it does.
        function: does it.
        settings: names of what a recipe may give, with their types.
        needed: those of them that have no default.
        options: what it gave.
    """

    name: str
    parameters: Mapping[str, type]
    required: tuple[str, ...]
    description: str
    function: Callable[..., str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    needed: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, function: Callable[..., str]) -> ToolSpec:
        """Return a function as a tool, without options.

        Raises:
            UsageError: its name or a parameter is none that a model can give.
        """
        if not re.fullmatch(_NAME, name):
            raise UsageError(f"a tool's name has letters, digits and _, which '{name}' has not")
        try:
            hints = get_type_hints(function)
        except Exception as error:  # an annotation that is no type
            raise UsageError(f"tool '{name}': its annotations: {in_words(error)}") from error
        given, settings = dict[str, type](), dict[str, Any]()
        required, needed = list[str](), list[str]()
        for one in inspect.signature(function).parameters.values():
            if one.kind is one.KEYWORD_ONLY:
                settings[one.name] = hints.get(one.name, Any)
                needed += [one.name] if one.default is one.empty else []
            elif one.kind is one.POSITIONAL_OR_KEYWORD and hints.get(one.name) in _JSON_TYPES:
                given[one.name] = hints[one.name]
                required += [one.name] if one.default is one.empty else []
            else:
                raise UsageError(
                    f"tool '{name}': parameter {one.name} must be annotated as one of "
                    f"{', '.join(each.__name__ for each in _JSON_TYPES)}, which a call can give"
                )
        told = (inspect.getdoc(function) or "").partition("\n\n")[0]
        told = " ".join(told.split())
        return cls(name, given, tuple(required), told, function, settings, tuple(needed))

    def with_options(self, options: Mapping[str, Any]) -> ToolSpec:
        """Return the tool with the settings of a recipe.

        Raises:
            RecipeError: it does not take one of them, or needs another one.
        """
        for name in options:
            if name not in self.settings:
                known = ", ".join(self.settings) or "none"
                raise RecipeError(f"tool '{self.name}' has no setting {name}; it has {known}")
        missing = next((name for name in self.needed if name not in options), None)
        if missing is not None:
            raise RecipeError(
                f"tool '{self.name}' needs its setting {missing}: write "
                f"{{name: {self.name}, options: {{{missing}: ...}}}}"
            )
        made = {
            name: Path(value) if value is not None and name in self.path_settings else value
            for name, value in options.items()
        }
        return ToolSpec(**{**vars(self), "options": made})

    @property
    def path_settings(self) -> list[str]:
        """The settings that name a file or folder."""
        return [n for n, kind in self.settings.items() if kind is Path or Path in get_args(kind)]

    @property
    def schema(self) -> dict[str, Any]:
        """The tool as chat templates take it in `tools`."""
        properties = {name: {"type": _JSON_TYPES[kind]} for name, kind in self.parameters.items()}
        parameters = {
            "type": "object", "properties": properties, "required": [*self.required]
        }  # fmt: skip
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": function}

    def call(self, arguments: Mapping[str, Any]) -> str:
        """Return what the tool gives.

        Raises:
            ToolError: the arguments are not the tool's, or it gives no text.
            Exception: whatever the function raises.
        """
        given = self._arguments(arguments)
        result = self.function(**given, **self.options)
        if not isinstance(result, str):
            raise ToolError(f"{self.name} gave a {type(result).__name__}, not a text")
        return result

    def _arguments(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        stray = [name for name in arguments if name not in self.parameters]
        missing = [name for name in self.required if name not in arguments]
        if stray or missing:
            what = f"takes no {stray[0]}" if stray else f"needs {missing[0]}"
            raise ToolError(f"{self.name} {what}; it takes {', '.join(self.parameters)}")
        return {name: self._as(name, value) for name, value in arguments.items()}

    def _as(self, name: str, value: Any) -> Any:
        """Return an argument as its parameter has it; one that is written as text is read."""
        kind = self.parameters[name]
        if isinstance(value, str | int | float):
            text = value if isinstance(value, str) else json.dumps(value)
            with suppress(ValueError):
                return _READ[kind](text.strip())
        raise ToolError(f"{name} is {value!r:.40}, which is no {_JSON_TYPES[kind]}")


class ToolError(ValueError):
    """Why a call has no result; its text is told to the model."""
