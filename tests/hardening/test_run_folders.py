"""Run folders that were edited, cut, or filled by somebody else."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.contract.console import Console
from pipeline.contract.resume import ResumeStore
from pipeline.recipe.load import load_recipe
from pipeline.run.planning import Planner
from pipeline.run.runner import execute
from pipeline.run.unfinished import Attempt

RECIPE = """
name: small
stages:
  one: {kind: tokenizer, train: [{path: text.txt}], vocab_size: 300}
  two: {kind: tokenizer, train: [{path: text.txt}], vocab_size: 310}
"""
DEEP = "[" * 100_000 + "]" * 100_000
HASH = "0" * 64


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a recipe and its finished run."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "r.yaml").write_text(RECIPE)
    (folder / "text.txt").write_text("the cat sat on the mat and the dog lay by the log\n" * 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for _ in range(2):  # the second time leaves the lock of a run that did nothing
            execute(load_recipe(Path("r.yaml")), Path("run"), console=Console(quiet=True))
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """Return the run folder of a copy of it, where the command is typed."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True, symlinks=True)
    return tmp_path / "run"


def manifest(**changes: Any) -> Callable[[Path], None]:
    """Return what edits a stage's manifest; a value that is `...` is taken out."""

    def edit(stage: Path) -> None:
        path = stage / "manifest.json"
        content = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))

    return edit


def listed(name: str, **changes: Any) -> Callable[[Path], None]:
    """Return what lists one more file in a stage's manifest."""

    def edit(stage: Path) -> None:
        files = json.loads((stage / "manifest.json").read_text())["files"]
        entry = {"size": 1, "sha256": HASH, **changes}
        manifest(files={**files, name: entry})(stage)

    return edit


def holds(content: str | bytes, name: str = "manifest.json") -> Callable[[Path], None]:
    """Return what writes other content into a file of a stage."""
    data = content.encode() if isinstance(content, str) else content

    def edit(stage: Path) -> None:
        (stage / name).write_bytes(data)

    return edit


def instead(make: Callable[[Path], object], name: str = "manifest.json") -> Callable[[Path], None]:
    """Return what puts something else in the place of a file of a stage."""

    def edit(stage: Path) -> None:
        (stage / name).unlink(missing_ok=True)
        make(stage / name)

    return edit


def bind(path: Path) -> None:
    """Leave a socket in a folder."""
    with socket.socket(socket.AF_UNIX) as one:
        here = Path.cwd()
        os.chdir(path.parent)  # the name of a socket is short
        one.bind(path.name)
        os.chdir(here)


TYPES: dict[str, list[Any]] = {
    "stage": [1, None, [], {}], "kind": [1, None], "key": [1, None, {}], "digest": [2, None],
    "metrics": [None, [], "x", {"a": []}, {"a": {}}], "files": [None, [], "x", {"a": 1}],
    "main_metric": [1, None, []], "created": [1, None, "x", "2026-01-01", "10000-01-01T00:00Z"],
    "inputs": [None, [], "x"], "beside": [None, [1]], "follows_from": [None, "x", [1]],
    "parents": [[], None, {"a": 1}], "seed": ["x", 1.5], "processes": ["x"], "seconds": ["x", []],
    "peak_rss_mb": ["x"], "device": [1], "format": [None, 2, "1", [1], 10**300],
}  # fmt: skip
MANIFESTS: dict[str, Callable[[Path], None]] = {
    **{f"{k} is {v!r:.30}": manifest(**{k: v}) for k, values in TYPES.items() for v in values},
    **{f"no {k}": manifest(**{k: ...}) for k in ("stage", "kind", "key", "digest", "metrics")},
    **{
        f"names {name[:20]!a}": listed(name)
        for name in (
            "../x", "/etc/passwd", "a/../../x", "a//b", "./a", "", "a/", "x" * 300, "a\0b", "x\ny",
            "/".join(["d"] * 3000), "\ud800", "model/none.bin", "..",
        )
    },
    **{f"size {size!r:.20}": listed("a", size=size) for size in (-1, 1.5, "1", None, True)},
    "huge size": listed("tokenizer/tokenizer.json", size=10**18),
    "no sha": listed("a", sha256=None),
    "sha of another": listed("tokenizer/tokenizer.json"),
    "deep": holds(DEEP),
    "deep within": holds('{"format": 1, "inputs": ' + '{"a":' * 50_000 + "1" + "}" * 50_000 + "}"),
    "a long number": holds('{"format": ' + "1" * 5000 + "}"),
    "twice": holds('{"format": 1, "format": 1}'),
    "NaN": holds("NaN"),
    "BOM": holds(b"\xef\xbb\xbf{}"),
    "UTF-16": holds("{}".encode("utf-16")),
    "empty": holds(""),
    "zeros": holds(bytes(1000)),
    "cut": lambda stage: os.truncate(stage / "manifest.json", 200),
    "a list": holds("[1]"),
    "a text": holds('"x"'),
    "null": holds("null"),
    "an object": holds("{}"),
    "bytes": holds(b"\xff\xfe\xfa"),
    "two objects": holds("{}{}"),
    "escapes": manifest(digest="\x1b[2J\nrlhf: done"),
    "a folder": instead(Path.mkdir),
    "a pipe": instead(os.mkfifo),
    "a socket": instead(bind),
    "a link to nothing": instead(lambda path: path.symlink_to("nowhere")),
    "a link to itself": instead(lambda path: path.symlink_to(path)),
}  # fmt: skip


@pytest.mark.parametrize("edit", MANIFESTS.values(), ids=MANIFESTS)
def test_a_manifest_that_no_stage_wrote(
    run: Path,
    rlhf: Callable[..., Any],
    assert_refused: Callable[..., None],
    edit: Callable[[Path], None],
) -> None:
    edit(run / "one")
    assert_refused(rlhf(["run", "r.yaml", "--out", "run"]), "run/one/")
    told = rlhf(["ls", "run"])
    _, one, two = told.out.splitlines()
    assert (told.code, told.err) == (0, ""), told
    assert "damaged: run/one/" in one and ("delete run/one" in one or "--out" in one)
    assert two.split("\t")[:3] == ["two", "tokenizer", "done"]


def add(name: str, make: Callable[[Path], object] = Path.touch) -> Callable[[Path], None]:
    """Return what adds something to a stage's folder."""

    def edit(stage: Path) -> None:
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        make(stage / name)

    return edit


ADDED: dict[str, Callable[[Path], None]] = {
    "a file": add("x"),
    "a hidden file": add(".x"),
    "a file deep down": add("a/b/c/x"),
    "code": add("tokenizer/modeling.py"),
    "a second model": add("model/model.safetensors"),
    "bytes for a name": add(os.fsdecode(b"\xff\xfe")),
    "a name of two lines": add("a\nb"),
    "a pipe": add("x", os.mkfifo),
    "a socket": add("x", bind),
    "a link to nothing": add("x", lambda path: path.symlink_to("nowhere")),
    "a link to itself": add("x", lambda path: path.symlink_to(path)),
    "a link to a folder": add("x", lambda path: path.symlink_to("tokenizer")),
    "a link to a file": add("x", lambda path: path.symlink_to("manifest.json")),
    "almost the system's": add("tokenizer/Thumbs.db.json"),
    "log cut": lambda stage: os.truncate(stage / "stage.log", 3),
    "log longer": lambda stage: os.truncate(stage / "stage.log", 100_000),
    "metrics of odd types": holds('[]\n1\n"x"\nnull\n', "metrics.jsonl"),
    "no metrics": lambda stage: (stage / "metrics.jsonl").unlink(),
    "a folder for a file": instead(Path.mkdir, "tokenizer/tokenizer.json"),
    "a pipe for a file": instead(os.mkfifo, "tokenizer/tokenizer.json"),
    "a link to itself for a file": instead(lambda p: p.symlink_to(p), "tokenizer/tokenizer.json"),
}


@pytest.mark.parametrize("edit", ADDED.values(), ids=ADDED)
def test_files_that_the_manifest_does_not_tell(
    run: Path,
    rlhf: Callable[..., Any],
    assert_refused: Callable[..., None],
    edit: Callable[[Path], None],
) -> None:
    edit(run / "one")
    assert_refused(rlhf(["run", "r.yaml", "--out", "run"]), "run/one/", "delete run/one")
    told = rlhf(["ls", "run"])
    _, one, two = told.out.splitlines()
    assert (told.code, told.err) == (0, ""), told
    assert "damaged: run/one/" in one and "delete run/one" in one
    assert two.split("\t")[2] == "done"


def test_what_may_lie_in_a_finished_stage(run: Path, rlhf: Callable[..., Any]) -> None:
    for name in (".DS_Store", "tokenizer/Thumbs.db", ".nfs0000001", "work/x", "resume/x"):
        add(name)(run / "one")
    shutil.move(run / "one" / "tokenizer", run / "elsewhere")
    (run / "one" / "tokenizer").symlink_to(run / "elsewhere")
    assert "up to date" in rlhf(["run", "r.yaml", "--out", "run"]).out
    assert [row.split("\t")[2] for row in rlhf(["ls", "run"]).out.splitlines()[1:]] == ["done"] * 2


def cut_off(run: Path, state: str, key: str = "a" * 64, facts: str = "{}") -> None:
    """Leave a stage as one that was cut off, with a state of its own and one set aside."""
    stage = run / "one"
    (stage / "manifest.json").unlink()
    for name, content in {
        "one/work/key": key,
        "one/work/kept.json": "[",
        "one/resume/step-00000001/complete.json": state,
        "one/resume/step-00000002/complete.json/x": "",
        f".unfinished/one/{'a' * 12}.json": facts,
        f".unfinished/one/{'a' * 12}.yaml": "name: [",
    }.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(content)


def state(**changes: Any) -> str:
    """Return a completion manifest with other entries."""
    whole = {"step": 1, "key": "a" * 64, "written": 1, "files": {}, "logs": {}}
    return json.dumps({**whole, **changes})


STATE_TYPES: dict[str, list[Any]] = {
    "step": ["x", None, [], 1.5], "written": ["x", None, []],
    "files": [None, [], "x", {"a": 1}, {"a": {}}],
    "logs": [None, [], {"metrics.jsonl": -1}, {"a": "x"}],
}  # fmt: skip
STATES: dict[str, str] = {
    "deep": DEEP,
    "empty": "",
    "cut": state()[:30],
    "list": "[]",
    "nothing": "{}",
    "long number": state().replace("1", "1" * 5000),
    "twice": '{"step": 1, "step": 2}',
    **{f"{k} is {v!r:.20}": state(**{k: v}) for k, values in STATE_TYPES.items() for v in values},
}


@pytest.mark.parametrize("content", STATES.values(), ids=STATES)
def test_a_resume_state_that_no_stage_wrote_is_passed_over(
    run: Path, rlhf: Callable[..., Any], content: str
) -> None:
    cut_off(run, content)
    told = rlhf(["ls", "run"])
    assert (told.code, told.err) == (0, "")
    assert [row.split("\t")[2] for row in told.out.splitlines()[1:]] == ["not finished", "done"]
    assert ResumeStore(run / "one" / "resume", "a" * 64).latest() is None


@pytest.mark.parametrize("name", ["../../x", "/etc/hostname", "\0", "none", "x" * 300, "\ud800"])
def test_a_state_names_files_elsewhere(run: Path, name: str, rlhf: Callable[..., Any]) -> None:
    cut_off(run, state(files={name: {"size": 1, "sha256": HASH}}))
    assert ResumeStore(run / "one" / "resume", "a" * 64).latest() is None
    assert rlhf(["ls", "run"]).code == 0


KEYS = ["", "../outside/" + "x" * 53, "\0" * 64, "x" * 64, "a" * 65, "a" * 63]


@pytest.mark.parametrize("key", KEYS)
def test_a_digest_that_would_name_another_folder(
    run: Path, rlhf: Callable[..., Any], assert_refused: Callable[..., None], key: str
) -> None:
    cut_off(run, state(), key=key)
    assert_refused(rlhf(["run", "r.yaml", "--out", "run"]), "run/one/work/key", "delete run/one")
    told = rlhf(["ls", "run"])
    _, one, two = told.out.splitlines()
    assert "run/one/work/key" in one and two.split("\t")[2] == "done"


FACTS = ["", "[]", DEEP, '{"plugins": 1}', '{"plugins": [1]}', '{"beside": []}', '{"key": "x"}']


@pytest.mark.parametrize("facts", FACTS, ids=lambda text: text[:20] or "empty")
def test_what_an_attempt_was_begun_with_is_junk(
    run: Path, monkeypatch: pytest.MonkeyPatch, facts: str
) -> None:
    monkeypatch.chdir(run.parent)
    cut_off(run, state(), facts=facts)
    former = Attempt(run / "one", "a" * 64)
    assert (former.facts(), former.step) == ({}, 1)
    assert "is set aside in run/.unfinished/one/aaaaaaaaaaaa" in planned(Path("run"))


def planned(run: Path) -> str:
    """Return why the first stage of the run would begin."""
    return Planner(load_recipe(Path("r.yaml")), run).plan()[0].reason


RECIPES: dict[str, Callable[[Path], None]] = {
    "empty": holds("", "recipe.yaml"),
    "bytes": holds(b"\xff\x00", "recipe.yaml"),
    "no YAML": holds("a: [", "recipe.yaml"),
    "a list": holds("[1]", "recipe.yaml"),
    "a text": holds("x", "recipe.yaml"),
    "no name": holds("stages: {}", "recipe.yaml"),
    "a strange name": holds("name: [1]", "recipe.yaml"),
    "stages of no kind": holds("name: small\nstages: {one: 1}", "recipe.yaml"),
    "a stage outside": holds(
        "name: small\nstages: {../x: {kind: tokenizer, train: [{path: text.txt}]}}", "recipe.yaml"
    ),
    "itself": holds("extends: recipe.yaml", "recipe.yaml"),
    "a folder": instead(Path.mkdir, "recipe.yaml"),
    "a pipe": instead(os.mkfifo, "recipe.yaml"),
    "a link to nothing": instead(lambda path: path.symlink_to("nowhere"), "recipe.yaml"),
}


@pytest.mark.parametrize("edit", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("args", [["ls", "run"], ["label", "serve", "run"]], ids=["ls", "label"])
def test_the_recipe_of_a_run_is_broken(
    run: Path,
    rlhf: Callable[..., Any],
    assert_refused: Callable[..., None],
    args: list[str],
    edit: Callable[[Path], None],
) -> None:
    edit(run)
    if args[0] == "label" and not (run / "recipe.yaml").is_file():
        args = ["label", "tasks", "run"]
    assert_refused(rlhf(args), "run")


LOCKS: dict[str, str | bytes] = {
    "empty": "", "bytes": b"\xff\xfe", "long": "process " + "9" * 10_000, "zeros": bytes(100),
    "escapes": "process 1, at stage \x1b[2J", "lines": "process 1\n\n\n",
}  # fmt: skip


@pytest.mark.parametrize("content", LOCKS.values(), ids=LOCKS)
def test_a_lock_that_holds_junk(
    run: Path,
    rlhf: Callable[..., Any],
    assert_refused: Callable[..., None],
    content: str | bytes,
) -> None:
    holds(content, ".lock")(run)
    assert rlhf(["ls", "run"]).code == 0
    with (run / ".lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert rlhf(["ls", "run"]).code == 0
        assert_refused(rlhf(["run", "r.yaml", "--out", "run"]), "run is in use by process")
    assert rlhf(["run", "r.yaml", "--out", "run"]).code == 0


ADDRESSES = {
    "empty": "", "list": "[]", "deep": DEEP, "no address": '{"pid": 1}',
    "no pid": '{"address": ""}',
    **{
        f"pid {pid[:10]}": f'{{"address": "http://127.0.0.1:1", "pid": {pid}}}'
        for pid in ("-1", "0", "1e400", "NaN", '"1"', "9" * 30, "9" * 5000, "null", "[]", "true")
    },
    "an address that is none": f'{{"address": 1, "pid": {os.getpid()}}}',
}  # fmt: skip


def test_the_address_of_a_server_whose_number_another_process_has_now(tmp_path: Path) -> None:
    from data.labels.web.address import announcement, read_address, server_file

    server_file(tmp_path).parent.mkdir()
    told = announcement("http://127.0.0.1:1")
    server_file(tmp_path).write_text(told)
    assert read_address(tmp_path) == "http://127.0.0.1:1"
    server_file(tmp_path).write_text(json.dumps({**json.loads(told), "born": 1e9}))
    assert read_address(tmp_path) is None


@pytest.mark.parametrize("content", ADDRESSES.values(), ids=ADDRESSES)
def test_an_address_that_no_server_wrote(tmp_path: Path, content: str) -> None:
    from data.labels.web.address import read_address

    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "server.json").write_text(content)
    assert read_address(tmp_path) is None
    os.remove(tmp_path / "labels" / "server.json")
    os.mkfifo(tmp_path / "labels" / "server.json")
    assert read_address(tmp_path) is None


def database(*statements: str, header: bytes = b"") -> Callable[[Path], None]:
    """Return what makes a database that no version of this program made."""

    def make(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(path)) as made:
            for statement in statements:
                made.execute(statement)
            made.commit()
        if header:
            path.write_bytes(header + path.read_bytes()[len(header) :])

    return make


def ours(*statements: str) -> Callable[[Path], None]:
    """Return what makes a database of ours and edits it."""

    def make(path: Path) -> None:
        from data.labels.store.database import open_database

        open_database(str(path)).close()
        database(*statements)(path)

    return make


VERSION = "CREATE TABLE alembic_version (version_num VARCHAR(32))"
NEWEST = "UPDATE alembic_version SET version_num = "
DATABASES: dict[str, Callable[[Path], object]] = {
    "a text": lambda path: path.write_text("labels\n" * 200),
    "a short text": lambda path: path.write_text("x"),
    "bytes": lambda path: path.write_bytes(bytes(range(256)) * 20),
    "the beginning of one": lambda path: path.write_bytes(b"SQLite format 3\0"),
    "a broken header": database("CREATE TABLE a (b)", header=b"SQLite format 9\0"),
    "pages of no size": database("CREATE TABLE a (b)", header=b"SQLite format 3\0\0\3"),
    "of another program": database("CREATE TABLE people (name TEXT)"),
    "of another program, like ours": database("CREATE TABLE labels (a)"),
    "of another program with versions": database(
        VERSION, "INSERT INTO alembic_version VALUES ('f00')", "CREATE TABLE a (b)"
    ),
    "other versions": database("CREATE TABLE alembic_version (a)"),
    "no version": database(VERSION, "CREATE TABLE a (b)"),
    "a later version": ours(f"{NEWEST}'9999'"),
    "a version of odd type": ours(f"{NEWEST}x'ff00'"),
    "a version with escapes": ours(f"{NEWEST}char(27) || '[2J'"),
    "two versions": ours("INSERT INTO alembic_version VALUES ('0001')"),
    "a table less": ours("DROP TABLE drafts"),
    "a column less": ours("ALTER TABLE drafts RENAME TO was", "CREATE TABLE drafts (task_id)"),
    "an older version with newer tables": ours(f"{NEWEST}'0001'"),
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a socket": bind,
    "a link to itself": lambda path: path.symlink_to(path.name),
}


@pytest.mark.parametrize("make", DATABASES.values(), ids=DATABASES)
def test_a_label_database_that_is_none_of_ours(
    rlhf: Callable[..., Any],
    assert_refused: Callable[..., None],
    tmp_path: Path,
    make: Callable[[Path], object],
) -> None:
    (tmp_path / "run" / "labels").mkdir(parents=True)
    make(tmp_path / "run" / "labels" / "labels.sqlite")
    assert_refused(rlhf(["label", "tasks", "run"]), "labels.sqlite")
