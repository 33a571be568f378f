"""Learns a byte-level BPE whose words are cut the same way with and without a space before them.

Ordinary byte-level BPE learns " mode" and "mode" apart, so that a compound such as "goblinmode"
falls into crumbs though both its words are known. Here the merges are learned on words without
their space, and merges of a space with the first piece of a word come after all of those. The
share between the two kinds is the one that gives the fewest tokens. All 256 bytes are tokens, so
none is unknown; digits stand alone. The `tokenizers` library learns and applies the merges.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from data.errors import RecipeError, SourceError
from data.text.chat import DEFAULT_TEMPLATE
from data.text.control_tokens import encode_ids, spelled

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

PAD, BOS, SEPARATOR = "<|pad|>", "<|bos|>", "<|endoftext|>"
USER, ASSISTANT, SYSTEM, END = "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"
SPECIAL_TOKENS = (PAD, BOS, SEPARATOR, USER, ASSISTANT, SYSTEM, END)

_PIECES = r"'(?:[sdmt]|ll|ve|re)| ?[\p{L}\p{M}]+| ?\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"
_LEADING_SPACE = r"^ (?=\S)"
_SPACE = "Ġ"
_COUNTED = 20_000_000
"""Characters of the corpus on which merges with a space are counted."""
_STEPS = 8

Merge = tuple[str, str]


def train_tokenizer(
    texts: Iterable[str],
    *,
    vocabulary_size: int,
    special_tokens: Sequence[str] = (),
    chat_template: str = DEFAULT_TEMPLATE,
    min_frequency: int = 1,
) -> PreTrainedTokenizerFast:
    """Learn a tokenizer; the same texts in the same order give the same one.

    Args:
        texts: the corpus, read once.
        vocabulary_size: tokens in all, bytes and special ones among them; fewer come out when the
            corpus holds too few different words.
        special_tokens: further special tokens beside `SPECIAL_TOKENS`.
        chat_template: Jinja template that is saved with it.
        min_frequency: occurrences that a merge needs.

    Returns:
        A tokenizer with pad, bos and eos set; `save_pretrained` writes what AutoTokenizer loads.

    Raises:
        RecipeError: the vocabulary has no room for bytes and special tokens.
        SourceError: the corpus is empty.
    """
    specials = list(dict.fromkeys([*SPECIAL_TOKENS, *special_tokens]))
    room = vocabulary_size - 256 - len(specials)
    if room < 0:
        raise RecipeError(
            f"vocabulary_size {vocabulary_size} is too small: 256 bytes and {len(specials)} "
            f"special tokens need {256 + len(specials)}"
        )
    corpus = _Counted(texts, specials)
    word_merges = _learn_word_merges(corpus, specials, room, min_frequency)
    if not corpus.counts:
        raise SourceError("the corpus for the tokenizer holds no text")
    merges = _best_split(word_merges, corpus.counts, room, min_frequency)
    return _wrap(_build(specials, merges), chat_template)


class _Counted:
    """Hands a corpus through and counts the pieces of its first 20 million characters."""

    def __init__(self, texts: Iterable[str], specials: Sequence[str]) -> None:
        from tokenizers import Regex, pre_tokenizers

        self.counts: Counter[str] = Counter()
        self._texts = texts
        self._split = pre_tokenizers.Sequence(
            [_without(specials), pre_tokenizers.Split(Regex(_PIECES), "isolated")]
        )

    def __iter__(self) -> Iterator[str]:
        left = _COUNTED
        for text in self._texts:
            if left > 0 and text:
                pieces = self._split.pre_tokenize_str(text[:left])
                self.counts.update(piece for piece, _ in pieces)
                left -= len(text)
            yield text


def _without(specials: Sequence[str]) -> PreTokenizer:
    """Return what takes special tokens that a corpus spells out of it.

    The trainer knows of none: of `<|endoftext|>` between documents it would learn the pieces.
    """
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Split(Regex("|".join(map(re.escape, specials)) or "(?!)"), "removed")


def _learn_word_merges(
    texts: Iterable[str], specials: Sequence[str], room: int, min_frequency: int
) -> list[Merge]:
    """Return merges learned on words from which the space before them is split off."""
    import json

    from tokenizers import Regex, pre_tokenizers

    learner = _learned(
        texts,
        [
            _without(specials),
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.Split(Regex(_LEADING_SPACE), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ],
        room,
        min_frequency,
    )
    return [(left, right) for left, right in json.loads(learner.to_str())["model"]["merges"]]


def _learned(
    texts: Iterable[str], cuts: Sequence[PreTokenizer], room: int, min_frequency: int
) -> Tokenizer:
    """Return bytes and as many merges as there is room for, learned on what is cut so."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence([*cuts])
    trainer = trainers.BpeTrainer(
        vocab_size=256 + room,
        min_frequency=min_frequency,
        initial_alphabet=byte_alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer=trainer)
    return learner


def gpt2_tokens(
    texts: Iterable[str],
    sample: Sequence[str],
    *,
    vocabulary_size: int,
    special_tokens: Sequence[str],
    min_frequency: int = 1,
) -> int:
    """Return how many tokens a sample takes by byte-level BPE as GPT-2 has it, for comparison.

    Radford et al. 2019: words are learned with the space before them, digits in groups.

    Args:
        texts: what is learned from; of much text the first 20 million characters.
        sample: what is cut.
        vocabulary_size: tokens in all, of which the special ones leave room for merges.
        special_tokens: all of them.
        min_frequency: occurrences that a merge needs.
    """
    from tokenizers import pre_tokenizers

    cuts = [_without(special_tokens), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    room = vocabulary_size - 256 - len(special_tokens)
    learner = _learned(first_characters(texts, _COUNTED), cuts, room, min_frequency)
    learner.pre_tokenizer = cuts[1]
    return sum(len(encoded.ids) for encoded in learner.encode_batch([*sample]))


def first_characters(texts: Iterable[str], count: int) -> Iterator[str]:
    """Yield texts up to so many characters; the last one is cut."""
    for text in texts:
        yield text[:count]
        count -= len(text)
        if count <= 0:
            return


def byte_alphabet() -> list[str]:
    """Return the characters that stand for the 256 bytes, in the order of the bytes."""
    # GPT-2's table: a printable byte stands for itself, the others for characters from 256 on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


_BYTES = {character: byte for byte, character in enumerate(byte_alphabet())}


def _best_split(
    word_merges: list[Merge], counts: Counter[str], room: int, min_frequency: int
) -> list[Merge]:
    """Return word merges and space merges, together at most `room`, that give fewest tokens."""
    total = len(word_merges)
    best: tuple[int, list[Merge]] | None = None
    # Fewer word merges leave room for merges of a space with the piece behind it, which save a
    # token at each word that begins so: try some splits and count, the most word merges first.
    for n_merges in sorted({total * step // _STEPS for step in range(1, _STEPS + 1)}, reverse=True):
        merges = word_merges[:n_merges]
        tokens, openings = _cost(merges, counts)
        ranked = sorted(openings.items(), key=lambda item: (-item[1], item[0]))
        taken = [item for item in ranked if item[1] >= min_frequency][: room - n_merges]
        tokens -= sum(count for _, count in taken)
        if best is None or tokens < best[0]:
            best = (tokens, [*merges, *((_SPACE, piece) for piece, _ in taken)])
    return best[1] if best is not None else []


def _cost(merges: list[Merge], counts: Counter[str]) -> tuple[int, Counter[str]]:
    """Return the tokens that the counted pieces take, and how often each opens a spaced word."""
    encoder = _build([], merges)
    openings: Counter[str] = Counter()
    tokens = 0
    pieces = list(counts)
    for piece, encoded in zip(pieces, encoder.encode_batch(pieces), strict=True):
        cut = encoded.tokens
        tokens += counts[piece] * len(cut)
        # The space is a token of its own before this word: a merge of both would save it.
        if len(cut) > 1 and cut[0] == _SPACE and not piece[1].isspace():
            openings[cut[1]] += counts[piece]
    return tokens, openings


def _build(specials: Sequence[str], merges: Sequence[Merge]) -> Tokenizer:
    """Return the tokenizer with these merges; ids: special tokens, bytes, merges in order."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    names = dict.fromkeys([*specials, *byte_alphabet(), *(left + right for left, right in merges)])
    vocabulary = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in specials]
    )
    return tokenizer


def _wrap(tokenizer: Tokenizer, chat_template: str) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=END,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = chat_template
    return wrapped


def token_byte_lengths(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return how many bytes of text each id stands for; special tokens stand for none.

    Exact for byte-level vocabularies; SentencePiece's and WordPiece's marks are read as the space
    or the continuation they stand for.
    """
    special, byte_level = special_ids(tokenizer), is_byte_level(tokenizer)
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    lengths = [0] * (max(vocabulary.values()) + 1)
    for name, number in vocabulary.items():
        if number not in special:
            lengths[number] = len(piece_bytes(name, byte_level=byte_level))
    return lengths


def is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether each character of a tokenizer's pieces stands for a byte."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return "ByteLevel" in str(getattr(backend, "decoder", ""))


def piece_bytes(name: str, *, byte_level: bool) -> bytes:
    """Return the bytes of text that a piece of a vocabulary stands for, control tokens aside."""
    if byte_level and _BYTES.keys() >= set(name):
        return bytes(map(_BYTES.__getitem__, name))
    if re.fullmatch("<0x[0-9A-F]{2}>", name):
        return bytes.fromhex(name[3:5])
    return name.removeprefix("##").replace("▁", " ").encode()


def tokenize_documents(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], *, batch: int = 256
) -> Iterator[list[int]]:
    """Yield the ids of texts, without special tokens even where a text spells one out.

    Args:
        tokenizer: a fast tokenizer of transformers.
        texts: any number of them; they are taken in batches.
        batch: texts that are tokenised at once, on all cores.
    """
    waiting: list[str] = []
    for text in texts:
        waiting.append(text)
        if len(waiting) >= batch:
            yield from _tokenize(tokenizer, waiting)
            waiting = []
    if waiting:
        yield from _tokenize(tokenizer, waiting)


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)
    ids: list[list[int]] = encoded["input_ids"]
    special = special_ids(tokenizer) - {tokenizer.unk_token_id}
    for place, text in enumerate(texts):
        # A vocabulary may hold them as words of its own, as Unigram's do.
        if not special.isdisjoint(ids[place]):
            ids[place] = encode_ids(tokenizer, text, spelled(tokenizer, text))
    return ids


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the ids of control tokens, that of unknown text among them."""
    added = tokenizer.added_tokens_decoder.items()
    return {*tokenizer.all_special_ids, *(number for number, token in added if token.special)}
