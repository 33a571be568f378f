"""What the estimates of all stages share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.estimate.model.assumptions import Assumptions
from pipeline.estimate.model.checkpoints import Checkpoints
from pipeline.estimate.model.costs import Layout, Sharding, StageCost
from pipeline.estimate.model.flops import Rows
from pipeline.estimate.model.hardware import Cluster
from pipeline.estimate.model.shapes import ModelShape
from pipeline.estimate.model.sources import Lengths, Reader
from pipeline.stages.reward_terms import RewardTerm, model_references

if TYPE_CHECKING:
    from pipeline.contract.settings import SourceSettings
    from pipeline.contract.tool_settings import ToolsSettings
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

    def cost(self, stage: str) -> StageCost:
        """Begin the cost of a stage: one that trains is spread over all accelerators."""
        kind = self.recipe.kind(stage)
        size = self.cluster.size if kind.trains else 1
        layout = Layout(size, "none" if size == 1 else self.sharding)
        return StageCost(stage, kind.name, layout, self.cluster.accelerator, self.assumed.rates)

    def bf16(self, setting: bool | str) -> bool:
        """Return whether products are in bf16 for a setting of True, False or "auto"."""
        return bool(setting) and self.cluster.accelerator.bf16 > 0

    @property
    def on_cpu(self) -> bool:
        """Whether the recipe would run on processors alone."""
        return self.cluster.accelerator.name == "cpu"

    def shape(self, reference: str, stage: str) -> ModelShape:
        """Return the shape of the model that a reference names."""
        shape = self.checkpoints.shape(reference, stage=stage)
        if shape.decoder_layers and self.recipe.stages[stage].kind != "pretrain":
            self.assumed.tell(
                stage,
                f"each token is counted in both halves of {reference}, an encoder-decoder; the "
                "work is less",
            )
        return replace(shape, fp32_powers=not self.on_cpu)

    def lengths(
        self,
        stage: str,
        sources: Sequence[SourceSettings],
        reference: str,
        *,
        heldout: bool = False,
    ) -> Lengths:
        """Return the rows of sources in tokens of a checkpoint's tokenizer."""
        key, count = self.checkpoints.counter(reference, stage=stage)
        return self.reader.measure(stage, sources, count, key=key, heldout=heldout)

    def prompts(
        self,
        stage: str,
        sources: Sequence[SourceSettings],
        reference: str,
        tools: ToolsSettings | None,
        *,
        heldout: bool = False,
    ) -> Lengths:
        """Return prompts as `lengths` does, behind what their template tells of tools."""
        from pipeline.generation.tools.toolbox import told_schemas

        _, count = self.checkpoints.counter(reference, stage=stage)
        told = sum(count(json.dumps(schema)) for schema in told_schemas(tools))
        return self.lengths(stage, sources, reference, heldout=heldout).behind(told)

    def longest(self, stage: str, measured: float, limit: float) -> int:
        """Return the tokens of the longest row: as given, as found among the measured, capped."""
        return max(1, round(min(self.assumed.get(stage, "longest") or measured, limit)))

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

    def judges(self, stage: str, terms: Mapping[str, RewardTerm]) -> dict[str, ModelShape]:
        """Return the shapes of the reward models among the rewards of a stage, by their names."""
        return {
            name: self.shape(name, stage)
            for path, term in terms.items()
            for name in model_references(path, term).values()
        }


def rows_of(lengths: list[float], count: float) -> Rows:
    """Return `count` rows whose lengths are spread as those that were measured."""
    if not lengths:
        return Rows(0.0, 0.0, 0.0)
    factor = count / len(lengths)
    measured = Rows(len(lengths), sum(lengths), sum(length**2 for length in lengths))
    return measured.times(factor)
