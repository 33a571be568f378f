"""Training: it learns, it can be cut anywhere, and how it is cut up changes nothing."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from data.errors import Interrupted, SourceError, TrainingError
from data.records import Ranking, chat
from pipeline.stages.reward.trainer import Hyperparameters, RankingTrainer, learning_rate
from reward.learned.batching import EncodedRanking, encode_rankings, split_by_prompt
from reward.learned.model import RewardModel
from reward.quality.quality import pair_accuracy, scored_pairs

Build = Callable[[str], Path]
HYPER = Hyperparameters(
    epochs=1, prompts_per_step=8, tokens_per_micro_batch=1024, learning_rate=1e-2
)


class States:
    """Keeps resume states in folders; the last one counts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.steps: list[int] = []

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        target = self.folder / str(step)
        target.mkdir(parents=True)
        write(target)
        self.steps.append(step)

    def latest(self) -> tuple[int, Path] | None:
        return (self.steps[-1], self.folder / str(self.steps[-1])) if self.steps else None


def separable(n: int, *, k: tuple[int, ...] = (2, 3, 4), seed: int = 0) -> list[Ranking]:
    """Completions are ranked by how many of their letters are a z."""
    rng = random.Random(seed)
    rows = []
    for number in range(n):
        counts = rng.sample(range(6), rng.choice(k))
        texts = ["".join(rng.sample("z" * c + "abcdef"[: 6 - c], 6)) for c in counts]
        ranks = [sorted(counts, reverse=True).index(c) + 1 for c in counts]
        rows.append(Ranking(chat(f"say {number}"), texts, ranks))
    return rows


def trainer_of(
    folder: Path, rows: list[Ranking], hyper: Hyperparameters = HYPER, **more: Any
) -> tuple[RewardModel, RankingTrainer]:
    model = RewardModel.start(folder, seed=0)
    examples, _ = encode_rankings(rows, encoder=model.encoder, ties=hyper.ties)
    trainer = RankingTrainer(
        module=model.module, examples=examples, pad_id=model.pad_id, hyper=hyper, seed=0, **more
    )
    return model, trainer


def weights(model: RewardModel) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.module.state_dict().items()}


def ignore(step: int, metrics: Mapping[str, float]) -> None:
    """Logs nothing."""


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_it_learns_what_separates_the_ranks(checkpoint: Build, architecture: str) -> None:
    training, heldout = split_by_prompt(separable(240), share=0.2, seed=0)
    hyper = replace(HYPER, epochs=4)
    model, trainer = trainer_of(checkpoint(architecture), training, hyper)
    held, _ = encode_rankings(heldout, encoder=model.encoder)
    before = trainer.evaluate(held)
    logged: list[float] = []
    trainer.train(log=lambda _, metrics: logged.append(metrics["train/loss"]))
    after = trainer.evaluate(held)
    assert len(logged) == trainer.total_steps == 96
    assert after["eval/accuracy"] > 0.9 > before["eval/accuracy"]
    assert after["eval/loss"] < 0.5 * before["eval/loss"]
    # Training and scoring see a text the same way.
    texts = [c for r in heldout for c in r.completions]
    prompts = [r.prompt for r in heldout for _ in r.completions]
    scored = trainer.score([ids for r in held for ids in r.sequences])
    assert model.score(prompts, texts) == pytest.approx(scored, abs=1e-5)


def test_a_model_trained_in_bf16_is_judged_by_the_scores_it_will_give(checkpoint: Build) -> None:
    hyper = replace(HYPER, bf16=True)
    model, trainer = trainer_of(checkpoint("llama"), separable(24), hyper)
    trainer.train(log=ignore)
    sequences = [ids for example in trainer.examples for ids in example.sequences]
    scores = model.raw_scores(sequences)
    assert trainer.score(sequences, exact=True) == pytest.approx(scores, abs=1e-5)
    rounded = trainer.score(sequences)
    assert max(abs(a - b) for a, b in zip(rounded, scores, strict=True)) > 1e-3


def test_an_encoder_learns_too(checkpoint: Build) -> None:
    rows = [Ranking(f"say {w}", ["good dog", "bad cat"], [1, 2]) for w in "abcdefgh" * 4]
    model, trainer = trainer_of(checkpoint("bert"), rows, replace(HYPER, epochs=4))
    trainer.train(log=ignore)
    good, bad = model.score(["say z", "say z"], ["good dog", "bad cat"])
    assert good > bad + 1


def test_a_run_that_was_cut_off_ends_in_the_same_weights(checkpoint: Build, tmp_path: Path) -> None:
    folder, rows = checkpoint("llama"), separable(60)
    hyper = replace(HYPER, epochs=1.5, warmup_share=0.2, weight_decay=0.1)
    whole, trainer = trainer_of(folder, rows, hyper)
    lines: list[tuple[int, float]] = []
    trainer.train(log=lambda step, metrics: lines.append((step, metrics["train/loss"])))
    states = States(tmp_path / "states")
    resumed: list[tuple[int, float]] = []

    def is_over(left: Iterator[int]) -> bool:
        return next(left, None) is None

    for looks in (3, 4, 99):
        model, part = trainer_of(folder, rows, hyper)
        part.resume(states)
        left = iter(range(looks))
        try:
            part.train(
                log=lambda step, metrics: resumed.append((step, metrics["train/loss"])),
                states=states,
                should_stop=partial(is_over, left),
            )
        except Interrupted:
            continue
    assert resumed == lines
    assert states.steps == [4, 9]
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(model)[name]), name


def test_a_killed_run_goes_back_to_its_last_state(checkpoint: Build, tmp_path: Path) -> None:
    folder, rows = checkpoint("llama"), separable(60)
    whole, trainer = trainer_of(folder, rows)
    trainer.train(log=ignore)
    states = States(tmp_path / "states")
    _, killed = trainer_of(folder, rows)

    def die(step: int, _: Mapping[str, float]) -> None:
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed.train(log=die, states=states, save_every=4)
    model, resumed = trainer_of(folder, rows)
    assert resumed.resume(states) == 4
    resumed.train(log=ignore, states=states, save_every=4)
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(model)[name]), name


def test_micro_batches_do_not_change_the_step(checkpoint: Build) -> None:
    folder, rows = checkpoint("llama"), separable(16)
    found = []
    for tokens in (1, 200, 100_000):
        hyper = replace(HYPER, tokens_per_micro_batch=tokens, max_gradient_norm=1e9)
        _, trainer = trainer_of(folder, rows, hyper)
        metrics = trainer._step()
        found.append((metrics["train/loss"], metrics["train/gradient_norm"]))
    for loss, norm in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        assert norm == pytest.approx(found[0][1], rel=1e-4)


def test_each_completion_is_forwarded_once(checkpoint: Build) -> None:
    rows = separable(8)
    model, trainer = trainer_of(checkpoint("llama"), rows)
    seen = []
    model.module.register_forward_hook(lambda _, inputs, out: seen.append(len(out)))
    trainer._step()
    assert sum(seen) == sum(len(r.completions) for r in rows)


def test_nan_stops_and_keeps_weights_and_state(checkpoint: Build, tmp_path: Path) -> None:
    model, trainer = trainer_of(checkpoint("llama"), separable(60))
    states = States(tmp_path / "states")
    after_four: dict[str, torch.Tensor] = {}

    def poison(step: int, _: Mapping[str, float]) -> None:
        if step == 5:
            after_four.update(weights(model))
            with torch.no_grad():
                model.module.classifier.score.weight[0, 0] = float("nan")

    with pytest.raises(TrainingError, match=r"loss became nan at step 6.*last good checkpoint"):
        trainer.train(log=poison, states=states, save_every=2)
    assert states.steps == [2, 4]
    body = "classifier.model.layers.0.mlp.up_proj.weight"
    assert torch.equal(weights(model)[body], after_four[body])


def test_nothing_comparable_is_refused(checkpoint: Build) -> None:
    with pytest.raises(SourceError, match="no ranking holds two"):
        trainer_of(checkpoint("llama"), [Ranking("a", ["b", "c"], [1, 1])])


def test_pulled_ties_bring_scores_together(checkpoint: Build) -> None:
    rows = [Ranking(f"say {w}", ["zzz", "aaa"], [1, 1]) for w in "abcdefgh"]
    model, trainer = trainer_of(checkpoint("llama"), rows, replace(HYPER, ties="half", epochs=20))

    def gap() -> float:
        first, second = model.score(["say x", "say x"], ["zzz", "aaa"])
        return abs(first - second)

    before = gap()
    trainer.train(log=ignore)
    assert gap() < 0.3 * before


def test_the_schedule_rises_then_falls_to_its_share() -> None:
    hyper = replace(HYPER, learning_rate=1.0, warmup_share=0.2, final_share=0.1)
    rates = [learning_rate(step, total=10, hyper=hyper) for step in range(10)]
    assert rates[0] == pytest.approx(1 / 3)
    assert rates[1] == pytest.approx(2 / 3)
    assert rates[2] == 1.0
    # Three of the seven steps from the peak to the share.
    assert rates[5] == pytest.approx(0.1 + 0.9 * (1 + math.cos(3 * math.pi / 7)) / 2)
    assert rates[9] == pytest.approx(0.1)
    linear = replace(hyper, schedule="linear")
    assert learning_rate(5, total=10, hyper=linear) == pytest.approx(0.1 + 0.9 * 4 / 7)
    assert learning_rate(9, total=10, hyper=linear) == pytest.approx(0.1)
    assert learning_rate(9, total=10, hyper=replace(hyper, schedule="constant")) == 1.0


def test_scores_come_back_in_order_whatever_the_batches(checkpoint: Build) -> None:
    rng = random.Random(0)
    sequences = [[rng.randrange(7, 99) for _ in range(rng.randint(1, 20))] for _ in range(23)]
    model, trainer = trainer_of(checkpoint("llama"), separable(4), replace(HYPER))
    expected = [model.raw_scores([ids])[0] for ids in sequences]
    assert trainer.score(sequences) == pytest.approx(expected, abs=1e-5)
    assert trainer.score([]) == []


def test_evaluation_counts_pairs_as_the_final_quality_does(checkpoint: Build) -> None:
    _, trainer = trainer_of(checkpoint("llama"), separable(8))
    held = [EncodedRanking([[7, 8], [9]], [1, 2]), EncodedRanking([[7], [8], [9]], [1, 2, 3])]
    scores = trainer.score([ids for r in held for ids in r.sequences])
    right = [scores[a] > scores[b] for a, b in ((0, 1), (2, 3), (2, 4), (3, 4))]
    found = trainer.evaluate(held)["eval/accuracy"]
    assert found == pytest.approx(sum(right) / 4)
    texts = [["a b", "c"], ["a", "b", "c"]]
    rankings = [Ranking(str(i), texts[i], r.ranks) for i, r in enumerate(held)]
    pairs = scored_pairs(rankings, [scores[:2], scores[2:]])
    assert found == pytest.approx(pair_accuracy(pairs).mean)
