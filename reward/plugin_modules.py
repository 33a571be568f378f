"""What a user's plugin imports from its own folder, kept apart from packages of the same names.

A plugin that says `from data.utils import clean` means its own `data`, not ours; one that says
`from reward.functions import reward` means ours. So the plugin is loaded as a package of a name of
its own, whose folder and whose entries of PYTHONPATH hold its modules: `data.utils` becomes
`rlhf_plugin_1a2b.data.utils`, there and in every module that is imported so, also later, inside a
function. What its own places do not have is imported as always.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

PREFIX = "rlhf_plugin_"
OURS = ("data", "reward", "pipeline")
_ROOT = Path(__file__).resolve().parent.parent


def plugin_package(name: str, file: Path) -> ModuleType:
    """Return the empty module that a plugin runs in, registered under its name.

    Args:
        name: begins with `PREFIX`; its modules of an earlier load are forgotten.
        file: the plugin.
    """
    forget_plugin(name)
    module = ModuleType(name)
    module.__file__ = str(file)
    places = [file.parent, *map(Path, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    module.__path__ = [str(p) for p in dict.fromkeys(map(Path.resolve, places)) if p != _ROOT]
    module.__package__ = name
    _hand_over(module)
    # Dataclasses and the like look their module up.
    sys.modules[name] = module
    return module


def forget_plugin(name: str) -> None:
    """Forget a plugin's module, and what it imported from its own places."""
    for known in [n for n in sys.modules if n == name or n.startswith(f"{name}.")]:
        del sys.modules[known]


def _hand_over(module: ModuleType) -> None:
    """Let the imports of a module, now and later, look into its plugin's own places first."""
    module.__dict__["__builtins__"] = {**vars(builtins), "__import__": _import}


def _import(
    name: str,
    globals: Mapping[str, Any] | None = None,
    locals: Mapping[str, Any] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> ModuleType:
    """Do what `import` does, for a module of a plugin."""
    plugin = str((globals or {}).get("__name__", "")).partition(".")[0]
    if level == 0 and _is_own(plugin, name.partition(".")[0]):
        module = _own(plugin, name, fromlist or ())
        if module is not None:
            return module
    return builtins.__import__(name, globals, locals, fromlist or (), level)


def _is_own(plugin: str, top: str) -> bool:
    """Tell whether a plugin's own places hold a module of this name that an import means.

    A folder without `__init__.py` may as well be one of files: it is meant where the name is one
    of `OURS`, or nobody else's.
    """
    if top in sys.stdlib_module_names or plugin not in sys.modules:
        return False
    spec = PathFinder.find_spec(top, sys.modules[plugin].__path__)
    if spec is None:
        return False
    return spec.has_location or top in OURS or importlib.util.find_spec(top) is None


def _own(plugin: str, name: str, fromlist: Sequence[str]) -> ModuleType | None:
    """Return what an import of a plugin's own module gives; None where it means another's."""
    own = f"{plugin}.{name}"
    module = _module(own)
    for part in fromlist:
        if module is not None and part != "*" and not hasattr(module, part):
            module = module if _module(f"{own}.{part}") is not None else None
    if module is None:
        return None
    return module if fromlist else sys.modules[f"{plugin}.{name.partition('.')[0]}"]


def _module(name: str) -> ModuleType | None:
    """Import a module by its whole name; None where it, or a package above it, is not there."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            return None
        raise


class _Loader(SourceFileLoader):
    """Runs a module of a plugin with the plugin's imports."""

    def exec_module(self, module: ModuleType) -> None:
        """Run it."""
        _hand_over(module)
        super().exec_module(module)


class _Finder(MetaPathFinder):
    """Finds the modules of plugins."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where a module of a plugin is, None for all others."""
        if not name.startswith(PREFIX) or "." not in name:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


sys.meta_path.insert(0, _Finder())
