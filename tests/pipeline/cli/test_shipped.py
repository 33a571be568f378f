"""Recipes that come with the package, from a folder that holds none."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

RECIPES = Path(__file__).parents[3] / "recipes"
Rlhf = Callable[..., Any]


def test_each_shipped_file_is_listed_with_what_it_is(rlhf: Rlhf) -> None:
    told = dict(line.split(maxsplit=1) for line in rlhf("recipes").out.splitlines())
    assert set(told) == {path.relative_to(RECIPES).as_posix() for path in RECIPES.rglob("*.yaml")}
    assert told["quickstart.yaml"] == "all stages from nothing on the embedded world"
    assert told["launch/ddp.yaml"].endswith("gradients are averaged (DDP)")
    assert rlhf("--version").out.strip() == version("rlhf-pipeline")


@pytest.mark.parametrize("name", ["quickstart", "quickstart.yaml", "recipes/quickstart.yaml"])
def test_a_shipped_recipe_is_found_by_its_name(rlhf: Rlhf, name: str) -> None:
    assert rlhf("show", name).out == rlhf("show", RECIPES / "quickstart.yaml").out


def test_a_local_recipe_comes_before_a_shipped_one(rlhf: Rlhf, tmp_path: Path) -> None:
    mine = "stages: {mine: {kind: tokenizer, train: [{world: corpus}]}}\n"
    (tmp_path / "quickstart.yaml").write_text(mine)
    (tmp_path / "base").mkdir()
    (tmp_path / "base/nplus.yaml").write_text(mine)
    (tmp_path / "other.yaml").write_text("extends: [quickstart.yaml, base/nplus.yaml]\n")
    for name in ("quickstart", "quickstart.yaml", "base/nplus", "other"):
        assert list(yaml.safe_load(rlhf("show", name).out)["stages"]) == ["mine"]


def test_a_recipe_extends_a_shipped_one_and_names_its_launch_file(
    rlhf: Rlhf, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text(
        "extends: [quickstart.yaml, base/nplus.yaml]\n"
        "launch: {processes: 2, config: launch/ddp.yaml}\n"
        "stages: {ppo: {max_prompt_tokens: 64, prompts: [{world: ppo_prompts, limit: 9}]}}\n"
    )
    assert rlhf("validate", "mine.yaml").code == 0
    ppo = yaml.safe_load(rlhf("show", "mine.yaml").out)["stages"]["ppo"]
    assert (ppo["score_position"], ppo["prompts"][0]["limit"]) == ("past_last", 9)


def test_a_copy_works_where_it_is_put_and_takes_no_place_of_another(
    rlhf: Rlhf, tmp_path: Path
) -> None:
    copied = rlhf("copy", "quickstart_one_trunk")
    assert "extends quickstart.yaml" in copied.out
    shipped = RECIPES / "quickstart_one_trunk.yaml"
    assert (tmp_path / shipped.name).read_text() == shipped.read_text()
    assert rlhf("validate", shipped.name).code == 0
    again = rlhf("copy", "quickstart_one_trunk")
    assert (again.code, "is there already" in again.err) == (2, True)
    assert rlhf("copy", "launch/fsdp2.yaml", "mine.yaml").out == "mine.yaml: copied\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run", "quikstart"], "Did you mean 'quickstart'?"),
        (["plan", "nplus"], "Did you mean 'base/nplus'?"),
        (["copy", "quikstart"], "Did you mean 'quickstart.yaml'?"),
        (["validate", "far.yaml"], "extends: base/nplu.yaml: no such recipe"),
        (["validate", "far.yaml"], "Did you mean 'base/nplus'?"),
        (["validate", "quickstart", "--set", "launch.config=launch/dp.yaml"], "'launch/ddp.yaml'?"),
        (["validate", "../../recipe/load"], "no such recipe"),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest(
    rlhf: Rlhf, tmp_path: Path, words: list[str], told: str
) -> None:
    (tmp_path / "far.yaml").write_text("extends: base/nplu.yaml\n")
    result = rlhf(*words)
    assert (result.code, told in result.err, result.err.count("\n")) == (2, True, 1), result
    assert [path.name for path in tmp_path.iterdir()] == ["far.yaml"]
