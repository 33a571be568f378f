"""What the tests of fine-tuning share: a tiny encoder, and rows that it can learn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.contract.context import StageContext
from pipeline.stages.finetune.settings import FinetuneSettings

NAMES = ("Ada", "Ben", "Cora", "Dan", "Eva", "Finn")
PLACES = ("mill", "bridge", "river", "school")
FILLER = ("It was a grey day.", "Nothing more was said.", "The old town slept.")


def rows_of(head: str, count: int) -> list[dict[str, Any]]:
    """Return rows of a head; texts are of unlike lengths."""
    rows: list[dict[str, Any]] = []
    for n in range(count):
        name, place = NAMES[n % 6], PLACES[n // 6 % 4]
        text = " ".join([*FILLER[: n % 3], f"{name} {n} lives by the {place}."])
        if head == "classify":
            rows.append({"text": text, "label": "wet" if place in PLACES[1:3] else "dry"})
        elif head == "span":
            rows.append({"question": "Who?", "context": text, "answer": name})
        else:
            spans = [(name, "person"), (place, "place")]
            held = [(text.index(word), word, label) for word, label in spans]
            spans_of = [{"start": a, "end": a + len(w), "label": x} for a, w, x in held]
            rows.append({"text": text, "spans": spans_of})
    return rows


@pytest.fixture(scope="session")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a builder of tiny models with their tokenizer: encoders("bert"), each made once."""
    from transformers import AutoConfig, AutoModel

    from data.text.objectives.special_tokens import equip, special_tokens
    from data.text.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("encoders")

    def build(model_type: str) -> Path:
        import torch

        place = folder / model_type
        if place.is_dir():
            return place
        texts = [row["text"] for row in rows_of("tag", 60)]
        objective: Any = "denoising" if model_type == "bart" else "masked"
        tokenizer = train_tokenizer(
            texts, vocabulary_size=340, special_tokens=special_tokens(objective)
        )
        equip(tokenizer, objective)
        sizes = {
            "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 32, "initializer_range": 0.1,
        }  # fmt: skip
        if model_type == "bart":
            sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
                     "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}  # fmt: skip
            sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
        torch.manual_seed(0)
        config = AutoConfig.for_model(
            model_type, vocab_size=len(tokenizer), max_position_embeddings=80,
            pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, **sizes,
        )  # fmt: skip
        AutoModel.from_config(config).save_pretrained(place)
        tokenizer.save_pretrained(place)
        return place

    return build


@pytest.fixture
def finetune(
    make_context: Callable[..., StageContext[Any]],
    encoders: Callable[[str], Path],
    tmp_path: Path,
) -> Callable[..., StageContext[FinetuneSettings]]:
    """Return a builder of contexts: finetune("tag", "folder", rows=None, **changes)."""

    def build(
        head: str, folder: str = "finetune", *, model: Path | str = "bert",
        rows: list[dict[str, Any]] | None = None, stop_after: int | None = None, **changes: Any,
    ) -> StageContext[FinetuneSettings]:  # fmt: skip
        path = tmp_path / f"{head}.jsonl"
        lines = rows_of(head, 48) if rows is None else rows
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        place = str(encoders(model) if isinstance(model, str) else model)
        settings = FinetuneSettings(
            **{
                "head": head, "model": place, "train": [{"path": str(path)}],
                "heldout_share": 0.25, "epochs": 2, "batch_size": 8, "learning_rate": 1e-2,
                "bf16": False, **changes,
            }
        )  # fmt: skip
        return make_context(settings, {"model": place}, tmp_path / folder, stop_after=stop_after)

    return build
