"""Stages grpo and rloo, on TRL's own trainers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data.errors import Interrupted, RewardError
from pipeline.models.load import bf16_supported
from pipeline.stages.grpo import stage as grpo
from pipeline.stages.grpo.settings import GroupSettings, GrpoSettings
from pipeline.stages.grpo.trainer import Groups
from pipeline.stages.rloo import stage as rloo
from pipeline.stages.rloo.settings import RlooSettings

STAGES: dict[str, tuple[Any, Any]] = {
    "grpo": (GrpoSettings, grpo.run),
    "rloo": (RlooSettings, rloo.run),
}
BOTH = pytest.mark.parametrize("kind", STAGES)


@pytest.fixture
def settings(policy: Path, tmp_path: Path) -> Callable[..., Any]:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"say {n}"}) + "\n" for n in range(6)))

    def build(kind: str = "grpo", **changes: Any) -> GroupSettings:
        return STAGES[kind][0](
            **{
                "policy": str(policy), "prompts": [{"path": str(path)}], "max_prompt_tokens": 20,
                "reward": [{"rule": "regex", "options": {"pattern": "e"}}],
                "end_rule": "none", "max_new_tokens": 4, "group_size": 4, "batch_size": 16,
                "episodes": 16 * 4, "learning_rate": 1e-2, "save_every": 2, "sample_every": 2,
                "bf16": False, **changes,
            }
        )  # fmt: skip

    return build


def lines(context: Any, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (context.folder / name).read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def same(a: Any, b: Any) -> bool:
    left, right = (load_file(c.folder / "model" / "model.safetensors") for c in (a, b))
    return all(torch.equal(left[name], right[name]) for name in left)


@BOTH
def test_learns_what_is_rewarded(kind: str, make_context: Any, settings: Any, policy: Path) -> None:
    chosen = settings(
        kind, episodes=64 * 12, batch_size=64, group_size=8, learning_rate=5e-2, kl_coefficient=0.01
    )
    context = make_context(chosen, {"policy": policy})
    metrics = STAGES[kind][1](context)
    told = lines(context)
    assert [row["step"] for row in told] == [*range(1, 13)]
    first, last = (sum(r["objective/scores"] for r in rows) for rows in (told[:3], told[-3:]))
    assert last > first + 0.5
    assert told[0]["objective/kl"] == pytest.approx(0, abs=1e-5) and told[-1]["objective/kl"] > 0.01
    assert told[-1]["train/learning_rate"] == 0 < told[0]["train/learning_rate"]
    assert metrics["objective/scores"] == told[-1]["objective/scores"] and metrics["updates"] == 12
    assert {"doctor/alarms", "doctor/kl_blow_up", "policy/entropy_avg"} <= told[-1].keys()
    assert len(lines(context, "samples.jsonl")) == 8 * 7  # the first update, and every second
    assert (context.folder / "model" / "chat_template.jinja").is_file()


@BOTH
def test_a_stage_that_was_cut_off_ends_as_one_that_was_not(
    kind: str, make_context: Any, settings: Any, policy: Path, tmp_path: Path
) -> None:
    chosen = settings(kind, micro_batch_size=8, save_every=3, normalize_scores=True)
    whole, cut = (make_context(chosen, {"policy": policy}, tmp_path / n) for n in ("whole", "cut"))
    STAGES[kind][1](whole)
    stopped = make_context(chosen, {"policy": policy}, cut.folder, stop_after=1)
    with pytest.raises(Interrupted):
        STAGES[kind][1](stopped)
    STAGES[kind][1](cut)
    assert same(whole, cut)
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert lines(whole, name) == lines(cut, name)


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "dapo"])
def test_micro_batches_change_nothing(
    loss: str, make_context: Any, settings: Any, policy: Path, tmp_path: Path
) -> None:
    norms = []
    for micro in (16, 4):
        chosen = settings(loss=loss, micro_batch_size=micro, episodes=16, sample_every=0)
        context = make_context(chosen, {"policy": policy}, tmp_path / str(micro))
        grpo.run(context)
        norms.append(lines(context)[0]["train/gradient_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-4) and norms[0] > 0


def test_the_reference_is_the_recipes(
    make_context: Any, settings: Any, policy: Path, tmp_path: Path, save_policy: Any,
    tiny_tokenizer: Any,
) -> None:  # fmt: skip
    other = save_policy(tiny_tokenizer(), tmp_path / "other", seed=7)
    context = make_context(
        settings(reference=str(other), episodes=16), {"policy": policy, "reference": other}
    )
    grpo.run(context)
    assert lines(context)[0]["objective/kl"] > 1e-4


@BOTH
def test_prompts_kept_apart_are_judged_and_training_goes_on_as_without(
    kind: str, make_context: Any, settings: Any, policy: Path, tmp_path: Path
) -> None:
    apart = tmp_path / "apart.jsonl"
    apart.write_text("".join(json.dumps({"prompt": f"say {n}"}) + "\n" for n in range(5, 9)))
    judged = {
        "evaluate_every": 2, "evaluation_prompts": [{"path": str(apart)}],
        "evaluation_reward": [{"rule": "length", "options": {"target": 2}}],
    }  # fmt: skip
    plain, watched = (
        make_context(settings(kind, episodes=16 * 3, **more), {"policy": policy}, tmp_path / name)
        for name, more in (("plain", {}), ("watched", judged))
    )
    assert plain.settings.key_settings().keys() == settings(kind).key_settings().keys()
    STAGES[kind][1](plain)
    told = STAGES[kind][1](watched)
    assert same(plain, watched)
    figures = [row for row in lines(watched) if "evaluation/scores" in row]
    assert [row["step"] for row in figures] == [2, 3]
    assert told["evaluation/gold"] == figures[-1]["evaluation/gold"]
    rows = lines(watched, "evaluation.jsonl")
    # One of the four is among those that are trained on.
    assert [(row["update"], row["prompt"]) for row in rows] == [
        (update, f"say {n}") for update in (2, 3) for n in (6, 7, 8)
    ]
    assert figures[0]["evaluation/gold"] == pytest.approx(sum(row["gold"] for row in rows[:3]) / 3)
    assert not any("evaluation/scores" in row for row in lines(plain))


@pytest.mark.skipif(not bf16_supported(), reason="no bf16 products here")
@BOTH
def test_a_policy_that_is_trained_in_bf16_is_sampled_from(
    kind: str, make_context: Any, settings: Any, policy: Path
) -> None:
    context = make_context(settings(kind, bf16=True, episodes=32), {"policy": policy})
    STAGES[kind][1](context)
    assert [row["step"] for row in lines(context)] == [1, 2]


def test_a_reward_without_a_number_stops(
    make_context: Any, settings: Any, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL leaves such an answer out of its group's mean."""
    monkeypatch.setattr(
        "pipeline.rl.rewards.scores_of", lambda scorer, asked, *_: [float("nan")] * len(asked)
    )
    with pytest.raises(RewardError, match="gave a score that is not finite"):
        grpo.run(make_context(settings(), {"policy": policy}))


def test_every_update_has_whole_groups_and_no_prompt_is_left_out() -> None:
    order = Groups(5, seed=0, updates=4, groups=3, group_size=2, repeats=2)
    rows = [*order]
    assert len(order) == len(rows) == 4 * 3 * 2 * 2
    for start in range(0, len(rows), 12):
        batch = rows[start : start + 12]
        assert batch[:6] == batch[6:] and batch[0:6:2] == batch[1:6:2]
    asked = [place for start in range(0, len(rows), 12) for place in rows[start : start + 6 : 2]]
    assert sorted(asked[:5]) == sorted(asked[5:10]) == [*range(5)]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"batch_size": 18}, "batch_size 18 is no multiple of group_size 4"),
        ({"group_size": 1}, "greater than 1"),
        ({"episodes": 8}, "fewer than one batch"),
        ({"doctor": {"on_alarm": "best"}}, "set on_alarm: warn"),
    ],
)
def test_settings_that_mean_nothing_are_refused(
    changes: dict[str, Any], told: str, settings: Any
) -> None:
    with pytest.raises(ValueError, match=told):
        settings(**changes)
