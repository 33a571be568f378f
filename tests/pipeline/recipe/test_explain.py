from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from data.errors import RecipeError
from pipeline.recipe.explain import (
    LEFT_OPEN,
    Explained,
    comments,
    explain,
    explained,
    load_explained,
)
from pipeline.recipe.load import Recipe, load_recipe

BASE = """\
# About the whole file.
stages:
  # Learns words.
  # From text.
  tokenizer:
    kind: tokenizer
    vocab_size: 1024  # as GPT-2, "#" and all
    train:
      - world: corpus
        hub_split: "#pad # no comment"

        # Not of the next line.

        limit: 5  # both parts
"""
TOP = """\
extends: base.yaml
seed: 3
stages:
  tokenizer:
    # Fewer.
    vocab_size: 300
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "top.yaml").write_text(TOP)
    return tmp_path / "top.yaml"


def entries(recipe: Recipe) -> dict[str, Explained]:
    return {entry.path: entry for entry in explained(recipe)}


def test_comments_belong_to_the_line_beside_or_below(path: Path) -> None:
    found = comments(path.parent / "base.yaml")
    assert found == {5: "Learns words.\nFrom text.", 7: 'as GPT-2, "#" and all', 14: "both parts"}


def test_every_setting_tells_its_origin(path: Path) -> None:
    found = entries(load_recipe(path, ["tokenizer.train.0.skip=2", "name=mine"]))
    folder = path.parent
    size = found["stages.tokenizer.vocab_size"]
    assert (size.value, size.origin, size.comment) == ("300", f"{folder}/top.yaml:6", "Fewer.")
    assert size.meaning
    assert found["stages.tokenizer"].comment == ""  # the top file's key has none
    assert found["stages.tokenizer.train.0.hub_split"].origin == f"{folder}/base.yaml:10"
    assert found["stages.tokenizer.train.0.limit"].origin == f"{folder}/base.yaml:14"
    assert found["stages.tokenizer.train.0.limit"].comment == "both parts"
    assert found["stages.tokenizer.train.0.skip"].origin == "--set tokenizer.train.0.skip=2"
    assert found["stages.tokenizer.train.0.format"].origin == "default"
    assert found["seed"].origin == f"{folder}/top.yaml:2"
    assert found["launch.processes"].origin == "default"
    assert found["name"].origin == "--set name=mine"


def test_a_list_given_whole_by_set_hides_what_the_file_said(path: Path) -> None:
    change = "tokenizer.train=[{world: instructions, limit: 7}]"
    found = entries(load_recipe(path, [change]))
    assert found["stages.tokenizer.train.0.limit"].value == "7"
    assert found["stages.tokenizer.train.0.limit"].origin == f"--set {change}"
    assert found["stages.tokenizer.train.0.skip"].origin == "default"
    assert found["name"].origin == "the file's name"


def test_the_text_has_value_origin_meaning_and_comment(path: Path) -> None:
    text = explain(load_recipe(path))
    wanted = f"""\
  vocab_size: 300  <- {path}:6
      """
    assert wanted in text
    block = text[text.index("  vocab_size: 300") :].splitlines()
    assert block[2].strip() == "# Fewer."
    assert block[1].startswith("      ") and block[1].strip()


def test_every_setting_of_every_stage_has_a_meaning(tmp_path: Path) -> None:
    recipes = Path(__file__).parents[3] / "recipes"
    for file in sorted(recipes.glob("*.yaml")):
        for entry in explained(load_recipe(file)):
            assert entry.meaning, (file.name, entry.path)


def test_explain_shows_a_presets_sources(tmp_path: Path) -> None:
    base = Path(__file__).parents[3] / "recipes" / "base" / "lmhp.yaml"
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        textwrap.dedent(
            f"""
            extends: {base}
            stages:
              ppo:
                policy: ./somewhere
                reward: [{{rule: length, options: {{target: 5}}}}]
                prompts: [{{world: corpus}}]
            """
        )
    )
    found = entries(load_recipe(recipe, ["ppo.kl_coefficient=0.2"]))
    target = found["stages.ppo.adaptive_kl.target"]
    assert (target.value, target.comment) == ("6.0", "launch.py: rewards.adaptive_kl.target")
    assert target.origin.startswith(f"{base}:")
    assert found["stages.ppo.kl_coefficient"].origin == "--set ppo.kl_coefficient=0.2"
    assert found["stages.ppo.reward.0.weight"].origin == "default"


PRESETS = sorted((Path(__file__).parents[3] / "recipes" / "base").glob("*.yaml"))


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_explain_shows_a_preset_itself(preset: Path) -> None:
    found = entries(load_explained(preset))
    left = [entry for entry in found.values() if entry.origin == LEFT_OPEN]
    assert left and all(entry.meaning and not entry.value for entry in left)
    assert not any("left-to-what" in entry.value + entry.origin for entry in found.values())


def test_what_is_set_is_not_left_open() -> None:
    (preset,) = (path for path in PRESETS if path.stem == "instructgpt")
    found = entries(load_explained(preset, ["ppo.policy=./mine"]))
    open_keys = {path for path, entry in found.items() if entry.origin == LEFT_OPEN}
    assert open_keys == {f"stages.ppo.{key}" for key in ("reward", "prompts", "pretraining")}
    assert found["stages.ppo.policy"].origin == "--set ppo.policy=./mine"
    assert found["stages.ppo.ptx_coefficient"].value == "27.8"


def test_other_mistakes_of_a_preset_are_told(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("stages:\n  ppo:\n    kind: ppo\n    episods: 3\n")
    with pytest.raises(RecipeError, match=r"r.yaml:4: stages.ppo.episods: unknown key"):
        load_explained(file)
