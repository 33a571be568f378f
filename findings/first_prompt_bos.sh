#!/usr/bin/env bash
# lm-eval 0.4.13: the first prompt of a batch decides for all whether bos is put in front.
#
# `HFLM.generate_until` tokenises a batch of prompts at once. It looks whether the first of them, which
# is the longest, begins with the text of the bos token, and if it does it adds bos to none. A prompt
# beside it that does not begin so is then asked without bos, and greedy decoding gives another answer
# than it gives alone or in another batch; where the first does not begin so, one that does gets two.
# Log-likelihoods look at each text by itself. There is no warning.
#
# Seen with lm_eval 0.4.13, transformers 5.23.0 (ids of "who bakes"; bos is 0, padding 1):
#   alone                              [0, 3, 5]     answered w54 w50 w50 w50 w50 w50
#   beside "where lives where lives"   [0, 3, 5]     answered w54 w50 w50 w50 w50 w50
#   beside "<s> where lives where ..." [3, 5]        answered w49 w53 w50 w22 w46 w29
#
# Exits 0 while this is so, 1 once a prompt is answered alike whatever stands beside it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "torch==2.13.0"
"$folder/venv/bin/pip" install --quiet "lm_eval==0.4.13" "transformers==5.23.0" "accelerate==1.15.0" "peft==0.21.2"
cd "$folder"
HF_HOME="$folder/cache" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

words = ["<s>", "</s>", "<unk>", "who", "where", "bakes", "lives", *(f"w{n}" for n in range(57))]
word_level = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, "<unk>"))
word_level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
word_level.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=word_level,
    bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="<unk>",
)
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=2, initializer_range=0.5,
    bos_token_id=0, eos_token_id=1, pad_token_id=1,
)
model = LlamaForCausalLM(config).eval()
lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2, device="cpu")


def answer(*prompts):
    given = {"until": [], "max_gen_toks": 6}
    requests = [
        Instance("generate_until", {}, (prompt, given), place)
        for place, prompt in enumerate(prompts)
    ]
    return lm.generate_until(requests, disable_tqdm=True)[0]


alone = answer("who bakes")
beside = answer("who bakes", "where lives where lives")
typed = answer("who bakes", "<s> where lives where lives")
print("alone                         ", alone)
print("beside a prompt without bos   ", beside)
print("beside a prompt that begins so", typed)
ids = lm.tok_batch_encode(["<s> where lives", "who bakes"])[0]
print("ids of both                   ", ids.tolist())
sys.exit(not (alone == beside != typed))
PYTHON
