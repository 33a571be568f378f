"""The model card: `README.md` with what the hub reads of a model in front, and then what is known.

All of it stands in manifests, settings and figures. What they don't tell is left to be filled in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from data.errors import one_line
from data.json_lines import read_json_lines
from data.json_object import read_object
from data.words import counted
from pipeline.contract.artifacts import Artifact
from pipeline.contract.settings import external_location
from pipeline.evaluation.report.collect import ALARMS
from pipeline.evaluation.report.view import clock, number
from pipeline.publish.figures import Table
from pipeline.publish.files import Files
from pipeline.publish.lineage import Ancestor, began_from, data_of, is_place
from pipeline.publish.subject import Subject
from pipeline.publish.usage import Use

_TEMPLATES = Path(__file__).parent / "templates"
_WEIGHTS = (".safetensors",)
_ANSWER = 64
"""Tokens of an answer in the lines that show how a model is used; half of a smaller context."""


@dataclass(frozen=True)
class Wishes:
    """What who publishes says of a model.

    Attributes:
        name: what it is called, a folder's name or ORG/NAME.
        license: id of its licence on the hub; none is stated when None.
        base: hub id of what it began from, where this machine has that under another name.
        about: what it is for, in Markdown; left to be filled in when "".
    """

    name: str
    license: str | None = None
    base: str | None = None
    about: str = ""


def card(
    subject: Subject,
    wishes: Wishes,
    *,
    ancestors: list[Ancestor],
    use: Use,
    tables: Sequence[Table],
    files: Files,
    end: str,
    notes: Sequence[str],
) -> str:
    """Return the text of the card.

    Args:
        subject: the model.
        wishes: what who publishes says of it.
        ancestors: the stages that it follows from.
        use: what it is.
        tables: what was measured.
        files: what is published beside the card.
        end: the text that ends an answer, for a reward model.
        notes: sentences that belong to its limits.
    """
    from huggingface_hub import ModelCardData

    config, base = read_object(subject.whole / "config.json"), _base(ancestors, wishes)
    data, template = data_of(ancestors), _template(subject.whole)
    manifest = subject.stage.manifest
    metadata = ModelCardData(
        license=wishes.license,
        base_model=base,
        base_model_relation="adapter" if subject.is_adapter else None,
        library_name="peft" if subject.is_adapter else "transformers",
        pipeline_tag=use.task or None,
        tags=list(dict.fromkeys(("rlhf-pipeline", *use.tags))),
        datasets=list(dict.fromkeys(row.hub for row in data if row.hub)) or None,
    )
    return _environment().get_template("card.md.j2").render(
        card_data=metadata.to_yaml(),
        title=wishes.name.rpartition("/")[2], place=wishes.name, use=use, base=base,
        adapter=subject.is_adapter, stage=subject.stage.name, kind=subject.stage.kind,
        part=subject.part, about=wishes.about.strip(), tables=tables, ancestors=ancestors,
        data=data, template=template, chats=bool(template) and use.sort != "text",
        trust=", trust_remote_code=True" if use.own_code else "",
        tokens=min(_ANSWER, (use.facts.context_length or 2 * _ANSWER) // 2),
        end=json.dumps(end, ensure_ascii=False),
        version=manifest.get("versions", {}).get("rlhf-pipeline", ""),
        bias=float(config.get("reward_bias") or 0.0), longest=config.get("reward_max_length"),
        needs=_needs(use, manifest), began=_began(ancestors, wishes), last=_last(subject.stage),
        libraries=_libraries(manifest), hours=_hours(ancestors),
        limits=[*_limits(use), *_alarms(subject.stage), *notes], kept=_kept(files),
        weights=[(n, d) for n, (_, d) in files.kept.items() if n.endswith(_WEIGHTS)],
    )  # fmt: skip


def _environment() -> Environment:
    # Markdown, not HTML: what is quoted is put into cells and fences that it can't leave.
    made = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=False,
        keep_trailing_newline=True,
    )
    made.filters["cell"] = _cell
    made.filters["fenced"] = _fenced
    return made


def _cell(value: object) -> str:
    """Return a value that fits a cell of a table."""
    return one_line(str(value).replace("\u00a0", " ")).replace("|", "\\|").replace("<", "&lt;")


def _fenced(text: str) -> str:
    """Return a text in a fence that none of its own lines ends."""
    longest = max((len(run) for run in re.findall("`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}jinja\n{text}\n{fence}"


def _template(folder: Path) -> str:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8", errors="replace")
    given = read_object(folder / "tokenizer_config.json").get("chat_template")
    return given if isinstance(given, str) else ""


def _base(ancestors: list[Ancestor], wishes: Wishes) -> str | None:
    """Return the hub id of what a model began from, None where there is none."""
    start = began_from(ancestors)
    if wishes.base is not None or start is None:
        return wishes.base
    return None if is_place(start) else external_location(start)


def _began(ancestors: list[Ancestor], wishes: Wishes) -> str:
    base = _base(ancestors, wishes)
    if base is not None:
        return f"It began from [{base}](https://huggingface.co/{base})."
    if began_from(ancestors) is not None:
        return "It began from a checkpoint on the disk of who made it, which has no public name."
    if any(one.left is None for one in ancestors):
        return "Not all stages are there any more, so that what it began from is not known."
    return "Its weights were drawn from a seed: all that it learned is of the data below."


def _needs(use: Use, manifest: Mapping[str, Any]) -> str:
    made = manifest.get("versions", {}).get("transformers", "5")
    told = (
        f"It was saved by transformers {made} and loads from version {made.split('.')[0]} on; its "
        "weights are safetensors"
    )
    if use.own_code:
        return f"{told}. Its architecture is code of its own, which is run: read it first."
    return f"{told}, and no code comes with it."


def _last(stage: Artifact) -> str:
    name = stage.manifest.get("main_metric", "")
    value = stage.metrics.get(name)
    return f"`{name}` {number(value)}" if isinstance(value, (int, float)) else ""


def _libraries(manifest: Mapping[str, Any]) -> str:
    versions = manifest.get("versions", {})
    return ", ".join(f"{name} {value}" for name, value in versions.items())


def _hours(ancestors: list[Ancestor]) -> str:
    """Return how long all stages took, and on what; "" where one does not tell."""
    left = [one.left.manifest for one in ancestors if one.left is not None]
    seconds = [float(each["seconds"]) for each in left if each.get("seconds") is not None]
    if len(seconds) < len(ancestors):
        return ""
    devices = dict.fromkeys(str(each["device"]) for each in left if each.get("device"))
    return f"{clock(sum(seconds))} on {', '.join(devices)}"


def _limits(use: Use) -> list[str]:
    told = []
    if use.facts.context_length:
        told.append(f"It reads {use.facts.context_length:,} tokens at most, the answer included.")
    return told


def _alarms(stage: Artifact) -> list[str]:
    """Return what the doctor said while the model was trained, each alarm as it was first told."""
    path = stage.folder / ALARMS
    first: dict[str, str] = {}
    for row in read_json_lines(path) if path.is_file() else ():
        told = f"At update {row['update']} of its training {row['told']}: {row['cause']}."
        first.setdefault(row["alarm"], told)
    return list(first.values())


def _kept(files: Files) -> str:
    count = counted(len(files.kept), "file is", "files are")
    told = f"{count} byte for byte those that the stage left."
    return f"{told} Not so: {'; '.join(files.changes)}." if files.changes else told
