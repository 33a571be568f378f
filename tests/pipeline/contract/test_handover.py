from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import pytest

from data.errors import HandOverError
from pipeline.contract.artifacts import Artifact
from pipeline.contract.facts import read_facts
from pipeline.contract.handover import HandOver
from pipeline.contract.settings import Ref, StageSettings


class ModelStage(StageSettings):
    kind: str = "model"
    tokenizer: Annotated[str, Ref("tokenizer")] | None = None
    model: Annotated[str, Ref("policy")] | None = None
    context_length: int | None = None


def checkpoint(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    vocabulary = changes.get("vocabulary", {"a": 0, "<pad>": 1, "<eos>": 2})
    tokenizer = {"model": {"vocab": vocabulary}, "added_tokens": []}
    config = {
        "vocab_size": changes.get("vocab_size", 3),
        "max_position_embeddings": changes.get("context", 64),
        "architectures": [changes.get("architecture", "LlamaForCausalLM")],
    }
    tokenizer_config = {
        "pad_token": changes.get("pad", "<pad>"),
        "eos_token": {"content": "<eos>"},
        "chat_template": changes.get("template", "t"),
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    return folder


def hand(stages: Mapping[str, StageSettings] | None = None) -> HandOver:
    def finished(name: str) -> Artifact | None:
        return None

    return HandOver("ppo", stages or {}, finished)


def test_facts_are_read_from_the_small_files(tmp_path: Path) -> None:
    facts = read_facts(checkpoint(tmp_path / "m"), source="m")
    assert (facts.vocab_size, facts.tokenizer_size, facts.context_length) == (3, 3, 64)
    assert (facts.pad_token, facts.eos_token) == ("<pad>", "<eos>")
    assert facts.architecture == "LlamaForCausalLM"


def test_equal_tokenizers_pass_and_different_ones_are_shown_side_by_side(tmp_path: Path) -> None:
    a, same = checkpoint(tmp_path / "a"), checkpoint(tmp_path / "same")
    b = checkpoint(tmp_path / "b", vocabulary={"b": 0, "<pad>": 1, "<eos>": 2})
    hand().require_same_tokenizer(str(a), str(same))
    with pytest.raises(HandOverError, match=r"stage ppo: .*a and .*b have different tokenizers"):
        hand().require_same_tokenizer(str(a), str(b))


def test_different_chat_templates_are_refused(tmp_path: Path) -> None:
    a, b = checkpoint(tmp_path / "a"), checkpoint(tmp_path / "b", template="other")
    with pytest.raises(HandOverError, match="different chat templates"):
        hand().require_same_tokenizer(str(a), str(b))


def test_stages_of_one_chain_share_their_tokenizer_before_they_have_run() -> None:
    stages = {
        "tok": StageSettings(kind="tokenizer"),
        "base": ModelStage(tokenizer="tok"),
        "sft": ModelStage(model="base"),
    }
    assert hand(stages).tokenizer_origin("sft") == "tok"
    hand(stages).require_same_tokenizer("sft", "base")


def test_pad_equal_to_end_of_sequence_is_refused(tmp_path: Path) -> None:
    hand().require_usable_tokenizer(str(checkpoint(tmp_path / "good")))
    bad = checkpoint(tmp_path / "bad", pad="<eos>")
    with pytest.raises(HandOverError, match="pad token '<eos>' and end-of-sequence token '<eos>'"):
        hand().require_usable_tokenizer(str(bad))


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    bad = checkpoint(tmp_path / "bad", vocab_size=2)
    with pytest.raises(HandOverError, match="3 tokens, its model an embedding of 2"):
        hand().require_usable_tokenizer(str(bad))


def test_a_tokenizer_named_beside_the_model_replaces_an_unusable_one(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "model", pad="<eos>")
    adopted = checkpoint(tmp_path / "adopted")
    hand().require_tokenizer_for(str(model), str(adopted))
    with pytest.raises(HandOverError, match="never learns to end"):
        hand().require_tokenizer_for(str(model), None)
    with pytest.raises(HandOverError, match="never learns to end"):
        hand().require_tokenizer_for(str(adopted), str(model))


def test_a_tokenizer_of_another_vocabulary_is_refused_beside_a_model(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "model")
    larger = {"a": 0, "<pad>": 1, "<eos>": 2, "b": 3}
    more = checkpoint(tmp_path / "more", vocabulary=larger, vocab_size=4)
    with pytest.raises(HandOverError, match=r"has 4 tokens, .* an embedding of 3"):
        hand().require_tokenizer_for(str(model), str(more))
    other = checkpoint(tmp_path / "other", vocabulary={"b": 0, "<pad>": 1, "<eos>": 2})
    with pytest.raises(HandOverError, match="another vocabulary"):
        hand().require_tokenizer_for(str(model), str(other))


def test_inputs_longer_than_the_context_are_refused(tmp_path: Path) -> None:
    path = str(checkpoint(tmp_path / "m"))
    hand().require_fits_context(path, 64, "prompt + response")
    with pytest.raises(HandOverError, match=r"response is 65 tokens, the context of .*64"):
        hand().require_fits_context(path, 65, "prompt + response")


def test_the_context_of_a_stage_that_has_not_run_is_its_setting() -> None:
    stages = {"base": ModelStage(context_length=32), "sft": ModelStage(model="base")}
    with pytest.raises(HandOverError, match="the context of sft holds 32"):
        hand(stages).require_fits_context("sft", 33, "prompt + response")


def test_a_model_without_a_reward_head_is_refused(tmp_path: Path) -> None:
    good = checkpoint(tmp_path / "rm", architecture="LlamaForSequenceClassification")
    hand().require_reward_head(str(good))
    with pytest.raises(HandOverError, match="is a LlamaForCausalLM"):
        hand().require_reward_head(str(checkpoint(tmp_path / "lm")))
