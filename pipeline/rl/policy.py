"""The policy and the value model as PPO calls them.

Both take whole episodes padded on the *right*, see `pipeline.rl.states`. Logits are made at
response positions alone, and in pieces when they would be large.

Shapes: B episodes, L tokens of prompt and response, T response tokens, N response tokens of all
rows, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from data.errors import ModelError
from pipeline.models.trials import head_scale
from pipeline.models.unused_ids import unused_ids
from pipeline.rl.maths.losses import token_scores
from pipeline.rl.states import states_before

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from reward.network.lora import Trunk

POLICY = "policy"
"""Name of the policy's adapter on a shared trunk."""
LOGITS_AT_ONCE = 64 * 2**20
"""Logits (tokens x vocabulary) that are held at once; more are made again in the backward pass."""


class PolicyOutput(NamedTuple):
    """Of each response token: log-probability, entropy, and value if the trunk is shared."""

    logprobs_BT: Tensor
    entropies_BT: Tensor
    values_BT: Tensor | None


class Policy(nn.Module):
    """A model that scores the tokens of responses; with a value head, values too.

    Attributes:
        model: the causal model or encoder-decoder of transformers.
        value_head: head on its last hidden state, None when the value model is separate.
        trunk: what the model's adapters are attached to, None without any.
        adapter: the one this policy is; None is the trunk itself.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        value_head: nn.Linear | None = None,
        trunk: Trunk | None = None,
        adapter: str | None = None,
    ) -> None:
        super().__init__()
        self.model, self.value_head = model, value_head
        self.trunk, self.adapter = trunk, adapter
        self._scale = head_scale(model)
        self._hidden_first = self._scale is not None
        if value_head is not None and not self._hidden_first:
            raise ModelError(
                f"{type(model).__name__} has no plain output head; use value: separate"
            )

    def forward(
        self,
        ids_BL: Tensor,
        starts_B: Tensor,
        mask_BT: Tensor,
        temperature: float = 1.0,
        entropy: bool = False,
        only_values: bool = False,
    ) -> PolicyOutput:
        """Score the tokens from `starts_B` on.

        Values alone come by this way too: sharded weights are gathered where a module is called.

        Args:
            ids_BL: prompts and responses, padded on the right.
            starts_B: where each response begins; at least 1.
            mask_BT: the response tokens to score.
            temperature: divides the logits.
            entropy: whether to compute entropies.
            only_values: whether to leave the vocabulary alone: all but the values is 0 then.
        """
        # The N response tokens alone, of all B x L: the rest needs no logits, which are the largest
        # tensor here. A token is scored by the state before it.
        rows_N, steps_N = mask_BT.nonzero(as_tuple=True)
        places_N = starts_B[rows_N] + steps_N
        states_NX = self._states(ids_BL, starts_B, mask_BT)  # X: hidden size, or vocabulary
        values_BT = None
        if self.value_head is not None:
            values_N = self.value_head(states_NX)[:, 0].float()
            values_BT = _spread(values_N, rows_N, steps_N, mask_BT)
        if only_values:
            nothing_BT = states_NX.new_zeros(mask_BT.shape)
            return PolicyOutput(nothing_BT, nothing_BT, values_BT)
        head: Any = self.model.get_output_embeddings() if self._hidden_first else nn.Identity()
        if self._scale not in (None, 1):
            states_NX = states_NX * self._scale
        tokens_N = ids_BL[rows_N, places_N]
        logprobs_N, entropies_N = _score_in_pieces(
            states_NX, head, tokens_N, temperature=temperature, entropy=entropy,
            unused=unused_ids(self.model),
        )  # fmt: skip
        return PolicyOutput(
            _spread(logprobs_N, rows_N, steps_N, mask_BT),
            _spread(entropies_N, rows_N, steps_N, mask_BT),
            values_BT,
        )

    def _states(self, ids_BL: Tensor, starts_B: Tensor, mask_BT: Tensor) -> Tensor:
        """Return the last hidden states, or the logits where they are not their head's."""
        with nullcontext() if self.trunk is None else self.trunk.using(self.adapter):
            return states_before(
                self.model, ids_BL, starts_B, mask_BT, logits=not self._hidden_first
            )


class ValueReader(nn.Module):
    """Reads values off hidden states that nothing here trains, such as the reward model's.

    Attributes:
        value_head: linear, from a hidden state to a value.
    """

    def __init__(self, value_head: nn.Linear) -> None:
        super().__init__()
        self.value_head = value_head

    def forward(self, states_BTH: Tensor, mask_BT: Tensor) -> Tensor:
        """Return the values (B, T), 0 outside the mask."""
        values_BT = self.value_head(states_BTH)[..., 0].float()
        return torch.where(mask_BT, values_BT, torch.zeros_like(values_BT))


class ValueModel(nn.Module):
    """The value of the text up to each token.

    Attributes:
        model: a token classifier with one label; with a head, a model of which the hidden states
            are read alone.
        value_head: reads them; None for a classifier.
    """

    def __init__(self, model: PreTrainedModel, value_head: nn.Linear | None = None) -> None:
        super().__init__()
        self.model, self.value_head = model, value_head

    def forward(self, ids_BL: Tensor, starts_B: Tensor, mask_BT: Tensor) -> Tensor:
        """Return the values (B, T): at step t that of the prompt and the tokens before t."""
        head = self.value_head
        states_NX = states_before(self.model, ids_BL, starts_B, mask_BT, logits=head is None)
        values_N = (states_NX if head is None else head(states_NX))[:, 0].float()
        rows_N, steps_N = mask_BT.nonzero(as_tuple=True)
        return _spread(values_N, rows_N, steps_N, mask_BT)


def _spread(values_N: Tensor, rows_N: Tensor, steps_N: Tensor, mask_BT: Tensor) -> Tensor:
    """Put the values of N tokens into their places, 0 elsewhere."""
    return values_N.new_zeros(mask_BT.shape).index_put((rows_N, steps_N), values_N)


def _score_in_pieces(
    states_NX: Tensor,
    head: nn.Module,
    tokens_N: Tensor,
    *,
    temperature: float,
    entropy: bool,
    unused: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Score tokens from hidden states (or logits), never holding too many logits at once."""
    unused_U = torch.tensor(unused, device=tokens_N.device) if unused else None

    def score(states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return token_scores(
            logits_NV=head(states), tokens_N=tokens, temperature=temperature, entropy=entropy,
            unused_U=unused_U,
        )  # fmt: skip

    width = getattr(head, "out_features", None) or states_NX.shape[-1]
    # A piece's logits [step, V] are made again in the backward pass, not kept until then.
    step = max(1, LOGITS_AT_ONCE // width)
    if len(tokens_N) <= step:
        return score(states_NX, tokens_N)
    pieces = [
        checkpoint(score, states, tokens, use_reentrant=False)
        if torch.is_grad_enabled()
        else score(states, tokens)
        for states, tokens in zip(
            torch.split(states_NX, step), torch.split(tokens_N, step), strict=True
        )
    ]
    logprobs, entropies = zip(*pieces, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)
