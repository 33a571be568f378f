"""Checks that stages fit each other, from settings and small JSON files alone.

Nothing here loads weights or imports torch: what a checkpoint is can be read from `config.json`,
`tokenizer.json` and `tokenizer_config.json`. A stage that has not run yet is judged by its
settings, and again by its files right before the stage that reads it starts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import HandOverError, ModelError
from pipeline.artifacts import Artifact, find, verify
from pipeline.config import StageSettings, external_location, is_external


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
        pad_token: text of the padding token.
        eos_token: text of the end-of-sequence token.
        architecture: class that wrote the model.
    """

    source: str
    tokenizer: str | None = None
    vocabulary: str | None = None
    template: str | None = None
    vocab_size: int | None = None
    tokenizer_size: int | None = None
    context_length: int | None = None
    pad_token: str | None = None
    eos_token: str | None = None
    architecture: str | None = None


@dataclass(frozen=True)
class HandOver:
    """The view a stage's `check` has of the stages around it.

    Attributes:
        name: the stage that is checked.
        stages: settings of all stages.
        finished: returns the artifact of a stage, None when it has not run.
    """

    name: str
    stages: Mapping[str, StageSettings]
    finished: Callable[[str], Artifact | None]

    def settings(self, reference: str) -> StageSettings | None:
        """Return the settings of the stage a reference names, None for a path or hub id."""
        return None if is_external(reference) else self.stages[reference]

    def folder(self, reference: str) -> Path | None:
        """Return the local folder of a finished stage's model or of a path, else None."""
        if is_external(reference):
            path = Path(external_location(reference)).expanduser()
            return model_folder(path) if path.is_dir() else None
        artifact = self.finished(reference)
        return None if artifact is None else model_folder(artifact.folder)

    def require_present(self, reference: str, provides: str, setting: str) -> None:
        """Refuse a path where nothing is, or a folder that is no checkpoint.

        Args:
            reference: as it stands in the settings; stages and hub ids pass.
            provides: what it is needed for.
            setting: where it stands, for the sentence.

        Raises:
            HandOverError: naming setting and path.
        """
        if not is_external(reference):
            return
        location = external_location(reference)
        path, where = Path(location).expanduser(), f"stages.{self.name}.{setting}: {reference}"
        if not path.exists():
            # A hub id is `owner/name` and no more.
            if location.startswith((".", "/", "~")) or location.count("/") > 1:
                what = "file" if path.suffix else "folder"
                raise HandOverError(f"{where}: no such {what}; name a stage, a path or a hub id")
            return
        if provides not in ("policy", "reward"):
            return
        if path.is_file() and path.suffix != ".gguf":
            raise HandOverError(
                f"{where} is a file; a checkpoint is a folder with a config.json, or a .gguf file"
            )
        if path.is_dir() and not (model_folder(path) / "config.json").is_file():
            raise HandOverError(
                f"{where} is no checkpoint: it has no config.json; name the folder that "
                "`save_pretrained` wrote, or that of a finished stage"
            )

    def facts(self, reference: str) -> ModelFacts | None:
        """Return what is known of a checkpoint, None when it is not on this machine yet."""
        folder = self.folder(reference)
        return None if folder is None else read_facts(folder, source=reference)

    def tokenizer_origin(self, reference: str) -> str:
        """Follow a reference to the stage, path or hub id its tokenizer comes from."""
        seen: list[str] = []
        while not is_external(reference) and reference not in seen:
            seen.append(reference)
            settings = self.stages[reference]
            source = tokenizer_source(settings)
            if source is None:
                return reference
            reference = source
        return reference

    def require_same_tokenizer(self, a: str, b: str) -> None:
        """Refuse two checkpoints whose tokenizers or chat templates differ.

        Raises:
            HandOverError: with the two values side by side.
        """
        if self.tokenizer_origin(a) == self.tokenizer_origin(b):
            return
        facts_a, facts_b = self.facts(a), self.facts(b)
        if facts_a is None or facts_b is None:
            return  # judged again when both are there
        for what in ("tokenizer", "template"):
            value_a, value_b = getattr(facts_a, what), getattr(facts_b, what)
            if value_a is not None and value_b is not None and value_a != value_b:
                raise HandOverError(
                    f"stage {self.name}: {a} and {b} have different "
                    f"{'chat templates' if what == 'template' else 'tokenizers'} "
                    f"({a}: {value_a[:12]}, {b}: {value_b[:12]}); use checkpoints of one chain"
                )

    def require_usable_tokenizer(self, reference: str) -> None:
        """Refuse a checkpoint whose pad token is its end-of-sequence token, or that is too small.

        Raises:
            HandOverError: pad equals end-of-sequence, or the tokenizer outgrows the embedding.
        """
        facts = self.facts(reference)
        if facts is None:
            return
        if facts.pad_token is not None and facts.pad_token == facts.eos_token:
            raise HandOverError(
                f"stage {self.name}: {reference} has pad token {facts.pad_token!r} and "
                f"end-of-sequence token {facts.eos_token!r}; they must differ, or the model "
                "never learns to end: set `pad_token` in the tokenizer"
            )
        if facts.vocab_size and facts.tokenizer_size and facts.tokenizer_size > facts.vocab_size:
            raise HandOverError(
                f"stage {self.name}: the tokenizer of {reference} has {facts.tokenizer_size} "
                f"tokens, its model an embedding of {facts.vocab_size}; use the model's own"
            )

    def require_tokenizer_for(self, model: str, tokenizer: str | None) -> None:
        """Refuse an unusable tokenizer: a model's own, or one named instead that is not its kind.

        Raises:
            HandOverError: pad equals end-of-sequence, the tokenizer has more tokens than the
                model's embedding, or its vocabulary is not the one the model was trained with.
        """
        self.require_usable_tokenizer(model if tokenizer is None else tokenizer)
        new = self.facts(tokenizer) if tokenizer is not None else None
        old = self.facts(model)
        if tokenizer is None or new is None or old is None:
            return  # the latter two are judged again when both are there
        if new.tokenizer_size and old.vocab_size and new.tokenizer_size > old.vocab_size:
            raise HandOverError(
                f"stage {self.name}: the tokenizer of {tokenizer} has {new.tokenizer_size} "
                f"tokens, {model} an embedding of {old.vocab_size}; take a `pad_token` that the "
                "vocabulary already holds"
            )
        if new.vocabulary and old.vocabulary and new.vocabulary != old.vocabulary:
            raise HandOverError(
                f"stage {self.name}: {tokenizer} has another vocabulary than {model} "
                f"({new.vocabulary[:12]}, {old.vocabulary[:12]}); adopt the model's own tokenizer"
            )

    def require_fits_context(self, reference: str, tokens: int, what: str) -> None:
        """Refuse inputs longer than a checkpoint's context.

        Raises:
            HandOverError: with both lengths.
        """
        facts = self.facts(reference)
        length = facts.context_length if facts is not None else self._context_setting(reference)
        if length is not None and tokens > length:
            raise HandOverError(
                f"stage {self.name}: {what} is {tokens} tokens, the context of {reference} holds "
                f"{length}; lower the former or train with a longer context"
            )

    def _context_setting(self, reference: str) -> int | None:
        seen: set[str] = set()
        while not is_external(reference) and reference not in seen:
            seen.add(reference)
            settings = self.stages[reference]
            length = getattr(settings, "positions", None) or getattr(
                settings, "context_length", None
            )
            if isinstance(length, int):
                return length
            following = getattr(settings, "model", None) or getattr(settings, "policy", None)
            if not isinstance(following, str):
                return None
            reference = following
        return None

    def require_reward_head(self, reference: str) -> None:
        """Refuse a checkpoint without a scalar head.

        Raises:
            HandOverError: the checkpoint is of another architecture.
        """
        facts = self.facts(reference)
        if facts is None or facts.architecture is None:
            return
        if not facts.architecture.endswith("ForSequenceClassification"):
            raise HandOverError(
                f"stage {self.name}: {reference} is a {facts.architecture}, a reward model is a "
                "*ForSequenceClassification with one label; train one with a reward stage"
            )


def local_checkpoint(given: str) -> Path | None:
    """Return the folder of the model in a stage's or model's folder that a user named.

    Args:
        given: a stage's folder, whose files are verified, a model's folder, or anything else.

    Returns:
        The folder with the `config.json`; None for a `.gguf` file and where no folder is.

    Raises:
        ModelError: a folder or file is there and is no checkpoint, or a `.gguf` file is not.
        ArtifactError: the stage's files are damaged.
    """
    path = Path(given).expanduser()
    if path.is_file() and path.suffix != ".gguf":
        raise ModelError(
            f"{given} is a file; a checkpoint is a folder with a config.json, a .gguf file or a "
            "hub id"
        )
    if not path.is_dir():
        if path.suffix == ".gguf" and not path.is_file():
            raise ModelError(f"{given}: no such file; give a checkpoint's folder or hub id")
        return None
    artifact = find(path)
    if artifact is not None:
        verify(artifact)
    folder = model_folder(path)
    if not (folder / "config.json").is_file():
        stages = sorted(p.parent.parent.name for p in path.glob("*/model/config.json"))
        hint = f" a stage of this run: {', '.join(stages)}" if stages else " one with a config.json"
        raise ModelError(f"{path} holds no model; name{hint}")
    return folder


def model_folder(folder: Path) -> Path:
    """Return the `model/` or `tokenizer/` inside an artifact's folder, else the folder."""
    for name in ("model", "tokenizer"):
        if (folder / name).is_dir():
            return folder / name
    return folder


def tokenizer_source(settings: StageSettings) -> str | None:
    """Return the reference a stage takes its tokenizer from, None when it makes its own."""
    for field in ("tokenizer", "model", "policy"):
        value = getattr(settings, field, None)
        if isinstance(value, str):
            return value
    return None


def read_facts(folder: Path, *, source: str) -> ModelFacts:
    """Read the facts of a checkpoint or tokenizer from its small files."""
    config = _json(folder / "config.json")
    tokenizer_config = _json(folder / "tokenizer_config.json")
    tokenizer = _json(folder / "tokenizer.json")
    template = folder / "chat_template.jinja"
    template_text = (
        template.read_text(encoding="utf-8")
        if template.is_file()
        else tokenizer_config.get("chat_template")
    )
    vocabulary = tokenizer.get("model", {}).get("vocab")
    added = [t["id"] for t in tokenizer.get("added_tokens", [])]
    return ModelFacts(
        source=source,
        tokenizer=_digest(_tokenizer_content(tokenizer)) if vocabulary is not None else None,
        vocabulary=_digest(vocabulary) if vocabulary is not None else None,
        template=_digest(template_text) if template_text else None,
        vocab_size=config.get("vocab_size"),
        tokenizer_size=(
            max([*_ids(vocabulary), *added], default=-1) + 1 if vocabulary is not None else None
        ),
        context_length=config.get("max_position_embeddings") or config.get("n_positions"),
        pad_token=_token(tokenizer_config.get("pad_token")),
        eos_token=_token(tokenizer_config.get("eos_token")),
        architecture=(config.get("architectures") or [None])[0],
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


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise HandOverError(f"{path} is no JSON ({error}); restore the file") from error
    return content if isinstance(content, dict) else {}


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
