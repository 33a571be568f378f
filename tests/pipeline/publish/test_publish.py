"""A finished stage as a folder for anybody: its files, its card, and what is refused."""

from __future__ import annotations

import errno
import getpass
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Build = Callable[..., Any]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def front(card: str) -> dict[str, Any]:
    """Return what the hub reads of a card."""
    found: dict[str, Any] = yaml.safe_load(card.split("---")[1])
    return found


def left(folder: Path) -> list[str]:
    """Return what is beside the run in a folder."""
    return sorted(path.name for path in folder.iterdir() if path.name.startswith((".", "out")))


def test_files_are_the_stages_own_for_all_to_read(finished: Path, rlhf: Build) -> None:
    (finished / "ppo/resume").mkdir(exist_ok=True)
    os.chmod(finished / "ppo/model/model.safetensors", 0o600)
    before = os.umask(0o022)
    try:
        typed = rlhf("publish", "runs/tiny/ppo", "shared/out")
    finally:
        os.umask(before)
    assert typed.code == 0 and "fill in its intended use" in typed.out, typed.err
    folder, listed = Path("shared/out"), json.loads((finished / "ppo/manifest.json").read_text())
    names = {path.name for path in folder.iterdir()}
    model = {name for name in listed["files"] if name.startswith("model/")}
    assert names == {Path(name).name for name in model} | {"README.md"}
    for name in model:
        copy = folder / Path(name).name
        assert sha256(copy) == listed["files"][name]["sha256"]
        assert copy.stat().st_mode & 0o777 == 0o644
        assert copy.stat().st_nlink == 1
    assert folder.stat().st_mode & 0o777 == 0o755
    assert left(Path("shared")) == ["out"]


def test_a_card_tells_what_manifests_tell_and_leaves_the_rest_open(
    finished: Path, rlhf: Build
) -> None:
    Path("why.md").write_text("For sums of two digits.\n")
    assert rlhf("publish", "runs/tiny/ppo", "out", "--license", "mit", "--name", "us/sum").code == 0
    card = Path("out/README.md").read_text()
    assert front(card) == {
        "library_name": "transformers", "license": "mit", "pipeline_tag": "text-generation",
        "tags": ["rlhf-pipeline", "conversational", "ppo"],
    }  # fmt: skip
    assert "\n# sum\n" in card and 'from_pretrained("us/sum")' in card
    assert "**To be filled in by who publishes this model:**" in card
    for stage in ("tok", "base", "sft", "pairs", "reward", "ppo"):
        digest = json.loads((finished / stage / "manifest.json").read_text())["digest"]
        assert f"| `{stage}` |" in card and f"`{digest[:16]}`" in card
    assert "| `sft` | `train` | a local file, `chats.jsonl` | not stated |" in card
    assert "kl_coefficient 0.05" in card and "Its weights were drawn from a seed" in card
    assert (finished / "ppo/model/chat_template.jinja").read_text() in card
    assert "No evaluation of this very model is in its run" in card
    assert "it reads" not in card and "- It reads 128 tokens at most" in card
    assert rlhf("publish", "runs/tiny/sft", "out2", "--about", "why.md").code == 0
    second = Path("out2/README.md").read_text()
    assert "license" not in front(second) and "## Intended use\n\nFor sums" in second


def test_licences_of_sources_are_those_of_the_recipe_and_re_run_nothing(
    finished: Path, rlhf: Build
) -> None:
    stated = "sft.train=[{path: chats.jsonl, license: cc-by-4.0}]"
    run = rlhf("run", "tiny.yaml", "--set", stated)
    assert run.code == 0 and "sft: up to date" in run.out + run.err
    assert rlhf("publish", "runs/tiny/sft", "out").code == 0
    card = Path("out/README.md").read_text()
    assert "| `sft` | `train` | a local file, `chats.jsonl` | cc-by-4.0 |" in card
    assert "| `base` | `train` | a local file, `text.txt` | not stated |" in card


def test_figures_stand_with_their_intervals(finished: Path, rlhf: Build) -> None:
    asked = ("--prompts", "prompts.jsonl", "--reward", "runs/tiny/reward", "--max-new-tokens", 4)
    judged = rlhf("eval", "sft=runs/tiny/sft", "ppo=runs/tiny/ppo", *asked, "--out", "both")
    assert judged.code == 0, judged.err
    assert rlhf("publish", "runs/tiny/ppo", "out", "--evaluation", "both").code == 0
    card, found = (
        Path("out/README.md").read_text(),
        json.loads(Path("both/evaluation.json").read_text()),
    )
    (rate,) = found["win_rates"]
    low, high = (100 * end for end in rate["ci95"])
    line = f"| Wins against `sft` by the reward model | {100 * rate['rate']:.1f} % | {low:.1f} to "
    assert f"{line}{high:.1f} |" in card
    assert "It is called `ppo` there. 30 prompts, temperature 1" in card
    typed = rlhf("publish", "runs/tiny/base", "out2", "--evaluation", "both")
    assert typed.code == 2 and "none of the checkpoints that it judged (sft, ppo) has" in typed.err
    quality = json.loads((finished / "reward/quality.json").read_text())
    assert rlhf("publish", "runs/tiny/reward", "out3").code == 0
    told = f"| Reward model | {100 * quality['accuracy']:.1f} % | {100 * quality['ci95'][0]:.1f} to"
    assert told in Path("out3/README.md").read_text()


def test_figures_of_a_head_stand_beside_their_floor(
    finished: Path, rlhf: Build, make_stage: Build, tmp_path: Path
) -> None:
    stage = tmp_path / "run/truth"
    shutil.copytree(finished / "reward/model", stage / "model")
    values = {"f1": 0.5, "accuracy": 0.6, "floor_f1": 0.3, "f1_over_floor": 0.2}
    figures = {n: {"value": v, "ci95": [v - 0.1, v + 0.1]} for n, v in values.items()}
    quality = {"head": "classify", "n": 20, "labels": ["a", "b"], "figures": figures}
    (stage / "quality.json").write_text(json.dumps(quality))
    assert rlhf("publish", make_stage(stage, "finetune", model="org/start"), "out").code == 0
    card = Path("out/README.md").read_text()
    assert front(card)["pipeline_tag"] == "text-classification"
    assert "| F1 | 0.500 | 0.400 to 0.600 | classes, 20 rows |" in card
    assert "| Accuracy | 60.0 % | 50.0 to 70.0 |" in card
    assert "| F1 of the commonest class | 0.300 |" in card
    assert "| F1 above that | +0.200 | +0.100 to +0.300 |" in card


def test_the_best_policy_of_ppo_is_published_where_it_is_named(
    finished: Path, rlhf: Build, make_stage: Build, tmp_path: Path
) -> None:
    shutil.copytree(finished / "ppo/model", tmp_path / "run/ppo/model")
    shutil.copytree(finished / "sft/model", tmp_path / "run/ppo/best/model")
    alarm = {"update": 3, "alarm": "kl", "told": "the KL grew", "cause": "too high a rate"}
    (tmp_path / "run/ppo/doctor.jsonl").write_text(json.dumps(alarm) + "\n")
    stage = make_stage(tmp_path / "run/ppo", "ppo", policy="org/start")
    assert rlhf("publish", stage / "best/model", "out").code == 0
    assert sha256(Path("out/model.safetensors")) == sha256(finished / "sft/model/model.safetensors")
    card = Path("out/README.md").read_text()
    assert "the stage `ppo` (ppo) left, in its `best/model`" in card
    assert "- At update 3 of its training the KL grew: too high a rate." in card


def test_no_place_on_the_machine_goes_along(
    finished: Path, rlhf: Build, make_stage: Build, tmp_path: Path
) -> None:
    secret = tmp_path / "home" / "a_user"
    model = secret / "run/sft/model"
    shutil.copytree(finished / "sft/model", model)
    places = {
        "config.json": {"_name_or_path": f"{secret}/base", "deep": {"file": f"{secret}/v"}},
        "tokenizer_config.json": {"name_or_path": "~/models/start", "file": f"{secret}/t"},
    }
    for name, more in places.items():
        content = json.loads((model / name).read_text()) | more
        (model / name).write_text(json.dumps(content))
    source = {"path": [f"{secret}/rows.jsonl", f"{secret}/"], "hub": None, "world": None}
    stage = make_stage(model.parent, "sft", model=f"{secret}/start", train=[source])
    typed = rlhf("publish", stage, "out")
    assert typed.code == 0, typed.err
    assert "tokenizer_config.json` without `name_or_path`" in typed.out
    texts = [path.read_text() for path in Path("out").iterdir() if path.suffix in (".md", ".json")]
    for hidden in (str(tmp_path), "a_user", "~/models", str(Path.home()) + "/", os.getcwd()):
        assert not any(hidden in text for text in texts), hidden
    card = Path("out/README.md").read_text()
    assert "a local file, `rows.jsonl`, a local folder | not stated |" in card
    assert "It began from a checkpoint on the disk of who made it" in card
    assert "base_model" not in front(card)
    assert getpass.getuser() == "root" or getpass.getuser() not in card


def test_a_start_from_the_hub_is_the_base_and_its_data_sets_are_named(
    finished: Path, rlhf: Build, make_stage: Build, tmp_path: Path
) -> None:
    shutil.copytree(finished / "sft/model", tmp_path / "run/sft/model")
    source = {"path": None, "hub": "org/rows|x", "hub_split": "train", "world": None}
    stage = make_stage(tmp_path / "run/sft", "sft", model="hub:org/start", train=[source])
    assert rlhf("publish", stage, "out").code == 0
    card = Path("out/README.md").read_text()
    assert front(card)["base_model"] == "org/start" and front(card)["datasets"] == ["org/rows|x"]
    assert "[org/rows\\|x](https://huggingface.co/datasets/org/rows\\|x) (train)" in card


def test_answers_end_where_they_ended_here(
    finished: Path, rlhf: Build, make_stage: Build, tmp_path: Path
) -> None:
    model = tmp_path / "run/sft/model"
    shutil.copytree(finished / "sft/model", model)
    ends = json.loads((model / "generation_config.json").read_text())["eos_token_id"]
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    typed = rlhf("publish", make_stage(model.parent, "sft", model="org/start"), "out")
    assert f"ends answers at 2 and {ends}, as they ended here" in typed.out
    made = json.loads(Path("out/generation_config.json").read_text())
    assert made == {"eos_token_id": [2, ends], "pad_token_id": 0}


def test_an_unfinished_an_outdated_and_a_damaged_stage_are_refused(
    finished: Path, rlhf: Build
) -> None:
    shutil.move(finished / "ppo/manifest.json", "kept.json")
    typed = rlhf("publish", "runs/tiny/ppo", "out")
    assert typed.code == 2 and "the stage is not done" in typed.err
    shutil.move("kept.json", finished / "ppo/manifest.json")

    with Path("chats.jsonl").open("a") as file:
        file.write('{"prompt": "Who?", "completion": "I."}\n')
    typed = rlhf("publish", "runs/tiny/sft", "out")
    assert typed.code == 2 and "give --outdated" in typed.err
    assert "stage sft of runs/tiny is outdated: tok: source train.1 changed;" in typed.err
    assert rlhf("publish", "runs/tiny/sft", "out1", "--outdated").code == 0
    assert "or its data were changed after it was made" in Path("out1/README.md").read_text()
    # Whose data is gone may still be published: what it read stands in its manifest.
    Path("chats.jsonl").unlink()
    typed = rlhf("publish", "runs/tiny/sft", "out2")
    assert typed.code == 0 and "whether sft is outdated is not known" in typed.out

    with (finished / "base/model/model.safetensors").open("ab") as weights:
        weights.write(b"x")
    typed = rlhf("publish", "runs/tiny/base", "out")
    assert typed.code == 2 and "is damaged or was edited" in typed.err
    assert left(Path()) == ["out1", "out2"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("runs/tiny", "out"), "is a run; name one of its stages: base, sft, reward, ppo"),
        (("runs/tiny/tok", "out"), "stage tok (tokenizer) leaves no model there; name another"),
        (("runs/tiny/ppo/nothing", "out"), "no such folder; name that of a stage"),
        (("there", "out"), "holds no manifest.json, so that nothing is known of how it was made"),
        (("runs/tiny/sft", "there"), "there is there, and is not written over"),
        (("runs/tiny/sft", "runs/tiny/out"), "lies in the run"),
        (("runs/tiny/sft", "runs/tiny/sft/out"), "lies in the run"),
        (("runs/tiny/sft", "tiny.yaml/out"), "is a file, no folder"),
        (("runs/tiny/sft", "out", "--public"), "--public is for hub:ORG/NAME"),
        (("runs/tiny/sft", "out", "--base", "start"), "--base start: write ORG/NAME"),
        (("runs/tiny/sft", "o'u t"), "give --name NAME, of letters"),
        (("runs/tiny/sft", "out", "--about", "nothing.md"), "--about nothing.md can't be read"),
        (("runs/tiny/sft", "out", "--evaluation", "there"), "there/evaluation.json"),
    ],
)  # fmt: skip
def test_what_can_not_be_published_is_refused_and_nothing_is_written(
    finished: Path, rlhf: Build, arguments: tuple[str, ...], told: str
) -> None:
    Path("there").mkdir()
    Path("there/config.json").write_text("{}")
    typed = rlhf("publish", *arguments)
    assert (typed.code, typed.err.count("\n")) == (2, 1) and told in typed.err, typed.err
    assert left(Path()) == [] and sorted(os.listdir("there")) == ["config.json"]


def test_a_full_disk_leaves_nothing(
    finished: Path, rlhf: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=1000))
    typed = rlhf("publish", "runs/tiny/sft", "new/out")
    assert typed.code == 2 and "make room, or name a folder on another disk" in typed.err
    monkeypatch.undo()
    monkeypatch.chdir(finished.parents[1])

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pipeline.publish.folder.shutil.copyfile", full)
    monkeypatch.setattr("sys.argv", ["rlhf", "publish", "runs/tiny/sft", "new/out"])
    from pipeline.cli.main import main

    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert left(Path()) == [] and not Path("new").exists()
