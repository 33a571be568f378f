from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import pipeline.rl.policy as modules
from data.errors import ModelError
from pipeline.models.trials import require_causal
from pipeline.rl.maths.masking import length_mask
from pipeline.rl.policy import Policy, ValueModel

SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 30}


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**SHAPE, intermediate_size=24, initializer_range=0.5))


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=30, n_embd=16, n_layer=1, n_head=2, n_positions=32,
            resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=1, eos_token_id=1,
        )
    )  # fmt: skip


def qwen2() -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(**SHAPE, intermediate_size=24, num_key_value_heads=2))


def neox() -> Any:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    return GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPE, intermediate_size=24))


def capped() -> Any:
    """A model whose logits are not the head's output: it caps them."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    return Gemma2ForCausalLM(
        Gemma2Config(
            **SHAPE, intermediate_size=24, num_key_value_heads=2, head_dim=8,
            final_logit_softcapping=0.1, initializer_range=0.5,
        )
    )  # fmt: skip


ROWS = [([3, 4, 5], [6, 7, 8, 9]), ([9], [8]), ([11, 12], [13, 14])]


def padded() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    width = max(len(p) + len(r) for p, r in ROWS)
    ids = torch.tensor([p + r + [0] * (width - len(p) - len(r)) for p, r in ROWS])
    lengths = torch.tensor([len(r) for _, r in ROWS])
    return ids, torch.tensor([len(p) for p, _ in ROWS]), length_mask(lengths_B=lengths, size=4)


@pytest.mark.parametrize("build", [llama, gpt2, qwen2, neox, capped])
def test_logprobs_are_those_of_each_row_alone(build: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    model = build().eval()
    policy = Policy(model)
    with torch.no_grad():
        found = policy(*padded(), 0.7, True)
        for row, (prompt, response) in enumerate(ROWS):
            whole = model(torch.tensor([prompt + response])).logits[0] / 0.7
            logprobs = whole.log_softmax(-1)
            for step, token in enumerate(response):
                place = len(prompt) + step - 1
                assert found.logprobs_BT[row, step].item() == pytest.approx(
                    logprobs[place, token].item(), abs=1e-5
                )
                entropy = torch.distributions.Categorical(logits=whole[place]).entropy()
                assert found.entropies_BT[row, step].item() == pytest.approx(
                    entropy.item(), abs=1e-5
                )
            assert not found.logprobs_BT[row, len(response) :].any()


def test_capped_logits_are_called_whole() -> None:
    torch.manual_seed(0)
    assert not Policy(capped())._hidden_first
    assert Policy(llama())._hidden_first
    small = capped()
    for parameter in small.parameters():
        parameter.data.mul_(0.001)  # the cap does nothing to logits as small as these
    assert not Policy(small)._hidden_first
    with pytest.raises(ModelError, match="no plain output head"):
        Policy(capped(), torch.nn.Linear(16, 1))


@pytest.mark.parametrize("build", [llama, capped])
def test_pieces_change_neither_logprobs_nor_gradients(
    build: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = build()

    def gradients() -> tuple[torch.Tensor, torch.Tensor]:
        model.zero_grad()
        found = Policy(model)(*padded(), 0.7, True)
        (found.logprobs_BT.sum() + found.entropies_BT.sum()).backward()
        return found.logprobs_BT.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])

    whole = gradients()
    monkeypatch.setattr(modules, "LOGITS_AT_ONCE", 60)  # two tokens of a vocabulary of 30
    for a, b in zip(gradients(), whole, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_values_are_those_before_each_token() -> None:
    from transformers import LlamaConfig, LlamaForTokenClassification

    torch.manual_seed(0)
    model = LlamaForTokenClassification(LlamaConfig(**SHAPE, intermediate_size=24, num_labels=1))
    model.eval()
    with torch.no_grad():
        found = ValueModel(model)(*padded())
        for row, (prompt, response) in enumerate(ROWS):
            for step in range(len(response)):
                seen = torch.tensor([prompt + response[:step]])
                assert found[row, step].item() == pytest.approx(
                    model(seen).logits[0, -1, 0].item(), abs=1e-5
                )


def test_a_head_on_the_trunk_sees_the_state_before_each_token() -> None:
    torch.manual_seed(0)
    model, head = llama().eval(), torch.nn.Linear(16, 1)
    with torch.no_grad():
        found = Policy(model, head)(*padded()).values_BT
        prompt, response = ROWS[0]
        hidden = model.model(torch.tensor([prompt + response[:2]]))[0]
        assert found is not None
        assert found[0, 2].item() == pytest.approx(head(hidden[0, -1]).item(), abs=1e-5)


def test_models_that_see_later_tokens_are_refused() -> None:
    from transformers import BertConfig, BertForTokenClassification

    torch.manual_seed(0)
    require_causal(llama(), "fine")
    encoder = BertForTokenClassification(BertConfig(**SHAPE, intermediate_size=24, num_labels=1))
    torch.nn.init.normal_(encoder.classifier.weight)
    with pytest.raises(ModelError, match="use a causal language model"):
        require_causal(encoder, "bert")


def test_activations_are_made_again_in_layers_whose_routers_draw_nothing() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    from pipeline.generation.generate import Sampling, generate
    from pipeline.rl.ppo.build import _checkpoint_activations

    torch.manual_seed(0)
    model = MixtralForCausalLM(
        MixtralConfig(
            **SHAPE, intermediate_size=24, num_key_value_heads=2, num_local_experts=4,
            router_jitter_noise=0.3, initializer_range=0.5,
        )
    ).eval()  # fmt: skip
    ids = torch.arange(3, 15)[None]
    plain = model(input_ids=ids).logits
    _checkpoint_activations(model, when=True)
    generate(
        model, [[3, 4]], sampling=Sampling(2), eos_token_ids=[], pad_token_id=0,
        generator=torch.Generator(),
    )  # fmt: skip
    assert all(layer.training for layer in model.model.layers)
    torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, plain)
