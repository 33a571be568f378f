"""Arguments and rows for TRL's SFTTrainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import datasets
from torch import Tensor
from torch.nn import functional
from trl import SFTConfig

from pipeline.models.load import pick_device, resolve_bf16
from pipeline.models.seq2seq import pair_batch
from pipeline.stages.sft.settings import SftSettings, row_multiple
from pipeline.training.trl import trainer_arguments

if TYPE_CHECKING:
    from data.text.chat import Rendered
    from pipeline.contract.context import StageContext

IGNORED = -100
"""Label of a token that carries no loss."""


def sft_arguments(
    context: StageContext[SftSettings], shape: tuple[int, int], *, max_length: int
) -> SFTConfig:
    """Return TRL's arguments for a stage; `shape` is what `micro_batches` returned."""
    settings, device = context.settings, pick_device()
    bf16 = resolve_bf16(settings.bf16, device)
    return trainer_arguments(
        SFTConfig,
        context,
        shape,
        activation_checkpointing=settings.gradient_checkpointing,
        activation_offloading=False,
        remove_unused_columns=True,
        packing=settings.packing,
        eval_packing=False,
        max_length=max_length if settings.packing else None,
        pad_to_multiple_of=row_multiple(
            settings, max_length, bf16=bf16, on_cpu=device.type == "cpu"
        ),
        dataset_kwargs=None if settings.packing else {"skip_prepare_dataset": True},
        num_train_epochs=settings.epochs,
    )


def labels_of(row: Rendered) -> list[int]:
    """Return the labels of a row: its ids where the assistant speaks, else `IGNORED`."""
    return [i if mine else IGNORED for i, mine in zip(row.ids, row.assistant_mask, strict=True)]


def with_unlabelled_row(rows: datasets.Dataset) -> datasets.Dataset:
    """Return rows with one more at the end, the shortest without its labels.

    It fills up the last batch of an epoch for processes that would have none.
    """
    lengths = [len(ids) for ids in rows["input_ids"]]
    row = dict(rows[lengths.index(min(lengths))])
    row["labels"] = [IGNORED] * len(row["labels"])
    extra = datasets.Dataset.from_list([row], features=rows.features)
    return datasets.concatenate_datasets([rows, extra])


@dataclass(frozen=True)
class PairCollator:
    """Makes batches for an encoder-decoder: what is labelled is written, what comes before is read.

    Attributes:
        opening: what the decoder is given before a response.
        pad_token_id: fills rows up.
    """

    opening: Sequence[int]
    pad_token_id: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return what goes into the model, with labels where the decoder predicts them."""
        read, written = [], []
        for row in rows:
            ids, labels = row["input_ids"], row["labels"]
            learned = next((at for at, label in enumerate(labels) if label != IGNORED), len(ids))
            read.append(ids[:learned])
            written.append(ids[learned:])
        batch = pair_batch(read, written, opening=self.opening, pad_token_id=self.pad_token_id)
        labels_BT = batch.targets_BT.masked_fill(~batch.response_mask_BT, IGNORED)
        return {**batch.inputs, "labels": labels_BT}


def token_dataset(rows: list[Rendered]) -> datasets.Dataset:
    """Return rows as TRL takes them when they come tokenised."""
    return datasets.Dataset.from_dict(
        {"input_ids": [row.ids for row in rows], "labels": [labels_of(row) for row in rows]}
    )


def loss_sum(model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the summed cross-entropy of the labelled tokens, and how many they are.

    Token t is predicted from those before it; the first of a row never is. A decoder behind an
    encoder is given its tokens one place later, so that labels stand where they are predicted.
    """
    rest = {key: value for key, value in inputs.items() if key not in ("labels", "use_cache")}
    labels_BT, logits_BTV = inputs["labels"], model(**rest, use_cache=False).logits
    if "decoder_input_ids" not in inputs:
        labels_BT, logits_BTV = labels_BT[:, 1:], logits_BTV[:, :-1]
    learned_BT = labels_BT != IGNORED
    total = functional.cross_entropy(
        logits_BTV[learned_BT].float(), labels_BT[learned_BT], reduction="sum"
    )
    return total, learned_BT.sum()
