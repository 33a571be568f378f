"""One pass through the reward model's adapter: the score, and the states that values are read off.

The score is read at the last token of what the reward model sees, the values at every token of the
response before its next one. In a causal model both come from the same hidden states wherever the
reward model's tokens begin with the episode's own. They do where its template, and the response's
text tokenised anew, give those tokens back, and then differ at most in the mark of the end, where
another token than its own ended the response. Where they don't (an answer to a chat with white
space around it, a response in tokens that the tokeniser would have chosen otherwise, or one whose
beginning is cut off to fit) the score takes a pass of its own.

Mixed precision holds for scores here, as for all that is computed of the trunk in this pass.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.rl.micro_batches import Limit
from pipeline.rl.ppo.experience import MicroBatch, Tokens
from pipeline.rl.processes import World
from pipeline.rl.rollout.rollout import Episodes
from reward.learned.model import RewardModel
from reward.learned.on_trunk import TrunkScoring


class SharedOutputs(NamedTuple):
    """What one pass tells.

    Attributes:
        tokens: of the episodes that were read.
        scores: of each response, its bias added.
        states_BTH: last hidden states: at step t that before token t; 0 outside the value mask.
        apart: share of all processes' responses whose score took a pass of its own.
    """

    tokens: Tokens
    scores: list[float]
    states_BTH: Tensor
    apart: float


@dataclass(frozen=True)
class SharedForward:
    """Reads scores and hidden states off a reward model on the policy's trunk.

    Attributes:
        model: the reward model.
        module: of it, on the trunk.
        term: its place among the rewards.
    """

    model: RewardModel
    module: TrunkScoring
    term: int

    @torch.no_grad()
    def read(
        self, tokens: Tokens, episodes: Episodes, *, limit: Limit, world: World
    ) -> SharedOutputs:
        """Score the responses of this process, and keep the states.

        Processes may make unlike numbers of passes: weights on a shared trunk are never sharded.

        Args:
            tokens: of the episodes.
            episodes: with their texts.
            limit: of a pass.
            world: for mixed precision.

        Raises:
            ModelError: a text can't be encoded.
        """
        seen = [
            self.model.encoder.encode(asked.prompt, text, ended=sample.ended)
            for asked, text, sample in zip(
                episodes.prompts, episodes.texts, episodes.samples, strict=True
            )
        ]
        # Where the reward model's tokens begin with the episode's own, one pass over the longer row
        # gives both; else the pass is for the states, and the score comes from one of its own.
        alike = [ids == s[: len(ids)] for ids, s in zip(tokens.ids, seen, strict=True)]
        joined = [s if a else ids for ids, s, a in zip(tokens.ids, seen, alike, strict=True)]
        wide = replace(tokens, ids=joined)
        scores_B = torch.zeros(len(seen), device=tokens.device)
        states_BTH: Tensor | None = None
        with world.autocast():
            for micro in wide.micro_batches(range(len(seen)), limit=limit):
                hidden_MLH = self.module.hidden(micro.ids_ML)
                if states_BTH is None:
                    shape = (*tokens.value_mask_BT.shape, hidden_MLH.shape[-1])
                    states_BTH = torch.zeros(shape, device=tokens.device)
                _keep(hidden_MLH, micro, states_BTH)
                # The score is read at the last token, which may be one more than the episode's.
                lasts_M = [len(joined[row]) - 1 for row in micro.rows_M.tolist()]
                last_MH = hidden_MLH[range(len(lasts_M)), lasts_M]
                scores_B[micro.rows_M] = self.module.head(last_MH)
            assert states_BTH is not None
            apart = [row for row, same in enumerate(alike) if not same]
            if apart:
                own = self.model.raw_scores([seen[row] for row in apart])
                scores_B[apart] = scores_B.new_tensor(own)
        scores = [score + self.model.bias for score in scores_B.tolist()]
        share = world.sum(torch.tensor([float(len(apart)), float(len(seen))], device=tokens.device))
        return SharedOutputs(tokens, scores, states_BTH, float(share[0] / share[1]))


def _keep(hidden_MLH: Tensor, micro: MicroBatch, states_BTH: Tensor) -> None:
    """Put the states before each token of a micro-batch's responses into their places."""
    rows_N, steps_N = micro.value_mask_MT.nonzero(as_tuple=True)  # N states of all M rows
    kept_NH = hidden_MLH[rows_N, micro.starts_M[rows_N] + steps_N - 1].float()
    states_BTH[micro.rows_M[rows_N], steps_N] = kept_NH
