"""What the files of a checkpoint hold, looked at before a library reads them or takes memory.

The configuration says how large a model is, and the headers of its weights what there is of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import ModelError, in_words
from data.json_object import read_object, require_types

if TYPE_CHECKING:
    from torch import nn

CONFIG, GENERATION = "config.json", "generation_config.json"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_CONFIG_TYPES: Mapping[str, tuple[type, ...]] = {
    "model_type": (str,), "architectures": (list,), "auto_map": (dict,), "id2label": (dict,),
    "num_labels": (int,), "text_config": (dict,), "vocab_size": (int,), "dtype": (str,),
    "torch_dtype": (str,), "quantization_config": (dict,),
    "max_position_embeddings": (int,), "reward_bias": (int, float),
    "reward_max_length": (int,), "is_encoder_decoder": (bool,), "rope_scaling": (dict,),
}  # fmt: skip
_ENDS: Mapping[str, tuple[type, ...]] = {"eos_token_id": (int, list), "pad_token_id": (int, list)}
_TOKENIZER_TYPES: Mapping[str, tuple[type, ...]] = {
    **{f"{name}_token": (str, dict) for name in ("bos", "eos", "pad", "unk", "sep", "cls", "mask")},
    "model_max_length": (int, float), "chat_template": (str, list, dict),
    "tokenizer_class": (str,), "added_tokens_decoder": (dict,), "auto_map": (dict, list),
}  # fmt: skip
_COUNTS = (
    (re.compile(r"(^|_)layers?$"), 1000),
    (re.compile(r"num_labels$"), 100_000),
    (re.compile(r"_experts$"), 10_000),
)
"""Keys that say how much is built, object by object, and more than any architecture has."""
_SPARE = 2**26
"""Elements that a model may have beyond twice those of its files: heads and buffers."""


def require_config(folder: Path) -> None:
    """Refuse a configuration of which a library can't make sense, or would build without end.

    `config.json` and `generation_config.json` may be absent; others say so where they are needed.

    Raises:
        ModelError: naming file, key and value.
    """
    path = folder / CONFIG
    config = read_object(path)
    require_types(path, config, _CONFIG_TYPES)
    for file, content in ((path, config), (folder / GENERATION, read_object(folder / GENERATION))):
        require_types(file, content, _ENDS)
        ends = content.get("eos_token_id")
        if isinstance(ends, list) and any(type(end) is not int for end in ends):
            raise ModelError(f"{file}: eos_token_id is {ends}; it is a list of ids, restore it")
    if any(not isinstance(name, str) for name in config.get("architectures") or []):
        raise ModelError(
            f"{path}: architectures is {config['architectures']!r}; it is a list of names of "
            "classes, restore the file"
        )
    bias, longest = config.get("reward_bias"), config.get("reward_max_length")
    if bias is not None and not math.isfinite(bias):
        raise ModelError(f"{path}: reward_bias is {bias}; it is a finite number, restore the file")
    if longest is not None and longest < 1:
        raise ModelError(f"{path}: reward_max_length is {longest}; it is 1 or more, restore it")
    for key, value in _items(config):
        for pattern, most in _COUNTS:
            if type(value) is int and value > most and pattern.search(key):
                raise ModelError(
                    f"{path}: {key} is {value}, and no architecture has more than {most}; restore "
                    "the file"
                )


def _items(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        yield key, value
        if isinstance(value, dict):
            yield from value.items()


def require_tokenizer(folder: Path) -> None:
    """Refuse files of a tokenizer that hold values of another type than they do.

    Raises:
        ModelError: naming file and key.
    """
    path = folder / "tokenizer.json"
    content = read_object(path)
    require_types(path, content, {"model": (dict,), "added_tokens": (list,)})
    if content.get("model") is not None:
        require_types(path, content["model"], {"vocab": (dict, list)})
    vocabulary = (content.get("model") or {}).get("vocab")
    ids = vocabulary.values() if isinstance(vocabulary, dict) else ()
    if any(type(number) is not int or number < 0 for number in ids):
        raise ModelError(f"{path}: model.vocab holds an id that is no number; restore the file")
    added = content.get("added_tokens") or []
    if any(
        not isinstance(token, dict)
        or type(token.get("id")) is not int
        or not isinstance(token.get("content"), str)
        for token in added
    ):
        raise ModelError(
            f"{path}: added_tokens holds something without an id and a content; restore the file"
        )
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        require_types(folder / name, read_object(folder / name), _TOKENIZER_TYPES)


def require_weights(folder: Path) -> int:
    """Return how many elements the weights in a folder have.

    A `ModelError` names the file that is missing, damaged, or not one of this folder.
    """
    return sum(_elements(path) for path in _shards(folder))


def weight_names(folder: Path) -> list[str]:
    """Return the names of the weights in a folder.

    A `ModelError` names the file that is missing, damaged, or not one of this folder.
    """
    return [name for path in _shards(folder) for name in _opened(path)]


def _shards(folder: Path) -> list[Path]:
    single, index = folder / _WEIGHTS, folder / _INDEX
    if single.is_file():
        return [single]
    if single.is_symlink() or single.exists():
        raise ModelError(f"{single} is no file, or a link to none; save or download it again")
    if not index.is_file():
        pickled = next((path.name for path in sorted(folder.glob("*.bin"))), None)
        beside = f"; {pickled} is a pickle, which may run code and is not read" if pickled else ""
        raise ModelError(
            f"{folder} holds no {_WEIGHTS}{beside}; save the model there with "
            "`save_pretrained`, which writes safetensors"
        )
    content = read_object(index)
    require_types(index, content, {"weight_map": (dict,), "metadata": (dict,)})
    names = list(dict.fromkeys((content.get("weight_map") or {}).values()))
    if not names:
        raise ModelError(f"{index}: weight_map names no file; restore the file")
    for name in names:
        if not isinstance(name, str) or not name.endswith(".safetensors") or "\0" in name:
            raise ModelError(f"{index}: weight_map names {name!r}, no .safetensors; restore it")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ModelError(
                f"{index}: weight_map names {name}, outside of {folder}; put the weights beside "
                "the index and name them by their file names"
            )
        if not (folder / name).is_file():
            raise ModelError(f"{index} names {name}, which is not there; download or save it again")
    return [folder / name for name in names]


def _elements(path: Path) -> int:
    return sum(math.prod(shape) for shape in _opened(path).values())


def _opened(path: Path) -> dict[str, list[int]]:
    """Return the shape of each of a file's weights, by its name."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path} is no whole safetensors file ({in_words(error)}); download or save it again"
        ) from error


def require_fits(described: int, elements: int, folder: Path) -> None:
    """Refuse a configuration that describes far more than the weights hold.

    Args:
        described: numbers of the model as its configuration makes it.
        elements: of the weights.
        folder: of both.

    Raises:
        ModelError: with both sizes.
    """
    if described > 2 * elements + _SPARE:
        raise ModelError(
            f"{folder / CONFIG} describes a model of {described:,} numbers and the weights hold "
            f"{elements:,}; restore the file that belongs to these weights"
        )


def require_finite(model: nn.Module, source: str | Path) -> None:
    """Refuse weights that are NaN or infinite.

    Raises:
        ModelError: naming the first of them.
    """
    for name, weight in model.named_parameters():
        if not weight.is_floating_point() or weight.is_meta or weight.numel() == 0:
            continue
        # One byte a number has no order in torch.
        least, most = (weight.float() if weight.itemsize == 1 else weight).detach().aminmax()
        if not (math.isfinite(least) and math.isfinite(most)):
            raise ModelError(
                f"{source}: the weight {name} holds {'NaN' if least != least else 'infinity'}; "
                "take a checkpoint from before that happened"
            )
