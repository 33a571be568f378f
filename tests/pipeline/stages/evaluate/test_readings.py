"""What validate says of prompts that the stages before will have seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data.sources.split import is_heldout
from pipeline.contract.handover import HandOver
from pipeline.contract.settings import SourceSettings
from pipeline.stages.evaluate import readings
from pipeline.stages.evaluate.readings import made_by, overlap_warning, trained_against
from pipeline.stages.evaluate.settings import EvaluateSettings
from pipeline.stages.ppo.settings import PpoSettings
from pipeline.stages.reward.settings import RewardSettings
from pipeline.stages.sft.settings import SftSettings

RECIPES = Path(__file__).parents[4] / "recipes"
QUESTIONS = [f"Who bakes in house {i}?" for i in range(40)]


@pytest.fixture
def warned(tmp_path: Path) -> Any:
    """Return what is said of an evaluation of SFT on the first 20 of 40 questions."""
    rows = [{"prompt": question, "completion": "Ada."} for question in QUESTIONS]

    def write(name: str, some: list[dict[str, str]]) -> SourceSettings:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in some))
        return SourceSettings(path=str(tmp_path / name))

    taught, asked = write("taught.jsonl", rows[:20]), write("asked.jsonl", rows)

    def build(train: SourceSettings = taught, share: float = 0.0, **changes: Any) -> Any:
        sft = SftSettings(model="some/model", train=(train,), heldout_share=share)
        settings = EvaluateSettings.model_validate(
            {"checkpoints": {"base": "some/model", "sft": "sft"}, "prompts": [asked]} | changes
        )
        hand = HandOver("evaluate", {"sft": sft, "evaluate": settings}, lambda name: None)
        assert made_by(settings, hand) == {"base": [], "sft": ["sft"]}
        return overlap_warning(settings, hand, lambda stage: 3)

    return build


def test_the_count_is_told_in_one_line(warned: Any) -> None:
    assert warned() == "20 of 40 prompts (50 %) not held out: 20 learnt by sft."


def test_what_the_stage_will_hold_out_by_its_seed_is_not_counted(warned: Any) -> None:
    learnt = sum(not is_heldout(question, share=0.5, seed=3) for question in QUESTIONS[:20])
    assert 0 < learnt < 20
    assert warned(share=0.5).endswith(f"not held out: {learnt} learnt by sft.")


def test_nothing_is_told_of_what_cannot_be_read_yet_or_is_large(
    warned: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert warned(train=SourceSettings(path=str(tmp_path / "to_come.jsonl"))) is None
    assert warned(train=SourceSettings(hub="some/data")) is None
    assert warned(train=SourceSettings(world="instructions")) is None  # and shares no question
    monkeypatch.setattr(readings, "_SMALL", 100)
    assert warned() is None


def test_a_reward_model_has_seen_what_was_ranked_for_it() -> None:
    from pipeline.recipe.load import load_recipe

    stages = load_recipe(RECIPES / "quickstart.yaml").stages
    read = readings.readings(HandOver("ppo", stages, lambda name: None))
    assert [source.world for source in read["reward"].sources] == ["rm_prompts"]
    assert [source.world for source in read["ppo"].sources] == ["ppo_prompts"]


@pytest.mark.parametrize(("on_alarm", "seen"), [("warn", 1), ("best", 2)])
def test_prompts_that_choose_what_ppo_publishes_are_not_held_out(on_alarm: str, seen: int) -> None:
    from pipeline.recipe.load import load_recipe

    changes = [
        "ppo.evaluate_every=5", "ppo.evaluation_gold=true", f"ppo.doctor.on_alarm={on_alarm}",
        "ppo.evaluation_prompts=[{world: eval_prompts}]",
    ]  # fmt: skip
    stages = load_recipe(RECIPES / "quickstart.yaml", changes).stages
    read = readings.readings(HandOver("ppo", stages, lambda name: None))
    worlds = [source.world for source in read["ppo"].sources]
    assert worlds == ["ppo_prompts", "eval_prompts"][:seen]


def test_validate_tells_it(tmp_path: Path) -> None:
    from pipeline.recipe.load import load_recipe
    from pipeline.run.checking import check_recipe

    recipe = load_recipe(
        RECIPES / "quickstart.yaml", ["evaluate.prompts=[{world: ppo_prompts, limit: 30}]"]
    )
    [line] = check_recipe(recipe, tmp_path / "run")
    assert line.startswith("stage evaluate: 30 of 30 prompts (100 %) not held out: ")
    assert line.endswith(" sampled on in ppo.")


@pytest.mark.parametrize("on_alarm", ["warn", "best"])
def test_who_pays_and_who_chooses_is_found_behind_a_checkpoint(on_alarm: str) -> None:
    ppo = PpoSettings.model_validate(
        {
            "policy": "sft",
            "reward": [{"model": "first"}, {"rule": "length"}],
            "prompts": [{"path": "a"}],
            "evaluate_every": 2,
            "evaluation_prompts": [{"path": "b"}],
            "evaluation_reward": "second",
            "doctor": {"on_alarm": on_alarm},
        }
    )
    sft = SftSettings(model="./base", train=(SourceSettings(path="a"),))
    first, second, third = (
        RewardSettings(model="sft", rankings="./pairs.jsonl", seed=n) for n in range(3)
    )
    stages = {"sft": sft, "first": first, "second": second, "third": third, "ppo": ppo}
    hand = HandOver("evaluate", stages, lambda name: None)

    def found(judge: str, *checkpoints: str, is_ours: bool = True) -> list[str] | None:
        return trained_against(lambda target: target == judge, checkpoints, hand, is_ours=is_ours)

    assert found("first", "sft", "ppo") == ["ppo"] and found("first", "sft") == []
    assert found("second", "ppo") == (["ppo"] if on_alarm == "best" else [])
    assert found("third", "ppo") == []
    assert found("hub/judge", "ppo", is_ours=False) is None  # the base is of others
    assert found("third", "ppo", "./exported") is None
    assert found("first", "ppo", "./exported") == ["ppo"]
