"""The reward model: one score for one text, wherever and beside whatever it is scored."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.errors import ModelError
from data.records import chat
from reward.learned.model import RewardModel
from reward.learned.rows import pad_sequences, shift_left
from reward.scorer import Scorer

Build = Callable[[str], Path]
ARCHITECTURES = ["llama", "gpt2", "bert"]
PROMPTS: list[Any] = [
    [{"role": "user", "content": "who bakes?"}],
    "the mill",
    [{"role": "user", "content": "hi"}],
]
RESPONSES = ["ada does.", " is old", "hello there, you"]


@pytest.fixture
def trained(checkpoint: Build, tmp_path: Path) -> Callable[..., Path]:
    """A reward model on disk; its head is random, which is as good as trained here."""

    def build(architecture: str = "llama", bias: float = 0.0) -> Path:
        model = RewardModel.start(checkpoint(architecture), seed=1, device="cpu")
        model.set_bias(bias)
        model.save(tmp_path / f"{architecture}-reward")
        return tmp_path / f"{architecture}-reward"

    return build


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_on_either_side_changes_nothing(checkpoint: Build, architecture: str) -> None:
    model = RewardModel.start(checkpoint(architecture), seed=1, device="cpu")
    rows = [[7, 8, 9], [10], [11, 12, 13, 14, 15]]
    ids, mask = pad_sequences(rows, pad_id=0)
    alone = torch.cat([model.module(*pad_sequences([row], pad_id=0)) for row in rows])
    left = torch.tensor([[0] * (5 - len(row)) + row for row in rows])
    mask_left = torch.tensor([[False] * (5 - len(row)) + [True] * len(row) for row in rows])
    torch.testing.assert_close(model.module(ids, mask), alone, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(model.module(left, mask_left), alone, atol=1e-6, rtol=1e-5)
    # Not even when padding looks like text, or a real last token like padding.
    disguised = torch.where(mask, ids, 9)
    torch.testing.assert_close(model.module(disguised, mask), alone, atol=1e-6, rtol=1e-5)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), min_size=1, max_size=4))
def test_shifting_left_keeps_the_order_of_tokens(rows: list[tuple[int, int]]) -> None:
    width = max(n + lead for n, lead in rows)
    ids = torch.arange(len(rows) * width).reshape(len(rows), width)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for row, (n, lead) in enumerate(rows):
        mask[row, lead : lead + n] = True
    moved, moved_mask = shift_left(ids, mask)
    assert moved.shape[1] == max(n for n, _ in rows)
    for row in range(len(rows)):
        assert moved[row][moved_mask[row]].tolist() == ids[row][mask[row]].tolist()
        assert moved_mask[row].long().diff().le(0).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_do_not_depend_on_the_batch(trained: Any, architecture: str) -> None:
    model = RewardModel.load(trained(architecture), device="cpu")
    together = model.score(PROMPTS, RESPONSES)
    one_by_one = [model.score([p], [r])[0] for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    backwards = model.score(PROMPTS[::-1], RESPONSES[::-1])[::-1]
    model.batch_size = 2
    assert together == pytest.approx(one_by_one, abs=1e-5)
    assert together == pytest.approx(backwards, abs=1e-5)
    assert together == pytest.approx(model.score(PROMPTS, RESPONSES), abs=1e-5)
    passes: list[int] = []
    model.batch_tokens = 1
    assert together == pytest.approx(
        model.score(PROMPTS, RESPONSES, advance=passes.append), abs=1e-5
    )
    assert passes == [1, 1, 1]
    assert len(set(together)) == 3
    assert isinstance(model, Scorer)
    assert model.score([], []) == []


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_bias_survives_and_plain_transformers_scores_without_it(
    trained: Any, architecture: str
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = trained(architecture, bias=2.5)
    model = RewardModel.load(folder, device="cpu")
    assert model.bias == 2.5
    prompt, response = "the mill", " is old"
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if architecture == "bert":
        inputs = tokenizer(prompt, response.strip(), return_tensors="pt")
    else:
        inputs = tokenizer(prompt + response + tokenizer.eos_token, return_tensors="pt")
    with torch.no_grad():
        logit = plain(**inputs).logits[0, 0].item()
    assert model.score([prompt], [response])[0] == pytest.approx(logit + 2.5, abs=1e-5)
    assert json.loads((folder / "config.json").read_text())["reward_bias"] == 2.5


def test_plain_transformers_pads_to_the_same_scores(trained: Any) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = trained("llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    texts = ["a b<|end|>", "a longer text<|end|>"]
    with torch.no_grad():
        logits = plain(**tokenizer(texts, padding=True, return_tensors="pt")).logits[:, 0].tolist()
    ours = RewardModel.load(folder, device="cpu").score(["a", "a longer"], [" b", " text"])
    assert ours == pytest.approx(logits, abs=1e-5)


@pytest.fixture
def foreign(tokenizer: Any, tmp_path: Path) -> Callable[..., Path]:
    """A classifier as TRL trains and saves it: padding is the end of a sequence."""

    def build(pad: str | None = "<|end|>", template: str = FOREIGN_TEMPLATE) -> Path:
        from transformers import LlamaConfig, LlamaForSequenceClassification

        words = copy.deepcopy(tokenizer)
        words.chat_template, words.pad_token = template, pad
        torch.manual_seed(2)
        scored = LlamaForSequenceClassification(
            LlamaConfig(
                vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                num_attention_heads=2, max_position_embeddings=64, num_labels=1,
                pad_token_id=words.pad_token_id, eos_token_id=words.eos_token_id,
            )
        )  # fmt: skip
        torch.nn.init.normal_(scored.score.weight)
        scored.save_pretrained(tmp_path / "foreign")
        words.save_pretrained(tmp_path / "foreign")
        return tmp_path / "foreign"

    return build


FOREIGN_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad", ["<|end|>", "<|pad|>"])
def test_a_classifier_from_elsewhere_is_read_where_transformers_reads_it(
    foreign: Any, pad: str, side: str
) -> None:
    """Padded rows of TRL's texts: plain ones with eos behind, chats as their template ends them."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = foreign(pad)
    words = AutoTokenizer.from_pretrained(folder, padding_side=side)
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    asked = [*PROMPTS, "the end of all"]
    said = [*RESPONSES, ""]
    texts = [
        prompt + response + words.eos_token
        if isinstance(prompt, str)
        else words.apply_chat_template(
            [*prompt, {"role": "assistant", "content": response}], tokenize=False
        )
        for prompt, response in zip(asked, said, strict=True)
    ]
    assert texts[0].endswith("<|end|>\n")
    with torch.no_grad():
        logits = plain(**words(texts, padding=True, return_tensors="pt")).logits[:, 0].tolist()
    assert RewardModel.load(folder).score(asked, said) == pytest.approx(logits, abs=1e-5)


@pytest.mark.parametrize(
    "answer",
    [
        " {{ m['content'] }} ",
        "<think>\n\n</think>\n\n{{ m['content'].split('</think>')[-1] }}",
        "\n{{ m['content'] | trim }}",
    ],
)
def test_what_a_template_writes_around_an_answer_is_scored_where_it_was_trained_with_it(
    foreign: Any, answer: str
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    content = "{{ m['content'] }}"
    shown = "{% if m['role'] == 'assistant' %}" + answer + "{% else %}" + content + "{% endif %}"
    folder = foreign("<|end|>", FOREIGN_TEMPLATE.replace(content, shown))
    words = AutoTokenizer.from_pretrained(folder)
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    model = RewardModel.load(folder, device="cpu")
    text = words.apply_chat_template(chat("who?", "me"), tokenize=False)
    cut = text.removesuffix("<|end|>\n").rstrip()
    with torch.no_grad():
        want = [plain(**words(t, return_tensors="pt")).logits[0, 0].item() for t in (text, cut)]
    got = model.score([chat("who?")] * 2, ["me"] * 2, ended=[True, False])
    assert got == pytest.approx(want, abs=1e-5)


def test_where_the_end_is_padding_it_is_the_last_word_that_is_read(foreign: Any) -> None:
    model = RewardModel.load(foreign())
    assert model.encoder.unread == model.tokenizer.eos_token_id == model.tokenizer.pad_token_id
    ended, cut = model.score(["a b", "a b"], [" c", " c"], ended=[True, False])
    assert ended == cut
    # Inside a chat the ends of earlier turns stay, and trees read as rows do.
    ids = model.encoder.encode(PROMPTS[0], "yes")
    assert model.tokenizer.decode(ids) == "<|user|>who bakes?<|end|>\n<|assistant|>yes<|end|>\n"
    together = model.score(["a b"] * 3, [" c", " d", ""])
    assert together == pytest.approx([model.score(["a b"], [t])[0] for t in (" c", " d", "")])


def test_where_nothing_is_padding_the_end_is_read(foreign: Any) -> None:
    model = RewardModel.load(foreign(pad=None))
    assert model.encoder.encode("a", " b")[-1] == model.tokenizer.eos_token_id


def test_an_own_reward_model_ends_a_chat_at_the_end_of_its_turn(foreign: Any) -> None:
    model = RewardModel.start(foreign("<|pad|>"), seed=0)
    ids = model.encoder.encode(PROMPTS[0], "yes")
    assert model.tokenizer.decode(ids).endswith("<|assistant|>yes<|end|>")
    model.save(foreign("<|pad|>").parent / "own")
    again = RewardModel.load(foreign("<|pad|>").parent / "own")
    assert again.encoder.encode(PROMPTS[0], "yes") == ids


def test_an_encoder_is_told_the_two_segments_as_plain_transformers_tells_them(
    trained: Any,
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = trained("bert")
    names = ["input_ids", "token_type_ids", "attention_mask"]
    words = AutoTokenizer.from_pretrained(folder, model_input_names=names)
    words.save_pretrained(folder)
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    asked, said = ["who bakes?", "hi", "the mill"], ["ada does.", "hello there, you", "is old"]
    inputs = words(asked, said, padding=True, return_tensors="pt")
    assert inputs["token_type_ids"].any()
    with torch.no_grad():
        logits = plain(**inputs).logits[:, 0].tolist()
        del inputs["token_type_ids"]
        others = plain(**inputs).logits[:, 0].tolist()
    scores = RewardModel.load(folder).score(asked, said)
    assert scores == pytest.approx(logits, abs=1e-6)
    assert scores != pytest.approx(others, abs=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_tokenizer_is_saved_as_it_came(
    checkpoint: Build, tmp_path: Path, architecture: str
) -> None:
    """Also where texts were cut, and with what `tokenizer.json` says of cutting and filling up."""
    from transformers import AutoTokenizer

    source = checkpoint(architecture)
    words = AutoTokenizer.from_pretrained(source, padding_side="left", model_max_length=60)
    words._tokenizer.enable_truncation(50)
    words._tokenizer.enable_padding(length=50)
    words.save_pretrained(source)
    AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path / "untouched")
    model = RewardModel.start(source, seed=1, max_length=12)
    model.score(["a long question, " * 2] * 2, [" that", " has an answer longer than it may be"])
    assert model.encoder.truncated == 2
    model.save(tmp_path / "saved")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        saved = (tmp_path / "saved" / name).read_text()
        assert saved == (tmp_path / "untouched" / name).read_text()
    again = RewardModel.load(tmp_path / "saved")
    assert again.encoder.max_length == 12


def test_saving_and_loading_keeps_scores(checkpoint: Build, tmp_path: Path) -> None:
    model = RewardModel.start(checkpoint("llama"), seed=3, device="cpu")
    model.set_bias(-1.25)
    before = model.score(PROMPTS, RESPONSES)
    model.save(tmp_path / "saved")
    assert not list((tmp_path / "saved").glob("*.bin"))
    assert RewardModel.load(tmp_path / "saved", device="cpu").score(PROMPTS, RESPONSES) == before


def test_scoring_cuts_where_training_did(checkpoint: Build, tmp_path: Path) -> None:
    model = RewardModel.start(checkpoint("llama"), seed=3, max_length=12)
    before = model.score(["a prompt of many letters"], [" yes"])
    assert model.encoder.truncated == 1
    model.save(tmp_path / "saved")
    loaded = RewardModel.load(tmp_path / "saved", device="cpu")
    assert loaded.score(["a prompt of many letters"], [" yes"]) == before
    assert loaded.encoder.truncated == 1


def test_a_policy_is_no_reward_model(checkpoint: Build) -> None:
    with pytest.raises(ModelError, match="LlamaForCausalLM without a reward head"):
        RewardModel.load(checkpoint("llama"))


def test_a_dropped_head_is_refused(trained: Any) -> None:
    from safetensors.torch import load_file, save_file

    folder = trained("llama")
    weights = load_file(folder / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"no trained reward head.*score\.weight"):
        RewardModel.load(folder)


def test_a_head_that_was_never_trained_is_refused(checkpoint: Build, tmp_path: Path) -> None:
    RewardModel.start(checkpoint("llama"), seed=0, device="cpu").save(tmp_path / "x", trained=False)
    with pytest.raises(ModelError, match="never trained"):
        RewardModel.load(tmp_path / "x")


def test_a_classifier_of_three_labels_is_refused(trained: Any) -> None:
    folder = trained("llama")
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "a", "1": "b", "2": "c"}
    config["label2id"] = {"a": 0, "b": 1, "c": 2}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="3 labels"):
        RewardModel.load(folder)


def test_a_folder_that_is_not_there_is_named() -> None:
    with pytest.raises(ModelError, match=r"\./nowhere: no such folder"):
        RewardModel.load("./nowhere")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_head_follows_the_seed_and_dropout_is_off(checkpoint: Build, architecture: str) -> None:
    folder = checkpoint(architecture)
    states = torch.random.get_rng_state()
    first, again, other = (RewardModel.start(folder, seed=s, device="cpu") for s in (1, 1, 2))
    assert torch.equal(states, torch.random.get_rng_state())
    sequence = [[7, 8, 9]]
    assert first.raw_scores(sequence) == again.raw_scores(sequence)
    assert first.raw_scores(sequence) != other.raw_scores(sequence)
    first.module.train()
    with torch.no_grad():
        passes = [first.module(*pad_sequences(sequence, pad_id=0)).item() for _ in range(3)]
    assert len(set(passes)) == 1


def test_a_reward_model_goes_on_with_its_head(trained: Any) -> None:
    folder = trained("llama", bias=1.0)
    again = RewardModel.start(folder, seed=99, device="cpu")
    assert again.bias == 0.0
    loaded = RewardModel.load(folder, device="cpu")
    assert again.raw_scores([[7, 8]]) == loaded.raw_scores([[7, 8]])


def test_it_starts_from_a_gguf_file(
    checkpoint: Build, as_gguf: Callable[[Path, Path], Path], tmp_path: Path
) -> None:
    folder = checkpoint("llama")
    file = as_gguf(folder, tmp_path / "model.gguf")
    packed = RewardModel.start(file, seed=1, tokenizer_source=folder, device="cpu")
    trunk = RewardModel.start(folder, seed=1, device="cpu").module.classifier.model.state_dict()
    found = packed.module.classifier.model.state_dict()
    assert found.keys() == trunk.keys()
    assert all(torch.equal(found[name], trunk[name]) for name in trunk)
    packed.save(tmp_path / "saved")
    again = RewardModel.load(tmp_path / "saved", device="cpu")
    assert again.score(PROMPTS, RESPONSES) == packed.score(PROMPTS, RESPONSES)


def test_a_gguf_file_is_no_trained_reward_model(
    checkpoint: Build, as_gguf: Callable[[Path, Path], Path], tmp_path: Path
) -> None:
    file = as_gguf(checkpoint("llama"), tmp_path / "model.gguf")
    with pytest.raises(ModelError, match="without a reward head"):
        RewardModel.load(file)
    with pytest.raises(ModelError, match=r"gone\.gguf: no such file"):
        RewardModel.load("gone.gguf")


def test_pad_equal_to_end_of_sequence_is_refused(checkpoint: Build) -> None:
    folder = checkpoint("llama")
    settings_file = folder / "tokenizer_config.json"
    content = json.loads(settings_file.read_text())
    content["pad_token"] = "<|end|>"
    settings_file.write_text(json.dumps(content))
    with pytest.raises(ModelError, match="must be two tokens"):
        RewardModel.start(folder, seed=0)


def test_weights_of_the_body_that_are_missing_are_refused(checkpoint: Build) -> None:
    from safetensors.torch import load_file, save_file

    folder = checkpoint("llama")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks weights.*up_proj"):
        RewardModel.start(folder, seed=0)


def test_a_score_that_is_not_finite_stops(trained: Any) -> None:
    model = RewardModel.load(trained("llama"), device="cpu")
    with torch.no_grad():
        model.module.classifier.score.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="a score of nan"):
        model.score(["a"], ["b"])


def test_an_unfinished_response_is_scored_at_its_last_token(trained: Any) -> None:
    model = RewardModel.load(trained("llama"), device="cpu")
    done, cut = model.score(["a b", "a b"], ["c", "c"], ended=[True, False])
    assert done != cut
    expected = model.raw_scores([model.encoder.encode("a b", "c")[:-1]])
    assert [cut] == pytest.approx(expected, abs=1e-6)


def test_progress_counts_every_text(trained: Any) -> None:
    model = RewardModel.load(trained("llama"), device="cpu", batch_size=2)
    seen: list[int] = []
    model.score(PROMPTS, RESPONSES, advance=seen.append)
    assert seen == [2, 1]


@given(st.lists(st.lists(st.integers(7, 200), min_size=1, max_size=9), min_size=1, max_size=4))
def test_padding_is_on_the_right_and_masked(rows: list[list[int]]) -> None:
    ids, mask = pad_sequences(rows, pad_id=0)
    assert [ids[i][mask[i]].tolist() for i in range(len(rows))] == rows
    assert not mask[ids == 0].any()
