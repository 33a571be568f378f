"""Bad input, typed at the command line: one clear sentence, exit code 2, and nothing lost.

Each file here holds the inputs of one part as data. None of them crashes or hangs an outside
library by itself: what guards against such input is tried with a harmless one.
"""

from __future__ import annotations

import hashlib
import io
import os
import resource
import signal
import stat
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

Content = str | bytes | Callable[[Path], object]
SECONDS = 10.0
BYTES = 2 * 2**30


@dataclass(frozen=True)
class Result:
    """What a command came to.

    Attributes:
        code: exit code; 1 where the installed command would show a traceback, which is in `err`.
        out: stdout.
        err: stderr.
        changed: what was made, changed or removed in the folder, below it.
        folder: where it ran.
    """

    code: int
    out: str
    err: str
    changed: tuple[str, ...]
    folder: Path


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Import no torch where no command does; OMP_NUM_THREADS holds."""


@pytest.fixture
def rlhf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Result]:
    """Return what runs `rlhf` in a folder: rlhf(args, files, stdin="", seconds=10).

    `files` are made before: by name a text, bytes, or what makes one of its path, as `os.mkfifo`
    or `Path.mkdir`. The command runs in this process with 2 GiB more memory than is in use; a test
    fails whose command computes for longer than `seconds`.
    """
    from pipeline.cli.main import main

    monkeypatch.chdir(tmp_path)

    def typed(
        args: Sequence[object],
        files: Mapping[str, Content] | None = None,
        *,
        stdin: str | bytes = "",
        seconds: float = SECONDS,
    ) -> Result:
        for name, content in (files or {}).items():
            _make(tmp_path / name, content)
        before = _state(tmp_path)
        given = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given), encoding="utf-8"))
        monkeypatch.setattr("sys.argv", ["rlhf", *map(str, args)])
        capfd.readouterr()
        with _own_process(), _memory(BYTES), _computing(seconds, args):
            code = _exit_code(main)
        out, err = capfd.readouterr()
        after = _state(tmp_path)
        changed = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
        return Result(code, out, err, tuple(changed), tmp_path)

    return typed


@pytest.fixture
def assert_refused() -> Callable[..., None]:
    """Return what asserts the promise of bad input: assert_refused(result, *words, lines=1).

    Exit code 2, all words in one sentence on stderr (`lines` where it has several faults), no
    traceback, and the folder as before.
    """

    def asserted(result: Result, *words: str, lines: int = 1) -> None:
        assert "Traceback" not in result.err + result.out, result.err[-3000:]
        assert result.code == 2, result
        told = result.err.strip().splitlines()
        begins = [n for n, line in enumerate(told) if line.startswith(("rlhf: ", "Error: "))]
        assert begins, f"no sentence: {result.err[:3000]}"
        sentence = [line for line in told[begins[-1] :] if line.strip()]
        assert len(sentence) <= lines, f"{len(sentence)} lines: {result.err[:3000]}"
        assert len(told) <= lines + 5, f"{len(told)} lines: {result.err[:3000]}"
        text = "\n".join(sentence)
        assert len(text) <= 2000 * lines, f"{len(text)} characters: {text[:3000]}"
        for word in words:
            assert word in text, f"{word!r} is not in {text!r}"
        assert not result.changed, f"changed: {result.changed}"

    return asserted


def _make(path: Path, content: Content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if callable(content):
        content(path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def _state(folder: Path) -> dict[str, tuple[object, ...]]:
    """Return what is in a folder: type, rights, and the content or the target of a link."""
    found: dict[str, tuple[object, ...]] = {}
    for place, names, files in os.walk(folder):
        for name in (*names, *files):
            path = Path(place, name)
            mode = path.lstat().st_mode
            held: object = None
            if stat.S_ISLNK(mode):
                held = os.readlink(path)
            elif stat.S_ISREG(mode) and os.access(path, os.R_OK):
                held = hashlib.sha256(path.read_bytes()).digest()
            found[str(path.relative_to(folder))] = (mode, held)
    return found


def _exit_code(command: Callable[[], object]) -> int:
    """Run the command as the installed script does, and return its exit code."""
    try:
        command()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except Exception:
        traceback.print_exc()
        return 1
    return 0


@contextmanager
def _own_process() -> Iterator[None]:
    """Undo what a command leaves in its process; its warnings are no errors, as for a user."""
    environment, handlers = dict(os.environ), _handlers()
    path, modules = list(sys.path), set(sys.modules)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:] = path
        for number, handler in handlers.items():
            signal.signal(number, handler)
        plugins: Any = sys.modules.get("reward.plugins")
        if plugins is not None:
            plugins.forget_all()
            for name in sys.modules.keys() - modules:
                if name.startswith(plugins.PREFIX):
                    del sys.modules[name]


def _handlers() -> dict[signal.Signals, Any]:
    return {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}


@contextmanager
def _memory(more: int) -> Iterator[None]:
    """Let this process take so many bytes more than it has, where the system can tell and limit."""
    status = Path("/proc/self/status")
    if not status.is_file():
        yield
        return
    line = next(row for row in status.read_text().splitlines() if row.startswith("VmData:"))
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (int(line.split()[1]) * 1024 + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@contextmanager
def _computing(seconds: float, args: Sequence[object]) -> Iterator[None]:
    """Fail the test when this computes for longer; what waits for ever, pytest ends."""

    def ring(*_: object) -> None:
        pytest.fail(f"rlhf {' '.join(map(str, args))[:300]}: not done in {seconds} s of computing")

    old = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, old)
