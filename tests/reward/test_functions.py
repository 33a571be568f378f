"""Reward functions of a user's file."""

from __future__ import annotations

import hashlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.errors import RecipeError, RewardError, UsageError
from reward import plugins as plugin_files
from reward.functions import REWARDS, function, reward
from reward.plugins import load_plugin, plugins
from reward.scorer import Facts, InformedScorer, Scorer, scores_of

POLITE = """
from reward.functions import reward

@reward("polite")
def polite(prompts, responses):
    return [1.0 if "please" in text else 0.0 for text in responses]
"""
Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(plugin_files, "_plugins", {})
    monkeypatch.setattr(REWARDS, "functions", {})
    yield


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def build(text: str, name: str = "mine.py") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return build


def test_a_file_registers_functions_that_score(write: Write) -> None:
    path = write(POLITE)
    plugin = load_plugin(path)
    assert plugin.path == path.resolve() and plugins() == [plugin]
    assert plugin.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert REWARDS.sha256("polite") == plugin.sha256
    scorer = function("polite")
    assert isinstance(scorer, Scorer) and isinstance(scorer, InformedScorer)
    assert scorer.name == "polite"
    assert scorer.score(["q", "q"], ["yes please", "no"]) == [1.0, 0.0]


def test_a_changed_file_is_loaded_anew_and_an_unchanged_one_is_not(write: Write) -> None:
    first = load_plugin(write(POLITE + "calls = []\n"))
    before = REWARDS.functions["polite"]
    assert load_plugin(first.path) == first and REWARDS.functions["polite"] is before
    write(POLITE.replace("1.0 if", "2.0 if"))
    assert load_plugin(first.path).sha256 != first.sha256
    assert function("polite").score(["q"], ["please"]) == [2.0]
    with pytest.raises(UsageError, match="changed since this run started"):
        load_plugin(first.path, sha256=first.sha256)


def test_parameters_are_given_what_they_name(write: Write) -> None:
    load_plugin(
        write(
            """
import dataclasses
from reward.functions import reward

@dataclasses.dataclass
class Bonus:
    size: float = 0.5

@reward("near")
def near(prompts, responses, rows, tokens, scale=1.0):
    return [scale * (row["answer"] in text) - n for text, row, n in zip(responses, rows, tokens)]

@reward("open")
def open_ended(prompts, responses, **more):
    return [Bonus().size + len(more) for _ in responses]
"""
        )
    )
    facts = Facts(rows=[{"answer": "4"}, {"answer": "5"}], tokens=[1, 2], ended=[True, False])
    scorer = function("near", scale=10.0)
    assert scores_of(scorer, ["q", "q"], ["it is 4", "it is 4"], facts) == [9.0, -2.0]
    assert scores_of(function("open"), ["q", "q"], ["a", "b"], facts) == [3.5, 3.5]
    with pytest.raises(RewardError, match="failed with KeyError: 'answer'"):
        function("near").score_informed(["q"], ["4"], Facts(rows=[{}], tokens=[1]))
    with pytest.raises(RecipeError, match=r"does not take prompts.*options scala"):
        function("near", scala=2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import nothing_like_this\n", r"line 1: ModuleNotFoundError: .*nothing_like_this"),
        ("x = 1\ndef f(:\n", r"line 2: SyntaxError"),
        ("def f():\n    return 1 / 0\n\n\nf()\n", r"line 2: ZeroDivisionError"),
        ("import sys\nsys.exit(3)\n", r"line 2: SystemExit: 3"),
        ("x = 1\n", r'registers no reward and no tool; put @reward\("name"\)'),
        (POLITE + POLITE, r"two functions are called 'polite': .*mine.py:4 and .*mine.py:10"),
        (POLITE.replace('("polite")', ""), r"a reward needs a name in quotes"),
    ],
)
def test_a_file_that_fails_is_named_with_its_line(write: Write, text: str, expected: str) -> None:
    with pytest.raises(UsageError, match=rf"--plugin .*mine\.py.*{expected}"):
        load_plugin(write(text))
    assert plugins() == [] and REWARDS.functions == {}
    load_plugin(write(POLITE))  # mended, it loads
    assert function("polite").score(["q"], ["please"]) == [1.0]


def test_a_missing_file_and_an_unknown_name_are_told(write: Write, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing\.py: No such file"):
        load_plugin(tmp_path / "nothing.py")
    with pytest.raises(UsageError, match="Is a directory"):
        load_plugin(tmp_path)
    with pytest.raises(RecipeError, match=r"none is known. Give the file .* by --plugin"):
        function("polite")
    load_plugin(write(POLITE))
    with pytest.raises(RecipeError, match=r"known: polite. Did you mean 'polite'"):
        function("polit")


def test_two_files_may_not_share_a_name(write: Write) -> None:
    load_plugin(write(POLITE))
    with pytest.raises(UsageError, match=r"two functions are called 'polite'.*mine\.py:4.*other"):
        load_plugin(write(POLITE, "other.py"))
    assert function("polite").score(["q"], ["please"]) == [1.0]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([1.0], "gave 1 scores for 2 responses"),
        ([1.0, float("nan")], r"gave nan for response 1 of 2 \('the second'\)"),
        ([float("inf"), 1.0], "gave inf for response 0 of 2"),
        ([1.0, None], "gave None for response 1"),
        ("ab", "gave a str, not a list"),
    ],
)
def test_what_is_no_number_each_is_refused_by_name(given: Any, expected: str) -> None:
    @reward("odd")
    def odd(prompts: Any, responses: Any) -> Any:
        return given

    with pytest.raises(RewardError, match=rf"'odd' \(.*test_functions\.py:\d+\) {expected}"):
        function("odd").score(["q", "q"], ["the first", "the second"])


def test_functions_of_an_imported_module_work_and_a_cell_may_run_again() -> None:
    for value in (1.0, 2.0):

        @reward("cell")
        def cell(prompts: Any, responses: Any, value: float = value) -> Any:
            return np.full(len(responses), value)

    assert function("cell").score(["q"], ["a"]) == [2.0]
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    assert REWARDS.sha256("cell") == digest


OWN = {
    "data/utils.py": """
        from __future__ import annotations
        from dataclasses import dataclass
        from data.more import HALF
        import helper
        @dataclass
        class Row:
            text: str
        def worth(row):
            from data import later
            return len(row.text) + HALF + helper.HALF + later.ONE
        """,
    "data/more.py": "HALF = 0.5",
    "data/later.py": "from .more import HALF\nONE = 2 * HALF",
    "helper.py": "from data.more import HALF",
    "reward/__init__.py": "",
    "reward/mine.py": "HERE = True",
    "pipeline.py": "KIND = 'theirs'",
    "rewards.py": """
        import data.utils
        from data.utils import Row, worth
        from pipeline import KIND
        from reward.functions import reward
        from reward.mine import HERE
        @reward("own")
        def own(prompts, responses):
            assert HERE and KIND == "theirs" and data.utils.Row is Row
            return [worth(Row(text)) for text in responses]
        """,
}


@pytest.mark.parametrize("placed", ["beside", "on the path"])
def test_a_plugin_may_import_packages_of_our_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, placed: str
) -> None:
    """A folder `data` of the user's own, and all else a project may have."""
    import data.records

    for name, text in OWN.items():
        path = tmp_path / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    plugin = tmp_path / "project" / "rewards.py"
    if placed == "on the path":
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "project"))
        plugin = plugin.rename(tmp_path / "elsewhere.py")
    ours = sys.modules["data.records"]
    load_plugin(plugin)
    # 3 letters, two halves and one, which is imported only now.
    assert function("own").score(["q"], ["abc"]) == [5.0]
    assert sys.modules["data.records"] is ours is data.records
    assert "data.utils" not in sys.modules


def test_an_own_module_that_fails_or_is_not_there_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "broken.py").write_text("import no_such_thing")
    plugin = tmp_path / "p.py"
    for text, told in (
        ("import data.broken", "line 1: ModuleNotFoundError: No module named 'no_such_thing'"),
        ("import data.absent", "line 1: ModuleNotFoundError: No module named 'data.absent'"),
    ):
        plugin.write_text(text)
        with pytest.raises(UsageError, match=told):
            load_plugin(plugin)
