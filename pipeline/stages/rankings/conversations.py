"""Stage `rankings` with `people.conversations`: people write, models answer, people rank.

The stage itself is the worker that the label server asks, as long as it waits for enough ranked
messages. A campaign's name ends in a digest of who answers and how, so that nobody's ranking is
taken for one of another model's answers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from data.errors import StageFailedError
from data.extras import FIGURES, STORE, require_packages
from data.labels.live.protocol import worker_file
from data.labels.records import Campaign, CampaignSettings, Progress
from data.records import PromptRow, to_prompt
from data.words import counted
from pipeline.contract.sources import PROMPTS
from pipeline.generation.generate import Sampling
from pipeline.generation.live.answering import Answerer, Speaker
from pipeline.generation.live.service import AnswerService
from pipeline.stages.asking import free_memory, opened_labels, wait_for_labels
from pipeline.stages.rankings.people import write_rankings
from pipeline.stages.rankings.sampling import drawn, load_sampler, summarise

if TYPE_CHECKING:
    from data.labels.store.database import Database
    from pipeline.contract.context import StageContext
    from pipeline.stages.rankings.settings import RankingsSettings


def ask_in_conversations(context: StageContext[RankingsSettings]) -> dict[str, Any]:
    """Answer people until enough answers are ranked, write the rankings; return the metrics.

    Raises:
        Interrupted: a signal asked to stop; conversations and labels are kept.
        UsageError: packages are missing, or the database can't be opened.
    """
    require_packages(*STORE, *FIGURES)
    asked = context.settings.asked
    with opened_labels(context, asked) as database:
        campaign = _campaign(context, database)
        progress = _served(context, database, campaign)
        free_memory()
        labels, rankings = write_rankings(context, database, campaign)
    talks = {row.assignment.task.new.meta["conversation"] for row in labels}
    metrics = summarise(rankings)
    return {
        **metrics,
        "n_rankings": metrics["n_prompts"],
        "n_tasks": progress.tasks,
        "n_labels": len(labels),
        "n_conversations": len(talks),
        "n_annotators": len({row.annotator.id for row in labels}),
        "campaign": campaign.name,
    }


def _served(
    context: StageContext[RankingsSettings], database: Database, campaign: Campaign
) -> Progress:
    """Answer until enough is ranked."""
    settings = context.settings
    sampling = Sampling(
        settings.max_new_tokens, settings.temperature, settings.top_k, settings.top_p
    )
    wait = partial(
        wait_for_labels,
        *(context, settings.asked, database, campaign),
        needed=settings.asked.messages_needed,
        unit="message",
        made=_made(context, campaign),
    )
    if not context.stop.waits:
        return wait()
    service = AnswerService(
        Answerer([*_speakers(context)], sampling), worker_file(context.folder.parent)
    )

    def work() -> int:
        if service.error is not None:
            raise StageFailedError(f"nobody is answered any more: {service.error}")
        return 0

    with service.running():
        return wait(work=work)


def _made(context: StageContext[RankingsSettings], campaign: Campaign) -> str:
    """Return what there is before anybody came, which is no tasks."""
    return (
        f"has live conversations in campaign {campaign.name}, so no tasks are made beforehand: "
        f"people write, with {counted(len(_openings(context)), 'opening')} to begin with and up to "
        f"{counted(campaign.settings.most_turns, 'message')} a conversation, and are answered "
        "while they wait"
    )


def _speakers(context: StageContext[RankingsSettings]) -> Iterator[Speaker]:
    for field, name in _checkpoints(context.settings).items():
        sampler = load_sampler(context, context.input(field))
        yield Speaker(name, sampler.model, sampler.tokenizer)


def _checkpoints(settings: RankingsSettings) -> dict[str, str]:
    """Return the names of the checkpoints that answer, by the field that names them."""
    found = {"model": str(settings.model)}
    talks = settings.asked.conversations
    if talks is not None and talks.against is not None:
        found["people.conversations.against"] = talks.against
    return found


def _campaign(context: StageContext[RankingsSettings], database: Database) -> Campaign:
    """Store the campaign and what its conversations may begin with, or find them."""
    from data.labels.campaign.campaigns import Campaigns
    from data.labels.live.conversations import Conversations

    settings, asked = context.settings, context.settings.asked
    talks = asked.conversations
    assert talks is not None
    live = CampaignSettings(
        mode=asked.mode,
        overlap=0.0,
        lease_seconds=60 * asked.lease_minutes,
        seed=context.seed,
        answers=settings.completions,
        most_turns=talks.most_turns,
        all_turns=talks.all_turns,
        all_tokens=talks.all_tokens,
    )
    artifacts = [context.input_artifact(field) for field in _checkpoints(settings)]
    sampled = [settings.max_new_tokens, settings.temperature, settings.top_k, settings.top_p]
    content = [
        dataclasses.asdict(live) | {"lease_seconds": 0},
        sampled,
        [*_checkpoints(settings).values()],
        [one.digest if one else "" for one in artifacts],
    ]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]
    name = f"{asked.campaign or context.name}-{digest}"
    known = Campaigns(database).get(name)
    if known is not None:
        live = dataclasses.replace(live, lease_seconds=known.settings.lease_seconds)
    guidelines = asked.read_guidelines()
    campaign = Campaigns(database).create(
        name, live, guidelines, by=f"stage {context.name}", title=asked.title or ""
    )
    Conversations(database).suggest(campaign.id, _openings(context))
    return campaign


def _openings(context: StageContext[RankingsSettings]) -> list[str]:
    """Return the prompts that are one message of a user, each once."""
    rows: list[PromptRow] = [
        *context.read("prompts", context.settings.prompts, to_prompt, wanted=PROMPTS)
    ]
    texts = dict.fromkeys(text for row in rows if (text := opening_of(row)))
    if lost := len(rows) - len(texts):
        context.say(f"{lost} of {len(rows)} prompts are no opening: doubles, or several turns")
    limit = context.settings.limit or len(texts)
    return drawn([*texts], limit, context.seed)


def opening_of(row: PromptRow) -> str:
    """Return what a prompt suggests to begin with, "" where it is no single message of a user."""
    if isinstance(row.prompt, str):
        return row.prompt.strip()
    roles = [turn["role"] for turn in row.prompt]
    return row.prompt[0]["content"].strip() if roles == ["user"] else ""
