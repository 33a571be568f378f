"""Any task of lm-eval, in process, on the live model: of a local folder, or by name from its own.

A row holds what lm-eval's metrics make of one document by one filter. Where a metric is no mean of
such numbers but a perplexity or bits per byte, the row holds the number and what it is divided by;
metrics that are gathered otherwise (F1 over all documents, BLEU) are told and left out.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data.errors import RlhfError, SourceError, UsageError, in_words, nearest
from data.extras import require_packages
from data.sources.values import plain
from pipeline.evaluation.benchmarks.asking import Subject
from pipeline.evaluation.benchmarks.measures import FORMS, Measure, Row
from pipeline.evaluation.benchmarks.settings import LmEvalSettings


def prepare(
    task: LmEvalSettings, say: Callable[[str], None], most: int | None = None
) -> Mapping[str, Any]:
    """Return lm-eval's tasks by name; a group has several. Looks for the name alone at first.

    Raises:
        UsageError: lm-eval is not installed, or has no such task.
        SourceError: it can't load the task's data.
    """
    require_packages("lm_eval", extra="eval", what="a task of lm-eval")
    if most is not None and task.folder is None:
        return {}  # the index of all that come with it takes long to read
    if task.folder is not None and not Path(task.folder).is_dir():
        raise UsageError(f"{task.called}: there is no folder {task.folder} of lm-eval's task files")
    from lm_eval.tasks import TaskManager

    with _quiet():
        manager = TaskManager(include_path=task.folder, include_defaults=task.folder is None)
    if task.task not in manager.all_tasks:
        place = f"the folder {task.folder}" if task.folder else "lm-eval"
        raise UsageError(
            f"{place} has no task '{task.task}'.{nearest(task.task, manager.all_tasks)}"
        )
    if most is not None:
        return {}
    try:
        with _quiet():
            loaded: Mapping[str, Any] = manager.load([task.task])["tasks"]
    except Exception as error:  # its YAML names Python code and data sets; whatever they raise
        raise SourceError(
            f"lm-eval can't load task '{task.task}': {in_words(error)}; task files in a `folder` "
            "may name local data"
        ) from error
    for name, one in loaded.items():
        for metric in _left_out(one):
            say(f"{name}: {metric} is left out, it is neither a mean nor a perplexity of documents")
    return loaded


def ask(task: LmEvalSettings, prepared: Mapping[str, Any], subject: Subject) -> Iterator[Row]:
    """Yield a row for each document, filter and draw of examples."""
    from lm_eval.evaluator import evaluate

    from pipeline.evaluation.benchmarks.harness import LiveModel

    model, tools = LiveModel(subject, task.called), subject.tools
    for draw in range(task.draws):
        model.calls.clear()
        for one in prepared.values():
            if task.shots is not None:
                one.set_config(key="num_fewshot", value=task.shots)
            elif one.get_config("num_fewshot") is None:
                one.set_config(key="num_fewshot", value=0)
            one.set_fewshot_seed(seed=subject.seed + draw)
        try:
            with _quiet():
                results = evaluate(
                    lm=model,
                    task_dict={"tasks": dict(prepared), "groups": {}},
                    limit=task.limit,
                    bootstrap_iters=0,
                    log_samples=True,
                    apply_chat_template=task.chat,
                    fewshot_as_multiturn=task.chat,
                )
        except RlhfError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, ImportError) as error:
            raise SourceError(f"lm-eval can't run task '{task.task}': {in_words(error)}") from error
        for name, one in prepared.items():
            for sample in results["samples"][name]:
                yield {
                    **({} if len(prepared) == 1 else {"task": f"{task.called}:{name}"}),
                    **_row(one, sample, draw),
                    **({"calls": model.calls.get(sample["arguments"][0][0], [])} if tools else {}),
                    "first_tokens": subject.opening(model.tok_encode(sample["arguments"][0][0])),
                }


def _row(task: Any, sample: Mapping[str, Any], draw: int) -> dict[str, Any]:
    forms = _forms(task)
    numbers = {name: sample[name] for name in sample["metrics"] if name in forms}
    return {
        "index": sample["doc_id"],
        "draw": draw,
        "shots": task.get_config("num_fewshot"),
        "question": sample["arguments"][0][0],
        "target": plain(sample["target"]),
        "responses": plain(sample["filtered_resps"]),
        "filter": sample["filter"],
        "metrics": {
            name: {"form": forms[name], "number": _parts(number)}
            for name, number in numbers.items()
        },
    }


def _forms(task: Any) -> dict[str, str]:
    """Return how each metric is gathered, of those that can be counted from rows."""
    named = {name: getattr(how, "__name__", "") for name, how in task.aggregation().items()}
    return {name: form for name, form in named.items() if form in FORMS}


def _left_out(task: Any) -> list[str]:
    return [name for name in task.aggregation() if name not in _forms(task)]


def _parts(number: Any) -> list[float]:
    """Return a document's number, and what the sum of all is divided by: 1 where it is a mean."""
    value, size = number if isinstance(number, tuple) else (number, 1)
    return [float(value), float(size)]


def measures(row: Row) -> Iterator[Measure]:
    """Yield what lm-eval's metrics made of a document."""
    reading = None if row["filter"] == "none" else row["filter"]
    for name, metric in row["metrics"].items():
        value, size = metric["number"]
        yield Measure(name, value, reading, size, metric["form"])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep back lm-eval's own bars and notes, which would break ours."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)
