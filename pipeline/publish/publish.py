"""Publishes a model of a finished stage: into a folder, or to the hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data.errors import ArtifactError
from pipeline.publish.card import Wishes, card
from pipeline.publish.figures import tables
from pipeline.publish.files import CARD, Files, files_of
from pipeline.publish.lineage import lineage
from pipeline.publish.subject import Subject
from pipeline.publish.usage import Use, use_of


@dataclass(frozen=True)
class Package:
    """A model that is ready to be published.

    Attributes:
        files: all of it, the card too.
        use: what it is.
        notes: what who publishes should know, a sentence each.
    """

    files: Files
    use: Use
    notes: tuple[str, ...]

    def lines(self, where: str) -> list[str]:
        """Return what to tell who published it, and where it is now."""
        count, size = len(self.files.kept) + len(self.files.texts), self.files.size / 1e6
        told = f"{where}: {self.use.words}, {count} files, {size:,.1f} MB"
        return [told, *(f"  {note}" for note in self.notes)]


def prepare(
    subject: Subject, wishes: Wishes, *, evaluations: Sequence[Path] = (), outdated: bool = False
) -> Package:
    """Return a model with its card.

    Args:
        subject: the model.
        wishes: what who publishes says of it.
        evaluations: folders of `rlhf eval` that judged it, too.
        outdated: whether it is meant though its stage no longer fits its recipe.

    Raises:
        ArtifactError: the stage is outdated, and that is not meant.
        UsageError: an evaluation is of another model, or nobody else has an adapter's base.
        ModelError: a small file of the model is damaged.
    """
    reasons, unknown = subject.standing()
    if reasons and not outdated:
        raise ArtifactError(
            f"stage {subject.stage.name} of {subject.stage.folder.parent} is outdated: "
            f"{reasons[0]}; run its recipe again, or give --outdated to publish it as it is"
        )
    ancestors = lineage(subject)
    use = use_of(subject, ancestors)
    ends, pad, end, odd = _asked(subject, use)
    files = files_of(subject, base=wishes.base, ends=ends, pad=pad)
    limits = ["Its recipe or its data were changed after it was made."] if reasons else []
    text = card(
        subject, wishes, ancestors=ancestors, use=use, tables=tables(subject, evaluations),
        files=files, end=end, notes=[*limits, *odd],
    )  # fmt: skip
    notes = [f"{each} is not known" for each in unknown]
    notes += [f"{CARD}: {note}" for note in odd] + [f"changed: {each}" for each in files.changes]
    return Package(replace(files, texts={**files.texts, CARD: text}), use, tuple(notes))


def _asked(subject: Subject, use: Use) -> tuple[list[int], int | None, str, list[str]]:
    """Return the ids that end answers, the padding, the text of an end, and what is odd of them."""
    if use.own_code or use.sort not in ("chat", "text", "seq2seq", "reward"):
        return [], None, "", []
    from reward.learned.encoding import Encoder
    from reward.network.loading import load_tokenizer, quiet_loading

    with quiet_loading():
        tokenizer = load_tokenizer(subject.whole)
    odd = []
    if use.sort in ("chat", "seq2seq", "reward") and not tokenizer.chat_template:
        odd.append("It has no chat template: prompts are plain text.")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        odd.append("Its padding is its end of sequence or none: mind this in training it further.")
    ends = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    end = ""
    if use.sort == "reward" and not use.pairs:
        prompt = [{"role": "user", "content": "a"}] if tokenizer.chat_template else "a"
        end = tokenizer.decode(Encoder(tokenizer, max_length=10**6).end_ids(prompt))  # type: ignore[arg-type]
    return ends, tokenizer.pad_token_id, end, odd
