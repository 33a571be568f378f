"""What training loops share: schedules, clipping, saved state, and the loop itself."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.errors import Interrupted, TrainingError
from pipeline.contract.settings import StageSettings
from pipeline.training.accelerator import make_accelerator
from pipeline.training.loop import Rhythm, run_loop
from pipeline.training.optimizer import build_optimizer, clip_gradients, set_learning_rate
from pipeline.training.schedule import schedule_factor
from pipeline.training.settings import TrainingSettings
from pipeline.training.state import load_training_state, save_training_state

SETTINGS = TrainingSettings(kind="x", learning_rate=0.1)


def test_schedules_by_hand() -> None:
    def factor(step: int, schedule: Any) -> float:
        return schedule_factor(step, total=8, warmup=3, schedule=schedule, final_share=0.2)

    assert [factor(s, "cosine") for s in range(3)] == [0.25, 0.5, 0.75]
    assert factor(3, "cosine") == 1.0
    assert factor(5, "cosine") == pytest.approx(0.6)  # half way: 0.2 + 0.8 / 2
    assert factor(7, "cosine") == pytest.approx(0.2)
    assert factor(4, "linear") == pytest.approx(0.8)
    assert factor(7, "constant") == 1.0


@given(st.integers(1, 200), st.floats(0, 1), st.floats(0, 1))
def test_a_schedule_stays_between_zero_and_the_peak(
    total: int, warmup_share: float, final_share: float
) -> None:
    for step in range(total):
        factor = schedule_factor(
            step,
            total=total,
            warmup=round(warmup_share * total),
            schedule="cosine",
            final_share=final_share,
        )
        assert 0 <= factor <= 1
    assert factor >= min(final_share, 1 / (total + 1)) - 1e-12


def test_only_matrices_decay() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    optimizer = build_optimizer(model, SETTINGS.model_copy(update={"weight_decay": 0.5}))
    decayed, rest = optimizer.param_groups
    assert decayed["weight_decay"] == 0.5 and decayed["params"] == [model[0].weight]
    assert rest["weight_decay"] == 0.0 and len(rest["params"]) == 3


def test_the_rate_of_a_step_by_hand() -> None:
    settings = TrainingSettings(kind="x", learning_rate=2.0, warmup_share=0.2, final_share=0.1)
    optimizer = build_optimizer(torch.nn.Linear(2, 2), settings)
    rates = [set_learning_rate(optimizer, settings, step=n, total=10) for n in (0, 1, 2, 5, 9)]
    # Three of the seven steps from the peak to the share.
    between = 0.1 + 0.9 * (1 + math.cos(3 * math.pi / 7)) / 2
    assert rates == pytest.approx([2 / 3, 4 / 3, 2.0, 2 * between, 0.2])
    assert [group["lr"] for group in optimizer.param_groups] == [rates[-1]] * 2


def test_clipping_by_hand() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    assert clip_gradients(
        make_accelerator(bf16=False), [parameter], 1.0, loss=0.5, step=1
    ) == pytest.approx(5.0)
    torch.testing.assert_close(parameter.grad, torch.tensor([0.6, 0.8]))


@pytest.mark.parametrize(
    ("gradient", "loss", "told"),
    [(math.nan, 1.0, "gradient norm"), (math.inf, 1.0, "gradient norm"), (1.0, math.nan, "loss")],
)
def test_what_is_not_finite_is_refused(gradient: float, loss: float, told: str) -> None:
    parameter = torch.nn.Parameter(torch.ones(1))
    parameter.grad = torch.tensor([gradient])
    with pytest.raises(TrainingError, match=f"{told} became .* at step 7"):
        clip_gradients(make_accelerator(bf16=False), [parameter], 1.0, loss=loss, step=7)


def test_state_keeps_weights_and_random_numbers(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = build_optimizer(model, SETTINGS)
    save_training_state(tmp_path, model, optimizer)
    drawn = torch.rand(3)
    other = torch.nn.Linear(2, 2)
    load_training_state(tmp_path, other, build_optimizer(other, SETTINGS))
    assert torch.equal(torch.rand(3), drawn)
    assert torch.equal(model.weight, other.weight)


def test_a_process_that_is_new_keeps_its_random_state(tmp_path: Path) -> None:
    model, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    save_training_state(tmp_path, model, build_optimizer(model, SETTINGS), rank=0)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_training_state(tmp_path, other, build_optimizer(other, SETTINGS), rank=1)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(model.weight, other.weight)


class Counter:
    """A step whose state is the sum of all step numbers."""

    def __init__(self) -> None:
        self.total = 0
        self.asked: list[int] = []

    def step(self, number: int) -> dict[str, float]:
        self.asked.append(number)
        self.total += number
        return {"train/loss": float(number), "tokens": 100.0}

    def save(self, folder: Path, own: dict[str, Any]) -> None:
        (folder / "state.json").write_text(json.dumps({"total": self.total, "own": own}))

    def load(self, folder: Path) -> dict[str, Any]:
        state = json.loads((folder / "state.json").read_text())
        self.total = state["total"]
        own: dict[str, Any] = state["own"]
        return own

    def run(self, context: Any, rhythm: Rhythm) -> dict[str, float]:
        return run_loop(
            context, rhythm, step=self.step, save=self.save, load=self.load,
            evaluate=lambda: {"eval/loss": float(self.total)},
        )  # fmt: skip


def _rows(context: Any) -> list[dict[str, Any]]:
    lines = context.metrics.path.read_text().splitlines()
    timed = ("seconds", "train/tokens_per_second")
    return [{k: v for k, v in json.loads(x).items() if k not in timed} for x in lines]


def test_the_loop_logs_means_and_evaluates_at_the_end(make_context: Callable[..., Any]) -> None:
    context = make_context(StageSettings(kind="x"))
    last = Counter().run(context, Rhythm(total=5, log=2, evaluate=4))
    assert _rows(context) == [
        {"step": 2, "train/loss": 0.5},
        {"step": 4, "train/loss": 2.5, "eval/loss": 6.0},
        {"step": 5, "train/loss": 4.0, "eval/loss": 10.0},
    ]
    assert last["train/loss"] == 4.0 and last["eval/loss"] == 10.0
    assert last["train/tokens_per_second"] > 0


@pytest.mark.parametrize("stop_after", [0, 1, 2, 3])
def test_an_interrupted_loop_goes_on_as_if_it_never_was(
    make_context: Callable[..., Any], tmp_path: Path, stop_after: int
) -> None:
    rhythm = Rhythm(total=6, log=4, save=4)
    whole = make_context(StageSettings(kind="x"), folder=tmp_path / "whole")
    Counter().run(whole, rhythm)
    first = make_context(StageSettings(kind="x"), folder=tmp_path / "cut", stop_after=stop_after)
    with pytest.raises(Interrupted, match=f"after step {stop_after + 1}"):
        Counter().run(first, rhythm)
    again, counter = make_context(StageSettings(kind="x"), folder=tmp_path / "cut"), Counter()
    counter.run(again, rhythm)
    assert counter.asked == list(range(stop_after + 1, 6))
    assert counter.total == 15
    assert _rows(again) == _rows(whole)


def test_a_finished_loop_is_not_run_again(make_context: Callable[..., Any]) -> None:
    context = make_context(StageSettings(kind="x"))
    last = Counter().run(context, Rhythm(total=3, save=2))
    counter = Counter()
    assert counter.run(context, Rhythm(total=3, save=2)) == last
    assert counter.asked == []


def test_rows_logged_after_the_last_state_are_cut_back(make_context: Callable[..., Any]) -> None:
    context = make_context(StageSettings(kind="x"))
    counter = Counter()

    def fails(number: int) -> dict[str, float]:
        if number == 5:
            raise TrainingError("boom")
        return counter.step(number)

    with pytest.raises(TrainingError, match="boom"):
        run_loop(
            context, Rhythm(total=6, log=1, save=3), step=fails,
            save=counter.save, load=counter.load,
        )  # fmt: skip
    assert [row["step"] for row in _rows(context)] == [1, 2, 3, 4, 5]
    Counter().run(context, Rhythm(total=6, log=1, save=3))
    assert [row["step"] for row in _rows(context)] == [1, 2, 3, 4, 5, 6]
