#!/usr/bin/env bash
# transformers 5.23: masks of the assistant's tokens where a tokenizer's offsets leave out spaces.
#
# `apply_chat_template(..., return_assistant_tokens_mask=True)` looks up the first and the last
# character of each `{% generation %}` block by `char_to_token`. Where a byte-level tokenizer trims
# its offsets (`ByteLevel(trim_offsets=True)`, as RoBERTa does) a space
# belongs to no token. A block that begins with a space then ends the search, so that this answer
# and all behind it are left out; a block that ends with a space marks everything up to the end of
# the chat, the user's turns too. There is no warning; the ids are the same with both settings.
#
# Seen with transformers 5.23.0, tokenizers 0.23.3, jinja2 3.1.6 (marked text, answers 'yes', 'no'):
#   space first  trim_offsets=False  ' yes<|end|> no<|end|>'
#   space first  trim_offsets=True   ''
#   space last   trim_offsets=False  'yes no '
#   space last   trim_offsets=True   'yes <|end|><|user|>and<|end|><|assistant|>no <|end|>'
#
# Exits 0 while this is so, 1 once both settings have the same marked.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "transformers==5.23.0" "tokenizers==0.23.3" "jinja2==3.1.6"
cd "$folder"
HF_HOME="$folder/cache" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import sys

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<|end|>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}BLOCK"
    "{% else %}{{ m.content }}<|end|>{% endif %}{% endfor %}"
)
BLOCKS = {
    "space first": "{% generation %} {{ m.content }}<|end|>{% endgeneration %}",
    "space last": "{% generation %}{{ m.content }} {% endgeneration %}<|end|>",
}
CHAT = [
    {"role": "user", "content": "who"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "and"},
    {"role": "assistant", "content": "no"},
]


def marked(block, trim):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: number for number, word in enumerate([*SPECIAL, *letters])}
    made = Tokenizer(models.BPE(words, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=trim)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token=SPECIAL[0], additional_special_tokens=SPECIAL[1:]
    )
    tokenizer.chat_template = TEMPLATE.replace("BLOCK", block)
    out = tokenizer.apply_chat_template(CHAT, return_assistant_tokens_mask=True, return_dict=True)
    pairs = zip(out["input_ids"], out["assistant_masks"])
    return tokenizer.decode([token for token, mine in pairs if mine])


found = {}
for name, block in BLOCKS.items():
    for trim in (False, True):
        found[name, trim] = marked(block, trim)
        print(f"{name:11}  trim_offsets={trim!s:5}  {found[name, trim]!r}")
whole = "yes <|end|><|user|>and<|end|><|assistant|>no <|end|>"
sys.exit((found["space first", True], found["space last", True]) != ("", whole))
PYTHON
