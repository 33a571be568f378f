"""The README's three jobs, done with a wheel in an environment of its own; no test itself.

    python tests/pipeline/jobs.py OUT            # with the packages of this Python
    python tests/pipeline/jobs.py OUT --install  # with those that pip downloads for the wheel

An engineer brings data of her own, from `rlhf init` to a published model. A research lead has three
people label what a recipe asks. An evaluator judges what the engineer published, from a folder that
has nothing else of hers. Each works in an empty folder outside of the checkout, and knows no more
than the README. `OUT/jobs.md` tells what each command took.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))

from label_annotators import Person, Refused  # noqa: E402

THINGS = ("printer", "router", "badge", "laptop", "phone", "parking card", "projector", "monitor")
PLACES = ("room 12", "the front desk", "the IT corner", "the second floor", "the store room")
PEOPLE = ("Ada", "Bo", "Cy")
PATIENCE = 600.0


class User:
    """Somebody at a terminal in a folder.

    Args:
        job: what is done.
        folder: made, and empty.
        programs: where `rlhf` and `python` are.
        times: gets job, command and seconds of each command.
    """

    def __init__(
        self, job: str, folder: Path, programs: Path, times: list[tuple[str, str, float]]
    ) -> None:
        folder.mkdir()
        self.job, self.folder, self.programs, self.times = job, folder, programs, times

    @property
    def environment(self) -> dict[str, str]:
        left_out = ("PYTHONPATH", "VIRTUAL_ENV")
        kept = {name: value for name, value in os.environ.items() if name not in left_out}
        path = f"{self.programs}{os.pathsep}{kept['PATH']}"
        return {**kept, "PATH": path, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

    def do(self, *words: str, program: str = "rlhf") -> str:
        """Type a command, and return what it says; one that fails ends all."""
        begun = time.monotonic()
        done = subprocess.run(
            [self.programs / program, *words], cwd=self.folder, env=self.environment,
            capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip
        self.note(" ".join((program, *words)), begun)
        said = done.stdout + done.stderr
        if done.returncode:
            raise SystemExit(
                f"{self.job}: {self.times[-1][1]} ended with {done.returncode}:\n{said}"
            )
        return said

    def note(self, command: str, begun: float) -> None:
        self.times.append((self.job, command, time.monotonic() - begun))
        print(f"{self.job}: {command:.100}: {self.times[-1][2]:.1f} s", flush=True)


def install(out: Path, *, download: bool) -> Path:
    """Build a wheel, put it into an environment of its own, and return where its programs are."""
    source = out / "source"
    leave = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("data", "pipeline", "reward", "recipes"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=leave)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip"]
    built = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(out / "wheels")]
    subprocess.run([*pip, "wheel", *built, source], check=True)
    (wheel,) = (out / "wheels").glob("*.whl")
    shutil.rmtree(source)  # nothing of it may be imported
    venv = out / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python, programs = venv / "bin" / "python", venv / "bin"
    wanted = [f"{wheel}[labels]"] if download else ["--no-deps", str(wheel)]
    subprocess.run([*pip, "--python", python, "install", "--quiet", *wanted], check=True)
    if not download:
        (packages,) = venv.glob("lib/python*/site-packages")
        # A path alone: what an editable installation there names is not looked at.
        (packages / "packages.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return programs


def write_data(folder: Path) -> None:
    """Write demonstrations, pairs and notes of a help desk that nobody has seen before."""
    rng = random.Random(0)

    def asked() -> tuple[str, str, str]:
        thing, place = rng.choice(THINGS), rng.choice(PLACES)
        told = f"You get a new {thing} at {place}. Bring your staff card."
        return f"Where do I get a new {thing}?", told, thing

    with (folder / "support.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "answer"])
        writer.writerows(asked()[:2] for _ in range(300))
    with (folder / "pairs.jsonl").open("w") as file:
        for question, good, thing in (asked() for _ in range(200)):
            bad = f"I don't know, ask somebody else about the {thing}."
            file.write(json.dumps({"question": question, "good": good, "bad": bad}) + "\n")
    notes = [asked()[1] for _ in range(1500)]
    (folder / "notes.txt").write_text("\n".join(notes) + "\n")


def engineer(user: User) -> None:
    """Train on data of one's own, and publish the model."""
    write_data(user.folder)
    own = ("--texts", "notes.txt", "--sft", "support.csv", "--pairs", "pairs.jsonl")
    user.do("init", "mine.yaml", *own)
    user.do("validate", "mine.yaml")
    user.do("plan", "mine.yaml")
    user.do("run", "mine.yaml")
    user.do("ls", "runs/mine")
    user.do("publish", "runs/mine/sft", "shared/start")
    user.do("publish", "runs/mine/ppo", "shared/desk", "--license", "cc0-1.0")
    card = (user.folder / "shared/desk/README.md").read_text()
    (lines,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    (user.folder / "shared/ask.py").write_text(lines)
    used = User(user.job, user.folder / "used", user.programs, user.times)
    shutil.copytree(user.folder / "shared", used.folder, dirs_exist_ok=True)
    used.do("ask.py", program="python")


def lead(user: User) -> None:
    """Have three people label what a recipe asks, and go on to the reward model."""
    small = ("rankings.labeler=people", "rankings.limit=12", "rankings.completions=3",
             "base.tokens=40000", "sft.train=[{world: instructions, limit: 300}]",
             "rankings_heldout.limit=40")  # fmt: skip
    changes = [word for change in small for word in ("--set", change)]
    user.do("run", "quickstart", *changes, "--out", "runs/mine", "--until", "sft")
    begun, log = time.monotonic(), user.folder / "start.log"
    start = ["label", "start", "runs/mine", "--people", ",".join(PEOPLE), "--until", "reward"]
    with log.open("w") as file:
        process = subprocess.Popen(
            [user.programs / "rlhf", *start, "--port", "0"], cwd=user.folder,
            env=user.environment, stdout=file, stderr=file,
        )  # fmt: skip
    try:
        _label(process, log)
        process.wait(PATIENCE)
    finally:
        process.terminate()
    user.note(f"rlhf {' '.join(start)}", begun)
    if process.returncode:
        raise SystemExit(f"label start ended with {process.returncode}:\n{log.read_text()}")
    user.do("label", "stats", "runs/mine")
    user.do("label", "export", "runs/mine", "--out", "labels", "--what", "preferences")


def _label(process: subprocess.Popen[bytes], log: Path) -> None:
    """Have everybody label until there is nothing left."""
    links: dict[str, str] = {}
    while len(links) < len(PEOPLE) or "waiting for labels" not in log.read_text():
        if process.poll() is not None:
            raise SystemExit(f"label start ended before anybody came:\n{log.read_text()}")
        links = dict(re.findall(r"^(\w+)\t(http\S+)$", log.read_text(), re.MULTILINE))
        time.sleep(0.1)

    def work(person: Person) -> None:
        following = person.come_in()
        try:
            while True:
                following = person.label(following)
        except Refused as end:
            if not str(end).startswith(f"{following} leads to no task but to "):
                raise

    threads = []
    for seed, link in enumerate(links.values()):
        base, _, token = link.partition("/invite/")
        person = Person(
            base, f"/invite/{token}", think=0.05, inside=threading.Barrier(1),
            stop=threading.Event(), seed=seed,
        )  # fmt: skip
        threads.append(threading.Thread(target=work, args=(person,), daemon=True))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)


def evaluator(user: User, desk: Path) -> None:
    """Judge what was published, beside another checkpoint and on questions of one's own."""
    shutil.copytree(desk / "shared", user.folder / "shared")
    shutil.copytree(desk / "runs/mine/reward/model", user.folder / "judge")
    asked = [f"Where do I get a new {thing}?" for thing in THINGS]
    rows = [{"prompt": each, "response": "You get it at the front desk."} for each in asked]
    (user.folder / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    user.do("eval", "start=shared/start", "desk=shared/desk", "--prompts", "asked.jsonl",
            "--reward", "judge", "--max-new-tokens", "24", "--out", "both")  # fmt: skip
    user.do("score", "judge", "asked.jsonl", "--out", "scored.jsonl")
    user.do("report", "both")


def main() -> None:
    """Do the jobs one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to be made, outside of the checkout")
    parser.add_argument("--install", action="store_true", help="download the wheel's packages")
    given = parser.parse_args()
    out: Path = given.out.resolve()
    if out.is_relative_to(ROOT):
        parser.error(f"{out} lies in the checkout, whose packages would be taken")
    out.mkdir(parents=True)
    times: list[tuple[str, str, float]] = []
    begun = time.monotonic()
    programs = install(out, download=given.install)
    times.append(("all", "wheel and environment", time.monotonic() - begun))
    users = {
        job: User(job, out / job, programs, times) for job in ("engineer", "lead", "evaluator")
    }
    where = users["lead"].do("-c", "import pipeline; print(pipeline.__file__)", program="python")
    if not Path(where.strip()).is_relative_to(out):
        raise SystemExit(f"the package is taken from {where.strip()}, not from the wheel")
    engineer(users["engineer"])
    lead(users["lead"])
    evaluator(users["evaluator"], users["engineer"].folder)
    lines = [f"| {job} | `{command}` | {seconds:.1f} |" for job, command, seconds in times]
    table = ["| job | command | seconds |", "|---|---|---|", *lines]
    (out / "jobs.md").write_text("\n".join(table) + "\n")
    print(f"all three jobs: {time.monotonic() - begun:.0f} s; {out / 'jobs.md'}")


if __name__ == "__main__":
    main()
