from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from data.errors import HandOverError, Interrupted, ModelError, SourceError
from pipeline.contract.handover import HandOver
from pipeline.contract.settings import SourceSettings
from pipeline.stages.ppo.checks import check
from pipeline.stages.ppo.settings import PpoSettings
from pipeline.stages.ppo.stage import KIND, run
from pipeline.stages.reward.settings import RewardSettings

Build = Callable[..., Any]
NAMED = [
    "objective/kl",
    "objective/rlhf_reward",
    "objective/scores",
    "objective/entropy",
    "objective/non_score_reward",
    "policy/approxkl_avg",
    "policy/clipfrac_avg",
    "loss/policy_avg",
    "loss/value_avg",
    "val/ratio",
    "val/num_eos_tokens",
    "lr",
    "episode",
    "objective/kl_coefficient",
    "objective/response_length",
]


def weights(folder: Path, name: str = "model") -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / name / "model.safetensors")


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_leaves_policy_value_model_metrics_and_samples(setting: Build) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer

    context = setting()
    metrics = run(context)
    policy = AutoModelForCausalLM.from_pretrained(context.folder / "model")
    value = AutoModelForTokenClassification.from_pretrained(context.folder / "value_model")
    tokenizer = AutoTokenizer.from_pretrained(context.folder / "model")
    assert value.config.num_labels == 1
    assert tokenizer.chat_template and len(tokenizer) == policy.config.vocab_size
    logged = rows(context.folder / "metrics.jsonl")
    assert [row["step"] for row in logged] == [1, 2, 3, 4]
    assert [row["episode"] for row in logged] == [8, 16, 24, 32]
    assert set(NAMED) <= set(logged[0])
    assert logged[0]["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert logged[-1]["objective/kl"] != 0
    assert logged[0]["lr"] == pytest.approx(1e-2) and logged[2]["lr"] == pytest.approx(5e-3)
    assert logged[0]["objective/rlhf_reward"] == pytest.approx(
        logged[0]["objective/scores"] + logged[0]["objective/non_score_reward"]
    )
    samples = rows(context.folder / "samples.jsonl")
    assert [row["update"] for row in samples] == [2, 2, 4, 4]
    assert {"prompt", "response", "score", "kl", "ended"} <= set(samples[0])
    assert metrics["updates"] == 4 and metrics[KIND.main_metric] == logged[-1]["objective/scores"]


@pytest.mark.parametrize(
    "changes",
    [
        {
            "epochs": 2,
            "value": "shared",
            "ema_decay": 0.9,
            "adaptive_kl": {"target": 0.1, "horizon": 20},
            "normalize_scores": True,
            "score_clip": 1.0,
            "ptx_coefficient": 0.5,
            "value_warmup_updates": 1,
            "entropy_coefficient": 0.01,
            "whiten_rewards": True,
            "micro_batch_size": 2,
        },
        {"trunk": "shared", "lora": {"rank": 4}, "ptx_coefficient": 0.5, "reuse_logprobs": True},
    ],
    ids=["everything", "one trunk"],
)
def test_an_interrupted_run_ends_in_the_same_weights(
    setting: Build, tmp_path: Path, changes: dict[str, Any]
) -> None:
    if "ptx_coefficient" in changes:
        text = tmp_path / "text.txt"
        text.write_text("The baker of Millbrook is Ada Finch.\n" * 20)
        changes = {**changes, "pretraining_sources": [SourceSettings(path=str(text))]}
    whole = setting("whole", **changes)
    expected = run(whole)
    for stop_after in (0, 1):
        with pytest.raises(Interrupted):
            run(setting("cut", stop_after=stop_after, **changes))
    cut = setting("cut", **changes)
    metrics = run(cut)
    for name in ("model", "value_model"):
        ours, theirs = weights(cut.folder, name), weights(whole.folder, name)
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert torch.equal(ours[key], theirs[key]), key
    timeless = {k: v for k, v in expected.items() if not k.startswith("time/")}
    assert {k: v for k, v in metrics.items() if not k.startswith("time/")} == timeless
    assert [r["step"] for r in rows(cut.folder / "metrics.jsonl")] == [1, 2, 3, 4]
    assert (cut.folder / "samples.jsonl").read_bytes() == (
        whole.folder / "samples.jsonl"
    ).read_bytes()


def test_an_interrupted_run_with_tools_ends_in_the_same_weights(
    setting: Build, save_policy: Build, sums: Any, tmp_path: Path
) -> None:
    kept = tmp_path / "kept.jsonl"
    kept.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("4", "74", "247")))
    changes: dict[str, Any] = {
        "policy": str(save_policy(sums, tmp_path / "sums")), "value": "shared",
        "reward": [{"rule": "regex", "options": {"pattern": r"=\d+>>"}}], "tools": ["calculator"],
        "max_new_tokens": 12, "sample_every": 1, "sample_count": 8,
        "evaluate_every": 2, "evaluation_prompts": [SourceSettings(path=str(kept))],
    }  # fmt: skip
    whole = setting("whole", **changes)
    run(whole)
    with pytest.raises(Interrupted):
        run(setting("cut", stop_after=1, **changes))
    cut = setting("cut", **changes)
    run(cut)
    ours, theirs = weights(cut.folder), weights(whole.folder)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    for name in ("samples.jsonl", "evaluation.jsonl"):
        assert (cut.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    called = [row for row in rows(whole.folder / "samples.jsonl") if "calls" in row]
    assert called and all(row["tool_tokens"] for row in called)
    assert "tools" not in setting("none").settings.key_settings()
    assert "tools" in whole.settings.key_settings()


def test_a_run_that_died_between_resume_states_ends_in_the_same_weights(setting: Build) -> None:
    whole = setting("whole")
    run(whole)
    dead = setting("dead", save_every=2)
    log = dead.metrics.log

    def dies(step: int, metrics: Any) -> None:
        log(step, metrics)
        if step == 3:
            raise RuntimeError("power cut")

    dead.metrics.log = dies
    with pytest.raises(RuntimeError, match="power cut"):
        run(dead)
    again = setting("dead", save_every=2)
    run(again)
    for name in ("model", "value_model"):
        ours, theirs = weights(again.folder, name), weights(whole.folder, name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert [r["step"] for r in rows(again.folder / "metrics.jsonl")] == [1, 2, 3, 4]


def test_what_ppo_made_of_each_token_is_written_of_a_few_samples(setting: Build) -> None:
    context = setting(sample_every=2, sample_count=4)
    run(context)
    samples = rows(context.folder / "samples.jsonl")
    assert [row["update"] for row in samples] == [2] * 4 + [4] * 4
    told = [row for row in samples if "by_token" in row]
    assert [samples.index(row) for row in told] == [0, 1, 4, 5]
    for row in told:
        columns = row["by_token"]
        assert {name: len(column) for name, column in columns.items()} == dict.fromkeys(
            ("text", "kl", "value", "advantage"), row["tokens"]
        )
        assert sum(columns["kl"]) == pytest.approx(row["kl"], abs=1e-3)
        assert ("<|end|>" in "".join(columns["text"])) == row["ended"]
        assert any(columns["value"]) and any(columns["advantage"])


def test_further_tokens_end_a_response(setting: Build) -> None:
    end = "e"
    context = setting(end_tokens=[end], sample_every=1, sample_count=8, max_new_tokens=12)
    run(context)
    samples = rows(context.folder / "samples.jsonl")
    ended = [s for s in samples if s["ended"]]
    assert any(s["response"].endswith(end) for s in ended)
    with pytest.raises(HandOverError, match="'<nothing>', which is no token"):
        run(setting("other", end_tokens=["<nothing>"]))


def test_a_finished_run_that_was_killed_before_publishing_publishes(setting: Build) -> None:
    whole = setting(episodes=8)
    expected = run(whole)
    before = weights(whole.folder)
    again = setting(episodes=8)
    assert run(again) == expected
    after = weights(again.folder)
    assert all(torch.equal(before[key], after[key]) for key in before)


BY_TOKENS = {"tokens_per_micro_batch": 50, "micro_batch_size": 32}
"""The default of 32 takes back the fixture's number, as it does that of a recipe one extends."""


def test_micro_batches_do_not_change_the_result(setting: Build) -> None:
    large = setting("large", bf16=False, episodes=16)
    run(large)
    for cut in ({"micro_batch_size": 1}, BY_TOKENS):
        small = setting(next(iter(cut)), **cut, bf16=False, episodes=16)
        run(small)
        ours, theirs = weights(small.folder), weights(large.folder)
        for key in ours:
            # Adam's first steps are signs of gradients, so that rounding may tip a few of them.
            assert torch.quantile((ours[key] - theirs[key]).abs().flatten(), 0.9) < 1e-3, key


def test_a_policy_that_differs_from_its_reference_is_refused_unless_named(
    setting: Build, save_policy: Build, tiny_tokenizer: Build, tmp_path: Path
) -> None:
    other = save_policy(tiny_tokenizer(), tmp_path / "other", seed=9)
    context = setting(reference=str(other), episodes=8)
    metrics = run(context)  # named, so a KL from the start is meant
    assert rows(context.folder / "metrics.jsonl")[0]["objective/kl"] != pytest.approx(0, abs=1e-3)
    assert metrics["updates"] == 1


def test_rules_and_weights_make_the_score(setting: Build) -> None:
    context = setting(
        reward=[
            {"rule": "length", "options": {"target": 3}, "weight": 2.0},
            {"rule": "length", "options": {"target": 6}, "weight": -1.0},
        ],
        end_rule="none",
        episodes=8,
    )
    run(context)
    (row,) = rows(context.folder / "metrics.jsonl")
    parts = [row["objective/scores/length"], row["objective/scores/length.1"]]
    assert row["objective/scores"] == pytest.approx(2 * parts[0] - parts[1], abs=1e-5)
    value = weights(context.folder, "value_model")
    assert value["score.weight"].abs().sum() > 0  # from the policy with a head of zeros, trained


def test_documents_give_prompts_of_their_first_tokens(setting: Build, tmp_path: Path) -> None:
    stories = tmp_path / "stories.jsonl"
    lines = [f"The miller {name} lives by the river and bakes bread." for name in "abcdefgh"]
    stories.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    context = setting(
        prompts=[SourceSettings(path=str(stories))], prefix_tokens=6, episodes=8, sample_every=1
    )
    assert run(context)["prompts"] == 8
    sample = rows(context.folder / "samples.jsonl")[0]
    assert any(line.startswith(sample["prompt"]) for line in lines)


def test_long_prompts_are_dropped_counted_and_too_many_stop_the_run(setting: Build) -> None:
    with pytest.raises(SourceError, match=r"12 of 12 prompts were dropped.*max_prompt_tokens 2"):
        run(setting(max_prompt_tokens=2))


def test_a_whole_reward_model_is_held_beside_the_trunk_and_said_to_be(setting: Build) -> None:
    context = setting(trunk="shared", episodes=8)
    said: list[str] = []
    context.console.say = said.append
    run(context)
    assert any("rm is a whole model, held beside the trunk" in line for line in said)


def test_settings_of_one_trunk_that_contradict_each_other_are_refused(setting: Build) -> None:
    one = setting(trunk="shared").settings
    assert one.value == "shared" and one.lora is not None and one.lora.rank == 16
    assert PpoSettings(**one.model_dump()) == one  # a resolved recipe says the same again
    with pytest.raises(ValueError, match="drop it or value: separate"):
        setting(trunk="shared", value="separate")
    with pytest.raises(ValueError, match="drop it or `reference`"):
        setting(trunk="shared", reference="elsewhere/model")
    with pytest.raises(ValueError, match="lora is for trunk: shared"):
        setting(lora={"rank": 4})


def test_a_reward_adapter_of_another_stage_is_refused_before_anything_is_loaded(
    setting: Build,
) -> None:
    shared = setting(trunk="shared").settings.model_copy(update={"policy": "sft", "reward": "rm"})
    trained = RewardSettings(model="base", rankings="x", lora={"rank": 2})
    base = trained.model_copy(update={"model": "./start"})
    stages = {"base": base, "sft": trained, "rm": trained, "ppo": shared}
    hand = HandOver("ppo", stages, lambda _: None)
    with pytest.raises(HandOverError, match="starts from sft and the adapter of rm from base"):
        check(shared, hand)
    check(shared.model_copy(update={"policy": "base"}), hand)
    apart = shared.model_copy(update={"trunk": "separate"})
    check(apart, hand)


def test_settings_that_make_no_sense_are_refused(setting: Build) -> None:
    with pytest.raises(ValueError, match="does not divide into 3 minibatches"):
        setting(minibatches=3)
    with pytest.raises(ValueError, match="ptx_coefficient is above 0"):
        setting(ptx_coefficient=1.0)
    with pytest.raises(ValueError, match="exactly one of model, models, rule, function, url"):
        setting(reward=[{"weight": 1.0}])
    with pytest.raises(ValueError, match=r"past_last needs a value .* set value: separate"):
        setting(value="shared", score_position="past_last")
    with pytest.raises(ValueError, match="takes the place of micro_batch_size; leave out"):
        setting(tokens_per_micro_batch=100)


def test_how_passes_are_cut_makes_no_other_run(setting: Build) -> None:
    counted, by_tokens = (setting(**more).settings for more in ({}, BY_TOKENS))
    assert counted.key_settings() == by_tokens.key_settings()
    # The key that states from before had: a limit that was not set was no part of it.
    assert "tokens_per_micro_batch" not in counted.recorded_settings()
    assert by_tokens.recorded_settings()["tokens_per_micro_batch"] == 50


def test_a_batch_that_the_processes_cannot_share_is_refused(
    setting: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of(processes: int) -> SimpleNamespace:
        return SimpleNamespace(num_processes=processes, process_index=0)

    context = setting(batch_size=8, minibatches=2)
    monkeypatch.setattr("pipeline.rl.processes.make_accelerator", lambda bf16: of(3))
    with pytest.raises(
        HandOverError, match=r"batch_size 8 does not divide by 3 .* choose a multiple of 6"
    ):
        run(context)
    monkeypatch.setattr("pipeline.rl.processes.make_accelerator", lambda bf16: of(8))
    with pytest.raises(HandOverError, match=r"by 8 processes times 2 minibatches; .* of 16"):
        run(context)  # each has an episode, but not one of each minibatch


def test_check_refuses_what_does_not_fit(
    setting: Build, save_policy: Build, tiny_tokenizer: Build, tmp_path: Path
) -> None:
    context = setting()
    check(context.settings, context.hand)
    context = setting(max_prompt_tokens=125)
    with pytest.raises(HandOverError, match=r"131 tokens, the context of .* holds 128"):
        check(context.settings, context.hand)
    context = setting(reward=context.settings.policy)
    with pytest.raises(HandOverError, match="is a LlamaForCausalLM, a reward model is"):
        check(context.settings, context.hand)
    other = save_policy(tiny_tokenizer(vocab_size=300), tmp_path / "other")
    context = setting(reference=str(other))
    with pytest.raises(HandOverError, match="different tokenizers"):
        check(context.settings, context.hand)
    context = setting(reward=[{"rule": "sentimant"}])
    with pytest.raises(HandOverError, match="Did you mean 'sentiment'"):
        check(context.settings, context.hand)


def test_a_pad_token_that_ends_sequences_is_refused(
    setting: Build, save_policy: Build, tiny_tokenizer: Build, tmp_path: Path
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    context = setting(policy=str(save_policy(tokenizer, tmp_path / "padless")))
    with pytest.raises(HandOverError, match="must differ"):
        check(context.settings, context.hand)
    with pytest.raises(ModelError, match="they must be two tokens"):
        run(context)
