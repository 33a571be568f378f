"""Checks that stages fit each other, from settings and small JSON files alone.

Nothing here loads weights or imports torch: what a checkpoint is can be read from `config.json`,
`tokenizer.json` and `tokenizer_config.json`. A stage that has not run yet is judged by its
settings, and again by its files right before the stage that reads it starts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from data.errors import HandOverError, ModelError
from data.storage import expand
from pipeline.contract.artifacts import Artifact, find, verify
from pipeline.contract.facts import (
    CLASSIFIER,
    ModelFacts,
    adapter_problem,
    cached_folder,
    read_facts,
)
from pipeline.contract.generation_settings import generation_problem
from pipeline.contract.heads import AUTO_CLASSES, Head
from pipeline.contract.padding import another_pad
from pipeline.contract.settings import (
    SourceSettings,
    StageSettings,
    external_location,
    is_external,
)
from pipeline.contract.sources import RANKED, ROWS

SEQ2SEQ = ("span_corruption", "denoising")
"""Objectives of pretraining that encoder-decoders learn by."""


@dataclass(frozen=True)
class HandOver:
    """The view a stage's `check` has of the stages around it.

    Attributes:
        name: the stage that is checked.
        stages: settings of all stages.
        finished: returns the artifact of a stage, None when it has not run.
        processes: that the stage is started on.
    """

    name: str
    stages: Mapping[str, StageSettings]
    finished: Callable[[str], Artifact | None]
    processes: int = 1

    def settings(self, reference: str) -> StageSettings | None:
        """Return the settings of the stage a reference names, None for a path or hub id."""
        return None if is_external(reference) else self.stages[reference]

    def folder(self, reference: str) -> Path | None:
        """Return the local folder of a finished stage's model or of a path, else None."""
        if is_external(reference):
            path = expand(external_location(reference))
            return model_folder(path) if path.is_dir() else None
        artifact = self.finished(reference)
        return None if artifact is None else model_folder(artifact.folder)

    def placed(self, source: SourceSettings) -> SourceSettings | None:
        """Return a source with the file of its stage's rows; None where that has not finished."""
        if source.stage is None:
            return source
        folder = self.folder(source.stage)
        if folder is None:
            return None
        left = folder / ROWS
        return source.with_path(left if left.is_file() else folder / RANKED)

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
        path, where = expand(location), f"stages.{self.name}.{setting}: {reference}"
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
        problem = adapter_problem(model_folder(path)) if path.is_dir() else None
        if problem is not None:
            raise HandOverError(f"{where} {problem}")
        if path.is_dir() and not (model_folder(path) / "config.json").is_file():
            raise HandOverError(
                f"{where} is no checkpoint: it has no config.json; name the folder that "
                "`save_pretrained` wrote, or that of a finished stage"
            )

    def facts(self, reference: str) -> ModelFacts | None:
        """Return what is known of a checkpoint, None when it is not on this machine yet."""
        folder = self.folder(reference)
        if folder is None and is_external(reference):
            folder = cached_folder(external_location(reference))
        return None if folder is None else read_facts(folder, source=reference)

    def origin(self, reference: str) -> str:
        """Follow a reference to the checkpoint whose architecture it has.

        Returns:
            The nearest checkpoint that is on this machine; where there is none, the path or hub id
            that the chain of stages starts from, or the stage that makes its model from scratch.
        """
        while reference in self.stages and self.folder(reference) is None:
            start = model_source(self.stages[reference])
            if start is None:
                break
            reference = start
        return reference

    def tokenizer_origin(self, reference: str) -> str:
        """Follow a reference to the stage, path or hub id its tokenizer comes from."""
        while reference in self.stages:
            source = tokenizer_source(self.stages[reference])
            if source is None:
                break
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

    def require_usable_tokenizer(self, reference: str, *, way_out: str | None = None) -> None:
        """Refuse a checkpoint whose pad token is its end-of-sequence token, or that is too small.

        Args:
            reference: whose tokenizer is used.
            way_out: ends the sentence, as `with_another_pad` gives it.

        Raises:
            HandOverError: pad equals end-of-sequence, or the tokenizer outgrows the embedding.
        """
        facts = self.facts(reference)
        if facts is None:
            return
        if facts.has_tokenizer and facts.pad_token in (None, facts.eos_token):
            raise HandOverError(
                f"stage {self.name}: {reference} has pad token {facts.pad_token!r} and "
                f"end-of-sequence token {facts.eos_token!r}; they must differ, or the model "
                f"never learns to end: {way_out or 'set `pad_token` in the tokenizer'}"
            )
        self.require_rows(reference)

    def require_rows(self, reference: str) -> None:
        """Refuse a checkpoint whose tokenizer has more tokens than its model an embedding for.

        Raises:
            HandOverError: with both numbers.
        """
        facts = self.facts(reference)
        if facts is None or not facts.vocab_size or not facts.tokenizer_size:
            return
        if facts.tokenizer_size > facts.vocab_size:
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
        if tokenizer is None:
            self.require_usable_tokenizer(model, way_out=self.with_another_pad(model))
        else:
            self.require_usable_tokenizer(tokenizer)
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

    def with_another_pad(self, model: str) -> str | None:
        """Return what to add to the recipe so that a stage pads with another token than it ends.

        The lines stand as they do under `stages:`, and mean the same in a recipe that `extends`
        this one; `model` is the reference to what the stage takes with its own tokenizer.
        """
        facts = self.facts(model)
        if facts is None or not is_external(model):
            return None
        return another_pad(facts, model, stage=self.name, taken=self.stages)

    def require_fits_context(self, reference: str, tokens: int, what: str) -> None:
        """Refuse inputs longer than a checkpoint's context.

        Raises:
            HandOverError: with both lengths.
        """
        length = self.context_length(reference)
        if length is not None and tokens > length:
            raise HandOverError(
                f"stage {self.name}: {what} is {tokens} tokens, the context of {reference} holds "
                f"{length}; lower the former or train with a longer context"
            )

    def context_length(self, reference: str) -> int | None:
        """Return the longest input of a checkpoint, or of what its stage will make, if known."""
        origin = self.origin(reference)
        facts = self.facts(origin)
        if facts is not None or origin not in self.stages:
            return None if facts is None else facts.context_length
        settings = self.stages[origin]
        if getattr(settings, "architecture", None) == "t5":
            return None  # its positions are relative
        length = getattr(settings, "positions", None) or getattr(settings, "context_length", None)
        return length if isinstance(length, int) else None

    def encoder_decoder(self, reference: str) -> bool:
        """Tell whether a checkpoint, or what its stage will make, is an encoder-decoder."""
        origin = self.origin(reference)
        facts = self.facts(origin)
        if facts is not None:
            return facts.encoder_decoder
        return getattr(self.stages.get(origin), "objective", "") in SEQ2SEQ

    def require_writer(
        self, reference: str, setting: str, why: str, *, encoder_decoder: bool = False
    ) -> None:
        """Refuse a checkpoint that is no causal language model.

        Args:
            reference: as it stands in the settings.
            setting: where it stands.
            why: what it is needed for.
            encoder_decoder: whether one that writes will do as well.

        Raises:
            HandOverError: it is a classifier, an encoder, or an encoder-decoder where none will do;
                or its generation settings can't be used.
        """
        origin = self.origin(reference)
        objective = getattr(self.stages.get(origin), "objective", "causal")
        if objective != "causal" and not (encoder_decoder and objective in SEQ2SEQ):
            through = "" if origin == reference else f" (from {origin})"
            raise HandOverError(
                f"stage {self.name}: {setting}: {reference}{through} learns by objective "
                f"{objective}; {why}; name one"
            )
        facts = self.facts(reference)
        fits = facts is None or facts.writes or (encoder_decoder and facts.rewrites)
        if facts is not None and not fits:
            kind = ", an encoder-decoder" if facts.encoder_decoder else ""
            raise HandOverError(
                f"stage {self.name}: {setting}: {reference} is a "
                f"{facts.architecture or facts.model_type}{kind}; {why}; name one"
            )
        folder = self.folder(reference)
        problem = None if folder is None else generation_problem(folder)
        if problem is not None:
            raise HandOverError(f"stage {self.name}: {setting}: {problem}")

    def require_class(
        self, reference: str, setting: str, head: Head, *, way_out: str, trust: bool = False
    ) -> None:
        """Refuse an architecture for which transformers has no model with a head of some kind.

        Args:
            reference: as it stands in the settings; a stage has the architecture it starts from.
            setting: where it stands.
            head: kind of head.
            way_out: ends the sentence.
            trust: whether the checkpoint's own code may run.

        Raises:
            HandOverError: naming architecture and class.
        """
        origin = self.origin(reference)
        facts = self.facts(origin)
        if facts is not None and facts.lacks(head, trust=trust):
            through = "" if origin == reference else f" (from {origin})"
            raise HandOverError(
                f"stage {self.name}: {setting}: {reference}{through} is of the architecture "
                f"{facts.model_type}, for which transformers has no {AUTO_CLASSES[head]}; {way_out}"
            )

    def require_reward_head(self, reference: str) -> None:
        """Refuse a checkpoint without a trained head of one score.

        Raises:
            HandOverError: the checkpoint is of another architecture, has more labels, or its head
                was never trained.
        """
        facts = self.facts(reference)
        if facts is None or facts.architecture is None:
            return
        way_out = "train one with a reward stage"
        if not facts.architecture.endswith(CLASSIFIER):
            raise HandOverError(
                f"stage {self.name}: {reference} is a {facts.architecture}, a reward model is a "
                f"*{CLASSIFIER} with one label; {way_out}"
            )
        if facts.labels not in (None, 1):
            raise HandOverError(
                f"stage {self.name}: {reference} is a classifier with {facts.labels} labels, a "
                f"reward model has one; {way_out}, which may start from it"
            )
        if facts.untrained:
            raise HandOverError(
                f"stage {self.name}: {reference} was saved with a reward head that was never "
                f"trained; {way_out}"
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
    path = expand(given)
    if path.is_file() and path.suffix != ".gguf":
        raise ModelError(
            f"{given} is a file; a checkpoint is a folder with a config.json, a .gguf file or a "
            "hub id"
        )
    if not path.is_dir():
        if path.suffix == ".gguf" and not path.is_file():
            raise ModelError(f"{given}: no such file; give a checkpoint's folder or hub id")
        return None
    artifact = find(path) or stage_of_model(path)
    if artifact is not None:
        verify(artifact)
    folder = model_folder(path)
    problem = adapter_problem(folder)
    if problem is not None:
        raise ModelError(f"{given} {problem}")
    if not (folder / "config.json").is_file():
        stages = sorted(p.parent.parent.name for p in path.glob("*/model/config.json"))
        hint = f" a stage of this run: {', '.join(stages)}" if stages else " one with a config.json"
        raise ModelError(f"{path} holds no model; name{hint}")
    return folder


def stage_of_model(folder: Path) -> Artifact | None:
    """Return the finished stage whose `model/` a folder is; a manifest alone may be another's."""
    stage = Path(os.path.abspath(folder)).parent
    named = os.path.abspath(folder) == str(stage / "model")
    return find(stage) if named and (stage / "stage.log").is_file() else None


def model_folder(folder: Path) -> Path:
    """Return the `model/` or `tokenizer/` inside an artifact's folder, else the folder."""
    for name in ("model", "tokenizer"):
        if (folder / name).is_dir():
            return folder / name
    return folder


def tokenizer_source(settings: StageSettings) -> str | None:
    """Return the reference a stage takes its tokenizer from, None when it makes its own."""
    return _first_text(settings, "tokenizer", "model", "policy", "teacher")


def model_source(settings: StageSettings) -> str | None:
    """Return the reference whose model a stage goes on from, None when it makes its own."""
    return _first_text(settings, "model", "policy", "teacher")


def _first_text(settings: StageSettings, *fields: str) -> str | None:
    values = (getattr(settings, field, None) for field in fields)
    return next((value for value in values if isinstance(value, str)), None)
