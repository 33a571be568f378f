"""Settings that are no more, in the recipes and runs of those who still have them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from data.errors import RecipeError
from pipeline.contract.retired import RETIRED, Retired
from pipeline.contract.settings import beside_result
from pipeline.recipe.load import load_recipe
from pipeline.stages.registry import stage_kind

STAGES: dict[str, dict[str, Any]] = {
    "tokenizer": {"train": [{"path": "a"}]},
    "pretrain": {"train": [{"path": "a"}], "model": "./m"},
    "sft": {"model": "./m", "train": [{"path": "a"}]},
    "rankings": {"labeler": "people", "model": "./m", "prompts": [{"path": "a"}], "people": {}},
    "reward": {"model": "./m", "train": [{"path": "a"}]},
    "select": {"model": "./m", "reward": "./r", "prompts": [{"path": "a"}]},
    "evaluate": {"checkpoints": {"one": "./m"}, "prompts": [{"path": "a"}]},
    "ppo": {
        "policy": "./p", "reward": "./r", "prompts": [{"path": "a"}],
        "doctor": {"on_alarm": "best"},
    },
}  # fmt: skip
KEYS = {
    "tokenizer": "760c52746c28",
    "pretrain": "b7f703b8e1cb",
    "sft": "e58203ed9d0d",
    "rankings": "5f6d276f9319",
    "reward": "b756762c1e96",
    "select": "0ccd31a69fe7",
    "evaluate": "716a4db03cae",
    "ppo": "7bbc51276d7a",
}
"""Beginning of the digest that the settings of these stages had before any was retired."""
ALL = [(kind, one) for kind, those in RETIRED.items() for one in those]


def written(folder: Path, kind: str, place: str, value: Any) -> Path:
    """Write a recipe whose stage of a kind has a value at a dotted place."""
    stage = holder = json.loads(json.dumps({"kind": kind, **STAGES[kind]}))
    *keys, name = place.split(".")
    for key in keys:
        holder = holder.setdefault(key, {})
    holder[name] = value
    path = folder / "old.yaml"
    path.write_text(yaml.safe_dump({"stages": {"one": stage}}), encoding="utf-8")
    return path


@pytest.mark.parametrize(("kind", "one"), ALL, ids=lambda value: getattr(value, "place", value))
def test_a_retired_setting_is_passed_over_at_what_it_was_and_else_refused(
    kind: str, one: Retired, tmp_path: Path
) -> None:
    settings = load_recipe(written(tmp_path, kind, one.place, one.value)).stages["one"]
    assert settings == stage_kind(kind).settings(**STAGES[kind])
    path = written(tmp_path, kind, one.place, "other")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    told = (
        f"stages.one.{one.place}: 'other': no setting any more, {one.value!r} holds; {one.instead}"
    )
    assert str(caught.value).startswith(f"{path}:") and str(caught.value).endswith(told)


@pytest.mark.parametrize("kind", STAGES)
def test_keys_hold_what_they_held(kind: str) -> None:
    settings = stage_kind(kind).settings(**STAGES[kind])
    key = json.dumps(settings.key_settings(), sort_keys=True)
    assert hashlib.sha256(key.encode()).hexdigest().startswith(KEYS[kind])
    for one in RETIRED[kind]:
        assert not one.same_result or beside_result(settings)[one.place] == one.value
    assert RETIRED.keys() == STAGES.keys() == KEYS.keys()


def test_rounds_are_written_out_of_what_is_left(tmp_path: Path) -> None:
    pairs = [{"path": "a"}]
    stages: dict[str, dict[str, Any]] = {
        "rankings": {"kind": "rankings", "model": "./p", "prompts": [{"world": "rm_prompts"}]},
        "reward": {"kind": "reward", "model": "./p", "rankings": "rankings", "heldout": pairs},
        "ppo": {"kind": "ppo", "policy": "./p", "reward": "reward", "prompts": pairs},
    }
    stages["ppo"]["doctor"] = {"score_drop": 1.0}
    stages["ppo_2"] = {"doctor": {"score_drop": 2.0}}
    rounds = {"times": 2, "stages": ["rankings", "reward", "ppo"]}
    path = tmp_path / "rounds.yaml"
    path.write_text(yaml.safe_dump({"stages": stages, "rounds": rounds}), encoding="utf-8")
    with pytest.raises(
        RecipeError, match=r"stages\.ppo_2\.doctor\.score_drop: 2\.0: no setting any more, 1\.0"
    ):
        load_recipe(path)
    del stages["ppo_2"]
    path.write_text(yaml.safe_dump({"stages": stages, "rounds": rounds}), encoding="utf-8")
    assert load_recipe(path).parents("ppo_2") == ["reward_2"]


def test_a_run_of_before_is_up_to_date_with_its_own_recipe(
    rlhf: Callable[..., Any], finished: Path
) -> None:
    own = finished / "recipe.yaml"
    recipe = yaml.safe_load(own.read_text(encoding="utf-8"))
    for stage in recipe["stages"].values():
        for one in RETIRED.get(stage["kind"], ()):
            *keys, name = one.place.split(".")
            holder = stage
            for key in keys:
                holder = (holder or {}).get(key)
            if holder is not None:
                holder[name] = one.value
    own.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    said = rlhf("run", own, "--out", finished, "--dry-run")
    assert said.code == 0 and said.out.count("up to date") == len(recipe["stages"]), said
