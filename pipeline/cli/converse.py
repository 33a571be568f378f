"""`rlhf label converse`: answer people's messages by checkpoints, without a recipe."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data.errors import Interrupted, StageFailedError, UsageError
from data.labels.records import CampaignSettings, Mode
from data.words import counted

if TYPE_CHECKING:
    from data.labels.store.database import Database
    from pipeline.generation.generate import Sampling
    from pipeline.generation.live.answering import Speaker

_NAP = 0.2


def converse(
    run: Annotated[Path, typer.Argument(help="Run folder.", metavar="RUN")],
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help="A stage of the run, a checkpoint or hub id; at most two."),
    ] = None,
    campaign: Annotated[
        str, typer.Option("--campaign", help="Its name; a new one is made, another goes on.")
    ] = "conversations",
    answers: Annotated[int, typer.Option(min=2, max=4, help="To each message.")] = 2,
    mode: Annotated[
        str | None, typer.Option(help="pairs, rank or rate_and_rank; pairs with two answers.")
    ] = None,
    openings: Annotated[
        str | None, typer.Option(help="File of prompts to suggest, or world:PART.")
    ] = None,
    guidelines: Annotated[
        Path | None, typer.Option(help="What people read first; Markdown.")
    ] = None,
    title: Annotated[
        str, typer.Option(help="What the pages call a new campaign, in your words.")
    ] = "",
    turns: Annotated[int, typer.Option(min=1, help="Messages of one conversation.")] = 6,
    all_turns: Annotated[int, typer.Option(min=0, help="Messages in all; 0 is no bound.")] = 0,
    all_tokens: Annotated[
        int, typer.Option(min=0, help="Sampled tokens in all; 0 is no bound.")
    ] = 0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 128,
    temperature: Annotated[float, typer.Option(help="Divides the logits.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Draw among the likeliest of this sum.")] = 1.0,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that a checkpoint carries.")
    ] = False,
    database: Annotated[
        str | None,
        typer.Option("--database", help="Instead of the run's: an address, env:NAME, or a file."),
    ] = None,
) -> None:
    """Answer people, who rank each answer and go on with the best, until Ctrl-C."""
    from pipeline.cli.chat import require_sensible
    from pipeline.cli.label_store import opened
    from pipeline.generation.generate import Sampling

    sampling = Sampling(max_new_tokens, temperature, 0, top_p)
    require_sensible(sampling)
    settings = CampaignSettings(
        mode=_mode(mode, answers), overlap=0.0, answers=answers, most_turns=turns,
        all_turns=all_turns, all_tokens=all_tokens,
    )  # fmt: skip
    names = _checkpoints(run, model or [])
    suggested = _openings(openings)
    with opened(run, database, create=True) as store:
        _campaign(store, campaign, settings, suggested, guidelines, title)
        _answer(run, _speakers(names, trust_remote_code), sampling, campaign)


def _mode(given: str | None, answers: int) -> Mode:
    known: dict[str, Mode] = {"pairs": "pairs", "rank": "rank", "rate_and_rank": "rate_and_rank"}
    mode = given or ("pairs" if answers == 2 else "rank")
    if mode not in known:
        raise UsageError(f"--mode {mode}: it is one of {', '.join(known)}")
    return known[mode]


def _checkpoints(run: Path, given: Sequence[str]) -> list[str]:
    """Return the checkpoints that answer; a name of a stage is that stage of the run."""
    if not 1 <= len(given) <= 2:
        raise UsageError(
            f"one or two checkpoints answer, not {len(given)}: name them by --model, as "
            f"--model sft for {run / 'sft'}"
        )
    return [str(run / one) if (run / one / "manifest.json").is_file() else one for one in given]


def _openings(source: str | None) -> list[str]:
    if source is None:
        return []
    from data.records import to_prompt
    from pipeline.cli.options import source_of
    from pipeline.contract.sources import PROMPTS, read_sources
    from pipeline.stages.rankings.conversations import opening_of

    rows = read_sources(
        [source_of(source)], to_prompt, where="--openings", wanted=PROMPTS, say=typer.echo
    )
    return [*dict.fromkeys(text for row in rows if (text := opening_of(row)))]


def _campaign(
    store: Database,
    name: str,
    settings: CampaignSettings,
    openings: Sequence[str],
    guidelines: Path | None,
    title: str,
) -> None:
    """Store the campaign, or find it with the same settings."""
    from data.labels.campaign.campaigns import Campaigns
    from data.labels.live.conversations import Conversations

    known = Campaigns(store).get(name)
    body = known.guidelines if known else ""
    if guidelines is not None:
        try:
            body = guidelines.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "no UTF-8 text"
            raise UsageError(f"--guidelines {guidelines} can't be read: {reason}") from None
    made = Campaigns(store).create(name, settings, body, by="command", title=title)
    if openings:
        Conversations(store).suggest(made.id, openings)


def _speakers(checkpoints: Sequence[str], trust_remote_code: bool) -> Iterable[Speaker]:
    from pipeline.cli.chat_models import load_chat_model, short_names
    from pipeline.generation.live.answering import Speaker

    for name, source in zip(short_names(checkpoints), checkpoints, strict=True):
        loaded = load_chat_model(
            name, source, seed=0, plain=False, trust_remote_code=trust_remote_code
        )
        if loaded.plain:
            raise UsageError(
                f"--model {source} {loaded.manner}, so that nobody can talk with it; name a "
                "checkpoint with a chat template, as an sft stage leaves one"
            )
        yield Speaker(name, loaded.model, loaded.tokenizer)


def _answer(run: Path, speakers: Iterable[Speaker], sampling: Sampling, campaign: str) -> None:
    """Answer until a signal asks to stop."""
    from data.labels.live.protocol import worker_file
    from data.labels.web.address import read_address
    from pipeline.contract.stop import StopFlag
    from pipeline.generation.live.answering import Answerer
    from pipeline.generation.live.service import AnswerService

    service: Any = AnswerService(Answerer([*speakers], sampling), worker_file(run))
    with StopFlag().installed() as stop, service.running():
        typer.echo(f"answering in campaign {campaign}; Ctrl-C ends it, conversations stay")
        if read_address(run) is None:
            typer.echo(f"let people in with: rlhf label serve {run}")
        while not stop.asked:
            if service.error is not None:
                raise StageFailedError(f"nobody is answered any more: {service.error}")
            time.sleep(_NAP)
    raise Interrupted(
        f"stopped; {counted(service.answered, 'message')} answered, what waits is answered when "
        "the same command runs again"
    )
