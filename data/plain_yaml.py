"""YAML as recipes have it: few plain values, no deep nesting, each key a word that stands once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import yaml

from data.errors import RecipeError, in_words

Keys = tuple[str | int, ...]
"""Where a value stands: the keys and list places that lead to it."""
Places = dict[Keys, str]
"""The file and line of each key."""

DEEPEST = 50
"""Lists and mappings inside of each other."""
MOST_VALUES = 40_000
"""Keys too, and what aliases stand for; a recipe that ships has some hundred."""
_DIGITS = 4300
_TAGS = ("map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge")


def parse(
    text: str, place: Callable[[int], str], most: int = MOST_VALUES, deepest: int = DEEPEST
) -> tuple[Any, Places]:
    """Return the value of a YAML text, and where each of its keys and items stands.

    Args:
        text: one document.
        place: names a line, the first is 1.
        most: values that it may have, those that aliases stand for too.
        deepest: lists and mappings that may be inside of each other.

    Raises:
        RecipeError: it is no valid YAML, or what no recipe needs; names the line.
    """
    places: Places = {}
    loader: _Loader | None = None
    try:
        loader = _Loader(text, most, deepest)
        node = loader.get_single_node()
        if node is None:
            return None, places
        loader.values = 0
        loader.walk(node, (), places, ())
        content = loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line if mark else text.count("\n", 0, getattr(error, "position", 0))
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        valid = "" if isinstance(error, _RefusedError) else "no valid YAML: "
        raise RecipeError(f"{place(line + 1)}: {valid}{problem}") from error
    except (ValueError, OverflowError) as error:  # "\UFFFFFFFF" is no character
        line = loader.line + 1 if loader else 1
        raise RecipeError(f"{place(line)}: no valid YAML: {error}") from error
    return content, {keys: place(int(line)) for keys, line in places.items()}


def parse_any(text: str) -> Any:
    """Return the value of a YAML text that others wrote: any keys and tags, not nested deep.

    Raises:
        ValueError: it is no valid YAML, or nested too deep.
    """
    try:
        return _Loader(text, len(text) + 1, DEEPEST).get_single_data()
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ValueError(in_words(error)) from error


class _RefusedError(yaml.MarkedYAMLError):
    """What is valid YAML, and refused."""


class _Loader(yaml.SafeLoader):
    """Counts values and depth as it reads."""

    def __init__(self, text: str, most: int, deepest: int) -> None:
        self.most, self.deepest = most, deepest
        self.values = self.depth = 0
        super().__init__(text)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._count(self.depth, cast(Any, self).peek_event())
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def _count(self, depth: int, at: Any) -> None:
        self.values += 1
        if depth > self.deepest:
            _refuse(at, f"lists and mappings stand in here more than {self.deepest} deep")
        if self.values > self.most:
            _refuse(at, f"more than {self.most:,} values, with those that aliases stand for")

    def walk(
        self, node: yaml.Node, keys: Keys, places: Places, above: tuple[yaml.Node, ...]
    ) -> None:
        """Note the line of every key and item; refuse what no recipe needs.

        An alias is followed each time, so that what is made of the nodes later is bounded too.
        """
        if any(node is other for other in above):
            _refuse(node, "an alias in here stands for all of it; write it out")
        self._count(len(above), node)
        tag = node.tag.removeprefix("tag:yaml.org,2002:")
        if tag not in _TAGS:
            _refuse(node, f"no valid YAML for a recipe: the tag {tag!r:.60}; leave it out")
        above = (*above, node)
        if isinstance(node, yaml.ScalarNode):
            _check_text(node)
        elif isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                name, line = _word(key), key.start_mark.line + 1
                if name in lines and name != "<<":
                    _refuse(
                        key,
                        f"key '{name:.60}' stands twice in one mapping, in line {lines[name]} "
                        "already; take one out",
                    )
                lines[name] = line
                places[(*keys, name)] = str(line)
                self.walk(value, (*keys, name), places, above)
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                places[(*keys, index)] = str(value.start_mark.line + 1)
                self.walk(value, (*keys, index), places, above)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except (ValueError, LookupError, OverflowError, AttributeError, TypeError):
            kind = node.tag.rpartition(":")[2].replace("timestamp", "date")
            if kind != "int" or len(node.value) < _DIGITS:
                _refuse(node, f"{node.value!r:.60} is no {kind}; a text is put in quotes")
            value = 1 << 1024  # Python reads no decimal number of more digits
        if isinstance(value, int) and value.bit_length() > 1024:
            _refuse(node, f"the number {node.value:.20}... is too large; it must be below 2^63")
        return value


def _word(key: yaml.Node) -> str:
    if not isinstance(key, yaml.ScalarNode):
        _refuse(key, "a list or mapping is no key; write a word")
    _check_text(key)
    word: str = key.value
    if key.tag.rpartition(":")[2] not in ("str", "merge"):
        _refuse(key, f"{word!r:.60} is no word, as a key is; put it in quotes or rename it")
    return word


def _check_text(node: yaml.Node) -> None:
    for sign in node.value:
        if sign == "\0" or "\ud800" <= sign <= "\udfff":
            _refuse(node, f"{node.value!a:.60} holds {sign!a}, which no text may; take it out")


def _refuse(at: Any, problem: str) -> Any:
    raise _RefusedError(None, None, problem, at.start_mark)
