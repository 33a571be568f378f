"""What a run of a grid cost and came to: parameters, FLOPs, and the loss on text kept apart."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.intervals import clustered_ratio


def model_counts(folder: Path, *, context_length: int) -> dict[str, float]:
    """Return the parameters of a checkpoint, those without embeddings, and its FLOPs a token.

    The FLOPs are counted by torch over a forward and a backward pass of a full chunk, matrix
    products of attention and head included; no weight is loaded.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        # Attention in plain products: the counter does not know every fused kernel.
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        ids_BT = torch.zeros(1, context_length, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            model(input_ids=ids_BT, labels=ids_BT).loss.backward()
    embeddings = {
        id(weight): weight.numel()
        for module in model.modules()
        if isinstance(module, torch.nn.Embedding)
        for weight in module.parameters()
    }
    head = model.get_output_embeddings()
    if head is not None:
        embeddings[id(head.weight)] = head.weight.numel()
    total = sum(weight.numel() for weight in model.parameters())
    return {
        "parameters": total,
        "non_embedding_parameters": total - sum(embeddings.values()),
        "flops_per_token": counter.get_total_flops() / context_length,
    }


def training_seconds(rows: Iterable[Mapping[str, Any]], *, step_tokens: float) -> float:
    """Return how long the steps of a run took, by its metrics: without start, packing and saves.

    Args:
        rows: of `metrics.jsonl`; a run that was cut off may have told a step twice.
        step_tokens: tokens of a step.
    """
    rates: dict[int, float] = {r["step"]: r["train/tokens_per_second"] for r in rows}
    steps = [0, *sorted(rates)]
    return sum((end - start) * step_tokens / rates[end] for start, end in itertools.pairwise(steps))


def heldout_loss(folder: Path, texts: Sequence[str]) -> dict[str, Any]:
    """Return a checkpoint's loss on texts in nats a token, with its interval over the texts."""
    from pipeline.models.load import load_policy, load_tokenizer
    from pipeline.training.objectives.perplexity import text_losses

    losses = text_losses(load_policy(folder), load_tokenizer(folder), texts)
    parts_P2 = np.array([[loss.nats, loss.tokens] for loss in losses if loss.tokens], np.float64)
    found = clustered_ratio(parts_P2)
    return {"loss": found.value, "loss_ci95": found.ci95}
