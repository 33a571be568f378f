"""The command as a user types it, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RLHF = Path(sys.executable).with_name("rlhf")
RECIPES = Path(__file__).parents[3] / "recipes"


def typed(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(RLHF), *arguments], cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


def test_help_imports_nothing_heavy_and_validate_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['rlhf', 'validate', sys.argv[1]]\n"
        "from pipeline.cli.main import main\n"
        "heavy = {'torch', 'transformers', 'trl', 'datasets', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "print(sorted(heavy & set(sys.modules) - {'numpy'}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(RECIPES / "quickstart.yaml")],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    at_import, valid, after = result.stdout.splitlines()
    assert "8 stages" in valid
    assert at_import == after == "[]"


def test_a_mistake_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("stages:\n  a: {kind: tokeniser}\n")
    result = typed("run", str(path), cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("rlhf: ")
    assert "Did you mean 'tokenizer'?" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "runs").exists()


def test_a_package_that_shadows_ours_does_not(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "__init__.py").write_text("raise SystemExit('shadowed')")
    result = typed("show", str(RECIPES / "quickstart.yaml"), cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_packages_of_our_names_on_the_users_path_do_not_shadow_ours(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in ("data/errors.py", "reward/functions.py", "reward/__init__.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("raise SystemExit('shadowed')")
    monkeypatch.setenv("PYTHONPATH", ".")
    result = typed("validate", str(tiny_recipe), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "valid" in result.stdout


def test_a_package_that_took_our_name_before_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "__init__.py").write_text("")
    code = "import sys; sys.path.insert(0, sys.argv[1]); import data; import pipeline"
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert "the package 'data' was already imported from" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_can_be_shown(recipe: Path, rlhf: Callable[..., Any]) -> None:
    result = rlhf("show", recipe)
    assert result.code == 0, result.err
    assert "stages:" in result.out


@pytest.mark.parametrize("taken", ["pipeline.py", "pipeline/__init__.py"])
def test_the_command_begins_in_our_package_whatever_is_called_pipeline(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: str
) -> None:
    (tmp_path / taken).parent.mkdir(exist_ok=True)
    (tmp_path / taken).write_text("raise SystemExit('shadowed')")
    monkeypatch.setenv("PYTHONPATH", ".")
    # As the installed script does, which finds this file as a package of its own name.
    start = RECIPES.parent / "pipeline" / "start" / "rlhf_start" / "__init__.py"
    code = (
        "import importlib.util as u, sys; sys.argv[0] = 'rlhf'; "
        f"spec = u.spec_from_file_location('rlhf_start', {str(start)!r}); "
        "module = u.module_from_spec(spec); spec.loader.exec_module(module); module.main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "validate", str(tiny_recipe)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    assert "valid" in result.stdout
