"""What the small files of a checkpoint tell: `config.json` and those of its tokenizer.

Nothing here loads weights or imports torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.errors import HandOverError
from data.json_object import read_object
from data.storage import expand
from pipeline.contract.heads import AUTO_CLASSES, Head, class_with, is_known
from reward.network.files import require_config, require_tokenizer

CLASSIFIER = "ForSequenceClassification"
"""How the name of a class with the head of a reward model ends."""
ADAPTER = "adapter_config.json"
_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")


@dataclass(frozen=True)
class ModelFacts:
    """What the small files of a checkpoint tell; None where they don't.

    Attributes:
        source: stage, path or hub id it was read from.
        tokenizer: digest of vocabulary and merges.
        vocabulary: digest of the vocabulary alone, without added tokens.
        template: digest of the chat template.
        vocab_size: rows of the model's embedding.
        tokenizer_size: ids the tokenizer can give.
        context_length: longest input in tokens.
        has_tokenizer: whether it has the files of a tokenizer.
        pad_token: text of the padding token.
        eos_token: text of the end-of-sequence token.
        spare_tokens: special tokens of the vocabulary that neither begin nor end a text and stand
            in no chat template.
        architecture: class that wrote the model.
        model_type: architecture by transformers' name.
        labels: how many scores a classifier gives.
        encoder_decoder: whether it is one.
        untrained: whether it was saved as a reward model that has not been trained.
        own_code: classes that the checkpoint's own code has.
    """

    source: str
    tokenizer: str | None = None
    vocabulary: str | None = None
    template: str | None = None
    vocab_size: int | None = None
    tokenizer_size: int | None = None
    context_length: int | None = None
    has_tokenizer: bool = False
    pad_token: str | None = None
    eos_token: str | None = None
    spare_tokens: tuple[str, ...] = ()
    architecture: str | None = None
    model_type: str | None = None
    labels: int | None = None
    encoder_decoder: bool = False
    untrained: bool = False
    own_code: frozenset[str] = field(default_factory=frozenset)

    def lacks(self, head: Head, *, trust: bool = False) -> bool:
        """Tell whether no class gives this architecture such a head; `trust`: nor its own code."""
        if self.model_type is None or (trust and AUTO_CLASSES[head] in self.own_code):
            return False
        return is_known(self.model_type) and class_with(head, self.model_type) is None

    @property
    def writes(self) -> bool:
        """Whether it is a causal language model, as far as its class tells."""
        return not self.encoder_decoder and self._has("causal", ("ForCausalLM", "LMHeadModel"))

    @property
    def rewrites(self) -> bool:
        """Whether it is an encoder-decoder that writes, as far as its class tells."""
        return self.encoder_decoder and self._has("seq2seq", ("ForConditionalGeneration",))

    def _has(self, head: Head, endings: tuple[str, ...]) -> bool:
        name = self.architecture
        known = class_with(head, self.model_type) if self.model_type else None
        return name is None or name.endswith(endings) or name == known


def read_facts(folder: Path, *, source: str) -> ModelFacts:
    """Read the facts of a checkpoint or tokenizer from its small files.

    Raises:
        ModelError: one of them is damaged, or holds values that it can't.
    """
    require_config(folder)
    require_tokenizer(folder)
    config = read_object(folder / "config.json")
    text_config = config.get("text_config")
    text: dict[str, Any] = {**config, **(text_config if isinstance(text_config, dict) else {})}
    tokens = read_object(folder / "tokenizer_config.json")
    special = {**read_object(folder / "special_tokens_map.json"), **tokens}
    tokenizer = read_object(folder / "tokenizer.json")
    template_text = _template(folder, tokens)
    vocabulary = (tokenizer.get("model") or {}).get("vocab")
    added = [t["id"] for t in tokenizer.get("added_tokens") or []]
    architecture = (config.get("architectures") or [None])[0]
    return ModelFacts(
        source=source,
        tokenizer=_digest(_tokenizer_content(tokenizer)) if vocabulary is not None else None,
        vocabulary=_digest(vocabulary) if vocabulary is not None else None,
        template=_digest(template_text) if template_text else None,
        vocab_size=text.get("vocab_size"),
        tokenizer_size=(
            max([*_ids(vocabulary), *added], default=-1) + 1 if vocabulary is not None else None
        ),
        context_length=next((text[name] for name in _CONTEXT if text.get(name)), None),
        has_tokenizer=bool(tokens) and vocabulary is not None,
        pad_token=_token(special.get("pad_token")),
        eos_token=_token(special.get("eos_token")),
        spare_tokens=_spare(tokenizer, special, template_text or ""),
        architecture=architecture,
        model_type=config.get("model_type"),
        labels=_labels(config) if (architecture or "").endswith(CLASSIFIER) else None,
        encoder_decoder=config.get("is_encoder_decoder") is True,
        untrained=config.get("reward_head_trained") is False,
        own_code=frozenset(config.get("auto_map") or {}),
    )


def adapter_problem(folder: Path) -> str | None:
    """Tell why a folder that holds an adapter of peft is no checkpoint; None where it has none."""
    if not (folder / ADAPTER).is_file():
        return None
    base = read_object(folder / ADAPTER).get("base_model_name_or_path") or "its base model"
    return (
        f"is an adapter of {base}, not a whole model; merge it first (peft: load it, then "
        "merge_and_unload() and save_pretrained() into another folder) and name that folder"
    )


def cached_folder(hub_id: str) -> Path | None:
    """Return the folder of a hub id's files that were downloaded before, None without any."""
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    hub = expand(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")
    place = hub / f"models--{hub_id.replace('/', '--')}"
    try:
        commit = (place / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    folder = place / "snapshots" / commit
    return folder if (folder / "config.json").is_file() else None


def _template(folder: Path, tokens: Mapping[str, Any]) -> Any:
    file = folder / "chat_template.jinja"
    if not file.is_file():
        return tokens.get("chat_template")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise HandOverError(f"{file} is no UTF-8 text ({error}); restore the file") from error


def _labels(config: Mapping[str, Any]) -> int | None:
    names, number = config.get("id2label"), config.get("num_labels")
    if isinstance(names, dict):
        return len(names)
    if number is not None:
        return int(number)
    # transformers left both keys out where they were as by default: two labels.
    return 2 if "model_type" in config else None


def _spare(
    tokenizer: Mapping[str, Any], special: Mapping[str, Any], template: object
) -> tuple[str, ...]:
    """Return the special tokens that no text of the model holds, as far as the files tell."""
    used = {_token(special.get(f"{name}_token")) for name in ("bos", "eos", "sep", "cls", "mask")}
    post = json.dumps(tokenizer.get("post_processor"), ensure_ascii=False)
    written = f"{template}\n{post}"
    return tuple(
        token["content"]
        for token in tokenizer.get("added_tokens") or []
        if token.get("special") and token["content"] not in used and token["content"] not in written
    )


def _tokenizer_content(tokenizer: dict[str, Any]) -> Any:
    # Truncation and padding are settings of a call that happen to be saved; they are no identity.
    return {k: v for k, v in tokenizer.items() if k not in ("truncation", "padding")}


def _ids(vocabulary: Any) -> list[int]:
    if isinstance(vocabulary, dict):
        return list(vocabulary.values())
    return list(range(len(vocabulary)))


def _token(value: Any) -> str | None:
    return value.get("content") if isinstance(value, dict) else value


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
