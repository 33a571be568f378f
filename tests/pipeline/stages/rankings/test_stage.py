from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from data.errors import HandOverError, Interrupted, SourceError
from data.records import Ranking, chat
from data.world import World
from pipeline.contract.settings import SourceSettings
from pipeline.generation.generate import Sample
from pipeline.generation.tools.calls import Call
from pipeline.stages.rankings import sampling as _ranking_work
from pipeline.stages.rankings import stage as rankings
from pipeline.stages.rankings.labelers import GoldLabeler, Unranked
from pipeline.stages.rankings.settings import RankingsSettings


@pytest.fixture
def policy(tiny_tokenizer: Any, save_policy: Any) -> Path:
    return save_policy(tiny_tokenizer(), context=512)


@pytest.fixture
def settings(policy: Path) -> Callable[..., RankingsSettings]:
    def build(**changes: Any) -> RankingsSettings:
        return RankingsSettings(
            **{
                "model": str(policy),
                "prompts": [{"world": "rm_prompts", "limit": 24}],
                "completions": 3,
                "max_new_tokens": 6,
                **changes,
            }
        )

    return build


def rows(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "rankings.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def answering(tokenizer: Any, texts: list[str], *, ended: bool = True) -> Callable[..., Any]:
    """Return a `generate` whose responses are these texts in turn."""

    def generate(model: Any, prompts: list[list[int]], **_: Any) -> list[Sample]:
        found = []
        for place in range(len(prompts)):
            ids = tokenizer(texts[place % len(texts)], add_special_tokens=False)["input_ids"]
            end = [tokenizer.eos_token_id] if ended else []
            found.append(Sample([*ids, *end], ended, [0.0] * (len(ids) + len(end))))
        return found

    return generate


def test_samples_and_ranks_every_prompt(make_context: Any, settings: Any, policy: Path) -> None:
    context = make_context(settings(), {"model": policy})
    metrics = rankings.run(context)
    found = rows(context.folder)
    assert metrics["n_prompts"] == len(found) == 24
    assert metrics["mean_completions"] == pytest.approx(
        sum(len(row["completions"]) for row in found) / 24
    )
    for row in found:
        Ranking(**row)  # dense ranks that fit the completions
        assert 2 <= len(row["completions"]) <= 3
        assert len(set(row["completions"])) == len(row["completions"])
        assert row["annotator"] == "gold"
        assert len(row["ended"]) == len(row["completions"]) and "kind" in row["meta"]


def test_the_gold_annotator_prefers_the_right_answer(
    make_context: Any, settings: Any, policy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(policy)
    answers = ["Seven is 5 + 2, and that is what was asked.", "8", "7"]
    monkeypatch.setattr(_ranking_work, "generate", answering(tokenizer, answers))
    prompt = {"prompt": chat("What is 3 + 4?"), "id": "sum"}
    path = tmp_path / "sums.jsonl"
    path.write_text(json.dumps(prompt) + "\n")
    chosen = settings().model_copy(
        update={"prompts": (SourceSettings(path=str(path), format="prompt"),)}
    )
    context = make_context(chosen, {"model": policy})
    rankings.run(context)
    row = rows(context.folder)[0]
    by_text = dict(zip(row["completions"], row["ranks"], strict=True))
    assert by_text["7"] == 1 and by_text["8"] > 1
    assert row["ended"] == [True, True, True]


def test_completions_that_read_the_same_are_kept_once(
    make_context: Any, settings: Any, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(policy)
    answers = ["No.", "Yes.", "No.", "Same.", "Same.", "Same."]
    monkeypatch.setattr(_ranking_work, "generate", answering(tokenizer, answers, ended=False))
    context = make_context(settings(), {"model": policy})
    metrics = rankings.run(context)
    assert [row["completions"] for row in rows(context.folder)] == [["No.", "Yes."]] * 12
    assert metrics["n_dropped_prompts"] == 12
    assert metrics["n_same_completions"] == 12 * 1 + 12 * 2
    assert metrics["ended_share"] == 0
    assert rows(context.folder)[0]["ended"] == [False, False]


def test_completions_may_call_tools(
    make_context: Any, settings: Any, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes = []

    def generate(_: Any, prompts: list[list[int]], *, tools: Any, **__: Any) -> list[Sample]:
        boxes.append([*tools.tools])
        calls = [Call("calculator", {}, "2"), Call("calculator", {}, "error: no", error=True)]
        return [
            Sample([10 + n % 3, 9], False, [-1.0, 0.0], [True, False], tuple(calls[: n % 3]))
            for n in range(len(prompts))
        ]

    monkeypatch.setattr(_ranking_work, "generate", generate)
    metrics = rankings.run(make_context(settings(tools=["calculator"]), {"model": policy}))
    assert boxes == [["calculator"]]
    assert metrics["mean_calls"] == 1 and metrics["failed_call_share"] == pytest.approx(1 / 3)
    assert metrics["mean_tokens"] == 1  # those of its own


def test_says_when_nothing_can_be_ranked(
    make_context: Any, settings: Any, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(policy)
    monkeypatch.setattr(_ranking_work, "generate", answering(tokenizer, ["Same."]))
    with pytest.raises(SourceError, match="raise temperature"):
        rankings.run(make_context(settings(), {"model": policy}))


def test_interrupted_equals_uninterrupted(
    make_context: Any,
    settings: Any,
    policy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_ranking_work, "CHUNK", 5)
    chosen = settings(noise=0.3)
    whole = make_context(chosen, {"model": policy}, tmp_path / "whole")
    expected = rankings.run(whole)
    folder = tmp_path / "cut"
    with pytest.raises(Interrupted, match="15 prompts"):
        rankings.run(make_context(chosen, {"model": policy}, folder, stop_after=2))
    # Killed within the next chunk: what it wrote is cut off again.
    with (folder / "rankings.jsonl").open("a") as file:
        file.write('{"prompt": "half a li')
    assert rankings.run(make_context(chosen, {"model": policy}, folder)) == expected
    assert rows(folder) == rows(whole.folder)


def test_the_batch_size_changes_nothing(
    make_context: Any, settings: Any, policy: Path, tmp_path: Path
) -> None:
    found = []
    for size in (4, 64):
        folder = tmp_path / str(size)
        rankings.run(make_context(settings(batch_size=size), {"model": policy}, folder))
        found.append(rows(folder))
    assert found[0] == found[1]


def test_noise_is_the_same_whatever_was_ranked_before() -> None:
    def item(name: str) -> Unranked:
        return Unranked(chat("What is 3 + 4?"), ["7", "8", "I don't know.", ""], name)

    labeler = GoldLabeler(world_seed=0, noise=1.0, seed=5)
    alone = labeler.rank([item("b")])[0]
    assert labeler.rank([item("a"), item("b")])[1] == alone
    drawn = {tuple(labeler.rank([item(str(n))])[0]) for n in range(40)}
    assert len(drawn) > 5
    exact = GoldLabeler(world_seed=0, noise=0.0, seed=5).rank([item("a")])[0]
    assert exact[0] == 1 and exact[1] > exact[2] > 1


def test_takes_rankings_and_pairs_from_files(make_context: Any, tmp_path: Path) -> None:
    ranked = {"prompt": "P", "completions": ["a", "bb", "ccc"], "ranks": [2, 1, 2]}
    first = tmp_path / "ranked.jsonl"
    first.write_text(json.dumps(ranked) + "\n")
    second = tmp_path / "pairs.jsonl"
    second.write_text(json.dumps({"prompt": "Q", "chosen": "xyz", "rejected": "w"}) + "\n")
    chosen = RankingsSettings(
        labeler="file", rankings=[{"path": str(first)}, {"path": str(second)}]
    )
    context = make_context(chosen)
    metrics = rankings.run(context)
    assert [row["ranks"] for row in rows(context.folder)] == [[2, 1, 2], [1, 2]]
    # Pairs: bb over a, bb over ccc, xyz over w; a and ccc tie; longer won two of three.
    assert metrics["n_pairs"] == 3 and metrics["tie_share"] == pytest.approx(1 / 4)
    assert metrics["longer_wins"] == pytest.approx(2 / 3)
    assert metrics["mean_completions"] == 2.5


def test_refuses_rows_that_are_no_rankings(make_context: Any, tmp_path: Path) -> None:
    path = tmp_path / "prose.jsonl"
    path.write_text(json.dumps({"text": "Some prose."}) + "\n")
    with pytest.raises(SourceError, match="Document"):
        rankings.run(make_context(RankingsSettings(labeler="file", rankings=[{"path": str(path)}])))


def test_a_limit_draws_by_the_seed(make_context: Any, settings: Any, policy: Path) -> None:
    found = {}
    for seed in (0, 1):
        context = make_context(settings(limit=5), {"model": policy}, seed=seed)
        assert rankings.run(context)["n_prompts"] == 5
        found[seed] = [row["id"] for row in rows(context.folder)]
        (context.folder / "rankings.jsonl").unlink()
    assert found[0] != found[1]


def test_prompts_too_long_for_the_context_stop_the_stage(
    make_context: Any, settings: Any, tiny_tokenizer: Any, save_policy: Any, tmp_path: Path
) -> None:
    small = save_policy(tiny_tokenizer(), tmp_path / "small", context=32)
    chosen = settings(model=str(small), max_new_tokens=16)
    with pytest.raises(SourceError, match="do not fit the context of 32"):
        rankings.run(make_context(chosen, {"model": small}))
    context = make_context(settings(model=str(small)), {"model": small})
    with pytest.raises(HandOverError, match="32"):
        rankings.check(context.settings.model_copy(update={"max_new_tokens": 64}), context.hand)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": None}, "give model"),
        ({"prompts": []}, "give prompts"),
        ({"labeler": "file"}, "drop model and prompts"),
        ({"prompts": [{"path": "mine.jsonl"}]}, "of one world"),
        ({"labeler": "somebody"}, "gold"),
        ({"completions": 1}, "greater than or equal to 2"),
    ],
)
def test_refuses_settings_that_do_not_fit(
    settings: Any, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValidationError, match=told):
        settings(**changes)


def test_summary_counts_equal_lengths_half() -> None:
    found = _ranking_work.summarise([Ranking("p", ["ab", "cd", "e"], [1, 2, 3])])
    assert found["longer_wins"] == pytest.approx((0.5 + 1 + 1) / 3)


def test_what_is_ranked_answers_behind_passages(
    make_context: Any, settings: Any, policy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    answers = ["Nobody knows that name.", "I don't know this."]
    tokenizer = AutoTokenizer.from_pretrained(policy)
    monkeypatch.setattr(_ranking_work, "generate", answering(tokenizer, answers))
    retrieve = {"corpus": [{"world": "register"}], "passages": 1, "passage_tokens": 300}
    chosen = settings(retrieve=retrieve, labeler="truth", max_too_long_share=0.5)
    assert "retrieve" not in settings().key_settings() and chosen.key_settings()["retrieve"]
    context = make_context(chosen, {"model": policy})
    rankings.check(chosen, context.hand)
    rankings.run(context)
    found = rows(context.folder)
    register = {one.text for one in World(0).documents("register")}
    asked = [row["prompt"][-1]["content"].split("\n\n") for row in found]
    assert all(passage in register for passage, _ in asked)
    assert {row["annotator"] for row in found} == {"truth"}
    known = [row for row in found if row["meta"]["kind"] == "fact"]
    first = {row["completions"][row["ranks"].index(1)] for row in known}
    assert first == {"I don't know this."} and all(2 in row["ranks"] for row in known)
    with pytest.raises(HandOverError, match=r"retrieve\.passage_tokens, a prompt .* holds 512"):
        rankings.check(settings(retrieve={**retrieve, "passage_tokens": 506}), context.hand)
    with pytest.raises(ValidationError, match="so drop retrieve"):
        RankingsSettings(labeler="file", rankings=[{"path": "a"}], retrieve=retrieve)
