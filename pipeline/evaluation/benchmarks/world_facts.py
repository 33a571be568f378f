"""Closed-book facts of the embedded world, and what is made up about people who don't exist.

The questions are those kept for evaluation; the likeliest answer is judged by the gold annotator.
`facts_correct` and `facts_invented` are shares of the facts, `strangers_invented` is the share of
questions about people who don't exist that got an invention for an answer, `strangers_admitted`
the share that got "I don't know".

A base model follows no questions. What it knows is read by likelihood (`facts_correct` in the
reading `likelihood`): of a sentence of the corpus that tells the fact, begun in plain text, the
likeliest end among the values of all people. Each fact counts once, however often it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from data.text.chat import response_ids
from data.text.prompting import plain_ids, plain_prompt, prompt_ids
from pipeline.evaluation.benchmarks.answers import GREEDY, write_answers
from pipeline.evaluation.benchmarks.asking import Subject
from pipeline.evaluation.benchmarks.choices import score_choices
from pipeline.evaluation.benchmarks.loglikelihood import Pair
from pipeline.evaluation.benchmarks.measures import CHANCE, Measure, Row
from pipeline.evaluation.benchmarks.settings import WorldFactsSettings
from pipeline.generation.generate import Sampling

if TYPE_CHECKING:
    from data.records import PromptRow

KINDS = ("fact", "unknown")
LIKELIHOOD = "likelihood"


def prepare(
    task: WorldFactsSettings, say: Callable[[str], None], most: int | None = None
) -> list[PromptRow]:
    """Return the questions, at most `limit` of each kind."""
    from data.world import World

    rows = World(task.world_seed).prompts("eval_prompts")
    return [
        row
        for kind in KINDS
        for row in [one for one in rows if one.meta["kind"] == kind][: most or task.limit]
    ]


def ask(task: WorldFactsSettings, prepared: list[PromptRow], subject: Subject) -> Iterator[Row]:
    """Yield a row for each question, with what the annotator finds in its answer."""
    from data.world.annotator import GoldAnnotator

    annotator = GoldAnnotator(task.world_seed)
    prompts = [
        prompt_ids(subject.tokenizer, subject.told(row.prompt), plain=subject.plain)
        for row in prepared
    ]
    sampling = Sampling(max_new_tokens=task.max_new_tokens, temperature=GREEDY)
    answers = write_answers(subject, prompts, sampling=sampling, label=task.called)
    likely = _likelihoods(task, prepared, subject)
    for index, (row, ids, answer) in enumerate(zip(prepared, prompts, answers, strict=True)):
        yield {
            "index": index,
            "draw": 0,
            "shots": 0,
            "question": plain_prompt(row.prompt).strip(),
            "about": row.meta["kind"],
            "response": answer.text.strip(),
            **({} if answer.calls is None else {"calls": answer.calls}),
            "assessment": asdict(annotator.assess(row.prompt, answer.text.strip())),
            "first_tokens": subject.opening(ids),
            **({LIKELIHOOD: likely[index]} if index in likely else {}),
        }


def begun_sentences(
    task: WorldFactsSettings, prepared: Sequence[PromptRow]
) -> dict[int, dict[str, Any]]:
    """Return the begun sentence of each fact and its possible ends, by its first question."""
    from data.world import World
    from data.world.statements import STATEMENTS, fact, sentence
    from data.world.town import VALUES

    first: dict[tuple[str, str], int] = {}
    for index, row in enumerate(prepared):
        if row.meta["kind"] == "fact":
            first.setdefault((str(row.meta["subject"]), str(row.meta["attribute"])), index)
    town, found = World(task.world_seed).town, {}
    for (name, attribute), index in first.items():
        form = next(i for i, f in enumerate(STATEMENTS[attribute]) if f.endswith(" {v}"))
        begun = sentence(fact(attribute, form, name, ""), end="").rstrip()
        answer = VALUES[attribute].index(town.fact(name, attribute))
        found[index] = {"begun": begun, "choices": list(VALUES[attribute]), "answer": answer}
    return found


def _likelihoods(
    task: WorldFactsSettings, prepared: list[PromptRow], subject: Subject
) -> dict[int, dict[str, Any]]:
    """Return how likely the ends of a fact's sentence are, by the first question about it."""
    found, asked = begun_sentences(task, prepared), []
    for row in found.values():
        context = plain_ids(subject.tokenizer, row["begun"])
        asked.append(
            [
                Pair(context, response_ids(subject.tokenizer, f" {value}", behind=row["begun"]))
                for value in row["choices"]
            ]
        )
    scored = score_choices(subject, asked, advance=lambda done: None)
    return {
        index: {**row, "logprobs": one["logprobs"]}
        for (index, row), one in zip(found.items(), scored, strict=True)
    }


def measures(row: Row) -> Iterator[Measure]:
    """Yield what the annotator found: of facts right and invented, of strangers the same."""
    found = row["assessment"]
    if row["about"] == "fact":
        yield Measure("facts_correct", float(found["correct"]))
        yield Measure("facts_invented", float(found["invented"]))
        if one := row.get(LIKELIHOOD):
            likeliest = one["logprobs"].index(max(one["logprobs"]))
            yield Measure("facts_correct", float(likeliest == one["answer"]), LIKELIHOOD)
            yield Measure(CHANCE, 1 / len(one["choices"]), LIKELIHOOD)
    else:
        yield Measure("strangers_admitted", float(found["admits_ignorance"]))
        yield Measure("strangers_invented", float(found["invented"]))
