"""Loads the classifier and tokenizer of a reward model, and refuses what is none."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from data.errors import ModelError, RlhfError, in_words
from data.extras import require_packages
from data.network import hub_trouble
from data.storage import expand
from reward.network.files import (
    require_config,
    require_finite,
    require_fits,
    require_tokenizer,
    require_weights,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_DESCRIBED: dict[tuple[Any, type, str], int] = {}
"""Numbers of the models that were described in this process, by class and configuration."""
_NAMES: dict[tuple[str, type, str], tuple[str, set[str]]] = {}
"""The prefix of the trunk and the names of the weights of such, by class and configuration."""


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
    from transformers import AutoModelForSequenceClassification

    config = load_config(source, what="reward model", trust_remote_code=trust)
    _require_scalar(source, config, training=num_labels is not None)
    if num_labels is not None:
        config.num_labels = num_labels
    return load_model(
        AutoModelForSequenceClassification,
        source,
        what="reward model",
        dtype=dtype,
        trust_remote_code=trust,
        config=config,
        ignore_mismatched_sizes=True,
    )


def load_model(
    loader: Any,
    source: str | Path,
    *,
    dtype: torch.dtype,
    trust_remote_code: bool,
    what: str = "model",
    **options: Any,
) -> tuple[Any, dict[str, Any]]:
    """Load a model by a class of transformers, and its report of the weights.

    Args:
        loader: `AutoModelFor...`.
        source: folder, `.gguf` file (dequantised on load; needs the extra `gguf`) or hub id.
        dtype: type of the weights.
        trust_remote_code: runs code that the checkpoint carries.
        what: it is, for the error.
        options: for `from_pretrained`.

    Raises:
        ModelError: nothing loadable is there, weights have another shape than the configuration
            says (but with `ignore_mismatched_sizes`), or are not finite.
    """
    from transformers import GgufConfig
    from transformers.utils import logging

    location, gguf = locate(source, what)
    if gguf:
        options |= {**gguf, "quantization_config": GgufConfig(dequantize=True)}
    elif Path(location).is_dir():
        _require_room(loader, Path(location), what, trust=trust_remote_code, **options)
    taken = options.pop("ignore_mismatched_sizes", False)
    # Let through here and refused below, in a sentence that names the weight.
    with _loading(what, source):
        model, info = loader.from_pretrained(
            location,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            use_safetensors=None if gguf else True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    if info["mismatched_keys"] and not taken:
        name, held, wanted = min(info["mismatched_keys"])
        raise ModelError(
            f"{source}: the weight {name} is {_shape(held)} in the files, and its config.json "
            f"makes it {_shape(wanted)}; restore the file that belongs to these weights"
        )
    if info["unexpected_keys"]:
        surplus = sorted(info["unexpected_keys"])
        logging.get_logger("transformers").warning(
            f"{source}: {len(surplus)} weights are not of a {type(model).__name__} and left out: "
            f"{', '.join(surplus[:3])}{' ...' if len(surplus) > 3 else ''}"
        )
    require_finite(model, source)
    return model, info


def _require_room(
    loader: Any, folder: Path, what: str, *, trust: bool, config: Any = None, **changes: Any
) -> None:
    """Refuse damaged weights, and a configuration that would take far more memory than they do."""
    elements = require_weights(folder)
    config = config or load_config(folder, what=what, trust_remote_code=trust)
    if getattr(config, "quantization_config", None) or (trust and hasattr(config, "auto_map")):
        return
    key = (loader, *_known_by(config))
    if key not in _DESCRIBED:
        with _loading(what, folder), torch.device("meta"):
            model = loader.from_config(config)
        _DESCRIBED[key] = sum(t.numel() for t in (*model.parameters(), *model.buffers()))
    require_fits(_DESCRIBED[key], elements, folder)


def _shape(sizes: Collection[int]) -> str:
    return " x ".join(map(str, sizes)) or "one number"


def require_reward_model(source: str | Path) -> None:
    """Refuse what is no reward model by its configuration alone, before any weights are loaded.

    Raises:
        ModelError: nothing loadable is there, or it is of a kind that can't score.
    """
    config = load_config(source, what="reward model", trust_remote_code=False)
    _require_scalar(source, config, training=False)


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


def load_tokenizer(source: str | Path, *, trust_remote_code: bool = False) -> Any:
    """Load a tokenizer from a folder, a GGUF file or the hub.

    Raises:
        ModelError: none is there.
    """
    from transformers import AutoTokenizer

    location, extra = locate(source, "tokenizer")
    if not extra and Path(location).is_dir():
        require_tokenizer(Path(location))
    with _loading("tokenizer", source):
        tokenizer = AutoTokenizer.from_pretrained(
            location, trust_remote_code=trust_remote_code, **extra
        )
        len(tokenizer)  # its settings may name any class of transformers
    return tokenizer


def load_config(source: str | Path, *, what: str = "model", trust_remote_code: bool = False) -> Any:
    """Load a model's configuration from a folder, a GGUF file or the hub.

    Raises:
        ModelError: none is there.
    """
    from transformers import AutoConfig

    location, extra = locate(source, what)
    with _loading(what, source):
        return AutoConfig.from_pretrained(location, trust_remote_code=trust_remote_code, **extra)


@contextlib.contextmanager
def _loading(what: str, source: str | Path) -> Iterator[None]:
    """Turn a library's error into one with its reason, and whether anything is there.

    What libraries raise of a broken file is of every kind; the panic of one in Rust is no
    `Exception`.
    """
    try:
        with quiet_loading(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            yield
    except RlhfError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        problem = hub_problem(source, error)
        raise ModelError(f"no {what} can be loaded from {source}: {problem}") from error


def locate(source: str | Path, what: str) -> tuple[str, dict[str, Any]]:
    """Return what `from_pretrained` takes for a source: a folder or hub id, and a GGUF file's name.

    Args:
        source: folder, `.gguf` file or hub id.
        what: it is, for the error.

    Raises:
        ModelError: the source is a path and nothing is there.
        UsageError: what reads .gguf files is not installed.
    """
    text = str(source)
    path = expand(text)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"{what} {text}: no such file; give a checkpoint's folder or hub id")
        require_packages("gguf", extra="gguf", what=f"the .gguf file {text}")
        return str(path.parent), {"gguf_file": path.name}
    if isinstance(source, Path) or text.startswith((".", "/", "~")):
        if not path.is_dir():
            raise ModelError(f"{what} {text}: no such folder; give a checkpoint's folder or hub id")
        require_config(path)
        return str(path), {}
    if path.is_dir():
        require_config(path)
    elif not path.exists():
        hub_trouble()  # half a minute of tries is spared where there is no network
    return text, {}


def hub_problem(source: str | Path, error: BaseException) -> str:
    """Return what a library says of a source, and why the hub has nothing."""
    if expand(source).exists():
        return f"{in_words(error)}; restore its files, or name another checkpoint"
    trouble = hub_trouble()
    if trouble is None:
        return f"no folder of that name is here, and of the hub: {in_words(error)}"
    return (
        f"no folder of that name is here, and of the hub the cache alone was used ({trouble}): "
        f"{in_words(error)}; name a folder, or try again with a network"
    )


def head_weights(classifier: Any) -> set[str]:
    """Return the names of the weights that only the head of a classifier uses.

    Those outside of its trunk, and those of the trunk that the architecture does without under
    another head, as a pooler.
    """
    trunk = f"{classifier.base_model_prefix}."
    names = set(classifier.state_dict())
    of_head = {name for name in names if not name.startswith(trunk)}
    for auto in ("AutoModelForTokenClassification", "AutoModelForMaskedLM"):
        key = (auto, *_known_by(classifier.config))
        if key not in _NAMES:
            _NAMES[key] = _names(auto, classifier.config)
        prefix, others = _NAMES[key]
        if f"{prefix}." == trunk:
            of_head |= names - others
    return of_head


def _names(auto: str, config: Any) -> tuple[str, set[str]]:
    """Return a model's prefix of its trunk and its weights' names; none where there is no class."""
    import transformers

    try:
        with torch.device("meta"):
            model = getattr(transformers, auto).from_config(config)
    except (ValueError, KeyError):
        return "", set()
    return model.base_model_prefix, set(model.state_dict())


def _known_by(config: Any) -> tuple[type, str]:
    return type(config), repr({**config.to_dict(), "_name_or_path": None})


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


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout to 0, in the modules and in the configuration.

    With dropout the probability ratio of PPO is not 1 at the first update. Some architectures, such
    as OPT, keep its share as a number of their own, beside that of layers to leave out.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        _drop_nothing(module)
    config = getattr(model, "config", None)
    if config is not None:
        _drop_nothing(config)


def _drop_nothing(owner: Any) -> None:
    for name, value in list(vars(owner).items()):
        if isinstance(value, float) and (
            "dropout" in name or "layerdrop" in name or name.endswith("_pdrop")
        ):
            setattr(owner, name, 0.0)


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


def require_distinct_pad(tokenizer: PreTrainedTokenizerBase, source: str | Path) -> int:
    """Return the id of the padding token.

    Raises:
        ModelError: there is none, or it is the end-of-sequence token, so that a model trained
            with it would never learn to end.
    """
    pad = tokenizer.pad_token_id
    if pad is None or pad == tokenizer.eos_token_id:
        raise ModelError(
            f"{source}: the pad token is {tokenizer.pad_token!r} and the end-of-sequence token "
            f"{tokenizer.eos_token!r}; they must be two tokens, set `pad_token` in a tokenizer "
            "stage that adopts this tokenizer"
        )
    return int(pad)


def require_rows(model: Any, tokenizer: PreTrainedTokenizerBase, source: str | Path) -> None:
    """Refuse a tokenizer that gives ids the model has no embedding for.

    Raises:
        ModelError: with both sizes.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ModelError(
            f"{source}: the tokenizer has {len(tokenizer)} tokens and the model an embedding of "
            f"{rows}; use the model's own tokenizer, with a `pad_token` its vocabulary holds"
        )
