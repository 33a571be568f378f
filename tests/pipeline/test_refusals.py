"""What `rlhf validate` refuses in one sentence, before anything is loaded or started."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.contract.heads import class_with, is_known
from pipeline.stages.pretrain.settings import FROM_SCRATCH, PretrainSettings

PPO = "max_prompt_tokens: 40, max_new_tokens: 6, episodes: 8, batch_size: 8"
RULE = "reward: [{rule: repetition}]"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return the folder in which commands run, with some rows."""

    def rows(name: str, content: list[dict[str, Any]]) -> None:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in content))

    asked = [f"What is {number} + 4?" for number in range(30)]
    rows("chats.jsonl", [{"prompt": p, "completion": "It is 7."} for p in asked])
    rows("pairs.jsonl", [{"prompt": p, "chosen": "It is 7.", "rejected": "Hm."} for p in asked])
    rows("texts.jsonl", [{"text": p} for p in asked])
    return tmp_path


@pytest.fixture
def model(place: Path, tiny_tokenizer: Any, tiny_policy: Any) -> Callable[..., Path]:
    """Return a builder of checkpoints: model("granite", architecture="granite")."""

    def build(name: str, *, tokenizer: Any = None, **shape: Any) -> Path:
        tokenizer = tokenizer or tiny_tokenizer()
        tiny_policy(tokenizer, **shape).save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
        return place / name

    return build


@pytest.fixture
def classifier(place: Path, tiny_tokenizer: Any) -> Callable[..., Path]:
    """Return a builder of sequence classifiers: classifier("judge", labels=2)."""

    def build(name: str, labels: int) -> Path:
        from transformers import LlamaConfig, LlamaForSequenceClassification

        tokenizer = tiny_tokenizer()
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, intermediate_size=32, max_position_embeddings=128,
            pad_token_id=0, num_labels=labels,
        )  # fmt: skip
        LlamaForSequenceClassification(config).save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
        return place / name

    return build


@pytest.fixture
def refused(rlhf: Any, place: Path) -> Callable[..., str]:
    """Return what checks that `validate`, `run` and `plan` refuse stages alike, in one sentence.

    refused("sft: {...}", "told", launch="{processes: 2}") returns the sentence.
    """

    def check(*stages: str, told: tuple[str, ...], launch: str = "{}") -> str:
        lines = "".join(f"  {stage}\n" for stage in stages)
        (place / "r.yaml").write_text(f"launch: {launch}\nstages:\n{lines}")
        found = [rlhf(command, "r.yaml") for command in ("validate", "run", "plan")]
        assert {typed.code for typed in found} == {2}, found
        assert len({typed.err for typed in found}) == 1, found
        sentence: str = found[0].err
        assert sentence.startswith("rlhf: r.yaml: ") and sentence.count("\n") == 1, sentence
        for part in told:
            assert part in sentence, f"{part!r} is not in {sentence!r}"
        assert not list(place.glob("runs/*/*/manifest.json"))
        return sentence

    return check


def sft(**settings: str) -> str:
    given = {"model": "./policy", "train": "[{path: chats.jsonl}]", **settings}
    return f"sft: {{kind: sft, {', '.join(f'{k}: {v}' for k, v in given.items())}}}"


def ppo(**settings: str) -> str:
    given = {"policy": "./policy", "reward": "[{rule: repetition}]", **settings}
    told = ", ".join(f"{k}: {v}" for k, v in given.items())
    prompts = "" if "prompts" in given else "prompts: [{path: pairs.jsonl}], "
    return f"ppo: {{kind: ppo, {told}, {prompts}{PPO if 'batch_size' not in given else ''}}}"


def test_an_architecture_without_the_class_that_a_later_stage_needs(
    refused: Any, model: Any
) -> None:
    model("granite", architecture="granite")
    model("olmo", architecture="olmo2")
    reward = "reward: {kind: reward, model: sft, train: [{path: pairs.jsonl}]}"
    told = ("reward", "sft (from ./granite)", "granite", "AutoModelForSequenceClassification")
    refused(sft(model="./granite"), reward, told=told)
    told = ("ppo", "sft (from ./olmo)", "AutoModelForTokenClassification", "value: shared")
    refused(sft(model="./olmo"), ppo(policy="sft"), told=told)


def test_a_value_head_is_published_alone_where_its_trunk_has_no_class_with_one(
    rlhf: Any, model: Any, place: Path
) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    model("olmo", architecture="olmo2")
    (place / "r.yaml").write_text(f"stages:\n  {ppo(policy='./olmo', value='shared')}\n")
    result = rlhf("run", "r.yaml")
    assert result.code == 0, result.err
    assert "value_head.safetensors" in result.out
    head = load_file(place / "runs/r/ppo/value_head.safetensors")
    assert {name: tuple(t.shape) for name, t in head.items()} == {"weight": (1, 16), "bias": (1,)}
    assert AutoModelForCausalLM.from_pretrained(place / "runs/r/ppo/model") is not None
    assert not (place / "runs/r/ppo/value_model").exists()


def test_every_architecture_that_writes_from_scratch_has_all_heads() -> None:
    annotation = PretrainSettings.model_fields["architecture"].annotation
    assert {*annotation.__args__} == {name for names in FROM_SCRATCH.values() for name in names}
    for name in FROM_SCRATCH["causal"]:
        assert all(class_with(head, name) for head in ("causal", "sequence", "token")), name


def test_the_tables_are_those_of_transformers() -> None:
    from transformers.models.auto import modeling_auto

    for head, table in (
        ("causal", modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
        ("sequence", modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
        ("token", modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES),
    ):
        assert all(class_with(head, kind) == str(name) for kind, name in table.items())  # type: ignore[arg-type]
    assert is_known("olmo2") and not is_known("no_such_architecture")


@pytest.mark.parametrize(
    "stage",
    [
        ppo(reward="./judge"),
        ppo(reward="[{models: [./one, ./judge]}]"),
        ppo(reward="./one", value_start="./judge"),
        "evaluate: {kind: evaluate, checkpoints: {a: ./policy}, prompts: [{path: pairs.jsonl}], "
        "reward: ./judge}",
    ],
)
def test_a_classifier_of_two_labels_is_no_reward_model(
    refused: Any, model: Any, classifier: Any, stage: str
) -> None:
    model("policy")
    classifier("one", labels=1)
    classifier("judge", labels=2)
    refused(stage, told=("./judge is a classifier with 2 labels", "reward stage"))


def test_two_labels_are_refused_by_score_too(rlhf: Any, classifier: Any) -> None:
    classifier("judge", labels=2)
    result = rlhf("score", "./judge", "chats.jsonl", "--out", "scores.jsonl")
    assert result.code == 2 and "2 labels" in result.err


def test_labels_that_a_configuration_leaves_out_are_two(
    refused: Any, model: Any, classifier: Any
) -> None:
    model("policy")
    config = classifier("judge", labels=2) / "config.json"
    content = json.loads(config.read_text())
    content.pop("id2label", None), content.pop("label2id", None)
    config.write_text(json.dumps(content))
    refused(ppo(reward="./judge"), told=("2 labels",))


def test_an_encoder_decoder_shares_no_trunk(refused: Any, place: Path, model: Any) -> None:
    config = json.loads((model("policy") / "config.json").read_text())
    config |= {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}
    (place / "policy" / "config.json").write_text(
        json.dumps({**config, "is_encoder_decoder": True})
    )
    refused(ppo(trunk="shared"), told=("trunk: shared is for causal policies", "./policy"))
    refused(sft(packing="true"), told=("packing is not for an encoder-decoder",))


def test_an_adapter_is_no_checkpoint(refused: Any, place: Path, model: Any, rlhf: Any) -> None:
    (model("policy") / "config.json").unlink()
    content = {"base_model_name_or_path": "org/base", "peft_type": "LORA"}
    (place / "policy" / "adapter_config.json").write_text(json.dumps(content))
    refused(sft(), told=("stages.sft.model: ./policy is an adapter of org/base", "merge"))
    result = rlhf("chat", "./policy")
    assert result.code == 2 and "is an adapter of org/base" in result.err


def test_a_hub_model_that_was_downloaded_before_is_looked_at(
    refused: Any, place: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = place / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(hub))
    folder = hub / "models--org--granite"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots").mkdir()
    model("granite", architecture="granite").rename(folder / "snapshots" / "abc")
    reward = "reward: {kind: reward, model: org/granite, train: [{path: pairs.jsonl}]}"
    refused(reward, told=("org/granite", "AutoModelForSequenceClassification"))


def test_generation_settings_that_nothing_reads_are_left_out_and_told(
    rlhf: Any, place: Path, model: Any
) -> None:
    settings = {"do_sample": False, "temperature": 0.6, "top_p": 0.9, "eos_token_id": 6}
    (model("policy") / "generation_config.json").write_text(json.dumps(settings))
    (place / "r.yaml").write_text(f"stages:\n  {sft(max_steps='1', heldout_share='0')}\n")
    result = rlhf("run", "r.yaml")
    assert result.code == 0, result.err
    assert "temperature 0.6, top_p 0.9 left out" in result.out
    saved = json.loads((place / "runs/r/sft/model/generation_config.json").read_text())
    assert saved["do_sample"] is False and saved["eos_token_id"] == 6
    assert "temperature" not in saved and "top_p" not in saved


def test_generation_settings_that_cannot_be_used_are_told_with_their_reason(
    refused: Any, model: Any
) -> None:
    settings = {"num_return_sequences": 4, "do_sample": False}
    (model("policy") / "generation_config.json").write_text(json.dumps(settings))
    refused(sft(), told=("generation_config.json can't be used", "num_return_sequences", "delete"))


def test_what_a_stage_would_publish_is_tried_before_its_first_step(
    rlhf: Any, place: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaConfig

    def refuse(self: Any, *arguments: Any, **more: Any) -> None:
        raise ValueError("The configuration is invalid:\n- `rope`: it can't be\n")

    model("policy")
    monkeypatch.setattr(LlamaConfig, "save_pretrained", refuse)
    (place / "r.yaml").write_text(f"stages:\n  {ppo()}\n")
    result = rlhf("run", "r.yaml")
    assert result.code == 2
    assert "can't be saved: The configuration is invalid: - `rope`: it can't be" in result.err
    assert not (place / "runs/r/ppo/metrics.jsonl").exists()


def test_prompt_and_response_over_the_context_of_a_path(refused: Any, model: Any) -> None:
    model("policy", context=128)
    long = ppo(max_prompt_tokens="125", max_new_tokens="6", episodes="8", batch_size="8")
    refused(long, told=("max_prompt_tokens + max_new_tokens is 131", "./policy holds 128"))
    refused(sft(), long.replace("./policy", "sft"), told=("131", "the context of sft holds 128"))
    prompts = "prompts: [{path: pairs.jsonl}], max_new_tokens: 128"
    answer = f"evaluate: {{kind: evaluate, checkpoints: {{a: ./policy}}, {prompts}}}"
    refused(answer, told=("max_new_tokens is 129 tokens", "./policy holds 128"))
    select = f"select: {{kind: select, model: sft, {RULE}, {prompts}}}"
    refused(sft(candidates="2"), select, told=("max_new_tokens is 129", "sft holds 128"))
    prompts = "prompts: [{world: rm_prompts}], max_new_tokens: 128"
    ranked = f"ranked: {{kind: rankings, model: ./policy, {prompts}}}"
    refused(ranked, told=("max_new_tokens is 129 tokens", "./policy holds 128"))


def test_chunks_of_a_continued_pretraining_are_not_the_context_of_its_model(
    rlhf: Any, model: Any, place: Path
) -> None:
    model("policy", context=128)
    base = (
        "base: {kind: pretrain, model: ./policy, context_length: 16, train: [{path: texts.jsonl}]}"
    )
    (place / "r.yaml").write_text(f"stages:\n  {base}\n  {sft(model='base', max_length='64')}\n")
    assert rlhf("validate", "r.yaml").code == 0


@pytest.mark.parametrize(
    ("stage", "told"),
    [
        (sft(batch_size="5"), "batch_size 5 can't be shared by 2 processes"),
        (sft(batch_size="6", micro_batch_size="2"), "no multiple of micro_batch_size 2"),
        (
            "base: {kind: pretrain, model: ./policy, context_length: 16, batch_size: 5, "
            "train: [{path: texts.jsonl}]}",
            "batch_size 5 can't be shared by 2 processes",
        ),
        (
            ppo(batch_size="6", minibatches="2", episodes="24", max_prompt_tokens="40",
                max_new_tokens="6"),
            "batch_size 6 does not divide by 2 processes times 2 minibatches",
        ),
    ],
)  # fmt: skip
def test_batches_that_the_processes_cannot_share(
    refused: Any, model: Any, stage: str, told: str
) -> None:
    model("policy")
    refused(stage, told=(told, f"stage {stage.split(':')[0]}"), launch="{processes: 2}")


def test_processes_of_the_command_line_count(rlhf: Any, model: Any, place: Path) -> None:
    model("policy")
    (place / "r.yaml").write_text(f"stages:\n  {sft(batch_size='5')}\n")
    assert rlhf("validate", "r.yaml").code == 0
    result = rlhf("run", "r.yaml", "--processes", 2)
    assert result.code == 2 and "can't be shared by 2 processes" in result.err


def test_a_missing_launch_file(refused: Any, model: Any) -> None:
    model("policy")
    told = ("launch.config: no/such.yaml: no such file",)
    refused(sft(), told=told, launch="{config: no/such.yaml}")


def test_a_rule_that_is_not_there(refused: Any, model: Any) -> None:
    model("policy")
    judged = "judged: {kind: evaluate, checkpoints: {a: ./policy}, prompts: [{path: pairs.jsonl}], "
    refused(judged + "rule: lenght}", told=("judged", "rule", "'lenght'", "Did you mean 'length'"))
    refused(judged + "rule: length, rule_options: {goal: 3}}", told=("judged", "rule", "goal"))


@pytest.mark.parametrize(
    ("stage", "told"),
    [
        (sft(train="[{path: texts.jsonl}]"), ("train.0", "Document", "answer")),
        (
            sft(heldout="[{path: chats.jsonl, format: text}]"),
            ("heldout.0", "chats.jsonl:1"),
        ),
        (
            sft(train="[{path: chats.jsonl, columns: {completion: reply}}]"),
            ("train.0", "no column 'reply'"),
        ),
        ("reward: {kind: reward, model: ./policy, train: [{path: chats.jsonl}]}", ("pairs",)),
        ("reward: {kind: reward, model: ./policy, rankings: ./chats.jsonl}", ("rankings.0",)),
        (ppo(prompts="[{path: texts.jsonl}]"), ("prompts.0", "prefix_tokens")),
        (ppo(prompts="[{world: corpus}]"), ("prompts.0", "Document")),
        (
            "tok: {kind: tokenizer, train: [{path: texts.jsonl, columns: {text: body}}]}",
            ("train.0", "'body'"),
        ),
    ],
)
def test_first_rows_that_are_not_what_a_stage_takes(
    refused: Any, model: Any, stage: str, told: tuple[str, ...]
) -> None:
    model("policy")
    refused(stage, told=told)


def test_a_few_malformed_rows_at_the_start_are_left_to_the_stage(
    rlhf: Any, model: Any, place: Path
) -> None:
    model("policy")
    rows = place / "chats.jsonl"
    rows.write_text("{no json\n" + rows.read_text())
    (place / "r.yaml").write_text(f"stages:\n  {sft()}\n")
    assert rlhf("validate", "r.yaml").code == 0


def test_the_lines_for_another_padding_token_work_when_pasted(
    rlhf: Any, model: Any, place: Path, tiny_tokenizer: Any
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    model("policy", tokenizer=tokenizer)
    recipe = f"stages:\n  {sft(max_steps='1', heldout_share='0')}\n"
    (place / "r.yaml").write_text(recipe)
    result = rlhf("validate", "r.yaml")
    assert result.code == 2
    assert "pad token '<|end|>'" in result.err and "by these lines under `stages:`" in result.err
    lines = result.out.splitlines()
    assert len(lines) == 3 and lines[0].startswith("  sft_tokenizer: {kind: tokenizer, adopt: ")
    # As a recipe that extends the first, and written into its stages by hand.
    (place / "more.yaml").write_text(f"extends: [r.yaml]\nstages:\n{result.out}")
    written = yaml.safe_load(recipe)
    added = yaml.safe_load(result.out)
    written["stages"] = {**added, "sft": {**written["stages"]["sft"], **added["sft"]}}
    (place / "r.yaml").write_text(yaml.safe_dump(written))
    assert rlhf("validate", "r.yaml").code == 0
    result = rlhf("run", "more.yaml")
    assert result.code == 0, result.err
    saved = json.loads((place / "runs/more/sft/model/tokenizer_config.json").read_text())
    assert saved["pad_token"] != saved["eos_token"]


def test_no_weights_are_loaded(model: Any, place: Path) -> None:
    model("policy")
    (place / "r.yaml").write_text(f"stages:\n  {sft()}\n  {ppo(policy='sft')}\n")
    command = (
        "import sys; sys.argv = ['rlhf', 'validate', 'r.yaml']; import pipeline.cli.main as c\n"
        "try: c.main()\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=place, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[0].startswith("r.yaml: valid"), done.stderr
    assert done.stdout.splitlines()[1] == "[]"
