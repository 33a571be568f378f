"""Sampling and ranking in chunks of prompts, so that a killed run repeats one chunk at most.

What is sampled for a chunk follows from the seed and the chunk's number, so a run that was cut off
ends in the same file as one that was not.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from data.errors import Interrupted, SourceError
from data.json_lines import append_json_lines, read_json_lines
from data.records import PromptRow, Ranking, prompt_hash, to_json, to_prompt, to_ranking
from data.text.chat import response_ids
from data.text.prompt_notes import PromptNotes
from data.words import counted
from pipeline.contract.sources import PROMPTS, RANKINGS
from pipeline.generation.generate import Sample, Sampling, generate, response_text
from pipeline.generation.tools.toolbox import ToolBox, told, toolbox
from pipeline.models.load import (
    context_length,
    eos_ids,
    load_policy,
    load_tokenizer,
    pick_device,
    resolve_bf16,
)
from pipeline.models.seq2seq import asked_ids, has_room, is_encoder_decoder
from pipeline.models.unused_ids import leave_out_unused
from pipeline.stages.rankings.labelers import GoldLabeler, Labeler, RewardLabeler, Unranked
from pipeline.stages.rankings.settings import CHUNK
from pipeline.stages.reward_terms import load_judge

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pipeline.contract.context import StageContext
    from pipeline.stages.rankings.settings import RankingsSettings

SAVE_SECONDS = 15.0
"""A chunk that ends earlier after a save does not save again."""
FILE = "rankings.jsonl"
_COUNTS = "counts.json"


@dataclass
class Sampler:
    """What samples: model and tokenizer, and what was counted."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    pad_token_id: int
    tools: ToolBox | None = None
    counts: Counter[str] = field(default_factory=Counter)


def sample_and_rank(context: StageContext[RankingsSettings]) -> dict[str, Any]:
    """Sample completions of every prompt, have them ranked, write them; return the metrics.

    Raises:
        Interrupted: a signal asked to stop; finished chunks are kept.
    """
    path = context.folder / FILE
    sampler = make_sampler(context)
    labeler = _labeler(context, sampler)

    def ranked(items: list[Unranked]) -> Iterator[dict[str, Any]]:
        for item, ranks in zip(items, labeler.rank(items), strict=True):
            yield to_json(item.ranked(ranks, labeler.name))

    sample(context, sampler, path, ranked)
    metrics = summarise(read_rankings(path))
    require_prompts(context, metrics["n_prompts"])
    return {**metrics, **sampling_metrics(sampler.counts)}


def _labeler(context: StageContext[RankingsSettings], sampler: Sampler) -> Labeler:
    settings = context.settings
    if settings.reward is None:
        return GoldLabeler(
            world_seed=settings.prompts[0].world_seed,
            noise=settings.noise,
            seed=context.seed,
            truth=settings.labeler == "truth",
        )

    def tokens(item: Unranked) -> list[int]:
        ends = zip(item.completions, item.ended, strict=True)
        return [len(response_ids(sampler.tokenizer, text)) + ended for text, ended in ends]

    asked = next(context.read("prompts", settings.prompts, to_prompt, wanted=PROMPTS)).prompt
    judge = load_judge(context, settings.reward, prompt=asked, batch_size=settings.batch_size)
    return RewardLabeler(judge, tokens)


def sample(
    context: StageContext[RankingsSettings],
    sampler: Sampler,
    path: Path,
    rows_of: Callable[[list[Unranked]], Iterable[Mapping[str, Any]]],
) -> int:
    """Sample completions of every prompt and append what `rows_of` makes of them to a file.

    Returns:
        The number of chunks.

    Raises:
        Interrupted: a signal asked to stop; finished chunks are kept.
    """
    prompts = _prompts(context, sampler)
    chunks = [prompts[start : start + CHUNK] for start in range(0, len(prompts), CHUNK)]
    context.resume.track(path)
    latest = context.resume.latest()
    done = 0
    if latest is not None:
        done, folder = latest
        sampler.counts = read_counts(folder)
        context.say(f"going on after {done * CHUNK} of {len(prompts)} prompts")
    else:
        path.unlink(missing_ok=True)
    saved = time.monotonic()
    each = context.settings.completions
    total = len(prompts) * each
    ready = min(done * CHUNK, len(prompts)) * each
    with context.progress(total, "sampling", done=ready, unit="completions") as bar:
        for number in range(done, len(chunks)):
            items = _sample_chunk(context, sampler, chunks[number], number, bar.advance)
            append_json_lines(path, rows_of(items))
            if context.should_stop() and number + 1 < len(chunks):
                save_counts(context, number + 1, sampler.counts)
                raise Interrupted(
                    f"stage {context.name} stopped after {(number + 1) * CHUNK} prompts"
                )
            if time.monotonic() - saved > SAVE_SECONDS:
                save_counts(context, number + 1, sampler.counts)
                saved = time.monotonic()
    _say_counts(context, sampler.counts, total)
    return len(chunks)


def save_counts(context: StageContext[RankingsSettings], chunks: int, counts: Counter[str]) -> None:
    """Save that so many chunks are done."""
    content = json.dumps(counts)
    context.resume.save(chunks, lambda to: _write(to / _COUNTS, content))


def read_counts(folder: Path) -> Counter[str]:
    """Return the counts of a resume state."""
    return Counter(json.loads((folder / _COUNTS).read_text(encoding="utf-8")))


def require_prompts(context: StageContext[RankingsSettings], count: int) -> None:
    """Refuse to go on with nothing to rank.

    Raises:
        SourceError: there is nothing.
    """
    if not count:
        raise SourceError(
            f"stage {context.name}: no prompt has two completions that differ; raise temperature "
            "or completions"
        )


def sampling_metrics(counts: Counter[str]) -> dict[str, Any]:
    """Return the final metrics of sampling."""
    samples = max(1, counts["samples"])
    return {
        "ended_share": counts["ended"] / samples,
        "mean_tokens": counts["tokens"] / samples,
        **(
            {
                "mean_calls": counts["calls"] / samples,
                "failed_call_share": counts["failed_calls"] / counts["calls"],
            }
            if counts["calls"]
            else {}
        ),
        **{
            name: counts[name]
            for name in ("n_same_completions", "n_dropped_prompts", "n_too_long_prompts")
        },
    }


def copy_rankings(context: StageContext[RankingsSettings]) -> dict[str, Any]:
    """Write the rankings of files as they are; return the metrics.

    Raises:
        SourceError: a source holds other rows.
    """
    path = context.folder / FILE
    path.unlink(missing_ok=True)
    sources = context.settings.rankings
    rankings = [*context.read("rankings", sources, to_ranking, wanted=RANKINGS)]
    if context.settings.limit is not None:
        rankings = drawn(rankings, context.settings.limit, context.seed)
    append_json_lines(path, map(to_json, rankings))
    return summarise(rankings)


def make_sampler(context: StageContext[RankingsSettings]) -> Sampler:
    """Load the model that answers, and its tokenizer."""
    return load_sampler(context, context.input("model"))


def load_sampler(context: StageContext[RankingsSettings], source: str | Path) -> Sampler:
    """Load a checkpoint, and its tokenizer."""
    settings, device = context.settings, pick_device()
    tokenizer = load_tokenizer(source, trust_remote_code=settings.trust_remote_code)
    half = resolve_bf16(settings.bf16, device)
    model = load_policy(
        source,
        dtype=torch.bfloat16 if half else torch.float32,
        trust_remote_code=settings.trust_remote_code,
    )
    return Sampler(
        model=leave_out_unused(model, tokenizer).to(device),
        tokenizer=tokenizer,
        pad_token_id=int(tokenizer.pad_token_id or 0),
        tools=toolbox(settings.tools, tokenizer, context.say),
    )


def drawn(rows: list[Any], limit: int, seed: int) -> list[Any]:
    """Return so many rows, drawn by the seed, in the order they came."""
    if limit >= len(rows):
        return rows
    places = sorted(random.Random(f"{seed} limit").sample(range(len(rows)), limit))
    return [rows[place] for place in places]


def _prompts(
    context: StageContext[RankingsSettings], sampler: Sampler
) -> list[tuple[PromptRow, list[int]]]:
    """Return the prompts and their tokens, each once, none too long.

    Raises:
        SourceError: a row holds no prompt, or too many are too long.
    """
    settings = context.settings
    rows: dict[str, PromptRow] = {}
    for row in context.read("prompts", settings.prompts, to_prompt, wanted=PROMPTS):
        rows.setdefault(prompt_hash(row.prompt), row)
    chosen = list(rows.values())
    if settings.limit is not None:
        chosen = drawn(chosen, settings.limit, context.seed)
    retriever = settings.retriever(context.say)
    if retriever is not None:
        reads = [retriever.read(row.prompt, sampler.tokenizer)[0] for row in chosen]
        chosen = [replace(row, prompt=read) for row, read in zip(chosen, reads, strict=True)]
    limit = context_length(sampler.model)
    paired = is_encoder_decoder(sampler.model)
    asked = [(row, told(settings.tools, row.prompt)) for row in chosen]
    encoded = [
        (row, asked_ids(sampler.tokenizer, prompt, encoder_decoder=paired)) for row, prompt in asked
    ]
    for line in PromptNotes.of(sampler.tokenizer, (row.prompt for row in chosen)).lines():
        context.say(line)
    fitting = [
        (row, ids)
        for row, ids in encoded
        if has_room(limit, len(ids), settings.max_new_tokens, encoder_decoder=paired)
    ]
    lost = len(encoded) - len(fitting)
    sampler.counts["n_too_long_prompts"] = lost
    if lost > settings.max_too_long_share * len(encoded):
        raise SourceError(
            f"stage {context.name}: {lost} of {len(encoded)} prompts with max_new_tokens "
            f"{settings.max_new_tokens} do not fit the context of {limit} tokens, more than "
            "max_too_long_share allows; lower max_new_tokens, or raise that share to drop them"
        )
    return fitting


def _sample_chunk(
    context: StageContext[RankingsSettings],
    sampler: Sampler,
    chunk: Sequence[tuple[PromptRow, list[int]]],
    number: int,
    advance: Any,
) -> list[Unranked]:
    settings, each = context.settings, context.settings.completions
    seed = random.Random(f"{context.seed} {number}").getrandbits(62)
    samples = generate(
        sampler.model,
        [ids for _, ids in chunk for _ in range(each)],
        sampling=Sampling(
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
        ),
        eos_token_ids=eos_ids(sampler.tokenizer, sampler.model),
        pad_token_id=sampler.pad_token_id,
        generator=torch.Generator().manual_seed(seed),
        batch_size=settings.batch_size,
        tools=sampler.tools,
        advance=advance,
        say=context.say,
    )
    items: list[Unranked] = []
    for place, (row, ids) in enumerate(chunk):
        mine = samples[place * each : (place + 1) * each]
        texts = [response_text(sampler.tokenizer, row.prompt, ids, sample) for sample in mine]
        item = _distinct(row, mine, texts, sampler, name=f"{context.name}/{number * CHUNK + place}")
        if item is not None:
            items.append(item)
    return items


def _distinct(
    row: PromptRow, samples: Sequence[Sample], texts: Sequence[str], sampler: Sampler, *, name: str
) -> Unranked | None:
    """Return a prompt's different completions, or None when there are fewer than two."""
    ended: dict[str, bool] = {}
    for sample, text in zip(samples, texts, strict=True):
        ended[text] = ended.get(text, False) or sample.ended
        sampler.counts["samples"] += 1
        sampler.counts["ended"] += sample.ended
        sampler.counts["tokens"] += len(sample.own_ids)
        sampler.counts["calls"] += len(sample.calls)
        sampler.counts["failed_calls"] += sum(call.error for call in sample.calls)
    sampler.counts["n_same_completions"] += len(samples) - len(ended)
    if len(ended) < 2:
        sampler.counts["n_dropped_prompts"] += 1
        return None
    return Unranked(
        prompt=row.prompt,
        completions=list(ended),
        id=row.id or name,
        ended=list(ended.values()),
        meta=row.meta,
    )


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def read_rankings(path: Path) -> Iterator[Ranking]:
    """Yield the rankings of a file of JSON lines."""
    return (Ranking(**row) for row in read_json_lines(path))


def summarise(rankings: Iterable[Ranking]) -> dict[str, Any]:
    """Count prompts, completions and pairs, and how often the longer of two wins.

    `longer_wins` is over ranked pairs; of equal length counts half.
    """
    prompts = completions = pairs = tied = 0
    longer = 0.0
    for ranking in rankings:
        prompts += 1
        completions += len(ranking.completions)
        lengths = [len(text) for text in ranking.completions]
        for a, b in combinations(range(len(lengths)), 2):
            if ranking.ranks[a] == ranking.ranks[b]:
                tied += 1
                continue
            pairs += 1
            better, worse = (a, b) if ranking.ranks[a] < ranking.ranks[b] else (b, a)
            longer += _longer(lengths[better], lengths[worse])
    return {
        "n_prompts": prompts,
        "n_pairs": pairs,
        "tie_share": tied / max(1, pairs + tied),
        "mean_completions": completions / max(1, prompts),
        "longer_wins": longer / max(1, pairs),
    }


def _longer(better: int, worse: int) -> float:
    return 0.5 if better == worse else float(better > worse)


def _say_counts(
    context: StageContext[RankingsSettings], counts: Counter[str], sampled: int
) -> None:
    if counts["n_same_completions"]:
        context.say(f"{counts['n_same_completions']} of {sampled} completions repeated another")
    if counts["n_dropped_prompts"]:
        context.say(
            f"{counted(counts['n_dropped_prompts'], 'prompt')} dropped: all completions the same"
        )
    if counts["n_too_long_prompts"]:
        context.say(
            f"{counted(counts['n_too_long_prompts'], 'prompt')} dropped: too long for the context"
        )
