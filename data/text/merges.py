"""How a tokenizer cuts a text: its pieces, and the merges that made each of them.

Byte-pair encoding begins with single bytes, or characters, and puts together the pair that was
learned earliest of those that stand side by side, again and again (Sennrich et al. 2016). The
tokenizer itself tells the pieces; the merges are worked out here from the list it holds, and left
out where they come to other pieces, as behind words that were added to the vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from data.text.control_tokens import encode, spelled
from data.text.tokenizer import is_byte_level, piece_bytes, special_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ranks = Mapping[tuple[str, str], int]


class Merge(NamedTuple):
    """Two pieces that became one; a piece that no merge made is a string.

    Attributes:
        left: piece or merge.
        right: piece or merge.
        step: place among the merges of its word, from 1.
        learned: place among the merges that the tokenizer learned, from 1.
    """

    left: Merge | str
    right: Merge | str
    step: int
    learned: int


class Piece(NamedTuple):
    """A token of a text.

    Attributes:
        name: as the vocabulary spells it.
        id: its number.
        bytes: what it stands for; a control token stands for none.
        made: how merges made it; None where they are not known.
    """

    name: str
    id: int
    bytes: bytes
    made: Merge | str | None


def name_of(made: Merge | str) -> str:
    """Return what a merge comes to."""
    return made if isinstance(made, str) else name_of(made.left) + name_of(made.right)


def pieces(tokenizer: PreTrainedTokenizerBase, text: str) -> list[Piece]:
    """Return the tokens of a text, nothing added around it.

    Raises:
        ModelError: the tokenizer is not a fast one.
    """
    ids = encode(tokenizer, text, spelled(tokenizer, text)).ids
    names = [str(name) for name in tokenizer.convert_ids_to_tokens(ids)]
    special, byte_level = special_ids(tokenizer), is_byte_level(tokenizer)
    merged: Sequence[Merge | str | None] = [*_merged(tokenizer, text)]
    if [name_of(made) for made in merged if made is not None] != names:
        merged = [None] * len(ids)
    return [
        Piece(name, id, b"" if id in special else piece_bytes(name, byte_level=byte_level), made)
        for name, id, made in zip(names, ids, merged, strict=True)
    ]


def _merged(tokenizer: PreTrainedTokenizerBase, text: str) -> Iterator[Merge | str]:
    """Yield the pieces of a text as the merges make them; nothing where the model has none."""
    backend: Any = tokenizer.backend_tokenizer
    model = json.loads(backend.to_str())["model"]
    if model["type"] != "BPE":
        return
    ranks = {(left, right): place for place, (left, right) in enumerate(model["merges"])}
    normal = backend.normalizer.normalize_str(text) if backend.normalizer else text
    words = [(normal, None)]
    if backend.pre_tokenizer:
        words = backend.pre_tokenizer.pre_tokenize_str(normal)
    for word, _ in words:
        if model.get("ignore_merges") and word in model["vocab"]:
            yield word
        else:
            yield from merge_word([*_first(word, model["vocab"])], ranks)


def _first(word: str, vocabulary: Mapping[str, int]) -> Iterator[str]:
    """Yield what a word begins with: its characters, or their bytes where one is unknown."""
    for character in word:
        if character in vocabulary:
            yield character
        else:
            yield from (f"<0x{byte:02X}>" for byte in character.encode())


def merge_word(first: Sequence[str], ranks: Ranks) -> list[Merge | str]:
    """Put pairs together, the one that was learned first before all others, from the left.

    Args:
        first: what a word begins with.
        ranks: when each pair was learned, from 0.
    """
    made: list[Merge | str] = [*first]
    names = [*first]
    for step in range(1, len(first)):
        pairs = enumerate(pairwise(names))
        known = [(ranks[pair], at) for at, pair in pairs if pair in ranks]
        if not known:
            break
        rank, at = min(known)
        made[at : at + 2] = [Merge(made[at], made[at + 1], step, rank + 1)]
        names[at : at + 2] = [names[at] + names[at + 1]]
    return made


def picture(made: Merge | str, *, deep: int = 0) -> Iterator[str]:
    """Yield the merges of a piece as an indented tree, the last one first."""
    if isinstance(made, str):
        return
    pair = f"{name_of(made.left)} + {name_of(made.right)} = {name_of(made)}"
    yield f"{'  ' * deep}{made.step}. {pair}  (learned as {made.learned:,})"
    for part in (made.left, made.right):
        yield from picture(part, deep=deep + 1)


def as_json(made: Merge | str | None) -> Any:
    """Return how a piece was made, as JSON holds it."""
    if made is None or isinstance(made, str):
        return made
    return {**made._asdict(), "left": as_json(made.left), "right": as_json(made.right)}
