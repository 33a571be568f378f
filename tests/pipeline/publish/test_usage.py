"""The lines of Python in a card, run as they stand: they give what this project itself gives."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

Build = Callable[..., Any]
HELLO: Any = [{"role": "user", "content": "Hello!"}]


def run_card(code: str, folder: Path) -> dict[str, Any]:
    """Run a card's lines beside the published folder; return what they name."""
    names: dict[str, Any] = {}
    with contextlib.chdir(folder.parent):
        exec(code, names)
    return names


def as_published(rlhf: Build, stage: Path | str, *more: str) -> Path:
    typed = rlhf("publish", stage, "out/model", *more)
    assert typed.code == 0, typed.err
    return Path("out/model").resolve()


def ours(folder: Path, prompt: Any, *, encoder_decoder: bool = False) -> list[int]:
    """Return the tokens with which our decoder answers, greedily."""
    from pipeline.generation.generate import Sampling, generate
    from pipeline.models.load import eos_ids, load_policy, load_tokenizer
    from pipeline.models.seq2seq import asked_ids

    model, tokenizer = load_policy(folder), load_tokenizer(folder)
    ids = asked_ids(tokenizer, prompt, encoder_decoder=encoder_decoder)
    (sample,) = generate(
        model, [ids], sampling=Sampling(64, 0.0), eos_token_ids=eos_ids(tokenizer, model),
        pad_token_id=tokenizer.pad_token_id, generator=torch.Generator(),
    )  # fmt: skip
    return sample.token_ids


@pytest.mark.parametrize(
    ("stage", "prompt"), [("ppo", HELLO), ("sft", HELLO), ("base", "Once upon a time")]
)
def test_a_language_model_writes_what_it_writes_here(
    finished: Path, rlhf: Build, code_of: Build, stage: str, prompt: Any
) -> None:
    folder = as_published(rlhf, f"runs/tiny/{stage}")
    names = run_card(code_of(folder), folder)
    assert names["answer"].tolist() == ours(finished / stage / "model", prompt)


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_an_encoder_decoder_writes_what_it_writes_here(
    save_pair: Build, make_stage: Build, rlhf: Build, code_of: Build, tmp_path: Path,
    architecture: str,
) -> None:  # fmt: skip
    from pipeline.models.seq2seq import decoder_opening

    save_pair(architecture, tmp_path / "run/sft/model")
    folder = as_published(rlhf, make_stage(tmp_path / "run/sft", "sft", model="org/start"))
    names = run_card(code_of(folder), folder)
    # Before its own tokens stand those that the decoder is given; transformers ends the last one.
    answer, opening = names["answer"].tolist(), decoder_opening(names["model"])
    written = answer[len(opening) : -1]
    assert answer[: len(opening)] == opening and len(written) > 20
    assert written == ours(folder, HELLO, encoder_decoder=True)[: len(written)]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert"])
def test_a_reward_model_scores_as_it_scores_here(
    checkpoint: Build, make_stage: Build, rlhf: Build, code_of: Build, tmp_path: Path,
    architecture: str,
) -> None:  # fmt: skip
    from reward.learned.model import RewardModel

    model = RewardModel.start(checkpoint(architecture), seed=1)
    model.set_bias(0.75)
    model.save(tmp_path / "run/reward/model", trained=True)
    folder = as_published(rlhf, make_stage(tmp_path / "run/reward", "reward", model="org/start"))
    score = run_card(code_of(folder), folder)["score"]
    rows = [("hello", " what is it?"), ("a goat", " no.")]
    asked: list[Any] = [
        [{"role": "user", "content": p}] if model.tokenizer.chat_template else p for p, _ in rows
    ]
    wanted = RewardModel.load(folder).score(asked, [answer for _, answer in rows])
    assert [score(*row) for row in rows] == pytest.approx(wanted, abs=1e-5)
    assert "`reward_bias` of `config.json` (0.75)" in (folder / "README.md").read_text()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_an_adapter_is_loaded_onto_its_base(
    checkpoint: Build, publish_adapter: Build, make_stage: Build, rlhf: Build, code_of: Build,
    tmp_path: Path,
) -> None:  # fmt: skip
    from reward.learned.model import RewardModel

    whole = Path(publish_adapter(str(checkpoint())))
    stage = make_stage(whole.parent, "reward", model="org/start")
    typed = rlhf("publish", stage / "adapter", "out/model")
    assert typed.code == 2 and "publish that first and name it by --base ORG/NAME" in typed.err
    assert not Path("out").exists()

    folder = as_published(rlhf, stage / "adapter", "--base", "org/base")
    assert not any(str(tmp_path) in path.read_text() for path in folder.glob("*.json"))
    card = (folder / "README.md").read_text()
    for line in ("base_model: org/base", "base_model_relation: adapter", "library_name: peft"):
        assert line in card.split("---")[1]
    base = checkpoint()  # as if org/base had been downloaded
    names = run_card(code_of(folder).replace('"org/base"', repr(str(base))), folder)
    wanted = RewardModel.load(whole).score([HELLO], ["no."])
    assert names["score"]("Hello!", "no.") == pytest.approx(wanted[0], abs=1e-5)


@pytest.mark.parametrize(
    ("head", "field"), [("classify", "label"), ("tag", "entity"), ("span", "")]
)
def test_a_head_says_what_it_learned(
    head: str, field: str, checkpoint: Build, make_stage: Build, rlhf: Build, code_of: Build,
    tmp_path: Path,
) -> None:  # fmt: skip
    from pipeline.models.load import load_tokenizer, load_with_head, save_model

    classes = {
        "classify": "AutoModelForSequenceClassification", "span": "AutoModelForQuestionAnswering",
        "tag": "AutoModelForTokenClassification",
    }  # fmt: skip
    start, names = checkpoint("bert"), () if head == "span" else ("dry", "wet")
    model, _ = load_with_head(start, classes[head], names, seed=0)
    stage = tmp_path / "run" / head
    save_model(model, load_tokenizer(start), stage / "model")
    folder = as_published(rlhf, make_stage(stage, "finetune", model="org/start"))
    made = run_card(code_of(folder), folder)
    if head == "span":
        assert made["first"] <= 100 and made["found"].start_logits.shape[0] == 1
    else:
        (*_, last) = made["model"]("Mira keeps a goat.")
        assert last[field] in names


def test_a_value_model_is_published_where_it_is_named(
    finished: Path, rlhf: Build, code_of: Build
) -> None:
    folder = as_published(rlhf, "runs/tiny/ppo/value_model")
    assert "a value model" in (folder / "README.md").read_text()
    model = run_card(code_of(folder), folder)["model"]
    assert type(model).__name__ == "LlamaForTokenClassification"


def test_an_encoder_fills_a_gap(
    tiny_tokenizer: Build, make_stage: Build, rlhf: Build, code_of: Build,
    tmp_path: Path,
) -> None:  # fmt: skip
    from transformers import BertConfig, BertForMaskedLM

    from data.text.objectives.special_tokens import equip

    tokenizer = tiny_tokenizer()
    equip(tokenizer, "masked")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), intermediate_size=16, **shape))
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "run/base/model")
    folder = as_published(rlhf, make_stage(tmp_path / "run/base", "pretrain", objective="masked"))
    assert "\npipeline_tag: fill-mask\n" in (folder / "README.md").read_text()
    (best, *_) = run_card(code_of(folder), folder)["model"](f"a {tokenizer.mask_token}")
    assert best["token_str"]
