"""The files of a published model: those of its stage, byte for byte, but for what must change.

Of the small ones two things are changed, and told: a place on the machine where the model was made
is taken out, and the ends at which answers stopped here are written into `generation_config.json`,
since transformers ends at those alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import UsageError
from data.json_object import read_object
from pipeline.contract.facts import ADAPTER
from pipeline.publish.lineage import is_place
from pipeline.publish.subject import Subject
from reward.network.files import GENERATION
from reward.network.lora_files import ORIGIN

CARD = "README.md"
_BASE = "base_model_name_or_path"
_PLACES = ("_name_or_path", "name_or_path", _BASE)
"""Keys that say where something was loaded from, a hub id or a place."""
_LOOKS_LIKE_A_PLACE = re.compile(r"(?:[A-Za-z]:)?[\\/~][^\s<>|{}]*[\\/][^\s<>|{}]*")
"""A whole value that is an absolute path."""
_NO_SETTINGS = ("tokenizer.json", "vocab.json")
"""Files that hold the texts of tokens, which may look like anything."""


@dataclass(frozen=True)
class Files:
    """What is published beside the card.

    Attributes:
        kept: by their names the files that go along as they are, with their sha256.
        texts: by their names the small files that are written anew.
        changes: what is other in those, in words.
    """

    kept: Mapping[str, tuple[Path, str]]
    texts: Mapping[str, str]
    changes: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        known = sum(path.stat().st_size for path, _ in self.kept.values())
        return known + sum(len(text.encode()) for text in self.texts.values())


def files_of(subject: Subject, *, base: str | None, ends: Sequence[int], pad: int | None) -> Files:
    """Return the files to publish.

    Args:
        subject: the model.
        base: hub id of the model that an adapter stands on; what its file says when None.
        ends: ids at which answers of the model end here; none for a model that writes nothing.
        pad: id of padding, None where there is none.

    Raises:
        UsageError: an adapter stands on a model that only this machine has.
        ModelError: a small file is damaged.
    """
    files, texts = subject.files, dict[str, str]()
    changes: list[str] = []

    def mend(name: str, change: Callable[[dict[str, Any]], list[str]]) -> None:
        content = json.loads(texts[name]) if name in texts else read_object(files[name][0])
        told = change(content) if content else []
        if told:
            texts[name] = json.dumps(content, indent=2) + "\n"
            changes.append(f"`{name}` {' and '.join(told)}")

    if subject.is_adapter:
        _name_base(subject, base, mend)
    for name in files:
        if name.endswith(".json") and name not in _NO_SETTINGS and not name.endswith("index.json"):
            mend(name, _take_out_places)
    if ends and GENERATION in files:
        mend(GENERATION, lambda content: _end_there(content, ends, pad))
    kept = {n: file for n, file in files.items() if n not in texts and n != CARD}
    return Files(kept, texts, tuple(changes))


def _name_base(subject: Subject, base: str | None, mend: Callable[..., None]) -> None:
    named = read_object(subject.folder / ADAPTER).get(_BASE)
    if base is None and (not isinstance(named, str) or is_place(named)):
        raise UsageError(
            f"{subject.folder} is an adapter on {named or 'a model that it does not name'}, which "
            "nobody else has there; publish that first and name it by --base ORG/NAME, or publish "
            f"{subject.stage.folder}, whose model has the adapter merged"
        )
    if base is None:
        return

    def rename(key: str) -> Callable[[dict[str, Any]], list[str]]:
        def change(content: dict[str, Any]) -> list[str]:
            if content.get(key) == base:
                return []
            content[key] = base
            return [f"names `{base}` as its base"]

        return change

    mend(ADAPTER, rename(_BASE))
    if ORIGIN in subject.files:
        mend(ORIGIN, rename("base"))


def _take_out_places(content: dict[str, Any]) -> list[str]:
    """Take the values out that are places on a machine; return what was taken out."""
    taken = []
    for key, value in list(content.items()):
        if isinstance(value, dict):
            taken += _take_out_places(value)
        elif isinstance(value, str) and (
            (key in _PLACES and is_place(value)) or _LOOKS_LIKE_A_PLACE.fullmatch(value)
        ):
            del content[key]
            taken.append(f"without `{key}`, a place on the machine where it was made")
    return taken


def _end_there(content: dict[str, Any], ids: Sequence[int], pad: int | None) -> list[str]:
    told = []
    given = content.get("eos_token_id")
    known = [given] if isinstance(given, int) else list(given or ())
    both = sorted({*known, *ids})
    if len(both) > len(known):
        content["eos_token_id"] = both[0] if len(both) == 1 else both
        told.append(f"ends answers at {' and '.join(map(str, both))}, as they ended here")
    if content.get("pad_token_id") is None and pad is not None:
        content["pad_token_id"] = pad
        told.append(f"has the tokenizer's padding, {pad}")
    return told
