"""A run folder that an older build left: what is done stays done, what was cut off goes on."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data.storage import sha256
from pipeline.contract.console import Console
from pipeline.models.load import resolve_bf16
from pipeline.recipe.load import load_recipe
from pipeline.run.planning import Planner, Selection
from pipeline.run.runner import execute, plan

OLDER = Path(__file__).parent / "older"
RUN = Path("runs/older")
MODEL = Path("model/model.safetensors")
# Each was killed in its second step of four; its twin, of the same settings, was not.
CUT = {"base_cut": "base", "sft_cut": "sft", "reward_cut": "reward", "ppo_cut": "ppo"}
# The maths of the machine that made the run, see `maths`.
MATHS = "2.13.0+cpu bf16 37840d6c366bb5a7"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Go where the run folder is, with its recipe and what that reads beside it."""
    for file in OLDER.glob("*.*"):
        shutil.copy(file, tmp_path)
    with tarfile.open(OLDER / "run.tar.gz") as packed:
        packed.extractall(tmp_path / "runs", filter="data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.run.runner._report", lambda *arguments: None)


def weights(stage: str) -> torch.Tensor:
    """Return all weights of a stage's model in one row."""
    found = load_file(RUN / stage / MODEL)
    return torch.cat([found[name].flatten() for name in sorted(found)])


def maths(stage: str) -> str:
    """Return the precision of `bf16: auto`, and a digest of a step of training in plain torch."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(RUN / stage / "model")
    ids_BT = torch.arange(64).reshape(2, 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model(ids_BT, labels=ids_BT).loss.backward()
    optimizer.step()
    rows = [p.detach().flatten() for p in model.parameters()]
    drawn = torch.multinomial(rows[0].softmax(0), 8, generator=torch.Generator().manual_seed(0))
    content = torch.cat([*rows, drawn.float()]).numpy().tobytes()
    products = "bf16" if resolve_bf16("auto", torch.device("cpu")) else "fp32"
    return f"{torch.__version__} {products} {hashlib.sha256(content).hexdigest()[:16]}"


@pytest.mark.parametrize("recipe", ["older.yaml", "runs/older/recipe.yaml"])
def test_what_an_older_build_finished_is_up_to_date_and_what_it_began_goes_on(recipe: str) -> None:
    # The second has every default of then written out.
    actions = {
        step.stage: step.action
        for step in plan(Planner(load_recipe(Path(recipe)), RUN, Selection()))
    }
    assert actions == {
        stage: "resume" if stage in CUT else "up to date"
        for stage in load_recipe(Path("older.yaml")).stages
    }


def test_what_an_older_build_began_ends_in_the_weights_it_would_have_come_to() -> None:
    execute(load_recipe(Path("older.yaml")), RUN, console=Console(quiet=True))
    same_maths = maths("base") == MATHS
    for cut, whole in CUT.items():
        assert "goes on from its last checkpoint" in (RUN / cut / "stage.log").read_text()
        if same_maths:
            assert sha256(RUN / cut / MODEL) == sha256(RUN / whole / MODEL), cut
        # The learning rate is 1e-2, and so is about what each of two steps moves a weight by.
        assert (weights(cut) - weights(whole)).abs().mean() < 1e-3, cut
