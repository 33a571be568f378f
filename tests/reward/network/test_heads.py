"""Reward models from checkpoints without a head, or with one of several layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from data.errors import ModelError
from reward.learned.model import RewardModel
from reward.network.loading import head_weights

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
SMALL = {**SIZES, "intermediate_size": 32, "max_position_embeddings": 64, "pad_token_id": 0}
XL = {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 32, "pad_token_id": 0}
BARE = {
    "modernbert": ("ModernBertModel", SMALL | {"cls_token_id": 1, "sep_token_id": 2}),
    "bert": ("BertModel", SMALL),
    "roberta": ("RobertaModel", SMALL),
    "xlnet": ("XLNetModel", XL),
    "xlnet_lm": ("XLNetLMHeadModel", XL),
    "xlm": ("XLMModel", {"emb_dim": 16, "n_layers": 1, "n_heads": 2, "pad_index": 0}),
    "distilbert": ("DistilBertModel", {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}),
    "ctrl": ("CTRLModel", {"n_embd": 16, "n_layer": 1, "n_head": 2, "dff": 32}),
}


@pytest.fixture
def bare(tmp_path: Path, pair_tokenizer: Any, tokenizer: Any) -> Callable[[str], Path]:
    """Return a builder of checkpoints as they are saved without a reward model's head."""

    def build(name: str) -> Path:
        kind, sizes = BARE[name]
        words = tokenizer if name == "ctrl" else pair_tokenizer
        built: Any = getattr(transformers, kind)
        torch.manual_seed(0)
        built(built.config_class(vocab_size=len(words), **sizes)).save_pretrained(tmp_path / name)
        words.save_pretrained(tmp_path / name)
        return tmp_path / name

    return build


@pytest.mark.parametrize("name", BARE)
def test_a_head_is_put_on_whatever_trunk_and_scores_a_text_alone_as_in_a_batch(
    bare: Callable[[str], Path], name: str, tmp_path: Path
) -> None:
    source = bare(name)
    model = RewardModel.start(source, seed=1)
    together = model.score(["who bakes?", "hi"], ["ada does it", "no"])
    assert model.score(["hi"], ["no"]) == pytest.approx(together[1:], abs=1e-5)
    assert together[0] != pytest.approx(together[1], abs=1e-6)
    # The trunk is the checkpoint's; what is new follows from the seed, and is saved with it.
    again, other = RewardModel.start(source, seed=1), RewardModel.start(source, seed=2)
    assert again.score(["hi"], ["no"]) == pytest.approx(together[1:], abs=1e-6)
    assert other.score(["hi"], ["no"]) != pytest.approx(together[1:], abs=1e-6)
    model.save(tmp_path / "saved")
    assert RewardModel.load(tmp_path / "saved").score(["hi"], ["no"]) == pytest.approx(
        together[1:], abs=1e-6
    )


def test_the_weights_of_a_head_are_told_by_what_other_heads_do_without() -> None:
    def of(name: str, **sizes: Any) -> set[str]:
        config = transformers.AutoConfig.for_model(name, num_labels=1, **sizes)
        with torch.device("meta"):
            return head_weights(transformers.AutoModelForSequenceClassification.from_config(config))

    scores = {"classifier.weight", "classifier.bias"}
    assert of("bert", **SMALL) == {"bert.pooler.dense.weight", "bert.pooler.dense.bias", *scores}
    assert of("modernbert", **SMALL) == {"head.dense.weight", "head.norm.weight", *scores}
    assert of("llama", **SMALL, num_key_value_heads=2) == {"score.weight"}


def test_weights_of_the_trunk_that_are_missing_are_no_head(
    bare: Callable[[str], Path],
) -> None:
    folder = bare("modernbert")
    trunk: Any = transformers.AutoModel.from_pretrained(folder)
    kept = {k: t for k, t in trunk.state_dict().items() if "layers.1.mlp" not in k}
    trunk.save_pretrained(folder, state_dict=kept)
    with pytest.raises(ModelError, match=r"lacks weights of ModernBert.*layers\.1\.mlp"):
        RewardModel.start(folder, seed=1)


def test_an_encoder_whose_scores_hang_on_padding_is_refused(
    tmp_path: Path, pair_tokenizer: Any
) -> None:
    config = transformers.FNetConfig(vocab_size=len(pair_tokenizer), **SMALL)
    transformers.FNetModel(config).save_pretrained(tmp_path)
    pair_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"FNetForSequenceClassification .* once it is padded"):
        RewardModel.start(tmp_path, seed=1)
