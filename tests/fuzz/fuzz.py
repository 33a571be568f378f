"""Fuzzes one reader of what users bring: every input is read, or refused in a sentence of ours.

    make fuzz                                  # every target in turn, FUZZ_SECONDS each
    python tests/fuzz/fuzz.py rankings -max_total_time=60

What libFuzzer finds it writes to `crash-*`; `fuzz.py TARGET crash-...` runs it again.
"""

from __future__ import annotations

import gzip
import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["data", "pipeline.recipe", "pipeline.contract"]):
    from data.errors import RlhfError
    from data.sources.read import ReadReport, read
    from data.sources.source import Source
    from pipeline.contract.artifacts import MANIFEST, find
    from pipeline.recipe.load import load_recipe

FOLDER = Path(tempfile.mkdtemp(prefix="rlhf-fuzz-"))
KINDS = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".jsonl.gz", ".csv.zst")
COLUMNS = ("prompt", "completions", "ranks", "scores", "probabilities", "ended", "messages", "meta")


def recipe(data: bytes) -> None:
    """A recipe file."""
    file = FOLDER / "recipe.yaml"
    file.write_bytes(data)
    load_recipe(file)


def manifest(data: bytes) -> None:
    """The manifest of a stage's folder."""
    (FOLDER / "stage").mkdir(exist_ok=True)
    (FOLDER / "stage" / MANIFEST).write_bytes(data)
    find(FOLDER / "stage")


def formats(data: bytes) -> None:
    """A file of rows, of the kind that the first byte tells."""
    kind = KINDS[data[0] % len(KINDS)] if data else ".jsonl"
    _read(kind, gzip.compress(data[1:]) if kind.endswith("gz") else data[1:])


def rankings(data: bytes) -> None:
    """A row of well-formed JSON with the columns of rankings and chats, whatever they hold."""
    given = atheris.FuzzedDataProvider(data)
    row = {name: _value(given, 4) for name in COLUMNS if given.ConsumeBool()}
    _read(".jsonl", json.dumps(row).encode())


def _value(given: atheris.FuzzedDataProvider, depth: int) -> object:
    kind = given.ConsumeIntInRange(0, 9 if depth else 5)
    if kind == 0:
        return given.PickValueInList([None, True, False, "", "user", "assistant", "[", "[{", "{}"])
    if kind == 1:
        return given.ConsumeInt(9) ** given.PickValueInList([1, 1, 1, 60])
    if kind == 2:
        return given.ConsumeFloat()
    if kind <= 5:
        return given.ConsumeUnicode(given.ConsumeIntInRange(0, 12))
    held = [_value(given, depth - 1) for _ in range(given.ConsumeIntInRange(0, 4))]
    if kind <= 7:
        return held
    keys = ["role", "content", "from", "value", "tool_calls", "function", "name", "weight", "text"]
    return {given.PickValueInList(keys): one for one in held}


def _read(kind: str, content: bytes) -> None:
    file = FOLDER / f"rows{kind}"
    file.write_bytes(content)
    report = ReadReport()
    try:
        for _ in read(Source(path=str(file), max_bad_share=0.5), report=report):
            pass
    finally:
        "\n".join(report.lines()).encode()


TARGETS: dict[str, tuple[Callable[[bytes], None], list[bytes]]] = {
    "recipe": (recipe, [b"stages: {a: {kind: tokenizer, train: [{path: x.jsonl}]}}\n"]),
    "manifest": (manifest, [b'{"format": 1, "kind": "sft", "files": {}, "key": "x"}']),
    "formats": (
        formats,
        [
            b'\0{"text": "a"}\n{"messages": [{"role": "user", "content": "b"}]}\n',
            b'\1[{"chosen": "a b", "rejected": "a c"}]',
            b'\2prompt,completion\n"a","b"\n',
            b"\4some text<|endoftext|>\n",
        ],
    ),
    "rankings": (rankings, [b"\1" * 64]),
}


def main() -> None:
    """Fuzz the target that the command line names; libFuzzer takes the other arguments."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"fuzz.py {'|'.join(TARGETS)} [options of libFuzzer]")
    warnings.simplefilter("ignore")
    target, seeds = TARGETS[sys.argv.pop(1)]

    def one(data: bytes) -> None:
        try:
            target(data)
        except RlhfError as refused:
            assert len(str(refused)) < 20_000

    corpus = Path(tempfile.mkdtemp(prefix="rlhf-corpus-"))
    for place, seed in enumerate(seeds):
        (corpus / str(place)).write_bytes(seed)
    again = any(Path(word).is_file() for word in sys.argv[1:])
    limits = ["-timeout=10", "-rss_limit_mb=3072", "-max_len=4096"]
    atheris.Setup([*sys.argv, *limits, *([] if again else [str(corpus)])], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
