"""Whole recipes: what is read, what is assumed, what fits and what to change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from data.errors import ModelError, RecipeError, UsageError
from data.records import chat
from pipeline.estimate.model.assumptions import Assumptions, Rates, parse_assumed, parse_sizes
from pipeline.estimate.model.costs import StageCost
from pipeline.estimate.model.hardware import parse_gpus
from pipeline.estimate.planner import Plan, check_sharding, estimate_recipe
from pipeline.estimate.render import details, row_of, to_json
from pipeline.recipe.load import load_recipe

LLAMA_7B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
    "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "vocab_size": 32000, "tie_word_embeddings": False,
    "rms_norm_eps": 1e-5, "max_position_embeddings": 4096,
}  # fmt: skip


@pytest.fixture
def large(tmp_path: Path) -> str:
    """A folder that holds the configuration of a 7B model and no weights."""
    folder = tmp_path / "large"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA_7B))
    return str(folder)


@pytest.fixture
def rows(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"messages": chat("a" * 396, "b" * 196)}) for _ in range(640)]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def planned(
    tmp_path: Path, stages: dict[str, Any], gpus: str = "8xH100", nodes: int = 1, **more: Any
) -> Plan:
    path = tmp_path / "recipe.yaml"
    top = more.pop("top", {})
    path.write_text(yaml.safe_dump({**top, "stages": stages}))
    return estimate_recipe(load_recipe(path), parse_gpus(gpus, nodes=nodes), **more)


def sft(model: str, rows: str, **more: Any) -> dict[str, Any]:
    return {"kind": "sft", "model": model, "train": [{"path": rows}], "heldout_share": 0, **more}


def only(plan: Plan) -> StageCost:
    (verdict,) = plan.verdicts
    return verdict.cost


def test_rows_and_lengths_are_read_and_no_weights_are_needed(
    tmp_path: Path, large: str, rows: str
) -> None:
    cost = only(planned(tmp_path, {"sft": sft(large, rows, epochs=2)}))
    assert cost.parameters == {"sft": 6_738_415_616}
    assert cost.steps == 2 * 640 // 32
    # 396 and 196 bytes at 4 a token, and 4 tokens around each turn.
    assert cost.parts[0].tokens == 2 * 640 * (99 + 49 + 2 * 4)


def test_a_student_has_some_of_its_teachers_blocks_and_waits_for_it(
    tmp_path: Path, large: str, rows: str
) -> None:
    text = {"train": [{"path": rows}], "steps": 10, "context_length": 256}
    small = {"kind": "distill", "teacher": large, **text}
    alone = only(planned(tmp_path, {"base": {"kind": "pretrain", "model": large, **text}}))
    text["optimizer"] = "adafactor"
    half = only(planned(tmp_path, {"small": small}))
    assert half.parameters["teacher"] == 6_738_415_616
    blocks = 6_738_415_616 - 2 * 32000 * 4096  # and a few norms
    assert half.parameters["small"] == pytest.approx(6_738_415_616 - blocks / 2, rel=1e-4)
    assert [part.name for part in half.parts] == ["training", "teacher"]
    training, teacher = half.parts
    # Training takes three times a forward pass.
    assert teacher.flops == pytest.approx(alone.parts[0].flops / 3, rel=0.05)
    assert training.flops < 0.6 * alone.parts[0].flops
    kept = 4 * (half.parameters["small"] + half.parameters["teacher"])
    assert half.phases[0].components["weights"] == pytest.approx(kept)


def test_adafactor_keeps_no_moment_a_weight(tmp_path: Path, large: str, rows: str) -> None:
    base = {"kind": "pretrain", "model": large, "train": [{"path": rows}], "steps": 10}
    plain = only(planned(tmp_path, {"base": base}))
    lean = only(planned(tmp_path, {"base": {**base, "optimizer": "adafactor"}}))
    spared = plain.phases[0].total - lean.phases[0].total
    assert spared == pytest.approx(8 * 6_738_415_616)


def test_preferences_are_learned_beside_a_reference(tmp_path: Path, large: str) -> None:
    path = tmp_path / "rankings.jsonl"
    row = {"completions": ["b" * 200, "c" * 200, "d" * 200], "ranks": [1, 2, 3]}
    lines = [json.dumps({"prompt": f"{i:0>400}", **row}) for i in range(40)]
    path.write_text("\n".join(lines) + "\n")
    given = {"model": large, "train": [{"path": str(path)}], "heldout_share": 0.2, "batch_size": 16}
    dpo, kto = (only(planned(tmp_path, {kind: {"kind": kind, **given}})) for kind in ("dpo", "kto"))
    assert dpo.parameters == {"dpo": 6_738_415_616, "reference": 6_738_415_616}
    assert dpo.steps == kto.steps == 32 * 3 // 16
    training, reference, judged = dpo.parts
    assert 150 <= training.tokens / (32 * 3 * 2) <= 160  # with what stands around each turn
    assert training.tokens == reference.tokens
    assert training.flops == pytest.approx(3 * reference.flops, rel=0.05)
    # By both models, a quarter as many rankings.
    assert judged.tokens == pytest.approx(2 * training.tokens / 4)
    assert [part.name for part in kto.parts] == ["training", "KL", "reference", "held-out rows"]
    assert kto.parts[1].flops == pytest.approx(2 * kto.parts[2].flops)


def test_groups_are_sampled_scored_and_learned(tmp_path: Path, large: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{i:0>400}"}) + "\n" for i in range(40)))
    given = {
        "policy": large, "reward": [{"rule": "repetition"}], "prompts": [{"path": str(path)}],
        "episodes": 640, "batch_size": 64, "group_size": 8, "max_new_tokens": 50,
    }  # fmt: skip
    grpo, rloo, free = (
        only(planned(tmp_path, {"made": {"kind": kind, **given, **more}}))
        for kind, more in (("grpo", {}), ("rloo", {}), ("grpo", {"kl_coefficient": 0}))
    )
    assert grpo.steps == rloo.steps == 10
    assert grpo.parameters == {"policy": 6_738_415_616, "reference": 6_738_415_616}
    assert free.parameters == {"policy": 6_738_415_616}
    looked = [[part.name for part in cost.parts] for cost in (grpo, rloo, free)]
    assert looked[0] == ["sampling", "log-probabilities", "training the policy"]
    assert looked[1] == ["sampling", *["log-probabilities"] * 2, "training the policy"]
    assert looked[2] == ["sampling", "training the policy"]
    assert 150 <= grpo.parts[-1].tokens / 640 <= 160
    assert grpo.parts[-1].flops == pytest.approx(3 * grpo.parts[1].flops, rel=0.05)
    assert {"KV cache", "Adam"} <= grpo.phases[0].components.keys()


def test_held_out_rows_are_those_of_their_sources(tmp_path: Path, large: str, rows: str) -> None:
    apart = [{"path": rows, "limit": 50}]
    cost = only(planned(tmp_path, {"sft": sft(large, rows, heldout=apart, candidates=1)}))
    assert cost.parts[1].tokens == 50 * (99 + 49 + 2 * 4)


def test_a_reward_model_is_judged_on_all_that_is_kept_apart(
    tmp_path: Path, large: str, rows: str
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    row = {"prompt": "a" * 400, "chosen": "b" * 200, "rejected": "c" * 200}
    pairs.write_text("".join(json.dumps({**row, "prompt": f"{i:0>400}"}) + "\n" for i in range(64)))
    train = {"kind": "reward", "model": large, "train": [{"path": str(pairs)}]}
    apart = {"heldout": [{"path": str(pairs), "limit": 16}]}
    alone = only(planned(tmp_path, {"reward": {**train, **apart}})).parts[1].tokens
    pair = alone / 16
    assert 200 <= pair <= 240  # a prompt of 100 tokens once, two answers of 50
    shown = {"demonstrations": [{"path": rows, "limit": 8}]}
    both = only(planned(tmp_path, {"reward": {**train, **apart, **shown}})).parts[1].tokens
    assert both - alone == 8 * (99 + 49 + 2 * 4)
    share = only(planned(tmp_path, {"reward": {**train, "heldout_share": 0.25}})).parts[1].tokens
    assert share == pytest.approx(16 * pair)


def test_a_7b_model_does_not_fit_by_ddp_and_fits_sharded(
    tmp_path: Path, large: str, rows: str
) -> None:
    plan = planned(tmp_path, {"sft": sft(large, rows)})
    (verdict,) = plan.verdicts
    assert not verdict.fits
    assert verdict.cost.peak.components["Adam"] == 8 * 6_738_415_616
    assert verdict.cost.peak.components["gradients"] == 8 * 6_738_415_616  # and DDP's buckets
    assert [advice.change for advice in verdict.advice if advice.fits] == ["--sharding fsdp2"]
    sharded = planned(tmp_path, {"sft": sft(large, rows)}, sharding="fsdp2")
    assert sharded.verdicts[0].fits
    assert only(sharded).peak.total == pytest.approx(verdict.advice[0].memory)
    assert only(sharded).peak.components["Adam"] == 6_738_415_616


def test_smaller_micro_batches_are_advised_and_fit_when_taken(tmp_path: Path, rows: str) -> None:
    stages = {"sft": sft("hub:m", rows, batch_size=512)}
    assumed = Assumptions(sizes={"hub:m": 1e9}, given={"sft": {"longest": 2048}})
    (verdict,) = planned(tmp_path, stages, "H100", assumed=assumed).verdicts
    advice = next(a for a in verdict.advice if a.change.startswith("micro_batch_size"))
    size = int(advice.change.split(": ")[1])
    stages["sft"]["micro_batch_size"] = size
    again = planned(tmp_path, stages, "H100", assumed=assumed)
    assert again.verdicts[0].fits
    assert only(again).peak.total == pytest.approx(advice.memory)


def test_what_nothing_makes_fit_is_said(tmp_path: Path, rows: str) -> None:
    assumed = Assumptions(sizes={"hub:m": 1e12})
    plan = planned(tmp_path, {"sft": sft("hub:m", rows)}, assumed=assumed)
    (verdict,) = plan.verdicts
    assert not any(advice.fits for advice in verdict.advice)
    assert any("too large still" in line for line in details(plan))


def test_ppo_holds_four_models_and_a_shared_head_three(tmp_path: Path, rows: str) -> None:
    def cost(**more: Any) -> StageCost:
        stages = {
            "ppo": {"kind": "ppo", "policy": "hub:m", "reward": "hub:r",
                    "prompts": [{"path": rows}], **more}
        }  # fmt: skip
        assumed = Assumptions(sizes={"hub:m": 1e9, "hub:r": 1e9})
        return only(planned(tmp_path, stages, "H100", assumed=assumed))

    four, shared = cost(), cost(value="shared")
    assert set(four.parameters) == {"policy", "reference", "value model", "reward model hub:r"}
    assert four.steps == 51_200 // 512 * 4
    assert "value model" not in shared.parameters
    assert shared.peak.total < 0.75 * four.peak.total
    parts = {part.name: part for part in four.parts}
    assert parts["sampling"].tokens == 51_200 * 64
    # Four epochs of forward and backward, about three forward passes each.
    assert parts["training the policy"].flops == pytest.approx(
        12 * parts["log-probabilities"].flops, rel=0.02
    )
    assert {"sampling", "scoring", "log-probabilities", "backward begins"} <= {
        phase.name for phase in four.phases
    }


def test_evaluations_while_ppo_runs_are_counted(tmp_path: Path, rows: str) -> None:
    def cost(**more: Any) -> StageCost:
        stages = {
            "ppo": {"kind": "ppo", "policy": "hub:m", "reward": "hub:r",
                    "prompts": [{"path": rows}], **more}
        }  # fmt: skip
        assumed = Assumptions(sizes={"hub:m": 1e9, "hub:r": 1e9, "hub:second": 1e9})
        return only(planned(tmp_path, stages, "H100", assumed=assumed))

    def tokens(of: StageCost) -> float:
        return sum(part.tokens for part in of.parts if part.name == "evaluations: sampling")

    evaluated = {"evaluation_prompts": [{"path": rows}], "evaluation_reward": "hub:second"}
    plain, often, seldom = (
        cost(),
        *(cost(evaluate_every=every, **evaluated) for every in (10, 60)),
    )
    # 100 updates: before the first and each ten, or before the first, after 60 and at the end.
    assert tokens(plain) == 0 and tokens(often) == pytest.approx(11 / 3 * tokens(seldom))
    assert often.hours > seldom.hours > plain.hours
    assert often.parameters["second judge hub:second"] > 0
    assert often.peak.total > plain.peak.total + 3e9


def test_what_is_assumed_of_rows_is_not_about_those_that_are_held_out(
    tmp_path: Path, rows: str
) -> None:
    source = [{"path": rows}]
    ppo = {"kind": "ppo", "policy": "hub:m", "reward": "hub:r", "prompts": source,
           "evaluation_prompts": source, "evaluate_every": 10}  # fmt: skip
    looked = {"kind": "evaluate", "checkpoints": {"a": "hub:m"}, "prompts": source,
              "perplexity": source}  # fmt: skip

    def tokens(stage: dict[str, Any], part: str, **given: float) -> float:
        assumed = Assumptions(sizes={"hub:m": 1e9, "hub:r": 1e9}, given={"it": given})
        parts = only(planned(tmp_path, {"it": stage}, "H100", assumed=assumed)).parts
        return sum(one.tokens for one in parts if one.name == part)

    sampled = "evaluations: sampling"
    assert tokens(ppo, sampled, rows=7, prompt_tokens=99) == tokens(ppo, sampled) > 0
    texts = tokens(looked, "log-probabilities of a", rows=7)
    answers = tokens({**looked, "perplexity": []}, "log-probabilities of a", rows=7)
    read = [tokens(one, "log-probabilities of a") for one in (looked, {**looked, "perplexity": []})]
    assert texts - answers == pytest.approx(read[0] - read[1]) and read[0] > read[1]


def test_the_best_of_n_is_counted(tmp_path: Path, rows: str) -> None:
    def sampled(**more: Any) -> float:
        stages = {
            "evaluate": {"kind": "evaluate", "checkpoints": {"a": "hub:m", "b": "hub:n"},
                         "prompts": [{"world": "eval_prompts"}], "gold": True,
                         "reward": "hub:r", **more}
        }  # fmt: skip
        assumed = Assumptions(sizes={"hub:m": 1e9, "hub:n": 1e9, "hub:r": 1e9})
        parts = only(planned(tmp_path, stages, "H100", assumed=assumed)).parts
        return sum(part.tokens for part in parts if part.name.startswith("sampling"))

    # Of the reference alone: two checkpoints answer once, and one of them eight times more.
    assert sampled(best_of=8) == pytest.approx(5 * sampled())


def tasks_planned(tmp_path: Path, *tasks: dict[str, Any], **more: Any) -> StageCost:
    stages = {
        "evaluate": {"kind": "evaluate", "checkpoints": {"a": "hub:m", "b": "hub:m"},
                     "prompts": [{"world": "eval_prompts"}], "tasks": list(tasks), **more}
    }  # fmt: skip
    return only(planned(tmp_path, stages, "H100", assumed=Assumptions(sizes={"hub:m": 1e9})))


def test_tasks_that_compare_likelihoods_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "quiz.jsonl"
    # 25 tokens a question and 10 an answer, of 4 bytes each, and 4 around each.
    row = {"question": "q" * 100, "choices": [f"{i}" + "c" * 39 for i in range(4)], "answer": 0}
    path.write_text("".join(json.dumps(row) + "\n" for _ in range(10)))
    task = {"kind": "choices", "name": "quiz", "source": {"path": str(path)}}
    cost = tasks_planned(tmp_path, task)
    parts = {part.name: part for part in cost.parts}
    # A question is read once for its four answers.
    assert parts["quiz of a"].tokens == parts["quiz of b"].tokens == 10 * (29 + 4 * 14)
    assert {"quiz of a", "quiz of b"} <= {phase.name for phase in cost.phases}
    shown = tasks_planned(tmp_path, task | {"shots": 2, "draws": 3})
    tokens = next(part.tokens for part in shown.parts if part.name == "quiz of a")
    assert tokens == 3 * 10 * (29 + 2 * (29 + 14) + 4 * 14)


def test_tasks_that_write_answers_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "sums.jsonl"
    row = {"question": "q" * 100, "answer": "#### 4"}
    path.write_text("".join(json.dumps(row) + "\n" for _ in range(10)))
    task = {"kind": "gsm8k", "source": {"path": str(path)}, "temperature": 0.7, "samples": 8,
            "max_new_tokens": 32}  # fmt: skip
    lists = {"kind": "world_lists", "shots": 4, "draws": 2}
    cost = tasks_planned(tmp_path, task, {"kind": "world_facts", "limit": 5}, lists)
    tokens = {part.name: part.tokens for part in cost.parts}
    assert tokens["gsm8k of a"] == 10 * 8 * 32
    assert tokens["world_facts of b"] == 2 * 5 * 48
    assert tokens["world_lists of a"] > 2 * 143 * 23
    # Each of the five facts is a begun sentence, read once, with the ends that it may have.
    assert 5 * 10 < tokens["world_facts by likelihood of b"] < 5 * 200
    assert cost.hours > tasks_planned(tmp_path).hours


def test_tasks_that_are_not_read_are_said(tmp_path: Path) -> None:
    stages = {
        "evaluate": {"kind": "evaluate", "checkpoints": {"a": "hub:m"},
                     "prompts": [{"world": "eval_prompts"}],
                     "tasks": [{"kind": "truthfulqa", "source": {"hub": "some/where"}}]}
    }  # fmt: skip
    plan = planned(tmp_path, stages, "H100", assumed=Assumptions(sizes={"hub:m": 1e9}))
    (verdict,) = plan.verdicts
    assert any("truthfulqa: some/where is not read: 10,000 questions" in s for s in verdict.assumed)
    assert any(part.name == "truthfulqa of a" for part in verdict.cost.parts)


def test_tokens_of_a_micro_batch_count_as_the_episodes_that_fit(tmp_path: Path, rows: str) -> None:
    def plan(**more: Any) -> Plan:
        stages = {
            "ppo": {"kind": "ppo", "policy": "hub:m", "reward": "hub:r",
                    "prompts": [{"path": rows}], **more}
        }  # fmt: skip
        given = {"ppo": {"longest": 436}}  # with 64 tokens of response: 500
        assumed = Assumptions(sizes={"hub:m": 1e9, "hub:r": 1e9}, given=given)
        return planned(tmp_path, stages, "H100", assumed=assumed)

    def peaks(plan: Plan) -> dict[str, float]:
        return {phase.name: phase.total for phase in only(plan).phases}

    four = peaks(plan(tokens_per_micro_batch=2000))
    assert peaks(plan(tokens_per_micro_batch=2499)) == four
    five = peaks(plan(tokens_per_micro_batch=2500))
    for moment in ("scoring", "blocks of the policy", "backward of the policy"):
        assert five[moment] > four[moment]
    backward = "backward of the policy"
    assert peaks(plan(micro_batch_size=4))[backward] == four[backward]
    one = peaks(plan(tokens_per_micro_batch=500))
    assert peaks(plan(tokens_per_micro_batch=100)) == one
    # A pass without gradients has 64 episodes, whatever a micro-batch has.
    assert peaks(plan(micro_batch_size=1))["scoring"] == peaks(plan())["scoring"] > one["scoring"]


def test_the_limit_that_is_set_is_the_one_advised_on(tmp_path: Path, rows: str) -> None:
    def advised(longest: float = 512, **more: Any) -> str:
        stages = {
            "ppo": {"kind": "ppo", "policy": "hub:m", "reward": [{"rule": "length"}],
                    "prompts": [{"path": rows}], "value": "shared", **more}
        }  # fmt: skip
        assumed = Assumptions(
            sizes={"hub:m": 1e9, "hub:r": 1e9}, given={"ppo": {"longest": longest}}
        )
        (verdict,) = planned(tmp_path, stages, "H100", assumed=assumed).verdicts
        return " and ".join(advice.change for advice in verdict.advice)

    assert "micro_batch_size: " in advised(micro_batch_size=512)
    assert "tokens_per_micro_batch" not in advised(micro_batch_size=512)
    assert "tokens_per_micro_batch: " in advised(tokens_per_micro_batch=2**19)
    # A pass without gradients has 64 episodes: it is that one which does not fit.
    scored = advised(20_000, micro_batch_size=1, reward="hub:r", max_prompt_tokens=20_000)
    assert ", tokens_per_micro_batch: 20064" in scored and ", micro_batch_size" not in scored


def test_a_server_that_samples_is_left_out_and_said(tmp_path: Path, rows: str) -> None:
    def plan(**rollout: Any) -> Plan:
        stages = {
            "ppo": {"kind": "ppo", "policy": "hub:m", "reward": "hub:r",
                    "prompts": [{"path": rows}], "rollout": rollout}
        }  # fmt: skip
        assumed = Assumptions(sizes={"hub:m": 1e9, "hub:r": 1e9})
        return planned(tmp_path, stages, "H100", assumed=assumed)

    own, served = plan(engine="own"), plan(engine="vllm")
    phases = [{phase.name for phase in only(each).phases} for each in (own, served)]
    assert phases[0] - phases[1] == {"sampling"} and phases[1] < phases[0]
    assert any("its memory is not counted" in line for line in served.assumed.sentences["ppo"])


def test_nodes_share_the_work_and_an_uneven_batch_is_a_problem(tmp_path: Path, rows: str) -> None:
    given = {"sft": {"rows": 1e6}}
    assumed = Assumptions(sizes={"hub:m": 3e9}, given=given, rates=Rates(overhead=0.0))
    one = only(planned(tmp_path, {"sft": sft("hub:m", rows)}, assumed=assumed))
    two = only(planned(tmp_path, {"sft": sft("hub:m", rows)}, nodes=2, assumed=assumed))
    assert two.layout.processes == 16
    assert two.hours == pytest.approx(one.hours / 2)
    odd = only(planned(tmp_path, {"sft": sft("hub:m", rows, batch_size=12)}, assumed=assumed))
    assert "batch_size 12 can't be shared by 8 processes" in odd.problems[0]


def test_hours_follow_from_flops_and_the_assumed_utilisation(tmp_path: Path, rows: str) -> None:
    sizes = {"hub:m": 3e9}
    half = Assumptions(sizes=sizes, rates=Rates(utilisation=0.5))
    whole = Assumptions(sizes=sizes, rates=Rates(utilisation=1.0))
    slow = only(planned(tmp_path, {"sft": sft("hub:m", rows)}, "H100", assumed=half))
    fast = only(planned(tmp_path, {"sft": sft("hub:m", rows)}, "H100", assumed=whole))
    assert slow.parts[0].seconds == pytest.approx(slow.parts[0].flops / (0.5 * 989.4e12))
    assert slow.hours == pytest.approx(2 * fast.hours)
    with pytest.raises(UsageError, match=r"--utilisation 1\.5"):
        Rates(utilisation=1.5)


def test_a_hub_model_without_a_network_is_asked_for(
    tmp_path: Path, rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="--size nobody/nothing=135M"):
        planned(tmp_path, {"sft": sft("nobody/nothing", rows)})


def test_what_is_assumed_is_said_and_can_be_given(tmp_path: Path) -> None:
    stages = {
        "sft": {"kind": "sft", "model": "hub:m", "train": [{"hub": "nobody/rows"}],
                "heldout_share": 0}
    }  # fmt: skip
    assumed = Assumptions(sizes={"hub:m": 1e9})
    plan = planned(tmp_path, stages, assumed=assumed)
    assert any("nobody/rows is not read: 10,000 rows assumed" in line for line in details(plan))
    given = parse_assumed(
        ["sft.rows=42k", "sft.prompt_tokens=200", "sft.answer_tokens=100"], stages=["sft"]
    )
    told = Assumptions(sizes={"hub:m": 1e9}, given=given)
    assert only(planned(tmp_path, stages, assumed=told)).parts[0].tokens == 42_000 * 300


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sfft.rows=1", "Did you mean 'sft'?"),
        ("sft.row=1", "Did you mean 'rows'?"),
        ("sft.rows=many", "is no number above 0"),
        ("sft.rows=0", "is no number above 0"),
        ("rows=3", "write it as stage.quantity=number"),
    ],
)
def test_mistakes_in_assume_are_told(text: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_assumed([text], stages=["sft"])
    assert told in str(caught.value)


def test_sizes_and_shardings_are_read() -> None:
    assert parse_sizes(["a/b=135M", "./c=d=7B"]) == {"a/b": 135e6, "./c=d": 7e9}
    with pytest.raises(UsageError, match="write it as checkpoint=135M"):
        parse_sizes(["7B"])
    assert check_sharding("fsdp2") == "fsdp2"
    with pytest.raises(UsageError, match="Did you mean 'fsdp2'"):
        check_sharding("fsdp")


def test_the_launch_file_tells_the_sharding(tmp_path: Path, rows: str) -> None:
    file = tmp_path / "launch.yaml"
    file.write_text("distributed_type: FSDP\n")
    assumed = Assumptions(sizes={"hub:m": 1e9})
    top = {"launch": {"config": str(file)}}
    assert (
        only(
            planned(tmp_path, {"sft": sft("hub:m", rows)}, assumed=assumed, top=top)
        ).layout.sharding
        == "fsdp2"
    )
    file.unlink()
    with pytest.raises(RecipeError, match=r"launch.config: .*launch.yaml can't be read"):
        planned(tmp_path, {"sft": sft("hub:m", rows)}, assumed=assumed, top=top)


def test_the_json_adds_up_and_is_json(tmp_path: Path, rows: str) -> None:
    plan = planned(tmp_path, {"sft": sft("hub:m", rows)}, assumed=Assumptions(sizes={"hub:m": 1e9}))
    content = json.loads(json.dumps(to_json(plan)))
    (stage,) = content["stages"]
    for phase in stage["phases"]:
        assert phase["bytes"] == pytest.approx(sum(phase["components"].values()))
    assert stage["memory_bytes"] == max(phase["bytes"] for phase in stage["phases"])
    assert stage["flops"] == sum(part["flops"] for part in stage["parts"])
    assert content["hours"] == pytest.approx(stage["hours"])
    assert row_of(plan.verdicts[0])[0] == "sft"


def test_passages_are_tokens_of_prompts(tmp_path: Path, large: str, rows: str) -> None:
    def tokens(**more: Any) -> float:
        return only(planned(tmp_path, {"one": sft(large, rows, **more)})).parts[0].tokens

    retrieve = {"corpus": [{"path": rows}], "passage_tokens": 50}
    assert tokens(retrieve=retrieve) == tokens() + 640 * 50


@pytest.mark.parametrize("kind", ["rankings", "select", "evaluate", "ppo"])
def test_passages_and_what_a_template_tells_of_tools_are_tokens_of_prompts(
    tmp_path: Path, large: str, rows: str, kind: str
) -> None:
    stages: dict[str, dict[str, Any]] = {
        "rankings": {"model": large, "labeler": "people"},
        "select": {"model": large, "reward": large},
        "evaluate": {"checkpoints": {"sft": large}},
        "ppo": {"policy": large, "reward": large, "episodes": 640, "batch_size": 64},
    }

    def work(**more: Any) -> float:
        stage = {"kind": kind, "prompts": [{"path": rows}], **stages[kind], **more}
        cost = only(planned(tmp_path, {"one": stage}))
        return next(part.flops for part in cost.parts if "sampling" in part.name)

    inline, told = (
        work(tools={"use": ["calculator"], "form": form}) for form in ("inline", "template")
    )
    assert inline == work() < told
    if kind != "evaluate":  # whose checkpoints read a second time
        assert work(retrieve={"corpus": [{"path": rows}], "passage_tokens": 50}) > inline
