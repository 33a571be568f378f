"""What checks of several stages share: whether the first rows of their sources can be read."""

from __future__ import annotations

import glob
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import BadRowsError, HandOverError, SourceError
from data.storage import expand
from pipeline.contract.artifacts import find
from pipeline.contract.settings import SourceSettings, external_location, is_external
from pipeline.contract.sources import DEMONSTRATIONS, PROMPTS, RANKINGS, TEXTS, other_rows
from pipeline.contract.tool_settings import NO_TURNS

if TYPE_CHECKING:
    from data.records import Record
    from pipeline.contract.handover import HandOver
    from pipeline.contract.retrieval import ReadsPassages, RetrievalSettings
    from pipeline.contract.tool_settings import ToolsSettings

ROWS = 20
"""So many rows of a source are looked at."""
GUESSING = 0.7
"""Share of the loss of even guesses from which on a start is told of, as of the doctor's
`random_start`."""
_BAD_SHARE = 0.5
"""More malformed rows among so few mean another format; fewer may be the only ones."""


def require_shared_batch(hand: HandOver, batch_size: int) -> None:
    """Refuse rows of a step that processes can't share evenly.

    Raises:
        HandOverError: with both numbers.
    """
    if batch_size % hand.processes:
        raise HandOverError(
            f"stage {hand.name}: batch_size {batch_size} can't be shared by "
            f"{hand.processes} processes; make it a multiple"
        )


def require_readable(
    hand: HandOver,
    setting: str,
    sources: Sequence[SourceSettings],
    convert: Callable[[Record], object],
    wanted: str,
) -> None:
    """Read the first rows of sources on this machine as the stage will; refuse what does not fit.

    Data sets of the hub are left for the stage, since a check needs no network; so are files that
    are not there, which are refused elsewhere.

    Args:
        hand: of the stage.
        setting: where the sources stand.
        sources: what is read.
        convert: makes a record into what the stage wants; raises `TypeError` where it can't.
        wanted: rows that the stage takes, for the sentence.

    Raises:
        SourceError: a source can't be read, most of its first rows are malformed, a column that
            `columns` names is missing, or its rows are of another kind.
    """
    from data.sources.read import ReadReport, read
    from data.world import PARTS

    for place, named in enumerate(sources):
        source = hand.placed(named)
        if source is None or not _here(source):
            continue
        report = ReadReport()
        sooner = f"{source.world}_heldout"  # of the same kind, and made sooner
        where = f"stage {hand.name}: {setting}.{place}"
        kind = ""
        try:
            first_rows = replace(
                source.source(),
                world=sooner if sooner in PARTS else source.world,
                limit=min(ROWS, source.limit or ROWS),
                skip=0,
            )
            for record in read(first_rows, report=report):
                kind = type(record).__name__
                convert(record)
        except SourceError as error:
            if isinstance(error, BadRowsError) and report.bad <= _BAD_SHARE * report.rows:
                continue
            raise type(error)(f"{where}: {error}") from error
        except TypeError as error:
            raise other_rows(where, kind, wanted) from error


def _here(source: SourceSettings) -> bool:
    """Tell whether a source can be read here; that files are there is looked at before."""
    if source.hub is not None:
        return Path(source.hub).is_dir()
    paths = [source.path] if isinstance(source.path, str) else source.path or ()
    return all(glob.has_magic(path) or expand(path).exists() for path in paths)


def require_rankings(hand: HandOver, setting: str, sources: Sequence[SourceSettings]) -> None:
    """Refuse sources whose first rows are no rankings, see `require_readable`."""
    from data.records import to_ranking

    require_readable(hand, setting, sources, to_ranking, RANKINGS)


def require_prompts(
    hand: HandOver,
    sources: Sequence[SourceSettings],
    *,
    openings: bool = False,
    setting: str = "prompts",
) -> None:
    """Refuse prompts whose first rows ask nothing; of `openings` a document is a prompt too."""
    from data.records import Document, to_prompt

    def convert(record: Record) -> None:
        if not (openings and isinstance(record, Document)):
            to_prompt(record)

    require_readable(hand, setting, sources, convert, PROMPTS)


def require_texts(hand: HandOver, setting: str, sources: Sequence[SourceSettings]) -> None:
    """Refuse sources whose first rows can't be read, see `require_readable`."""
    from data.records import to_text

    require_readable(hand, setting, sources, to_text, TEXTS)


def require_reference(
    hand: HandOver, policy: str, reference: str | None, *, encoder_decoder: bool = False
) -> None:
    """Refuse a reference that is no such model as the policy, or reads other tokens."""
    if reference is None:
        return
    why = "a reference is one as the policy is"
    hand.require_writer(reference, "reference", why, encoder_decoder=encoder_decoder)
    hand.require_same_tokenizer(policy, reference)


def start_warnings(policy: str, hand: HandOver) -> list[str]:
    """Return a line where a policy's start is little better than guessing, by its stage's figures.

    That of a start made elsewhere is told by the doctor, from its first answers.
    """
    made = find(expand(external_location(policy))) if is_external(policy) else hand.finished(policy)
    facts = hand.facts(policy)
    if made is None or made.kind not in ("pretrain", "sft") or facts is None:
        return []
    loss, tokens = made.metrics.get("eval/loss"), facts.tokenizer_size or facts.vocab_size
    if loss is None or not tokens or loss < GUESSING * math.log(tokens):
        return []
    return [
        f"warning: {policy}: its held-out loss is {loss:.2f} nats a token, "
        f"{loss / math.log(tokens):.0%} of that of guessing evenly among {tokens:,} tokens; it "
        "answers with noise, from which a reward can choose little: train it longer, or name "
        "another policy"
    ]


def require_caller(hand: HandOver, reference: str, tools: ToolsSettings | None) -> None:
    """Refuse an encoder-decoder where calls are turns of a chat.

    Raises:
        HandOverError: naming it.
    """
    if tools is not None and tools.form == "template" and hand.encoder_decoder(reference):
        raise HandOverError(f"stage {hand.name}: {reference} {NO_TURNS}")


def require_room(hand: HandOver, reference: str, reads: ReadsPassages, new: int) -> None:
    """Refuse a checkpoint whose context holds no prompt behind its passages with a response."""
    what = "retrieve.passage_tokens, " if reads.retrieve else ""
    hand.require_fits_context(
        reference,
        reads.passage_tokens + 1 + new,
        f"{what}a prompt of one token and max_new_tokens",
    )


def require_corpus(hand: HandOver, retrieve: RetrievalSettings | None) -> None:
    """Refuse corpora whose first rows can't be read, and retrieval without its packages."""
    if retrieve is None:
        return
    from data.extras import RETRIEVAL, require_packages

    require_packages(*RETRIEVAL, extra="retrieval", what="retrieval")
    require_texts(hand, "retrieve.corpus", retrieve.corpus)


def require_label_store(hand: HandOver, database: str | None) -> None:
    """Refuse to ask people where what keeps their labels is not installed, before hours of work."""
    from data.extras import FIGURES, STORE, require_packages

    if hand.finished(hand.name) is not None:
        return
    require_packages(*STORE, *FIGURES)
    if (database or "").startswith("postgres"):
        require_packages("psycopg", extra="postgres", what="a PostgreSQL database")


def require_demonstrations(hand: HandOver, setting: str, sources: Sequence[SourceSettings]) -> None:
    """Refuse sources whose first rows hold no answer to imitate, see `require_readable`."""
    from data.records import to_demonstration

    require_readable(hand, setting, sources, to_demonstration, DEMONSTRATIONS)
