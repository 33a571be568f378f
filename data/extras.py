"""Whether the packages of the extras are there; imports none of them."""

from __future__ import annotations

from importlib.util import find_spec

from data.errors import UsageError

STORE = ("sqlalchemy", "alembic")
PAGES = ("starlette", "uvicorn", "h11", "jinja2", "markdown_it", "nh3", "argon2")
FIGURES = ("scipy",)
RETRIEVAL = ("bm25s",)


def require_packages(*names: str, extra: str = "labels", what: str = "collecting labels") -> None:
    """Refuse to go on without packages.

    Raises:
        UsageError: one is missing; says what to install.
    """
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"{what} needs {', '.join(missing)}, not installed here: "
            f"pip install 'rlhf-pipeline[{extra}]'"
        )
