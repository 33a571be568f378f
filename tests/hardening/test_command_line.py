"""Names and options as somebody types them: of two lines, of nobody's home, of no text."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.errors import SourceError
from data.sources import folders
from data.sources.folders import find_files

Rlhf = Callable[..., Any]
Refused = Callable[..., None]

RECIPE = "stages:\n  tok: {kind: tokenizer, train: [{world: corpus}], vocab_size: 300}\n"
FILES = {"r.yaml": RECIPE, "rows.jsonl": '{"prompt": "a", "response": " b"}\n'}
SCORE = ["score", "rule:length", "rows.jsonl", "--out", "scores.jsonl"]


@pytest.fixture(scope="session")
def imported() -> None:
    """Import what takes longer than a command may where it is the first to need it."""
    import reward.learned.model  # noqa: F401


NAMED: list[list[str]] = [
    ["validate", "{}"],
    ["validate", "r.yaml", "--plugin", "{}"],
    ["run", "r.yaml", "--from", "{}"],
    ["run", "r.yaml", "--only", "{}"],
    ["plan", "r.yaml", "--assume", "{}=3"],
    ["plan", "r.yaml", "--sharding", "{}"],
    ["ls", "{}"],
    ["copy", "{}"],
    ["copy", "quickstart", "{}/x"],
    ["init", "{}", "--sft", "rows.jsonl"],
    ["init", "{}/x.yaml", "--sft", "rows.jsonl"],
    ["init", "x.yaml", "--texts", "{}"],
    ["init", "x.yaml", "--texts", "rows.jsonl", "--columns", "{}"],
    ["init", "x.yaml", "--model", "./{}", "--texts", "rows.jsonl"],
    ["score", "rule:{}", "rows.jsonl", "--out", "o"],
    ["score", "function:{}", "rows.jsonl", "--out", "o"],
    ["score", "rule:length", "{}", "--out", "o"],
    [*SCORE, "--option", "{}=3"],
    ["scaling", "run", "{}"],
    ["scaling", "fit", "{}"],
    ["scaling", "plan", "p.csv", "--flops", "{}"],
    ["label", "tasks", "{}"],
    ["label", "export", "{}", "--out", "x"],
    ["label", "import", "{}", "x"],
    ["label", "run", "{}", "x"],
]


@pytest.mark.parametrize("name", ["a\nb", "a\n\nb", "\n"], ids=ascii)
@pytest.mark.parametrize("args", NAMED, ids=" ".join)
def test_a_name_of_two_lines_makes_one_sentence(
    rlhf: Rlhf, assert_refused: Refused, args: list[str], name: str
) -> None:
    assert_refused(rlhf([arg.format(name) for arg in args], FILES), "\\n")


OF_NOBODY: list[list[str]] = [
    ["scaling", "fit", "~nobody-here/x"],
    ["score", "~nobody-here/x", "rows.jsonl", "--out", "o"],
    ["score", "rule:length", "~nobody-here/x", "--out", "o"],
    ["chat", "~nobody-here/x"],
    ["init", "x.yaml", "--model", "~nobody-here/x", "--texts", "rows.jsonl"],
    ["init", "x.yaml", "--texts", "~nobody-here/x"],
    ["eval", "~nobody-here/x", "--prompts", "world:eval_prompts", "--limit", "1", "--out", "o"],
]


@pytest.mark.parametrize("args", OF_NOBODY, ids=lambda args: " ".join(args[:2]))
@pytest.mark.usefixtures("imported")
def test_the_home_of_nobody_holds_nothing(
    rlhf: Rlhf, assert_refused: Refused, args: list[str]
) -> None:
    assert_refused(rlhf(args, FILES), "~nobody-here/x", "no such")


@pytest.mark.parametrize("place", ["./nowhere", "./empty", "./cut"])
@pytest.mark.usefixtures("imported")
def test_an_evaluation_that_can_not_begin_leaves_nothing(
    rlhf: Rlhf, assert_refused: Refused, place: str
) -> None:
    files = {"empty/x": "", "cut/config.json": "{"}
    args = ["eval", place, "--prompts", "world:eval_prompts", "--limit", "1", "--out", "o"]
    assert_refused(rlhf(args, files), place[2:])


def test_a_name_that_is_no_text_is_shown(rlhf: Rlhf) -> None:
    name = os.fsdecode(b"a\xffb")
    told = rlhf([*SCORE[:-1], name, "--option", "target=3"], FILES)
    assert (told.code, told.err) == (0, ""), told
    assert "a\\udcffb: 1 row" in told.out and (told.folder / name).is_file()


# What is no YAML, or no plain one, is a text; a target is none.
TEXTS = (
    "2026-13-45", "2026-02-31", "!!int foo", "!!float x", "!!bool foo", "!!binary a", "9" * 5000,
    "!!timestamp foo", "0x_", "[" * 2000, "&a [*a]", "{a: 1, a: 2}", "!!set {a}", "1\n---\n2",
)  # fmt: skip


@pytest.mark.parametrize("value", TEXTS, ids=lambda text: f"{text!r:.20}")
def test_an_option_that_is_no_plain_value(rlhf: Rlhf, assert_refused: Refused, value: str) -> None:
    assert_refused(rlhf([*SCORE, "--option", f"target={value}"], FILES), "length", "target")


@pytest.mark.parametrize("name", ["name", "self", "prompts", ""])
@pytest.mark.parametrize("reward", ["rule:length", "function:polite"])
def test_an_option_that_nothing_takes(
    rlhf: Rlhf, assert_refused: Refused, name: str, reward: str
) -> None:
    plugin = (
        "from reward.functions import reward\n"
        '@reward("polite")\ndef polite(prompts, responses):\n    return [0.0 for _ in responses]\n'
    )
    args = ["score", reward, *SCORE[2:], "--plugin", "p.py", "--option", f"{name}=3"]
    assert_refused(rlhf(args, {**FILES, "p.py": plugin}), name)


def test_a_recipe_s_option_that_nothing_takes(rlhf: Rlhf, assert_refused: Refused) -> None:
    term = "[{rule: length, options: {name: 3}}]"
    text = (
        f"{RECIPE}  base: {{kind: pretrain, tokenizer: tok, train: [{{world: corpus}}]}}\n"
        f"  ppo: {{kind: ppo, policy: base, reward: {term}, prompts: [{{world: ppo_prompts}}],"
        " max_prompt_tokens: 8}\n"
    )
    assert_refused(rlhf(["validate", "r.yaml"], {"r.yaml": text}), "length", "name")


@pytest.fixture
def stage(tmp_path: Path, tokenizer: Any, imported: None) -> Path:
    """Return the folder of a finished stage that left a policy."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from pipeline.contract.artifacts import publish

    shape: dict[str, Any] = {"vocab_size": len(tokenizer), "hidden_size": 16}
    config = LlamaConfig(**shape, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    folder = tmp_path / "run" / "sft"
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "stage.log").write_text("")
    publish(folder, stage="sft", kind="sft", key="k", metrics={})
    return folder


@pytest.mark.parametrize("place", ["run/sft", "run/sft/model", "run/sft/model/", "./run/sft/model"])
def test_the_model_of_a_stage_is_held_to_its_manifest(
    rlhf: Rlhf, assert_refused: Refused, stage: Path, place: str
) -> None:
    assert rlhf(["chat", place, "--max-new-tokens", "1"], stdin="hi\n").code == 0
    config = json.loads((stage / "model" / "config.json").read_text())
    (stage / "model" / "config.json").write_text(json.dumps({**config, "edited": True}))
    assert_refused(rlhf(["chat", place]), "model/config.json is damaged or was edited")


def test_a_model_beside_another_program_s_manifest_is_a_model(rlhf: Rlhf, stage: Path) -> None:
    shutil.copytree(stage / "model", Path("app/model"))
    Path("app/manifest.json").write_text("{}")
    assert rlhf(["chat", "app/model", "--max-new-tokens", "1"], stdin="hi\n").code == 0


# Folders of data: what describes them

SAVED: dict[str, str] = {
    "deep": "[" * 100_000, "list": "[]", "of a number": '{"%s": 5}', "of numbers": '{"%s": [5]}',
    "of null": '{"%s": [null]}', "null": '{"%s": null}', "object": '{"%s": {}}',
    "text": '{"%s": "train"}', "digits": '{"%s": ' + "9" * 5000 + "}", "empty": "",
    "twice": '{"%s": [], "%s": []}', "bytes": "\udcff",
}  # fmt: skip


@pytest.mark.parametrize("text", SAVED.values(), ids=SAVED)
@pytest.mark.parametrize(
    ("name", "key"), [("state.json", "_data_files"), ("dataset_dict.json", "splits")]
)
def test_what_describes_a_saved_data_set_is_junk(
    tmp_path: Path, name: str, key: str, text: str
) -> None:
    (tmp_path / "x.arrow").touch()
    (tmp_path / name).write_text(text.replace("%s", key), errors="surrogateescape")
    with pytest.raises(SourceError, match=name):
        find_files(str(tmp_path))


CARDS = (
    "configs: 2026-13-45", "a: 2026-02-31", "a: !!int x", "a: !!bool x", "a: " + "[" * 3000,
    "a: " + "9" * 5000, "configs: 5", "configs: [5]", "configs: [{data_files: [5]}]",
    "configs: [{data_files: [{path: ''}]}]", "configs: [{data_files: [{path: /x/*}]}]",
    "configs: [{data_files: [{path: ../**}]}]", 'configs: [{data_files: [{path: "a\\0b"}]}]',
    "configs: [{data_files: [{path: a**b}]}]", "configs: [{data_files: [{path: [5, null]}]}]",
    "configs: [{data_files: [{path: '" + "**/" * 60 + "x'}]}]", "{[a]: 1}", "a: !!binary '@'",
)  # fmt: skip


@pytest.mark.parametrize("card", CARDS, ids=lambda text: f"{text:.50}")
def test_a_card_that_tells_no_splits_is_passed_over(tmp_path: Path, card: str) -> None:
    (tmp_path / "README.md").write_text(f"---\n{card}\n---\n")
    file = tmp_path / "a" / "b" / "c" / "d" / "x.jsonl"
    file.parent.mkdir(parents=True)
    file.touch()
    assert find_files(str(tmp_path)).files == [file]


def test_a_card_larger_than_any_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "MOST_BYTES", 3)
    (tmp_path / "README.md").write_text("---\na: b\n---\n")
    (tmp_path / "x.jsonl").touch()
    with pytest.raises(SourceError, match="README"):
        find_files(str(tmp_path))


def test_a_folder_of_more_files_than_data_has_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.jsonl", "b/c.jsonl", ".git/d", ".git/e"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(folders, "MOST_FILES", 3)
    assert [file.name for file in find_files(str(tmp_path)).files] == ["a.jsonl", "c.jsonl"]
    monkeypatch.setattr(folders, "MOST_FILES", 2)
    with pytest.raises(SourceError, match="more than 2 files and folders"):
        find_files(str(tmp_path))


# Labels that are brought in

RANKING = {"prompt": "hi", "completions": ["a", "b"], "ranks": [0, 1]}
IMPORTS: dict[str, tuple[list[str], list[dict[str, Any]]]] = {
    "a campaign that is no text": (["--campaign", os.fsdecode(b"\xff")], []),
    "an annotator of a long name": ([], [{**RANKING, "annotator": "x" * 1000}]),
    "an annotator of two lines": ([], [{**RANKING, "annotator": "a\x07b"}]),
}


@pytest.mark.parametrize(("args", "rows"), IMPORTS.values(), ids=IMPORTS)
def test_labels_whose_names_the_store_does_not_take(
    rlhf: Rlhf, assert_refused: Refused, args: list[str], rows: list[dict[str, Any]]
) -> None:
    files = {
        "run/recipe.yaml": f"name: x\n{RECIPE}",
        "good.jsonl": json.dumps(RANKING),
        "bad.jsonl": "\n".join(map(json.dumps, [RANKING, *rows])),
    }
    assert_refused(rlhf(["label", "import", "run", "bad.jsonl", *args], files), "bad.jsonl: ")
    assert rlhf(["label", "import", "run", "good.jsonl"]).code == 0
    assert_refused(rlhf(["label", "import", "run", "bad.jsonl", *args]), "bad.jsonl: ")


ODD_OPTIONS = (
    ["label", "tasks", "run", "--database", "sqlite:///x.sqlite?timeout=x"],
    ["run", "r.yaml", "--processes", "9" * 20],
    [*SCORE, "--limit", "9" * 20],
)


@pytest.mark.parametrize("args", ODD_OPTIONS, ids=" ".join)
def test_a_number_that_an_option_does_not_take(
    rlhf: Rlhf, assert_refused: Refused, args: list[str]
) -> None:
    assert_refused(rlhf(args, {**FILES, "run/x": "", "x.sqlite": ""}))


EVALUATE = ["eval", "run/sft", "--prompts", "world:eval_prompts", "--limit", "2", "--out", "o"]


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["--reward", "run/sft"], "without a reward head"),
        (["--reward", "rule:length"], "rule:length"),
        (["--temperature", "1e-320"], "temperature"),
        (["--temperature", "nan"], "temperature"),
        (["--passages", "2"], "--passages is for --retrieve"),
        (["--corpus", "long.txt"], "--corpus is for the tool search; name it in --tools"),
        (["--tool-form", "template"], "--tool-form is for tools; name them in --tools"),
        (["--tools", "calculator", "--tool-form", "json"], "'inline' or 'template'"),
        (["--tools", "search"], "tool 'search' needs a corpus: "),
        (["--tools", "search", "--corpus", "empty.txt"], "empty.txt: it is empty"),
        (["--tools", "search", "--corpus", "signs.txt"], "holds no words"),
        (["--retrieve", "empty.txt"], "empty.txt: it is empty"),
        (["--retrieve", "signs.txt"], "holds no words"),
        (["--retrieve", "latin.txt"], "latin.txt is not UTF-8 text"),
        (["--retrieve", "nowhere"], "nowhere"),
        (["--retrieve", "world:corpsu"], "the world has no part 'corpsu'"),
        (["--retrieve", "long.txt", "--passage-tokens", "9000"], "or passage_tokens"),
    ],
    ids=lambda value: " ".join(value),
)
def test_an_evaluation_is_refused_before_it_is_begun(
    rlhf: Rlhf,
    assert_refused: Refused,
    stage: Path,
    args: list[str],
    word: str,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    files: dict[str, Any] = {"empty.txt": "", "signs.txt": "... !!", "latin.txt": b"\xe9t\xe9"}
    files["long.txt"] = "what does who do, where is the house? " * 200
    assert_refused(rlhf([*EVALUATE, *args], files), word)


@pytest.mark.parametrize("args", [["report", "one"], ["compare", "one", "two"]], ids=" ".join)
@pytest.mark.parametrize("text", ["{}", '{"bootstrap": 5}', '{"bootstrap": {}, "checkpoints": []}'])
def test_an_evaluation_that_is_none(
    rlhf: Rlhf, assert_refused: Refused, args: list[str], text: str
) -> None:
    files = {f"{name}/evaluation.json": text for name in ("one", "two")}
    assert_refused(rlhf(args, files), "evaluation.json holds no evaluation")
