"""Functions of the user: a Python file registers them by name, and `--plugin` loads the file.

A registry holds the functions of one kind: the rewards of `reward.functions`, and the tools of
`pipeline.generation.tools.registry`. A file may register functions of both.

The file's sha256 is part of the key of the stages that use its functions, so a changed file runs
them again. What else the file imports is not looked at. It may import modules that stand beside it
or on PYTHONPATH, whatever their names (`reward.plugin_modules`).
"""

from __future__ import annotations

import hashlib
import inspect
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from data.errors import RecipeError, RlhfError, UsageError, in_words, nearest
from data.small_files import read_file
from reward.plugin_modules import PREFIX, forget_plugin, plugin_package

Function = TypeVar("Function", bound=Callable[..., Any])


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
class Registered:
    """A function, the file that registered it, and where it stands itself."""

    function: Callable[..., Any]
    file: Path
    place: str


_plugins: dict[Path, Plugin] = {}
_registries: list[Registry] = []
_loading: list[Path] = []


class Registry:
    """The functions of one kind by their names.

    Attributes:
        functions: those that are registered.
    """

    def __init__(self, kind: str, *, label: str, example: str) -> None:
        """Start empty.

        Args:
            kind: of the decorator.
            label: what one of the functions is.
            example: a name.
        """
        self.kind, self.label, self.example = kind, label, example
        self.functions: dict[str, Registered] = {}
        _registries.append(self)

    def decorator(self, name: str) -> Callable[[Function], Function]:
        """Return what registers a function under a name; the function itself stays as it is.

        Raises:
            UsageError: the name is empty, or another function has it.
        """
        if not isinstance(name, str) or not name:
            raise UsageError(
                f'a {self.kind} needs a name in quotes, @{self.kind}("{self.example}"), '
                f"not {name!r}"
            )

        def register(function: Function) -> Function:
            code = getattr(inspect.unwrap(function), "__code__", None)
            place = f"{code.co_filename}:{code.co_firstlineno}" if code else repr(function)
            file = _loading[-1] if _loading else Path(code.co_filename if code else "").resolve()
            old = self.functions.get(name)
            # Outside of `load_plugin`, as in a notebook, a cell may be run again.
            if old is not None and (_loading or old.file != file):
                raise UsageError(
                    f"two {self.label.split()[-1]}s are called '{name}': {old.place} and {place}; "
                    "rename one"
                )
            self.functions[name] = Registered(function, file, place)
            return function

        return register

    def find(self, name: str) -> Registered:
        """Return a function.

        Raises:
            RecipeError: none has this name.
        """
        if name in self.functions:
            return self.functions[name]
        known = f"known: {', '.join(self.functions)}." if self.functions else "none is known."
        raise RecipeError(
            f"no {self.label} is called '{name}'; {known}{nearest(name, self.functions)} "
            f'Give the file with @{self.kind}("{name}") by --plugin'
        )

    def sha256(self, name: str) -> str:
        """Return the sha256 of the file that registered a function, as it was when loaded.

        Raises:
            RecipeError: none has this name.
        """
        file = self.find(name).file
        if file in _plugins:
            return _plugins[file].sha256
        # Registered by a module that Python imported.
        return hashlib.sha256(file.read_bytes() if file.is_file() else b"").hexdigest()


def load_plugin(path: str | Path, *, sha256: str | None = None) -> Plugin:
    """Run a file that registers functions; one that is loaded already is left alone.

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
        raise UsageError(
            f"{where}: {why}; give a Python file with a reward function or a tool"
        ) from None
    plugin = Plugin(file, hashlib.sha256(source).hexdigest())
    if sha256 is not None and plugin.sha256 != sha256:
        raise UsageError(f"{where}: the file changed since this run started; run it again")
    if _plugins.get(file) == plugin:
        return plugin
    _forget(file)
    before = _names()
    _run(source, file, where)
    if _names() == before:
        raise UsageError(
            f'{where} registers no reward and no tool; put @reward("name") of reward.functions '
            'or @tool("name") of pipeline.generation.tools.registry above a function'
        )
    _plugins[file] = plugin
    return plugin


def plugins() -> list[Plugin]:
    """Return the files that were loaded, in order."""
    return list(_plugins.values())


def forget_all() -> None:
    """Forget all files that were loaded and what they registered."""
    for file in [*_plugins]:
        _forget(file)


def _names() -> set[tuple[str, str]]:
    return {(registry.kind, name) for registry in _registries for name in registry.functions}


def _forget(file: Path) -> None:
    _plugins.pop(file, None)
    for registry in _registries:
        for name in [n for n, known in registry.functions.items() if known.file == file]:
            del registry.functions[name]


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
