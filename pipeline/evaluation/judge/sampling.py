"""How each checkpoint is sampled: as was asked, else as its own generation settings say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from data.errors import ModelError, UsageError
from data.json_object import read_object
from pipeline.contract.tool_settings import ToolsSettings
from pipeline.evaluation.judge.settings import AnswerSettings
from pipeline.generation.generate import Sampling
from reward.network.files import GENERATION
from reward.network.loading import locate

NEUTRAL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0, "repetition_penalty": 1.0}
"""Settings of a generation_config.json that change what is drawn, where they change nothing."""
_DRAWN = ("temperature", "top_k", "top_p")


class Decoding(NamedTuple):
    """How a checkpoint is sampled.

    Attributes:
        sampling: how tokens are drawn.
        own: those settings of it that its own generation settings say.
        tools: what responses may call.
    """

    sampling: Sampling
    own: tuple[str, ...] = ()
    tools: ToolsSettings | None = None


def decodings(asked: AnswerSettings, checkpoints: Mapping[str, str | Path]) -> dict[str, Decoding]:
    """Return how each checkpoint is sampled: what is asked as `own` is what it says itself.

    Raises:
        ModelError: a checkpoint says what no sampling can be.
        UsageError: no logits can be divided by the temperature.
    """
    return {name: _decoding(asked, source) for name, source in checkpoints.items()}


def _decoding(asked: AnswerSettings, source: str | Path) -> Decoding:
    given = {key: getattr(asked, key) for key in _DRAWN}
    taken = {key for key, value in given.items() if value == "own"}
    said = own_settings(source) if taken else {}
    own = {key: said[key] for key in _DRAWN if key in taken & said.keys()}
    try:
        checked = AnswerSettings.model_validate(given | own)
    except ValidationError as error:
        key, wrong = error.errors()[0]["loc"][0], error.errors()[0]["msg"]
        raise ModelError(
            f"{source}: {key} of its {GENERATION} is {own.get(str(key))!r} ({wrong}); correct the "
            f"file, or set {key}"
        ) from error
    drawn: dict[str, Any] = {
        key: NEUTRAL[key] if getattr(checked, key) == "own" else getattr(checked, key)
        for key in _DRAWN
    }
    sampling = Sampling(max_new_tokens=asked.max_new_tokens, **drawn)
    if not sampling.divides:
        raise UsageError(
            f"temperature is {sampling.temperature}; it must be 0 or more, above 0 at least 1e-20"
        )
    return Decoding(sampling, tuple(own), asked.tools)


def common_sampling(decodings: Mapping[str, Decoding]) -> dict[str, Any]:
    """Return how all checkpoints are sampled; None for what each has of its own."""
    first, *others = [asdict(decoding.sampling) for decoding in decodings.values()]
    return {key: v if all(o[key] == v for o in others) else None for key, v in first.items()}


def apart_notes(decodings: Mapping[str, Decoding], name: str) -> list[str]:
    """Return how a checkpoint is sampled, where not all are alike."""
    if None not in common_sampling(decodings).values():
        return []
    mine = decodings[name]
    told = decoding_words(asdict(mine.sampling), mine.own)
    return [
        f"sampled at {told}, and not all checkpoints alike, which may be what sets them apart; set "
        "temperature, top_k and top_p to sample all in one way"
    ]


def own_settings(source: str | Path) -> dict[str, Any]:
    """Return what a checkpoint's generation settings say of how tokens are drawn.

    Greedy where they say that nothing is drawn; else what stands there counts, as it does for
    vLLM, though transformers would draw only where `do_sample` is set.
    """
    content = _generation_config(source)
    said = {key: content[key] for key in NEUTRAL if content.get(key) is not None}
    return {"temperature": 0.0} if content.get("do_sample") is False else said


def _generation_config(source: str | Path) -> dict[str, Any]:
    location, gguf = locate(source, "model")
    if gguf:
        return {}
    if Path(location).is_dir():
        return read_object(Path(location) / GENERATION)
    from transformers import GenerationConfig

    try:
        return dict(GenerationConfig.from_pretrained(location).to_diff_dict())
    except OSError:  # a repository without one; where nothing is, the model can't be loaded either
        return {}


def sampling_notes(source: str | Path, sampling: Sampling) -> list[str]:
    """Return how a checkpoint is sampled, where its own generation settings say otherwise."""
    used = NEUTRAL | {key: getattr(sampling, key) for key in _DRAWN}
    other = {key: value for key, value in own_settings(source).items() if value != used[key]}
    if not other:
        return []
    told = ", ".join(f"{key} {value}" for key, value in other.items())
    drawn = ", ".join(f"{key} {used[key]:g}" for key in other)
    return [f"sampled at {drawn}; its own settings say {told}"]


def decoding_words(decoding: Mapping[str, Any], own: Sequence[str] = ()) -> str:
    """Return in words how tokens were drawn, as `provenance` has it."""
    told = [("temperature", f"temperature {decoding['temperature']:g}")]
    told += [("top_k", f"top-k {decoding['top_k']}")] if decoding.get("top_k") else []
    told += [("top_p", f"top-p {decoding['top_p']:g}")] if decoding.get("top_p", 1.0) < 1 else []
    return ", ".join(words + (" (its own)" if key in own else "") for key, words in told)
