"""The models that the stages of a recipe work with, told without loading or making any of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from data.errors import ModelError
from data.storage import expand
from pipeline.contract.handover import model_folder, model_source, tokenizer_source
from pipeline.contract.settings import external_location, is_external
from pipeline.estimate.model.assumptions import Assumptions
from pipeline.estimate.model.shapes import ModelShape, shape_of_config, shape_of_size
from pipeline.estimate.model.sources import Count, count_bytes

if TYPE_CHECKING:
    from pipeline.recipe.load import Recipe
    from pipeline.stages.pretrain.settings import PretrainSettings

VOCABULARY = 32_000
"""Of a tokenizer that nothing tells of."""


@dataclass
class Checkpoints:
    """Finds the shape of what a reference names: a stage's model, a folder, a hub id.

    Attributes:
        recipe: whose stages are named.
        assumed: sizes that were given, and notes.
    """

    recipe: Recipe
    assumed: Assumptions
    _shapes: dict[str, ModelShape] = field(default_factory=dict)
    _counts: dict[str, tuple[str, Count]] = field(default_factory=dict)

    def shape(self, reference: str, *, stage: str) -> ModelShape:
        """Return the shape of a policy (or of the trunk of a reward model).

        Args:
            reference: as it stands in the settings of `stage`.
            stage: who asks, for notes and errors.

        Raises:
            ModelError: its configuration can't be read and no size was given.
        """
        if reference not in self._shapes:
            self._shapes[reference] = self._find(reference, stage)
        shape = self._shapes[reference]
        if shape.guessed:
            self.assumed.tell(
                stage,
                f"{reference}: a Llama-like shape guessed from {shape.parameters:,} parameters "
                f"({shape.layers} blocks of width {shape.hidden})",
            )
        return shape

    def _find(self, reference: str, stage: str) -> ModelShape:
        given = self.assumed.sizes.get(reference)
        if given is not None:
            return shape_of_size(given, name=reference)
        if is_external(reference):
            return self._external(reference, stage)
        settings: Any = self.recipe.stages[reference]
        if settings.kind == "pretrain" and settings.model is None:
            return self._from_scratch(settings, reference)
        source = model_source(settings)
        assert source is not None, f"{reference} provides a model and starts from none"
        shape = self.shape(source, stage=reference)
        if settings.kind == "distill" and settings.model is None:
            return shape.with_layers(settings.layers or math.ceil(shape.layers / 2))
        return shape

    def _external(self, reference: str, stage: str) -> ModelShape:
        from pipeline.models.load import load_config

        location = external_location(reference)
        folder = expand(location)
        try:
            config = load_config(model_folder(folder) if folder.is_dir() else location)
        except ModelError as error:
            raise ModelError(
                f"stage {stage}: the size of {reference} is unknown ({error}); without a network "
                f"name a local folder, or give it: --size {reference}=135M"
            ) from error
        return shape_of_config(config, name=reference)

    def _from_scratch(self, settings: PretrainSettings, stage: str) -> ModelShape:
        from pipeline.models.architectures import model_config

        config = model_config(
            settings.architecture, settings.shape, vocabulary=self.vocabulary(stage)
        )
        return shape_of_config(config, name=stage)

    def vocabulary(self, reference: str) -> int:
        """Return the tokens of the tokenizer that a stage or checkpoint uses."""
        if is_external(reference):
            try:
                return self.shape(reference, stage=reference).vocabulary
            except ModelError:
                self.assumed.tell(reference, f"{VOCABULARY:,} tokens assumed in its tokenizer")
                return VOCABULARY
        settings: Any = self.recipe.stages[reference]
        if settings.kind != "tokenizer":
            source = tokenizer_source(settings)
            return VOCABULARY if source is None else self.vocabulary(source)
        return settings.vocab_size if settings.adopt is None else self.vocabulary(settings.adopt)

    def counter(self, reference: str, *, stage: str) -> tuple[str, Count]:
        """Return what counts tokens for a checkpoint, and a key that tells counters apart.

        Its own tokenizer where that is on this machine; else bytes over an assumed number.
        """
        while not is_external(reference):
            source = tokenizer_source(self.recipe.stages[reference]) or getattr(
                self.recipe.stages[reference], "adopt", None
            )
            if not isinstance(source, str):
                break
            reference = source
        if reference not in self._counts:
            self._counts[reference] = self._counter(reference)
        key, count = self._counts[reference]
        if count is count_bytes:
            self.assumed.tell(
                stage, "tokens are counted as 4 bytes of text each: the tokenizer is not here"
            )
        return key, count

    def _counter(self, reference: str) -> tuple[str, Count]:
        from pipeline.models.load import load_tokenizer

        folder = expand(external_location(reference))
        if not is_external(reference) or not folder.exists():
            return "bytes", count_bytes
        try:
            tokenizer = load_tokenizer(model_folder(folder) if folder.is_dir() else folder)
        except ModelError:
            return "bytes", count_bytes

        def count(text: str) -> int:
            return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

        return str(folder), count
