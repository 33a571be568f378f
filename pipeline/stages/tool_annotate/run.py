"""Annotates texts in chunks; a run that was cut off repeats one chunk at most.

What is sampled for a chunk follows from the seed and the chunk's number, so that a run that was cut
off ends in the same files as one that was not.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from data.errors import Interrupted, SourceError
from data.json_lines import append_json_lines
from data.records import Completion, Conversation, Document, to_json
from pipeline.contract.sources import ROWS, TEXTS, as_it_is
from pipeline.generation.tools.toolbox import ToolBox
from pipeline.models.load import load_policy, load_tokenizer, pick_device, resolve_bf16
from pipeline.models.unused_ids import leave_out_unused
from pipeline.stages.tool_annotate.annotate import Annotated, Annotator, annotate
from pipeline.stages.tool_annotate.settings import CHUNK, ToolAnnotateSettings

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from pipeline.contract.context import StageContext

CALLS = "calls.jsonl"
SAVE_SECONDS = 15.0
"""A chunk that ends earlier after a save does not save again."""
_COUNTS = "counts.json"


def annotate_all(context: StageContext[ToolAnnotateSettings]) -> dict[str, Any]:
    """Annotate all texts, write them and the calls; return the metrics.

    Raises:
        SourceError: the rows are of several kinds, or hold no text.
        Interrupted: a signal asked to stop; finished chunks are kept.
    """
    records = _records(context)
    annotator = make_annotator(context)
    chunks = [records[start : start + CHUNK] for start in range(0, len(records), CHUNK)]
    paths = [context.folder / name for name in (ROWS, CALLS)]
    for path in paths:
        context.resume.track(path)
    latest, done = context.resume.latest(), 0
    if latest is None:
        for path in paths:
            path.unlink(missing_ok=True)
    else:
        done, folder = latest
        annotator.counts.update(json.loads((folder / _COUNTS).read_text(encoding="utf-8")))
        context.say(f"going on after {done * CHUNK} of {len(records)} texts")
    saved = time.monotonic()
    ready = min(done * CHUNK, len(records))
    with context.progress(len(records), "annotating", done=ready, unit="texts") as bar:
        for number in range(done, len(chunks)):
            seed = random.Random(f"{context.seed} {number}").getrandbits(62)
            rows, calls = annotate(annotator, chunks[number], seed)
            append_json_lines(paths[0], map(to_json, rows))
            append_json_lines(paths[1], calls)
            bar.advance(len(rows))
            stop = context.should_stop() and number + 1 < len(chunks)
            if stop or time.monotonic() - saved > SAVE_SECONDS:
                _save(context, number + 1, annotator.counts)
                saved = time.monotonic()
            if stop:
                raise Interrupted(
                    f"stage {context.name} stopped after {(number + 1) * CHUNK} texts"
                )
    return _told(context, annotator.counts, len(records))


def make_annotator(context: StageContext[ToolAnnotateSettings]) -> Annotator:
    """Load who judges calls, who writes them, and the tools."""
    settings, device = context.settings, pick_device()
    source = context.input("model")
    tokenizer = load_tokenizer(source, trust_remote_code=settings.trust_remote_code)
    half = resolve_bf16(settings.bf16, device)

    def loaded(setting: str) -> PreTrainedModel:
        model = load_policy(
            context.input(setting),
            dtype=torch.bfloat16 if half else torch.float32,
            trust_remote_code=settings.trust_remote_code,
        )
        return leave_out_unused(model, tokenizer).to(device)

    model = loaded("model")
    box = ToolBox.of(settings.tools, tokenizer, context.say)
    caller = model if settings.caller is None else loaded("caller")
    return Annotator(settings, model, caller, tokenizer, box)


def _records(context: StageContext[ToolAnnotateSettings]) -> list[Annotated]:
    """Return the records that are annotated, all of one kind.

    Raises:
        SourceError: they are of several kinds, or can't be annotated.
    """
    found: list[Annotated] = []
    wanted = "it takes text, conversations or pairs of prompt and completion, all of one kind"
    for record in context.read("train", context.settings.train, as_it_is, wanted=TEXTS):
        kinds = {type(one).__name__: None for one in (*found[:1], record)}
        if len(kinds) > 1 or not isinstance(record, Document | Completion | Conversation):
            rows = f"{' and '.join(kinds)} rows"
            raise SourceError(f"stage {context.name}: train holds {rows}; {wanted}")
        found.append(record)
        if len(found) == context.settings.limit:
            break
    return found


def _save(
    context: StageContext[ToolAnnotateSettings], chunks: int, counts: Mapping[str, float]
) -> None:
    def write(folder: Path) -> None:
        (folder / _COUNTS).write_text(json.dumps(counts), encoding="utf-8")

    context.resume.save(chunks, write)


def _told(
    context: StageContext[ToolAnnotateSettings], counts: Mapping[str, float], texts: int
) -> dict[str, Any]:
    """Say how many calls of each tool were tried and kept; return the metrics."""

    def number(name: str) -> int:
        return int(counts.get(name, 0))

    names = context.settings.tools.names
    metrics: dict[str, Any] = {
        "n_texts": texts,
        "n_annotated": number("n_annotated"),
        "n_calls": sum(number(f"kept/{name}") for name in names),
        "n_no_calls": number("n_no_calls"),
    }
    for name in names:
        told = {what: number(f"{what}/{name}") for what in ("tried", "failed", "kept")}
        gain = counts[f"gain/{name}"] / told["kept"] if told["kept"] else 0.0
        context.say(
            f"{name}: {told['tried']:,} calls tried, {told['failed']:,} failed, "
            f"{told['kept']:,} kept, which save {gain:.2f} nats a token"
        )
        metrics |= {f"{what}/{name}": count for what, count in told.items()}
        metrics[f"gain/{name}"] = gain
    return metrics
