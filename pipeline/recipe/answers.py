"""How checkpoints answer, as `rlhf eval` and `rlhf compare` take it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data.errors import UsageError
from data.plain_yaml import Places
from pipeline.evaluation.judge.settings import AnswerSettings
from pipeline.recipe.load import validate


def parse_answers(options: Mapping[str, Any]) -> AnswerSettings:
    """Return the settings that options make; how tokens are drawn is a checkpoint's own unasked.

    Args:
        options: value by name, of the settings and others; None where it isn't given.

    Raises:
        UsageError: an option has a value that the setting can't have.
    """
    mine = {name: options.get(name) for name in AnswerSettings.model_fields}
    given = {name: value for name, value in mine.items() if value is not None}
    places: Places = {(name,): f"--{name.replace('_', '-')}" for name in given}
    own = dict.fromkeys(("temperature", "top_k", "top_p"), "own")
    problems: list[str] = []
    found = validate(AnswerSettings, own | given, (), places, problems)
    if found is None:
        raise UsageError("\n".join(problems))
    return found
