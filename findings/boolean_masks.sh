#!/usr/bin/env bash
# transformers 5.23: a boolean mask of four dimensions masks nothing under eager attention.
#
# A mask (batch, 1, tokens, tokens) of booleans, True where a token is seen, is what SDPA takes. Eager
# attention adds the mask to the scores: True becomes 1 and False 0, so that each token sees all others,
# the later ones too. The model runs and trains, with a loss that is too good. There is no error and no
# warning. Architectures that have eager attention alone have no other way to take such a mask than as
# floats of 0 and minus infinity.
#
# Seen with transformers 5.23.0, torch 2.13.0 (change of the first three tokens' logits when the fourth
# token of four is another one; the mask is lower triangular):
#   llama sdpa   boolean  unchanged
#   llama eager  boolean  changed
#   llama eager  floats   unchanged
#   gptj  eager  boolean  changed
#
# Exits 0 while this is so, 1 once a boolean mask hides later tokens or is refused.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "torch==2.13.0"
"$folder/venv/bin/pip" install --quiet "transformers==5.23.0"
cd "$folder"
HF_HOME="$folder/cache" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from transformers import AutoModelForCausalLM, GPTJConfig, LlamaConfig

LLAMA = LlamaConfig(
    vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2,
)
GPTJ = GPTJConfig(
    vocab_size=16, n_embd=16, n_layer=2, n_head=2, rotary_dim=4, n_positions=16, bos_token_id=1,
    eos_token_id=2,
)


def leaks(config, attention, kind):
    """Tell whether the first three tokens' logits change with the fourth token."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    seen = torch.ones(4, 4, dtype=torch.bool).tril()[None, None]
    mask = seen if kind == "boolean" else torch.zeros(1, 1, 4, 4).masked_fill(~seen, float("-inf"))
    with torch.no_grad():
        first, second = (
            model(input_ids=torch.tensor([ids]), attention_mask=mask, use_cache=False).logits[:, :3]
            for ids in ([1, 2, 3, 4], [1, 2, 3, 5])
        )
    return not torch.allclose(first, second, atol=1e-6)


found = {}
for name, config, attention, kind in (
    ("llama", LLAMA, "sdpa", "boolean"),
    ("llama", LLAMA, "eager", "boolean"),
    ("llama", LLAMA, "eager", "floats"),
    ("gptj", GPTJ, "eager", "boolean"),
):
    found[name, attention, kind] = leaks(config, attention, kind)
    print(f"{name:5}  {attention:5}  {kind:7}  {'changed' if found[name, attention, kind] else 'unchanged'}")
sys.exit(list(found.values()) != [False, True, False, True])
PYTHON
