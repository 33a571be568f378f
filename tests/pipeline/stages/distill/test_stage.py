"""Distillation: what a student begins with, learns, refuses and goes on from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from data.errors import HandOverError, Interrupted, ModelError
from data.storage import sha256
from pipeline.contract.handover import HandOver
from pipeline.contract.settings import SourceSettings
from pipeline.models.architectures import Shape, build_policy
from pipeline.models.students import shallower
from pipeline.stages.distill.settings import DistillSettings
from pipeline.stages.distill.stage import check, run
from pipeline.stages.pretrain.settings import PretrainSettings
from pipeline.stages.pretrain.stage import run as pretrain
from pipeline.stages.tokenizer.settings import TokenizerSettings

WORDS = ("baker", "miller", "teacher", "river", "mill", "bread", "bridge", "school")
AUTO = {
    **dict.fromkeys(("llama", "gpt2", "qwen2"), "AutoModelForCausalLM"),
    **dict.fromkeys(("bert", "albert"), "AutoModelForMaskedLM"),
}
OBJECTIVES = {"llama": "causal", "bert": "masked"}
SETTINGS: dict[str, Any] = {
    "steps": 6, "context_length": 32, "batch_size": 4, "learning_rate": 1e-2, "bf16": False,
    "heldout_share": 0.2,
}  # fmt: skip


@pytest.fixture
def circle(tmp_path: Path) -> SourceSettings:
    """Texts in which a word tells the next one."""
    texts = [" ".join((WORDS * 3)[i % 8 : i % 8 + 4 + i // 8 % 10]) for i in range(400)]
    path = tmp_path / "circle.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return SourceSettings(path=str(path))


@pytest.fixture
def tokenizer(tiny_tokenizer: Callable[..., Any]) -> Any:
    from data.text.objectives.special_tokens import equip

    tokenizer = tiny_tokenizer(texts=(" ".join(WORDS * 3),), chat=False)
    equip(tokenizer, "masked")
    return tokenizer


@pytest.fixture
def save(tokenizer: Any, tmp_path: Path) -> Callable[..., str]:
    """Return a builder of untrained checkpoints: save("bert", hidden=16, name="teacher")."""

    def build(
        architecture: Any,
        *,
        hidden: int = 16,
        name: str = "teacher",
    ) -> str:
        shape = Shape(
            hidden_size=hidden, layers=4, heads=2, kv_heads=2, intermediate_size=32,
            context_length=32, initializer_range=0.2,
        )  # fmt: skip
        auto = AUTO[architecture]
        model = build_policy(architecture, shape, tokenizer, seed=0, auto_class=auto)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return build


@pytest.fixture
def distill(
    make_context: Callable[..., Any], circle: SourceSettings, tmp_path: Path
) -> Callable[..., Any]:
    """Return a builder of contexts: distill("bert", teacher, "folder", stop_after=None, ...)."""

    def build(
        architecture: str, teacher: str, folder: str = "student", *, stop_after: int | None = None,
        **changes: Any,
    ) -> Any:  # fmt: skip
        settings = DistillSettings(
            **{**SETTINGS, "train": [circle], "teacher": teacher,
               "objective": OBJECTIVES[architecture], **changes}
        )  # fmt: skip
        inputs = {"teacher": teacher} | ({"model": settings.model} if settings.model else {})
        return make_context(settings, inputs, tmp_path / folder, stop_after=stop_after)

    return build


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2", "bert"])
def test_a_student_of_all_layers_is_the_teacher(
    save: Callable[..., str], architecture: str
) -> None:
    import transformers

    loader = getattr(transformers, AUTO[architecture])
    teacher = loader.from_pretrained(save(architecture)).eval()
    ids = torch.arange(8, 14)[None]
    if teacher.can_generate():
        teacher.generation_config.eos_token_id = [2, 6]
    whole = shallower(teacher, 4, source="t").eval()
    half = shallower(teacher, None, source="t").eval()
    with torch.no_grad():
        assert torch.equal(whole(input_ids=ids).logits, teacher(input_ids=ids).logits)
        assert not torch.equal(half(input_ids=ids).logits, teacher(input_ids=ids).logits)
    if teacher.can_generate():
        assert half.generation_config.eos_token_id == [2, 6]
    assert half.config.num_hidden_layers == 2 and teacher.config.num_hidden_layers == 4
    theirs, own = teacher.state_dict(), half.state_dict()
    name = next(name for name in own if ".1." in name)
    assert torch.equal(own[name], theirs[name.replace(".1.", ".2.")])  # of blocks 0 and 2
    with pytest.raises(ModelError, match="layers is 5, t has 4; take as many at most"):
        shallower(teacher, 5, source="t")


@pytest.mark.parametrize("architecture", ["llama", pytest.param("bert", marks=pytest.mark.slow)])
def test_an_interrupted_stage_ends_in_the_same_weights(
    distill: Callable[..., Any], save: Callable[..., str], architecture: str
) -> None:
    import transformers

    teacher = save(architecture)
    options = {"steps": 8, "log_every": 3, "evaluate_every": 4}
    whole = distill(architecture, teacher, "whole", **options)
    expected = run(whole)
    with pytest.raises(Interrupted):
        run(distill(architecture, teacher, "cut", stop_after=5, **options))
    again = distill(architecture, teacher, "cut", **options)
    metrics = run(again)
    paths = [c.folder / "model" / "model.safetensors" for c in (whole, again)]
    assert sha256(paths[0]) == sha256(paths[1])
    timed = "train/tokens_per_second"
    assert {k: v for k, v in metrics.items() if k != timed} == {
        k: v for k, v in expected.items() if k != timed
    }
    loader = getattr(transformers, AUTO[architecture])
    model, info = loader.from_pretrained(whole.folder / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.config.num_hidden_layers == 2
    assert {"eval/teacher_loss", "eval/loss"} <= metrics.keys()


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_micro_batches_change_nothing_but_rounding(
    distill: Callable[..., Any], save: Callable[..., str], architecture: str
) -> None:
    teacher = save(architecture)
    whole = run(distill(architecture, teacher, "whole", steps=1))
    parts = run(distill(architecture, teacher, "parts", steps=1, micro_batch_size=1))
    for name in ("train/loss", "train/gradient_norm"):
        assert parts[name] == pytest.approx(whole[name], rel=1e-5)


def test_a_student_learns_more_from_a_teacher_than_alone(
    make_context: Callable[..., Any], distill: Callable[..., Any], circle: SourceSettings,
    tokenizer: Any, tmp_path: Path,
) -> None:  # fmt: skip
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    settings = PretrainSettings(
        **{**SETTINGS, "train": [circle], "tokenizer": str(tmp_path / "tokenizer"), "steps": 150,
           "hidden_size": 32, "layers": 2, "heads": 2}
    )  # fmt: skip
    base = make_context(settings, {"tokenizer": settings.tokenizer}, tmp_path / "base")
    pretrain(base)
    teacher = str(base.folder / "model")
    alone: dict[str, Any] = {"soft": 0, "cosine": 0, "hard": 1}
    with_teacher, without = (
        run(distill("llama", teacher, name, steps=5, **options))["eval/loss"]
        for name, options in (("taught", {}), ("alone", alone))
    )
    assert with_teacher < without - 0.05


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": "m", "layers": 2}, "`layers` are the teacher's; `model` brings its own"),
        ({"soft": 0, "hard": 0, "cosine": 0}, "soft, hard and cosine are all 0"),
        ({"masking": {"share": 0.3}}, "`masking` is for objective masked, not causal"),
        ({"objective": "masked", "masking": {"next_sentence": True}}, "is for a pretrain stage"),
        ({"objective": "masked", "context_length": 4}, "too short for objective masked; 8 tokens"),
        ({"objective": "denoising"}, "objective"),
        ({"compile": True}, "`compile: true` is for a pretrain stage"),
        ({"attend_across_documents": False}, "is for a pretrain stage"),
    ],
)
def test_settings_that_make_no_sense(
    circle: SourceSettings, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValidationError, match=told):
        DistillSettings(**{"train": [circle], "teacher": "t", **changes})


class TestFit:
    def test_students_of_another_kind(
        self, distill: Callable[..., Any], save: Callable[..., str], circle: SourceSettings
    ) -> None:
        llama, bert = save("llama", name="llama"), save("bert", name="bert")
        wide, albert = save("bert", name="wide", hidden=24), save("albert", name="albert")

        def fit(**named: Any) -> None:
            settings = DistillSettings(train=[circle], context_length=32, **named)
            check(settings, HandOver("small", {"small": settings}, lambda _: None))

        fit(teacher=llama)
        fit(teacher=bert, model=wide, objective="masked")
        with pytest.raises(HandOverError, match="distill takes a causal language model; name one"):
            fit(teacher=bert)
        with pytest.raises(HandOverError, match=r"model: .*llama is of the architecture llama"):
            fit(teacher=bert, model=llama, objective="masked")
        with pytest.raises(
            ModelError, match=r"cosine is 1, but .* is 24 wide and .* 16; set it to"
        ):
            run(distill("bert", bert, model=wide))
        run(distill("bert", bert, "narrow", model=wide, cosine=0, steps=1))
        with pytest.raises(ModelError, match="are not a list of blocks; name a student with"):
            run(distill("bert", albert))

    def test_a_student_of_another_tokenizer(
        self, save: Callable[..., str], circle: SourceSettings
    ) -> None:
        stages: dict[str, Any] = {
            "words": TokenizerSettings(train=[circle], objective="masked"),
            "base": PretrainSettings(
                train=[circle], tokenizer="words", objective="masked", architecture="bert"
            ),
        }
        bert = save("bert")
        other = Path(save("bert", name="other"))
        content = json.loads((other / "tokenizer.json").read_text())
        content["model"]["merges"] = content["model"]["merges"][:-1]
        (other / "tokenizer.json").write_text(json.dumps(content))
        settings = DistillSettings(
            train=[circle], teacher=bert, model=str(other), objective="masked", context_length=32
        )
        with pytest.raises(HandOverError, match="have different tokenizers"):
            check(settings, HandOver("small", {**stages, "small": settings}, lambda _: None))
        later = DistillSettings(train=[circle], teacher="base", objective="masked")
        check(later, HandOver("small", {**stages, "small": later}, lambda _: None))
        causal = DistillSettings(train=[circle], teacher="base")
        with pytest.raises(HandOverError, match="learns by objective masked; distill takes a"):
            check(causal, HandOver("small", {**stages, "small": causal}, lambda _: None))
