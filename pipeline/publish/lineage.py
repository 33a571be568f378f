"""How a model came to be, by the manifests of its stages: stages, data, settings, where it began.

Nothing here is a place on the machine: of a local file its name is told, of a folder no more than
that it is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from data.errors import ArtifactError
from data.storage import expand
from pipeline.contract.artifacts import Artifact, find
from pipeline.contract.settings import beside_result, external_location, is_external
from pipeline.publish.subject import Subject

NOT_STATED = "not stated"
OF_THE_WORLD = "Apache-2.0, as the program that makes it up"
_MATTER = (
    "objective", "architecture", "head", "hidden_size", "layers", "heads", "vocab_size",
    "context_length", "max_length", "steps", "max_steps", "epochs", "episodes", "batch_size",
    "minibatches", "prompts_per_step", "group_size", "learning_rate", "schedule", "dropout",
    "packing", "lora", "labeler", "completions", "ties", "loss", "beta", "kl_coefficient", "gamma",
    "gae_lambda", "clip", "end_rule", "trunk", "temperature", "top_k", "top_p", "max_new_tokens",
    "bf16",
)  # fmt: skip
"""Settings that a card shows, of the stages that have them."""

_LABELLED = {
    "people": ("preferences of people, who labelled for this run", NOT_STATED),
    "gold": ("preferences of the annotator of the embedded world", OF_THE_WORLD),
    "truth": ("preferences of the annotator of the embedded world", OF_THE_WORLD),
}
"""Of who ranks in a rankings stage what comes of it, and its licence."""


@dataclass(frozen=True)
class Ancestor:
    """A stage that a model follows from.

    Attributes:
        name: of the stage.
        digest: of what it left.
        left: what it left; None where that is not in the run any more.
        licences: by the place of a source in its settings, as the run's recipe tells them now.
    """

    name: str
    digest: str
    left: Artifact | None
    licences: Mapping[str, str]

    @property
    def kind(self) -> str:
        """Kind of the stage, "" where it is not known."""
        return "" if self.left is None else self.left.kind

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings that its result follows from."""
        inputs = {} if self.left is None else self.left.manifest.get("inputs", {})
        settings: Mapping[str, Any] = inputs.get("settings", {})
        return settings

    def shown_settings(self) -> list[str]:
        """Return what of its settings a card shows, as `name value`."""
        settings, shown = self.settings, []
        # Who takes rankings from a file samples nothing.
        names = ("labeler",) if settings.get("labeler") == "file" else _MATTER
        for name in names:
            value = settings.get(name)
            if isinstance(value, Mapping):
                shown += [f"{name}.{key} {each}" for key, each in value.items() if _plain(each)]
            elif _plain(value) and not (isinstance(value, str) and is_external(value)):
                shown.append(f"{name} {value}")
        seed = None if self.left is None else self.left.manifest.get("seed")
        return shown if seed is None else [*shown, f"seed {seed}"]


def _plain(value: object) -> bool:
    return isinstance(value, (int, float, str)) and value != ""


@dataclass(frozen=True)
class Data:
    """Rows that a stage read.

    Attributes:
        stage: that read them.
        setting: that names them, such as "train".
        what: what they are, in Markdown.
        licence: as the recipe states it.
        hub: id of the data set of the hub, "" for others.
    """

    stage: str
    setting: str
    what: str
    licence: str
    hub: str = ""


def lineage(subject: Subject) -> list[Ancestor]:
    """Return the stages that a model follows from, the first one first, its own last."""
    found: dict[str, Ancestor] = {}

    def visit(name: str, digest: str, left: Artifact | None) -> None:
        if name in found:
            return
        for parent, wanted in (left.manifest.get("parents", {}) if left else {}).items():
            visit(parent, wanted, _left(subject, parent, wanted))
        found[name] = Ancestor(name, digest, left, _licences(subject, name, left))

    visit(subject.stage.name, subject.stage.digest, subject.stage)
    return list(found.values())


def _left(subject: Subject, name: str, digest: str) -> Artifact | None:
    """Return what a stage of the same run left, if it is that of this digest."""
    try:
        artifact = find(subject.stage.folder.absolute().parent / name)
    except ArtifactError:
        return None
    return artifact if artifact is not None and artifact.digest == digest else None


def _licences(subject: Subject, name: str, left: Artifact | None) -> dict[str, str]:
    beside = {} if left is None else dict(left.manifest.get("beside", {}))
    if subject.run is not None and name in subject.run.recipe.stages:
        beside |= beside_result(subject.run.recipe.stages[name])
    ending = ".license"
    return {place.removesuffix(ending): text for place, text in beside.items() if ending in place}


def data_of(ancestors: list[Ancestor]) -> list[Data]:
    """Return the rows that stages read from outside of their run, in the order of the stages."""
    found = []
    for one in ancestors:
        by = _LABELLED.get(one.settings.get("labeler", "")) if one.kind == "rankings" else None
        found += [Data(one.name, "labels", *by)] if by is not None else []
        for place, source in _sources(one.settings):
            if source.get("stage") is None:
                setting = place.rpartition(".")[0] or place
                found.append(Data(one.name, setting, *_described(source, one.licences, place)))
    return found


def _sources(content: Any, place: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the sources in settings, as JSON, with their dotted places."""
    if isinstance(content, Mapping):
        if content.keys() >= {"path", "hub", "world"}:
            yield place, content
            return
        items: Any = content.items()
    else:
        items = enumerate(content) if isinstance(content, (list, tuple)) else ()
    for key, value in items:
        yield from _sources(value, f"{place}.{key}" if place else str(key))


def _described(
    source: Mapping[str, Any], licences: Mapping[str, str], place: str
) -> tuple[str, str, str]:
    """Return what a source is, its licence, and its id on the hub."""
    licence = licences.get(place) or NOT_STATED
    if source["world"] is not None:
        what = f"`{source['world']}` of the embedded world of rlhf-pipeline"
        return what, licences.get(place) or OF_THE_WORLD, ""
    hub = source["hub"]
    if hub is not None and not is_place(hub):
        parts = (source.get("hub_name"), source.get("hub_split"), source.get("hub_revision"))
        told = ", ".join(str(part) for part in parts if part)
        return f"[{hub}](https://huggingface.co/datasets/{hub}) ({told})", licence, hub
    paths = source["path"] if hub is None else hub
    names = [paths] if isinstance(paths, str) else list(paths or ())
    return ", ".join(map(_local, names)), licence, ""


def _local(path: str) -> str:
    """Return a local source without its folders."""
    name = PurePosixPath(path).name
    return f"a local file, `{name}`" if "." in name.strip(".~") else "a local folder"


def is_place(reference: str) -> bool:
    """Tell whether what may be a hub id is a place on this machine."""
    location = external_location(reference)
    return location.startswith((".", "/", "~")) or location.count("/") > 1 or _exists(location)


def _exists(location: str) -> bool:
    try:
        return expand(location).exists()
    except (OSError, RuntimeError):
        return False


def began_from(ancestors: list[Ancestor]) -> str | None:
    """Return the path or hub id of the checkpoint that a model's weights began from.

    None where they were drawn from a seed, or where a stage on the way is not there any more.
    """
    stages = {one.name: one for one in ancestors}
    name: str | None = ancestors[-1].name
    while name in stages:
        settings = stages[name].settings
        values = (settings.get(field) for field in ("model", "policy", "teacher"))
        name = next((value for value in values if isinstance(value, str)), None)
    return name
