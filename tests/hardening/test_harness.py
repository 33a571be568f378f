"""The harness itself: what a command must not do is seen."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest


def test_the_harness_sees_an_endless_loop_a_traceback_and_a_change(
    rlhf: Callable[..., Any], assert_refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    with monkeypatch.context() as patched:
        patched.setattr("pipeline.recipe.load.load_recipe", broken)
        failed = rlhf(["validate", "r.yaml"])
    assert (failed.code, "RuntimeError: broken" in failed.err) == (1, True)
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.recipe.load.load_recipe", lambda *_: bytearray(3 * 2**30))
        assert "MemoryError" in rlhf(["validate", "r.yaml"]).err
    slow = pytest.raises(pytest.fail.Exception, match=r"not done in 0\.2 s of")
    with slow, monkeypatch.context() as patched:
        patched.setattr("pipeline.recipe.load.load_recipe", lambda *_: all(n for n in count(1)))
        rlhf(["validate", "r.yaml"], seconds=0.2)
    copied = rlhf(["copy", "quickstart", "mine.yaml"])
    assert (copied.code, copied.changed) == (0, ("mine.yaml",))
    with pytest.raises(AssertionError):
        assert_refused(copied)
    assert_refused(rlhf(["validate", "fifo"], {"fifo": "- "}), "mapping")
    assert_refused(rlhf(["validate"]), "Missing argument")
    assert os.getcwd() == str(copied.folder)
