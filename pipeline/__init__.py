"""Chains the stages, and holds the ones that train or judge a policy.

`data` and `reward` are names that a user's own folder on the path of modules may have, too. The
ones meant here stand beside this package, whatever the path says.
"""

import importlib.util
import sys
from pathlib import Path


def _take_own(name: str) -> None:
    """Import the package of this name that stands beside this one.

    Raises:
        ImportError: another one was imported before; one name can't stand for two.
    """
    folder = Path(__file__).resolve().parent.parent / name
    taken = sys.modules.get(name)
    if taken is not None:
        places = [Path(place).resolve() for place in taken.__path__]
        if folder not in places:
            raise ImportError(
                f"the package '{name}' was already imported from {places[0]}, and {folder} is "
                "needed; import pipeline first"
            )
        return
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None, "a file has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


for _name in ("data", "reward"):
    _take_own(_name)
