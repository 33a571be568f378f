"""Stage `select`: the SFT candidate whose responses the reward likes best.

Reference: Ouyang et al. 2022 (InstructGPT), section 3.5: they trained SFT for 16 epochs and chose
the checkpoint by reward-model score on the validation prompts, since validation loss rises after
one epoch while the score still does.

Every candidate answers the same prompts with the same random numbers. Leaves the winner as
`model/`, `selection.json` (each candidate's mean score with its 95 % interval, and the paired
difference to the winner) and `samples.jsonl` (every response with its score).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import HandOverError, SourceError
from data.json_lines import append_json_lines
from data.storage import expand, storage_errors, write_atomically
from pipeline.contract.kind import StageKind
from pipeline.contract.settings import is_external, rows_at_most
from pipeline.contract.sources import PROMPTS
from pipeline.stages.checks import require_caller, require_corpus, require_prompts, require_room
from pipeline.stages.reward_terms import (
    check_rewards,
    load_judge,
)
from pipeline.stages.select.settings import MAX_PROMPTS, SelectSettings

if TYPE_CHECKING:
    from data.records import Prompt, PromptRow
    from pipeline.contract.context import StageContext
    from pipeline.contract.handover import HandOver
    from pipeline.generation.generate import Sample
    from reward.scorer import Scorer


def check(settings: SelectSettings, hand: HandOver) -> None:
    """Refuse a policy without candidates, and rewards that can't be had.

    Raises:
        HandOverError: one of the two does not fit.
    """
    check_rewards(settings.terms, hand)
    hand.require_rows(settings.model)
    folder = hand.folder(settings.model)
    if folder is not None:
        _candidates(_artifact_folder(folder), settings.model, hand.name)
    elif not is_external(settings.model):
        stage = hand.settings(settings.model)
        if stage is not None and stage.kind != "sft":
            raise HandOverError(
                f"stage {hand.name}: model names {settings.model}, a {stage.kind} stage; "
                "candidates come from an sft stage"
            )
        if getattr(stage, "candidates", 2) < 2:
            raise HandOverError(
                f"stage {hand.name}: {settings.model} has candidates: 1; set it to 2 or more, or "
                "leave this stage out"
            )
    why = "candidates are language models that write"
    hand.require_writer(settings.model, "model", why, encoder_decoder=True)
    require_caller(hand, settings.model, settings.tools)
    require_room(hand, settings.model, settings, settings.max_new_tokens)
    require_corpus(hand, settings.retrieve)
    require_prompts(hand, settings.prompts)


def _artifact_folder(folder: Path) -> Path:
    return folder.parent if folder.name == "model" else folder


def _candidates(folder: Path, source: str, stage: str) -> dict[str, Path]:
    """Return the candidates of an SFT stage by name, in order of their names.

    Raises:
        HandOverError: there are none.
    """
    folders = {p.name: p for p in sorted((folder / "candidates").glob("*")) if p.is_dir()}
    if not folders:
        raise HandOverError(
            f"stage {stage}: {source} holds no candidates/ to choose from; have the sft stage "
            "publish several checkpoints"
        )
    return folders


def run(context: StageContext[SelectSettings]) -> dict[str, float | int | str]:
    """Sample, score, choose and publish; return the final metrics."""
    from reward.scorer import Facts, scores_of

    settings = context.settings
    source = expand(context.input("model"))
    candidates = _candidates(_artifact_folder(source), settings.model, context.name)
    prompts = _prompts(context)
    asked = _asked(context, next(iter(candidates.values())), prompts)
    scorer = load_judge(context, settings.reward, prompt=asked[0], batch_size=settings.batch_size)
    scores: dict[str, list[float]] = {}
    total = len(candidates) * len(prompts)
    with context.progress(total, "candidates", unit="responses") as bar:
        for name, folder in candidates.items():
            context.stop_if_asked()
            texts, samples = _answer(context, folder, asked, bar.advance)
            facts = Facts(
                rows=[row.meta for row in prompts],
                tokens=[len(sample.own_ids) for sample in samples],
                ended=[sample.ended for sample in samples],
            )
            scores[name] = scores_of(scorer, asked, texts, facts)
            _write_samples(context, name, asked, texts, samples, scores[name])
    selection = selection_of(scores)
    selection["n_truncated"] = _truncated(scorer)
    winner = selection["winner"]
    _publish(context, candidates[winner], selection)
    mean = selection["candidates"][winner]["mean"]
    for name, row in selection["candidates"].items():
        mark = " <- chosen" if name == winner else ""
        context.say(f"{name}: mean score {row['mean']:.3f} ± {row['half_width']:.3f}{mark}")
    return {"selected": winner, "eval/mean_score": mean, "n_prompts": len(prompts)}


def _asked(
    context: StageContext[SelectSettings], folder: Path, rows: Sequence[PromptRow]
) -> list[Prompt]:
    """Return prompts behind their passages, and say what is of note in them."""
    from data.text.prompt_notes import PromptNotes
    from pipeline.models.load import load_tokenizer

    tokenizer, prompts = load_tokenizer(folder), [row.prompt for row in rows]
    retriever = context.settings.retriever(context.say)
    if retriever is not None:
        prompts = [retriever.read(prompt, tokenizer)[0] for prompt in prompts]
    for line in PromptNotes.of(tokenizer, prompts).lines():
        context.say(line)
    return prompts


def _truncated(scorer: Scorer) -> int:
    """Return how many texts were cut for the reward models that a scorer is made of."""
    parts = [part[0] for part in getattr(scorer, "terms", ())]
    parts += getattr(scorer, "members", ())
    if parts:
        return sum(map(_truncated, parts))
    encoder = getattr(scorer, "encoder", None)
    return 0 if encoder is None else int(encoder.truncated)


def _prompts(context: StageContext[SelectSettings]) -> list[PromptRow]:
    from data.records import prompt_hash, to_prompt

    rows: dict[str, PromptRow] = {}
    most = rows_at_most(context.settings.prompts, MAX_PROMPTS)
    for row in context.read("prompts", context.settings.prompts, to_prompt, wanted=PROMPTS):
        rows.setdefault(prompt_hash(row.prompt), row)
        if len(rows) == most:
            break
    if not rows:
        raise SourceError(f"stage {context.name}: its sources hold no prompt; nothing to answer")
    return list(rows.values())


def _answer(
    context: StageContext[SelectSettings],
    folder: Path,
    prompts: Sequence[Prompt],
    advance: Any,
) -> tuple[list[str], list[Sample]]:
    """Return each prompt's response by one candidate, as text and as sampled."""
    import torch

    from pipeline.generation.generate import Sampling, generate, response_text
    from pipeline.generation.tools.toolbox import told, toolbox
    from pipeline.models.load import eos_ids, load_policy, load_tokenizer, pick_device
    from pipeline.models.seq2seq import asked_ids, is_encoder_decoder
    from pipeline.models.unused_ids import leave_out_unused

    settings = context.settings
    tokenizer = load_tokenizer(folder)
    device = pick_device()
    model = leave_out_unused(load_policy(folder), tokenizer).to(device)
    paired = is_encoder_decoder(model)
    asked = [told(settings.tools, prompt) for prompt in prompts]
    encoded = [asked_ids(tokenizer, prompt, encoder_decoder=paired) for prompt in asked]
    samples = generate(
        model,
        encoded,
        sampling=Sampling(settings.max_new_tokens, settings.temperature),
        eos_token_ids=eos_ids(tokenizer, model),
        pad_token_id=int(tokenizer.pad_token_id or 0),
        generator=torch.Generator().manual_seed(context.seed),
        batch_size=settings.batch_size,
        tools=toolbox(settings.tools, tokenizer, context.say),
        advance=advance,
        say=context.say,
    )
    texts = [
        response_text(tokenizer, *asked) for asked in zip(prompts, encoded, samples, strict=True)
    ]
    return texts, samples


def selection_of(scores: dict[str, list[float]]) -> dict[str, Any]:
    """Return the content of `selection.json`: the winner and every candidate's figures.

    Args:
        scores: the scores of each candidate's responses to the same prompts, in one order.
    """
    means = {name: sum(values) / len(values) for name, values in scores.items()}
    winner = max(means, key=lambda name: means[name])
    rows = {}
    for name, values in scores.items():
        half = _half_width(values)
        differences = [a - b for a, b in zip(values, scores[winner], strict=True)]
        gap, gap_half = means[name] - means[winner], _half_width(differences)
        rows[name] = {
            "mean": means[name],
            "half_width": half,
            "ci95": [means[name] - half, means[name] + half],
            "difference": gap,
            "difference_ci95": [gap - gap_half, gap + gap_half],
            "n": len(values),
        }
    return {"winner": winner, "candidates": rows}


def _half_width(values: Sequence[float]) -> float:
    """Return half the 95 % interval of a mean, by Student's t."""
    from scipy.special import stdtrit

    n = len(values)
    if n < 2:
        return 0.0
    mean = sum(values) / n
    variance = sum((v - mean) ** 2 for v in values) / (n - 1)
    return float(stdtrit(n - 1, 0.975) * (variance / n) ** 0.5)


def _write_samples(
    context: StageContext[SelectSettings],
    name: str,
    prompts: Sequence[Prompt],
    texts: Sequence[str],
    samples: Sequence[Sample],
    scores: Sequence[float],
) -> None:
    called = context.settings.tools is not None
    rows = (
        {
            "checkpoint": name, "prompt": prompt, "response": text, "ended": sample.ended,
            "score": score, **({"calls": [*map(asdict, sample.calls)]} if called else {}),
        }
        for prompt, text, sample, score in zip(prompts, texts, samples, scores, strict=True)
    )  # fmt: skip
    append_json_lines(context.folder / "samples.jsonl", rows)


def _publish(context: StageContext[SelectSettings], winner: Path, selection: Any) -> None:
    folder = context.folder / "model"
    with storage_errors(folder):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(winner, folder)
    write_atomically(context.folder / "selection.json", json.dumps(selection, indent=2) + "\n")


KIND = StageKind(
    name="select",
    settings=SelectSettings,
    run=run,
    check=check,
    provides=frozenset({"policy", "tokenizer"}),
    main_metric="eval/mean_score",
    version=1,
    trains=False,
)
