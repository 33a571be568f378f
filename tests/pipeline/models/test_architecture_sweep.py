"""What architectures of transformers do with masks, packed documents, caches and padding.

Tiny untrained models of many families, those with attention of their own, without a cache, with
recurrent states and with sliding windows among them. Whatever form and memory a trial finds is held
against rows by themselves.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import transformers

from data.errors import ModelError
from pipeline.generation.generate import Sampling, generate, stream
from pipeline.generation.trial import fitting_memory
from pipeline.models.load import context_length
from pipeline.models.trials import gap, require_causal
from pipeline.training.objectives.causal import (
    Documents,
    find_documents,
    next_token_batch,
    next_token_logits,
)

VOCABULARY = 48
IDS: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ROTARY = IDS | {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
GPT: dict[str, Any] = IDS | {
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "n_inner": 48,
}
GPT |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
PLAIN = IDS | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WINDOW = ROTARY | {"sliding_window": 4}
DEPTH = IDS | {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48, "dropout": 0.0}
MAMBA = IDS | {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
CHUNK = {"chunk_size": 8}
"""Tokens that a scan takes at once, to which it fills rows up; 256 by itself."""
MIXER = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
LINEAR = {"linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
MIXED = {"layer_types": ["linear_attention", "full_attention"]}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}

SWEEP: dict[str, tuple[dict[str, Any], str | None]] = {
    # Positions that start anew are enough.
    "Llama": (ROTARY, "positions"),
    "Mistral": (WINDOW, "positions"),
    "Mixtral": (ROTARY | EXPERTS, "positions"),
    "Qwen2": (ROTARY, "positions"),
    "Qwen3": (ROTARY, "positions"),
    "Gemma": (ROTARY, "positions"),
    "Gemma2": (WINDOW, "positions"),
    "Gemma3Text": (WINDOW, "positions"),
    "GPT2": (GPT, "positions"),
    "GPTBigCode": (GPT, "positions"),
    "GPTNeoX": (ROTARY, "positions"),
    "GPTJ": (GPT | {"rotary_dim": 4}, "positions"),
    "CodeGen": (GPT | {"rotary_dim": 4}, "positions"),
    "GPTNeo": (
        IDS | {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 64,
               "attention_types": [[["global", "local"], 1]], "window_size": 4},
        "positions",
    ),
    "Phi": (ROTARY, "positions"),
    "Phi3": (ROTARY, "positions"),
    "StableLm": (ROTARY, "positions"),
    "Olmo2": (ROTARY, "positions"),
    "Cohere2": (WINDOW, "positions"),
    "ModernBertDecoder": (ROTARY | {"local_attention": 4}, "positions"),
    # A mask is obeyed, of true and false or of numbers.
    "OPT": (PLAIN | {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
            "boolean"),
    "Falcon": (PLAIN | {"alibi": False, "max_position_embeddings": 64}, "boolean"),
    "BioGpt": (ROTARY | {"max_position_embeddings": 64}, "boolean"),
    "XGLM": (DEPTH | {"max_position_embeddings": 64}, "additive"),
    "Mpt": (IDS | {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}, "additive"),
    "GptOss": (WINDOW | EXPERTS, "layers"),
    # Documents of a row see each other whatever is given.
    "Bloom": (IDS | {"hidden_size": 32, "n_layer": 2, "n_head": 4}, None),
    "OpenAIGPT": (GPT, None),
    "Mamba": (MAMBA, None),
    "FalconMamba": (MAMBA, None),
    "Mamba2": (MAMBA | {"num_heads": 8, "head_dim": 8, "n_groups": 2} | CHUNK, None),
    "RecurrentGemma": (
        ROTARY | {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 8}, None
    ),
    "Jamba": (
        ROTARY | {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2,
                  "num_experts_per_tok": 1, "mamba_d_state": 8, "use_mamba_kernels": False},
        None,
    ),
    "Bamba": (ROTARY | MIXER | {"attn_layer_indices": [1], "mamba_chunk_size": 8}, None),
    "Zamba2": (
        ROTARY | CHUNK | {"num_hidden_layers": 3, "mamba_d_state": 8, "n_mamba_heads": 8,
                  "mamba_headdim": 8, "mamba_ngroups": 1, "adapter_rank": 4,
                  "layers_block_type": ["mamba", "hybrid", "mamba"], "hybrid_layer_ids": [1]},
        None,
    ),
    "NemotronH": (
        ROTARY | CHUNK | {"num_hidden_layers": 3, "hybrid_override_pattern": "M*-",
                          "mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 8,
                          "n_groups": 1},
        None,
    ),
    "Rwkv": (
        IDS | {"hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2,
               "context_length": 64, "intermediate_size": 48},
        None,
    ),
    "Lfm2": (ROTARY | {"layer_types": ["conv", "full_attention"]}, None),
    "Qwen3Next": (
        ROTARY | LINEAR | MIXED | {"linear_num_key_heads": 2, "num_experts": 4,
                                   "num_experts_per_tok": 2, "moe_intermediate_size": 16,
                                   "shared_expert_intermediate_size": 16},
        None,
    ),
    "OlmoHybrid": (ROTARY | LINEAR | MIXED | {"linear_num_key_heads": 4}, None),
    "MiniMax": (
        ROTARY | MIXED | {"num_local_experts": 2, "num_experts_per_tok": 1, "block_size": 4}, None
    ),
}  # fmt: skip
WITHOUT_CACHE = {"OpenAIGPT", "RecurrentGemma", "Zamba2", "NemotronH", "Rwkv", "MiniMax"}
"""Those whose cache is of another kind, or gives other logits; what others remember is exact."""


@cache
def tiny(name: str) -> Any:
    """Return an untrained model whose tokens depend much on those before."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SWEEP[name][0])
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return model.eval()


@pytest.mark.parametrize("name", SWEEP)
@torch.no_grad()
def test_no_later_token_and_no_other_document_changes_a_logit(name: str) -> None:
    model, form = tiny(name), SWEEP[name][1]
    require_causal(model, name)
    told = find_documents(model, 15)
    assert (told.form if told is not None else None) == form
    if told is None:
        return
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, VOCABULARY, (2, 15), generator=generator)
    # The second row's documents begin elsewhere, and one has a token alone.
    numbers = torch.tensor([[0] * 4 + [1] * 11, [5] * 7 + [6] + [7] * 7])
    # As they are, and 15 times with another token at one place each.
    each = tokens.repeat(16, 1, 1)
    for place in range(15):
        each[1 + place, :, place] = (tokens[:, place] - 3 + 20) % (VOCABULARY - 3) + 3
    batch = next_token_batch(each.flatten(0, 1), numbers.repeat(16, 1), told)
    before, *changed = next_token_logits(model, batch).unflatten(0, (16, 2))
    for place in range(15):
        reached = (numbers == numbers[:, place, None]) & (torch.arange(15) >= place)
        moved = (changed[place] - before).abs().amax(-1)
        assert moved[~reached].max() < 5e-5
        assert moved[:, place].min() > 1e-3
    alone = next_token_logits(model, next_token_batch(tokens[1:, 8:]))
    torch.testing.assert_close(before[1:, 8:], alone, atol=1e-4, rtol=1e-4)


def without_cache(model: Any, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits
        ids.append(int(logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("name", SWEEP)
@torch.no_grad()
def test_a_batch_of_unequal_prompts_samples_what_each_does_without_a_cache(name: str) -> None:
    model = tiny(name)
    prompts = [[5, 6, 7, 8, 9, 10, 11], [12, 13], [20, 21, 22, 23], [30]]
    whole = [without_cache(model, prompt, 5) for prompt in prompts]
    # Ends rows at different times, so that they leave the batch and others join.
    ends = [whole[0][3], whole[3][1]]
    wanted = [
        tokens[: 1 + next((i for i, token in enumerate(tokens) if token in ends), 4)]
        for tokens in whole
    ]
    told: list[str] = []
    for slots in (2, 4):
        found = generate(
            model, prompts, sampling=Sampling(5, 0.0), eos_token_ids=ends, pad_token_id=0,
            generator=torch.Generator(), batch_size=slots, say=told.append,
        )  # fmt: skip
        assert [sample.token_ids for sample in found] == wanted
    assert len(told) == (name in WITHOUT_CACHE)
    assert (fitting_memory(model, length=9) == "none") == (name in WITHOUT_CACHE)
    streamed = stream(
        model, prompts[0], sampling=Sampling(3, 0.0), eos_token_ids=[], generator=torch.Generator()
    )
    assert [token.id for token in streamed] == whole[0][:3]


def test_an_encoder_is_refused_in_one_sentence() -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(**PLAIN, intermediate_size=48)
    model = transformers.BertLMHeadModel(config).eval()
    with pytest.raises(ModelError, match="later tokens change what is said of earlier ones"):
        require_causal(model, "bert")
    with pytest.raises(ModelError, match="BertLMHeadModel, can't be sampled from"):
        generate(
            model, [[5, 6]], sampling=Sampling(2), eos_token_ids=[], pad_token_id=0,
            generator=torch.Generator(),
        )  # fmt: skip
    assert find_documents(model, 15) is None


def test_a_mask_for_all_layers_would_lift_a_sliding_window() -> None:
    # A window that no row is longer than, or one that the model's own masks keep.
    model = tiny("GptOss")
    assert find_documents(model, 15) == Documents("layers", window=4)
    windowed = tiny("Mpt")
    windowed.config.sliding_window = 8
    try:
        assert find_documents(windowed, 15) is None
        assert find_documents(windowed, 8) == Documents("additive")
    finally:
        del windowed.config.sliding_window


@pytest.mark.parametrize("name", ["XGLM", "Mpt", "GptOss", "Gemma2"])
@torch.no_grad()
def test_masks_hold_in_mixed_precision(name: str) -> None:
    model = tiny(name)
    told = find_documents(model, 12)
    assert told is not None
    tokens = torch.randint(3, VOCABULARY, (1, 12), generator=torch.Generator().manual_seed(1))
    numbers = torch.tensor([[0] * 5 + [1] * 7])
    other = torch.cat([tokens[:, :5].flip(1), tokens[:, 5:]], dim=1)
    later = torch.cat([tokens[:, :-1], 50 - tokens[:, -1:].clamp(min=3)], dim=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        first, second, third = (
            next_token_logits(model, next_token_batch(ids, numbers, told))
            for ids in (tokens, other, later)
        )
    assert torch.equal(first[:, 5:], second[:, 5:])
    assert torch.equal(first[:, :-1], third[:, :-1])
    assert not torch.equal(first, third)


def built(config: Any) -> Any:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return model.eval()


@torch.no_grad()
def test_a_window_that_a_cache_ignores_is_found_as_soon_as_rows_outgrow_it() -> None:
    own = {"sliding_window": 16, "ffn_dim": 48, "num_codebooks": 2}
    model = built(transformers.MoshiConfig(**ROTARY | own))
    assert fitting_memory(model, length=8) == "window"  # where the window does nothing
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in (30, 4)]
    told: list[str] = []
    for _ in range(2):
        found = generate(
            model, prompts, sampling=Sampling(6, 0.0), eos_token_ids=[], pad_token_id=0,
            generator=torch.Generator(), say=told.append,
        )  # fmt: skip
        assert [sample.token_ids for sample in found] == [
            without_cache(model, prompt, 6) for prompt in prompts
        ]
    assert len(told) == 1


def test_a_choice_of_tokens_among_all_documents_is_found_in_rows_longer_than_the_choice() -> None:
    config = transformers.HYV4Config(
        **ROTARY | {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4,
                    "qk_nope_head_dim": 4, "v_head_dim": 8, "index_head_dim": 8,
                    "index_n_heads": 2, "index_topk": 16, "n_routed_experts": 4,
                    "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    )  # fmt: skip
    model = built(config)
    assert find_documents(model, 16) == Documents("positions")
    assert find_documents(model, 60) is None


@pytest.mark.parametrize("name", ["Roberta", "Mpt"])
@torch.no_grad()
def test_a_context_is_as_many_tokens_as_a_model_takes(name: str) -> None:
    own = {"is_decoder": True, "intermediate_size": 48, "max_position_embeddings": 34}
    config = transformers.MptConfig(**SWEEP["Mpt"][0] | {"max_seq_len": 33})
    if name == "Roberta":
        config = transformers.RobertaConfig(**PLAIN | own)
    model = built(config)
    length = context_length(model)
    assert length == 33
    prompts = [[5] * length, [7, 8, 9]]
    assert model(input_ids=torch.tensor(prompts[:1])).logits.shape[1] == length
    with pytest.raises(ModelError, match="prompt 0 has 33 tokens"):
        generate(
            model, prompts, sampling=Sampling(2), eos_token_ids=[], pad_token_id=0,
            generator=torch.Generator(),
        )  # fmt: skip
    found = generate(
        model, [prompts[0][2:], prompts[1]], sampling=Sampling(9), eos_token_ids=[],
        pad_token_id=0, generator=torch.Generator(),
    )  # fmt: skip
    assert [len(sample.token_ids) for sample in found] == [2, 9]


def test_one_token_in_a_hundred_may_be_sent_to_another_expert() -> None:
    wanted = torch.ones(250, 3)
    found = wanted.clone()
    found[[5, 70]] += 1
    assert gap(found, wanted) == 1
    assert gap(found, wanted, spared=2) == 0
    found[200] -= 0.5
    assert gap(found, wanted, spared=2) == 0.5
    found[9] = torch.nan
    assert gap(found, wanted, spared=4) == float("inf")
