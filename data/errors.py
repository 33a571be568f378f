"""The one tree of errors that a user can cause, each told in one sentence.

    RlhfError
    |- RecipeError          a recipe file, key, value or --set is wrong
    |  |- HandOverError     two stages do not fit each other
    |- SourceError          a data source can't be found or read
    |  |- BadRowsError      too many of its rows are malformed
    |- ModelError           a checkpoint can't be loaded or lacks what is asked of it
    |  |- ControlTokenError a text spells a control token that can't be kept as text
    |- ArtifactError        what a stage left is missing, damaged or of an older version
    |- RunLockedError       another run works in the same folder
    |- TrainingError        training can't go on (NaN, an invariant that fails)
    |  |- RewardError       a reward can't be had: a user's function or an endpoint fails
    |  |- RolloutError      the server that samples fails, or holds another model
    |- StorageError         the disk is full or refuses to be written
    |- StageFailedError     a stage ended with an error; names its log
    |- UsageError           a command line that makes no sense
    |- LabelError           the label store refuses
    |  |- NotYoursError     no such invite, task or label, or it is somebody else's
    |  |- LabelConflictError  it was labelled already, or given to somebody else meanwhile
    |  |- InvalidLabelError the label is not what the campaign asks
    |  |- StoreDownError    the label database is locked, full, damaged or not reached

The command line prints the sentence and exits with 2. Anything else that is raised is a bug of
ours and keeps its traceback. `Interrupted` is no error: a signal asked the run to save and stop.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RlhfError(ValueError):
    """A user's mistake or a condition of their machine, told in one sentence; several in one each.

    A sentence may quote what holds line breaks; `args` keeps the sentences apart.
    """

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class RecipeError(RlhfError):
    """A recipe file, one of its keys or values, or a `--set` is wrong."""


class HandOverError(RecipeError):
    """What one stage leaves does not fit what another needs."""


class SourceError(RlhfError):
    """A data source can't be found or read."""


class BadRowsError(SourceError):
    """More rows of a source are malformed than the recipe allows."""


class ModelError(RlhfError):
    """A checkpoint can't be loaded, or lacks what is asked of it."""


class ControlTokenError(ModelError):
    """A text spells a control token, and this tokenizer or template can't keep it as text."""


class ArtifactError(RlhfError):
    """What a stage left behind is missing, damaged, or from another version."""


class RunLockedError(RlhfError):
    """Another process works in the same run folder."""


class TrainingError(RlhfError):
    """Training can't go on: a loss is not finite, or an invariant does not hold."""


class RewardError(TrainingError):
    """A reward can't be had: a function of the user or an HTTP endpoint fails."""


class RolloutError(TrainingError):
    """The server that samples responses can't be reached, fails, or holds another model."""


class StorageError(RlhfError):
    """The disk is full, or the folder can't be written."""


class StageFailedError(RlhfError):
    """A stage ended with an error; the sentence names its log."""


class UsageError(RlhfError):
    """A command line that makes no sense."""


class LabelError(RlhfError):
    """The label store refuses what was asked."""


class NotYoursError(LabelError):
    """There is no such thing, or it belongs to somebody else; which of the two is not told."""


class LabelConflictError(LabelError):
    """The task was labelled already, or was given to somebody else meanwhile."""


class InvalidLabelError(LabelError):
    """The label is not what the campaign asks."""


class StoreDownError(LabelError):
    """The label database is locked, full, damaged, or not reached; it may be back in a moment."""


class Interrupted(Exception):
    """SIGINT or SIGTERM asked for a stop; the state has been saved."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the nearest known name, or "" when none is near."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{match[0]}'?" if match else ""


def one_line(text: str) -> str:
    """Return a text with an escape for each character that would break or move its line."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def in_words(error: BaseException, *, most: int = 400) -> str:
    """Return what a library's error says, on one line: of many, those that fit into `most`."""
    try:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    except Exception:  # an error of a user's code may not even tell itself
        lines = []
    text = " ".join(lines) or type(error).__name__
    return text if len(text) <= most else f"{text[: most - 4].rstrip()} ..."
