"""Trials of a few tokens that ask a model what it does, where a list of names could be wrong.

A model is tried as it stands: in evaluation mode, and in fp32 where its weights are, so that what
leaks shows however little it is. Nothing is drawn at random and nothing of the model changes.

Shapes: B rows, T tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.errors import ModelError
from pipeline.models.load import context_length
from pipeline.models.seq2seq import is_encoder_decoder

OBJECTIONS = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What architectures raise where they are asked for something that they can't do."""
_SPREAD = 11


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Put a model into evaluation mode, and each of its modules back into the one it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def on_trial(model: Any) -> Iterator[bool]:
    """Put a model into the state in which it is tried; give whether it computes in fp32."""
    device = _device(model)
    exact = all(p.dtype == torch.float32 for p in model.parameters() if p.is_floating_point())
    with evaluating(model), torch.no_grad():
        if not exact:
            yield False
            return
        with torch.autocast(device.type, enabled=False):
            yield True


def trial_ids(model: Any, count: int, *, first: int = 0) -> list[int]:
    """Return token ids that are spread over a vocabulary, none of them padding.

    With another `first` all of them are others.

    Its first ids are often special ones, whose states are so large that rounding shows.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    pad = getattr(model.config.get_text_config(), "pad_token_id", None)
    places = ((3 + 7 * (first + i) + i // _SPREAD) % _SPREAD for i in range(count))
    ids = [place * rows // _SPREAD for place in places]
    return [(i + 1) % rows if i == pad else i for i in ids]


def gap(given: Tensor, wanted: Tensor, *, spared: int = 0) -> float:
    """Return the largest difference as a share of the largest figure that was wanted.

    So many rows as are spared, those that differ most, do not count.
    """
    given, wanted = given.double(), wanted.double()
    scale = float(wanted.abs().max()) or 1.0
    differences = (given - wanted).abs().flatten(1).amax(1)
    if bool(differences.isnan().any()):
        return float("inf")
    return float(differences.sort().values[len(differences) - 1 - spared]) / scale


def looks_ahead(model: Any) -> bool:
    """Tell whether later tokens change what a model says of earlier ones.

    The states are looked at, not what a head makes of them: a value head may start at 0.
    """
    ids = trial_ids(model, 5)
    ids_BT = torch.tensor([ids[:4], [*ids[:3], ids[4]]], device=_device(model))
    with on_trial(model) as exact:
        try:
            states_BTH = model.base_model(input_ids=ids_BT, use_cache=False)[0][:, :3]
        except TypeError:  # an encoder that has no cache to turn off
            states_BTH = model.base_model(input_ids=ids_BT)[0][:, :3]
    return gap(states_BTH[0], states_BTH[1]) > (1e-5 if exact else 1e-2)


def require_causal(model: Any, source: str | Path) -> None:
    """Refuse a model in which later tokens change what is said of earlier ones.

    Raises:
        ModelError: it is an encoder, an encoder-decoder, or attends to both sides.
    """
    if is_encoder_decoder(model):
        raise ModelError(
            f"{source} is a {type(model).__name__}, an encoder-decoder; use a causal language model"
        )
    if looks_ahead(model):
        raise ModelError(
            f"{source} is a {type(model).__name__}, in which later tokens change what is said of "
            "earlier ones; use a causal language model"
        )


def reads_and_writes(model: Any) -> bool:
    """Tell whether a model reads with one half and writes with the other, one token at a time."""
    if not is_encoder_decoder(model):
        return False
    device = _device(model)
    ids = trial_ids(model, 6)
    read = torch.tensor([ids[:3], [*ids[:2], ids[5]], ids[:3]], device=device)
    written = torch.tensor([ids[1:4], ids[1:4], [*ids[1:3], ids[4]]], device=device)
    with on_trial(model) as exact:
        try:
            logits = model(input_ids=read, decoder_input_ids=written, use_cache=False).logits
        except OBJECTIONS:
            return False
    unmoved = 1e-5 if exact else 1e-2
    reads = gap(logits[1], logits[0]) > unmoved
    return reads and gap(logits[2, :2], logits[0, :2]) < unmoved


def require_policy(model: Any, source: str | Path) -> None:
    """Refuse a model that neither goes on from a text nor reads one and writes another.

    Raises:
        ModelError: later tokens change what is said of earlier ones, or what is read does nothing.
    """
    if not is_encoder_decoder(model):
        require_causal(model, source)
    elif not reads_and_writes(model):
        raise ModelError(
            f"{source} is a {type(model).__name__}, which does not read a text and write another; "
            "use a causal language model, or an encoder-decoder such as T5 or BART"
        )


def trial_sizes(model: Any, length: int) -> list[int]:
    """Return lengths of documents that fill a row, as far as a model's context goes.

    The row is as long as those that come later: windows, chunks and choices of some tokens among
    all do nothing in shorter ones.
    """
    room = min(length, context_length(model) or length)
    if room >= 13:
        return [room // 2 + 1, 3, room - room // 2 - 4]
    third = room // 3
    return [third + 1, third - 1, third] if third > 1 else [1, 1]


def keeps_apart(
    model: Any, sizes: Sequence[int], inputs: Callable[[Tensor, Tensor], dict[str, Any]]
) -> bool:
    """Tell whether documents that share a row are to a model what they are in rows of their own.

    Neither may a document's logits differ from those it has alone, nor may they change with the
    tokens of other documents, nor earlier ones with a later token.

    Args:
        model: a causal language model.
        sizes: tokens of each document; two documents at least.
        inputs: gives a model's inputs for ids and document numbers (1, T).
    """
    device = _device(model)
    ids_1T = torch.tensor([trial_ids(model, sum(sizes))], device=device)
    other_1T = torch.tensor([trial_ids(model, sum(sizes), first=4)], device=device)
    documents_1T = torch.repeat_interleave(
        torch.arange(len(sizes), device=device), torch.tensor(sizes, device=device)
    )[None]
    last = documents_1T == len(sizes) - 1
    before_1T = torch.where(last, ids_1T, other_1T)
    after_1T = torch.cat([ids_1T[:, :-1], other_1T[:, -1:]], dim=1)

    def logits(ids: Tensor, **given: Any) -> Tensor:
        logits_TV: Tensor = model(**(given or {"input_ids": ids}), use_cache=False).logits[0]
        # Some of a large vocabulary: rows may be long, and several are held at once.
        return logits_TV[:, :: max(1, logits_TV.shape[1] // 1024)].clone()

    with on_trial(model) as exact:
        alone = torch.cat([logits(ids) for ids in torch.split(ids_1T, list(sizes), dim=1)])
        try:
            together, before, after = (
                logits(ids, **inputs(ids, documents_1T)) for ids in (ids_1T, before_1T, after_1T)
            )
        except OBJECTIONS:
            return False
    unmoved = 1e-5 if exact else 1e-2
    # Rounding sends one token of many to another expert here and there; a wrong mask moves more.
    spared = len(alone) // 100
    return (
        gap(together, alone, spared=spared) < (1e-4 if exact else 5e-2)
        and gap(before[last[0]], together[last[0]]) < unmoved
        and gap(after[:-1], together[:-1]) < unmoved
    )


def logits_are_head_of_hidden(model: Any) -> bool:
    """Try on a few tokens whether logits are the output head of the last hidden state."""
    return head_scale(model) == 1


@torch.no_grad()
def head_scale(model: Any) -> float | None:
    """Try on a few tokens by what a model multiplies its last hidden state before its output head.

    None where logits are not made so: some architectures scale or cap them, and are called whole.
    What the head gives is made large for the trial: a cap does little to the small logits of a
    model not yet trained. T5 scales what the head is given, most don't.
    """
    head = model.get_output_embeddings()
    pair = is_encoder_decoder(model)
    if not isinstance(head, torch.nn.Linear) or (model.base_model is model and not pair):
        return None
    ids = torch.arange(1, 6, device=model.device)[None] % head.out_features
    seen: list[Tensor] = []

    def enlarge(_: torch.nn.Module, given: tuple[Tensor, ...], logits: Tensor) -> Tensor:
        large = logits * (1000 / logits.abs().max().clamp(min=1e-6))
        seen[:] = given[0], large
        return large

    hook = head.register_forward_hook(enlarge)
    try:
        with evaluating(model):
            more = {"decoder_input_ids": ids} if pair else {}
            logits = model(input_ids=ids, use_cache=False, **more).logits
            hidden = _last_hidden(model, ids)
    finally:
        hook.remove()
    if not seen or seen[0].shape != hidden.shape:
        return None
    given, state = seen[0].double(), hidden.double()
    scale = float((given * state).sum() / state.square().sum())
    scale = 1.0 if abs(scale - 1) < 1e-4 else scale
    fits = gap(given, scale * state) < 1e-4 and gap(logits, seen[1]) < 1e-4
    return scale if fits else None


def _last_hidden(model: Any, ids_BT: Tensor) -> Tensor:
    """Return the last hidden state, of an encoder-decoder that reads and writes the same."""
    if not is_encoder_decoder(model):
        hidden: Tensor = model.base_model(input_ids=ids_BT, use_cache=False)[0]
        return hidden
    read = model.get_encoder()(input_ids=ids_BT)[0]
    written: Tensor = model.get_decoder()(
        input_ids=ids_BT, encoder_hidden_states=read, use_cache=False
    )[0]
    return written


def _device(model: Any) -> torch.device:
    device: torch.device = model.get_input_embeddings().weight.device
    return device
