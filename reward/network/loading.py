"""Loads the classifier and tokenizer of a reward model, and refuses what is none."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data.errors import ModelError, told
from data.network import hub_trouble


def load_classifier(
    source: str | Path, *, dtype: torch.dtype, trust: bool, num_labels: int | None = None
) -> tuple[Any, dict[str, Any]]:
    """Load a sequence classifier and transformers' report of its weights.

    Args:
        source: folder, `.gguf` file (dequantised on load; needs the extra `gguf`) or hub id.
        dtype: type of the weights.
        trust: runs code that the checkpoint carries.
        num_labels: 1 for a model to be trained; None asks for a trained scalar classifier.

    Raises:
        ModelError: nothing loadable is there, or it is of a kind that can't score.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification, GgufConfig

    location, gguf = locate(source, "reward model")
    try:
        config = AutoConfig.from_pretrained(location, trust_remote_code=trust, **gguf)
        _require_scalar(source, config, training=num_labels is not None)
        if num_labels is not None:
            config.num_labels = num_labels
        packed = {**gguf, "quantization_config": GgufConfig(dequantize=True)} if gguf else {}
        model, info = AutoModelForSequenceClassification.from_pretrained(
            location,
            config=config,
            dtype=dtype,
            use_safetensors=None if gguf else True,
            trust_remote_code=trust,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **packed,
        )
    except ModelError:
        raise
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        problem = hub_problem(source, error)
        raise ModelError(f"no reward model can be loaded from {source}: {problem}") from error
    return model, info


def _require_scalar(source: str | Path, config: Any, *, training: bool) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{source} is an encoder-decoder ({config.model_type}); a reward model is a causal or "
            "an encoder model"
        )
    if training:
        return
    architecture = (config.architectures or [f"{config.model_type} model"])[0]
    if not architecture.endswith("ForSequenceClassification"):
        raise ModelError(
            f"{source} is a {architecture} without a reward head; train one with a reward stage"
        )
    if config.num_labels != 1:
        raise ModelError(
            f"{source} is a classifier with {config.num_labels} labels, a reward model has one; "
            "train one with a reward stage, which may start from it"
        )


def load_tokenizer(source: str | Path, *, trust: bool) -> Any:
    """Load a tokenizer.

    Raises:
        ModelError: none is there.
    """
    from transformers import AutoTokenizer

    location, gguf = locate(source, "reward model")
    try:
        return AutoTokenizer.from_pretrained(location, trust_remote_code=trust, **gguf)
    except (OSError, ValueError, KeyError, ImportError) as error:
        problem = hub_problem(source, error)
        raise ModelError(f"{source} has no tokenizer that can be loaded: {problem}") from error


def locate(source: str | Path, what: str) -> tuple[str, dict[str, Any]]:
    """Return what `from_pretrained` takes for a source: a folder or hub id, and a GGUF file's name.

    Args:
        source: folder, `.gguf` file or hub id.
        what: it is, for the error.

    Raises:
        ModelError: the source is a path and nothing is there.
    """
    text = str(source)
    path = Path(text).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"{what} {text}: no such file; give a checkpoint's folder or hub id")
        return str(path.parent), {"gguf_file": path.name}
    if isinstance(source, Path) or text.startswith((".", "/", "~")):
        if not path.is_dir():
            raise ModelError(f"{what} {text}: no such folder; give a checkpoint's folder or hub id")
        return str(path), {}
    if not path.exists():
        hub_trouble()  # half a minute of tries is spared where there is no network
    return text, {}


def hub_problem(source: str | Path, error: BaseException) -> str:
    """Return what a library says of a source, and why the hub has nothing."""
    if Path(source).expanduser().exists():
        return told(error)
    trouble = hub_trouble()
    if trouble is None:
        return f"no folder of that name is here, and of the hub: {told(error)}"
    return (
        f"no folder of that name is here, and of the hub the cache alone was used ({trouble}): "
        f"{told(error)}; name a folder, or try again with a network"
    )


def head_weights(classifier: Any) -> set[str]:
    """Return the names of the weights that only the head of a classifier uses.

    Those outside of its trunk, and those of the trunk that the architecture does without under
    another head, as a pooler.
    """
    trunk = f"{classifier.base_model_prefix}."
    names = set(classifier.state_dict())
    found = {name for name in names if not name.startswith(trunk)}
    for auto in ("AutoModelForTokenClassification", "AutoModelForMaskedLM"):
        other = _unfilled(auto, classifier.config)
        if other is not None and f"{other.base_model_prefix}." == trunk:
            found |= names - set(other.state_dict())
    return found


def _unfilled(auto: str, config: Any) -> Any:
    """Return a model without memory for its weights; None where there is no such class."""
    import transformers

    try:
        with torch.device("meta"):
            return getattr(transformers, auto).from_config(config)
    except (ValueError, KeyError):
        return None


def draw_head(classifier: Any, new: Collection[str]) -> None:
    """Draw the weights of the layer that gives the score, if they are new; its bias starts at 0.

    What else of the head is new has been drawn as the architecture draws it.

    Args:
        classifier: with one label.
        new: names of the weights that its files did not hold.

    Raises:
        ModelError: no linear layer gives the score.
    """
    head = head_weights(classifier)
    layers = {
        name: module
        for name, module in classifier.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == 1 and f"{name}.weight" in head
    }
    if not layers:
        raise ModelError(
            f"{type(classifier).__name__} has no linear layer that gives a score; start the reward "
            "model from another architecture"
        )
    name, last = layers.popitem()
    if f"{name}.weight" not in new:
        return
    with torch.no_grad():
        last.weight.normal_(std=1 / math.sqrt(last.in_features + 1))
        if last.bias is not None:
            last.bias.zero_()


def disable_dropout(classifier: Any) -> None:
    """Set every dropout to 0, in the modules and in the configuration."""
    for module in classifier.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for name, value in vars(classifier.config).items():
        if isinstance(value, float) and ("dropout" in name or name.endswith("_pdrop")):
            setattr(classifier.config, name, 0.0)


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence transformers' progress bars, and its report of a head that we are about to set."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
