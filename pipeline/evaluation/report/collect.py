"""Gathers what the stages of a run, or an evaluation alone, left into the report's JSON object."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data.errors import ArtifactError
from data.json_lines import read_json_lines, read_json_object
from data.plain_yaml import parse
from data.small_files import read_file
from pipeline.contract.artifacts import Artifact, library_versions
from pipeline.evaluation.judge.over_optimisation import FILE
from pipeline.evaluation.judge.overlap import held_out
from pipeline.evaluation.judge.verdict import verdict

ALONE = "evaluation"
"""What an evaluation without stages is called among the report's `evaluations`."""
EVALUATION = "evaluation.json"
QUALITY = "quality.json"
ALARMS = "doctor.jsonl"
_LISTS = (
    "win_rates",
    "ratings",
    "differences",
    "overlap",
    "tasks",
    "pathologies",
    "truthfulness",
    "alignment_tax",
    "provenance",
)
"""Keys of an evaluation whose rows name checkpoints."""


def collect(
    run_folder: Path,
    recipe_name: str,
    artifacts: Mapping[str, Artifact],
    not_done: Mapping[str, str],
) -> dict[str, Any]:
    """Return the report of a run; sections of stages that the recipe lacks are empty.

    What an outdated stage left stands in its own entry under `stages` and nowhere else: it is of
    another age than the rest.

    Args:
        run_folder: holds the resolved recipe, for seed and description.
        recipe_name: name of the recipe.
        artifacts: what each stage left, in the order they ran.
        not_done: how each stage stands that is not done: outdated, cut off, not run.
    """
    current = {name: a for name, a in artifacts.items() if name not in not_done}
    recipe = _recipe(run_folder)
    stages = {
        name: {"state": not_done.get(name, "done"), **_stage(artifact)}
        for name, artifact in artifacts.items()
    }
    done = [stages[name] for name in current]
    evaluations = {
        name: read_json_object(artifact.folder / EVALUATION)
        for name, artifact in current.items()
        if artifact.kind == "evaluate" and (artifact.folder / EVALUATION).is_file()
    }
    report: dict[str, Any] = {
        "recipe": recipe_name,
        "description": recipe.get("description", ""),
        "seed": recipe.get("seed", _common_seed(artifacts)),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(sum(stage["seconds"] or 0 for stage in done), 2),
        "peak_rss_mb": max((s["peak_rss_mb"] or 0 for s in done), default=None) or None,
        "versions": library_versions(),
        "not_done": dict(not_done),
        "stages": stages,
        "reward_model": _last_left(current, "reward", QUALITY),
        "heads": {
            name: read_json_object(artifact.folder / QUALITY)
            for name, artifact in current.items()
            if artifact.kind == "finetune" and (artifact.folder / QUALITY).is_file()
        },
        **_merged(evaluations),
    }
    # Along training before by choosing: it is of the policy that the recipe made.
    along_training = _last_left(current, "ppo", FILE)
    report["over_optimisation"] = along_training or report["over_optimisation"]
    return _cleaned(report)


def over_optimisations(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what a report tells of over-optimisation: its own, then by choosing if that isn't."""
    first = report["over_optimisation"]
    chosen = [found.get("over_optimisation") for found in report["evaluations"].values()]
    return [found for found in (first, *(each for each in chosen if each != first)) if found]


def read_evaluation(folder: Path) -> dict[str, Any]:
    """Return the figures of an evaluation.

    Raises:
        ArtifactError: there is no `evaluation.json`, or it holds something else.
    """
    path = folder / EVALUATION
    results = read_json_object(path)
    for key in ("bootstrap", "checkpoints", "sampling"):
        if not isinstance(results.get(key), dict):
            raise ArtifactError(f"{path} holds no evaluation: it has no {key}; evaluate anew")
    return results


def collect_evaluation(folder: Path) -> dict[str, Any]:
    """Return the report of an evaluation alone: the keys of a run's, without stages.

    Raises:
        ArtifactError: there is no `evaluation.json`, or it can't be read.
    """
    results = read_evaluation(folder)
    report = {
        "recipe": folder.resolve().name,
        "description": "",
        "seed": results["bootstrap"]["seed"],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": None,
        "peak_rss_mb": None,
        "versions": library_versions(),
        "not_done": {},
        "stages": {},
        "reward_model": None,
        "heads": {},
        **_merged({ALONE: results}),
    }
    return _cleaned(report)


def _cleaned(report: dict[str, Any]) -> dict[str, Any]:
    cleaned = without_nan({"verdict": verdict(report, held_out=_held_out(report)), **report})
    assert isinstance(cleaned, dict)
    return cleaned


def _held_out(report: Mapping[str, Any]) -> str:
    """Return "held-out " where the prompts of the last checkpoint are known to be."""
    for evaluation in report["evaluations"].values():
        if [*report["checkpoints"]][-1:] == [*evaluation["checkpoints"].values()][-1:]:
            return held_out(evaluation)
    return ""


def _stage(artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest
    return {
        "kind": artifact.kind,
        "seconds": manifest.get("seconds"),
        "processor_seconds": manifest.get("processor_seconds"),
        "peak_rss_mb": manifest.get("peak_rss_mb"),
        "metrics": dict(artifact.metrics),
        "main_metric": manifest.get("main_metric"),
        "parents": sorted(manifest.get("parents") or ()),
        "seed": manifest.get("seed"),
        "processes": manifest.get("processes"),
        "device": manifest.get("device"),
        "created": manifest.get("created"),
        "digest": artifact.digest,
        "size": artifact.size,
        "alarms": _rows(artifact.folder / ALARMS),
    }


def _recipe(run_folder: Path) -> dict[str, Any]:
    path = run_folder / "recipe.yaml"
    if not path.is_file():
        return {}
    content, _ = parse(read_file(path).decode(), lambda line: f"{path}:{line}")
    return content if isinstance(content, dict) else {}


def _common_seed(artifacts: Mapping[str, Artifact]) -> int | None:
    seeds = {artifact.manifest.get("seed") for artifact in artifacts.values()}
    return seeds.pop() if len(seeds) == 1 else None


def _last_left(artifacts: Mapping[str, Artifact], kind: str, file: str) -> dict[str, Any] | None:
    """Return what the last stage of a kind that left a file says there; None when none did."""
    left = [
        (name, artifact.folder / file)
        for name, artifact in artifacts.items()
        if artifact.kind == kind and (artifact.folder / file).is_file()
    ]
    if not left:
        return None
    name, path = left[-1]
    return {"stage": name, **read_json_object(path)}


def _merged(evaluations: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the figures of all evaluations; a name that two of them use gets its stage's.

    That of a judge does where they differ in what is to be known of it.
    """
    checkpoints: dict[str, Any] = {}
    lists: dict[str, list[dict[str, Any]]] = {key: [] for key in _LISTS}
    merged: dict[str, Any] = {"judges": {}, "over_optimisation": None}
    rest: dict[str, Any] = {}
    for stage, results in evaluations.items():
        names = {n: f"{stage}/{n}" if n in checkpoints else n for n in results["checkpoints"]}
        known, mine = merged["judges"], results.get("judges") or {}
        judges = {n: f"{stage}/{n}" if known.get(n, t) != t else n for n, t in mine.items()}
        known |= {judges[name]: told for name, told in mine.items()}
        for name, figures in results["checkpoints"].items():
            scores = {judges.get(n, n): mean for n, mean in figures.get("scores", {}).items()}
            checkpoints[names[name]] = {**figures, **({"scores": scores} if scores else {})}
        for key, rows in lists.items():
            # An evaluation of an earlier version counted fewer figures.
            rows += [_renamed(row, names, judges) for row in results.get(key) or ()]
        merged["over_optimisation"] = (
            results.get("over_optimisation") or merged["over_optimisation"]
        )
        told = ("checkpoints", "verdict", *lists, "judges")
        rest[stage] = {k: v for k, v in results.items() if k not in told} | {"checkpoints": names}
    return {"checkpoints": checkpoints, **lists, **merged, "evaluations": rest}


def _renamed(
    row: Mapping[str, Any], names: Mapping[str, str], judges: Mapping[str, str]
) -> dict[str, Any]:
    """Return a row with checkpoints and judge called as in the report."""
    named = {key: names[row[key]] for key in ("a", "b", "checkpoint") if row.get(key) in names}
    if "judge" in row:
        named["judge"] = judges.get(row["judge"], row["judge"])
    return {**row, **named}


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the steps that a stage logged."""
    return _rows(folder / "metrics.jsonl")


def _rows(path: Path) -> list[dict[str, Any]]:
    return [*read_json_lines(path)] if path.is_file() else []


def without_nan(content: Any) -> Any:
    """Return JSON content with null for what JSON has no number for."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {str(key): without_nan(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [without_nan(value) for value in content]
    return content
