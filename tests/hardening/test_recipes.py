"""Recipes that no one should write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.parametrize(
    ("files", "words"),
    [
        pytest.param({"r.yaml": ""}, ["r.yaml", "empty"], id="empty"),
        pytest.param({"r.yaml": "[a, b]"}, ["r.yaml", "mapping"], id="list"),
        pytest.param({"r.yaml": b"\xff\xfe\x00a"}, ["r.yaml", "UTF-8"], id="bytes"),
        pytest.param({"r.yaml/x": ""}, ["r.yaml", "folder"], id="folder"),
    ],
)
def test_a_file_that_is_no_recipe(
    rlhf: Callable[..., Any], assert_refused: Callable[..., None], files: Any, words: list[str]
) -> None:
    assert_refused(rlhf(["validate", "r.yaml"], files), *words)
