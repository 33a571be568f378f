"""Training: it learns, it can be cut anywhere, and how it is cut up changes nothing."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data.errors import Interrupted, SourceError, TrainingError
from data.records import Ranking, chat
from data.sources.split import split_by_prompt
from pipeline.stages.reward.settings import RewardSettings
from pipeline.stages.reward.trainer import RankingTrainer
from pipeline.training.loop import Rhythm, run_loop
from reward.learned.batching import EncodedRanking, encode_rankings
from reward.learned.model import RewardModel
from reward.quality.pairs import scored_pairs
from reward.quality.shares import pair_accuracy

Build = Callable[[str], Path]
SETTINGS = RewardSettings(
    model="m", train=({"path": "rankings.jsonl"},), epochs=1, prompts_per_step=8,
    tokens_per_micro_batch=1024, learning_rate=1e-2, warmup_share=0.0, bf16=False,
)  # fmt: skip


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
    folder: Path, rows: list[Ranking], settings: RewardSettings = SETTINGS
) -> tuple[RewardModel, RankingTrainer]:
    model = RewardModel.start(folder, seed=0)
    examples, _ = encode_rankings(rows, encoder=model.encoder, ties=settings.ties)
    trainer = RankingTrainer(
        module=model.module, examples=examples, pad_id=model.pad_id, settings=settings, seed=0
    )
    return model, trainer


def changed(**changes: Any) -> RewardSettings:
    return SETTINGS.model_copy(update=changes)


def weights(model: RewardModel) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.module.state_dict().items()}


def train(trainer: RankingTrainer) -> list[float]:
    """Take all steps; return their losses."""
    return [trainer.step(number)["train/loss"] for number in range(trainer.total_steps)]


@pytest.mark.parametrize("architecture", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_it_learns_what_separates_the_ranks(checkpoint: Build, architecture: str) -> None:
    training, heldout = split_by_prompt(separable(240), share=0.2, seed=0)
    settings = changed(epochs=4)
    model, trainer = trainer_of(checkpoint(architecture), training, settings)
    held, _ = encode_rankings(heldout, encoder=model.encoder)
    before = trainer.evaluate(held)
    losses = train(trainer)
    after = trainer.evaluate(held)
    assert len(losses) == trainer.total_steps == 96
    assert after["eval/accuracy"] > 0.9 > before["eval/accuracy"]
    assert after["eval/loss"] < 0.5 * before["eval/loss"]
    # Training and scoring see a text the same way.
    texts = [c for r in heldout for c in r.completions]
    prompts = [r.prompt for r in heldout for _ in r.completions]
    scored = trainer.score([ids for r in held for ids in r.sequences])
    assert model.score(prompts, texts) == pytest.approx(scored, abs=1e-5)


def test_a_model_trained_in_bf16_is_judged_by_the_scores_it_will_give(
    checkpoint: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where the processor has none, torch makes the same products by and by.
    monkeypatch.setattr("pipeline.models.load.bf16_supported", lambda *_: True)
    settings = changed(bf16=True)
    model, trainer = trainer_of(checkpoint("llama"), separable(24), settings)
    train(trainer)
    sequences = [ids for example in trainer.examples for ids in example.sequences]
    scores = model.raw_scores(sequences)
    assert trainer.score(sequences, exact=True) == pytest.approx(scores, abs=1e-5)
    rounded = trainer.score(sequences)
    assert max(abs(a - b) for a, b in zip(rounded, scores, strict=True)) > 1e-3


def test_an_encoder_learns_too(checkpoint: Build) -> None:
    rows = [Ranking(f"say {w}", ["good dog", "bad cat"], [1, 2]) for w in "abcdefgh" * 4]
    model, trainer = trainer_of(checkpoint("bert"), rows, changed(epochs=4))
    train(trainer)
    good, bad = model.score(["say z", "say z"], ["good dog", "bad cat"])
    assert good > bad + 1


def go_on(context: Any, trainer: RankingTrainer, *, save: int) -> list[tuple[int, float]]:
    """Run the loop from the newest state on; return the steps and losses that are logged."""
    run_loop(
        context, Rhythm(trainer.total_steps, log=1, save=save), step=trainer.step,
        save=trainer.save, load=trainer.load,
    )  # fmt: skip
    lines = [json.loads(line) for line in context.metrics.path.read_text().splitlines()]
    return [(line["step"], line["train/loss"]) for line in lines]


def test_a_run_that_was_cut_off_ends_in_the_same_weights(
    checkpoint: Build, make_context: Callable[..., Any]
) -> None:
    folder, rows = checkpoint("llama"), separable(60)
    settings = changed(epochs=1.5, warmup_share=0.2, weight_decay=0.1)
    whole, trainer = trainer_of(folder, rows, settings)
    losses = train(trainer)
    for looks in (3, 4):
        _, part = trainer_of(folder, rows, settings)
        with pytest.raises(Interrupted):
            go_on(make_context(settings, stop_after=looks), part, save=0)
    model, last = trainer_of(folder, rows, settings)
    assert go_on(make_context(settings), last, save=0) == list(enumerate(losses, start=1))
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(model)[name]), name


def test_a_killed_run_goes_back_to_its_last_state(
    checkpoint: Build, make_context: Callable[..., Any]
) -> None:
    folder, rows = checkpoint("llama"), separable(60)
    whole, trainer = trainer_of(folder, rows)
    losses = train(trainer)
    _, killed = trainer_of(folder, rows)
    step = killed.step

    def die(number: int) -> dict[str, float]:
        if number == 6:
            raise KeyboardInterrupt
        return step(number)

    killed.step = die  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        go_on(make_context(SETTINGS), killed, save=4)
    context = make_context(SETTINGS)
    states = list(context.resume.folder.glob("step-*"))
    assert [state.name for state in states] == ["step-00000004"]
    model, resumed = trainer_of(folder, rows)
    assert go_on(context, resumed, save=4) == list(enumerate(losses, start=1))
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(model)[name]), name


def test_a_state_of_when_the_loop_kept_nothing_is_taken_up(
    checkpoint: Build, tmp_path: Path
) -> None:
    _, trainer = trainer_of(checkpoint("llama"), separable(8))
    trainer.accelerator.save_state(str(tmp_path))
    assert trainer.load(tmp_path) == {"sums": {}, "steps": 0, "last": {}}


def test_micro_batches_do_not_change_the_step(checkpoint: Build) -> None:
    folder, rows = checkpoint("llama"), separable(16)
    found = []
    for tokens in (1, 200, 100_000):
        settings = changed(tokens_per_micro_batch=tokens, max_gradient_norm=1e9)
        _, trainer = trainer_of(folder, rows, settings)
        metrics = trainer.step(0)
        found.append((metrics["train/loss"], metrics["train/gradient_norm"]))
    for loss, norm in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        assert norm == pytest.approx(found[0][1], rel=1e-4)


def test_each_completion_is_forwarded_once(checkpoint: Build) -> None:
    rows = separable(8)
    model, trainer = trainer_of(checkpoint("llama"), rows)
    seen = []
    model.module.register_forward_hook(lambda _, inputs, out: seen.append(len(out)))
    trainer.step(0)
    assert sum(seen) == sum(len(r.completions) for r in rows)


def test_nan_stops_and_keeps_the_weights(checkpoint: Build) -> None:
    model, trainer = trainer_of(checkpoint("llama"), separable(60))
    trainer.step(0)
    with torch.no_grad():
        model.module.classifier.score.weight[0, 0] = float("nan")
    before = weights(model)
    with pytest.raises(TrainingError, match=r"loss became nan at step 2.*last good checkpoint"):
        trainer.step(1)
    body = "classifier.model.layers.0.mlp.up_proj.weight"
    assert torch.equal(weights(model)[body], before[body])


def test_nothing_comparable_is_refused(checkpoint: Build) -> None:
    with pytest.raises(SourceError, match="no ranking holds two"):
        trainer_of(checkpoint("llama"), [Ranking("a", ["b", "c"], [1, 1])])


def test_pulled_ties_bring_scores_together(checkpoint: Build) -> None:
    rows = [Ranking(f"say {w}", ["zzz", "aaa"], [1, 1]) for w in "abcdefgh"]
    model, trainer = trainer_of(checkpoint("llama"), rows, changed(ties="half", epochs=20))

    def gap() -> float:
        first, second = model.score(["say x", "say x"], ["zzz", "aaa"])
        return abs(first - second)

    before = gap()
    train(trainer)
    assert gap() < 0.3 * before


def test_scores_come_back_in_order_whatever_the_batches(checkpoint: Build) -> None:
    rng = random.Random(0)
    sequences = [[rng.randrange(7, 99) for _ in range(rng.randint(1, 20))] for _ in range(23)]
    model, trainer = trainer_of(checkpoint("llama"), separable(4), SETTINGS)
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
