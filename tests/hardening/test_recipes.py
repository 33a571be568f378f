"""Recipes, `--set` and `--plugin` files that no one should write."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data import plain_yaml
from pipeline.recipe import files as recipe_files

Rlhf = Callable[..., Any]
Refused = Callable[..., None]

STAGE = "{kind: tokenizer, train: [{world: corpus}], vocab_size: 300}"
RECIPE = f"stages:\n  tok: {STAGE}\n"
VALIDATE = ("validate", "r.yaml")


def setting(value: str) -> str:
    return RECIPE.replace("300", value)


def source(key: str, value: str) -> str:
    return f"stages:\n  tok: {{kind: tokenizer, train: [{{{key}: {value}}}]}}\n"


def bomb(levels: int, item: str = "[{}]") -> str:
    """Each line holds the one before nine times."""
    lines = ["a0: &a0 {k: v}"]
    for level in range(1, levels):
        items = ", ".join([f"*a{level - 1}"] * 9)
        lines.append(f"a{level}: &a{level} {item.format(items)}")
    return "\n".join(lines) + "\n"


def link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)  # relative: the name of a socket is short


def chain(count: int) -> dict[str, str]:
    files = {f"b{n}.yaml": f"extends: b{n + 1}.yaml\n" for n in range(count)}
    return {"r.yaml": "extends: b0.yaml\n", **files, f"b{count}.yaml": RECIPE}


# Values that YAML can't make, or no recipe needs

DATES = ("2026-13-45", "2026-02-31", "2026-02-28T25:61:61Z", "2026-02-28T10:00:00+99:99")
TAGGED = (
    "!!timestamp foo", "!!int foo", "!!int ''", "!!float foo", "!!bool foo", "!!int {}",
    "!!str [a]", "!!map x", "!!seq x",
)  # fmt: skip
FOREIGN = (
    "!!binary '@@@@'", "!!binary a", "!!binary aGVsbG8=", "!!set {a, b}", "!!omap [a: 1]",
    "!!omap [1, 2]", "!!pairs [1]", "!!python/tuple [1]",
    "!!python/object/apply:os.system ['true']", "!mine x", "!!value x", "=", "!<tag:x> y",
)  # fmt: skip
LONG = (
    "9" * 5000, "-" + "9" * 5000, "0b" + "1" * 20000, "0x" + "f" * 5000, "0" + "7" * 6000,
    "1_" * 3000 + "1", "0x" + "f" * 3000, str(10**400), "1:" + ":".join(["59"] * 3000),
)  # fmt: skip
EMPTY_NUMBERS = ("0x_", "0b_", "1:" + ":".join(["59"] * 3000) + ".5")
VALUES = {
    **dict.fromkeys(DATES, "date"),
    **dict.fromkeys(TAGGED, "r.yaml:2"),
    **dict.fromkeys(FOREIGN, "tag"),
    **dict.fromkeys(LONG, "too large"),
    **dict.fromkeys(EMPTY_NUMBERS, "r.yaml:2"),
    "2026-01-02": "vocab_size", "!!merge x": "r.yaml:2",
    "!!python/name:os.system": "r.yaml:2", "<<": "r.yaml:2", "!!null x": "vocab_size",
    '"\\ud800"': "\\ud800", '"\\ud83d"': "\\ud83d", '"a\\0b"': "\\x00", '"\\UFFFFFFFF"': "r.yaml",
    "*nope": "nope", "{a: 1, a: 2}": "stands twice", "[": "no valid YAML", "'": "no valid YAML",
}  # fmt: skip


@pytest.mark.parametrize(("value", "word"), VALUES.items(), ids=lambda text: f"{text:.40}")
def test_a_value_that_no_recipe_needs(
    rlhf: Rlhf, assert_refused: Refused, value: str, word: str
) -> None:
    assert_refused(rlhf(VALIDATE, {"r.yaml": setting(value)}), "r.yaml", word)


SET_TO = (*DATES[:2], *TAGGED[:3], *FOREIGN[:3], *LONG[:2], "<<", '"\\ud800"', "*nope", "[")


@pytest.mark.parametrize("value", [*SET_TO, "&a [*a]", "{? [a] : 1}", "\x00", "1\n---\n2"])
def test_a_set_of_it(rlhf: Rlhf, assert_refused: Refused, value: str) -> None:
    args = [*VALIDATE, "--set", f"tok.vocab_size={value}"]
    assert_refused(rlhf(args, {"r.yaml": RECIPE}), "--set")


# Numbers of settings

NUMBERS = (
    "1e999", "-0.5", ".inf", "-.inf", ".nan", "1e400", "'1e400'", "''", "' '", "true", "[5]", "{}",
    "'\\x'", "5.5", "-1", "9223372036854775808", "2026-01-01", "!!float 1e999", "abc",
)  # fmt: skip


@pytest.mark.parametrize("value", NUMBERS)
@pytest.mark.parametrize("key", ["vocab_size", "max_bad_share"])
def test_a_number_that_is_none(rlhf: Rlhf, assert_refused: Refused, key: str, value: str) -> None:
    text = {
        "vocab_size": setting(value),
        "max_bad_share": source(f"world: corpus, {key}", value),
    }[key]
    assert_refused(rlhf(VALIDATE, {"r.yaml": text}), key)


# Shapes of a whole recipe

ODD = ("5", "[5]", "abc", "2026-01-01")
SHAPES = {
    "": "empty", "null": "empty", "[a, b]": "mapping", "5": "mapping", "abc": "mapping",
    "- a": "mapping", "stages:": "stages", "stages: {}": "stages", "{}": "stages",
    "---\n---\n" + RECIPE: "another document", RECIPE + "---\n" + RECIPE: "another document",
    "%YAML 9.9\n---\n" + RECIPE: "no valid YAML", "stages:\n\ta: {}": "no valid YAML",
    **{f"stages: {odd}": "stages" for odd in ODD},
    **{f"stages: {{a: {odd}}}": "stages.a" for odd in ODD},
    **{f"stages: {{a: {{kind: {odd}}}}}": "stages.a.kind" for odd in ODD},
    **{f"{key}: {odd}\n{RECIPE}": key for key in ("extends", "rounds", "launch") for odd in ODD},
    **{f"trackers: {odd}\n{RECIPE}": "trackers" for odd in ODD},
    **{f"rounds: {{times: {odd}}}\n{RECIPE}": "rounds" for odd in ODD if odd != "5"},
    **{f"rounds: {{times: 2, stages: {odd}}}\n{RECIPE}": "rounds" for odd in ODD},
    **{f"stages: {{a: {{kind: tokenizer, train: {odd}}}}}": "stages.a.train" for odd in ODD},
}  # fmt: skip


@pytest.mark.parametrize(("text", "word"), SHAPES.items(), ids=lambda text: f"{text!r:.50}")
def test_a_text_that_is_no_recipe(
    rlhf: Rlhf, assert_refused: Refused, text: str, word: str
) -> None:
    assert_refused(rlhf(VALIDATE, {"r.yaml": text}), "r.yaml", word, lines=4)


BYTES = {
    "latin-1": (RECIPE + "description: caf\xe9\n").encode("latin-1"),
    "utf-16": RECIPE.encode("utf-16"),
    "utf-32": RECIPE.encode("utf-32"),
    "utf-16-le": RECIPE.encode("utf-16-le"),
    "binary": bytes(range(256)),
    "nul": b"\0" * 100,
    "nul inside": (RECIPE + "description: a\0b\n").encode(),
    "bell": (RECIPE + "description: a\x07b\n").encode(),
    "delete": (RECIPE + "description: a\x7fb\n").encode(),
    "mark inside": (RECIPE + "\ufeffname: x\n").encode(),
    "large": (RECIPE + "#" * 2**20).encode(),
}


@pytest.mark.parametrize("content", BYTES.values(), ids=BYTES)
def test_bytes_that_are_no_text(rlhf: Rlhf, assert_refused: Refused, content: bytes) -> None:
    assert_refused(rlhf(VALIDATE, {"r.yaml": content}), "r.yaml")


def test_a_byte_order_mark_is_passed_over(rlhf: Rlhf) -> None:
    assert rlhf(VALIDATE, {"r.yaml": "\ufeff" + RECIPE}).code == 0


# Keys and names

KEYS = {
    **{f"{key}: a\n{RECIPE}": "no word" for key in ("1", "null", "true", "1.5", "2026-01-01", "=")},
    **{
        f"stages: {{{key}: {STAGE}}}": "no word"
        for key in ("1", "yes", "null", "~", "2026-01-01", "!!binary aGk= ")
    },
    **{f"stages: {{tok: {{kind: tokenizer, {k}: 2}}}}": "no word" for k in ("1", "null", "true")},
    source("1", "2"): "no word",
    source("world: corpus, columns", "{1: a}"): "no word",
    "[a]: a\n" + RECIPE: "no key", "{a: 1}: a\n" + RECIPE: "no key",
    "? [a, b]\n: c\n" + RECIPE: "no key", "'': c\n" + RECIPE: "unknown key",
    "a.b: c\n" + RECIPE: "unknown key", ".nan: c\n" + RECIPE: "no word",
    "<<: 5\n" + RECIPE: "r.yaml:1", "<<: [5]\n" + RECIPE: "r.yaml:1",
    f"stages:\n  a: {STAGE}\n  b: {STAGE}\n  a: {STAGE}\n": "in line 2 already",
    "seed: 1\nname: x\nseed: 2\n" + RECIPE: "r.yaml:3: key 'seed' stands twice",
    "stages: {a: 1, 'a': 2}": "stands twice", "x: &k a\nstages: {a: 1, *k : 2}": "stands twice",
    f"stages: {{tok: {STAGE[:-1]}, vocab_size: 9}}}}": "stands twice",
    '"\\ud800": 1\n' + RECIPE: "\\ud800", '"a\\0": 1\n' + RECIPE: "\\x00",
}  # fmt: skip


@pytest.mark.parametrize(("text", "word"), KEYS.items(), ids=lambda text: f"{text!r:.50}")
def test_a_key_that_is_none(rlhf: Rlhf, assert_refused: Refused, text: str, word: str) -> None:
    assert_refused(rlhf(VALIDATE, {"r.yaml": text}), "r.yaml", word)


NAMES = ("../x", "a/b", ".", "..", "/abs", "", "a\\nb", "a\\eb", "a\\u202eb", "a" * 300)
STAGE_NAMES = (*NAMES, "a b", "a.b", "~", "-", "report", "logs", "🐍", "a" * 5000)


@pytest.mark.parametrize("name", STAGE_NAMES, ids=lambda text: f"{text:.20}")
def test_a_name_of_a_stage(rlhf: Rlhf, assert_refused: Refused, name: str) -> None:
    text = f'stages:\n  ? "{name}"\n  : {STAGE}\n'
    assert_refused(rlhf(VALIDATE, {"r.yaml": text}), "r.yaml:2: stages.")


@pytest.mark.parametrize("name", [*NAMES, "\u3042" * 70], ids=lambda text: f"{text:.20}")
def test_a_name_of_a_recipe(rlhf: Rlhf, assert_refused: Refused, name: str) -> None:
    assert_refused(rlhf(VALIDATE, {"r.yaml": f'name: "{name}"\n{RECIPE}'}), "r.yaml:1: name")


# More than is meant

MANY = {
    "nested 900 deep": (RECIPE + "x: " + "[" * 900 + "]" * 900, "deep"),
    "nested mappings": (RECIPE + "x: " + "{a: " * 900 + "1" + "}" * 900, "deep"),
    "nested blocks": (RECIPE + "".join(" " * n + "a:\n" for n in range(200)), "deep"),
    "nested items": (RECIPE + "x:\n  " + "- " * 900 + "a", "deep"),
    "nested keys": (RECIPE + "? " * 900 + "a", "deep"),
    "nested in a setting": (setting("[" * 450 + "]" * 450), "deep"),
    "unclosed": (RECIPE + "x: " + "[" * 5000, "deep"),
    "by aliases": ("x0: &x0 1\n" + "".join(f"x{n}: &x{n} [*x{n - 1}]\n" for n in range(1, 99)),
                   "deep"),
    "alias bomb": (bomb(9) + RECIPE, "values"),
    "alias bomb of mappings": (bomb(9, "{{p: [{0}], q: [{0}]}}") + RECIPE, "values"),
    "alias bomb in a stage": (bomb(9) + "stages: *a8\n", "values"),
    "merge bomb": (bomb(9, "{{<<: [{}]}}") + RECIPE, "values"),
    "extends bomb": (bomb(9) + "extends: *a8\n" + RECIPE, "values"),
    "an alias of itself": ("stages: &a {tok: *a}", "stands for all of it"),
    "a list of itself": ("x: &a [*a]\n" + RECIPE, "stands for all of it"),
    "merged into itself": ("stages: &a {<<: *a, tok: {}}", "stands for all of it"),
    "stages": ("stages:\n" + "".join(f"  s{n}: {{kind: tokenizer}}\n" for n in range(300)), "300"),
    "a long key": ("stages: {a: {kind: tokenizer, ? " + "b" * 10**5 + "\n : 1}}", "unknown key"),
    "a long kind": ("stages: {a: {kind: " + "a" * 10**5 + "}}", "unknown kind"),
    "a long value": (setting("b" * 10**5), "vocab_size"),
    "a long reference": (
        "stages: {a: {kind: sft, model: " + "b" * 10**5 + ", train: [{world: instructions}]}}",
        "no stage is named",
    ),
    "a long name": (f"name: {'a' * 10**5}\n{RECIPE}", "at most 200 bytes"),
    "a long path": ("extends: " + "a" * 5000 + "\n" + RECIPE, "no such recipe"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "word"), MANY.values(), ids=MANY)
def test_more_than_is_meant(
    rlhf: Rlhf, assert_refused: Refused, monkeypatch: pytest.MonkeyPatch, text: str, word: str
) -> None:
    # Lower than for users, so that it takes less time.
    monkeypatch.setattr(recipe_files, "MOST_VALUES", 3000)
    assert_refused(rlhf(VALIDATE, {"r.yaml": text}), "r.yaml", word)


@pytest.mark.parametrize("text", [f"{{train: {'[' * 900}{']' * 900}}}", "[" * 20000])
def test_a_set_nested_deep(rlhf: Rlhf, assert_refused: Refused, text: str) -> None:
    assert_refused(rlhf([*VALIDATE, "--set", f"tok={text}"], {"r.yaml": RECIPE}), "deep")


def test_what_is_told_of_many_mistakes_is_short(rlhf: Rlhf, assert_refused: Refused) -> None:
    keys = ", ".join(f"k{n}: 1" for n in range(500))
    result = rlhf(VALIDATE, {"r.yaml": f"stages: {{a: {{kind: tokenizer, {keys}}}}}"})
    assert_refused(result, "stages.a.k0: unknown key", "more like these", lines=11)


def test_values_are_counted_with_what_aliases_stand_for() -> None:
    def place(line: int) -> str:
        return f"f:{line}"

    text = "a: &a [1, 2]\nb: *a\n"  # the mapping, two lists of two numbers
    assert plain_yaml.parse(text, place, most=7)[0] == {"a": [1, 2], "b": [1, 2]}
    with pytest.raises(ValueError, match=r"f:2: more than 6 values"):
        plain_yaml.parse(text, place, most=6)
    assert plain_yaml.parse(text, place, deepest=2)[1]["b", 1] == "f:1"
    with pytest.raises(ValueError, match="more than 1 deep"):
        plain_yaml.parse(text, place, deepest=1)


# What is no file

NO_FILES: dict[str, tuple[dict[str, Any], str]] = {
    "fifo": ({"r.yaml": os.mkfifo}, "a pipe"),
    "folder": ({"r.yaml": Path.mkdir}, "a folder"),
    "socket": ({"r.yaml": bind}, "a socket"),
    "link to itself": ({"r.yaml": link("r.yaml")}, "symbolic links"),
    "link to nowhere": ({"r.yaml": link("gone")}, "no such recipe"),
    "link to a fifo": ({"f": os.mkfifo, "r.yaml": link("f")}, "a pipe"),
    "link to a device": ({"r.yaml": link("/dev/zero")}, "a device"),
    "link to what can't be read": ({"r.yaml": link("/proc/self/mem")}, "can't be read"),
    "extends a fifo": ({"r.yaml": "extends: b.yaml\n", "b.yaml": os.mkfifo}, "a pipe"),
    "extends a folder": ({"r.yaml": "extends: b.yaml\n", "b.yaml": Path.mkdir}, "a folder"),
    "extends a link to itself": ({"r.yaml": "extends: b\n", "b": link("b")}, "symbolic links"),
    "extends a device": ({"r.yaml": "extends: /dev/zero\n"}, "a device"),
    "extends a socket": ({"r.yaml": "extends: b\n", "b": bind}, "a socket"),
    "extends nothing": ({"r.yaml": "extends: b.yaml\n"}, "no such recipe"),
    "extends an empty name": ({"r.yaml": "extends: ''\n"}, "a folder"),
    "extends a folder above": ({"r.yaml": "extends: /\n"}, "a folder"),
    "extends bytes": ({"r.yaml": "extends: b.yaml\n", "b.yaml": b"\xff"}, "b.yaml is no UTF-8"),
    "extends a list": ({"r.yaml": "extends: b.yaml\n", "b.yaml": "[a]"}, "b.yaml: a recipe is"),
    "extends an empty file": ({"r.yaml": "extends: b.yaml\n", "b.yaml": ""}, "b.yaml: a recipe"),
    "extends a broken one": ({"r.yaml": "extends: b.yaml\n", "b.yaml": "a: ["}, "b.yaml:1"),
    "extends another text": ({"r.yaml": "extends: /etc/passwd\n"}, "/etc/passwd"),
    "extends itself": ({"r.yaml": "extends: ./r.yaml\n"}, "extends itself"),
    "extends itself by a link": (
        {"r.yaml": "extends: b.yaml\n", "b.yaml": link("r.yaml")}, "extends itself",
    ),
    "a circle": ({"r.yaml": "extends: b.yaml\n", "b.yaml": "extends: r.yaml\n"}, "extends itself"),
    "a long chain": (chain(900), "at most 31 others"),
    "an escape in the name": ({"r.yaml": 'extends: "a\\nb\\e[31m"\n'}, "a\\nb\\x1b[31m: no such"),
}  # fmt: skip


@pytest.mark.parametrize(("files", "word"), NO_FILES.values(), ids=NO_FILES)
def test_what_is_no_file(
    rlhf: Rlhf, assert_refused: Refused, files: dict[str, Any], word: str
) -> None:
    assert_refused(rlhf(VALIDATE, files), word)


@pytest.mark.parametrize("command", [["run"], ["show"], ["show", "--explain"], ["plan"]])
def test_every_command_that_reads_a_recipe_opens_no_pipe(
    rlhf: Rlhf, assert_refused: Refused, command: list[str]
) -> None:
    assert_refused(rlhf([*command, "r.yaml"], {"r.yaml": os.mkfifo}), "r.yaml", "a pipe")


ARGUMENTS = ("/dev/zero", "/", ".", "", "a" * 300, "a" * 5000, "a/" * 3000, "a\nb\x1b[31m", "x/y")


@pytest.mark.parametrize("argument", ARGUMENTS, ids=lambda text: f"{text!r:.20}")
def test_a_name_that_is_no_recipe(rlhf: Rlhf, assert_refused: Refused, argument: str) -> None:
    assert_refused(rlhf(["validate", argument], {"x": "a file"}))


def test_a_recipe_extended_by_many_is_read_once(
    rlhf: Rlhf, monkeypatch: pytest.MonkeyPatch
) -> None:
    doubled = {f"b{n}.yaml": f"extends: [b{n + 1}.yaml, ./b{n + 1}.yaml]\n" for n in range(30)}
    read: list[str] = []

    def counted(path: Path) -> bytes:
        read.append(path.name)
        return path.read_bytes()

    monkeypatch.setattr(recipe_files, "read_file", counted)
    files = {**doubled, "r.yaml": "extends: [b0.yaml, b0.yaml]\nseed: 3\n", "b30.yaml": RECIPE}
    result = rlhf(["show", "r.yaml"], files)
    assert (result.code, len(read)) == (0, 32)
    assert "seed: 3" in result.out
    diamond = {
        "r.yaml": "extends: [a.yaml, b.yaml]\n",
        "a.yaml": "extends: c.yaml\nstages: {tok: {vocab_size: 301}}\n",
        "b.yaml": "extends: c.yaml\n",
        "c.yaml": RECIPE,
    }
    assert "vocab_size: 300" in rlhf(["show", "r.yaml"], diamond).out


LAUNCH: dict[str, Any] = {
    "fifo": os.mkfifo, "folder": Path.mkdir, "link": link("l.yaml"), "device": link("/dev/zero"),
    "bytes": b"\xff", "list": "[a]", "empty": "", "text": "a", "broken": "a: [",
    "date": "a: 2026-99-99",
    "deep": "a: " + "[" * 900, "many machines": "{distributed_type: FSDP, num_machines: .inf}",
}  # fmt: skip


@pytest.mark.parametrize("content", LAUNCH.values(), ids=LAUNCH)
def test_a_launch_file_that_is_none(rlhf: Rlhf, assert_refused: Refused, content: Any) -> None:
    text = f"launch: {{config: l.yaml}}\n{RECIPE}"
    assert_refused(rlhf(VALIDATE, {"r.yaml": text, "l.yaml": content}), "launch.config", "l.yaml")


# --set

SETS = (
    "a", "=", "", "a=", "a=b", "seed=[", "seed={a", "seed.a=1", "name.0=1", "name=../x", "stages=5",
    "stages=", "stages.tok=", "stages.tok=5", "stages.tok.kind=", "tok.kind=x", "tok.train.0=5",
    "tok.train.-1=5", "tok.train.9=5", "tok.train.99999999999999999999=5", "tok.train.²=5",
    "tok.train.٣=5", "tok.train.0.world.x=1", "tok.vocab_size.a=1", "." * 1000 + "=1",
    "a." * 5000 + "a=1", "tok." + "a." * 500 + "a=1", "tok.1=2", "tok.null=2", "1=2", "rounds=5",
    "rounds.times=5", "rounds.times=1e999", "rounds=[1]", "launch=5", "launch.processes=1e999",
    "seed=1e999", "seed=.nan", "seed=0.5", "seed=*a", "seed=%", "seed=@", "seed=`", "seed=<<",
    "seed={<<: 5}", "tok={<<: [5]}", "tok={1: 2}", "tok={null: 2}", "tok={[a]: 2}", "tok.<<=5",
    "stages.../x={kind: tokenizer}", "a" * 5000 + "=1", "tok." + "a" * 5000 + "=1", "name=\x07",
    "extends=[a]", "description=\ud800", "name=\n", "tok.train={}", "trackers=5",
)  # fmt: skip


@pytest.mark.parametrize("change", SETS, ids=lambda text: f"{text!r:.40}")
def test_a_set_that_is_none(rlhf: Rlhf, assert_refused: Refused, change: str) -> None:
    result = rlhf([*VALIDATE, "--set", change], {"r.yaml": RECIPE})
    assert_refused(result, lines=3)


# --plugin

FUNCTION = (
    "from reward.functions import reward\n"
    '@reward("a")\ndef a(prompts, responses):\n    return [0.0 for _ in responses]\n'
)
PLUGINS: dict[str, tuple[Any, str]] = {
    "exits": ("import sys\nsys.exit(3)\n", "line 2: SystemExit"),
    "exits well": ("import sys; sys.exit(0)", "SystemExit"),
    "exits with a text": ("raise SystemExit('bye')", "bye"),
    "ends otherwise": ("raise BaseException('x')", "BaseException"),
    "ends as a generator": ("raise GeneratorExit", "GeneratorExit"),
    "raises": ("1/0", "line 1: ZeroDivisionError"),
    "raises lines": ("raise ValueError('a\\n' * 50)", "ValueError: a a"),
    "raises a long text": ("raise ValueError('a' * 10**5)", "ValueError"),
    "raises what can't be told": (
        "class E(Exception):\n  def __str__(self): raise ValueError\nraise E",
        "line 3: E",
    ),
    "raises what tells a number": (
        "class E(Exception):\n  def __str__(self): return 5\nraise E",
        "line 3: E",
    ),
    "raises a group": ("raise ExceptionGroup('g', [ValueError(1)])", "ExceptionGroup"),
    "raises a surrogate": ("raise ValueError('\\ud800')", "ValueError"),
    "out of memory": ("raise MemoryError", "MemoryError"),
    "no end": ("def f(): f()\nf()", "RecursionError"),
    "no syntax": ("def", "SyntaxError"),
    "a syntax error of its own": ("raise SyntaxError('x')", "SyntaxError"),
    "nul": ("a\0b", "null bytes"),
    "nul in a wrong line": ("def (\n\0", "null bytes"),
    "bytes": (b"\xff\xfe", "SyntaxError"),
    "an unknown encoding": (b"# -*- coding: nope -*-\n", "SyntaxError"),
    "indented": ("  x\n y", "IndentationError"),
    "nested": ("x=" + "(" * 1000 + ")" * 1000, "too many nested"),
    "a long number": ("x=" + "9" * 5000, "SyntaxError"),
    "empty": ("", "registers no reward"),
    "no function": ("x = 1", "registers no reward"),
    "registers twice": (FUNCTION + FUNCTION, "two functions are called 'a'"),
    "an empty name": (FUNCTION.replace('"a"', '""'), "needs a name"),
    "a number as name": (FUNCTION.replace('"a"', "5"), "needs a name"),
    "no name": (FUNCTION.replace('("a")', ""), "needs a name"),
    "imports itself": ("import p\n" + FUNCTION, "two functions are called 'a'"),
    "imports from itself": ("from p import a\n" + FUNCTION, "line 1"),
    "imports nothing there": ("import nothere", "ModuleNotFoundError"),
    "large": ("#" * (2**20 + 1), "larger than"),
    "folder": (Path.mkdir, "directory"),
    "fifo": (os.mkfifo, "a pipe"),
    "link to itself": (link("p.py"), "symbolic links"),
    "device": (link("/dev/zero"), "a device"),
    "socket": (bind, "a socket"),
    "nowhere": (link("gone.py"), "No such file"),
}


@pytest.mark.parametrize(("content", "word"), PLUGINS.values(), ids=PLUGINS)
def test_a_plugin_that_is_none(
    rlhf: Rlhf, assert_refused: Refused, monkeypatch: pytest.MonkeyPatch, content: Any, word: str
) -> None:
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    result = rlhf([*VALIDATE, "--plugin", "p.py"], {"r.yaml": RECIPE, "p.py": content})
    assert_refused(result, "--plugin p.py", word)


def test_a_plugin_that_prints_is_one(rlhf: Rlhf) -> None:
    files = {"r.yaml": RECIPE, "p.py": "print('hello')\n" + FUNCTION}
    assert rlhf([*VALIDATE, "--plugin", "p.py"], files).code == 0


@pytest.mark.parametrize("place", ["", "a" * 5000, "~nobody/x.py", "/dev/null", "x/y.py"])
def test_a_name_that_is_no_plugin(rlhf: Rlhf, assert_refused: Refused, place: str) -> None:
    args = [*VALIDATE, "--plugin", place]
    assert_refused(rlhf(args, {"r.yaml": RECIPE, "x": "a file"}), "--plugin")
