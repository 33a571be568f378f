"""Which files a path names: a file, a glob, a folder, a saved data set, a copy of one of the hub.

A folder may hold several splits, told as on the hub from the names of its files and folders
(`train-00000-of-00001.parquet`, `test.jsonl`, `validation/`), from the README of a copy, or from
what `save_to_disk` writes: the asked split alone is read. What describes a data set is no data.
What was left out is told.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from data.errors import SourceError, nearest
from data.json_lines import parse_json
from data.plain_yaml import parse_any
from data.small_files import MOST_BYTES, read_file
from data.storage import expand

T = TypeVar("T")

TEXT_SUFFIXES = (".txt", ".text", ".md")
SUFFIXES = (
    *(".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow"),
    *TEXT_SUFFIXES,
)
PACKED = (".gz", ".zst")
MOST_FILES = 500_000
"""Below a folder that is read; a home folder holds more, and is none of data."""
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"
"""Beside the tables of a saved data set; beside the folders of one with splits."""
_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""As `datasets` tells splits from names."""
_SHARD = re.compile(r"^(\w+(?:\.\w+)*)-\d{5}-of-\d{5}")
_ABOUT = re.compile(
    r"^(readme|licen[cs]e|copying|notice|changelog|contributing|citation)([._-].*)?$|^\.git"
    r"|^(dataset_infos?|dataset_dict|state)\.json$",
    re.IGNORECASE,
)


class Found(NamedTuple):
    """The files to read, in order, and sentences on what else is there."""

    files: list[Path]
    left_out: Sequence[str] = ()


def kind_of(file: Path | str) -> str:
    """Return the suffix that tells how a file is read, "" for none we know."""
    name = Path(file).name.lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")


def find_files(path: str, split: str = "train") -> Found:
    """Return the files of a path, a folder (with those below it), or a glob, sorted.

    Of a folder only the kinds of file we read are taken; hidden ones are passed over.

    Args:
        path: what to look for.
        split: the split to read where a folder holds several.

    Raises:
        SourceError: there is none, or not that split; suggests the nearest name.
    """
    if not path.strip():
        raise SourceError(f"the path {path!r} names no file")
    try:
        return _found(expand(path), path, split)
    except OSError as error:
        raise SourceError(f"can't look for {path:.200}: {error.strerror or error}") from error


def _found(place: Path, path: str, split: str) -> Found:
    if place.is_file():
        return Found([place])
    if place.is_dir():
        return _of_folder(place, path, split)
    if place.exists():
        raise SourceError(f"{path} is neither a file nor a folder; save its rows in a file")
    if place.is_symlink():
        raise SourceError(f"{path} is a link to nothing")
    if glob.has_magic(path):
        _require_an_end(place)
        named = [Path(name) for name in sorted(glob.glob(str(place), recursive=True))]
        files = [file for file in named if file.is_file()]
        tables = [file for file in files if not _ABOUT.match(file.name)]
        if not tables:
            raise SourceError(f"no file matches {path}")
        return Found(tables, _no_data(files, tables))
    parent = place.parent
    names = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
    hint = nearest(place.name, names)
    if not parent.is_dir():
        hint = f" Its folder {parent} does not exist either."
    raise SourceError(f"no such file: {path}.{hint}")


def _require_an_end(pattern: Path) -> None:
    """Refuse a pattern whose `**` would follow links back to where they stand.

    Raises:
        SourceError: names the link.
    """
    if "**" not in pattern.parts:
        return
    plain = itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts)
    root = os.path.join("", *plain) or "."
    open_ = [(root, frozenset((os.path.realpath(root),)))]
    while open_:
        folder, above = open_.pop()
        try:
            inside = [entry for entry in os.scandir(folder) if entry.is_dir()]
        except OSError:  # one that may not be read, which globs pass over too
            continue
        for entry in inside:
            real = os.path.realpath(entry.path)
            if real in above:
                raise SourceError(
                    f"{entry.path} is a link to a folder above it, which ** goes round without "
                    "end; remove the link, or name the files without **"
                )
            open_.append((entry.path, above | {real}))


def _of_folder(place: Path, path: str, split: str) -> Found:
    if (place / SAVED_SPLITS).is_file():
        splits = _read_list(place / SAVED_SPLITS, "splits", str)
        if split not in splits:
            raise _no_split(path, split, splits)
        others = [f"split {name}" for name in splits if name != split]
        return Found(_saved(place / split), others)
    if (place / SAVED).is_file() and any(place.glob("*.arrow")):
        return Found(_saved(place))
    seen = sorted(_inside(place, path))
    tables = [file for file in seen if not _ABOUT.match(file.name)]
    if not tables:
        raise SourceError(f"folder {path} holds no {', '.join(SUFFIXES)} file (or .gz, .zst)")
    of_split, others = _of_split(tables, place, path, split)
    return Found(of_split, [*others, *_no_data(seen, tables)])


def _read_list(file: Path, key: str, of: type[T]) -> list[T]:
    """Return a list that a small file of a saved data set holds."""
    try:
        content = parse_json(read_file(file))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise SourceError(f"can't read {file}: {why}; save the data set again") from error
    listed = content.get(key) if isinstance(content, dict) else None
    if not isinstance(listed, list) or not all(isinstance(one, of) for one in listed):
        raise SourceError(f"{file} holds no list `{key}`; save the data set again")
    return listed


def _saved(place: Path) -> list[Path]:
    """Return the tables of a data set saved by `save_to_disk`, in their order."""
    named = _read_list(place / SAVED, "_data_files", dict)
    files = [place / str(entry["filename"]) for entry in named if "filename" in entry]
    missing = [file for file in files if not file.is_file()]
    if missing or not files:
        lost = missing[0] if missing else place / "data-00000-of-00001.arrow"
        raise SourceError(f"{place} is a saved data set that is not whole: {lost} is missing")
    return files


def _inside(place: Path, path: str) -> Iterator[Path]:
    """Yield the files below a folder that are of a kind we read; hidden ones are passed over."""
    count = 0
    for folder, folders, names in os.walk(place):
        folders[:] = [name for name in folders if not name.startswith(".")]
        count += len(folders) + len(names)
        if count > MOST_FILES:
            raise SourceError(
                f"folder {path} holds more than {MOST_FILES:,} files and folders; name the one in "
                "it that holds the data"
            )
        for name in names:
            file = Path(folder, name)
            if not name.startswith(".") and kind_of(name) and file.is_file():
                yield file


def _no_data(seen: Iterable[Path], tables: Iterable[Path]) -> list[str]:
    names = sorted({file.name for file in set(seen) - set(tables)})
    return [f"{', '.join(names)}: no data"] if names else []


def _no_split(path: str, split: str, splits: Iterable[str]) -> SourceError:
    there = ", ".join(sorted(splits))
    return SourceError(
        f"{path} holds no split '{split}'; name one with `hub_split`, or a file with `path`: it "
        f"holds {there}"
    )


def _of_split(
    tables: list[Path], place: Path, path: str, split: str
) -> tuple[list[Path], list[str]]:
    """Return the files of a split, and what is said of those of others.

    Files whose name tells no split are of the split train. Where all are of one split, they are
    what was named, whatever it is called.
    """
    named = _from_readme(place, tables)
    splits = {file: named.get(file) or split_of(file.relative_to(place)) for file in tables}
    asked = next((name for name, words in _NAMES.items() if split in words), split)
    chosen = [file for file in tables if (splits[file] or "train") == asked]
    named_splits = {name for name in splits.values() if name is not None}
    if not chosen:
        if len({name or "train" for name in splits.values()}) > 1 or (
            split != "train" and named_splits
        ):
            raise _no_split(path, split, {name or "train" for name in splits.values()})
        return tables, [
            f"nothing: all files of {path} are of split {next(iter(named_splits))}"
        ] * bool(named_splits)
    taken = set(chosen)
    others = Counter(name for file, name in splits.items() if file not in taken and name)
    return chosen, [f"split {name} ({count} files)" for name, count in sorted(others.items())]


def split_of(file: Path) -> str | None:
    """Return the split that the names of a file and of its folders tell, None where none does."""
    shard = _SHARD.match(file.name)
    if shard is not None:
        return next((name for name, words in _NAMES.items() if shard[1] in words), shard[1])
    for part in (*file.parts[:-1], file.name):
        for name, words in _NAMES.items():
            if any(re.search(rf"(^|[-._ 0-9]){word}([-._ 0-9]|$)", part) for word in words):
                return name
    return None


def _matching(place: Path, pattern: str) -> Iterator[Path]:
    """Yield the files that a card's pattern names; one that leads outside names none."""
    if ".." in Path(pattern).parts:
        return
    with contextlib.suppress(ValueError, NotImplementedError, OSError):  # no pattern at all
        yield from place.glob(re.sub(r"(\*\*/)+", "**/", pattern))


def _from_readme(place: Path, tables: Sequence[Path]) -> dict[Path, str]:
    """Return the splits of files that the README of a copy of the hub names."""
    readme = place / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    front = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    if front and len(front[1]) > MOST_BYTES:
        raise SourceError(f"{readme} begins with more YAML than a card has; name the files instead")
    try:
        card = parse_any(front[1]) if front else None
    except ValueError:
        return {}
    configs = card.get("configs") if isinstance(card, dict) else None
    splits: dict[Path, str] = {}
    for config in configs if isinstance(configs, list) else []:
        listed = config.get("data_files") if isinstance(config, dict) else None
        for entry in listed if isinstance(listed, list) else []:
            if not isinstance(entry, dict) or "path" not in entry:
                continue
            paths = entry["path"] if isinstance(entry["path"], list) else [entry["path"]]
            inside = {file for one in paths for file in _matching(place, str(one))}
            splits |= {file: str(entry.get("split", "train")) for file in tables if file in inside}
    return splits
