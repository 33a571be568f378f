"""Judges checkpoints: sample, measure, score, ask tasks, and write every judged row down.

One model is in memory at a time: first each checkpoint answers all prompts, then the reference
scores all answers, then the reward model does. What is ready is kept under the digest of all that
it follows from, so that an evaluation that was cut off goes on where it was, and one of a further
checkpoint, or of one that was trained again, computes what is new.

The KL to the reference is estimated on a checkpoint's own samples, log p_checkpoint - log
p_reference summed over the response's tokens (k1), both at the sampling temperature and given the
same tokens. It is left out where the two have different tokenizers.

The proxy reward is the reward model's score of the text, without the mark of an end where it was
cut off, and without PPO's penalty for that.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from data.errors import SourceError
from data.json_lines import write_json_lines
from data.sources.fingerprint import fingerprint
from data.storage import write_atomically
from data.text.prompt_notes import PromptNotes
from data.text.prompting import document_end_ids, prompt_ids
from pipeline.evaluation.benchmarks.asking import Subject
from pipeline.evaluation.benchmarks.figures import figures as task_figures
from pipeline.evaluation.benchmarks.run import TASKS, task_rows
from pipeline.evaluation.judge.checkpoint_notes import (
    NO_PERPLEXITY,
    asking_notes,
    provenance,
    short_digest,
)
from pipeline.evaluation.judge.figures import figures
from pipeline.evaluation.judge.judges import second_judge
from pipeline.evaluation.judge.logprobs import response_logprobs
from pipeline.evaluation.judge.over_optimisation import from_pool
from pipeline.evaluation.judge.overlap import held_out, overlap
from pipeline.evaluation.judge.plan import Plan, sampling_seed
from pipeline.evaluation.judge.sample_rows import own_sizes, sample_rows
from pipeline.evaluation.judge.sampling import apart_notes, common_sampling, sampling_notes
from pipeline.evaluation.judge.texts import TEXTS, text_figures
from pipeline.evaluation.judge.truthfulness import probability, truthfulness
from pipeline.evaluation.judge.verdict import verdict
from pipeline.evaluation.judge.workspace import EvaluationWorkspace, checkpoint_content
from pipeline.generation.generate import generate, response_text
from pipeline.models.load import (
    configured_context,
    eos_ids,
    load_config,
    load_policy,
    load_tokenizer,
    pick_device,
)
from pipeline.models.seq2seq import has_room, is_encoder_decoder
from pipeline.models.unused_ids import leave_out_unused
from pipeline.training.objectives.perplexity import text_losses
from reward.scorer import Facts, scores_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pipeline.evaluation.benchmarks.settings import TaskSettings

SAMPLES = "samples.jsonl"
JUDGEMENTS = "judgements.jsonl"
POOL = "best_of_n.jsonl"
RESULTS = "evaluation.json"


def evaluate(plan: Plan, workspace: EvaluationWorkspace) -> dict[str, Any]:
    """Evaluate all checkpoints; return what `evaluation.json` holds.

    Raises:
        ModelError: a checkpoint can't be loaded.
        SourceError: there is no prompt, or too many don't fit a checkpoint's context.
    """
    rows, answers, too_long = [], {}, 0
    if plan.best_of:
        plan.require_pool()
        _told_by(plan)
    if plan.prompts or not plan.tasks:
        plan, too_long = _fitting(plan, workspace)
        answers = {
            name: workspace.kept(
                f"{name}: answers",
                _follows_from(plan, name),
                partial(_answer, plan, workspace, name),
            )
            for name in plan.checkpoints
        }
        kls = _kls(plan, workspace, answers)
        scores = _scores(plan, workspace, answers)
        rows = [
            row
            for name in plan.checkpoints
            for row in sample_rows(plan, name, answers[name], kls[name], scores)
        ]
        write_json_lines(workspace.folder / SAMPLES, rows)
    asked, pool = _tasks(plan, workspace), None
    if plan.best_of and plan.reference:
        pool = _best_of_n(plan, workspace, plan.reference)
    judgements, judges = _judgements(plan, workspace, rows)
    results = _results(plan, rows, judgements, judges, answers, too_long)
    _add_texts(results, plan, workspace, answers)
    draw = {"resamples": plan.resamples, "seed": plan.seed}
    results["tasks"] = task_figures(asked, **draw)
    results["truthfulness"] = truthfulness(rows, asked, **draw)
    if pool:
        results["over_optimisation"] = pool
    write_atomically(
        workspace.folder / RESULTS, json.dumps(results, indent=2, allow_nan=False) + "\n"
    )
    return results


def _told_by(plan: Plan) -> str:
    """Return the judge that tells what choosing the best of n is worth."""
    return "gold" if plan.world_seed is not None else second_judge(plan.score_judges)


def _best_of_n(plan: Plan, workspace: EvaluationWorkspace, name: str) -> dict[str, Any]:
    """Draw a pool of answers to each prompt; return what choosing the best by proxy comes to."""
    prompts = [row for row in plan.prompts for _ in range(plan.best_of)]
    source = {name: plan.checkpoints[name]}
    pool = replace(plan, checkpoints=source, prompts=prompts, texts=(), reference=None)
    draw = partial(_answer, pool, workspace, name)
    answers = {name: workspace.kept(f"{name}: pool", _follows_from(pool, name), draw)}
    scores = _scores(pool, workspace, answers)
    rows = [
        {**row, "index": place // plan.best_of, "sample": place % plan.best_of}
        for place, row in enumerate(sample_rows(pool, name, answers[name], None, scores))
    ]
    write_json_lines(workspace.folder / POOL, rows)
    found = from_pool(rows, judge=_told_by(plan), resamples=plan.resamples, seed=plan.seed)
    return {"checkpoint": name, **found}


def _tasks(plan: Plan, workspace: EvaluationWorkspace) -> list[dict[str, Any]]:
    """Ask all tasks of all checkpoints; return the rows."""
    if not plan.tasks:
        return []
    asked = [name for name in plan.checkpoints if name not in plan.readers]
    subjects = {name: partial(_subject, plan, workspace, name) for name in asked}

    def kept(name: str, task: TaskSettings, ask: Callable[[], Any]) -> Any:
        content = [fingerprint(source.source()) for source in task.sources]
        follows_from = [_asked(plan, name), task.model_dump(mode="json"), content]
        return workspace.kept(f"{name}: {task.called}", follows_from, ask)

    rows = task_rows(plan.tasks, subjects, kept=kept, say=workspace.console.say)
    write_json_lines(workspace.folder / TASKS, rows)
    return rows


def _subject(plan: Plan, workspace: EvaluationWorkspace, name: str) -> Subject:
    source = plan.checkpoints[name]
    tokenizer = _tokenizer(plan, source)
    if not tokenizer.chat_template and name not in plan.plain:
        workspace.console.say(f"  {name} has no chat template: tasks are asked in plain text")
    return Subject(
        name=name,
        model=_model(plan, source),
        tokenizer=tokenizer,
        plain=_plain(plan, name, tokenizer),
        batch_size=plan.batch_size,
        seed=plan.seed,
        tools=plan.toolbox(name, tokenizer),
        progress=lambda total, label, unit: workspace.progress(total, f"{name}: {label}", unit),
        say=workspace.console.say,
    )


def _fitting(plan: Plan, workspace: EvaluationWorkspace) -> tuple[Plan, int]:
    """Leave out the prompts that some checkpoint has no room to answer, for all alike."""
    if not plan.prompts:
        raise SourceError("there are no prompts to evaluate on; name a source that holds some")
    fits = [True] * len(plan.prompts)
    for name, source in plan.checkpoints.items():
        tokenizer = _tokenizer(plan, source)
        config = load_config(source, trust_remote_code=plan.trust_remote_code)
        limit = configured_context(config)
        if limit is None:
            continue
        plain, paired = _plain(plan, name, tokenizer), bool(config.is_encoder_decoder)
        for place, prompt in enumerate(plan.given(name, tokenizer)[0]):
            ids = prompt_ids(tokenizer, prompt, plain=plain, encoder_decoder=paired)
            new = plan.max_new_tokens
            fits[place] &= len(ids) > 0 and has_room(limit, len(ids), new, encoder_decoder=paired)
    for line in PromptNotes.of(tokenizer, (row.prompt for row in plan.prompts)).lines():
        workspace.console.say(f"  {line}")
    fitting = [row for row, fit in zip(plan.prompts, fits, strict=True) if fit]
    lost = len(fits) - len(fitting)
    if lost > plan.max_too_long_share * len(fits) or not fitting:
        raise SourceError(
            f"{lost} of {len(fits)} prompts leave no room for {plan.max_new_tokens} new tokens in "
            f"some checkpoint's context, more than {plan.max_too_long_share:.0%} of them; lower "
            f"max_new_tokens{' or passage_tokens' if plan.readers else ''}, or raise an evaluate "
            "stage's max_too_long_share"
        )
    if lost:
        workspace.console.say(f"  {lost} of {len(fits)} prompts left out: too long for the context")
    return replace(plan, prompts=fitting), lost


def _tokenizer(plan: Plan, source: str | Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(source, trust_remote_code=plan.trust_remote_code)


def _plain(plan: Plan, name: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    return name in plan.plain or not tokenizer.chat_template


def _model(plan: Plan, source: str | Path) -> PreTrainedModel:
    gc.collect()  # the model before this one is gone, but for cycles
    dtype = torch.bfloat16 if plan.bf16 else torch.float32
    model = load_policy(source, dtype=dtype, trust_remote_code=plan.trust_remote_code)
    return leave_out_unused(model, _tokenizer(plan, source)).to(pick_device()).eval()


def _answer(plan: Plan, workspace: EvaluationWorkspace, name: str) -> dict[str, Any]:
    """Return a checkpoint's answers, its own log-probability of each, and its loss of each text."""
    plan.require_judges()
    source = plan.checkpoints[name]
    tokenizer, model = _tokenizer(plan, source), _model(plan, source)
    plain, paired = _plain(plan, name, tokenizer), is_encoder_decoder(model)
    asked, passages = plan.given(name, tokenizer)
    prompts = [prompt_ids(tokenizer, p, plain=plain, encoder_decoder=paired) for p in asked]
    endings = eos_ids(tokenizer, model)
    if plain or all(isinstance(prompt, str) for prompt in asked):
        endings += document_end_ids(tokenizer)
    bars = workspace.progress(len(prompts), f"{name}: answers", "prompts")
    with bars as bar, torch.inference_mode():
        samples = generate(
            model,
            prompts,
            sampling=plan.decodings[name].sampling,
            eos_token_ids=sorted(set(endings)),
            pad_token_id=int(tokenizer.pad_token_id or 0),
            generator=torch.Generator().manual_seed(sampling_seed(plan.seed, name)),
            batch_size=plan.batch_size,
            tools=plan.toolbox(name, tokenizer),
            wide=True,
            advance=bar.advance,
            say=workspace.console.say,
        )
    answers: dict[str, Any] = {
        "plain": plain,
        "template": None if plain else short_digest(str(tokenizer.chat_template)),
        "first_prompt": tokenizer.decode(prompts[0]),
        "prompts": prompts,
        "tokens": [sample.token_ids for sample in samples],
        "own": [sample.own for sample in samples],
        "calls": [[*map(asdict, sample.calls)] for sample in samples],
        "texts": [
            response_text(tokenizer, prompt, ids, sample)
            for prompt, ids, sample in zip(asked, prompts, samples, strict=True)
        ],
        "ended": [sample.ended for sample in samples],
        "probabilities": [probability(sample) for sample in samples],
        "losses": [],
        "sources": passages and [[one._asdict() for one in found] for found in passages],
        "notes": [
            *asking_notes(tokenizer, asked, prompts, plain=name in plan.plain),
            *sampling_notes(source, plan.decodings[name].sampling),
            *([NO_PERPLEXITY] if plan.texts and paired else []),
        ],
    }
    answers["logprobs"] = _logprobs(plan, name, model, answers) if plan.has_kl(name) else None
    if plan.texts and not paired and name not in plan.readers:
        workspace.stop_if_asked()
        with workspace.progress(None, f"{name}: texts", "windows") as bar:
            losses = text_losses(
                model, tokenizer, plan.texts, batch_size=plan.batch_size, advance=bar.advance
            )
        answers["losses"] = [loss._asdict() for loss in losses]
    return answers


def _asked(plan: Plan, name: str) -> list[Any]:
    """Return what tells a checkpoint, and how it is asked, from others."""
    content = checkpoint_content(plan.checkpoints[name])
    return [
        name,
        content,
        name in plan.plain,
        plan.seed,
        plan.bf16,
        pick_device().type,
        *plan.tools_content(name),
        *([plan.retriever.follows_from] if plan.retriever and name in plan.readers else []),
    ]


def _follows_from(plan: Plan, name: str) -> list[Any]:
    """Return all that a checkpoint's answers and log-probabilities depend on."""
    return [
        [*_asked(plan, name), asdict(plan.decodings[name].sampling), plan.has_kl(name)],
        [[row.prompt for row in plan.prompts], list(plan.texts)],
    ]


def _logprobs(
    plan: Plan,
    name: str,
    model: PreTrainedModel,
    answers: Mapping[str, Any],
    advance: Callable[[int], None] | None = None,
) -> list[float]:
    return response_logprobs(
        model,
        answers["prompts"],
        answers["tokens"],
        own=answers.get("own"),
        temperature=plan.decodings[name].sampling.temperature,
        batch_size=plan.batch_size,
        advance=advance,
    )


def _kls(
    plan: Plan, workspace: EvaluationWorkspace, answers: Mapping[str, dict[str, Any]]
) -> dict[str, list[float] | None]:
    """Return each checkpoint's log-ratio to the reference, one a response; None for no KL."""
    if plan.reference is None:
        return dict.fromkeys(plan.checkpoints)
    source = plan.checkpoints[plan.reference]
    model = cache(partial(_model, plan, source))  # loaded where something is not kept
    vocabulary = cache(lambda: _tokenizer(plan, source).get_vocab())

    def kl(name: str) -> list[float] | None:
        other, mine = plan.checkpoints[name], answers[name]
        same = _tokenizer(plan, other).get_vocab() == vocabulary()
        config = load_config(other, trust_remote_code=plan.trust_remote_code)
        if not same or is_encoder_decoder(model()) != config.is_encoder_decoder:
            what = "kind" if same else "tokenizer"
            workspace.console.say(f"  {name}: no KL, its {what} is not that of {plan.reference}")
            return None
        label = f"{name}: KL to {plan.reference}"
        with workspace.progress(len(plan.prompts), label, "prompts") as bar:
            theirs = _logprobs(plan, name, model(), mine, bar.advance)
        return [a - b for a, b in zip(mine["logprobs"], theirs, strict=True)]

    reference = checkpoint_content(source)
    return {
        name: [0.0] * len(plan.prompts)
        if not plan.has_kl(name)
        else workspace.kept(
            f"{name}: KL", ["kl", _follows_from(plan, name), reference], partial(kl, name)
        )
        for name in plan.checkpoints
    }


def _scores(
    plan: Plan, workspace: EvaluationWorkspace, answers: Mapping[str, dict[str, Any]]
) -> dict[str, dict[str, list[float]]]:
    """Return what each judge that scores gives each answer: judge -> checkpoint -> scores."""
    return {judge: _scores_by(judge, plan, workspace, answers) for judge in plan.score_judges}


def _scores_by(
    judge: str,
    plan: Plan,
    workspace: EvaluationWorkspace,
    answers: Mapping[str, dict[str, Any]],
) -> dict[str, list[float]]:
    """Return a judge's score of each answer; it is loaded where some are not kept."""
    asked = plan.score_judges[judge]
    scorer = cache(asked.load)
    prompts, step = [row.prompt for row in plan.prompts], 8 * plan.batch_size

    def scored(name: str) -> list[float]:
        mine, scores = answers[name], list[float]()
        with workspace.progress(len(prompts), f"{name}: {scorer().name}", "answers") as bar:
            for at in range(0, len(prompts), step):
                workspace.stop_if_asked()
                part = slice(at, at + step)
                texts = mine["texts"][part]
                facts = Facts(
                    rows=[row.meta for row in plan.prompts[part]],
                    tokens=own_sizes(mine)[part],
                    ended=mine["ended"][part],
                )
                scores += scores_of(scorer(), prompts[part], texts, facts)
                bar.advance(len(texts))
        return scores

    told = [asked.content, [str(row.meta) for row in plan.prompts]]
    return {
        name: workspace.kept(
            f"{name}: {judge}", [judge, _follows_from(plan, name), told], partial(scored, name)
        )
        for name in plan.checkpoints
    }


def _judgements(
    plan: Plan, workspace: EvaluationWorkspace, rows: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Ask the judges who compare two answers; return what they said, and who they are."""
    judged = {name: judge(rows) for name, judge in plan.pair_judges.items()}
    judgements = [{"judge": name, **row} for name, said in judged.items() for row in said.rows]
    if judged:
        write_json_lines(workspace.folder / JUDGEMENTS, judgements)
    told = {name: judge.told for name, judge in plan.score_judges.items()}
    if plan.world_seed is not None:
        told = {"gold": {"kind": "gold", "world_seed": plan.world_seed}, **told}
    return judgements, told | {name: said.told for name, said in judged.items()}


def _results(
    plan: Plan,
    rows: Sequence[Mapping[str, Any]],
    judgements: Sequence[Mapping[str, Any]],
    judges: Mapping[str, Any],
    answers: Mapping[str, Mapping[str, Any]],
    too_long: int,
) -> dict[str, Any]:
    seen = None if plan.seen is None else plan.seen(plan.prompts, plan.texts)
    from_samples = figures(rows, judgements, resamples=plan.resamples, seed=plan.seed)
    checkpoints = from_samples["checkpoints"]
    assert isinstance(checkpoints, dict)
    for name, checkpoint in checkpoints.items():
        checkpoint |= {"perplexity": None, "bits_per_byte": None}
        checkpoint["plain_prompts"] = answers[name]["plain"]
        checkpoint["notes"] = answers[name]["notes"] + apart_notes(plan.decodings, name)
    results = {
        "prompts": {"n": len(plan.prompts), "too_long": too_long},
        "texts": len(plan.texts),
        "seen": seen,
        "overlap": overlap(seen, plan.made_by, n=len(plan.prompts)) if seen else [],
        "reference": plan.reference,
        "sampling": common_sampling(plan.decodings),
        "bootstrap": {"resamples": plan.resamples, "seed": plan.seed},
        "judges": judges,
        **from_samples,
        "provenance": [provenance(plan, name, mine) for name, mine in answers.items()],
    }
    return {"verdict": verdict(results, held_out=held_out(results)), **results}


def _add_texts(
    results: dict[str, Any],
    plan: Plan,
    workspace: EvaluationWorkspace,
    answers: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write each text's loss down, and add what follows from them to the results."""
    rows = [
        {"checkpoint": name, "index": index, **loss}
        for name, mine in answers.items()
        for index, loss in enumerate(mine["losses"])
    ]
    if rows:
        write_json_lines(workspace.folder / TEXTS, rows)
    found = text_figures(rows)
    for name, figures_ in found.checkpoints.items():
        results["checkpoints"][name] |= figures_
    results["alignment_tax"] = found.alignment_tax
