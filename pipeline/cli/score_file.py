"""Scores a file of responses with a reward model or any other reward: the body of `rlhf score`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from data.errors import RecipeError, SourceError, UsageError
from data.plain_yaml import parse
from data.storage import expand, require_file_place, storage_errors, write_atomically
from pipeline.cli.score_rows import ScoreRow, read_rows
from pipeline.contract.addresses import shown_value
from pipeline.contract.artifacts import require_writable_place
from pipeline.contract.handover import local_checkpoint
from reward.quality.pairs import ScoredRanking

if TYPE_CHECKING:
    from data.records import Prompt
    from reward.scorer import Scorer

CHUNK = 2048
"""Rows read, scored and written at a time; sorting by length works within them."""


@dataclass
class ScoreReport:
    """What scoring a file came to.

    Attributes:
        rows: lines of the file.
        texts: responses scored.
        truncated: texts that were longer than the reward model takes.
        mean: mean score.
        ranked: those that annotators ranked, with their scores.
        unjudged: rows with ranks that are no rankings, by the reason.
    """

    rows: int = 0
    texts: int = 0
    truncated: int = 0
    total: float = field(default=0.0, repr=False)
    ranked: list[ScoredRanking] = field(default_factory=list, repr=False)
    unjudged: Counter[str] = field(default_factory=Counter)

    @property
    def mean(self) -> float:
        """Mean score over all responses."""
        return self.total / self.texts if self.texts else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the counts."""
        counts = {"rows": self.rows, "texts": self.texts, "truncated": self.truncated}
        return {**counts, "mean_score": self.mean, "unjudged": dict(self.unjudged)}

    def quality(self) -> dict[str, Any] | None:
        """Return how well the scores agree with annotators; None where no two texts are ranked."""
        from reward.quality.judging import judge_rankings, with_bag_of_words

        found = judge_rankings(with_bag_of_words(self.ranked)) if self.ranked else None
        return found if found and found["n_pairs"] else None


def score_file(
    model: str | Path,
    source: str | Path,
    output: str | Path,
    *,
    batch_size: int = 64,
    limit: int | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    options: Mapping[str, Any] | None = None,
    columns: Mapping[str, str] | None = None,
    advance: Callable[[int], None] | None = None,
) -> ScoreReport:
    """Score every row of a file and write the rows with their scores.

    A row has `prompt` (a text, or a list of messages) and either `response` (or `completion`),
    which gets `score`, or `completions`, which get `scores`. `ended` (false, of completions a list)
    says what was cut off. A row that ranks its completions, or has `chosen` and `rejected` (which
    get `scores` in this order), is read as a reward stage reads it, and judged. All other keys are
    kept. The output appears under its name only when it is whole.

    Args:
        model: reward model (a folder, a stage's folder, or a hub id), `rule:NAME`,
            `function:NAME` of a loaded plugin, or the http(s) address of a server.
        source: JSONL file, or JSON, CSV, Parquet or Arrow by its suffix, packed or not.
        output: JSONL file to write; may not be the source.
        batch_size: texts a forward pass.
        limit: at most so many rows.
        device: where to compute; an accelerator when there is one.
        trust_remote_code: run code that the checkpoint carries.
        options: of a rule, function or server.
        columns: our name of a column -> its name, dotted path or template in the file.
        advance: called with the number of texts scored since the last call.

    Raises:
        SourceError: the file is not there, or a row can't be scored; names file and line.
        UsageError: output and source are the same file.
        ModelError: the model is no trained reward model.
        RecipeError: there is no such rule or function, or it does not take the options.
        RewardError: a function or server fails.
    """
    path, target = expand(source), expand(output)
    if not path.is_file():
        raise SourceError(f"{source}: no such file; give a JSONL file of prompts and responses")
    if target.exists() and target.samefile(path):
        raise UsageError(f"{output} is the file to score; write the scores to another one")
    if target.is_dir():
        raise UsageError(f"{output} is a folder; name the file to write the scores to")
    require_writable_place(target.parent)
    require_file_place(target)
    scorer = _computed(str(model), dict(options or {}), batch_size) or _learned(
        model, device=device, batch_size=batch_size, trust_remote_code=trust_remote_code
    )
    rows = islice(read_rows(path, columns or {}), limit)
    report = _write_scores(scorer, rows, source, target, advance=advance)
    report.truncated = getattr(getattr(scorer, "encoder", None), "truncated", 0)
    return report


def _write_scores(
    scorer: Scorer,
    rows: Iterator[ScoreRow],
    source: str | Path,
    target: Path,
    *,
    advance: Callable[[int], None] | None,
) -> ScoreReport:
    """Write a file's rows with their scores; the target is there when it is whole."""
    report = ScoreReport()

    def lines() -> Iterator[str]:
        while chunk := list(islice(rows, CHUNK)):
            yield from _score_chunk(scorer, chunk, report, advance)
        if report.rows == 0:
            raise SourceError(f"{source} holds no rows; nothing to score")

    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, lines())
    return report


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """Return the options that `--option a=b` gives, their values read as YAML.

    Raises:
        UsageError: one is not written so.
    """
    options = {}
    for text in texts:
        name, value = _halves(text, "--option", "a=b", empty=True)
        try:
            options[name], _ = parse(value, lambda _: "--option")
        except RecipeError:
            options[name] = value  # a regular expression need not be YAML
    return options


def parse_columns(texts: Sequence[str]) -> dict[str, str]:
    """Return the columns that `--column ours=theirs` names.

    Raises:
        UsageError: one is not written so.
    """
    return dict(_halves(text, "--column", "ours=theirs") for text in texts)


def _halves(text: str, option: str, form: str, *, empty: bool = False) -> tuple[str, str]:
    """Return what stands before and after the first `=`; nothing may stand after it if `empty`."""
    before, equals, after = text.partition("=")
    if not (before and equals and (after or empty)):
        raise UsageError(f"{option} {text}: write it as {form}")
    return before, after


def _computed(name: str, options: dict[str, Any], batch_size: int) -> Scorer | None:
    """Return the rule, function or server that a text names; None for a reward model."""
    origin, _, rest = name.partition(":")
    if origin == "rule":
        from reward.computed.rules import rule

        return rule(rest, **options)
    if origin == "function":
        from reward.functions import function

        return function(rest, **options)
    if rest.startswith("//"):
        return _server(name, {"batch_size": batch_size, **options})
    if options:
        raise UsageError(f"{name} is a reward model, which takes no options")
    return None


def _learned(model: str | Path, **loading: Any) -> Scorer:
    from reward.learned.model import RewardModel

    return RewardModel.load(local_checkpoint(str(model)) or model, **loading)


def _server(url: str, options: dict[str, Any]) -> Scorer | None:
    """Return what asks a server, held to the same as one of a recipe."""
    from pipeline.stages.reward_terms import RewardTerm, computed

    stray = options.keys() - {"timeout", "retries", "batch_size"}
    if stray:
        raise UsageError(f"--option {min(stray)}: a server takes the options timeout and retries")
    try:
        return computed(RewardTerm(**{**options, "url": url}))
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        name = ".".join(map(str, wrong["loc"]))
        raise UsageError(
            f"the reward server's {name} {shown_value(wrong['input'])}: "
            f"{wrong['msg'].removeprefix('Value error, ')}; a server has a url, and the options "
            "timeout and retries"
        ) from None


def _score_chunk(
    scorer: Scorer,
    chunk: Sequence[ScoreRow],
    report: ScoreReport,
    advance: Callable[[int], None] | None,
) -> Iterator[str]:
    """Score rows and yield them as lines."""
    prompts = [row.prompt for row in chunk for _ in row.responses]
    responses = [text for row in chunk for text in row.responses]
    ended = None
    if any(row.ended is not None for row in chunk):
        ended = [one for row in chunk for one in row.ended or [True] * len(row.responses)]
    scores = _scores(scorer, chunk, prompts, responses, ended, advance)
    left = iter(scores)
    for row in chunk:
        mine = [next(left) for _ in row.responses]
        several = row.ranking is not None or "completions" in row.content
        key, value = ("scores", mine) if several else ("score", mine[0])
        yield json.dumps({**row.content, key: value}, ensure_ascii=False) + "\n"
        if row.ranking is not None:
            report.ranked.append(ScoredRanking(row.ranking, mine))
        elif row.problem:
            report.unjudged[row.problem] += 1
    report.rows += len(chunk)
    report.texts += len(scores)
    report.total += sum(scores)


def _scores(
    scorer: Scorer,
    chunk: Sequence[ScoreRow],
    prompts: list[Prompt],
    responses: list[str],
    ended: list[bool] | None,
    advance: Callable[[int], None] | None,
) -> list[float]:
    from reward.learned.model import RewardModel
    from reward.scorer import Facts, scores_of

    if isinstance(scorer, RewardModel):
        return scorer.score(prompts, responses, ended=ended, advance=advance)
    facts = Facts(rows=[row.content for row in chunk for _ in row.responses], ended=ended)
    scores = scores_of(scorer, prompts, responses, facts)
    if advance is not None:
        advance(len(scores))
    return scores
