"""The reward model: a sequence classifier with one label, read at the last real token.

Departs from what `transformers` does by itself in three things. The token that is read is found by
the attention mask, and rows are shifted to the left first, so that padding changes nothing on
either side; at the end of a text padding is passed over, as there (`Encoder.unread`). `reward_bias`
of `config.json` is added here, since a decoder's `score` head has no bias and drops one on load;
plain transformers gives the score without it. And a head that was never trained is refused, where
transformers only warns.

Shapes: S sequences, L tokens, H hidden.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from data.errors import ModelError
from reward.learned.batching import scoring_batches
from reward.learned.encoding import LENGTH, Encoder, longest_input
from reward.learned.rows import collate, shift_left
from reward.network.loading import (
    disable_dropout,
    draw_head,
    head_weights,
    load_classifier,
    load_tokenizer,
    quiet_loading,
    require_distinct_pad,
    require_rows,
)
from reward.network.packed_trees import PackedTrees
from reward.network.padding import pads_on_the_left, shift_right
from reward.network.tree_attention import can_pack_trees, end_states, longest_sequence
from reward.scorer import Facts, require_same_length

if TYPE_CHECKING:
    from data.records import Prompt

TRAINED = "reward_head_trained"
BIAS = "reward_bias"


class ScoringModule(nn.Module):
    """A sequence classifier whose forward pass gives one score a sequence, without the bias.

    Attributes:
        classifier: of `transformers`.
        pads_left: whether padding stands left of a text; else it stands right.
        reads_last_token: whether its head reads the last token (a decoder) or does more.
        tells_segments: whether it has an embedding for each of the two texts of a pair.
        takes_trees: whether sequences that begin alike can share what they begin with; those
            longer than `longest_in_tree`, if that is set, can't.
    """

    def __init__(self, classifier: Any) -> None:
        super().__init__()
        self.classifier = classifier
        self.reads_last_token = isinstance(getattr(classifier, "score", None), nn.Module)
        self.pads_left = not self.reads_last_token and pads_on_the_left(classifier)
        self.tells_segments = (getattr(classifier.config, "type_vocab_size", None) or 0) > 1
        self.try_trees()
        self.longest_in_tree = longest_sequence(classifier.config)
        # What accelerate's FSDP looks for to decide which layers to wrap.
        self._no_split_modules = getattr(classifier, "_no_split_modules", None)

    def try_trees(self) -> None:
        """Find out whether it takes trees; to be called again where its layers have changed."""
        self.takes_trees = self.reads_last_token and can_pack_trees(self.classifier.base_model)

    def takes_as_trees(self, sequences: Iterable[Sequence[int]]) -> bool:
        """Tell whether these sequences may be computed as trees."""
        longest = self.longest_in_tree
        return self.takes_trees and (
            longest is None or all(len(ids) <= longest for ids in sequences)
        )

    def forward(
        self,
        batch: Tensor | PackedTrees,
        mask_SL: Tensor | None = None,
        segments_SL: Tensor | None = None,
    ) -> Tensor:
        """Return the float32 scores of the sequences.

        Args:
            batch: packed trees, or rows of token ids (S, L); what the mask hides may be anything.
            mask_SL: for rows, True on real tokens, which stand together; at least one a row. It
                does not matter on which side padding is.
            segments_SL: for rows of pairs, the segment of each token; 0 where not given.
        """
        if isinstance(batch, PackedTrees):
            return self.head(end_states(self.classifier.base_model, batch))
        assert mask_SL is not None, "rows come with a mask"
        # All padding to one side first, so that where the caller put it changes no position.
        shift = shift_right if self.pads_left else shift_left
        if segments_SL is not None:
            segments_SL, _ = shift(segments_SL, mask_SL)
        input_ids_SL, mask_SL = shift(batch, mask_SL)
        attention_mask_SL = mask_SL.long()
        if not self.reads_last_token:
            inputs = {"input_ids": input_ids_SL, "attention_mask": attention_mask_SL}
            if segments_SL is not None and self.tells_segments:
                inputs["token_type_ids"] = segments_SL
            logits: Tensor = self.classifier(**inputs).logits
            return logits[:, 0].float()
        hidden_SLH = self.classifier.base_model(
            input_ids=input_ids_SL, attention_mask=attention_mask_SL, use_cache=False
        ).last_hidden_state
        # Read at the last real token: (S, L, H) to (S, H).
        rows = torch.arange(hidden_SLH.shape[0], device=hidden_SLH.device)
        return self.head(hidden_SLH[rows, mask_SL.sum(1) - 1])

    def head(self, last_SH: Tensor) -> Tensor:
        """Return the float32 scores of the hidden states of decoders' last tokens."""
        head = self.classifier.score
        # In float32: a bf16 score of 5 is known to 0.02, and differences of scores are the loss.
        with torch.autocast(last_SH.device.type, enabled=False):
            weight_type = next(head.parameters()).dtype
            scores: Tensor = head(last_SH.to(weight_type))
        return scores[:, 0].float()


def encoder_for(config: Any, tokenizer: Any, *, pairs: bool = False) -> Encoder:
    """Return what gives texts to a model as it was trained on them.

    Args:
        config: of the classifier.
        tokenizer: its own.
        pairs: whether prompt and response go in as a pair.
    """
    return Encoder(
        tokenizer,
        longest_input(config, tokenizer),
        pairs=pairs,
        unread=config.get_text_config().pad_token_id,
        whole_turns=getattr(config, TRAINED, None) is None,
    )


@dataclass
class RewardModel:
    """A reward model with its tokenizer, template and bias; a `Scorer`.

    Attributes:
        module: gives the scores without bias.
        tokenizer: its own, which need not be the policy's.
        encoder: texts to ids.
        bias: added to every score, so that held-out demonstrations score 0 on average.
        device: where it computes.
        batch_size: sequences a forward pass when scoring.
        batch_tokens: tokens of one, padding included, instead of `batch_size`; None counts
            sequences.
        name: what reports call it.
        as_it_came: the tokenizer to be saved, which no use has touched; None saves the used one.
    """

    module: ScoringModule
    tokenizer: Any
    encoder: Encoder
    bias: float = 0.0
    device: torch.device | str = "cpu"
    batch_size: int = 64
    batch_tokens: int | None = None
    name: str = "reward_model"
    as_it_came: Any = None

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: torch.device | str | None = None,
        batch_size: int = 64,
        *,
        dtype: torch.dtype = torch.float32,
        trust_remote_code: bool = False,
    ) -> RewardModel:
        """Load a trained reward model for scoring.

        Raises:
            ModelError: nothing loadable is there, it is no scalar sequence classifier, or its
                head is missing or was never trained.
        """
        with quiet_loading():
            classifier, info = load_classifier(path, dtype=dtype, trust=trust_remote_code)
        missing = sorted(info["missing_keys"]) + [str(k[0]) for k in info["mismatched_keys"]]
        if missing:
            raise ModelError(
                f"{path} has no trained reward head: its files lack {', '.join(missing[:3])}; "
                "train one with a reward stage"
            )
        if getattr(classifier.config, TRAINED, None) is False:
            raise ModelError(
                f"{path} was saved with a reward head that was never trained "
                f"({TRAINED} is false in its config.json); train it with a reward stage"
            )
        return cls._build(
            path, classifier, device=device, batch_size=batch_size, trust=trust_remote_code
        )

    @classmethod
    def start(
        cls,
        source: str | Path,
        *,
        seed: int,
        max_length: int | None = None,
        tokenizer_source: str | Path | None = None,
        device: torch.device | str = "cpu",
        trust_remote_code: bool = False,
    ) -> RewardModel:
        """Load a causal or encoder model to train into a reward model, with dropout off.

        A head that is there is kept (training goes on from an older reward model); a new one is
        drawn from a normal distribution of deviation 1 / sqrt(H + 1) (N+ implementation details,
        Huang et al. 2024).

        Args:
            source: folder, `.gguf` file or hub id, an SFT checkpoint as a rule.
            seed: of the new head.
            max_length: longest input in tokens, saved with the model; its own when None.
            tokenizer_source: where the tokenizer is; the model's own when None.
            device: where it is put.
            trust_remote_code: runs code that the checkpoint carries.

        Raises:
            ModelError: nothing loadable is there, weights other than the head's are missing, or
                padding can't be told from the end of a sequence.
        """
        # The seed decides the new head and nothing else: what is drawn later is as it would be.
        with torch.random.fork_rng(), quiet_loading():
            torch.manual_seed(seed)
            classifier, info = load_classifier(
                source, dtype=torch.float32, trust=trust_remote_code, num_labels=1
            )
            new = set(info["missing_keys"]) | {str(k[0]) for k in info["mismatched_keys"]}
            strange = sorted(new - head_weights(classifier)) if new else []
            if strange:
                raise ModelError(
                    f"{source} lacks weights of {type(classifier).__name__}: "
                    f"{', '.join(strange[:3])}; it is a checkpoint of another architecture"
                )
            draw_head(classifier, new)
        disable_dropout(classifier)
        source = source if tokenizer_source is None else tokenizer_source
        model = cls._build(source, classifier, device=device, trust=trust_remote_code)
        pad = require_distinct_pad(model.tokenizer, source)
        classifier.config.pad_token_id = pad
        if max_length is not None:
            model.encoder.max_length = min(max_length, model.encoder.max_length)
            setattr(classifier.config, LENGTH, model.encoder.max_length)
        model.set_bias(0.0)
        model.encoder.unread, model.encoder.whole_turns = pad, False
        setattr(classifier.config, TRAINED, False)
        return model

    @classmethod
    def _build(
        cls,
        source: str | Path,
        classifier: Any,
        *,
        device: torch.device | str | None = None,
        batch_size: int = 64,
        trust: bool = False,
    ) -> RewardModel:
        tokenizer = load_tokenizer(source, trust_remote_code=trust)
        require_rows(classifier, tokenizer, source)
        module = ScoringModule(classifier)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(
            module=module.to(device).eval(),
            tokenizer=tokenizer,
            encoder=encoder_for(classifier.config, tokenizer, pairs=not module.reads_last_token),
            bias=float(getattr(classifier.config, BIAS, 0.0) or 0.0),
            device=device,
            batch_size=batch_size,
            as_it_came=copy.deepcopy(tokenizer),
        )

    @property
    def pad_id(self) -> int:
        """Id that fills up rows; its value can't change a score."""
        return int(self.tokenizer.pad_token_id or 0)

    def set_bias(self, bias: float) -> None:
        """Set what is added to every score, here and in the configuration that is saved."""
        self.bias = bias
        setattr(self.module.classifier.config, BIAS, bias)

    def score_informed(
        self, prompts: Sequence[Prompt], responses: Sequence[str], facts: Facts
    ) -> list[float]:
        """Return the score of each response, those that were cut off without an end marker."""
        return self.score(prompts, responses, ended=facts.ended)

    def score(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[str],
        *,
        ended: Sequence[bool] | None = None,
        advance: Callable[[int], None] | None = None,
    ) -> list[float]:
        """Return the score of each response, in order; other texts of the batch don't change it.

        Args:
            prompts: plain texts or chats.
            responses: one response a prompt, without special tokens.
            ended: False where a response was cut off and shall be scored without an end marker;
                by default all count as finished.
            advance: called with the number of texts scored since the last call.

        Raises:
            ModelError: a score is not finite.
        """
        require_same_length(prompts, responses)
        flags = [True] * len(prompts) if ended is None else list(ended)
        require_same_length(prompts, flags)
        rows = zip(prompts, responses, flags, strict=True)
        sequences = [self.encoder.encode(p, r, ended=e) for p, r, e in rows]
        return [raw + self.bias for raw in self.raw_scores(sequences, advance=advance)]

    @torch.no_grad()
    def raw_scores(
        self,
        sequences: Sequence[Sequence[int]],
        *,
        advance: Callable[[int], None] | None = None,
    ) -> list[float]:
        """Return the scores of encoded sequences without the bias, computed longest first.

        Those that begin alike share what they begin with, where the architecture allows.
        """
        as_trees = self.module.takes_as_trees(sequences)
        scores = [0.0] * len(sequences)
        self.module.eval()
        tokens = self.batch_tokens
        most = {"rows": self.batch_size} if tokens is None else {"tokens": tokens}
        for batch in scoring_batches(sequences, trees=as_trees, **most):
            rows = [[sequences[i] for i in tree] for tree in batch]
            inputs = collate(rows, as_trees=as_trees, pad_id=self.pad_id, device=self.device)
            chosen = [i for tree in batch for i in tree]
            for index, value in zip(chosen, self.module(*inputs).tolist(), strict=True):
                if not math.isfinite(value):
                    raise ModelError(f"the reward model gave a score of {value}; train it again")
                scores[index] = value
            if advance is not None:
                advance(len(chosen))
        return scores

    def save(
        self, folder: str | Path, *, trained: bool = True, state: dict[str, Tensor] | None = None
    ) -> None:
        """Save model and tokenizer in the layout that `from_pretrained` loads; safetensors only.

        Args:
            folder: made if it isn't there.
            trained: whether the head is worth loading; False makes `load` refuse it.
            state: weights of the classifier gathered from many processes.
        """
        setattr(self.module.classifier.config, TRAINED, trained)
        Path(folder).mkdir(parents=True, exist_ok=True)
        more = {} if state is None else {"state_dict": state}
        with quiet_loading():
            self.module.classifier.save_pretrained(folder, **more)
        words = self.tokenizer if self.as_it_came is None else self.as_it_came
        words.save_pretrained(folder)
