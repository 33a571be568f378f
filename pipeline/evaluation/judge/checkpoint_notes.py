"""What is odd about how a checkpoint is asked, beside what it says of itself."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from data.records import Prompt
from data.text.chat import front_ids
from data.words import counted
from pipeline.evaluation.judge.plan import Plan, sampling_seed
from pipeline.evaluation.judge.workspace import checkpoint_content

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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


def provenance(plan: Plan, name: str, answers: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint is, and how it was asked; no place, which says nothing of it."""
    return {
        "checkpoint": name,
        "content": checkpoint_content(plan.checkpoints[name]),
        "seed": sampling_seed(plan.seed, name),
        "decoding": dataclasses.asdict(plan.decodings[name].sampling),
        "own_settings": list(plan.decodings[name].own),
        "dtype": "bfloat16" if plan.bf16 else "float32",
        "template": answers["template"],
        "first_prompt": answers["first_prompt"],
        "first_tokens": answers["prompts"][0][:8],
    }


def short_digest(text: str) -> str:
    """Return the first 16 hex digits of a text's sha256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
