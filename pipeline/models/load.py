"""Loads and saves policies, value models and tokenizers in the Hugging Face layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from data.errors import ModelError
from reward.network.loading import (
    disable_dropout as disable_dropout,
)
from reward.network.loading import (
    head_weights,
    load_model,
    locate,
    quiet_loading,
)
from reward.network.loading import (
    load_config as load_config,
)
from reward.network.loading import (
    load_tokenizer as load_tokenizer,
)
from reward.network.loading import (
    require_distinct_pad as require_distinct_pad,
)
from reward.network.loading import (
    require_rows as require_rows,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def pick_device() -> torch.device:
    """Return the accelerator of this process, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def bf16_supported(device: torch.device | str = "cpu") -> bool:
    """Tell whether bf16 matrix products run in hardware.

    A CPU without AVX512-BF16 or AMX computes them many times slower than fp32, and correctly
    only in that it ends.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if kind == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def resolve_bf16(setting: bool | str, device: torch.device | str = "cpu") -> bool:
    """Return whether to use bf16 for a setting of True, False or "auto".

    Raises:
        ModelError: bf16 was asked for and the hardware has none.
    """
    if setting == "auto":
        return bf16_supported(device)
    if setting and not bf16_supported(device):
        raise ModelError(f"bf16: true, but this {device} has no bf16 products; set it to auto")
    return bool(setting)


def load_policy(
    source: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a policy, with dropout off: a causal language model, or an encoder-decoder that writes.

    Args:
        source: folder, `.gguf` file (dequantised on load; needs the extra `gguf`) or hub id.
        dtype: type of the weights; training wants fp32 master weights.
        trust_remote_code: runs code that the checkpoint carries; only when the user typed it.

    Raises:
        ModelError: nothing loadable is there, it is a reward or value model, or a weight is
            missing from the files.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    config = load_config(source, trust_remote_code=trust_remote_code)
    _require_writer(source, config)
    loader = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = _load(loader, source, dtype=dtype, trust=trust_remote_code)
    _require_ends(model, source)
    return model


def load_denoiser(
    source: str | Path, auto_class: str, *, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Load an encoder, or encoder-decoder, that gives back what is hidden; with dropout off.

    Args:
        source: folder or hub id.
        auto_class: class of transformers that loads it, such as "AutoModelForMaskedLM".
        trust_remote_code: runs code that the checkpoint carries; only when the user typed it.

    Raises:
        ModelError: nothing loadable is there, or a weight is missing from the files.
    """
    import transformers

    loader = getattr(transformers, auto_class)
    return _load(loader, source, dtype=torch.float32, trust=trust_remote_code)


def load_with_head(
    source: str | Path,
    auto_class: str,
    classes: Sequence[str],
    *,
    seed: int,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, bool]:
    """Load a model with a head to be trained, with dropout off; tell whether its head was there.

    A head that has just these classes in this order is kept; any other is drawn anew.

    Args:
        source: folder, `.gguf` file or hub id.
        auto_class: class of transformers that loads it, such as "AutoModelForTokenClassification".
        classes: names of the logits; empty where the class of the model decides what they are.
        seed: of a new head.
        trust_remote_code: runs code that the checkpoint carries.

    Raises:
        ModelError: nothing loadable is there, or weights other than the head's are missing.
    """
    import transformers

    config = load_config(source, trust_remote_code=trust_remote_code)
    held = [config.id2label[place] for place in sorted(config.id2label)]
    config.num_labels = len(classes) or 2
    if classes:
        config.id2label = dict(enumerate(classes))
        config.label2id = {name: place for place, name in enumerate(classes)}
    if hasattr(config, "use_cache"):
        config.use_cache = False  # nothing is written token by token
    # The seed decides the new head and nothing else: what is drawn later is as it would be.
    with torch.random.fork_rng(), quiet_loading():
        torch.manual_seed(seed)
        model, info = load_model(
            getattr(transformers, auto_class), source, dtype=torch.float32, config=config,
            trust_remote_code=trust_remote_code, ignore_mismatched_sizes=True,
        )  # fmt: skip
        new = set(info["missing_keys"]) | {str(key[0]) for key in info["mismatched_keys"]}
        strange = sorted(new - head_weights(model)) if new else []
        if strange:
            raise ModelError(
                f"{source} lacks weights of {type(model).__name__}: {', '.join(strange[:3])}; it "
                "is a checkpoint of another architecture"
            )
        kept = not new and (not classes or held == list(classes))
        if not new and not kept:
            _draw_last(model, len(classes))
    disable_dropout(model)
    return model, kept


def _draw_last(model: PreTrainedModel, size: int) -> None:
    """Draw the layer anew that gives the logits of other classes."""
    names = head_weights(model)
    for name, module in model.named_modules():
        of_head = isinstance(module, torch.nn.Linear) and f"{name}.weight" in names
        if of_head and module.out_features == size:
            module.reset_parameters()


def _require_ends(model: PreTrainedModel, source: str | Path) -> None:
    """Refuse an id that ends responses and that the model has no row for."""
    rows = model.get_input_embeddings().weight.shape[0]
    for number in configured_ends(model):
        if not 0 <= number < rows:
            raise ModelError(
                f"{source}: eos_token_id {number} of its generation_config.json is none of the "
                f"{rows} ids of the model; correct that file"
            )


def _require_writer(source: str | Path, config: Any) -> None:
    """Refuse a model whose trunk alone would load and write nonsense: it scores, or fills gaps."""
    architecture = (config.architectures or [""])[0]
    if architecture.endswith(("ForMaskedLM", "ForPreTraining")):
        raise ModelError(
            f"{source} is a {architecture}, which fills gaps in a text; name a causal language "
            "model"
        )
    heads = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
    if architecture.endswith(heads):
        raise ModelError(
            f"{source} is a {architecture}, which scores text and writes none; name a causal "
            "language model"
        )


def load_value_model(source: str | Path, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load a value model: a token classifier with one label, with dropout off.

    A reward model's scalar head becomes the value head (InstructGPT, appendix C.4), if the
    source is one; a value model trained here is loaded as it is; on any other checkpoint the head
    starts at zero.

    Raises:
        ModelError: nothing loadable is there.
    """
    from transformers import AutoModelForSequenceClassification
    from transformers import AutoModelForTokenClassification as TokenClassifier

    location, _ = locate(source, "value model")
    config = load_config(location, what="value model")
    architecture = (config.architectures or [""])[0]
    if architecture.endswith("ForSequenceClassification") and config.num_labels != 1:
        raise ModelError(
            f"{source} is a classifier with {config.num_labels} labels; a value model starts from "
            "a reward model, which has one"
        )
    if architecture.endswith("ForTokenClassification"):
        return _load(TokenClassifier, location, dtype=dtype, num_labels=1)
    with quiet_loading():
        value = _load(TokenClassifier, location, dtype=dtype, num_labels=1, head=True)
    # V = w h + b begins as the reward model's score of the text so far, its bias included, or as 0.
    head = value_head(value)
    with torch.no_grad():
        head.weight.zero_()
        if head.bias is not None:
            head.bias.zero_()
        if architecture.endswith("ForSequenceClassification"):
            scored = _load(AutoModelForSequenceClassification, location, dtype=dtype, num_labels=1)
            source_head = value_head(scored)
            head.weight.copy_(source_head.weight)
            if head.bias is not None:
                bias = source_head.bias if source_head.bias is not None else None
                head.bias.fill_(float(getattr(config, "reward_bias", 0.0)))
                if bias is not None:
                    head.bias.add_(bias)
    return value


def value_head(model: PreTrainedModel) -> torch.nn.Linear:
    """Return the scalar head of a sequence or token classifier.

    Raises:
        ModelError: the model has none of the known names.
    """
    for name in ("score", "classifier"):
        head = getattr(model, name, None)
        if isinstance(head, torch.nn.Linear):
            return head
    raise ModelError(
        f"{type(model).__name__} has no linear head named score or classifier; "
        "use an architecture whose classifier is one linear layer"
    )


def _load(
    loader: Any,
    source: str | Path,
    *,
    dtype: torch.dtype,
    trust: bool = False,
    head: bool = False,
    **extra: Any,
) -> PreTrainedModel:
    from transformers.utils import logging

    logging.disable_progress_bar()
    model, info = load_model(loader, source, dtype=dtype, trust_remote_code=trust, **extra)
    new = info["missing_keys"]
    missing = sorted(new - head_weights(model) if head and new else new)
    if missing:
        raise ModelError(
            f"{source} lacks the weights of {type(model).__name__}: {', '.join(missing[:3])}"
            f"{' ...' if len(missing) > 3 else ''}; it is a checkpoint of another architecture"
        )
    disable_dropout(model)
    return model


def halve_products(model: torch.nn.Module) -> None:
    """Keep the matrices of a frozen model's linear layers in bf16; embeddings and norms stay.

    Under mixed precision its products are in bf16 anyway, so that nothing it computes there
    changes; it may be called in mixed precision alone from then on.
    """
    from transformers.pytorch_utils import Conv1D

    linear = (torch.nn.Linear, Conv1D)
    others = {
        id(parameter)
        for module in model.modules()
        if not isinstance(module, linear)
        for parameter in module.parameters(recurse=False)
    }
    for module in model.modules():
        if isinstance(module, linear) and id(module.weight) not in others:
            module.weight.data = module.weight.data.to(torch.bfloat16)


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: Path,
    *,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Save a model and its tokenizer so that `from_pretrained` loads them; safetensors only.

    Args:
        model: what is saved.
        tokenizer: saved beside it.
        folder: made if it isn't there.
        weights: saved instead of the model's own, such as those gathered from many processes.
    """
    from transformers.utils import logging

    from data.storage import storage_errors

    logging.disable_progress_bar()
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        more = {} if weights is None else {"state_dict": weights}
        model.save_pretrained(folder, **more)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)


def context_length(model: PreTrainedModel) -> int | None:
    """Return the most tokens a model takes, None when its configuration does not say."""
    length = configured_context(model.config)
    # Where padding has a position of its own (RoBERTa and its like) tokens begin behind it.
    rows = [
        module.num_embeddings - module.padding_idx - 1
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Embedding)
        and module.padding_idx is not None
        and name.endswith("position_embeddings")
    ]
    return min([*rows, *([] if length is None else [length])], default=None)


def configured_context(config: Any) -> int | None:
    """Return the most positions by a configuration, None when it does not say."""
    text = config.get_text_config()
    lengths = (getattr(text, name, None) for name in ("max_position_embeddings", "max_seq_len"))
    return next((int(n) for n in lengths if isinstance(n, int) and n > 0), None)


def eos_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None) -> list[int]:
    """Return the ids that end a response: the tokenizer's, and the model's generation config's."""
    ids = {tokenizer.eos_token_id, *(() if model is None else configured_ends(model))}
    return sorted(i for i in ids if i is not None)


def configured_ends(model: PreTrainedModel) -> list[int]:
    """Return the ids that end a response by a model's generation config."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return [ends] if isinstance(ends, int) else list(ends or ())
