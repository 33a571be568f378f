"""What is odd about how a checkpoint is asked and sampled, beside what it says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from data.records import Prompt
from data.text.chat import front_ids
from data.words import counted
from pipeline.generation.generate import Sampling

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

_NEUTRAL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0, "repetition_penalty": 1.0}
"""Settings of a generation_config.json that change what is drawn, where they change nothing."""


NO_PERPLEXITY = (
    "it has no perplexity and no bits per byte: an encoder-decoder says how likely a text is "
    "behind another one, not by itself"
)


def asking_notes(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    prompts_ids: Sequence[Sequence[int]],
    *,
    plain: bool,
) -> list[str]:
    """Return what is odd about a checkpoint's prompts: no template, bos twice, bos missing.

    Args:
        tokenizer: of the checkpoint.
        prompts: what it answers.
        prompts_ids: the tokens it is given for them.
        plain: whether plain text was asked for.
    """
    chats = [
        list(ids)
        for prompt, ids in zip(prompts, prompts_ids, strict=True)
        if not isinstance(prompt, str)
    ]
    notes, bos = [], tokenizer.bos_token_id
    if chats and not plain and not tokenizer.chat_template:
        notes.append(
            f"it has no chat template, so {counted(len(chats), 'chat')} were put to it as plain "
            "text; name it in `plain` where that is meant"
        )
    twice = sum(bos is not None and list(ids[:2]) == [bos, bos] for ids in prompts_ids)
    if twice:
        notes.append(
            f"{tokenizer.bos_token} stands twice at the start of {counted(twice, 'prompt')}; its "
            "chat template should write it once"
        )
    front = front_ids(tokenizer)
    if front and tokenizer.chat_template and not plain:
        without = sum(ids[: len(front)] != front for ids in chats)
        if without:
            notes.append(
                f"{tokenizer.decode(front)} is missing at the start of {counted(without, 'chat')}: "
                "its tokenizer puts it in front of every text, its chat template writes none"
            )
    return notes


def sampling_notes(own: GenerationConfig | None, sampling: Sampling) -> list[str]:
    """Return how a checkpoint was sampled, where its own generation settings say otherwise.

    The sampling asked for is what counts, so that checkpoints compare; ends of a response are taken
    from a checkpoint's own settings.
    """
    if own is None:
        return []
    said = {
        key: value for key in _NEUTRAL if (value := own.to_diff_dict().get(key)) is not None
    }  # fmt: skip
    used = _NEUTRAL | {
        "temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p,
    }  # fmt: skip
    other = {key: value for key, value in said.items() if value != used[key]}
    if not other:
        return []
    told = ", ".join(f"{key} {value:g}" for key, value in other.items())
    drawn = ", ".join(f"{key} {used[key]:g}" for key in other)
    return [f"sampled at {drawn}, as all checkpoints here; its own settings say {told}"]
