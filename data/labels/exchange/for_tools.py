"""A campaign's tasks and labels as Argilla and Label Studio load them.

Answers stand in the order of their hash, and nothing tells who wrote them. Both tools ask the same
of all records, so that there is a folder for each number of answers:

- Argilla 2: `argilla/3-answers/`, which `rg.Dataset.from_disk` loads.
- Label Studio: `label_studio/3-answers/config.xml` and `tasks.json`, the labelling config of a
  project and its import.

Labels go along as responses or annotations of the tool's own users, who are named by our
annotators' names. Argilla takes no response of anybody else, so that others are left out; Label
Studio gives what has no user to whoever imports it. Label Studio's Pairwise and Ranker know no
ties, so that a label with one is left out. What is left out is counted.
"""

from __future__ import annotations

import re
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple
from xml.sax.saxutils import quoteattr

from data.errors import SourceError, UsageError, nearest
from data.json_lines import json_line
from data.labels.exchange.exporting import Exported
from data.labels.exchange.rankings_file import completion_id
from data.labels.exchange.training_rows import as_turns
from data.labels.records import LabelRow, Task
from data.records import Prompt
from data.sources.values import listed
from data.storage import storage_errors, write_atomically

Tool = Literal["argilla", "label_studio"]
QUESTION = "ranking"
"""Name of the question in both tools."""
_TITLE = "Which answer is better? Equal ranks are a tie."


class _Given(NamedTuple):
    """A task with what was said of it, in the order that the tool shows."""

    key: str
    prompt: Prompt
    answers: list[str]
    said: list[tuple[str, list[int]]]


def export_tasks(
    tool: Tool,
    tasks: Iterable[Task],
    labels: Iterable[LabelRow],
    *,
    folder: Path,
    name: str,
    guidelines: str = "",
    users: Mapping[str, str] | None = None,
) -> Exported:
    """Write tasks and labels into a folder; see the module.

    Args:
        tool: whose files.
        tasks: all there are, labelled or not.
        labels: last revisions of those to go along.
        folder: where to; it is made.
        name: of the campaign.
        guidelines: for annotators, where the tool has a place for them.
        users: the tool's, by our annotators' names.

    Raises:
        SourceError: there are no tasks.
        UsageError: a user is none of the annotators, or no user of Argilla.
        StorageError: the folder can't be written.
    """
    labels, users = list(labels), users or {}
    names = sorted({row.annotator.name for row in labels})
    if unknown := [user for user in users if user not in names]:
        raise UsageError(
            f"--users: nobody called '{unknown[0]}' gave a label; there are {listed(names)}."
            f"{nearest(unknown[0], names)}"
        )
    if tool == "argilla":
        _require_ids(users.values())
    left_out: Counter[str] = Counter()
    by_size: dict[int, list[_Given]] = {}
    for given in _given(tasks, labels, left_out):
        by_size.setdefault(len(given.answers), []).append(given)
    if not by_size:
        raise SourceError(f"nothing to export: campaign {name} has no tasks")
    counts = {}
    for size, held in sorted(by_size.items()):
        if tool == "argilla":
            parts = _argilla(held, size, f"{name}-{size}", guidelines, users, left_out)
        else:
            parts = _label_studio(held, size, users, left_out)
        for file, lines in parts.items():
            path = folder / tool / f"{size}-answers" / file
            with storage_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lines)
        counts[f"{tool}/{size}-answers"] = len(held)
    return Exported(counts, dict(left_out))


def _require_ids(users: Iterable[str]) -> None:
    for user in users:
        try:
            uuid.UUID(user)
        except ValueError:
            raise UsageError(
                f"--users: '{user}' is no id of an Argilla user, a UUID as `rg.User.id` has it"
            ) from None


def _given(
    tasks: Iterable[Task], labels: Iterable[LabelRow], left_out: Counter[str]
) -> Iterable[_Given]:
    said: dict[str, dict[str, list[int]]] = {}
    for row in labels:
        theirs = said.setdefault(row.assignment.task.id, {})
        if row.annotator.name in theirs:
            left_out["earlier labels of the same annotator and task"] += 1
        theirs[row.annotator.name] = row.label.submission.ranks
    for task in tasks:
        new = task.new
        # Models stand in the same order in all tasks: as they are, the first is always the same.
        ids = [completion_id(new.prompt, text) for text in new.completions]
        order = sorted(range(len(ids)), key=ids.__getitem__)
        yield _Given(
            key=task.id,
            prompt=new.prompt,
            answers=[new.completions[place] for place in order],
            said=[
                (name, [ranks[place] for place in order])
                for name, ranks in said.get(task.id, {}).items()
            ],
        )


def _prompts(held: Sequence[_Given]) -> list[Any]:
    """Return the prompts alike: as text where all are text, else as turns."""
    plain = all(isinstance(one.prompt, str) for one in held)
    return [one.prompt if plain else as_turns(one.prompt) for one in held]


def _argilla(
    held: Sequence[_Given],
    size: int,
    name: str,
    guidelines: str,
    users: Mapping[str, str],
    left_out: Counter[str],
) -> dict[str, list[str]]:
    names = [f"response-{place}" for place in range(1, size + 1)]
    prompts = _prompts(held)
    records = []
    for one, prompt in zip(held, prompts, strict=True):
        responses = []
        for who, ranks in one.said:
            if who not in users:
                left_out["labels of annotators who are no users there (--users Ada=UUID)"] += 1
                continue
            value = [{"value": n, "rank": rank} for n, rank in zip(names, ranks, strict=True)]
            responses.append({"value": value, "user_id": users[who], "status": "submitted"})
        records.append(
            {
                "id": one.key,
                "fields": {"prompt": prompt, **dict(zip(names, one.answers, strict=True))},
                "metadata": {},
                "vectors": {},
                "suggestions": {},
                "responses": {QUESTION: responses} if responses else {},
            }
        )
    asked = "text" if isinstance(prompts[0], str) else "chat"
    fields = [_field("prompt", "Prompt", asked)]
    fields += [_field(n, f"Answer {n[-1]}", "text") for n in names]
    options = [{"value": n, "text": f"Answer {n[-1]}"} for n in names]
    settings = {
        "guidelines": guidelines or None,
        "fields": fields,
        "questions": [
            {
                "name": QUESTION,
                "title": _TITLE,
                "required": True,
                "settings": {"type": "ranking", "options": options},
            }
        ],
        "vectors": [],
        "metadata": [],
        "allow_extra_metadata": True,
        "distribution": {"strategy": "overlap", "min_submitted": 1},
    }
    return {
        ".argilla/dataset.json": [json_line({"name": re.sub(r"[^\w-]+", "-", name)})],
        ".argilla/settings.json": [json_line(settings)],
        "records.json": _array(records),
    }


def _field(name: str, title: str, kind: str) -> dict[str, Any]:
    settings = {"type": kind, "use_markdown": False}
    return {"name": name, "title": title, "required": True, "settings": settings}


def _label_studio(
    held: Sequence[_Given], size: int, users: Mapping[str, str], left_out: Counter[str]
) -> dict[str, list[str]]:
    prompts = _prompts(held)
    tasks = []
    for one, prompt in zip(held, prompts, strict=True):
        answers: dict[str, Any] = {f"answer{n}": text for n, text in enumerate(one.answers, 1)}
        if size > 2:
            answers = {
                "answers": [
                    {"id": str(n), "title": f"Answer {n}", "body": text}
                    for n, text in enumerate(one.answers, 1)
                ]
            }
        annotations = []
        for who, ranks in one.said:
            if len(set(ranks)) < size:
                left_out["labels with a tie, which Label Studio can't hold"] += 1
                continue
            if who not in users:
                left_out["names of annotators who are no users there (--users Ada=ADDRESS)"] += 1
            by = {"completed_by": _user(users[who])} if who in users else {}
            annotations.append({"result": [_result(ranks)], **by})
        data = {"prompt": prompt, **answers, "task": one.key}
        tasks.append({"data": data, "annotations": annotations})
    config = _config(size, chat=not isinstance(prompts[0], str))
    return {"config.xml": [config], "tasks.json": _array(tasks)}


def _result(ranks: Sequence[int]) -> dict[str, Any]:
    if len(ranks) == 2:
        kind, of = "pairwise", "answer1,answer2"
        value: dict[str, Any] = {"selected": "left" if ranks[0] < ranks[1] else "right"}
    else:
        kind, of = "ranker", "answers"
        order = sorted(range(len(ranks)), key=ranks.__getitem__)
        value = {"ranker": {QUESTION: [str(place + 1) for place in order]}}
    return {"from_name": QUESTION, "to_name": of, "type": kind, "value": value}


def _user(name: str) -> int | dict[str, str]:
    """Return a user as the import takes one: by number, or by address."""
    return int(name) if name.isdecimal() else {"email": name}


def _config(size: int, *, chat: bool) -> str:
    asked = '<Text name="prompt" value="$prompt"/>'
    if chat:
        asked = (
            '<Paragraphs name="prompt" value="$prompt" layout="dialogue" nameKey="role" '
            'textKey="content"/>'
        )
    parts = [
        '<List name="answers" value="$answers" title="Answers"/>',
        f'<Ranker name="{QUESTION}" toName="answers"/>',
    ]
    if size == 2:
        parts = [f'<Text name="answer{n}" value="$answer{n}"/>' for n in (1, 2)]
        parts.append(f'<Pairwise name="{QUESTION}" toName="answer1,answer2"/>')
    header = f"<Header value={quoteattr('Which answer is better?')}/>"
    return "\n".join(["<View>", *(f"  {part}" for part in (header, asked, *parts)), "</View>\n"])


def _array(items: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a JSON array as lines, an item each."""
    lines = [json_line(item).rstrip("\n") for item in items]
    return ["[\n", ",\n".join(lines), "\n]\n"]
