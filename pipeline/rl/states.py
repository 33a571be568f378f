"""The states that response tokens follow from, of a causal model or of an encoder-decoder.

Rows are whole episodes, padded on the *right*. A causal model gets them as they are and no
attention mask: what stands right of a token cannot change it, so that attention runs on its fast
causal kernel. Of an encoder-decoder the encoder reads each distinct prompt of a pass once, and the
decoder the response behind its opening, without a mask of its own either.

Shapes: B episodes, L tokens of prompt and response, T response tokens, N response tokens of all
rows, U distinct prompts of P tokens at most, S tokens that the decoder is given, H hidden size,
X hidden size or vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from pipeline.models.seq2seq import decoder_opening, is_encoder_decoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def states_before(
    model: PreTrainedModel, ids_BL: Tensor, starts_B: Tensor, mask_BT: Tensor, *, logits: bool
) -> Tensor:
    """Return the last hidden states (N, H), or logits, that the tokens of a mask follow from.

    Args:
        model: of transformers.
        ids_BL: prompts and responses.
        starts_B: where each response begins; at least 1.
        mask_BT: the tokens, counted from where the response begins.
        logits: what the model's own head makes of the states instead of them.
    """
    rows_N, steps_N = mask_BT.nonzero(as_tuple=True)
    if is_encoder_decoder(model):
        states_BTX = _written(model, ids_BL, starts_B, mask_BT.shape[1], logits=logits)
        return states_BTX[rows_N, steps_N]
    trunk = model if logits else model.base_model
    output = trunk(input_ids=ids_BL, use_cache=False)
    states_BLX: Tensor = output.logits if logits else output[0]
    return states_BLX[rows_N, starts_B[rows_N] + steps_N - 1]


def _written(model: Any, ids_BL: Tensor, starts_B: Tensor, steps: int, *, logits: bool) -> Tensor:
    """Return what a decoder makes of each step of a response before its token (B, T, X)."""
    # 1. The encoder reads each distinct prompt once; -1 fills up, so that lengths tell rows apart.
    places_P = torch.arange(int(starts_B.max()), device=ids_BL.device)
    prompts_BP = ids_BL[:, : len(places_P)].where(places_P < starts_B[:, None], -1)
    prompts_UP, which_B = torch.unique(prompts_BP, dim=0, return_inverse=True)
    seen_UP = (prompts_UP >= 0).long()
    read_UPH = model.get_encoder()(input_ids=prompts_UP.clamp(min=0), attention_mask=seen_UP)[0]
    read_BPH, seen_BP = read_UPH.index_select(0, which_B), seen_UP[which_B]
    # 2. The decoder is given its opening, then the response but for its last token [B, S].
    opening = ids_BL.new_tensor(decoder_opening(model)).expand(len(ids_BL), -1)
    behind_BT = starts_B[:, None] + torch.arange(steps - 1, device=ids_BL.device)
    responses_BT = ids_BL.gather(1, behind_BT.clamp(max=ids_BL.shape[1] - 1))
    given_BS = torch.cat([opening, responses_BT], dim=1)
    # 3. What it says behind the opening is of the first token, and so on.
    if logits:
        states_BSX = model(
            encoder_outputs=BaseModelOutput(read_BPH), attention_mask=seen_BP,
            decoder_input_ids=given_BS, use_cache=False,
        ).logits  # fmt: skip
    else:
        states_BSX = model.get_decoder()(
            input_ids=given_BS, encoder_hidden_states=read_BPH, encoder_attention_mask=seen_BP,
            use_cache=False,
        )[0]  # fmt: skip
    states_BTX: Tensor = states_BSX[:, opening.shape[1] - 1 :]
    return states_BTX
