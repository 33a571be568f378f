"""Every setting of every kind of stage, and whether the result follows from it.

A new field fails here until somebody has thought of it: what is listed under `same` may differ
without a stage being done again, and is marked `SameResult` in the settings.
"""

from __future__ import annotations

from typing import Any, get_args

import pytest

from pipeline.contract.settings import (
    SameResult,
    Settings,
    StageSettings,
    beside_result,
    same_result,
    without,
)
from pipeline.stages.registry import STAGE_MODULES, stage_kind

RESULT: dict[str, str] = {
    "TokenizerSettings": (
        "typed_control_tokens objective "
        "kind seed train vocab_size special_tokens chat_template adopt pad_token "
        "trust_remote_code"
    ),
    "SourceSettings": (
        "path hub hub_name hub_split hub_revision hub_files world world_seed format columns "
        "limit skip instruction stage chat part heldout_share"
    ),
    "PretrainSettings": (
        "optimizer "
        "kind seed train heldout heldout_share tokenizer model objective masking spans noise "
        "architecture hidden_size layers "
        "heads kv_heads intermediate_size tie_embeddings rope_theta initializer_range "
        "context_length positions attend_across_documents steps epochs tokens batch_size "
        "learning_rate schedule warmup_share final_share weight_decay betas epsilon "
        "max_gradient_norm bf16 trust_remote_code"
    ),
    "DistillSettings": (
        "optimizer "
        "kind seed train heldout heldout_share teacher model layers objective masking temperature "
        "soft hard cosine context_length attend_across_documents steps epochs tokens batch_size "
        "learning_rate schedule warmup_share final_share weight_decay betas epsilon "
        "max_gradient_norm bf16 trust_remote_code"
    ),
    "MaskingSettings": "share whole_words next_sentence",
    "SpanSettings": "share mean_span",
    "NoiseSettings": "infill mean_span mask delete permute rotate",
    "ToolAnnotateSettings": (
        "kind seed model caller train tools prompt limit opening_probability places calls gain "
        "result max_call_tokens temperature bf16 trust_remote_code"
    ),
    "TextShareSettings": "train share row_tokens",
    "FinetuneSettings": (
        "kind seed head model tokenizer train heldout heldout_share max_length stride "
        "max_answer_tokens epochs batch_size learning_rate schedule warmup_share final_share "
        "weight_decay betas epsilon max_gradient_norm bf16 trust_remote_code"
    ),
    "SftSettings": (
        "kind seed model tokenizer train heldout heldout_share shots pretraining max_length "
        "too_long "
        "retrieve "
        "packing epochs max_steps batch_size learning_rate schedule final_share warmup_share "
        "weight_decay betas epsilon max_gradient_norm dropout group_by_length bf16 candidates "
        "trust_remote_code"
    ),
    "RankingsSettings": (
        "kind seed labeler reward model prompts rankings people limit completions noise retrieve "
        "max_new_tokens temperature top_k top_p bf16 trust_remote_code"
    ),
    "PeopleSettings": (
        "mode strategy scored_by overlap annotators_per_task gold gold_share "
        "repeat_share qualification_tasks qualification_share needed consolidation campaign "
        "annotators conversations"
    ),
    "ConversationSettings": ("against most_turns all_turns all_tokens"),
    "GoldAnnotatorSettings": ("kind noise"),
    "SimulatedPoolSettings": ("kind pool flip quality"),
    "JudgeSettings": ("kind name url model max_calls max_tokens max_answer_tokens temperature"),
    "RewardSettings": (
        "kind seed model tokenizer rankings train heldout_share heldout eval_rankings "
        "demonstrations retrieve max_length ties margin epochs prompts_per_step "
        "learning_rate schedule final_share warmup_share weight_decay betas epsilon "
        "max_gradient_norm bf16 lora trust_remote_code"
    ),
    "DpoSettings": (
        "kind seed model tokenizer reference rankings train heldout_share heldout eval_rankings "
        "max_length ties beta loss label_smoothing epochs batch_size learning_rate schedule "
        "final_share warmup_share weight_decay betas epsilon max_gradient_norm bf16 "
        "trust_remote_code"
    ),
    "KtoSettings": (
        "kind seed model tokenizer reference rankings train heldout_share heldout eval_rankings "
        "max_length ties beta desirable_weight undesirable_weight epochs batch_size "
        "micro_batch_size learning_rate schedule final_share warmup_share weight_decay betas "
        "epsilon max_gradient_norm bf16 trust_remote_code"
    ),
    "Lora": ("rank alpha targets"),
    "SelectSettings": ("kind seed model reward prompts retrieve max_new_tokens temperature"),
    "RewardTerm": (
        "model models combine coefficient rule function options url normalize clip weight"
    ),
    "PpoSettings": (
        "tokenizer episodes batch_size minibatches epochs max_new_tokens temperature top_k top_p "
        "kl_coefficient adaptive_kl gamma gae_lambda whiten_advantages "
        "whiten_rewards clip value_clip value_coefficient entropy_coefficient early_stop_kl "
        "end_after end_rule end_penalty score_position score_clip normalize_scores "
        "learning_rate value_learning_rate schedule warmup_updates value_warmup_updates "
        "adam_epsilon adam_betas max_gradient_norm ema_decay ptx_coefficient "
        "ptx_rows_per_episode bf16 reuse_logprobs rollout kind seed policy reward reference "
        "value trunk lora value_start prompts evaluation_prompts "
        "evaluation_reward evaluation_gold max_prompt_tokens end_tokens prefix_tokens "
        "pretraining pretraining_sources pretraining_row_tokens retrieve trust_remote_code"
    ),
    "GrpoSettings": (
        "kind seed policy tokenizer reference reward prompts evaluation_prompts "
        "evaluation_reward evaluation_gold max_prompt_tokens prefix_tokens "
        "group_size batch_size episodes max_new_tokens temperature kl_coefficient clip loss "
        "scale_rewards end_rule end_penalty score_clip normalize_scores learning_rate schedule "
        "final_share warmup_share weight_decay betas epsilon max_gradient_norm bf16 "
        "trust_remote_code"
    ),
    "RlooSettings": (
        "kind seed policy tokenizer reference reward prompts evaluation_prompts "
        "evaluation_reward evaluation_gold max_prompt_tokens prefix_tokens "
        "group_size batch_size episodes max_new_tokens temperature kl_coefficient clip "
        "end_rule end_penalty score_clip normalize_scores learning_rate schedule final_share "
        "warmup_share weight_decay betas epsilon max_gradient_norm bf16 trust_remote_code"
    ),
    "AdaptiveKl": ("target horizon"),
    "RolloutSettings": ("engine"),
    "DoctorSettings": ("on_alarm ignore window best_every kl_per_token"),
    "EvaluateSettings": (
        "kind seed checkpoints prompts limit prefix_tokens perplexity reference plain "
        "gold reward rule rule_options max_new_tokens temperature top_k top_p bf16 resamples "
        "trust_remote_code"
    ),
    "ComparingSettings": "overlap annotators_per_task needed",
    "RetrievalSettings": "corpus passages passage_tokens",
    "ReadingSettings": "corpus passages passage_tokens checkpoints",
    "SearchSettings": "corpus passages passage_tokens",
    "RewardModelJudge": "kind model",
    "HttpJudge": "kind url",
    "LlmJudge": "kind url model prompt options",
    "ChoicesSettings": "kind name source shots draws examples",
    "TruthfulQaSettings": "kind name source",
    "Gsm8kSettings": (
        "kind name source shots draws examples steps samples temperature max_new_tokens "
        "instruction direct_instruction"
    ),
    "WorldFactsSettings": "kind name world_seed limit max_new_tokens",
    "WorldListsSettings": "kind name shots draws world_seed",
    "WorldSumsSettings": (
        "kind name shots draws world_seed limit steps samples temperature max_new_tokens "
        "instruction direct_instruction"
    ),
    "LmEvalSettings": "kind name task folder shots draws limit chat",
    "ToolsSettings": "use search form max_calls max_characters max_seconds",
    "ToolChoice": "name options",
}
"""Fields that change the result, by class of settings."""

SAME: dict[str, str] = {
    "SourceSettings": "max_bad_share license",
    "PretrainSettings": (
        "micro_batch_size compile gradient_checkpointing log_every evaluate_every save_every"
    ),
    "DistillSettings": (
        "micro_batch_size compile gradient_checkpointing log_every evaluate_every save_every"
    ),
    "FinetuneSettings": (
        "max_truncated_share micro_batch_size gradient_checkpointing log_every evaluate_every "
        "save_every"
    ),
    "SftSettings": (
        "max_too_long_share micro_batch_size gradient_checkpointing evaluate_every log_every "
        "save_every tools"
    ),
    "RankingsSettings": ("batch_size max_too_long_share tools"),
    "PeopleSettings": ("lease_minutes title guidelines database poll_seconds"),
    "JudgeSettings": ("key_variable concurrency timeout retries"),
    "RewardSettings": (
        "max_truncated_share tokens_per_micro_batch gradient_checkpointing compile "
        "evaluate_every save_every"
    ),
    "DpoSettings": (
        "max_too_long_share micro_batch_size gradient_checkpointing evaluate_every log_every "
        "save_every"
    ),
    "KtoSettings": (
        "max_too_long_share gradient_checkpointing evaluate_every log_every save_every"
    ),
    "ToolAnnotateSettings": ("batch_size"),
    "SelectSettings": ("batch_size tools"),
    "RewardTerm": ("timeout retries batch_size"),
    "PpoSettings": (
        "micro_batch_size tokens_per_micro_batch generation_batch_size compile "
        "gradient_checkpointing save_every sample_every sample_count evaluate_every "
        "doctor max_dropped_share tools"
    ),
    "GrpoSettings": (
        "evaluate_every max_dropped_share micro_batch_size generation_batch_size "
        "gradient_checkpointing save_every sample_every sample_count doctor"
    ),
    "RlooSettings": (
        "evaluate_every max_dropped_share micro_batch_size generation_batch_size "
        "gradient_checkpointing save_every sample_every sample_count doctor"
    ),
    "RolloutSettings": ("url timeout weights max_difference"),
    "EvaluateSettings": (
        "max_too_long_share batch_size tasks best_of people judges tools retrieve"
    ),
    "ComparingSettings": "title guidelines database poll_seconds",
    "HttpJudge": "timeout retries batch_size",
    "LlmJudge": (
        "key_variable max_unparsed_share max_calls max_tokens concurrency timeout retries"
    ),
}
"""Fields that change how it is computed, logged or saved alone."""

WHERE = {
    "SftSettings": {"micro_batch_size": "no_dropout", "tools": "calls_no_tools"},
    "PpoSettings": {
        "doctor": "doctor_only_tells",
        "evaluate_every": "doctor_only_tells",
        "tools": "calls_no_tools",
    },
    "RankingsSettings": {"tools": "calls_no_tools"},
    "SelectSettings": {"tools": "calls_no_tools"},
    "EvaluateSettings": {
        "tasks": "asks_nothing",
        "best_of": "draws_no_pool",
        "people": "asks_nobody",
        "judges": "asks_nobody_else",
        "tools": "calls_no_tools",
        "retrieve": "reads_nothing",
    },
}
"""Fields that do so under a condition, with the property that tells it."""


def nested(annotation: Any) -> list[type[Settings]]:
    """Return the classes of settings inside an annotation."""
    own = isinstance(annotation, type) and issubclass(annotation, Settings)
    return [annotation] * own + [c for part in get_args(annotation) for c in nested(part)]


def classes() -> dict[str, type[Settings]]:
    """Return the settings of all kinds of stage, and those inside them, by their names."""
    found: dict[str, type[Settings]] = {}
    waiting: list[type[Settings]] = [stage_kind(name).settings for name in STAGE_MODULES]
    while waiting:
        one = waiting.pop()
        if one.__name__ not in found:
            found[one.__name__] = one
            waiting += [c for info in one.model_fields.values() for c in nested(info.annotation)]
    return found


def marks(one: type[Settings]) -> dict[str, SameResult]:
    return {
        name: mark
        for name, info in one.model_fields.items()
        for mark in info.metadata
        if isinstance(mark, SameResult)
    }


def test_all_kinds_of_settings_are_listed() -> None:
    assert set(classes()) == set(RESULT) and set(SAME) <= set(RESULT)


@pytest.mark.parametrize("name", RESULT)
def test_every_field_has_its_class(name: str) -> None:
    one = classes()[name]
    same, result = SAME.get(name, "").split(), RESULT[name].split()
    assert set(marks(one)) == set(same)
    assert set(one.model_fields) == {*same, *result}
    assert {n: m.where for n, m in marks(one).items() if m.where} == WHERE.get(name, {})
    for mark in marks(one).values():
        assert mark.where is None or isinstance(getattr(one, mark.where), property)


def test_places_inside_lists_mappings_and_parts_are_left_out() -> None:
    from pipeline.stages.ppo.settings import PpoSettings

    settings = PpoSettings(
        policy="./p",
        reward=[{"url": "http://h/a", "retries": 2}, {"rule": "length", "options": {"retries": 1}}],
        prompts=[{"path": "a"}, {"path": "b", "max_bad_share": 0.5}],
    )
    key = settings.key_settings()
    assert [set(term) & {"retries", "url", "options"} for term in key["reward"]] == [
        {"url", "options"}
    ] * 2
    assert key["reward"][1]["options"] == {"retries": 1}
    assert key["prompts"][1]["path"] == "b" and "max_bad_share" not in key["prompts"][1]
    beside = beside_result(settings)
    assert beside["prompts.1.max_bad_share"] == 0.5 and beside["reward.0.retries"] == 2
    assert beside["doctor"]["window"] == 5
    ends = PpoSettings(**{**settings.model_dump(), "doctor": {"on_alarm": "best"}})
    assert "doctor" not in same_result(ends) and "doctor" in ends.key_settings()


def test_what_is_left_out_is_left_out_by_its_whole_place() -> None:
    content = {"a": 1, "b": [{"a": 2, "c": 3}], "a.b": 4}
    assert without(content, ["b.0.a"]) == {"a": 1, "b": [{"c": 3}], "a.b": 4}
    assert without(content, ["a", "b.1.c"]) == {"b": [{"a": 2, "c": 3}], "a.b": 4}


def test_a_kind_of_its_own_need_not_mark_anything() -> None:
    class Plain(StageSettings):
        kind: str = "plain"
        size: int = 3

    assert Plain(seed=4).key_settings() == {"kind": "plain", "size": 3}
