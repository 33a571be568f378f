"""The stages that a user's data allow, with their settings and why these are so."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from data.records import to_text
from pipeline.recipe.draft.lengths import Lengths, beyond, count_texts, limit, measure, together
from pipeline.recipe.draft.material import Material
from pipeline.recipe.draft.model import Start
from pipeline.recipe.draft.numbers import episodes, learning_rate, power_of_two, rows_batch
from pipeline.recipe.draft.shares import held, places, prompt_share, sides, text_share
from pipeline.recipe.draft.text import Because, Stage

PASS_TOKENS = 16_384
"""Tokens of one forward pass; bounds the memory."""
SMALL_ROWS = 10_000
"""Of fewer demonstrations SFT makes three passes, and keeps the best."""
SMALL_TEXT = 10_000_000
"""Tokens up to which text is read four times, and a model from scratch is the quickstart's."""
PREFIX = 16
_SIZES = ((SMALL_TEXT, 192, 4), (1_000_000_000, 384, 6), (math.inf, 768, 12))
"""Width and layers of a model from scratch, by the tokens of its text."""
_EVALUATED = 200


@dataclass(frozen=True)
class Drafting:
    """What a recipe is made of.

    Attributes:
        start: the model.
        materials: the data.
    """

    start: Start
    materials: Sequence[Material]

    def of(self, *kinds: str) -> list[Material]:
        """Return the sources of some kinds."""
        return [one for one in self.materials if one.kind in kinds]

    @property
    def texts(self) -> list[Material]:
        """Texts to pretrain on."""
        return self.of("texts")

    @property
    def ranked(self) -> list[Material]:
        """What a reward model learns."""
        return self.of("pairs", "rankings")

    @property
    def asking(self) -> list[Material]:
        """All that asks something."""
        return self.of("sft", "pairs", "rankings", "prompts")

    @cached_property
    def asked(self) -> Mapping[Any, float]:
        """Each thing that is asked, with its place in the split."""
        return places(self.asking)

    @property
    def shown(self) -> list[Material]:
        """What SFT imitates: demonstrations, else what was ranked best."""
        return self.of("sft") or self.ranked

    @property
    def chats(self) -> bool:
        """Whether rows go through a chat template."""
        return any(not one.plain or one.source.chat for one in self.asking)

    @property
    def scratch(self) -> bool:
        """Whether the model is trained from nothing."""
        return not self.start.reference

    @cached_property
    def share(self) -> float:
        """Share of the prompts that is held out."""
        return prompt_share([group for group in (self.shown, self.ranked) if group])

    @cached_property
    def text_share(self) -> float | None:
        """Share of the texts that is held out."""
        return text_share(self.texts)

    @cached_property
    def lengths(self) -> Mapping[str, Lengths]:
        """Tokens of demonstrations, of what was ranked, and of prompts."""
        counted = [(one, measure(self.start.tokenizer, one.records)) for one in self.asking]
        groups = {"sft": self.shown, "ranked": self.ranked, "asking": self.asking}
        return {
            name: together(lengths for one, lengths in counted if one in group)
            for name, group in groups.items()
        }

    @cached_property
    def text_tokens(self) -> int:
        """Tokens of all texts, about."""
        tokens = 0.0
        for one in self.texts:
            mean = count_texts(self.start.tokenizer, map(to_text, one.records))
            tokens += one.rows * mean
        return round(tokens)

    @cached_property
    def size(self) -> tuple[int, int]:
        """Width and layers of a model from scratch."""
        return next((width, layers) for most, width, layers in _SIZES if self.text_tokens <= most)

    @property
    def most(self) -> float:
        """Tokens that the model reads."""
        return self.start.context or math.inf

    @cached_property
    def row(self) -> int:
        """Longest demonstration."""
        return limit(self.lengths["sft"].rows, 0.99, multiple=32, most=self.most)

    @cached_property
    def ranked_row(self) -> int:
        """Longest prompt with an answer that was ranked."""
        return limit(self.lengths["ranked"].rows, 0.99, multiple=32, most=self.most)

    @cached_property
    def answer(self) -> int:
        """Longest answer that is sampled."""
        half = self.most / 2
        return limit(self.lengths["sft"].answers, 0.95, multiple=16, most=half)

    @cached_property
    def prompt(self) -> int:
        """Longest prompt that is answered."""
        room = self.most - self.answer
        return limit(self.lengths["asking"].prompts, 0.99, multiple=32, most=room)

    def rate(self, stage: str) -> Because:
        """Return the learning rate of a stage."""
        width = self.size[0] if self.scratch else self.start.width
        return learning_rate(stage, width=width, family=self.start.family, scratch=self.scratch)

    @property
    def vocabulary(self) -> bool:
        """Whether there is a tokenizer stage."""
        return self.scratch or self.start.pad_token is not None or self.start.lines

    @property
    def first(self) -> str:
        """What SFT starts from."""
        return "base" if self.texts else self.start.reference


def stages_of(drafting: Drafting) -> dict[str, Stage]:
    """Return the stages by their names, in the order in which they run."""
    made = {}
    for stage in (_tokenizer, _base, _sft, _rankings, _reward, _ppo, _evaluate):
        found = stage(drafting)
        if found is not None:
            made[stage.__name__.removeprefix("_")] = found
    return made


def _tokenizer(d: Drafting) -> Stage | None:
    if not d.vocabulary:
        return None
    if d.scratch:
        sources = sides(d.texts, "train", d.text_share)
        sources += sides(d.of("sft"), "train", d.share) if d.of("sft") else []
        size = Because(len(d.start.tokenizer), "As many as a sample of this text makes use of.")
        return Stage("", {"kind": "tokenizer", "train": sources, "vocab_size": size})
    settings: dict[str, Any] = {"kind": "tokenizer", "adopt": d.start.reference}
    if d.start.pad_token is not None:
        own = "pads with its end-of-sequence token" if d.start.ends_with else "has no padding token"
        why = f"The model {own}; trained so, it would never learn to end."
        settings["pad_token"] = Because(d.start.pad_token, why)
    if d.start.lines:
        why = "The model has no chat template: turns are lines of plain words."
        settings["chat_template"] = Because("lines", why)
    return Stage("The model's own tokenizer, changed in what it lacks.", settings)


def _base(d: Drafting) -> Stage | None:
    if not d.texts:
        return None
    settings: dict[str, Any] = {"kind": "pretrain"}
    if d.vocabulary:
        settings["tokenizer"] = "tokenizer"
    settings |= {"train": sides(d.texts, "train", d.text_share)}
    if d.text_share is not None:
        settings["heldout"] = sides(d.texts, "heldout", d.text_share)
    settings |= _from_scratch(d) if d.scratch else _going_on(d)
    small = d.text_tokens <= SMALL_TEXT and d.scratch
    if small:
        why = "Up to four passes are nearly as good as new text (Muennighoff et al. 2023)."
        settings["epochs"] = Because(4, why)
    chunks = d.text_tokens * (4 if small else 1) / _chunk(d)
    batch = power_of_two(chunks / 200, least=2, most=32)
    settings["batch_size"] = Because(
        batch, f"Chunks of a step: about {d.text_tokens:,} tokens leave few steps to larger ones."
    ) if batch < 32 else batch  # fmt: skip
    why = (
        "A model from nothing." if d.scratch else "The model reads on, before it learns to answer."
    )
    return Stage(why, settings)


def _chunk(d: Drafting) -> int:
    longest = _positions(d) if d.scratch else d.most
    return int(min(longest, 256 if d.scratch else 1024, max(32, d.text_tokens // 50)))


def _positions(d: Drafting) -> int:
    needed = [256]
    if d.asking:
        needed = [d.row, d.prompt + d.answer, *([d.ranked_row] if d.ranked else [])]
    return math.ceil(max(needed) / 64) * 64


def _from_scratch(d: Drafting) -> dict[str, Any]:
    width, layers = d.size
    tokens = f"{d.text_tokens:,} tokens of text, about"
    chunk = _chunk(d)
    made: dict[str, Any] = {
        "hidden_size": Because(width, f"By the {tokens}."),
        "layers": layers,
        "heads": max(4, width // 64),
        "initializer_range": Because(
            0.06, "Small models learn sooner from larger initial weights, as the quickstart's."
        ),
        "context_length": Because(chunk, "Short chunks give more steps a token."),
        "positions": Because(_positions(d), "What it is to read later."),
        "learning_rate": d.rate("pretrain"),
    }
    if width > 192:
        del made["initializer_range"]
    return made


def _going_on(d: Drafting) -> dict[str, Any]:
    return {
        "model": d.start.reference,
        "context_length": _chunk(d),
        "learning_rate": d.rate("sft"),
    }


def _sft(d: Drafting) -> Stage | None:
    if not d.shown:
        return None
    rows = round(sum(one.rows for one in d.shown) * (1 - d.share))
    settings: dict[str, Any] = {"kind": "sft", "model": d.first}
    if d.vocabulary and not d.texts:
        settings["tokenizer"] = "tokenizer"
    settings |= {
        "train": sides(d.shown, "train", d.share),
        "heldout": sides(d.shown, "heldout", d.share),
        **_row_limit(d.row, d.lengths["sft"].rows, d.most, share="max_too_long_share"),
        "too_long": Because("drop", "Cut, they would teach answers that do not end."),
    }
    if rows < SMALL_ROWS:
        why = f"Of {rows:,} demonstrations; the pass with the lowest held-out loss is kept."
        settings |= {"epochs": Because(3, why), "candidates": 3}
    settings["batch_size"] = batch = rows_batch(rows, usual=32, source="InstructGPT: 32")
    settings |= _micro_batch(d.row, most=batch.value)
    settings["learning_rate"] = d.rate("sft")
    why = "The demonstrations." if d.of("sft") else (
        "No demonstrations were named, so it imitates the answers that were ranked best."
    )  # fmt: skip
    return Stage(why, settings)


def _row_limit(most: int, rows: Sequence[int], context: float, *, share: str) -> dict[str, Any]:
    """Return the limit of a row, and the share that may be longer where the default is less."""
    over = beyond(rows, most)
    where = ", all the model reads" if most == context else ""
    why = f"Tokens{where}; {100 * over:.1f} % of a sample of rows are longer."
    made: dict[str, Any] = {"max_length": Because(most, why)}
    return made | _allowed(share, over, "They are that many here.")


def _allowed(setting: str, over: float, why: str) -> dict[str, Any]:
    """Return the setting of a share that may be lost, where more are than most defaults allow."""
    return {setting: Because(round(min(1.0, 1.5 * over + 0.02), 2), why)} if over > 0.03 else {}


def _micro_batch(tokens: int, *, most: int) -> dict[str, Any]:
    """Return the rows of a forward pass, where they are fewer than those of a step."""
    micro = power_of_two(PASS_TOKENS / tokens, least=1, most=most)
    why = "For the memory; it changes no result."
    return {"micro_batch_size": Because(micro, why)} if micro < most else {}


def _rankings(d: Drafting) -> Stage | None:
    if not d.ranked:
        return None
    settings = {
        "kind": "rankings",
        "labeler": "file",
        "rankings": sides(d.ranked, "train", d.share),
    }
    return Stage("The judgements, as ranks.", settings)


def _reward(d: Drafting) -> Stage | None:
    if not d.ranked:
        return None
    asked = places(d.ranked)
    count = len(asked) - held(d.share, asked)
    settings: dict[str, Any] = {
        "kind": "reward",
        "model": "sft",
        "rankings": "rankings",
        "heldout": sides(d.ranked, "heldout", d.share),
    }
    if d.of("sft"):
        settings["demonstrations"] = sides(d.of("sft"), "heldout", d.share)
    settings |= _row_limit(
        d.ranked_row, d.lengths["ranked"].rows, d.most, share="max_truncated_share"
    )
    settings["prompts_per_step"] = rows_batch(count, usual=64, source="InstructGPT: 64")
    settings["learning_rate"] = d.rate("reward")
    return Stage(
        "Its last line tells how it stands to always taking the longer answer; where it is no "
        "better, PPO is worth no time.",
        settings,
    )


def _ppo(d: Drafting) -> Stage | None:
    if not d.ranked:
        return None
    over = beyond(d.lengths["asking"].prompts, d.prompt)
    count = round((len(d.asked) - held(d.share, d.asked)) * (1 - over))
    many = "" if all(one.whole for one in d.asking) else "at least "
    total, batch = episodes(count, many)
    longer = beyond(d.lengths["sft"].answers, d.answer)
    settings: dict[str, Any] = {
        "kind": "ppo",
        "policy": "sft",
        "reward": "reward",
        "prompts": sides(d.asking, "train", d.share),
        "max_prompt_tokens": Because(
            d.prompt, f"{100 * over:.1f} % of a sample of prompts are longer and left out."
        ),
        "max_new_tokens": Because(
            d.answer,
            f"{100 * longer:.1f} % of a sample of answers are longer. What does not end by then "
            "scores -1 at most.",
        ),
        "episodes": total,
        "batch_size": batch,
    }
    if over > 0.4:
        most = Because(round(min(1.0, over + 0.1), 2), "They are that many here.")
        settings["max_dropped_share"] = most
    settings |= _micro_batch(d.prompt + d.answer, most=32)
    settings["learning_rate"] = d.rate("ppo")
    return Stage("All that is not set is as in N+ (Huang et al. 2024).", settings)


def _evaluate(d: Drafting) -> Stage | None:
    if not d.asking:
        return _evaluate_texts(d)
    names = ["sft", *(["ppo"] if d.ranked else [])]
    settings: dict[str, Any] = {
        "kind": "evaluate",
        "checkpoints": {"base": d.first, **{name: name for name in names}},
    }
    if d.chats and (d.scratch or d.start.lines):
        settings["plain"] = Because(["base"], "It has never seen the chat template.")
    settings |= {"reference": "sft", "prompts": sides(d.asking, "heldout", d.share)}
    if held(d.share, d.asked) > _EVALUATED:
        settings["limit"] = _EVALUATED
    over = beyond(d.lengths["asking"].prompts, int(min(d.most - d.answer, 10**9)))
    why = "Prompts that leave no room for an answer."
    settings |= _allowed("max_too_long_share", over, why)
    if d.text_share is not None:
        settings["perplexity"] = sides(d.texts, "heldout", d.text_share)
    if d.ranked:
        settings["reward"] = "reward"
    settings["max_new_tokens"] = Because(d.answer, "95 % of a sample of answers are no longer.")
    settings["temperature"] = Because(0.7, "As PPO has it.")
    return Stage("Judged on prompts that no stage has learned from.", settings)


def _evaluate_texts(d: Drafting) -> Stage | None:
    if d.text_share is None:
        return None
    texts = sides(d.texts, "heldout", d.text_share)
    settings = {
        "kind": "evaluate",
        "checkpoints": {"base": "base"},
        "prompts": texts,
        "prefix_tokens": Because(PREFIX, "What it goes on from: the beginnings of texts."),
        "limit": _EVALUATED,
        "perplexity": texts,
        "max_new_tokens": int(min(64, d.most - PREFIX)),
    }
    return Stage("Judged on texts that it has not read.", settings)


def notes(d: Drafting) -> Iterator[str]:
    """Yield lines on what was decided that a user may want otherwise."""
    if d.asking:
        out = held(d.share, d.asked)
        yield f"held out: {out:,} of {len(d.asked):,} prompts, the same in all stages"
    if d.texts:
        part = "none, they are too few" if d.text_share is None else f"{d.text_share:.0%} of them"
        yield f"texts: about {d.text_tokens:,} tokens; held out: {part}"
    if d.shown:
        over = beyond(d.lengths["sft"].rows, d.row)
        yield f"sft: rows up to {d.row:,} tokens; {over:.1%} of a sample are longer and left out"
    if d.ranked:
        over = beyond(d.lengths["ranked"].rows, d.ranked_row)
        yield (
            f"reward: up to {d.ranked_row:,} tokens; {over:.1%} of a sample are longer and cut on "
            "the left"
        )
        over = beyond(d.lengths["asking"].prompts, d.prompt)
        yield (
            f"ppo: prompts up to {d.prompt:,} tokens ({over:.1%} of a sample are longer and left "
            f"out), answers up to {d.answer:,}"
        )
    elif d.shown:
        yield (
            "no pairs or rankings: the recipe ends with sft; name --pairs or --rankings for a "
            "reward model and PPO, or have people rank (a rankings stage of labeler: people)"
        )
