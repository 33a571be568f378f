"""Stage `tokenizer`: learns a byte-level BPE from text, or adopts the tokenizer of a model.

Every text round-trips and no unknown token exists, since all 256 bytes are tokens. Departs from
GPT-2's: merges are learned on words without the space before them (see `data.text.tokenizer`), so
that a compound of two known words falls into those two. What that costs is told: bytes per token,
and those of GPT-2's way, learned on the same text with as many tokens. Special tokens that the text
spells are kept out of what is learned.

`objective` adds what other pretraining than causal needs: a mask token or sentinels, and what
stands around a text (`data.text.objectives.special_tokens`). But for that, and a padding token or a
chat template that the recipe gives, an adopted tokenizer is saved as it is: one whose padding token
is its end-of-sequence token would keep a model from learning to end.

Leaves `tokenizer/`.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

from data.errors import HandOverError, ModelError, RecipeError
from data.storage import expand
from pipeline.contract.kind import StageKind
from pipeline.contract.sources import TEXTS
from pipeline.stages.checks import require_texts
from pipeline.stages.tokenizer.settings import LINES, MIN_FREQUENCY, TokenizerSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.contract.context import StageContext
    from pipeline.contract.handover import HandOver

SAMPLED_CHARACTERS = 2_000_000
"""Characters of the corpus on which bytes per token is measured."""


def check(settings: TokenizerSettings, hand: HandOver) -> None:
    """Refuse a template that is not there, and an adopted tokenizer that can't be used.

    Raises:
        RecipeError: the template's file is missing.
        HandOverError: pad equals end-of-sequence and the recipe gives no `pad_token`.
    """
    given = settings.chat_template
    if given not in (None, LINES) and not expand(str(given)).is_file():
        raise RecipeError(
            f"stage {hand.name}: chat_template: {settings.chat_template}: no such file; give the "
            "path of a Jinja template or `lines`, or leave it out for ours"
        )
    require_texts(hand, "train", settings.train)
    if settings.adopt is None or settings.pad_token is not None:
        return
    facts = hand.facts(settings.adopt)
    if facts is not None and facts.pad_token and facts.pad_token == facts.eos_token:
        raise HandOverError(
            f"stage {hand.name}: {settings.adopt} pads with {facts.pad_token!r}, its "
            "end-of-sequence token, so that a model would never learn to end; set `pad_token`, "
            'such as "<|pad|>"'
        )


def run(context: StageContext[TokenizerSettings]) -> dict[str, float | int | str]:
    """Learn or adopt the tokenizer, save it, and measure it on the text."""
    from data.storage import storage_errors
    from data.text.control_tokens import SETTING
    from data.text.objectives.special_tokens import equip
    from data.text.tokenizer import first_characters

    settings = context.settings
    sample: list[str] = []
    if settings.adopt is None:
        tokenizer = _learn(context, sample)
    else:
        tokenizer = _adopt(context)
        sample.extend(first_characters(_texts(context), SAMPLED_CHARACTERS))
    equip(tokenizer, settings.objective)
    # Text is what a tokenizer that says nothing means; one that is adopted stays as it came.
    if settings.typed_control_tokens != "text" or SETTING in tokenizer.init_kwargs:
        tokenizer.init_kwargs[SETTING] = settings.typed_control_tokens
    folder = context.folder / "tokenizer"
    if context.main_process:
        with storage_errors(folder):
            tokenizer.save_pretrained(folder)
    metrics: dict[str, float | int | str] = {"vocab_size": len(tokenizer)}
    if sample:
        ids = tokenizer(sample, add_special_tokens=False, verbose=False)["input_ids"]
        size = sum(len(text.encode("utf-8", "surrogatepass")) for text in sample)
        metrics["bytes_per_token"] = size / max(1, sum(map(len, ids)))
        if settings.adopt is None:
            beside = size / max(1, _gpt2_tokens(context, tokenizer, sample))
            metrics["gpt2_bytes_per_token"] = beside
            context.say(
                f"{metrics['bytes_per_token']:.3f} bytes a token; by GPT-2's byte-level BPE of the "
                f"same size {beside:.3f}"
            )
    context.metrics.log(0, metrics)
    return metrics


def _learn(context: StageContext[TokenizerSettings], sample: list[str]) -> Any:
    from data.text.chat import DEFAULT_TEMPLATE
    from data.text.objectives.special_tokens import special_tokens
    from data.text.tokenizer import train_tokenizer

    settings = context.settings
    template = _template(settings)
    with context.progress(None, "learning merges", unit="texts") as bar:

        def texts() -> Iterator[str]:
            left = SAMPLED_CHARACTERS
            for number, text in enumerate(_texts(context), start=1):
                if left > 0:
                    sample.append(text[:left])
                    left -= len(text)
                bar.advance(1)
                if number % 1000 == 0:
                    context.stop_if_asked()
                yield text

        tokenizer = train_tokenizer(
            texts(),
            vocabulary_size=settings.vocab_size,
            special_tokens=[*special_tokens(settings.objective), *settings.special_tokens],
            chat_template=DEFAULT_TEMPLATE if template is None else template,
            min_frequency=MIN_FREQUENCY,
        )
    if len(tokenizer) < settings.vocab_size:
        context.say(
            f"{len(tokenizer)} tokens instead of {settings.vocab_size}: the text holds no more "
            f"pairs that occur {MIN_FREQUENCY} times"
        )
    return tokenizer


def _gpt2_tokens(
    context: StageContext[TokenizerSettings], tokenizer: Any, sample: list[str]
) -> int:
    """Return the tokens of the sample by GPT-2's way; the text is read once more, unreported."""
    from data.records import to_text
    from data.sources.read import read
    from data.text.tokenizer import gpt2_tokens

    placed = map(context.hand.placed, context.settings.train)
    sources = (source.source() for source in placed if source)
    with context.progress(None, "learning GPT-2's merges beside", unit="texts") as bar:

        def texts() -> Iterator[str]:
            for record in chain.from_iterable(map(read, sources)):
                bar.advance(1)
                yield to_text(record)

        return gpt2_tokens(
            texts(),
            sample,
            vocabulary_size=len(tokenizer),
            special_tokens=list(tokenizer.added_tokens_encoder),
            min_frequency=MIN_FREQUENCY,
        )


def _adopt(context: StageContext[TokenizerSettings]) -> Any:
    from pipeline.models.load import load_tokenizer

    settings = context.settings
    source = context.input("adopt")
    tokenizer = load_tokenizer(source, trust_remote_code=settings.trust_remote_code)
    before = len(tokenizer)
    if settings.pad_token is not None:
        tokenizer.add_special_tokens({"pad_token": settings.pad_token})
    if settings.special_tokens:
        tokenizer.add_special_tokens(
            {"additional_special_tokens": list(settings.special_tokens)},
            replace_additional_special_tokens=False,
        )
    template = _template(settings)
    if template is not None:
        tokenizer.chat_template = template
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise ModelError(
            f"stage {context.name}: {settings.adopt} pads with {tokenizer.pad_token!r}, its "
            "end-of-sequence token, so that a model would never learn to end; set `pad_token`, "
            'such as "<|pad|>"'
        )
    if len(tokenizer) > before:
        context.say(f"{len(tokenizer) - before} tokens added to the {before} of {settings.adopt}")
    return tokenizer


def _template(settings: TokenizerSettings) -> str | None:
    from data.text.chat import LINES_TEMPLATE

    if settings.chat_template is None:
        return None
    if settings.chat_template == LINES:
        return LINES_TEMPLATE
    try:
        return expand(settings.chat_template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"chat_template: {settings.chat_template} can't be read ({error}); give a text file"
        ) from error


def _texts(context: StageContext[TokenizerSettings]) -> Iterator[str]:
    from data.records import to_text

    return context.read("train", context.settings.train, to_text, wanted=TEXTS)


KIND = StageKind(
    name="tokenizer",
    settings=TokenizerSettings,
    run=run,
    check=check,
    provides=frozenset({"tokenizer"}),
    main_metric="vocab_size",
    version=1,
    seeded=False,
    trains=False,
)
