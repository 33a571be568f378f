from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from data.errors import RecipeError
from pipeline.recipe.load import load_recipe

TOKENIZER = """
    stages:
      tokenizer:
        kind: tokenizer
        train: [{world: corpus}]
        vocab_size: 1024
"""


def write(path: Path, text: str) -> Path:
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def error_of(path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return str(caught.value)


def test_a_recipe_takes_its_name_from_the_file(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path / "small.yaml", TOKENIZER))
    assert recipe.name == "small"
    assert list(recipe.stages) == ["tokenizer"]


def test_extends_merges_deeply_and_replaces_lists(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", TOKENIZER)
    top = write(
        tmp_path / "top.yaml",
        """
        extends: base.yaml
        stages:
          tokenizer:
            train: [{world: instructions}, {world: corpus}]
        """,
    )
    settings = load_recipe(top).stages["tokenizer"].model_dump()
    assert settings["vocab_size"] == 1024
    assert [s["world"] for s in settings["train"]] == ["instructions", "corpus"]


def test_null_removes_a_stage_of_the_base(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", TOKENIZER)
    top = write(
        tmp_path / "top.yaml",
        """
        extends: base.yaml
        stages:
          tokenizer: null
          other: {kind: tokenizer, train: [{world: corpus}], vocab_size: 512}
        """,
    )
    assert list(load_recipe(top).stages) == ["other"]


def test_a_circle_of_extends_names_the_files(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "extends: b.yaml\nstages: {}\n")
    path = write(tmp_path / "b.yaml", "extends: [a.yaml]\nstages: {}\n")
    message = error_of(path)
    assert "a.yaml" in message and "b.yaml" in message and "extends itself" in message


def test_set_changes_a_value_and_reads_exponents(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", TOKENIZER)
    recipe = load_recipe(path, ["tokenizer.vocab_size=300", "seed=7"])
    assert recipe.stages["tokenizer"].model_dump()["vocab_size"] == 300
    assert recipe.seed("tokenizer") == 7
    recipe = load_recipe(path, ["stages.tokenizer.train.0.max_bad_share=1e-5"])
    assert recipe.stages["tokenizer"].model_dump()["train"][0]["max_bad_share"] == 1e-5


def test_an_unknown_key_names_line_path_and_nearest(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", TOKENIZER.replace("vocab_size", "vocab_sise"))
    message = error_of(path)
    assert f"{path}:6: stages.tokenizer.vocab_sise: unknown key" in message
    assert "Did you mean 'vocab_size'?" in message


def test_an_unknown_key_inside_a_list_suggests_the_key_of_that_level(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", TOKENIZER.replace("world: corpus", "wurld: corpus"))
    message = error_of(path)
    assert "stages.tokenizer.train.0.wurld" in message
    assert "Did you mean 'world'?" in message


def test_a_wrong_type_names_the_value(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", TOKENIZER.replace("1024", "many"))
    message = error_of(path)
    assert "r.yaml:6: stages.tokenizer.vocab_size: 'many'" in message


def test_an_unknown_kind_suggests_one(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", TOKENIZER.replace("kind: tokenizer", "kind: tokeniser"))
    message = error_of(path)
    assert "r.yaml:4: stages.tokenizer.kind" in message
    assert "Did you mean 'tokenizer'?" in message


def test_a_reference_to_no_stage_suggests_one(tmp_path: Path) -> None:
    path = write(
        tmp_path / "r.yaml",
        TOKENIZER
        + """
      base:
        kind: pretrain
        tokenizer: tokeniser
        train: [{world: corpus}]
        """.replace("\n        ", "\n        "),
    )
    message = error_of(path)
    assert "no stage is named 'tokeniser'" in message
    assert "Did you mean 'tokenizer'?" in message


def test_stages_that_refer_in_a_circle_are_named(tmp_path: Path) -> None:
    path = write(
        tmp_path / "r.yaml",
        """
        stages:
          a: {kind: sft, model: b, train: [{world: instructions}]}
          b: {kind: sft, model: a, train: [{world: instructions}]}
        """,
    )
    assert "in a circle: a -> b -> a" in error_of(path)


def test_stages_are_ordered_by_their_references(tmp_path: Path) -> None:
    path = write(
        tmp_path / "r.yaml",
        """
        stages:
          b: {kind: sft, model: a, train: [{world: instructions}]}
          a: {kind: sft, model: org/model, train: [{world: instructions}]}
        """,
    )
    recipe = load_recipe(path)
    assert list(recipe.stages) == ["a", "b"]
    assert recipe.parents("b") == ["a"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "a recipe is a mapping"),
        ("stages: {}", "at least one stage"),
        ("stages: [", "no valid YAML"),
        ("stages: {a: {}}\nstages: {}", "stands twice"),
        ("stages: {a: 3}", "a stage is a mapping"),
        ("stages: {report: {kind: sft}}", "rename it"),
        ("sed: 3\nstages: {a: {kind: tokenizer, train: [{world: corpus}]}}", "'seed'"),
    ],
)
def test_a_broken_recipe_is_told(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in error_of(write(tmp_path / "r.yaml", text))


def test_a_missing_recipe_suggests_a_file(tmp_path: Path) -> None:
    write(tmp_path / "quickstart.yaml", TOKENIZER)
    assert "Did you mean 'quickstart.yaml'?" in error_of(tmp_path / "quickstat.yaml")


@pytest.mark.parametrize("override", ["novalue", "nowhere.x=1", "tokenizer.train.5.limit=2"])
def test_a_set_that_fits_nothing_is_told(tmp_path: Path, override: str) -> None:
    assert f"--set {override}" in error_of(write(tmp_path / "r.yaml", TOKENIZER), override)


def test_a_resolved_recipe_reads_back_the_same(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path / "r.yaml", TOKENIZER), ["seed=3"])
    again = load_recipe(write(tmp_path / "again.yaml", recipe.to_yaml()))
    assert again.stages == recipe.stages
    assert again.top == recipe.top


SHAPES = "this is a text; put a number in quotes, or this is a list"


@pytest.mark.parametrize(
    ("reward", "told"),
    [
        ("{rule: length}", f": {SHAPES}"),
        ("3", f": 3: {SHAPES}"),
        ("[{rul: length}]", ".0.rul: unknown key (value 'length'). Did you mean 'rule'?"),
    ],
)
def test_a_setting_of_several_types_is_named_once_as_it_stands(
    tmp_path: Path, reward: str, told: str
) -> None:
    recipe = write(tmp_path / "a.yaml", f"""
        stages:
          ppo:
            kind: ppo
            policy: ./model
            reward: {reward}
            prompts: [{{world: ppo_prompts}}]
            episodes: 8
    """)  # fmt: skip
    found = error_of(recipe).removeprefix(str(recipe))
    assert found.splitlines()[0] == f":6: stages.ppo.reward{told}"
    assert "[function" not in found and ".str" not in found
