"""Stages dpo and kto, on TRL's own trainers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data.errors import Interrupted, TrainingError
from data.records import Ranking
from pipeline.stages.dpo import stage as dpo
from pipeline.stages.dpo.pairs import PairMaker
from pipeline.stages.dpo.settings import DpoSettings, PreferenceSettings
from pipeline.stages.kto import stage as kto
from pipeline.stages.kto.settings import KtoSettings
from pipeline.stages.kto.trainer import UnpairedCollator

STAGES: dict[str, tuple[Any, Any]] = {"dpo": (DpoSettings, dpo.run), "kto": (KtoSettings, kto.run)}
BOTH = pytest.mark.parametrize("kind", STAGES)
RANKINGS = [
    Ranking(f"say {n}", ["It is 7.", "Hm.", "No."], [1, 2, 2] if n % 2 else [1, 2, 3])
    for n in range(8)
]


@pytest.fixture
def settings(policy: Path, tmp_path: Path) -> Callable[..., Any]:
    path = tmp_path / "rankings.jsonl"
    rows = [vars(row) for row in RANKINGS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def build(kind: str = "dpo", **changes: Any) -> PreferenceSettings:
        return STAGES[kind][0](
            **{
                "model": str(policy), "train": [{"path": str(path)}], "heldout_share": 0.25,
                "batch_size": 6, "learning_rate": 1e-2, "log_every": 1, "evaluate_every": 0,
                "save_every": 2, "bf16": False, **changes,
            }
        )  # fmt: skip

    return build


def lines(context: Any) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in context.metrics.path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def same(a: Any, b: Any) -> bool:
    left, right = (load_file(c.folder / "model" / "model.safetensors") for c in (a, b))
    return all(torch.equal(left[name], right[name]) for name in left)


def logprob(model: Any, prompt: list[int], answer: list[int]) -> float:
    with torch.no_grad():
        logprobs = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    return sum(float(logprobs[len(prompt) - 1 + at, token]) for at, token in enumerate(answer))


@BOTH
def test_learns_what_is_preferred(
    kind: str, make_context: Any, settings: Any, policy: Path
) -> None:
    context = make_context(settings(kind, epochs=2), {"model": policy})
    metrics = STAGES[kind][1](context)
    told = lines(context)
    assert metrics["steps"] == told[-1]["step"] == 6  # 6 rankings, 3 rounds, twice, 6 pairs a step
    assert metrics["n_rankings"] == 6 and metrics["n_heldout"] == 2
    assert metrics["eval/margin"] > 0.05 > told[0]["train/margin"] == 0
    assert told[-2]["train/epoch"] == 2 and told[-2]["train/loss"] < told[0]["train/loss"]
    assert (context.folder / "model" / "chat_template.jinja").is_file()
    assert not list(context.folder.rglob("training_args.bin"))
    assert not list(context.folder.rglob("README.md"))  # TRL's card


def test_the_first_accuracy_is_0_since_nothing_has_gained(
    make_context: Any, settings: Any, policy: Path
) -> None:
    context = make_context(settings(epochs=0.5), {"model": policy})
    metrics = dpo.run(context)
    first, *_, last, _ = lines(context)
    assert first["train/accuracy"] == 0 and first["train/loss"] == pytest.approx(0.693147, abs=1e-5)
    assert last["train/accuracy"] > 0.5 and metrics["eval/accuracy"] == 1


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_the_reference_is_the_recipes(
    loss: str, make_context: Any, settings: Any, policy: Path, tmp_path: Path, save_policy: Any,
    tiny_tokenizer: Any,
) -> None:  # fmt: skip
    from transformers import AutoModelForCausalLM

    other = save_policy(tiny_tokenizer(), tmp_path / "other", seed=7)
    chosen = settings(
        reference=str(other), loss=loss, heldout_share=0, batch_size=24, micro_batch_size=8
    )
    context = make_context(chosen, {"model": policy, "reference": other})
    dpo.run(context)
    pairs = PairMaker(tiny_tokenizer(), 128).pairs(RANKINGS)
    ours, theirs = map(AutoModelForCausalLM.from_pretrained, (policy, other))
    losses = []
    for row in pairs.epoch(seed=0):
        prompt, *answers = pairs[row].values()
        gains = [logprob(ours, prompt, a) - logprob(theirs, prompt, a) for a in answers]
        if loss == "ipo":
            gains = [gain / len(a) for gain, a in zip(gains, answers, strict=True)]
        margin = torch.tensor(gains[0] - gains[1])
        losses.append(
            float((margin - 1 / 0.2) ** 2)
            if loss == "ipo"
            else -float(torch.nn.functional.logsigmoid(0.1 * margin))
        )
    assert lines(context)[0]["train/loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)


@BOTH
def test_a_stage_that_was_cut_off_ends_as_one_that_was_not(
    kind: str, make_context: Any, settings: Any, policy: Path, tmp_path: Path
) -> None:
    chosen = settings(kind, epochs=1.7, log_every=2, save_every=3)
    whole, cut = (make_context(chosen, {"model": policy}, tmp_path / n) for n in ("whole", "cut"))
    STAGES[kind][1](whole)
    for looks in (0, 2):
        stopped = make_context(chosen, {"model": policy}, cut.folder, stop_after=looks)
        with pytest.raises(Interrupted):
            STAGES[kind][1](stopped)
    STAGES[kind][1](cut)
    assert same(whole, cut) and lines(whole) == lines(cut)


def test_micro_batches_change_nothing(
    make_context: Any, settings: Any, policy: Path, tmp_path: Path
) -> None:
    found = []
    for micro in (6, 2):
        context = make_context(
            settings(micro_batch_size=micro), {"model": policy}, tmp_path / str(micro)
        )
        dpo.run(context)
        found.append([row["train/loss"] for row in lines(context) if "train/loss" in row])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_a_loss_that_is_not_finite_stops(
    make_context: Any, settings: Any, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl import DPOTrainer

    honest = DPOTrainer._compute_loss
    monkeypatch.setattr(DPOTrainer, "_compute_loss", lambda *a: honest(*a) * float("nan"))
    context = make_context(settings(), {"model": policy})
    with pytest.raises(TrainingError, match=r"stage dpo: .* at or before step 1; lower"):
        dpo.run(context)
    assert not (context.folder / "model").exists()


def test_answers_of_kto_are_mixed_and_the_kl_is_of_other_prompts() -> None:
    pairs = [
        {"prompt_ids": [n], "chosen_ids": [n, 1], "rejected_ids": [n, 2]} for n in (10, 20, 30)
    ]
    batch = UnpairedCollator(pad_token_id=0)(pairs)
    assert batch["label"].tolist() == [True] * 3 + [False] * 3
    assert batch["input_ids"][:2].tolist() == [[10, 10, 1], [20, 20, 1]]
    assert batch["KL_input_ids"].tolist() == [
        [10, 30, 1], [20, 10, 1], [30, 20, 1], [10, 30, 2], [20, 10, 2], [30, 20, 2]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "changes", "told"),
    [
        ("dpo", {"train": []}, "learns from `rankings`"),
        ("dpo", {"label_smoothing": 0.1}, "the loss that reckons with wrong labels is `robust`"),
        ("dpo", {"loss": "robust"}, "needs their share above 0"),
        ("kto", {"ties": "half"}, "set ties: drop"),
        ("kto", {"micro_batch_size": 1}, "greater than 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(
    kind: str, changes: dict[str, Any], told: str, settings: Any
) -> None:
    with pytest.raises(ValueError, match=told):
        settings(kind, **changes)
