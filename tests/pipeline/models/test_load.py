"""What a checkpoint's configuration and tokenizer are found by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from data.errors import ModelError
from pipeline.models.load import load_config, load_tokenizer, load_value_model, require_rows


def write_gguf(path: Path, *, context: int) -> Path:
    """Write the header of a Llama of one layer, without weights."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(context)
    writer.add_embedding_length(16)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(100)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_configuration_of_a_gguf_file_is_read(tmp_path: Path) -> None:
    config = load_config(write_gguf(tmp_path / "m.gguf", context=48))
    assert (config.max_position_embeddings, config.hidden_size) == (48, 16)


def test_the_configuration_of_a_folder_is_read(save_policy: Any, tiny_tokenizer: Any) -> None:
    folder = save_policy(tiny_tokenizer(), context=32)
    assert load_config(str(folder)).max_position_embeddings == 32


@pytest.mark.parametrize("place", ["./nowhere", "./nothing.gguf"])
def test_a_configuration_that_is_not_there_is_an_error_of_ours(place: str) -> None:
    with pytest.raises(ModelError, match="no such"):
        load_config(place)


def test_a_tokenizer_may_be_smaller_but_not_larger_than_the_embedding(
    tiny_tokenizer: Any, tiny_policy: Any, save_policy: Any
) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_policy(tokenizer)
    require_rows(model, load_tokenizer(save_policy(tokenizer)), "here")
    tokenizer.add_tokens(["<|extra|>"])
    with pytest.raises(ModelError, match="here: the tokenizer has 321 tokens"):
        require_rows(model, tokenizer, "here")


def last_value(source: Path, ids: list[int]) -> float:
    """Return what a value model that starts from a checkpoint says after the last token."""
    with torch.no_grad():
        return float(load_value_model(source)(torch.tensor([ids])).logits[0, -1, 0])


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2", "gpt_neox"])
def test_a_value_model_starts_with_the_head_and_the_bias_of_a_reward_model(
    save_policy: Any, tiny_tokenizer: Any, tmp_path: Path, architecture: str
) -> None:
    from reward.learned.model import RewardModel

    base = save_policy(tiny_tokenizer(), architecture=architecture)
    reward = RewardModel.start(base, seed=3)
    reward.set_bias(2.5)
    reward.save(tmp_path / "reward")
    ids = reward.encoder.encode("Who is the baker?", "Ada Finch.", ended=True)
    (score,) = reward.score(["Who is the baker?"], ["Ada Finch."])
    assert abs(score - 2.5) > 0.05  # the head says something
    assert last_value(tmp_path / "reward", ids) == pytest.approx(score, abs=1e-5)
    assert last_value(base, ids) == 0.0  # a policy has no such head


def test_dropout_is_off_where_an_architecture_keeps_its_share_itself(
    tmp_path: Path, tiny_tokenizer: Any
) -> None:
    from transformers import OPTConfig, OPTForCausalLM

    from pipeline.models.load import load_policy

    config = OPTConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=24,
        word_embed_proj_dim=16, dropout=0.3, attention_dropout=0.3, layerdrop=0.5,
    )  # fmt: skip
    OPTForCausalLM(config).save_pretrained(tmp_path)
    model = load_policy(tmp_path).train()
    ids = torch.arange(4, 12)[None]
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
