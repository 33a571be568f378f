"""Rewards that a user writes in Python.

A file of the user registers functions, and `rlhf run RECIPE --plugin FILE` loads it; a recipe
names a function alone, `{function: polite}`, so that recipes hold no code:

    from reward.functions import reward

    @reward("polite")
    def polite(prompts, responses):
        return [1.0 if "please" in text.lower() else 0.0 for text in responses]

A function is called once an update, on each process with its share of the episodes. It is given
the prompts (texts, or lists of messages) and the responses, and returns one number each: a list,
an array or a tensor. It may name more parameters: `rows` (the other columns of each prompt's row,
such as `rows[i]["answer"]`), `tokens` (tokens of each response), `ended` (whether it ended by
itself), and any that the recipe gives in `options`.

The file's sha256 is part of the key of the stages that use its functions, so a changed file runs
them again. What else the file imports is not looked at. It may import modules that stand beside it
or on PYTHONPATH, whatever their names (`reward.plugin_modules`).
"""

from __future__ import annotations

import hashlib
import inspect
import math
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from data.errors import RecipeError, RewardError, RlhfError, UsageError, in_words, nearest
from data.small_files import read_file
from reward.plugin_modules import PREFIX, forget_plugin, plugin_package
from reward.scorer import Facts, require_same_length, require_scores

if TYPE_CHECKING:
    from data.records import Prompt

Function = TypeVar("Function", bound=Callable[..., Any])

_FACTS = ("rows", "tokens", "ended")


@dataclass(frozen=True)
class Plugin:
    """A file of the user that was loaded.

    Attributes:
        path: absolute path.
        sha256: of the bytes that were run, in hex.
    """

    path: Path
    sha256: str


@dataclass(frozen=True)
class _Registered:
    """A function, the file that registered it, and where it stands itself."""

    function: Callable[..., Any]
    file: Path
    place: str


_plugins: dict[Path, Plugin] = {}
_functions: dict[str, _Registered] = {}
_loading: list[Path] = []


def reward(name: str) -> Callable[[Function], Function]:
    """Register a function as the reward of this name; the function itself stays as it is.

    Raises:
        UsageError: the name is empty, or another function has it.
    """
    if not isinstance(name, str) or not name:
        raise UsageError(f'a reward needs a name in quotes, @reward("polite"), not {name!r}')

    def register(function: Function) -> Function:
        code = getattr(inspect.unwrap(function), "__code__", None)
        place = f"{code.co_filename}:{code.co_firstlineno}" if code else repr(function)
        file = _loading[-1] if _loading else Path(code.co_filename if code else "").resolve()
        old = _functions.get(name)
        # Outside of `load_plugin`, as in a notebook, a cell may be run again.
        if old is not None and (_loading or old.file != file):
            raise UsageError(
                f"two functions are called '{name}': {old.place} and {place}; rename one"
            )
        _functions[name] = _Registered(function, file, place)
        return function

    return register


def load_plugin(path: str | Path, *, sha256: str | None = None) -> Plugin:
    """Run a file that registers reward functions; one that is loaded already is left alone.

    Args:
        path: Python file.
        sha256: what its content must be, in hex; anything when None.

    Raises:
        UsageError: the file is not there, is not the one expected, fails (names the line), or
            registers nothing.
    """
    where, file = f"--plugin {path}", Path(os.path.realpath(os.path.expanduser(path)))
    try:
        source = read_file(file)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"{where}: {why}; give a Python file with a reward function") from None
    plugin = Plugin(file, hashlib.sha256(source).hexdigest())
    if sha256 is not None and plugin.sha256 != sha256:
        raise UsageError(f"{where}: the file changed since this run started; run it again")
    if _plugins.get(file) == plugin:
        return plugin
    _forget(file)
    before = set(_functions)
    _run(source, file, where)
    if set(_functions) == before:
        raise UsageError(
            f'{where} registers no reward; put @reward("name") of reward.functions above a function'
        )
    _plugins[file] = plugin
    return plugin


def _forget(file: Path) -> None:
    _plugins.pop(file, None)
    for name in [n for n, known in _functions.items() if known.file == file]:
        del _functions[name]


def _run(source: bytes, file: Path, where: str) -> None:
    name = f"{PREFIX}{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    module = plugin_package(name, file)
    _loading.append(file)
    try:
        exec(compile(source, str(file), "exec"), module.__dict__)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: it is no plugin's to end the command
        _forget(file)
        forget_plugin(name)
        if isinstance(error, RlhfError):
            raise UsageError(f"{where}: {error}") from error
        line = error.lineno if isinstance(error, SyntaxError) else _line(error, file)
        at = f", line {line}" if line else ""
        raise UsageError(f"{where}{at}: {type(error).__name__}: {in_words(error)}") from error
    finally:
        _loading.pop()


def _line(error: BaseException, file: Path) -> int | None:
    """Return the line of a file where an error came up, the innermost one."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(file)]
    return lines[-1] if lines else None


def plugins() -> list[Plugin]:
    """Return the files that were loaded, in order."""
    return list(_plugins.values())


def require_function(name: str) -> str:
    """Return the sha256 of the file that registered a function, as it was when it was loaded.

    Raises:
        RecipeError: no such function is registered.
    """
    file = _find(name).file
    if file in _plugins:
        return _plugins[file].sha256
    # Registered by a module that Python imported.
    return hashlib.sha256(file.read_bytes() if file.is_file() else b"").hexdigest()


def _find(name: str) -> _Registered:
    if name in _functions:
        return _functions[name]
    known = f"known: {', '.join(_functions)}." if _functions else "none is known."
    raise RecipeError(
        f"no reward function is called '{name}'; {known}{nearest(name, _functions)} "
        f'Give the file with @reward("{name}") by --plugin'
    )


def function(name: str, /, **options: Any) -> FunctionReward:
    """Return a registered function as a scorer.

    Raises:
        RecipeError: no such function is registered, or it does not take these options.
    """
    known = _find(name)
    parameters = inspect.signature(known.function).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    facts = tuple(fact for fact in _FACTS if (fact in parameters or open_ended))
    given = {fact: None for fact in facts if fact not in options}
    try:
        inspect.signature(known.function).bind([], [], **given, **options)
    except TypeError as error:
        raise RecipeError(
            f"reward function '{name}' ({known.place}) does not take prompts, "
            f"responses and the options {', '.join(options) or '(none)'}: {error}"
        ) from None
    return FunctionReward(name, known.function, known.place, tuple(given), options)


@dataclass(frozen=True)
class FunctionReward:
    """A function of the user; a `Scorer`.

    Attributes:
        name: what it is registered as.
        function: takes prompts, responses, and what it named.
        place: file and line where it stands.
        facts: which facts it wants to be given.
        options: further arguments.
    """

    name: str
    function: Callable[..., Any]
    place: str
    facts: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """Return what the function gives for each response, without facts."""
        return self.score_informed(prompts, responses, Facts(rows=[{} for _ in prompts]))

    def score_informed(
        self, prompts: Sequence[Prompt], responses: Sequence[str], facts: Facts
    ) -> list[float]:
        """Return what the function gives for each response.

        Raises:
            RewardError: the function raises, wants what is not known here, or does not give one
                finite number a response.
        """
        require_same_length(prompts, responses)
        origin = f"reward function '{self.name}' ({self.place})"
        known = {name: getattr(facts, name) for name in self.facts}
        try:
            given = self.function(list(prompts), list(responses), **known, **self.options)
        except Exception as error:
            raise RewardError(f"{origin} failed with {type(error).__name__}: {error}") from error
        scores = require_scores(given, count=len(responses), origin=origin)
        for place, score in enumerate(scores):
            if not math.isfinite(score):
                raise RewardError(
                    f"{origin} gave {score} for response {place} of {len(responses)} "
                    f"({responses[place]!r:.60}); finite numbers are needed"
                )
        return scores
