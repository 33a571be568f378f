from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from data.errors import RecipeError
from pipeline.recipe.load import Recipe, load_recipe
from pipeline.run.seeds import turns

LOOP: dict[str, Any] = {
    "seed": 5,
    "rounds": {"times": 3},
    "stages": {
        "tok": {"kind": "tokenizer", "train": [{"path": "text.txt"}], "vocab_size": 300},
        "sft": {"kind": "sft", "model": "./base", "train": [{"path": "chats.jsonl"}]},
        "known": {"kind": "rankings", "labeler": "file", "rankings": [{"path": "pairs.jsonl"}]},
        "rankings": {
            "kind": "rankings",
            "labeler": "people",
            "model": "sft",
            "prompts": [{"world": "rm_prompts"}],
            "people": {"gold": "known"},
        },
        "reward": {"kind": "reward", "model": "sft", "rankings": ["known", "rankings"]},
        "ppo": {
            "kind": "ppo",
            "policy": "sft",
            "reward": "reward",
            "prompts": [{"world": "ppo_prompts"}],
        },
    },
}


@pytest.fixture
def loaded(tmp_path: Path) -> Callable[..., Recipe]:
    """Load the recipe, changed: loaded(*overrides, rounds=..., **stages)."""

    def load(*overrides: str, rounds: Any = None, **stages: Any) -> Recipe:
        content = json.loads(json.dumps(LOOP))
        content["rounds"] = rounds or content["rounds"]
        content["stages"] |= stages
        path = tmp_path / "loop.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return load_recipe(path, overrides)

    return load


def of(recipe: Recipe, stage: str) -> Any:
    return recipe.stages[stage]


def test_each_round_follows_the_one_before(loaded: Any) -> None:
    recipe = loaded()
    order = list(recipe.stages)
    assert order[-9:] == [
        f"{name}{number}" for number in ("", "_2", "_3") for name in ("rankings", "reward", "ppo")
    ]
    assert [of(recipe, f"rankings{n}").model for n in ("", "_2", "_3")] == ["sft", "ppo", "ppo_2"]
    assert of(recipe, "reward_2").rankings == ("known", "rankings", "rankings_2")
    assert of(recipe, "reward_3").rankings == ("known", "rankings", "rankings_2", "rankings_3")
    assert (of(recipe, "ppo_3").policy, of(recipe, "ppo_3").reward) == ("sft", "reward_3")
    assert of(recipe, "rankings_3").people.gold == "known"
    # Another round draws other prompts and other answers.
    seeds = [recipe.seed(name) for name in ("rankings", "rankings_2", "rankings_3", "reward_3")]
    assert seeds == [5, 6, 7, 5]


def test_rounds_of_dpo_need_no_reward_model(loaded: Any) -> None:
    dpo = {"kind": "dpo", "model": "sft", "rankings": "rankings"}
    recipe = loaded(dpo=dpo, rounds={"times": 2, "stages": ["rankings", "dpo"]})
    assert list(recipe.stages)[-2:] == ["rankings_2", "dpo_2"]
    assert of(recipe, "rankings_2").model == "dpo"
    second = of(recipe, "dpo_2")
    assert (second.rankings, second.model) == (("rankings", "rankings_2"), "sft")


def test_seeds_differ_in_later_rounds_of_stages_that_the_first_one_shares(loaded: Any) -> None:
    runs = turns(
        lambda changes: loaded(*changes), "3,8", out=None, start="ppo", until=None, reuse=()
    )
    first, second = ({s: t.recipe.seed(s) for s in t.recipe.stages} for t in runs)
    shared = {"tok": 3, "sft": 3, "known": 3, "rankings": 3, "reward": 3}
    rounds = {
        "rankings_2": 4,
        "reward_2": 3,
        "ppo_2": 3,
        "rankings_3": 5,
        "reward_3": 3,
        "ppo_3": 3,
    }
    assert first == {**shared, "ppo": 3, **rounds}
    assert second == {**shared, "ppo": 8, **{stage: seed + 5 for stage, seed in rounds.items()}}


def test_a_copy_may_differ(loaded: Any) -> None:
    recipe = loaded(
        "reward.epochs=2",
        "rankings_3.limit=40",
        "ppo_2.kl_coefficient=0.3",
        rankings_2={"people": {"strategy": "small_gap", "scored_by": ["reward"]}},
    )
    assert [of(recipe, f"reward{n}").epochs for n in ("", "_2", "_3")] == [2, 2, 2]
    assert [of(recipe, f"rankings{n}").limit for n in ("", "_2", "_3")] == [None, None, 40]
    assert of(recipe, "ppo_2").kl_coefficient == 0.3 != of(recipe, "ppo_3").kl_coefficient
    second = of(recipe, "rankings_2").people
    assert (second.scored_by, second.gold) == (("reward",), "known")
    assert recipe.parents("rankings_2") == ["ppo", "reward", "known"]


def test_people_talk_with_the_policy_of_the_round_before(loaded: Any) -> None:
    talks = {"completions": 2, "people": {"needed": 9, "conversations": {"against": "sft"}}}
    recipe = loaded(
        rankings=LOOP["stages"]["rankings"] | talks,
        rankings_3={"people": {"conversations": {"against": "ppo"}}},
    )
    found = [of(recipe, f"rankings{number}") for number in ("", "_2", "_3")]
    assert [one.model for one in found] == ["sft", "ppo", "ppo_2"]
    assert [one.people.conversations.against for one in found] == ["sft", "sft", "ppo"]
    assert recipe.parents("rankings_3") == ["ppo_2", "ppo"]


def test_one_round_is_the_recipe_as_it_stands(loaded: Any) -> None:
    recipe = loaded("rounds.times=1")
    assert list(recipe.stages) == list(LOOP["stages"])


def test_what_show_prints_is_the_same_recipe(loaded: Any, tmp_path: Path) -> None:
    recipe = loaded()
    path = tmp_path / "shown.yaml"
    path.write_text(recipe.to_yaml())
    assert load_recipe(path).stages == recipe.stages
    assert "\n  rankings_3:\n" in recipe.to_yaml()


def test_what_names_a_round_may_stand_outside(loaded: Any) -> None:
    evaluate = {
        "kind": "evaluate",
        "checkpoints": {"first": "ppo", "last": "ppo_3"},
        "prompts": [{"world": "eval_prompts"}],
    }
    assert loaded(evaluate=evaluate).parents("evaluate") == ["ppo", "ppo_3"]


@pytest.mark.parametrize(
    ("rounds", "told"),
    [
        ({"times": 2, "stages": ["rankings", "rewards", "ppo"]}, "Did you mean 'reward'"),
        ({"times": 2, "stages": ["rankings", "reward"]}, "one stage of kind ppo, grpo"),
        ({"times": 2, "stages": ["reward", "ppo"]}, "a stage of kind rankings"),
        ({"times": 2, "stages": ["known", "reward", "ppo"]}, "the same in each round"),
        ({"times": 2, "stages": ["ppo", "ppo"]}, "each stage of a round once"),
        ({"times": 0}, "rounds.times"),
        ({"times": 2, "stagse": []}, "Did you mean 'stages'"),
    ],
)
def test_rounds_that_make_no_sense(loaded: Any, rounds: Any, told: str) -> None:
    with pytest.raises(RecipeError, match=told) as caught:
        loaded(rounds=rounds)
    assert "loop.yaml" in str(caught.value)


def test_a_mistake_is_told_where_it_was_made(loaded: Any) -> None:
    with pytest.raises(RecipeError, match=r"loop\.yaml:\d+: stages\.reward_2\.epohs"):
        loaded(reward_2={"epohs": 2})


TINY_BASE = """\
stages:
  tok: {kind: tokenizer, train: [{path: text.txt}, {path: chats.jsonl}], vocab_size: 300}
  base:
    {kind: pretrain, tokenizer: tok, train: [{path: text.txt, format: text_lines}],
     heldout_share: 0.2, hidden_size: 16, layers: 1, heads: 2, context_length: 32, positions: 256,
     steps: 4, batch_size: 2, evaluate_every: 0, save_every: 0}
"""
TINY_LOOP = f"""\
name: loop
rounds: {{times: 2}}
{TINY_BASE}\
  rankings:
    {{kind: rankings, labeler: people, model: base, prompts: [{{world: rm_prompts}}], limit: 12,
     completions: 3, max_new_tokens: 16,
     people: {{mode: rank, overlap: 0.0, annotators: [{{kind: simulated, pool: 1, flip: 0.0}}]}}}}
  reward:
    {{kind: reward, model: base, rankings: rankings, heldout_share: 0.4, prompts_per_step: 4,
     learning_rate: 1e-3, save_every: 0}}
  ppo:
    {{kind: ppo, policy: base, reward: reward, prompts: [{{path: prompts.jsonl}}],
     max_prompt_tokens: 64, max_new_tokens: 6, episodes: 16, batch_size: 8, minibatches: 2,
     epochs: 1, temperature: 1.0, save_every: 0, learning_rate: 1e-3}}
"""
TINY_DPO_LOOP = f"""\
name: dpo_loop
rounds: {{times: 2, stages: [rankings, dpo]}}
{TINY_BASE}\
  rankings:
    {{kind: rankings, model: base, prompts: [{{world: rm_prompts}}], limit: 12, completions: 3,
     max_new_tokens: 16}}
  dpo:
    {{kind: dpo, model: base, rankings: rankings, batch_size: 4, learning_rate: 1e-3, ties: half,
     save_every: 0}}
"""


def test_two_rounds_run_and_are_up_to_date(tiny_recipe: Path, rlhf: Any) -> None:
    path = tiny_recipe.with_name("loop.yaml")
    path.write_text(TINY_LOOP)
    told = rlhf("run", path, "--dry-run")
    assert "rankings_2: run" in told.out, told.err
    run = rlhf("run", path)
    assert run.code == 0, run.err
    folder = tiny_recipe.parent / "runs" / "loop"
    counts = [
        sum(1 for _ in (folder / name / "rankings.jsonl").read_text().splitlines())
        for name in ("rankings", "rankings_2")
    ]
    told = re.findall(r"(\d+) rankings to learn, (\d+) held out", run.out)
    assert [int(learn) + int(held) for learn, held in told] == [counts[0], sum(counts)]
    learnt = json.loads((folder / "reward_2" / "manifest.json").read_text())
    assert set(learnt["parents"]) == {"base", "rankings", "rankings_2"}
    rows = [json.loads(r) for r in (folder / "rankings_2" / "tasks.jsonl").read_text().splitlines()]
    assert {policy for row in rows for policy in row["policies"]} == {"ppo"}
    again = rlhf("run", path)
    assert again.out.count("up to date") == 8
    listed = rlhf("label", "tasks", folder).out.splitlines()
    assert [line.split("\t")[0].rpartition("-")[0] for line in listed[1:]] == [
        "rankings",
        "rankings_2",
    ]
    assert {line.split("\t")[-1] for line in listed[1:]} == {"done"}


@pytest.mark.slow
def test_two_rounds_of_dpo_run(tiny_recipe: Path, rlhf: Any) -> None:
    path = tiny_recipe.with_name("dpo_loop.yaml")
    path.write_text(TINY_DPO_LOOP)
    run = rlhf("run", path)
    assert run.code == 0, run.err
    folder = tiny_recipe.parent / "runs" / "dpo_loop"
    parents = {
        name: set(json.loads((folder / name / "manifest.json").read_text())["parents"])
        for name in ("rankings_2", "dpo_2")
    }
    assert parents == {"rankings_2": {"dpo"}, "dpo_2": {"base", "rankings", "rankings_2"}}
