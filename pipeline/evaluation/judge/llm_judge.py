"""A language model as a judge of pairs, each asked in both orders.

Judges lean to the answer that stands first: of GPT-4's verdicts on MT-bench one in eight turns
round with the order. So each two answers are shown twice (Zheng et al. 2023, section 3.4), what it
does not say both times is a tie, and how often that is, and how often the first one won, are
figures. Unlike there a verdict counts only at the end of what the model says: a model that goes
through the ways to answer names all of them.

Answers of the model are kept in a log by the content of what was asked (`data.labels.annotators`),
so that a further evaluation, or one that was killed, asks what is missing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from data.errors import LabelError, RewardError, nearest
from data.intervals import clustered_share, number_clusters
from data.labels.annotators.calls import CallRefusedError, Calls
from data.labels.annotators.model_judge import Question, mark_apart, verdict_of
from data.labels.records import prompt_text
from data.records import prompt_hash
from data.words import counted
from pipeline.evaluation.judge.figures import compared
from pipeline.evaluation.judge.plan import Judged, PairJudge
from pipeline.evaluation.judge.settings import LlmJudge
from pipeline.evaluation.judge.workspace import EvaluationWorkspace

Row = Mapping[str, Any]
_TRIES = 2
"""Times that a model is asked until it gives a verdict."""
_REMINDER = "End with the verdict alone: [[A]], [[B]] or [[TIE]]."
_AT_THE_END = re.compile(r"\[\[\s*(A|B|TIE)\s*\]\][\s.*_`\"']*\Z", re.IGNORECASE)
_OUTCOMES: Mapping[tuple[str | None, str | None], float] = {("A", "B"): 1.0, ("B", "A"): 0.0}
"""Verdicts with `a` first and with `b` first -> outcome; any others are a tie."""


class _Shown(NamedTuple):
    """A request and two answers, in the order in which they are shown."""

    request: str
    first: str
    second: str


class _Lost(NamedTuple):
    """There is no verdict, and whether that is so because the server refused."""

    refusal: str = ""


def llm_judge(
    name: str,
    asked: LlmJudge,
    *,
    workspace: EvaluationWorkspace,
) -> PairJudge:
    """Return what asks a language model to compare answers.

    Args:
        name: the judge's.
        asked: which model, and how it is asked.
        workspace: its cache holds the log of all calls.
    """

    def judge(rows: Sequence[Row]) -> Judged:
        pairs = compared(rows)
        questions = dict.fromkeys(
            _Shown(prompt_text(a["prompt"]), *texts)
            for a, b in pairs
            for texts in [(a["response"], b["response"]), (b["response"], a["response"])]
            if texts[0] != texts[1]
        )
        log = workspace.cache / f"judge-{name}.jsonl"
        verdicts = _ask_all(name, asked, [*questions], log=log, workspace=workspace)
        judgements = [_judgement(a, b, verdicts) for a, b in pairs]
        told = {
            "kind": "llm",
            "model": asked.model,
            "url": asked.url,
            "prompt": hashlib.sha256(asked.prompt.encode()).hexdigest(),
            "request": asked.request,
            **llm_figures(judgements),
        }
        return Judged(judgements, told)

    return judge


def require_answering(name: str, asked: LlmJudge) -> None:
    """Ask a model one small question, so that what is wrong is told before any work.

    Raises:
        UsageError: the environment variable of the key is not set.
        LabelError: the address can't be reached, has no such model, or refuses how it is asked.
    """
    with TemporaryDirectory() as scratch:
        fewer = asked.model_copy(update={"retries": min(1, asked.retries)})
        calls = fewer.calls(Path(scratch) / "calls.jsonl")
        try:
            calls.ask([{"role": "user", "content": "Say [[TIE]]."}], **asked.request)
        except CallRefusedError as error:
            known = calls.models()
            if known and asked.model not in known:
                some = ", ".join(known[:5]) + (" ..." if len(known) > 5 else "")
                raise LabelError(
                    f"judge {name}: {asked.url} has no model '{asked.model}'; it has {some}."
                    f"{nearest(asked.model, known)}"
                ) from error
            raise LabelError(f"judge {name}: {error}") from error
        except LabelError as error:
            raise type(error)(f"judge {name}: {error}") from error


def llm_figures(rows: Iterable[Row]) -> dict[str, Any]:
    """Return how many pairs were judged, and how the order swayed a judge, of its judgements.

    Returns:
        `pairs`; `same_answers`, which tie unasked; `unparsed`, without a verdict; `flips`, the
        share of the others on which the two orders disagree; `first_wins`, the share of verdicts,
        ties apart, for the answer shown first. One half is without a lean.
    """
    rows = [*rows]
    asked = [row for row in rows if not row["same"]]
    judged = [row for row in asked if row["outcome"] is not None]
    said = [
        (row["prompt"], verdict == "A")
        for row in judged
        for verdict in (row["a_first"], row["b_first"])
        if verdict != "TIE"
    ]
    flips = [(row["prompt"], _flips(row)) for row in judged]
    return {
        "pairs": len(rows),
        "same_answers": len(rows) - len(asked),
        "unparsed": len(asked) - len(judged),
        "flips": _share(flips),
        "first_wins": _share(said),
    }


def _flips(row: Row) -> bool:
    agreed = {*_OUTCOMES, ("TIE", "TIE")}
    return (row["a_first"], row["b_first"]) not in agreed


def _share(marks: Sequence[tuple[str, bool]]) -> dict[str, Any]:
    """Return the share of marks that are true, with its interval over prompts."""
    _, places = number_clusters([prompt for prompt, _ in marks])
    true = np.array([mark for _, mark in marks], dtype=np.float64)
    parts = [np.bincount(places, weights=each) for each in (true, np.ones_like(true))]
    found = clustered_share(np.stack(parts, axis=1))
    return {"value": found.value, "ci95": found.ci95, "n": len(marks)}


def _judgement(a: Row, b: Row, verdicts: Mapping[_Shown, str | _Lost]) -> dict[str, Any]:
    """Return a row of `judgements.jsonl`."""
    same = a["response"] == b["response"]
    request = prompt_text(a["prompt"])
    a_first, b_first = (
        None if same or isinstance(said := verdicts[_Shown(request, *texts)], _Lost) else said
        for texts in ((a["response"], b["response"]), (b["response"], a["response"]))
    )
    lost = not same and (a_first is None or b_first is None)
    return {
        "index": a["index"],
        "a": a["checkpoint"],
        "b": b["checkpoint"],
        "outcome": None if lost else _OUTCOMES.get((a_first, b_first), 0.5),
        "a_first": a_first,
        "b_first": b_first,
        "same": same,
        "prompt": prompt_hash(a["prompt"]),
    }


def _ask_all(
    name: str,
    asked: LlmJudge,
    questions: Sequence[_Shown],
    *,
    log: Path,
    workspace: EvaluationWorkspace,
) -> dict[_Shown, str | _Lost]:
    """Return the verdict on each question, several being asked at a time.

    Raises:
        RewardError: too many have none.
        LabelError: the server fails, or a budget is spent.
    """
    calls = asked.calls(log)
    ask = _asking(calls, asked)
    verdicts: dict[_Shown, str | _Lost] = {}
    lost: list[_Lost] = []
    with (
        workspace.progress(len(questions), f"{name}: {asked.model}", "verdicts") as bar,
        ThreadPoolExecutor(asked.concurrency) as workers,
    ):
        try:
            for question, said in zip(questions, workers.map(ask, questions), strict=True):
                workspace.stop_if_asked()
                bar.advance(1)
                verdicts[question] = said
                if isinstance(said, _Lost):
                    lost.append(said)
                    if len(lost) > asked.max_unparsed_share * len(questions):
                        raise RewardError(_too_many(name, asked, lost, len(questions), log))
        except BaseException:
            workers.shutdown(cancel_futures=True)
            raise
    calls_so_far = counted(calls.spent.calls, "call")
    workspace.console.say(
        f"  {name}: {calls_so_far} and {calls.spent.tokens:,} tokens so far, kept in {log}"
    )
    return verdicts


def _too_many(name: str, asked: LlmJudge, lost: Sequence[_Lost], questions: int, log: Path) -> str:
    refusals = [one.refusal for one in lost if one.refusal]
    why = f"; the server refused {len(refusals)}, the last time: {refusals[-1]}" if refusals else ""
    return (
        f"judge {name}: {len(lost)} of {counted(questions, 'question')} have no verdict at the end "
        f"of what {asked.model} said, more than max_unparsed_share {asked.max_unparsed_share:g} "
        f"allows{why}; look at {log}, and at the judge's prompt, model and max_tokens"
    )


def _asking(calls: Calls, asked: LlmJudge) -> Callable[[_Shown], str | _Lost]:
    question = Question(asked.prompt, _REMINDER, _AT_THE_END)

    def ask(shown: _Shown) -> str | _Lost:
        messages = [{"role": "user", "content": filled(asked.prompt, *shown)}]
        try:
            said = verdict_of(calls, messages, question, tries=[asked.request] * _TRIES)
        except CallRefusedError as refusal:
            return _Lost(str(refusal))
        return said.upper() if said is not None else _Lost()

    return ask


def filled(prompt: str, request: str, a: str, b: str) -> str:
    """Return a prompt with the texts in it, each between marks that none of them holds."""
    mark = mark_apart([request, a, b])
    texts = {"mark": mark}
    for name, text in (("request", request), ("a", a), ("b", b)):
        texts[name] = f"{mark}\n{text}\n{mark}"
    # In one pass: what an answer holds is no place for another text.
    return re.sub(r"\{(mark|request|a|b)\}", lambda found: texts[found[1]], prompt)
