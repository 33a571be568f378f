#!/usr/bin/env bash
# transformers 5.23: BartConfig drops the forced_bos_token_id that it is given, and keeps forced_eos_token_id.
#
# Checkpoints of BART say in config.json which token generation forces to be the first of an answer
# (facebook/bart-large-cnn and its like have `forced_bos_token_id: 0`). The configuration throws it away
# without an error or a warning, as it does with all generation settings that are no field of its class,
# while `forced_eos_token_id`, a field, stays. So it depends on the way taken whether the token is forced:
# `from_pretrained` of the model reads the file itself and forces it; a model made of the configuration
# (`BartForConditionalGeneration(config)`, `AutoModel.from_config`) does not, nor does a checkpoint whose
# configuration went through `from_pretrained` and `save_pretrained` once. The same weights then begin
# their answers otherwise.
#
# Seen with transformers 5.23.0, torch 2.13.0 (the file forces token 5 first, 6 last):
#   configuration given both              forced first -     forced last 6
#   model made of the configuration       forced first -     forced last 6   second token is 5: no
#   model loaded from the file            forced first 5     forced last 6   second token is 5: yes
#   the same, its config.json saved anew  forced first -     forced last 6   second token is 5: no
#
# Exits 0 while this is so, 1 once the configuration keeps the token, or refuses it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "torch==2.13.0"
"$folder/venv/bin/pip" install --quiet "transformers==5.23.0"
cd "$folder"
HF_HOME="$folder/cache" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import json
import sys
from pathlib import Path

import torch
from transformers import BartConfig, BartForConditionalGeneration

FORCED = {"forced_bos_token_id": 5, "forced_eos_token_id": 6}
GIVEN = {
    "vocab_size": 20, "d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8,
    "decoder_ffn_dim": 8, "encoder_attention_heads": 1, "decoder_attention_heads": 1,
    "max_position_embeddings": 16, **FORCED,
}
found = {}


def told(name, settings, model=None):
    """Note what is forced, and whether an answer's second token is the one to be forced."""
    first, last = (getattr(settings, key, None) for key in FORCED)
    row = [first, last]
    line = f"{name:37} forced first {first or '-'!s:5} forced last {last or '-'}"
    if model is not None:
        answer = model.generate(torch.tensor([[3, 4]]), max_new_tokens=4, do_sample=False)
        row.append(answer[0, 1].item() == 5)
        line += f"   second token is 5: {'yes' if row[-1] else 'no'}"
    print(line)
    found[name] = row


def loaded():
    """Load the model from the folder, whose file of generation settings is not there, as of old."""
    Path("model/generation_config.json").unlink(missing_ok=True)
    return BartForConditionalGeneration.from_pretrained("model").eval()


torch.manual_seed(0)
config = BartConfig(**GIVEN)
told("configuration given both", config)
model = BartForConditionalGeneration(config).eval()
told("model made of the configuration", model.generation_config, model)
model.save_pretrained("model")
path = Path("model/config.json")
path.write_text(json.dumps(json.loads(path.read_text()) | FORCED))
read = loaded()
told("model loaded from the file", read.generation_config, read)
BartConfig.from_pretrained("model").save_pretrained("model")
read = loaded()
told("the same, its config.json saved anew", read.generation_config, read)
sys.exit([*found.values()] != [[None, 6], [None, 6, False], [5, 6, True], [None, 6, False]])
PYTHON
