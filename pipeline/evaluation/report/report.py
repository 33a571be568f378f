"""Writes the report of a run or evaluation: `report.json` for programs, `index.html` for people.

The page is one file. It holds its style and pictures, asks for nothing from anywhere (its own
content policy forbids it), and shows what models wrote as text, never as markup.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.json_lines import read_json_lines, read_json_object
from data.storage import require_file_place, storage_errors, write_atomically
from data.words import counted
from pipeline.contract.artifacts import Artifact
from pipeline.evaluation.judge.overlap import held_out
from pipeline.evaluation.report import reward_model, tables, view
from pipeline.evaluation.report.collect import (
    ALONE,
    collect,
    collect_evaluation,
    over_optimisations,
    read_metrics,
)
from pipeline.evaluation.report.notices import notices, warnings
from pipeline.evaluation.report.rollouts import rollouts
from pipeline.evaluation.report.truthfulness import truthfulness_rows

if TYPE_CHECKING:
    import jinja2

PAGES = ("report.json", "index.html")
MARK = "made_before"
"""In the JSON of a report that something happened after: what."""
_MARK_STYLE = "border:2px solid #c62;padding:.6em 1em;font-weight:600"
TEMPLATES = Path(__file__).parent / "templates"


def write_report(
    run_folder: Path,
    recipe_name: str,
    artifacts: Mapping[str, Artifact],
    not_done: Mapping[str, str] | None = None,
) -> Path:
    """Write the report of a run, or of what there is of it.

    Args:
        run_folder: `runs/<recipe>`; the report goes into its `report/`.
        recipe_name: name of the recipe.
        artifacts: what each stage left, in the order they ran.
        not_done: how each stage stands that is not done, such as "outdated: ...".

    Returns:
        The path of the page.

    Raises:
        StorageError: the folder can't be written.
    """
    report = collect(run_folder, recipe_name, artifacts, not_done or {})
    folders = {name: artifact.folder for name, artifact in artifacts.items()}
    return _write(run_folder / "report", report, folders)


def write_evaluation_report(folder: Path) -> Path:
    """Write the report of an evaluation alone into its folder; return the path of the page.

    Raises:
        ArtifactError: there is no `evaluation.json`, or it can't be read.
        StorageError: the folder can't be written.
    """
    return _write(folder, collect_evaluation(folder), {ALONE: folder})


def _write(folder: Path, report: Mapping[str, Any], folders: Mapping[str, Path]) -> Path:
    page = render(report, folders)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name in PAGES:
        require_file_place(folder / name)
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(folder / "report.json", text + "\n")
    write_atomically(folder / "index.html", page)
    return folder / "index.html"


def is_current(
    run_folder: Path, artifacts: Mapping[str, Artifact], not_done: Mapping[str, str]
) -> bool:
    """Tell whether the report that is there is of these artifacts, as they stand."""
    folder = run_folder / "report"
    try:
        report = read_json_object(folder / "report.json")
        reported = {
            name: (stage["digest"], stage["created"]) for name, stage in report["stages"].items()
        }
        states, marked = report["not_done"], report.get(MARK)
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    made = {name: (a.digest, a.manifest.get("created")) for name, a in artifacts.items()}
    complete = not marked and (folder / "index.html").is_file()
    return complete and reported == made and states == dict(not_done)


def mark_report(run_folder: Path, sentence: str) -> None:
    """Say at the head of a report, and in its JSON, that something happened after it was made.

    Does nothing without a report, or where it says so already.

    Raises:
        StorageError: the folder can't be written.
    """
    folder = run_folder / "report"
    if not (folder / "index.html").is_file():
        return
    try:
        page = (folder / "index.html").read_text(encoding="utf-8")
        report = read_json_object(folder / "report.json")
    except (OSError, ValueError):
        return
    if MARK in report:
        return
    # With a style of its own: the page may be of an earlier version.
    note = f'<p role="note" style="{_MARK_STYLE}">{html.escape(sentence)}</p>'
    write_atomically(folder / "index.html", page.replace("<main>", f"<main>\n{note}", 1))
    text = json.dumps({MARK: sentence, **report}, indent=2, ensure_ascii=False)
    write_atomically(folder / "report.json", text + "\n")


def page_environment(templates: Path) -> jinja2.Environment:
    """Return what fills the templates of a folder: with the report's style, and all text escaped.

    Our own style and pictures are the only markup that is not.
    """
    from markupsafe import Markup

    from pipeline.evaluation.report.plots import numbered

    environment, plots = _environment(templates), count(1)
    environment.filters["picture"] = lambda svg: Markup(numbered(svg, next(plots)))
    return environment


@cache
def _environment(templates: Path) -> jinja2.Environment:
    """Return it without a page's numbers of pictures; templates are compiled once a process."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    environment.globals["style"] = Markup(style)
    return environment


def render(report: Mapping[str, Any], folders: Mapping[str, Path]) -> str:
    """Return the page of a report.

    Args:
        report: what `collect` returned.
        folders: of each stage and evaluation; metrics and samples are read there.
    """
    environment = page_environment(TEMPLATES)
    environment.globals["answer_tags"] = view.answer_tags
    environment.globals["held_out"] = held_out
    environment.globals["counted"] = counted
    page = environment.get_template("report.html.j2").render(
        report=report,
        names=tables.names_of(report),
        shades=view.colours(tables.names_of(report)),
        verdict=report["verdict"],
        warnings=warnings(report),
        notices=notices(report),
        cards=view.cards(report),
        ladder=tables.ladder(report),
        matrices=tables.matrices(report),
        tasks=tables.task_rows(report),
        heads=tables.head_rows(report),
        pathologies=tables.pathology_rows(report),
        truthfulness=truthfulness_rows(report),
        taxes=tables.tax_rows(report),
        overlap=tables.overlap_rows(report),
        provenance=tables.provenance_rows(report),
        judges=tables.judge_rows(report),
        figures=view.figure_rows(report),
        manners=view.manner_rows(report),
        quality=reward_model.quality_rows(report["reward_model"]),
        quality_groups=reward_model.quality_groups(report["reward_model"]),
        quality_facts=reward_model.quality_facts(report["reward_model"]),
        stages=view.stage_rows(report),
        pretraining=view.pretraining_lines(report),
        alarms=view.alarm_rows(report),
        total_time=view.clock(report["seconds"]),
        samples=_samples(report, folders),
        rollouts=_rollouts(report, folders),
        **_charts(report, folders),
    )
    return page + "\n"


def _samples(report: Mapping[str, Any], folders: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Return the samples shown, evaluation by evaluation, named as in the report."""
    groups = []
    for stage, evaluation in report["evaluations"].items():
        path = folders[stage] / "samples.jsonl"
        rows = [
            {**row, "checkpoint": evaluation["checkpoints"][row["checkpoint"]]}
            for row in (read_json_lines(path) if path.is_file() else ())
        ]
        groups += view.sample_groups(rows, seed=report["seed"] or 0)
    return groups


def _rollouts(report: Mapping[str, Any], folders: Mapping[str, Path]) -> dict[str, Any] | None:
    """Return what is shown of the last stage of PPO that left roll-outs."""
    found = None
    for name, stage in report["stages"].items():
        path = folders[name] / "samples.jsonl"
        if stage["kind"] == "ppo" and name not in report["not_done"] and path.is_file():
            found = rollouts([*read_json_lines(path)]) or found
    return found


def _charts(report: Mapping[str, Any], folders: Mapping[str, Path]) -> dict[str, Any]:
    """Return the curves of each stage, and the pictures of reward against KL."""
    from pipeline.evaluation.report import charts

    training, trade_offs = [], [charts.gold_and_proxy(f) for f in over_optimisations(report)]
    for name, stage in report["stages"].items():
        if name in report["not_done"]:
            continue
        rows = read_metrics(folders[name])
        drawn = charts.stage_charts(stage["kind"], rows)
        if drawn:
            training.append({"stage": name, "kind": stage["kind"], "charts": drawn})
        if stage["kind"] == "ppo":
            trade_offs.append(charts.over_optimisation(rows))
    shades = view.colours(report["checkpoints"])
    for judge in ("gold", "proxy"):
        trade_offs.append(charts.checkpoints_against_kl(report["checkpoints"], judge, shades))
    calibration = (report["reward_model"] or {}).get("calibration") or {}
    return {
        "training": training,
        "trade_offs": [chart for chart in trade_offs if chart],
        "risk_coverage": charts.risk_coverage(report.get("truthfulness") or (), shades),
        "reliability": charts.reliability(calibration.get("reliability") or ()),
    }
