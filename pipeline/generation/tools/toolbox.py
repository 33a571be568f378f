"""Executes the calls that a model writes while it is sampled from.

A call that fails has a text for its result that says why, and sampling goes on. A call has a time:
a signal interrupts it, since a thread can't be stopped and a process of its own would hold a second
copy of the weights. So Python code, its sleeps, sockets, locks, patterns and large numbers are
interrupted; what a library computes without coming back to Python is waited for. Signals reach the
main thread alone; in another one calls have no time.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pipeline.generation.tools.builtin  # noqa: F401  (registers them)
from data.errors import ControlTokenError, RecipeError, in_words
from data.sources.fingerprint import fingerprint
from data.sources.source import Source
from pipeline.contract.tool_settings import SEARCH
from pipeline.generation.tools.calls import Asked, Call, Form, InlineForm
from pipeline.generation.tools.registry import TOOLS, ToolError, ToolSpec
from pipeline.generation.tools.search import SPEC, search_tool
from pipeline.generation.tools.template_form import TemplateForm, tell_tools

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from data.records import Prompt
    from pipeline.contract.tool_settings import ToolsSettings

ERROR = "error: "
"""Begins the result of a call that failed."""
_MORE = "..."
_AGAIN = 0.5
"""Seconds after which a tool that goes on all the same is interrupted again."""


def find_tool(name: str, **options: Any) -> ToolSpec:
    """Return a registered tool with the settings of a recipe.

    Raises:
        RecipeError: no tool has this name, or it does not take the settings, or needs more.
    """
    if name == SEARCH and name not in TOOLS.functions:
        raise RecipeError(
            "tool 'search' needs a corpus: write `tools: {search: {corpus: [{path: FILE}]}}` in a "
            "recipe, or --corpus FILE beside --tools"
        )
    return ToolSpec.of(name, TOOLS.find(name).function).with_options(options)


class ToolKey(NamedTuple):
    """What the results of a tool follow from besides its settings.

    Attributes:
        functions: sha256 of the user's file by the tool's name; nothing of one of ours.
        files: fingerprints of files that settings name.
    """

    functions: dict[str, str]
    files: dict[str, Any]


def tools_content(settings: ToolsSettings) -> list[Any]:
    """Return all that the results of tools follow from, as JSON.

    Raises:
        RecipeError: as `find_tool`.
        SourceError: a file is not there.
    """
    corpus = settings.search.corpus if settings.search else ()
    return [
        settings.model_dump(mode="json"),
        [tool_key(choice.name, choice.options) for choice in settings.use],
        *(fingerprint(source.source()) for source in corpus),
    ]


def tool_key(name: str, options: Mapping[str, Any]) -> ToolKey:
    """Return what the results of a tool follow from.

    Raises:
        RecipeError: as `find_tool`.
        SourceError: a file is not there.
    """
    spec = find_tool(name, **options)
    ours = spec.function.__module__.startswith("pipeline.")
    files = {
        each: fingerprint(Source(path=str(path)))
        for each in spec.path_settings
        if (path := spec.options.get(each)) is not None
    }
    return ToolKey({} if ours else {name: TOOLS.sha256(name)}, files)


class ToolBox:
    """The tools of a checkpoint's responses.

    Attributes:
        tools: by their names.
        form: how calls are written.
    """

    def __init__(
        self,
        tools: Sequence[ToolSpec],
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_calls: int = 8,
        max_characters: int = 500,
        max_seconds: float = 10.0,
        form: Literal["inline", "template"] = "inline",
    ) -> None:
        """Hold tools.

        Args:
            tools: none twice.
            tokenizer: of what calls them.
            max_calls: of a response; those after them are text.
            max_characters: of a result; what is more is cut off.
            max_seconds: of a call.
            form: how calls are written.

        Raises:
            ModelError: the chat template writes no calls that can be read.
        """
        self.tools = {spec.name: spec for spec in tools}
        self.form: Form = (
            InlineForm(tokenizer, self.tools)
            if form == "inline"
            else TemplateForm(tokenizer, [spec.schema for spec in tools])
        )
        self.max_calls, self.max_characters = max_calls, max_characters
        self.max_seconds = max_seconds

    @classmethod
    def of(
        cls,
        settings: ToolsSettings,
        tokenizer: PreTrainedTokenizerBase,
        say: Callable[[str], None] | None = None,
    ) -> ToolBox:
        """Return the tools that settings name; `say` is told of the index of a corpus.

        Raises:
            RecipeError: as `find_tool`.
            SourceError: the corpus of a search can't be read, or holds no words.
            UsageError: bm25s is not installed, which a search needs.
        """
        tools = [find_tool(choice.name, **choice.options) for choice in settings.use]
        if settings.search is not None:
            tools.append(search_tool(settings.search, tokenizer, say or (lambda _: None)))
        return cls(
            tools,
            tokenizer,
            max_calls=settings.max_calls,
            max_characters=settings.max_characters,
            max_seconds=settings.max_seconds,
            form=settings.form,
        )

    def call(self, asked: Asked) -> Call:
        """Return a call with its result, whatever comes of it."""
        arguments = asked.arguments
        try:
            if asked.problem:
                raise ToolError(asked.problem)
            if asked.name not in self.tools:
                known = ", ".join(self.tools)
                raise ToolError(f"no tool is called {asked.name!r:.40}; known: {known}")
            spec = self.tools[asked.name]
            if isinstance(arguments, list):
                arguments = _named(spec, arguments)
            given = arguments
            result, error = within(self.max_seconds, lambda: spec.call(given)), False
        except TimeUpError:
            result, error = f"{asked.name} took more than {self.max_seconds:g} s", True
        except (Exception, SystemExit) as raised:
            what = "" if isinstance(raised, ValueError) else f"{type(raised).__name__}: "
            result, error = f"{what}{in_words(raised)}", True
        result = self.form.clean(f"{ERROR if error else ''}{_encodable(result)}")
        cut = len(result) > self.max_characters
        if cut:
            result = self.form.clean(result[: self.max_characters - len(_MORE)] + _MORE)
        named = arguments if not isinstance(arguments, list) else {"": "|".join(arguments)}
        return Call(asked.name, dict(named), result, error, cut)


def toolbox(
    settings: ToolsSettings | None,
    tokenizer: PreTrainedTokenizerBase,
    say: Callable[[str], None] | None = None,
) -> ToolBox | None:
    """Return the tools that settings name, as `ToolBox.of`; None without settings."""
    return None if settings is None else ToolBox.of(settings, tokenizer, say)


def told_schemas(settings: ToolsSettings | None) -> list[dict[str, Any]]:
    """Return what a chat template is told of the tools that settings name; else nothing."""
    if settings is None or settings.form == "inline":
        return []
    named = [find_tool(choice.name, **choice.options) for choice in settings.use]
    return [spec.schema for spec in (*named, *([SPEC] if settings.search else []))]


def told(settings: ToolsSettings | None, prompt: Prompt) -> Prompt:
    """Return a prompt as it tells of the tools that settings name.

    Raises:
        UsageError: it is plain text, and a chat template tells of them.
    """
    schemas = told_schemas(settings)
    return tell_tools(prompt, schemas) if schemas else prompt


def _named(spec: ToolSpec, arguments: list[str]) -> dict[str, Any]:
    """Return the arguments of an inline call by their names."""
    names = [*spec.parameters]
    if len(names) == 1:  # which may hold what parts others
        arguments = ["|".join(arguments)]
    if not names and arguments == [""]:
        return {}
    if len(arguments) > len(names):
        raise ToolError(f"{spec.name} takes {len(names)} arguments, not {len(arguments)}")
    return dict(zip(names, arguments, strict=False))


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


class Calling:
    """The calls of the responses to some prompts, which are sampled together; none without a box.

    Attributes:
        calls: those of each response.
        texts: of each, what stands for the tokens that followed its calls, where that is another
            text than theirs.
    """

    def __init__(self, box: ToolBox | None, count: int) -> None:
        self.box = box
        self.calls: list[list[Call]] = [[] for _ in range(count)]
        self.texts: list[list[str]] = [[] for _ in range(count)]
        self.begins = [0] * count  # behind the last result of each

    def follow(self, place: int, ids: Sequence[int], ended: bool, room: int) -> list[int]:
        """Return the tokens that follow a response's last one because of calls that it completes.

        Args:
            place: of the response.
            ids: its tokens.
            ended: whether the last one ends it; with tokens that follow it goes on.
            room: tokens that it may still have.
        """
        box = self.box
        if box is None or room == 0:
            return []
        asked = box.form.asked(ids, self.begins[place], ended=ended)
        if not asked or len(self.calls[place]) + len(asked) > box.max_calls:
            return []
        calls = [box.call(one) for one in asked]
        try:
            follow = box.form.answer(calls)
        except ControlTokenError:
            spells = f"{ERROR}the result spells a control token"
            calls = [replace(call, result=spells, error=True) for call in calls]
            follow = box.form.answer(calls)
        if len(follow) > room:
            calls[-1] = replace(calls[-1], cut=True)
            follow = follow[:room]
        self.calls[place] += calls
        text = box.form.text(calls)
        self.texts[place] += [] if text is None else [text]
        self.begins[place] = len(ids) + len(follow)
        return follow


class TimeUpError(BaseException):
    """A call took too long; none that a tool's `except Exception` takes for its own."""


def within(seconds: float, call: Callable[[], str]) -> str:
    """Return what a call gives.

    Raises:
        TimeUpError: it took more seconds, and was interrupted.
    """
    if threading.current_thread() is not threading.main_thread():
        return call()

    def interrupt(*_: Any) -> None:
        raise TimeUpError

    handler = signal.signal(signal.SIGALRM, interrupt)
    timer = signal.getitimer(signal.ITIMER_REAL)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)
            return call()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:  # it may have come up just before the timer was stopped
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)
