from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.errors import RecipeError, SourceError, UsageError
from pipeline.generation.tools.registry import TOOLS, ToolError, tool
from pipeline.generation.tools.toolbox import find_tool
from reward import plugins
from reward.functions import REWARDS
from reward.plugins import load_plugin

WEATHER = """
from pipeline.generation.tools.registry import tool

@tool("weather")
def weather(city: str, days: int = 1, *, unit: str = "C") -> str:
    '''Tell the weather
    of a city.

    More.
    '''
    return f"{days * 10} {unit} in {city}"
"""


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    find_tool("calculator")  # those of ours are registered
    monkeypatch.setattr(plugins, "_plugins", {})
    monkeypatch.setattr(TOOLS, "functions", dict(TOOLS.functions))
    monkeypatch.setattr(REWARDS, "functions", {})


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def build(text: str, name: str = "mine.py") -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return build


def test_a_file_registers_tools(write: Callable[..., Path]) -> None:
    plugin = load_plugin(write(WEATHER))
    weather = find_tool("weather", unit="F")
    assert weather.call({"city": "Rome", "days": 2}) == "20 F in Rome"
    assert weather.schema == {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tell the weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    }
    assert TOOLS.sha256("weather") == plugin.sha256
    with pytest.raises(RecipeError, match="tool 'weather' has no setting city; it has unit"):
        find_tool("weather", city="Rome")
    with pytest.raises(RecipeError, match=r"no tool is called 'whether'.*Did you mean 'weather'"):
        find_tool("whether")


def test_a_tool_named_twice_is_refused(write: Callable[..., Path]) -> None:
    load_plugin(write(WEATHER))
    with pytest.raises(UsageError, match=r"two tools are called 'weather'.*mine.py:4.*other.py:4"):
        load_plugin(write(WEATHER, "other.py"))
    mine = write(WEATHER.replace('"weather"', '"calculator"'), "third.py")
    with pytest.raises(UsageError, match=r"two tools are called 'calculator'.*builtin.py.*third"):
        load_plugin(mine)


def test_one_file_may_hold_rewards_and_tools(write: Callable[..., Path]) -> None:
    reward = "from reward.functions import reward\n@reward('r')\ndef r(p, q): return [0] * len(q)\n"
    load_plugin(write(WEATHER + reward))
    assert find_tool("weather").name == "weather" and REWARDS.find("r")
    with pytest.raises(UsageError, match="two functions are called 'r'"):
        load_plugin(write(reward + WEATHER.replace("weather", "rain"), "other.py"))
    with pytest.raises(RecipeError, match="no tool is called 'rain'"):
        find_tool("rain")  # what a file that fails registered is gone


def test_a_setting_without_a_default_must_be_given(write: Callable[..., Path]) -> None:
    load_plugin(write(WEATHER.replace('unit: str = "C"', "unit: str, key: str = ''")))
    with pytest.raises(RecipeError, match="tool 'weather' needs its setting unit: write"):
        find_tool("weather", key="k")
    assert find_tool("weather", unit="F").call({"city": "Rome"}) == "10 F in Rome"


@pytest.mark.parametrize(
    ("signature", "message"),
    [
        ("(city)", "parameter city must be annotated as one of str, int, float, bool"),
        ("(city: list)", "parameter city must be annotated"),
        ("(*city: str)", "parameter city must be annotated"),
        ("(city: nothing)", "tool 'odd': its annotations: name 'nothing' is not defined"),
    ],
)
def test_what_no_call_can_give_is_refused(
    write: Callable[..., Path], signature: str, message: str
) -> None:
    text = (
        "from __future__ import annotations\n"
        "from pipeline.generation.tools.registry import tool\n"
        f"@tool('odd')\ndef odd{signature}: return ''\n"
    )
    with pytest.raises(UsageError, match=message):
        load_plugin(write(text))


@pytest.mark.parametrize("name", ["", "a b", "1st", "a:b"])
def test_a_name_must_be_one(name: str) -> None:
    with pytest.raises(UsageError, match="a tool's name has letters, digits and _"):
        tool(name)(lambda: "")


@pytest.mark.parametrize(
    ("day", "expected"),
    [
        ("today", "Sunday, 31 January 2027"),
        ("Tomorrow", "Monday, 1 February 2027"),
        ("yesterday", "Saturday, 30 January 2027"),
        ("in 1 month", "Sunday, 28 February 2027"),
        ("2 weeks ago", "Sunday, 17 January 2027"),
        ("-3 days", "Thursday, 28 January 2027"),
        ("1 year", "Monday, 31 January 2028"),
        ("2026-12-24", "Thursday, 24 December 2026"),
    ],
)
def test_the_calendar_knows_days(day: str, expected: str) -> None:
    assert find_tool("calendar", today="2027-01-31").call({"day": day}) == expected


@pytest.mark.parametrize("day", ["soon", "2026-13-01", "999999 years", "999999 weeks ago", ""])
def test_what_is_no_day_is_told(day: str) -> None:
    with pytest.raises(ToolError, match=r"is no day|beyond the years"):
        find_tool("calendar").call({"day": day})


def test_words_are_translated(write: Callable[..., Path]) -> None:
    german = find_tool("translate")
    assert german.call({"text": "goat"}) == "eine Ziege"
    assert german.call({"text": "Soup, cheese and x"}) == "Suppe, Käse and x"
    with pytest.raises(ToolError, match="no word of 'xyz' is in the list"):
        german.call({"text": "xyz"})
    words = write("goat\tchèvre\n\ngood day\tbonjour\n", "words.tsv")
    french: Any = find_tool("translate", words=str(words))
    assert french.call({"text": "Good day"}) == "bonjour"
    assert french.call({"text": "a goat"}) == "a chèvre"
    with pytest.raises(SourceError, match=r"bad.tsv:1: a word, a tab"):
        find_tool("translate", words=str(write("goat chèvre\n", "bad.tsv"))).call({"text": "a"})
