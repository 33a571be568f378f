"""Broken checkpoints: cut weights, configurations of another kind, junk tokenizers, templates."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Change = Callable[[Path], object]
WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
TEMPLATE, GENERATION = "chat_template.jinja", "generation_config.json"
SHARD = "model-00001-of-00001.safetensors"
DEEP = "[" * 100_000 + "]" * 100_000
GONE = object()


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A folder with a tiny policy, `policy`, and a trained reward model, `reward`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    folder = tmp_path_factory.mktemp("whole")
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "pad_token_id": 0, "eos_token_id": 6,
    }  # fmt: skip
    policy = LlamaForCausalLM(LlamaConfig(**shape))
    reward = LlamaForSequenceClassification(
        LlamaConfig(**shape, num_labels=1, reward_head_trained=True)
    )
    for name, model in (("policy", policy), ("reward", reward)):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def broken(whole: Path, tmp_path: Path) -> Callable[..., None]:
    """Return what puts a changed copy into the working folder as `ck`: broken(change, "policy")."""

    def build(change: Change, kind: str = "policy") -> None:
        shutil.copytree(whole / kind, tmp_path / "ck")
        change(tmp_path / "ck")

    return build


def put(name: str, content: str | bytes) -> Change:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def cut(name: str, share: float) -> Change:
    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(share * len(content))])

    return change


def keys(name: str, **values: Any) -> Change:
    def change(folder: Path) -> None:
        held = {**json.loads((folder / name).read_text()), **values}
        held = {key: value for key, value in held.items() if value is not GONE}
        (folder / name).write_text(json.dumps(held))

    return change


def config(**values: Any) -> Change:
    return keys(CONFIG, **values)


def vocabulary(**values: Any) -> Change:
    def change(folder: Path) -> None:
        held = json.loads((folder / TOKENIZER).read_text())
        held["model"].update(values)
        (folder / TOKENIZER).write_text(json.dumps(held))

    return change


def header(content: object, body: bytes = b"") -> Change:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return put(WEIGHTS, struct.pack("<Q", len(text)) + text + body)


def tensor(part: str, new: Callable[[Any], Any]) -> Change:
    """Replace the first tensor of this name; None takes it out."""

    def change(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        held = {name: value.clone() for name, value in load_file(folder / WEIGHTS).items()}
        name = next(name for name in held if part in name)
        made = new(held.pop(name))
        save_file(
            held if made is None else {**held, name: made}, folder / WEIGHTS, {"format": "pt"}
        )

    return change


def first(value: float) -> Callable[[Any], Any]:
    def new(held: Any) -> Any:
        held.view(-1)[0] = value
        return held

    return new


def shards(target: object = SHARD, **index: Any) -> Change:
    """Put the weights into one shard, with an index that says where each is."""

    def change(folder: Path) -> None:
        from safetensors.torch import load_file

        names = list(load_file(folder / WEIGHTS))
        (folder / WEIGHTS).rename(folder / SHARD)
        held = {"metadata": {}, "weight_map": dict.fromkeys(names, target), **index}
        (folder / INDEX).write_text(json.dumps(held))

    return change


def both(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


def without(*names: str) -> Change:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def as_folder(name: str) -> Change:
    return both(without(name), lambda folder: (folder / name).mkdir())


def linked(name: str, target: str) -> Change:
    return both(without(name), lambda folder: (folder / name).symlink_to(target))


def template(text: str) -> Change:
    return put(TEMPLATE, text)


POLICIES: dict[str, tuple[Change, tuple[str, ...]]] = {
    # weights
    "weights empty": (put(WEIGHTS, b""), (WEIGHTS, "no whole safetensors", "again")),
    "weights junk": (put(WEIGHTS, b"junk" * 99), (WEIGHTS, "no whole safetensors")),
    "weights cut": (cut(WEIGHTS, 0.5), (WEIGHTS, "no whole safetensors")),
    "weights cut in the header": (cut(WEIGHTS, 0.01), (WEIGHTS, "no whole safetensors")),
    "header of 2**63 bytes": (put(WEIGHTS, struct.pack("<Q", 2**63) + b"{}"), (WEIGHTS, "header")),
    "header of 99 MB": (put(WEIGHTS, struct.pack("<Q", 99_000_000) + b"{}"), (WEIGHTS, "header")),
    "header of no bytes": (put(WEIGHTS, struct.pack("<Q", 0)), (WEIGHTS, "header")),
    "header a list": (header([]), (WEIGHTS, "header")),
    "header deep": (header(DEEP.encode()), (WEIGHTS, "header")),
    "header of another type": (
        header({"a": {"dtype": "Q9", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
        (WEIGHTS, "Q9"),
    ),
    "header with a negative shape": (
        header({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, bytes(8)),
        (WEIGHTS, "-2"),
    ),
    "header beyond the file": (
        header({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}, bytes(8)),
        (WEIGHTS, "no whole safetensors"),
    ),
    "weights of something else": (
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
        ("ck lacks the weights",),
    ),
    "weights a folder": (as_folder(WEIGHTS), (WEIGHTS, "is no file")),
    "weights a dead link": (linked(WEIGHTS, "nowhere"), (WEIGHTS, "is no file")),
    "weights gone": (without(WEIGHTS), ("holds no model.safetensors", "save_pretrained")),
    "weights a pickle": (
        both(without(WEIGHTS), put("pytorch_model.bin", b"cos\nsystem\n.")),
        ("pytorch_model.bin is a pickle", "safetensors"),
    ),
    "a weight gone": (tensor("q_proj", lambda held: None), ("ck lacks", "q_proj.weight")),
    "a weight of fewer rows": (
        tensor("q_proj", lambda held: held[:3].contiguous()), ("q_proj", "3 x 16", "16 x 16"),
    ),
    "an embedding of fewer rows": (
        tensor("embed_tokens", lambda held: held[:30].contiguous()), ("embed_tokens", "30 x 16"),
    ),
    "a weight of one number": (
        tensor("q_proj", lambda held: held[0, 0].clone()), ("q_proj", "one number"),
    ),
    "a weight NaN": (tensor("q_proj", first(float("nan"))), ("q_proj.weight holds NaN",)),
    "a norm NaN": (tensor("input_layernorm", first(float("nan"))), ("holds NaN",)),
    "a weight infinite": (tensor("o_proj", first(float("inf"))), ("o_proj.weight", "infinity")),
    "a weight beyond fp32": (
        tensor("o_proj", lambda held: held.double() + 1e300), ("o_proj.weight", "infinity"),
    ),
    # index
    "a shard gone": (both(shards(), without(SHARD)), (INDEX, SHARD, "not there")),
    "a shard outside": (shards("../x.safetensors"), (INDEX, "../x.safetensors", "outside")),
    "a shard at the root": (shards("/x.safetensors"), (INDEX, "outside")),
    "a shard no safetensors": (shards("/etc/passwd"), (INDEX, "/etc/passwd")),
    "a shard a number": (shards(3), (INDEX, "names 3")),
    "a shard of no name": (shards(""), (INDEX, "''")),
    "a shard with a zero byte": (shards("a\0.safetensors"), (INDEX, "no .safetensors")),
    "index no JSON": (both(shards(), put(INDEX, "{")), (INDEX, "is no JSON")),
    "index a list": (both(shards(), put(INDEX, "[]")), (INDEX, "holds []")),
    "index deep": (both(shards(), put(INDEX, DEEP)), (INDEX, "too deeply")),
    "index no text": (both(shards(), put(INDEX, b"\xff\xfe")), (INDEX, "is no JSON")),
    "index of a list": (shards(weight_map=[]), (INDEX, "weight_map is []")),
    "index of nothing": (shards(weight_map={}), (INDEX, "names no file")),
    "index of null": (shards(weight_map=None), (INDEX, "names no file")),
    # configuration
    "config empty": (put(CONFIG, ""), (CONFIG, "is no JSON")),
    "config cut": (cut(CONFIG, 0.5), (CONFIG, "is no JSON")),
    "config a list": (put(CONFIG, "[]"), (CONFIG, "holds []", "restore")),
    "config null": (put(CONFIG, "null"), (CONFIG, "holds null")),
    "config a number": (put(CONFIG, "3"), (CONFIG, "holds 3")),
    "config deep": (put(CONFIG, DEEP), (CONFIG, "too deeply")),
    "config no text": (put(CONFIG, b"\xff\xfe\x00"), (CONFIG, "is no JSON")),
    "config of endless digits": (put(CONFIG, f'{{"vocab_size": {"9" * 5000}}}'), (CONFIG,)),
    "config a folder": (as_folder(CONFIG), ("ck",)),
    "config gone": (without(CONFIG), ("ck holds no model",)),
    "model_type unknown": (config(model_type="nonesuch"), ("ck", "nonesuch")),
    "model_type a list": (config(model_type=["llama"]), (CONFIG, "model_type", "a text")),
    "model_type of an object": (config(model_type={}), (CONFIG, "model_type is {}")),
    "architectures a text": (config(architectures="L"), (CONFIG, 'architectures is "L"', "a list")),
    "architectures of numbers": (config(architectures=[3]), (CONFIG, "[3]", "names")),
    "vocab_size a text": (config(vocab_size="many"), (CONFIG, 'vocab_size is "many"', "a number")),
    "vocab_size a fraction": (config(vocab_size=2.5), (CONFIG, "2.5")),
    "vocab_size huge": (config(vocab_size=10**12), (CONFIG, "the weights hold")),
    "hidden_size a text": (config(hidden_size="16"), ("hidden_size", "'16'")),
    "hidden_size odd": (config(hidden_size=17), ("hidden size (17)",)),
    "hidden_size huge": (config(hidden_size=10**8), (CONFIG, "the weights hold")),
    "layers without end": (config(num_hidden_layers=10**6), (CONFIG, "1000000", "1000")),
    "layers in two": (config(num_hidden_layers=1.5), ("num_hidden_layers", "1.5")),
    "no heads": (config(num_attention_heads=0), ("ck", "restore")),
    "labels without end": (config(num_labels=10**9), (CONFIG, "num_labels is 1000000000")),
    "an activation of no name": (config(hidden_act="nonesuch"), ("ck", "nonesuch")),
    "a strict type": (config(rms_norm_eps="x"), ("rms_norm_eps", "'x'")),
    "a rope of no name": (config(rope_parameters={"rope_type": "nonesuch"}), ("ck", "nonesuch")),
    "a rope as text": (config(rope_parameters="x"), ("rope_parameters", "'x'")),
    "dtype of no name": (config(dtype="float99"), ("ck", "float99")),
    "code of its own": (
        config(model_type="nonesuch", auto_map={"AutoConfig": "x.Y"}), ("ck", "restore"),
    ),
    "auto_map a text": (config(auto_map="x"), (CONFIG, 'auto_map is "x"')),
    "a method's name": (config(to_dict=3), ("ck", "restore")),
    # generation settings
    "generation no JSON": (put(GENERATION, "{"), (GENERATION, "is no JSON")),
    "generation a list": (put(GENERATION, "[]"), (GENERATION, "holds []")),
    "an end as text": (put(GENERATION, '{"eos_token_id": "x"}'), (GENERATION, '"x"')),
    "ends of texts": (put(GENERATION, '{"eos_token_id": ["x"]}'), (GENERATION, "list of ids")),
    "an end of no row": (put(GENERATION, '{"eos_token_id": 9999}'), (GENERATION, "9999")),
    # tokenizer
    "tokenizer empty": (put(TOKENIZER, ""), (TOKENIZER, "is no JSON")),
    "tokenizer cut": (cut(TOKENIZER, 0.5), (TOKENIZER, "is no JSON")),
    "tokenizer a list": (put(TOKENIZER, "[]"), (TOKENIZER, "holds []")),
    "tokenizer deep": (put(TOKENIZER, DEEP), (TOKENIZER, "too deeply")),
    "tokenizer of nothing": (put(TOKENIZER, "{}"), ("ck", "restore")),
    "tokenizer's model a list": (keys(TOKENIZER, model=[]), (TOKENIZER, "model is []")),
    "tokenizer's model unknown": (keys(TOKENIZER, model={"type": "x"}), ("tokenizer", "restore")),
    "vocabulary a text": (vocabulary(vocab="x"), (TOKENIZER, 'vocab is "x"')),
    "vocabulary of texts": (vocabulary(vocab={"a": "1"}), (TOKENIZER, "no number")),
    "vocabulary below 0": (vocabulary(vocab={"a": -1}), (TOKENIZER, "no number")),
    "merges of nothing": (vocabulary(merges=[["q", "zz"]]), ("tokenizer", "restore")),
    "added tokens a number": (keys(TOKENIZER, added_tokens=[3]), (TOKENIZER, "added_tokens")),
    "splits of no kind": (keys(TOKENIZER, pre_tokenizer={"type": "x"}), ("tokenizer", "restore")),
    "tokenizer's settings no JSON": (put(TOKENIZER_CONFIG, "{"), (TOKENIZER_CONFIG, "no JSON")),
    "tokenizer's settings a list": (put(TOKENIZER_CONFIG, "[]"), (TOKENIZER_CONFIG, "holds []")),
    "eos a number": (keys(TOKENIZER_CONFIG, eos_token=3), (TOKENIZER_CONFIG, "eos_token is 3")),
    "length a text": (keys(TOKENIZER_CONFIG, model_max_length="x"), ("model_max_length",)),
    "added tokens a text": (keys(TOKENIZER_CONFIG, added_tokens_decoder="x"), ("_decoder",)),
    "extra tokens a text": (keys(TOKENIZER_CONFIG, extra_special_tokens="x"), ("restore",)),
    "a tokenizer of a model's class": (
        keys(TOKENIZER_CONFIG, tokenizer_class="LlamaModel"), ("tokenizer", "restore"),
    ),
    # templates
    "template no text": (put(TEMPLATE, b"\xff\xfe"), ("ck", "utf-8")),
    "template cut": (template("{% for m in messages %}"), ("chat template", "user")),
    "template by zero": (template("{{ 1 / 0 }}"), ("chat template", "division by zero")),
    "template of no name": (template("{{ nonesuch() }}"), ("chat template", "'nonesuch'")),
    "template of no turn": (template("{{ messages[9].content.x }}"), ("chat template",)),
    "template refuses": (template("{{ raise_exception('no') }}"), ("chat template", "no")),
    "template without words": (template("hello"), ("shows nothing of what a user says",)),
    "template without the user": (
        template("{% for m in messages if m.role != 'user' %}{{ m.content }}{% endfor %}"),
        ("shows nothing of what a user says", "chat_template"),
    ),
    "template in itself": (
        template("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}"),
        ("chat template", "recursion depth"),
    ),
    "template includes": (template("{% include 'x' %}"), ("chat template",)),
}  # fmt: skip


@pytest.mark.parametrize("name", POLICIES)
def test_a_broken_policy_is_told(
    name: str, rlhf: Callable[..., Any], assert_refused: Callable[..., None], broken: Any
) -> None:
    change, words = POLICIES[name]
    broken(change)
    assert_refused(rlhf(["chat", "ck", "--max-new-tokens", "2"], stdin="hi\n"), *words)


REWARDS: dict[str, tuple[Change, tuple[str, ...]]] = {
    "weights cut": (cut(WEIGHTS, 0.7), (WEIGHTS, "no whole safetensors")),
    "the head gone": (tensor("score", lambda held: None), ("no trained reward head", "score")),
    "the head of two rows": (
        tensor("score", lambda held: held.repeat(2, 1)), ("no trained reward head", "score"),
    ),
    "the head NaN": (tensor("score", first(float("nan"))), ("score.weight holds NaN",)),
    "a shard outside": (shards("../x.safetensors"), (INDEX, "outside")),
    "config a list": (put(CONFIG, "[]"), (CONFIG, "holds []")),
    "architectures null": (config(architectures=None), ("without a reward head",)),
    "architectures of null": (config(architectures=[None]), (CONFIG, "[None]")),
    "labels a text": (config(id2label="x"), (CONFIG, 'id2label is "x"')),
    "a label of no number": (config(id2label={"x": "y"}), ("ck", "restore")),
    "number of labels a text": (config(num_labels="x"), (CONFIG, 'num_labels is "x"')),
    "bias a text": (config(reward_bias="x"), (CONFIG, 'reward_bias is "x"')),
    "bias NaN": (config(reward_bias=float("nan")), (CONFIG, "reward_bias is nan")),
    "longest input a text": (config(reward_max_length="x"), (CONFIG, "reward_max_length")),
    "longest input below 1": (config(reward_max_length=-1), (CONFIG, "reward_max_length is -1")),
    "vocab_size huge": (config(vocab_size=10**12), (CONFIG, "the weights hold")),
    "tokenizer cut": (cut(TOKENIZER, 0.5), (TOKENIZER, "is no JSON")),
    "a tokenizer of another kind": (
        keys(TOKENIZER_CONFIG, tokenizer_class="BertTokenizer"), ("267 tokens", "embedding of 263"),
    ),
    "template without words": (template("hello"), ("shows nothing of what a user says",)),
}  # fmt: skip


@pytest.mark.parametrize(
    "content", [b"", b"junk" * 99, b"GGUF", b"GGUF" + bytes(20), b"GGUF\3\0\0\0" + b"\xff" * 40]
)
def test_a_broken_gguf_file_is_told(
    content: bytes, rlhf: Callable[..., Any], assert_refused: Callable[..., None], whole: Path
) -> None:
    assert_refused(rlhf(["chat", "m.gguf"], {"m.gguf": content}), "m.gguf")


@pytest.mark.parametrize("name", REWARDS)
def test_a_broken_reward_model_is_told(
    name: str, rlhf: Callable[..., Any], assert_refused: Callable[..., None], broken: Any
) -> None:
    change, words = REWARDS[name]
    broken(change, "reward")
    row = {"prompt": [{"role": "user", "content": "hi"}], "response": "yes"}
    result = rlhf(["score", "ck", "r.jsonl", "--out", "o.jsonl"], {"r.jsonl": json.dumps(row)})
    assert_refused(result, *words)


RECIPES = {
    "sft": "{kind: sft, model: ./ck, train: [{path: s.jsonl}], heldout_share: 0.0}",
    "base": "{kind: pretrain, model: ./ck, train: [{path: s.jsonl}], context_length: 16, "
    "steps: 1, batch_size: 1}",
    "reward": "{kind: reward, model: ./ck, train: [{path: p.jsonl}]}",
    "ppo": "{kind: ppo, policy: ./ck, reward: [{rule: length, options: {target: 3}}], "
    "prompts: [{path: s.jsonl}], episodes: 4, batch_size: 4, minibatches: 1, max_new_tokens: 2, "
    "max_prompt_tokens: 8}",
    "tok": "{kind: tokenizer, adopt: ./ck}",
    "ev": "{kind: evaluate, checkpoints: {a: ./ck}, prompts: [{path: s.jsonl}]}",
}
SMALL_FILES: dict[str, tuple[str, Change, tuple[str, ...]]] = {
    "sft, config a list": ("sft", put(CONFIG, "[]"), (CONFIG, "holds []")),
    "sft, architectures a number": ("sft", config(architectures=3), (CONFIG, "architectures is 3")),
    "sft, vocab_size a text": ("sft", config(vocab_size="x"), (CONFIG, 'vocab_size is "x"')),
    "sft, model_type a list": ("sft", config(model_type=[1]), (CONFIG, "model_type is [1]")),
    "sft, a context as text": (
        "sft", config(max_position_embeddings="64"), (CONFIG, "max_position_embeddings"),
    ),
    "sft, auto_map a number": ("sft", config(auto_map=3), (CONFIG, "auto_map is 3")),
    "sft, vocabulary a text": ("sft", vocabulary(vocab="x"), (TOKENIZER, 'vocab is "x"')),
    "sft, added tokens bare": ("sft", keys(TOKENIZER, added_tokens=["x"]), (TOKENIZER, "content")),
    "sft, template no text": ("sft", put(TEMPLATE, b"\xff"), (TEMPLATE, "UTF-8")),
    "sft, pad is eos": (
        "sft", keys(TOKENIZER_CONFIG, pad_token="<|end|>"), ("<|end|>", "they must differ"),
    ),
    "sft, too many ids": (
        "sft", vocabulary(vocab={"a": 0, "b": 9999}), ("10000", "embedding of 263"),
    ),
    "base, config cut": ("base", cut(CONFIG, 0.3), (CONFIG, "is no JSON")),
    "base, generation a list": ("base", put(GENERATION, "[]"), (GENERATION, "holds []")),
    "reward, tokenizer deep": ("reward", put(TOKENIZER, DEEP), (TOKENIZER, "too deeply")),
    "ppo, eos a list": ("ppo", keys(TOKENIZER_CONFIG, eos_token=[1]), (TOKENIZER_CONFIG, "[1]")),
    "ppo, a classifier": (
        "ppo", config(architectures=["LlamaForTokenClassification"]), ("ck", "TokenClassification"),
    ),
    "ppo, layers without end": ("ppo", config(num_hidden_layers=10**9), (CONFIG, "1000000000")),
    "ev, config deep": ("ev", put(CONFIG, DEEP), (CONFIG, "too deeply")),
}  # fmt: skip


@pytest.mark.parametrize("name", SMALL_FILES)
def test_broken_small_files_are_told_before_a_run(
    name: str, rlhf: Callable[..., Any], assert_refused: Callable[..., None], broken: Any
) -> None:
    stage, change, words = SMALL_FILES[name]
    broken(change)
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    pair = {"prompt": "hi", "chosen": "yes", "rejected": "no"}
    files = {
        "r.yaml": f"stages:\n  {stage}: {RECIPES[stage]}\n",
        "s.jsonl": json.dumps({"messages": messages}) + "\n",
        "p.jsonl": json.dumps(pair) + "\n",
    }
    assert_refused(rlhf(["validate", "r.yaml"], files), *words)


def test_whole_checkpoints_are_taken(rlhf: Callable[..., Any], broken: Any, whole: Path) -> None:
    broken(shards())
    talked = rlhf(["chat", "ck", "--max-new-tokens", "2"], stdin="hi\n")
    assert talked.code == 0, talked
    row = {"prompt": [{"role": "user", "content": "hi"}], "response": "yes"}
    args = ["score", whole / "reward", "r.jsonl", "--out", "o.jsonl"]
    scored = rlhf(args, {"r.jsonl": json.dumps(row)})
    assert (scored.code, scored.changed) == (0, ("o.jsonl", "r.jsonl")[:1]), scored


def test_a_text_that_a_tokenizer_has_no_token_for_is_told(
    rlhf: Callable[..., Any], broken: Any
) -> None:
    broken(keys(TOKENIZER_CONFIG, tokenizer_class="BertTokenizer"))
    talked = rlhf(["chat", "ck", "--max-new-tokens", "2"], stdin="hi\n")
    assert talked.code == 0 and not talked.err, talked  # the next message may do
    assert "can't take the text" in talked.out and "tokenizer.json" in talked.out


def test_weights_of_nothing_are_told_and_left_out(
    rlhf: Callable[..., Any], broken: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def more(folder: Path) -> None:
        import torch
        from safetensors.torch import load_file, save_file

        held = load_file(folder / WEIGHTS)
        save_file({**held, "model.extra": torch.zeros(2)}, folder / WEIGHTS, {"format": "pt"})

    broken(more)
    talked = rlhf(["chat", "ck", "--max-new-tokens", "2"], stdin="hi\n")
    assert talked.code == 0 and "model.extra" in caplog.text, talked


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"_LONGEST": 30}, "characters of a chat of one word"),
        ({"_SECONDS": 0}, "takes more than 0 seconds"),
        ({"_BYTES": 0}, "0 MiB"),
    ],
)
def test_a_template_beyond_the_limits_is_told(
    limits: dict[str, int],
    words: str,
    rlhf: Callable[..., Any],
    assert_refused: Callable[..., None],
    broken: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from data.text import templates

    for name, value in limits.items():
        monkeypatch.setattr(templates, name, value)
    # Long loops and a text of 400 MB, which the limits that hold otherwise let through.
    long = "{% for i in range(300) %}{% for j in range(300) %}{% endfor %}{% endfor %}"
    broken(
        template(f"{{{{ ('x' * 400000000) | length }}}}{long}{{{{ messages[0].content }}}}{words}")
    )
    assert_refused(rlhf(["chat", "ck"], stdin="hi\n"), "the chat template", words)
