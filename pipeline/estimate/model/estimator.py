"""What the estimates of all stages share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pipeline.estimate.model.assumptions import Assumptions
from pipeline.estimate.model.checkpoints import Checkpoints
from pipeline.estimate.model.costs import Layout, Part, Sharding, compute_part, decoding_part
from pipeline.estimate.model.flops import Rows
from pipeline.estimate.model.hardware import Cluster
from pipeline.estimate.model.shapes import ModelShape
from pipeline.estimate.model.sources import Lengths, Reader

if TYPE_CHECKING:
    from pipeline.contract.settings import SourceSettings
    from pipeline.recipe.load import Recipe


@dataclass
class Estimator:
    """What an estimate is made with.

    Attributes:
        recipe: the recipe.
        cluster: what it would run on.
        sharding: how trained models are spread over several accelerators.
        assumed: given numbers, rates and notes.
        checkpoints: shapes of models.
        reader: lengths of rows.
    """

    recipe: Recipe
    cluster: Cluster
    sharding: Sharding
    assumed: Assumptions
    checkpoints: Checkpoints
    reader: Reader

    def layout(self, stage: str) -> Layout:
        """Return how a stage is spread: one that trains over all, another on one accelerator."""
        size = self.cluster.size if self.recipe.kind(stage).trains else 1
        return Layout(size, "none" if size == 1 else self.sharding)

    def bf16(self, setting: bool | str) -> bool:
        """Return whether products are in bf16 for a setting of True, False or "auto"."""
        return bool(setting) and self.cluster.accelerator.bf16 > 0

    @property
    def on_cpu(self) -> bool:
        """Whether the recipe would run on processors alone."""
        return self.cluster.accelerator.name == "cpu"

    def shape(self, reference: str, stage: str) -> ModelShape:
        """Return the shape of the model that a reference names."""
        return replace(self.checkpoints.shape(reference, stage=stage), fp32_powers=not self.on_cpu)

    def lengths(self, stage: str, sources: Sequence[SourceSettings], reference: str) -> Lengths:
        """Return the rows of sources in tokens of a checkpoint's tokenizer."""
        key, count = self.checkpoints.counter(reference, stage=stage)
        return self.reader.measure(stage, sources, count, key=key)

    def longest(self, stage: str, found: float, limit: float) -> int:
        """Return the tokens of the longest row: as given, as found among the measured, capped."""
        return max(1, round(min(self.assumed.get(stage, "longest") or found, limit)))

    def response(self, stage: str, most: int) -> float:
        """Return the mean tokens of a sampled response."""
        given = self.assumed.get(stage, "response_tokens")
        if given is None:
            self.assumed.tell(
                stage,
                f"responses are as long as max_new_tokens ({most}) allows; give their mean with "
                f"--assume {stage}.response_tokens=N",
            )
        return min(given or most, most)

    def compute(
        self, name: str, shape: ModelShape, layout: Layout, *, flops: float, tokens: float,
        passes: float, bf16: bool, training: bool = False,
    ) -> Part:  # fmt: skip
        """Return a part whose time follows from its products."""
        return compute_part(
            name,
            shape,
            flops=flops,
            tokens=tokens,
            passes=passes,
            training=training,
            **self._means(layout, bf16),
        )

    def decode(
        self, name: str, shape: ModelShape, layout: Layout, *, rows: float, batch: int,
        prompt: float, new: float, steps: float, bf16: bool, answers: int = 1,
    ) -> Part:  # fmt: skip
        """Return a part that samples."""
        return decoding_part(
            name,
            shape,
            rows=rows,
            batch=batch,
            prompt=prompt,
            new=new,
            steps=steps,
            answers=answers,
            **self._means(layout, bf16),
        )

    def _means(self, layout: Layout, bf16: bool) -> dict[str, Any]:
        """Return what any part is computed with."""
        return {
            "layout": layout,
            "accelerator": self.cluster.accelerator,
            "rates": self.assumed.rates,
            "bf16": bf16,
        }


def rows_of(lengths: list[float], count: float) -> Rows:
    """Return `count` rows whose lengths are spread as those that were measured."""
    if not lengths:
        return Rows(0.0, 0.0, 0.0)
    factor = count / len(lengths)
    whole = Rows(len(lengths), sum(lengths), sum(length**2 for length in lengths))
    return whole.times(factor)


def quantity(settings: Any, name: str, default: Any) -> Any:
    """Return a setting, or a default where this version of the stage has none of that name."""
    return getattr(settings, name, default)
