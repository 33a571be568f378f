"""Judges as `rlhf eval --judge` takes them: an entry of a recipe's `judges`, or in short."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from data.errors import RecipeError, UsageError, one_line
from data.plain_yaml import Places, parse
from pipeline.contract.settings import Settings
from pipeline.evaluation.judge.settings import Judge, JudgeName, JudgeSettings
from pipeline.recipe.load import validate


class _Judges(Settings):
    judges: dict[JudgeName, Judge] = Field(default_factory=dict)


def parse_judges(texts: Sequence[str]) -> dict[str, JudgeSettings]:
    """Return judges by name.

    Args:
        texts: `NAME=PLACE` of a reward model, `NAME=http://...` of a server that scores, or
            `NAME={kind: llm, ...}`, any entry of a recipe's `judges` on one line.

    Raises:
        UsageError: a text is none of them, or two have one name.
        RecipeError: a setting of an entry is wrong.
    """
    judges: dict[str, Any] = {}
    places: Places = {}
    for text in texts:
        name, equals, what = text.partition("=")
        where = f"--judge {one_line(text):.200}"
        if not equals or not what.strip():
            raise UsageError(
                f"{where}: write NAME=PLACE of a reward model, NAME=http://... of a server that "
                "scores, or NAME={kind: llm, url: ..., model: ...}"
            )
        if name in judges:
            raise UsageError(f"{where}: two judges are called '{name}'")
        places["judges", name] = where
        if what.lstrip().startswith("{"):
            judges[name], _ = parse(what, lambda _, where=where: where)  # type: ignore[misc]
        elif what.startswith(("http://", "https://")):
            judges[name] = {"kind": "http", "url": what}
        else:
            judges[name] = {"kind": "reward_model", "model": what}
    problems: list[str] = []
    found = validate(_Judges, {"judges": judges}, (), places, problems)
    if found is None:
        raise RecipeError("\n".join(problems))
    return found.judges
