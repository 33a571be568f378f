"""Packed rows in which a model keeps demonstrations apart, found out by a trial.

TRL tells a model of packed demonstrations by positions that start anew, beside what kernels for
accelerators want to know. Architectures that take no notice of them may obey a mask.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from data.errors import ModelError
from pipeline.models.trials import keeps_apart, trial_sizes
from pipeline.training.objectives.causal import Documents, document_inputs, find_documents
from pipeline.training.objectives.rows import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Row = Mapping[str, Any]
"""A packed row as TRL makes it: `input_ids`, `labels`, and the `seq_lengths` in it."""


@dataclass(frozen=True)
class MaskedRows:
    """Makes batches of packed rows with a mask.

    Attributes:
        pad_id: fills rows up; as a demonstration of its own, without labels.
        apart: the form of the mask.
    """

    pad_id: int
    apart: Documents

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Return what goes into the model; no demonstration's first token is predicted."""
        numbers = [
            torch.repeat_interleave(
                torch.arange(len(row["seq_lengths"])), torch.tensor(row["seq_lengths"])
            )
            for row in rows
        ]
        documents_BT = pad_sequence(numbers, batch_first=True, padding_value=-1)
        given = document_inputs(documents_BT, self.apart)
        labels_BT = _padded(rows, "labels", IGNORED)
        return {
            "input_ids": _padded(rows, "input_ids", self.pad_id),
            "labels": labels_BT.masked_fill(given["position_ids"] == 0, IGNORED),
            **given,
        }


def _padded(rows: Sequence[Row], column: str, filling: int) -> Tensor:
    tensors = [torch.as_tensor(row[column]) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=filling)


def packing_collator(
    model: PreTrainedModel, plain: DataCollatorForLanguageModeling, *, longest: int, stage: str
) -> DataCollatorForLanguageModeling | MaskedRows:
    """Return what makes batches of packed rows for a model: TRL's own where the model obeys it.

    Args:
        model: where it is trained.
        plain: TRL's.
        longest: tokens of a row at most.
        stage: its name.

    Raises:
        ModelError: demonstrations see each other whatever the model is told.
    """

    def as_trl(ids_1T: Tensor, documents_1T: Tensor) -> dict[str, Any]:
        ids = ids_1T[0].tolist()
        lengths = torch.bincount(documents_1T[0]).tolist()
        made = plain([{"input_ids": ids, "labels": ids, "seq_lengths": lengths}])
        tensors = {k: v.to(ids_1T.device) if isinstance(v, Tensor) else v for k, v in made.items()}
        return {key: value for key, value in tensors.items() if key != "labels"}

    if keeps_apart(model, trial_sizes(model, longest), as_trl):
        return plain
    apart = find_documents(model, longest)
    if apart is None:
        raise ModelError(
            f"stage {stage}: packing is true, but in a {type(model).__name__} demonstrations of a "
            "row see each other whatever mask it is given; set packing: false"
        )
    return MaskedRows(plain.pad_token_id, apart)
