"""How each checkpoint is sampled, and what is said where it is by its own settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.errors import ModelError, UsageError
from data.json_lines import read_json_lines
from pipeline.evaluation.judge.sampling import (
    Decoding,
    apart_notes,
    decodings,
    own_settings,
    sampling_notes,
)
from pipeline.evaluation.judge.settings import AnswerSettings
from pipeline.evaluation.report.tables import provenance_rows
from pipeline.generation.generate import Sampling

OWN = AnswerSettings(temperature="own", top_k="own", top_p="own")


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Return what makes a folder with these generation settings."""

    def made(name: str = "model", **said: Any) -> Path:
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "generation_config.json").write_text(json.dumps(said))
        return tmp_path / name

    return made


@pytest.mark.parametrize(
    ("said", "sampling", "own"),
    [
        ({"eos_token_id": 2}, (1.0, 0, 1.0), ()),
        ({"do_sample": True, "temperature": 0.6, "top_k": 20}, (0.6, 20, 1.0), (0, 1)),
        ({"temperature": 0.9, "top_p": 0.5}, (0.9, 0, 0.5), (0, 2)),
        ({"do_sample": False, "temperature": 0.9, "top_k": 7}, (0.0, 0, 1.0), (0,)),
        ({"temperature": None, "top_k": 0}, (1.0, 0, 1.0), (1,)),
    ],
)
def test_own_settings_count_where_nothing_else_is_asked(
    folder: Callable[..., Path], said: dict[str, Any], sampling: tuple[Any, ...], own: tuple[int]
) -> None:
    keys = ("temperature", "top_k", "top_p")
    place = folder(**said)
    [found] = decodings(OWN, {"a": place}).values()
    assert found == Decoding(Sampling(64, *sampling), tuple(keys[i] for i in own))
    plain = AnswerSettings(max_new_tokens=3)
    assert decodings(plain, {"a": place}) == {"a": Decoding(Sampling(3))}
    one = OWN.model_copy(update={"temperature": 0.3})
    assert decodings(one, {"a": place})["a"].sampling.temperature == 0.3


def test_settings_that_nothing_can_be_sampled_by_are_refused(folder: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match=r"top_p of its generation_config.json is .much. .* set"):
        decodings(OWN, {"a": folder(top_p="much")})
    with pytest.raises(ModelError, match=r"temperature of .* is -1 "):
        decodings(OWN, {"a": folder(temperature=-1)})
    with pytest.raises(UsageError, match="temperature is 1e-30; it must be 0 or more"):
        decodings(OWN, {"a": folder(temperature=1e-30)})


def test_sampling_apart_from_a_checkpoints_own_settings_is_told(
    folder: Callable[..., Path],
) -> None:
    drawn = Sampling(temperature=0.5)
    assert sampling_notes(folder(eos_token_id=2), drawn) == []
    assert sampling_notes(folder(do_sample=True, temperature=0.5), drawn) == []
    said = folder(do_sample=True, temperature=0.6, top_p=0.9, repetition_penalty=1.1)
    assert sampling_notes(said, drawn) == [
        "sampled at temperature 0.5, top_p 1, repetition_penalty 1; its own settings say "
        "temperature 0.6, top_p 0.9, repetition_penalty 1.1"
    ]


def test_what_is_not_sampled_alike_is_told_of_each(folder: Callable[..., Path]) -> None:
    mixed = decodings(OWN, {"a": folder(), "b": folder("other", temperature=0.6, top_k=3)})
    [note] = apart_notes(mixed, "b")
    assert note.startswith("sampled at temperature 0.6 (its own), top-k 3 (its own), and not all")
    assert apart_notes({"b": mixed["b"]}, "b") == []


def test_a_hub_id_without_generation_settings_says_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert own_settings("owner/name-that-is-nowhere") == {}


def test_eval_samples_each_checkpoint_by_its_own_settings_unless_told(
    rlhf: Callable[..., Any],
    tmp_path: Path,
    tiny_tokenizer: Callable[..., Any],
    save_policy: Callable[..., Path],
    folder: Callable[..., Path],
) -> None:
    save_policy(tiny_tokenizer(), tmp_path / "one", context=64)
    save_policy(tiny_tokenizer(), tmp_path / "two", context=64)
    folder("two", do_sample=True, temperature=0.4, top_k=2)
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 4)
    given = ("one", "two", "--prompts", "text.txt", "--prefix-tokens", 6, "--max-new-tokens", 4)
    result = rlhf("eval", *given, "--out", "out")
    assert result.code == 0
    assert "two: sampled at temperature 0.4 (its own), top-k 2 (its own), and not all" in result.out
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    sampling = {"max_new_tokens": 4, "temperature": None, "top_k": None, "top_p": 1.0}
    assert found["sampling"] == sampling
    cells = [row["decoding"] for row in provenance_rows(found)]
    assert [cell.partition(", 4 tokens")[0] for cell in cells] == [
        "temperature 1", "temperature 0.4 (its own), top-k 2 (its own)",
    ]  # fmt: skip
    rows = [*read_json_lines(tmp_path / "out" / "samples.jsonl")]
    assert rows[0]["prompt"] and rows[0]["prompt"] in "The quick brown fox jumps over the lazy dog."
    assert "not all checkpoints alike" in (tmp_path / "out" / "index.html").read_text()

    told = ("--temperature", 0.4, "--top-k", 2, "--top-p", 0.9, "--bf16", "false")
    result = rlhf("eval", *given, *told, "--out", "out2")
    found = json.loads((tmp_path / "out2" / "evaluation.json").read_text())
    assert found["sampling"] == {**sampling, "temperature": 0.4, "top_k": 2, "top_p": 0.9}
    assert "two: sampled at top_p" not in result.out and "not all" not in result.out
    assert [row["own_settings"] for row in found["provenance"]] == [[], []]
    first, second = ([*read_json_lines(tmp_path / o / "samples.jsonl")] for o in ("out", "out2"))
    assert len(first) == len(second) == 2


def test_choosing_among_equal_answers_of_a_greedy_reference_is_refused(
    rlhf: Callable[..., Any],
    tmp_path: Path,
    tiny_tokenizer: Callable[..., Any],
    save_policy: Callable[..., Path],
    folder: Callable[..., Path],
) -> None:
    from reward.learned.model import RewardModel

    save_policy(tiny_tokenizer(), tmp_path / "one", context=256)
    folder("one", do_sample=False)
    RewardModel.start(tmp_path / "one", seed=0).save(tmp_path / "rm", trained=True)
    given = ("--prompts", "world:eval_prompts", "--limit", 2, "--reward", "rm", "--best-of", 4)
    result = rlhf("eval", "one", *given, "--out", "out")
    assert result.code == 2
    assert "from one, and its own generation settings always take the likeliest" in result.err


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        (
            "--temperature",
            "inf",
            "--temperature: temperature: inf: input should be a finite",
        ),
        ("--top-p", "0", "--top-p: top_p: 0.0: input should be greater than 0"),
        ("--bf16", "maybe", "--bf16: bf16: 'maybe'"),
    ],
)
def test_an_option_that_can_not_be_is_refused_as_the_stages_setting_is(
    rlhf: Callable[..., Any], option: str, value: str, said: str
) -> None:
    result = rlhf("eval", "one", "--prompts", "world:eval_prompts", "--out", "o", option, value)
    assert result.code == 2
    assert said in result.err
