"""Checkpoints to talk with: found by what a user types, loaded with their tokenizers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from data.storage import expand

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from data.records import Message, Prompt
    from pipeline.contract.tool_settings import ToolsSettings
    from pipeline.generation.tools.toolbox import ToolBox


@dataclass
class ChatModel:
    """One checkpoint and its side of the conversation."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    generator: torch.Generator
    plain: bool
    toolbox: ToolBox | None = None
    messages: list[Message] = field(default_factory=list)

    @property
    def manner(self) -> str:
        """What it does with a message."""
        from pipeline.models.seq2seq import is_encoder_decoder

        if not self.plain:
            return "answers"
        verb = "rewrites" if is_encoder_decoder(self.model) else "continues"
        return f"{verb} plain text"

    def has_room(self, ids: list[int], new: int) -> bool:
        """Tell whether the context leaves room for so many tokens of a reply."""
        from pipeline.models.load import context_length
        from pipeline.models.seq2seq import has_room, is_encoder_decoder

        paired = is_encoder_decoder(self.model)
        return has_room(context_length(self.model), len(ids), new, encoder_decoder=paired)

    def end_ids(self) -> list[int]:
        """Return the tokens that end a reply; of plain text the end of a document, too."""
        from data.text.prompting import document_end_ids
        from pipeline.models.load import eos_ids

        extra = document_end_ids(self.tokenizer) if self.plain else []
        return [*eos_ids(self.tokenizer, self.model), *extra]

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Return the tokens after which the reply is sampled."""
        from data.text.prompting import document_end_ids
        from pipeline.models.seq2seq import asked_ids, is_encoder_decoder

        paired = is_encoder_decoder(self.model)
        if self.toolbox is not None:
            prompt = self.toolbox.form.told(prompt)
        ids = asked_ids(self.tokenizer, prompt, encoder_decoder=paired)
        if isinstance(prompt, str) and not paired and ids[0] not in self.tokenizer.all_special_ids:
            return document_end_ids(self.tokenizer) + ids
        return ids


def short_names(checkpoints: Sequence[str]) -> list[str]:
    """Return the shortest endings of the paths that tell them apart."""
    parts = [Path(checkpoint).parts or (checkpoint,) for checkpoint in checkpoints]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({place})" for place, name in enumerate(checkpoints, start=1)]


def load_chat_model(
    name: str,
    checkpoint: str,
    *,
    seed: int,
    plain: bool,
    tools: ToolsSettings | None = None,
    trust_remote_code: bool,
) -> ChatModel:
    """Load a checkpoint with its tokenizer.

    Raises:
        RlhfError: it can't be loaded, or is damaged.
    """
    import torch

    from data.text.templates import has_template, require_template
    from pipeline.generation.tools.toolbox import toolbox
    from pipeline.models.load import bf16_supported, load_policy, load_tokenizer, pick_device
    from pipeline.models.unused_ids import leave_out_unused

    device = pick_device()
    source, pretrained = _locate(checkpoint)
    tokenizer = load_tokenizer(source, trust_remote_code=trust_remote_code)
    plain = plain or pretrained or not has_template(tokenizer)
    if not plain:
        require_template(tokenizer)
    half = device.type == "cuda" and bf16_supported(device)
    model = load_policy(
        source,
        dtype=torch.bfloat16 if half else torch.float32,
        trust_remote_code=trust_remote_code,
    )
    return ChatModel(
        name=name,
        model=leave_out_unused(model, tokenizer).to(device),
        tokenizer=tokenizer,
        generator=torch.Generator().manual_seed(seed),
        plain=plain,
        toolbox=toolbox(tools, tokenizer),
    )


def _locate(checkpoint: str) -> tuple[str | Path, bool]:
    """Return what to load for an argument, and whether it was only pretrained.

    Raises:
        ModelError: the folder holds stages, not a model.
        ArtifactError: a file of the stage is damaged.
    """
    from pipeline.contract.artifacts import find
    from pipeline.contract.handover import local_checkpoint

    folder = local_checkpoint(checkpoint)
    if folder is None:
        return checkpoint, False
    artifact = find(expand(checkpoint))
    return folder, artifact is not None and artifact.kind in ("pretrain", "distill")
