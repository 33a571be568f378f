"""On which side the rows of an encoder may be padded, found out on a few tokens.

Shapes: S sequences, L tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from data.errors import ModelError


def shift_right(input_ids_SL: Tensor, mask_SL: Tensor) -> tuple[Tensor, Tensor]:
    """Move the real tokens of each row to its end and drop columns that no row uses."""
    mask_SL = mask_SL.bool()
    order_SL = mask_SL.long().argsort(dim=1, stable=True)
    longest = int(mask_SL.sum(1).max())
    shifted_SL = input_ids_SL.gather(1, order_SL)[:, -longest:]
    return shifted_SL, mask_SL.gather(1, order_SL)[:, -longest:]


@torch.no_grad()
def pads_on_the_left(classifier: Any) -> bool:
    """Tell whether padding must stand left of a text; right of it where both change no score.

    Args:
        classifier: reads its score off more than the last token that its mask shows.

    Raises:
        ModelError: padding changes the score on either side.
    """
    words = classifier.get_input_embeddings()
    ids_1L = torch.arange(5, 9, device=words.weight.device)[None] % words.num_embeddings
    named = classifier.config.pad_token_id
    pad_12 = torch.full_like(ids_1L[:, :2], named or 0)
    seen_1L, hidden_12 = torch.ones_like(ids_1L), torch.zeros_like(pad_12)
    training = classifier.training
    classifier.eval()
    classifier.config.pad_token_id = named or 0  # some find a text's end by it
    sides = []
    alone = classifier(input_ids=ids_1L, attention_mask=seen_1L).logits
    for left in (False, True):
        ids, seen = (
            torch.cat(parts[::-1] if left else parts, dim=1)
            for parts in ((ids_1L, pad_12), (seen_1L, hidden_12))
        )
        padded = classifier(input_ids=ids, attention_mask=seen).logits
        if torch.allclose(padded.float(), alone.float(), atol=1e-4, rtol=1e-3):
            sides.append(left)
    classifier.train(training)
    classifier.config.pad_token_id = named
    if sides:
        return sides[0]
    raise ModelError(
        f"a {type(classifier).__name__} scores a text otherwise once it is padded, so that its "
        "score depends on the batch; take another architecture"
    )
