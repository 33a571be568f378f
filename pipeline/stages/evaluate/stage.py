"""Stage `evaluate`: every named checkpoint on the same prompts.

For each: bits per byte and perplexity of texts, gold and proxy reward, KL to the reference, length
and end of responses, repetition and variety, pathologies by name; between each two, win rates by
each judge. How KL and proxy reward are measured is told in `pipeline/evaluation/judge/judge.py`.

A base model has never seen the tokens of a chat template. `plain` names the checkpoints that are
given the bare question and a line break instead, as one prompts a base model. In answer to plain
text the end of a document ends a response, too. Every checkpoint answers at most `max_new_tokens`.

With `people` the stage stores each two answers as a task of the label service, last of all, and
waits as the rankings stage does: it may be stopped and run again, the labels stay in the run.

Leaves `samples.jsonl`, one judged sample a line, `judgements.jsonl`, a row for each label, with
`people.json`, who wrote what a task shows, `texts.jsonl`, the loss of each text,
`tasks.jsonl`, a row for each question of a task, and `evaluation.json`, each figure of which
`figures` and `texts` of `pipeline.evaluation.judge` and `pipeline.evaluation.benchmarks.figures`
count again from them.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.contract.artifacts import cache_of
from pipeline.contract.kind import StageKind
from pipeline.contract.retrieval import with_readers
from pipeline.contract.settings import is_external, rows_at_most
from pipeline.stages.checks import (
    require_caller,
    require_corpus,
    require_label_store,
    require_prompts,
    require_texts,
)
from pipeline.stages.evaluate.settings import EvaluateSettings
from pipeline.stages.reward_terms import (
    check_rewards,
    computed,
    load_judge,
    model_references,
)

if TYPE_CHECKING:
    from data.labels.records import Campaign
    from data.labels.store.database import Database
    from data.records import Prompt, PromptRow
    from pipeline.contract.context import StageContext
    from pipeline.contract.handover import HandOver
    from pipeline.evaluation.judge.inputs import Opening
    from pipeline.evaluation.judge.judges import Judges
    from pipeline.evaluation.judge.plan import PairJudge, Plan, ScoreJudge
    from pipeline.evaluation.judge.workspace import EvaluationWorkspace


def check(settings: EvaluateSettings, hand: HandOver) -> None:
    """Refuse a reward model without head, and responses that no context holds.

    Raises:
        HandOverError: with the values that do not fit.
    """
    opening = settings.prefix_tokens or 1
    for name, reference in settings.checkpoints.items():
        what = "prefix_tokens" if settings.prefix_tokens else "a prompt of one token"
        hand.require_fits_context(
            reference, opening + settings.max_new_tokens, f"{what} and max_new_tokens"
        )
        why = "checkpoints that answer are language models that write"
        hand.require_writer(reference, f"checkpoints.{name}", why, encoder_decoder=True)
        require_caller(hand, reference, settings.tools)
    check_rewards(settings.terms, hand)
    _check_judges(settings, hand)
    require_prompts(hand, settings.prompts, openings=settings.prefix_tokens is not None)
    require_texts(hand, "perplexity", settings.perplexity)
    _check_reading(settings, hand)
    settings.asked.read_guidelines()
    if settings.people is not None:
        require_label_store(hand, settings.people.database)
    _check_tasks(settings, hand)


def _check_reading(settings: EvaluateSettings, hand: HandOver) -> None:
    """Refuse passages that leave no room for a prompt, and corpora that can't be read."""
    reads = settings.retrieve
    if reads is None:
        return
    tokens = reads.passage_tokens + (settings.prefix_tokens or 1) + settings.max_new_tokens
    for name in settings.judged.keys() - settings.checkpoints.keys():
        reference = settings.judged[name]
        what = "retrieve.passage_tokens with max_new_tokens and the shortest prompt"
        hand.require_fits_context(reference, tokens, what)
    require_corpus(hand, reads)


def _check_judges(settings: EvaluateSettings, hand: HandOver) -> None:
    """Refuse reward models without a head, and keys that are not in the environment."""
    from data.errors import HandOverError, UsageError
    from data.labels.annotators.calls import service_key

    for name, judge in settings.judges.items():
        if judge.kind == "reward_model":
            hand.require_reward_head(judge.model)
        elif judge.kind == "llm" and judge.key_variable and hand.finished(hand.name) is None:
            try:
                service_key(judge.key_variable, judge.url)
            except UsageError as error:
                raise HandOverError(f"stage {hand.name}: judge {name}: {error}") from error


def _check_tasks(settings: EvaluateSettings, hand: HandOver) -> None:
    """Refuse tasks whose first rows can't be read."""
    if not settings.tasks:
        return
    from data.errors import SourceError
    from pipeline.evaluation.benchmarks.run import check_tasks

    try:
        check_tasks(settings.tasks)
    except SourceError as error:
        raise type(error)(f"stage {hand.name}: {error}") from error


def run(context: StageContext[EvaluateSettings]) -> dict[str, float | int | str]:
    """Judge all checkpoints; return the final metrics."""
    from pipeline.evaluation.judge.judge import evaluate
    from pipeline.evaluation.judge.overlap import seen_lines
    from pipeline.evaluation.judge.summary import say_results, stage_metrics
    from pipeline.evaluation.judge.workspace import EvaluationWorkspace

    workspace = EvaluationWorkspace(
        context.folder, cache_of(context.folder), context.console, context.stop_if_asked
    )
    plan = _plan(context, workspace)
    results = evaluate(plan, workspace)
    workspace.prune()
    say_results(results, context.say)
    for line in seen_lines(results):
        context.say(line)
    return stage_metrics(results)


def _plan(context: StageContext[EvaluateSettings], workspace: EvaluationWorkspace) -> Plan:
    from pipeline.evaluation.judge.overlap import seen_before
    from pipeline.evaluation.judge.plan import Plan
    from pipeline.evaluation.judge.sampling import decodings
    from pipeline.models.load import pick_device, resolve_bf16
    from pipeline.stages.evaluate.readings import made_by, made_elsewhere, readings

    settings, prompts = context.settings, _prompts(context)
    judges, reads = _judges(context, workspace), settings.retrieve
    places = {name: context.input(f"checkpoints.{name}") for name in settings.checkpoints}
    proxy = _proxy(context, prompts[0].prompt if prompts else "")
    checkpoints = with_readers(places, reads)
    return Plan(
        checkpoints=checkpoints,
        prompts=prompts,
        decodings=decodings(settings, checkpoints),
        texts=_texts(context),
        reference=settings.measured_to,
        plain=frozenset(with_readers(dict.fromkeys(settings.plain, ""), reads)),
        world_seed=settings.prompts[0].world_seed if settings.gold else None,
        score_judges=proxy | judges.scoring,
        pair_judges=judges.comparing | _pair_judges(context),
        require_judges=judges.require,
        batch_size=settings.batch_size,
        bf16=resolve_bf16(settings.bf16, pick_device()),
        max_too_long_share=settings.max_too_long_share,
        resamples=settings.resamples,
        seed=context.seed,
        trust_remote_code=settings.trust_remote_code,
        seen=lambda prompts, texts: seen_before(
            prompts,
            texts,
            readings=readings(context.hand),
            elsewhere=made_elsewhere(context.hand),
            document_prompt=_opening(context),
        ),
        made_by=made_by(settings, context.hand),
        tasks=settings.tasks,
        best_of=settings.best_of or 0,
        retriever=reads.retriever(context.say) if reads else None,
        readers=frozenset(settings.judged.keys() - settings.checkpoints.keys()),
    )


def _pair_judges(context: StageContext[EvaluateSettings]) -> dict[str, PairJudge]:
    if context.settings.people is None:
        return {}
    from data.extras import FIGURES, STORE, require_packages
    from pipeline.evaluation.judge.people import PEOPLE, People, people_judge
    from pipeline.stages.asking import free_memory, opened_labels, wait_for_labels

    require_packages(*STORE, *FIGURES)
    asked = context.settings.people

    def wait(database: Database, campaign: Campaign) -> None:
        free_memory()
        wait_for_labels(context, asked, database, campaign)

    people = People(
        run=context.folder.parent,
        opened=partial(opened_labels, context, asked),
        overlap=asked.overlap,
        annotators_per_task=asked.annotators_per_task,
        guidelines=asked.read_guidelines(),
        title=asked.title or "",
        wait=wait,
    )
    judge = people_judge(people, folder=context.folder, seed=context.seed, say=context.say)
    return {PEOPLE: judge}


def _prompts(context: StageContext[EvaluateSettings]) -> list[PromptRow]:
    from pipeline.evaluation.judge.inputs import read_prompts

    settings = context.settings
    return read_prompts(
        settings.prompts,
        limit=settings.limit,
        seed=context.seed,
        say=context.say,
        opening=_opening(context),
    )


def _opening(context: StageContext[EvaluateSettings]) -> Opening | None:
    """Return what makes documents into prompts, None where the recipe doesn't ask for it."""
    from pipeline.evaluation.judge.inputs import opening_by

    settings = context.settings
    return opening_by(
        context.input(f"checkpoints.{settings.measured_to}"),
        settings.prefix_tokens,
        trust_remote_code=settings.trust_remote_code,
    )


def _texts(context: StageContext[EvaluateSettings]) -> list[str]:
    from pipeline.evaluation.judge.inputs import MAX_TEXTS, read_texts

    settings = context.settings
    most = rows_at_most(settings.perplexity, MAX_TEXTS)
    return read_texts(settings.perplexity, limit=most, say=context.say)


def _judges(context: StageContext[EvaluateSettings], workspace: EvaluationWorkspace) -> Judges:
    """Return the judges of `judges`, and whether a checkpoint was trained against them."""
    from pipeline.evaluation.judge.judges import judges_of
    from pipeline.evaluation.judge.settings import RewardModelJudge
    from pipeline.evaluation.judge.workspace import checkpoint_content
    from pipeline.stages.evaluate.readings import same_checkpoint, trained_against

    settings = context.settings
    references = {n: j.model for n, j in settings.judges.items() if isinstance(j, RewardModelJudge)}
    models = {name: context.input(f"judges.{name}.model") for name in references}

    def paid_by(name: str) -> list[str] | None:
        reference = references[name]
        same = same_checkpoint(checkpoint_content(models[name]), context.hand)
        return trained_against(
            lambda target: target == reference or same(target),
            [*settings.checkpoints.values()],
            context.hand,
            is_ours=not is_external(reference),
        )

    return judges_of(
        settings.judges,
        models=models,
        paid_by=paid_by,
        workspace=workspace,
        batch_size=settings.batch_size,
        server_content=context.resume.key,
        trust_remote_code=settings.trust_remote_code,
    )


def _proxy(context: StageContext[EvaluateSettings], prompt: Prompt) -> dict[str, ScoreJudge]:
    """Return what judges as `proxy`; nothing when the recipe names none."""
    from pipeline.evaluation.judge.plan import ScoreJudge

    settings = context.settings
    load: Any
    if settings.rule is not None:
        load = partial(computed, settings.terms["rule"])
    elif settings.reward is None:
        return {}
    else:
        load = partial(
            load_judge,
            context,
            settings.reward,
            prompt=prompt,
            batch_size=settings.batch_size,
            trust_remote_code=settings.trust_remote_code,
        )
    terms = [
        term.model_dump(mode="json", exclude_defaults=True) for term in settings.terms.values()
    ]
    told = {"kind": "proxy", "terms": terms}
    return {"proxy": ScoreJudge(load, _scorer_content(context), told)}


def _scorer_content(context: StageContext[EvaluateSettings]) -> list[Any]:
    """Return what the proxy's scores follow from besides the answers."""
    from pipeline.evaluation.judge.workspace import checkpoint_content

    terms = context.settings.terms
    models = [path for name, term in terms.items() for path in model_references(name, term)]
    content: list[Any] = [[name, term.model_dump(mode="json")] for name, term in terms.items()]
    content += [checkpoint_content(context.input(path)) for path in models]
    # Code of a plugin and servers have no content to look at: they count for this key alone.
    return [*content, *([context.resume.key] if len(models) < len(terms) else [])]


KIND = StageKind(
    name="evaluate",
    settings=EvaluateSettings,
    run=run,
    check=check,
    provides=frozenset({"evaluation"}),
    main_metric="win_rate",
    version=1,
    trains=False,
)
