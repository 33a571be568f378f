"""The reward model as an adapter on the trunk of another model.

Trained so, it is published twice: merged, as any reward model, and as an adapter with its head and
the digest of its trunk. PPO attaches the latter to the trunk that its policy stands on, so that no
second set of weights is held.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.errors import ModelError
from reward.learned.model import BIAS, RewardModel, ScoringModule, encoder_for
from reward.network.loading import load_tokenizer, quiet_loading
from reward.network.lora import Targets, Trunk
from reward.network.lora_files import adapter_folder
from reward.network.packed_trees import PackedTrees

NAME = "reward"


class TrunkScoring(ScoringModule):
    """A classifier whose trunk is another model's, seen through an adapter."""

    def __init__(self, classifier: Any, trunk: Trunk, name: str) -> None:
        with trunk.using(name):
            super().__init__(classifier)
        self.trunk, self.name = trunk, name

    def forward(
        self,
        batch: Tensor | PackedTrees,
        mask_SL: Tensor | None = None,
        segments_SL: Tensor | None = None,
    ) -> Tensor:
        """Return the float32 scores of the sequences, given as `ScoringModule` takes them."""
        with self.trunk.using(self.name):
            return super().forward(batch, mask_SL, segments_SL)

    def hidden(self, ids_SL: Tensor) -> Tensor:
        """Return the last hidden states (S, L, H) of rows padded on the right.

        Without a mask: in a causal model what stands right of a token can't change it.
        """
        with self.trunk.using(self.name):
            states_SLH: Tensor = self.classifier.base_model(input_ids=ids_SL, use_cache=False)[0]
            return states_SLH

    def train(self, mode: bool = True) -> TrunkScoring:
        """Leave the mode of the trunk to the model that is trained."""
        return self


def adapt(
    model: RewardModel, *, base: str, rank: int, alpha: float, targets: Targets, seed: int
) -> Trunk:
    """Freeze a reward model that is about to be trained, but for a new adapter and the head.

    Args:
        model: as `RewardModel.start` gives it.
        base: path or hub id of what it starts from.
        rank: of the adapter.
        alpha: the adapter counts alpha / rank.
        targets: last parts of the names of the adapted layers, or all linear ones.
        seed: of the adapter's first weights.

    Raises:
        ModelError: it is an encoder, or has no such layers.
    """
    module = model.module
    if not module.reads_last_token:
        raise ModelError(
            f"lora: {type(module.classifier).__name__} is an encoder, whose new layers an adapter "
            "leaves untrained; start the reward model from a causal model, or leave lora out"
        )
    trunk = Trunk(module.classifier, base=base)
    trunk.add(NAME, rank=rank, alpha=alpha, targets=targets, seed=seed)
    module.classifier.score.requires_grad_(True)
    module.try_trees()
    return trunk


def save_models(model: RewardModel, trunk: Trunk, folder: Path) -> None:
    """Write `model/`, with the adapter merged, and `adapter/`, in peft's layout."""
    with trunk.merged(NAME):
        model.save(folder / "model", trained=True)
    head = {f"score.{k}": t for k, t in model.module.classifier.score.state_dict().items()}
    trunk.save(NAME, folder / "adapter", task="SEQ_CLS", head=head)


def attach(
    trunk: Trunk,
    model_folder: str | Path,
    *,
    name: str,
    device: torch.device | str,
    batch_size: int,
) -> RewardModel:
    """Put the adapter that was published beside a reward model onto a trunk, for scoring.

    Args:
        trunk: of the policy; its active adapter stays active.
        model_folder: the `model/` of a reward stage that trained an adapter.
        name: of the adapter on this trunk, and of the scorer.
        device: where the trunk is.
        batch_size: sequences a forward pass.

    Raises:
        ModelError: no adapter is there, or it is of another trunk or architecture.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    folder = adapter_folder(model_folder)
    if folder is None:
        raise ModelError(f"{model_folder} has no adapter beside it; train it with `lora`")
    config = AutoConfig.from_pretrained(model_folder)
    with quiet_loading(), torch.device("meta"):  # the head alone is real: the trunk is there
        classifier = AutoModelForSequenceClassification.from_config(config)
    place = classifier.base_model_prefix
    if place != trunk.model.base_model_prefix:
        raise ModelError(
            f"{model_folder} is a {type(classifier).__name__} and the policy a "
            f"{type(trunk.model).__name__}; they can't share a trunk"
        )
    head = trunk.load(name, folder)
    setattr(classifier, place, trunk.model.base_model)
    _, strange = classifier.load_state_dict(head, strict=False, assign=True)
    if strange or any(p.is_meta for p in classifier.parameters()):
        raise ModelError(f"{folder} does not hold the head of {type(classifier).__name__}")
    classifier.score.requires_grad_(False).to(device)
    tokenizer = load_tokenizer(model_folder)
    return RewardModel(
        module=TrunkScoring(classifier, trunk, name),
        tokenizer=tokenizer,
        encoder=encoder_for(config, tokenizer),
        bias=float(getattr(config, BIAS, 0.0) or 0.0),
        device=device,
        batch_size=batch_size,
        name=name,
    )
