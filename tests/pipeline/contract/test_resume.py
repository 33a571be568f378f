"""Resume states: whole or passed over, whatever happens while one is written."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from data.errors import StorageError
from data.storage import sha256
from pipeline.contract.resume import (
    COMPLETE,
    ResumeStore,
    load_state,
    restore_rng,
    rng_state,
    save_state,
)

DRIVER = Path(__file__).with_name("killed_pretrain.py")
STEPS = 24


def _write(number: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "state.txt").write_text(f"state {number}")

    return write


@pytest.fixture
def store(tmp_path: Path) -> ResumeStore:
    return ResumeStore(tmp_path / "resume", "key", tracked=[tmp_path / "metrics.jsonl"])


def test_the_newest_state_is_found_and_old_ones_go(store: ResumeStore) -> None:
    assert store.latest() is None
    for step in (5, 10, 100000000):
        store.save(step, _write(step))
    found = store.latest()
    assert found is not None and found[0] == 100000000
    assert (found[1] / "state.txt").read_text() == "state 100000000"
    assert sorted(p.name for p in store.folder.iterdir()) == ["step-00000010", "step-100000000"]


def _truncate(folder: Path) -> None:
    path = folder / "state.txt"
    path.write_bytes(path.read_bytes()[:-1])


def _flip(folder: Path) -> None:
    path = folder / "state.txt"
    path.write_bytes(b"X" + path.read_bytes()[1:])


def _complete(folder: Path, text: str) -> None:
    (folder / COMPLETE).write_text(text)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated": _truncate,
    "one byte flipped": _flip,
    "missing file": lambda folder: (folder / "state.txt").unlink(),
    "no completion manifest": lambda folder: (folder / COMPLETE).unlink(),
    "half a completion manifest": lambda folder: _complete(folder, '{"step": 1'),
    "a list": lambda folder: _complete(folder, "[]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_passed_over(store: ResumeStore, damage: str) -> None:
    log = store.tracked[0]
    log.write_text("one\n")
    store.save(1, _write(1))
    with log.open("a") as file:
        file.write("two\n")
    folder = store.save(2, _write(2))
    DAMAGES[damage](folder)
    found = store.latest()
    assert found is not None and found[0] == 1
    assert log.read_text() == "one\n"


def _tensors(value: float, *, as_safetensors: bool) -> Callable[[Path], None]:
    """Return what writes a state whose last number is `value`."""
    weights = torch.tensor([[1.0, value]])

    def write(folder: Path) -> None:
        if as_safetensors:
            save_file({"whole": torch.arange(3), "weights": weights}, folder / "model.safetensors")
        else:
            nested = {"seen": [torch.ones(2)], "policy": {"module": {"weights": weights}}}
            save_state(folder / "state.pt", {**nested, "score": -math.inf})

    return write


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("as_safetensors", [True, False])
def test_a_state_with_weights_that_are_not_finite_is_passed_over_and_told(
    store: ResumeStore, value: float, as_safetensors: bool
) -> None:
    told: list[str] = []
    store.say = told.append
    store.save(1, _tensors(2.0, as_safetensors=as_safetensors))
    store.save(2, _tensors(value, as_safetensors=as_safetensors))
    found = store.latest()
    assert found is not None and found[0] == 1
    (line,) = told
    assert "step-00000002 is passed over" in line and "NaN or infinite" in line
    assert "--force" in line
    # The way from the good state on clears the broken one, whose number is higher.
    store.save(1, _tensors(3.0, as_safetensors=as_safetensors))
    assert not (store.folder / "step-00000002").exists()
    found = store.latest()
    assert found is not None and found[0] == 1


def test_newer_is_what_was_written_later(store: ResumeStore) -> None:
    """An attempt that went on from before damaged states keeps its own, of lower steps."""
    for step in (10, 100, 110):
        store.save(step, _write(step))
    for step in (100, 110):
        _flip(store.folder / f"step-{step:08d}")
    store.save(20, _write(20))  # one that has not looked: nothing newer is lost to its number
    found = store.latest()
    assert found is not None and found[0] == 20
    store.save(30, _write(30))
    assert sorted(p.name for p in store.folder.iterdir()) == ["step-00000020", "step-00000030"]
    _flip(store.folder / "step-00000030")
    found = store.latest()
    assert found is not None and found[0] == 20


def test_damaged_states_go_before_whole_ones(store: ResumeStore) -> None:
    for step in (10, 20):
        store.save(step, _write(step))
    _flip(store.folder / "step-00000020")
    assert store.latest() == (10, store.folder / "step-00000010")
    store.save(15, _write(15))
    assert sorted(p.name for p in store.folder.iterdir()) == ["step-00000010", "step-00000015"]


def test_states_from_before_they_were_numbered_are_the_oldest(store: ResumeStore) -> None:
    for step in (8, 9, 10):
        folder = store.save(step, _write(step))
        manifest = json.loads((folder / COMPLETE).read_text())
        del manifest["written"]
        (folder / COMPLETE).write_text(json.dumps(manifest))
    assert store.latest() == (10, store.folder / "step-00000010")
    store.save(3, _write(3))
    assert store.latest() == (3, store.folder / "step-00000003")


def test_the_same_step_again_never_leaves_the_disk_without_it(
    store: ResumeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(5, _write(5))

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.contract.resume.os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            store.save(5, _write(6))
    assert store.latest() == (5, store.folder / "step-00000005")
    store.save(5, _write(6))
    found = store.latest()
    assert found is not None and found[0] == 5
    assert (found[1] / "state.txt").read_text() == "state 6"


def test_a_state_has_the_rights_of_new_files(store: ResumeStore) -> None:
    def write(folder: Path) -> None:
        (folder / "deep").mkdir()
        (folder / "deep/weights").write_text("x")
        (folder / "deep/weights").chmod(0o600)

    folder = store.save(1, write)
    assert (folder / "deep/weights").stat().st_mode == (folder / COMPLETE).stat().st_mode


def test_a_state_of_other_settings_is_ignored(store: ResumeStore) -> None:
    store.save(3, _write(3))
    store.tracked[0].write_text("a row\n")
    other = ResumeStore(store.folder, "another key", tracked=store.tracked)
    assert other.latest() is None
    assert store.tracked[0].read_text() == ""  # it starts anew
    assert store.latest() is not None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES])
@pytest.mark.parametrize("place", ["the state", "the manifest", "the rename"])
def test_a_disk_that_refuses_leaves_the_last_state(
    store: ResumeStore, monkeypatch: pytest.MonkeyPatch, number: int, place: str
) -> None:
    store.save(1, _write(1))

    def refused(*_: Any, **__: Any) -> None:
        raise OSError(number, "refused")

    with monkeypatch.context() as patch:
        if place == "the manifest":
            patch.setattr("pipeline.contract.resume.write_atomically", refused)
        if place == "the rename":
            patch.setattr("pipeline.contract.resume.os.replace", refused)
        with pytest.raises(StorageError):
            store.save(2, refused if place == "the state" else _write(2))
    found = store.latest()
    assert found is not None and found[0] == 1
    assert [p.name for p in store.folder.iterdir()] == ["step-00000001"]  # no rubbish stays
    store.save(2, _write(2))
    assert store.latest() is not None


def test_a_full_disk_in_training_leaves_the_last_state(
    make_context: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.contract.settings import StageSettings
    from pipeline.training.loop import Rhythm, run_loop
    from pipeline.training.state import save_training_state

    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    context = make_context(StageSettings(kind="x"))
    honest = torch.save

    def full(value: Any, path: Path) -> None:
        if "step-00000004" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        honest(value, path)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(StorageError, match="no space left on the disk"):
        run_loop(
            context, Rhythm(total=6, save=2), step=lambda _: {"train/loss": 0.0}, load=load_state,
            save=lambda folder, own: save_training_state(folder, model, optimizer, extra=own),
        )  # fmt: skip
    found = context.resume.latest()
    assert found is not None and found[0] == 2


def test_nested_state_comes_back(tmp_path: Path) -> None:
    state = {"a": torch.arange(3), "b": {"c": [1, 2.5, "x", None, True]}, "d": (1, 2)}
    save_state(tmp_path / "state.pt", state)
    loaded = load_state(tmp_path / "state.pt")
    assert torch.equal(loaded.pop("a"), torch.arange(3))
    assert loaded == {"b": state["b"], "d": (1, 2)}


def test_code_in_a_state_is_not_run(tmp_path: Path) -> None:
    torch.save({"a": Path("x")}, tmp_path / "state.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        load_state(tmp_path / "state.pt")


def test_random_numbers_go_on(tmp_path: Path) -> None:
    import numpy as np

    save_state(tmp_path / "rng.pt", rng_state())
    drawn = (random.random(), np.random.rand(), torch.rand(2).tolist())
    restore_rng(load_state(tmp_path / "rng.pt"))
    assert (random.random(), np.random.rand(), torch.rand(2).tolist()) == drawn


class Killed:
    """Runs the driver in processes that are killed, and compares with one that was not."""

    def __init__(
        self, fork: Callable[..., Any], tokenizer: str, corpus: str, objective: str = "causal"
    ) -> None:
        self.fork, self.tokenizer, self.corpus = fork, tokenizer, corpus
        self.objective = objective

    def start(self, folder: Path, die: tuple[str, int] | None = None) -> Any:
        """Start a run in a folder."""
        return self.fork(
            DRIVER, FOLDER=str(folder), TOKENIZER=self.tokenizer, CORPUS=self.corpus, STEPS=STEPS,
            OBJECTIVE=self.objective, DIE=die,
        )  # fmt: skip

    def finish(self, folder: Path) -> None:
        """Run to the end."""
        process = self.start(folder)
        process.join()
        assert process.exitcode == 0

    def outcome(self, folder: Path) -> tuple[str, list[dict[str, Any]]]:
        """Return the digest of the weights, and the metrics but for times."""
        timed = ("seconds", "train/tokens_per_second")
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        rows = [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]
        return sha256(folder / "model" / "model.safetensors"), rows

    def kill_at_random(self, folder: Path, rng: random.Random) -> bool:
        """Kill a run at a random moment after it wrote something; False when it was faster."""
        process = self.start(folder)
        size = self._written(folder)
        while self._written(folder) == size and process.is_alive():
            time.sleep(0.001)
        process.join(timeout=rng.uniform(0.0, 0.15))
        process.kill()
        process.join()
        return bool(process.exitcode != 0)

    def _written(self, folder: Path) -> int:
        newest = 0
        for path in folder.glob("resume/*"):
            with contextlib.suppress(FileNotFoundError):  # the run gives a whole state its name
                newest = max(newest, path.stat().st_mtime_ns)
        return newest


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Place for what the tests of this file share: the run that was never cut off."""
    return {"folder": tmp_path_factory.mktemp("reference")}


@pytest.fixture
def killed(
    fork: Callable[..., Any], tiny_tokenizer: Callable[..., Any], reference: dict[str, Any]
) -> Killed:
    folder = reference["folder"]
    if "killed" not in reference:
        tiny_tokenizer().save_pretrained(folder / "tokenizer")
        corpus = folder / "corpus.jsonl"
        rows = [
            {"text": f"The baker met miller {i} by the river {i} years ago."} for i in range(60)
        ]
        corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
        killed = Killed(fork, str(folder / "tokenizer"), str(corpus))
        killed.finish(folder / "whole")
        reference["killed"], reference["outcome"] = killed, killed.outcome(folder / "whole")
    found: Killed = reference["killed"]
    return found


def _killed_often(killed: Killed, folder: Path, kills: int, seed: int) -> None:
    rng, done = random.Random(seed), 0
    while done < kills:
        done += killed.kill_at_random(folder, rng)
        if (folder / "model").exists():  # it had come to its end: begin again
            shutil.rmtree(folder)
            folder.mkdir()
    killed.finish(folder)


def test_killed_at_random_moments_ends_in_the_same_weights(
    killed: Killed, reference: dict[str, Any], tmp_path: Path
) -> None:
    _killed_often(killed, tmp_path / "run", kills=3, seed=1)
    assert killed.outcome(tmp_path / "run") == reference["outcome"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_killed_ten_times_ends_in_the_same_weights(
    killed: Killed, reference: dict[str, Any], tmp_path: Path, seed: int
) -> None:
    _killed_often(killed, tmp_path / "run", kills=10, seed=seed)
    assert killed.outcome(tmp_path / "run") == reference["outcome"]


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["masked", "denoising"])
def test_other_objectives_killed_at_random_moments_end_in_the_same_weights(
    killed: Killed, tmp_path: Path, objective: Any
) -> None:
    from transformers import AutoTokenizer

    from data.text.objectives.special_tokens import equip

    tokenizer = AutoTokenizer.from_pretrained(killed.tokenizer)
    equip(tokenizer, objective)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    own = Killed(killed.fork, str(tmp_path / "tokenizer"), killed.corpus, objective)
    own.finish(tmp_path / "whole")
    _killed_often(own, tmp_path / "run", kills=5, seed=4)
    assert own.outcome(tmp_path / "run") == own.outcome(tmp_path / "whole")


def test_killed_inside_a_save_ends_in_the_same_weights(
    killed: Killed, reference: dict[str, Any], tmp_path: Path
) -> None:
    """One run is killed at point after point inside the saves it comes to."""
    folder = tmp_path / "run"
    # In the second save that a process comes to; reading a state digests its three files.
    calls = {
        "before weights": 2,
        "before optimiser": 4,
        "before digest": 8,
        "before manifest": 2,
        "before rename": 4,
        "before flush": 2,
        "before pruning": 4,
    }
    for point, count in calls.items():
        process = killed.start(folder, die=(point, count))
        process.join()
        assert process.exitcode == -9, point
    assert not (folder / "model").exists()
    killed.finish(folder)
    assert killed.outcome(folder) == reference["outcome"]
