"""No file and no function of the packages is too long to be read at a time."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KINDS = (".py", ".js", ".css", ".html", ".j2")
"""Code, and what pages are made of."""
FILES = [
    path
    for name in ("pipeline", "reward", "data")
    for path in sorted((ROOT / name).rglob("*"))
    if path.suffix in KINDS
    and path.parent.name != "versions"  # a migration is a list of tables, and is never edited
]


def too_long(text: str, *, file: int = 499, function: int = 60, python: bool = True) -> list[str]:
    """Name what has more lines; a function's decorators do not count."""
    found = [f"{n} lines"] if (n := len(text.splitlines())) > file else []
    for node in ast.walk(ast.parse(text)) if python else ():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            found += [f"{node.name}: {lines} lines"] if lines > function else []
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_have_under_500_lines_and_functions_at_most_60(path: Path) -> None:
    assert not too_long(path.read_text(encoding="utf-8"), python=path.suffix == ".py")


def test_every_kind_of_file_is_looked_at() -> None:
    assert {path.suffix for path in FILES} == set(KINDS)
    assert too_long("a {}\n" * 500, python=False) == ["500 lines"]


def test_lines_are_counted_without_decorators() -> None:
    text = "@f\n@g\ndef a():\n    1\n    2\n\n\nclass B:\n    async def c(self):\n        3\n"
    assert too_long(text, file=10, function=3) == []
    assert too_long(text, file=9, function=2) == ["10 lines", "a: 3 lines"]
    assert too_long(text, function=1) == ["a: 3 lines", "c: 2 lines"]
