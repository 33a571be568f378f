"""What a wheel of this project holds, and that it works where there is no checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("data", "pipeline", "reward")
# Pages for who reads the repository.
DOCUMENTS = {"README.md", "RESEARCHERS.md"}


def run(*words: object, folder: Path | None = None, packages: Path | None = None) -> str:
    """Run a program, in a folder, with packages before those that are installed."""
    environment = {**os.environ, **({"PYTHONPATH": str(packages)} if packages else {})}
    done = subprocess.run(
        [*map(str, words)], capture_output=True, text=True, cwd=folder, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a wheel that was built from a copy of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in (*PACKAGES, "recipes"):
        leave = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=leave)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    built = ("--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", folder / "wheels")
    run(sys.executable, "-m", "pip", "wheel", *built, folder)
    (path,) = (folder / "wheels").glob("*.whl")
    return path


def test_a_wheel_holds_every_file_of_the_packages_and_the_recipes(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc" and path.name not in DOCUMENTS
    }
    files = {name.replace("pipeline/start/", "") for name in files}
    recipes = {
        f"pipeline/recipe/shipped/{path.relative_to(ROOT / 'recipes').as_posix()}"
        for path in (ROOT / "recipes").rglob("*.yaml")
    }
    assert (files | recipes) ^ names == set()


def test_a_recipe_of_the_wheel_is_found_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    unpacked, empty = tmp_path / "unpacked", tmp_path / "empty"
    zipfile.ZipFile(wheel).extractall(unpacked)
    empty.mkdir()
    command = (sys.executable, "-c", "from rlhf_start import main; main()")
    told = run(*command, "show", "--explain", "base/nplus", folder=empty, packages=unpacked)
    assert f"<- {unpacked}/pipeline/recipe/shipped/base/nplus.yaml:" in told
    assert list(empty.iterdir()) == []


CHAIN = """\
extends: base/nplus.yaml
stages:
  tok: {kind: tokenizer, train: [{world: corpus, limit: 200}], vocab_size: 300}
  base:
    {kind: pretrain, tokenizer: tok, train: [{world: corpus, limit: 200}], hidden_size: 16,
     layers: 1, heads: 2, context_length: 32, positions: 64, steps: 2, batch_size: 2}
  ppo:
    {policy: base, reward: [{rule: length, options: {target: 4}}],
     prompts: [{world: corpus_heldout}], prefix_tokens: 8, max_prompt_tokens: 8, max_new_tokens: 4,
     episodes: 8, batch_size: 8}
"""


@pytest.mark.slow
def test_an_installed_wheel_works_in_any_folder(wheel: Path, tmp_path: Path) -> None:
    target, folder = tmp_path / "target", tmp_path / "folder"
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, wheel)
    folder.mkdir()

    def rlhf(*words: str) -> str:
        return run(target / "bin" / "rlhf", *words, folder=folder, packages=target)

    assert "quickstart.yaml" in rlhf("recipes")
    assert rlhf("validate", "quickstart").startswith("quickstart: valid; 8 stages")
    assert "ppo" in rlhf("plan", "quickstart", "--gpus", "1xH100-80GB")
    (folder / "chain.yaml").write_text(CHAIN)
    assert "The report: runs/chain/report/index.html" in rlhf("run", "chain.yaml")
    assert (folder / "runs/chain/ppo/model/model.safetensors").is_file()
    pages = "from data.labels.web.pages import *; load_templates(); print(STATIC / 'label.js')"
    told = run(sys.executable, "-c", pages, folder=folder, packages=target)
    assert Path(told.strip()).is_file() and Path(told.strip()).is_relative_to(target)
