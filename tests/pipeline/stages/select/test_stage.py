"""The select stage: the candidate that the reward likes best."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.errors import HandOverError
from pipeline.contract.handover import HandOver
from pipeline.contract.settings import references
from pipeline.stages.select.settings import SelectSettings
from pipeline.stages.select.stage import KIND, check, run, selection_of


def read(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


@pytest.fixture
def sft(
    save_policy: Callable[..., Path], tiny_tokenizer: Callable[..., Any], tmp_path: Path
) -> Path:
    folder = tmp_path / "sft"
    for seed, name in enumerate(("1", "2", "3")):
        save_policy(tiny_tokenizer(), folder / "candidates" / name, seed=seed)
    save_policy(tiny_tokenizer(), folder / "model", seed=0)
    return folder


@pytest.fixture
def scorer(sft: Path, tmp_path: Path) -> Path:
    from reward.learned.model import RewardModel

    RewardModel.start(sft / "model", seed=1).save(tmp_path / "reward")
    return tmp_path / "reward"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": [{"role": "user", "content": f"what is {n % 6} ?"}]} for n in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings_of(sft: Path, scorer: Path, prompts: Path, **more: Any) -> SelectSettings:
    return SelectSettings(
        model=str(sft), prompts=({"path": str(prompts)},),
        **{"reward": str(scorer), "max_new_tokens": 6, **more},
    )  # fmt: skip


def test_the_best_mean_score_wins_and_its_model_is_published(
    make_context: Callable[..., Any], sft: Path, scorer: Path, prompts: Path
) -> None:
    settings = settings_of(sft, scorer, prompts)
    context = make_context(settings, {"model": sft, "reward": scorer})
    metrics = run(context)
    selection = json.loads((context.folder / "selection.json").read_text())
    rows = [json.loads(line) for line in read(context.folder / "samples.jsonl")]
    # Twelve rows hold six different prompts.
    assert metrics["n_prompts"] == 6
    assert len(rows) == 18
    counted = {name: sum(r["score"] for r in rows if r["checkpoint"] == name) / 6 for name in "123"}
    winner = max(counted, key=lambda name: counted[name])
    assert metrics["selected"] == selection["winner"] == winner
    assert metrics["eval/mean_score"] == pytest.approx(counted[winner])
    for name in "123":
        assert selection["candidates"][name]["mean"] == pytest.approx(counted[name])
    chosen = sft / "candidates" / winner
    for file in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (context.folder / "model" / file).read_bytes() == (chosen / file).read_bytes()


def test_the_calls_of_responses_are_told(
    make_context: Callable[..., Any], sft: Path, scorer: Path, prompts: Path
) -> None:
    settings = settings_of(sft, scorer, prompts, tools=["calculator"])
    context = make_context(settings, {"model": sft, "reward": scorer})
    run(context)
    rows = [json.loads(line) for line in read(context.folder / "samples.jsonl")]
    assert [row["calls"] for row in rows] == [[]] * 18  # untrained, none calls


def test_candidates_answer_behind_passages(
    make_context: Callable[..., Any],
    sft: Path,
    scorer: Path,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    book = tmp_path / "book.txt"
    book.write_text("what is 3 ? a number .")
    retrieve = {"corpus": [{"path": str(book)}], "passages": 1, "passage_tokens": 40}
    settings = settings_of(sft, scorer, prompts, retrieve=retrieve)
    assert "retrieve" not in settings_of(sft, scorer, prompts).key_settings()
    context = make_context(settings, {"model": sft, "reward": scorer})
    check(settings, context.hand)
    run(context)
    rows = [json.loads(line) for line in read(context.folder / "samples.jsonl")]
    assert {row["prompt"][-1]["content"].split("\n\n")[0] for row in rows} == {book.read_text()}
    wide = settings_of(sft, scorer, prompts, retrieve={**retrieve, "passage_tokens": 10_000})
    with pytest.raises(HandOverError, match=r"retrieve\.passage_tokens, a prompt of one token"):
        check(wide, context.hand)


def test_it_gives_the_same_twice(
    make_context: Callable[..., Any], sft: Path, scorer: Path, prompts: Path, tmp_path: Path
) -> None:
    settings = settings_of(sft, scorer, prompts)
    inputs = {"model": sft, "reward": scorer}
    first = make_context(settings, inputs, tmp_path / "a")
    second = make_context(settings, inputs, tmp_path / "b")
    other = make_context(settings, inputs, tmp_path / "c", seed=1)
    run(first), run(second), run(other)
    samples = [(c.folder / "samples.jsonl").read_text() for c in (first, second, other)]
    assert samples[0] == samples[1] != samples[2]


def test_means_intervals_and_paired_differences_by_hand() -> None:
    found = selection_of({"a": [0.0, 2.0], "b": [1.0, 3.0]})
    assert found["winner"] == "b"
    # Deviation sqrt(2), standard error 1, Student's t of one degree of freedom 12.706; the paired
    # difference is -1 with no spread.
    assert found["candidates"]["a"]["ci95"] == pytest.approx([1 - 12.706205, 1 + 12.706205])
    assert found["candidates"]["a"]["difference_ci95"] == pytest.approx([-1.0, -1.0])
    assert found["candidates"]["b"]["difference"] == 0.0


def test_a_list_of_rewards_is_added_up_and_given_the_prompts_columns(
    make_context: Callable[..., Any], sft: Path, scorer: Path, tmp_path: Path
) -> None:
    from reward.learned.model import RewardModel

    prompts = tmp_path / "asked.jsonl"
    questions = [[{"role": "user", "content": f"what is {n} ?"}] for n in range(6)]
    asked = [{"messages": turns, "answer": str(n)} for n, turns in enumerate(questions)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in asked))
    reward = [
        {"models": [str(scorer), str(scorer)], "combine": "min", "weight": 2.0, "clip": 0.01},
        {"rule": "length_penalty", "weight": 0.5},
        {"rule": "answer"},
    ]
    settings = settings_of(sft, scorer, prompts, reward=reward)
    inputs = {path: target for path, (target, _) in references(settings).items()}
    context = make_context(settings, inputs)
    check(settings, context.hand)
    metrics: dict[str, Any] = run(context)
    rows = [json.loads(line) for line in read(context.folder / "samples.jsonl")]
    texts = [row["prompt"] for row in rows], [row["response"] for row in rows]
    ended = [row["ended"] for row in rows]
    scores = RewardModel.load(scorer).score(*texts, ended=ended)
    for row, score in zip(rows, scores, strict=True):
        # Left are a penalty of half a token each, and 1 for the right answer.
        doubled = 2 * (row["score"] - 2 * max(-0.01, min(0.01, score)))
        assert doubled == pytest.approx(round(doubled), abs=1e-3) and -6 <= round(doubled) <= 1
    counted = {name: sum(r["score"] for r in rows if r["checkpoint"] == name) / 6 for name in "123"}
    assert metrics["eval/mean_score"] == pytest.approx(max(counted.values()))
    assert counted[metrics["selected"]] == max(counted.values())


def test_rewards_that_change_with_what_was_scored_before_are_refused(
    sft: Path, scorer: Path, prompts: Path
) -> None:
    with pytest.raises(ValueError, match="`normalize` is for PPO"):
        settings_of(sft, scorer, prompts, reward=[{"model": str(scorer), "normalize": True}])
    with pytest.raises(ValueError, match="names no reward"):
        settings_of(sft, scorer, prompts, reward=[])


def test_check_wants_candidates_and_a_reward_head(
    sft: Path, scorer: Path, prompts: Path, tmp_path: Path
) -> None:
    hand = HandOver("select", {}, lambda _: None)
    check(settings_of(sft, scorer, prompts), hand)
    with pytest.raises(HandOverError, match="LlamaForCausalLM, a reward model is"):
        check(settings_of(sft, sft / "model", prompts), hand)
    with pytest.raises(HandOverError, match="holds no candidates"):
        check(settings_of(scorer, scorer, prompts), hand)


def test_check_reads_the_sft_stage_before_it_has_run(scorer: Path, prompts: Path) -> None:
    from pipeline.stages.sft.settings import SftSettings

    def hand_of(candidates: int) -> HandOver:
        stage = SftSettings(model="base", train=({"path": "x"},), candidates=candidates)
        return HandOver("select", {"sft": stage}, lambda _: None)

    settings = SelectSettings(model="sft", reward=str(scorer), prompts=({"path": str(prompts)},))
    check(settings, hand_of(3))
    with pytest.raises(HandOverError, match="candidates: 1"):
        check(settings, hand_of(1))
    assert KIND.provides == {"policy", "tokenizer"}
