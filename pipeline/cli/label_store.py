"""What the commands of `rlhf label` do with the label database of a run."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

import typer

from data.errors import ArtifactError, InvalidLabelError, UsageError, nearest
from data.extras import STORE, require_packages
from data.labels.records import AnnotatorKind, CampaignSettings, Mode
from data.words import counted
from pipeline.stages.asking_settings import database_place
from pipeline.stages.evaluate.settings import EvaluateSettings
from pipeline.stages.rankings.settings import RankingsSettings

if TYPE_CHECKING:
    from data.labels.exchange.importing import ImportedLabel
    from data.labels.records import Campaign
    from data.labels.store.database import Database
    from pipeline.contract.stop import StopFlag

FIRST_ADMIN = "admin"
"""Name of whoever uses the first link that `serve` prints."""
FIRST_HOURS = 24.0
_LISTED = 8
"""Campaigns that are named beside the one that is taken."""
TASK_COLUMNS = ("campaign", "mode", "tasks", "complete", "labels", "wanted", "annotators", "state")


@contextmanager
def opened(
    run: Path,
    given: str | None,
    *,
    create: bool = False,
    stage: str | None = None,
    before: Callable[[], None] | None = None,
) -> Iterator[Database]:
    """Give the label database of a run.

    Args:
        run: the run folder.
        given: another database, as the command line names it.
        create: whether a missing one is made.
        stage: whose database; that of the only one that any stage names when not given.
        before: called before a missing file is made, to refuse what would be in vain.

    Raises:
        UsageError: packages, the run or the database are missing, or several are named.
        ArtifactError: the run's recipe can't be read.
    """
    require_packages(*STORE)
    from data.labels.store.database import open_database

    if not run.is_dir():
        raise UsageError(f"{run}: no such run folder; name the one that `rlhf run` works in")
    place = database_place(run, _named(run, stage) if given is None else given)
    if before is not None and "://" not in place and not os.path.exists(place):
        before()
    database = open_database(place, create=create, home=run / "labels")
    for note in database.notes:
        typer.echo(note, err=True)
    try:
        yield database
    finally:
        database.close()


def people_stages(run: Path) -> dict[str, RankingsSettings | EvaluateSettings]:
    """Return the stages of a run's recipe that ask people, by name.

    Raises:
        ArtifactError: the recipe in the run folder can't be read.
    """
    from data.errors import RecipeError
    from pipeline.recipe.load import load_recipe
    from pipeline.run.runner import RESOLVED

    path = run / RESOLVED
    if not path.is_file():
        return {}
    try:
        recipe = load_recipe(path)
    except RecipeError as error:
        raise ArtifactError(f"{error}; or name the labels' place by --database") from error
    return {
        name: settings
        for name, settings in recipe.stages.items()
        if (isinstance(settings, RankingsSettings) and settings.labeler == "people")
        or (isinstance(settings, EvaluateSettings) and settings.people is not None)
    }


def _named(run: Path, stage: str | None) -> str | None:
    stages = people_stages(run)
    if stage is not None:
        return require_stage(run, stage).asked.database
    places = {settings.asked.database for settings in stages.values()}
    if len(places) > 1:
        raise UsageError(f"the stages of {run} keep their labels apart; name one by --database")
    return next(iter(places), None)


def require_stage(run: Path, stage: str) -> RankingsSettings:
    """Return the settings of a stage with `labeler: people`.

    Raises:
        UsageError: the run has no such stage.
    """
    asking = people_stages(run).items()
    stages = {name: one for name, one in asking if isinstance(one, RankingsSettings)}
    if stage not in stages:
        there = ", ".join(stages) or "none"
        raise UsageError(
            f"{run} has no stage '{stage}' with labeler: people; there is {there}."
            f"{nearest(stage, stages)}"
        )
    return stages[stage]


def first_invite(database: Database) -> str | None:
    """Return the token of an invite for the first admin; None when somebody has a way in."""
    from data.labels.campaign.accounts import Accounts

    accounts = Accounts(database)
    if any(one.kind == "person" for one in accounts.list()):
        return None
    # A link of a server that was stopped before it was used is void: the new one is the way in.
    for invite in accounts.invites():
        if invite.created_by == "serve" and invite.revoked_at is None:
            accounts.revoke_invite(invite.id, by="serve")
    return accounts.invite("admin", FIRST_ADMIN, FIRST_HOURS, by="serve")[1]


def find_campaign(database: Database, name: str | None) -> Campaign:
    """Return a campaign by name or by the start of its name.

    Where none is given it is the newest, and one that an import made only where there is no other.

    Raises:
        UsageError: there is none, or several begin so.
    """
    from data.labels.campaign.campaigns import Campaigns

    store = Campaigns(database)
    campaigns = store.list()
    if not campaigns:
        raise UsageError(f"{database.url} holds no campaign yet; a stage makes it, or an import")
    if name is None:
        imported = store.imported()
        own = [one for one in campaigns if one.id not in imported]
        return (own or campaigns)[-1]
    matching = [one for one in campaigns if one.name == name] or [
        one for one in campaigns if one.name.startswith(name)
    ]
    if len(matching) != 1:
        names = [one.name for one in campaigns]
        problem = "several campaigns begin with" if matching else "there is no campaign"
        raise UsageError(f"{problem} '{name}'; there are {', '.join(names)}.{nearest(name, names)}")
    return matching[0]


def take_campaign(
    run: Path, database: Database, name: str | None, *, recipe_may_fail: bool = False
) -> tuple[Campaign, str | None]:
    """Return the campaign that a command means, and what to tell of the choice.

    Where none is named it is that of the last rankings stage of the run that asks people, else that
    of an evaluation, else as `find_campaign` has it.

    Args:
        run: whose stages.
        database: where the campaigns are.
        name: as the command line names it.
        recipe_may_fail: whether to do without a recipe that can't be read.

    Raises:
        UsageError: there is none, or several begin so.
        ArtifactError: the run's recipe can't be read.
    """
    from data.labels.campaign.campaigns import Campaigns

    if name is not None:
        return find_campaign(database, name), None
    taken, stage = find_campaign(database, None), ""
    store = Campaigns(database)
    campaigns, imported = store.list(), store.imported()
    try:
        asking = people_stages(run)
    except ArtifactError:
        if not recipe_may_fail:
            raise
        asking = {}
    for one, settings in sorted(asking.items(), key=lambda item: _is_rankings(item[1])):
        made = [c for c in campaigns if c.id not in imported and _made_by(one, settings, c.name)]
        if made:
            taken, stage = made[-1], one
    others = [one.name for one in campaigns if one.id != taken.id]
    if not others:
        return taken, None
    whose = f", which stage {stage} asks in" if stage else ""
    listed = ", ".join(others[:_LISTED]) + (" ..." if len(others) > _LISTED else "")
    return taken, f"of campaign {taken.name}{whose}; --campaign takes another: {listed}"


def _is_rankings(settings: RankingsSettings | EvaluateSettings) -> bool:
    return isinstance(settings, RankingsSettings)


def _made_by(stage: str, settings: RankingsSettings | EvaluateSettings, campaign: str) -> bool:
    """Tell whether a stage made a campaign, by its name, which ends in a digest."""
    from pipeline.evaluation.judge.people import CAMPAIGN

    if isinstance(settings, RankingsSettings):
        begins = f"{settings.asked.campaign or stage}-"
    else:
        begins = CAMPAIGN
    return re.fullmatch(re.escape(begins) + "[0-9a-f]{8}", campaign) is not None


def campaign_rows(database: Database) -> Iterator[tuple[str, ...]]:
    """Yield a row of `TASK_COLUMNS` for each campaign."""
    from data.labels.campaign.campaigns import Campaigns

    campaigns = Campaigns(database)
    for one in campaigns.list():
        progress = campaigns.progress(one.id)
        done = progress.tasks > 0 and progress.complete == progress.tasks
        yield (
            one.name,
            one.settings.mode,
            *(
                str(getattr(progress, name))
                for name in ("tasks", "complete", "labels", "wanted", "annotators")
            ),
            "closed" if one.closed else "done" if done else "open",
        )


def kinds_of(names: Sequence[str] | None) -> Collection[AnnotatorKind] | None:
    """Return kinds of annotators by name; None for all.

    Raises:
        UsageError: there is no such kind.
    """
    known = get_args(AnnotatorKind)
    for name in names or ():
        if name not in known:
            listed = ", ".join(known)
            raise UsageError(f"--kind {name}: it is one of {listed}.{nearest(name, known)}")
    return cast("Collection[AnnotatorKind]", names) if names else None


def import_file(
    database: Database,
    source: str,
    *,
    campaign: str | None,
    read: Callable[..., Iterator[ImportedLabel]],
) -> list[str]:
    """Store the labels of a file or hub data set, and return what to tell of it.

    Args:
        database: where to.
        source: file, folder, glob, or `hub:ID`.
        campaign: name of the campaign they go to; what the file says when not given.
        read: `read_labels` of the source, with all that was asked.

    Raises:
        SourceError: the file can't be read or holds no labels.
        UsageError: a campaign of that name asks in another mode.
    """
    from data.labels.exchange.importing import require_names
    from data.sources.read import ReadReport

    report = ReadReport()
    name = campaign or Path(source).stem or "imported"
    # Read to its end before anything is stored: a file that is bad halfway leaves nothing behind.
    labels = [*read(when=database.now(), campaign=name, report=report)]
    by_campaign: dict[str, list[ImportedLabel]] = {}
    for one in labels:
        name = campaign or one.row.campaign
        require_names(source, campaign=name, annotator=one.annotator.name)
        by_campaign.setdefault(name, []).append(one)
    lines = report.lines()
    modes = {name: _mode(database, name, rows) for name, rows in by_campaign.items()}
    for name, rows in by_campaign.items():
        new = _record(database, name, modes[name], rows)
        lines.append(f"campaign {name}: {counted(new, 'new label')} of {len(rows):,}")
    return lines


def _mode(database: Database, name: str, labels: Sequence[ImportedLabel]) -> Mode:
    """Return the mode in which a campaign asks, which is that of all labels it is given."""
    from data.labels.campaign.campaigns import Campaigns

    modes = {one.row.mode for one in labels}
    known = Campaigns(database).get(name)
    mode = known.settings.mode if known is not None else next(iter(modes))
    if modes != {mode}:
        raise UsageError(
            f"campaign {name} asks in mode {mode}, the file holds labels of mode "
            f"{', '.join(sorted(modes))}; give another --campaign"
        )
    return mode


def _record(database: Database, name: str, mode: Mode, labels: Sequence[ImportedLabel]) -> int:
    from data.labels.campaign.campaigns import IMPORT, Campaigns
    from data.labels.campaign.recording import Recording

    campaigns = Campaigns(database)
    known = campaigns.get(name)
    if known is None:
        settings = CampaignSettings(mode=mode, overlap=0.0)
        theirs = labels[0].row.assignment.task.campaign_id
        known = campaigns.create(name, settings, "", by=IMPORT, wanted_id=theirs)
    try:
        return Recording(database).record(known.id, (one.row for one in labels))
    except InvalidLabelError as error:
        raise UsageError(f"campaign {name}: {error}") from error


def let_label(
    run: Path, database: Database, stage: str, *, limit: int | None, stop: StopFlag
) -> Iterator[tuple[str, int]]:
    """Let the annotators of a stage that are no people label; yield each one's labels.

    Raises:
        UsageError: the stage names no annotators, or has made no tasks yet.
    """
    from data.labels.annotators.calls import BudgetSpentError
    from data.labels.annotators.working import give_back, work_through
    from pipeline.stages.rankings.annotators import judges_of

    settings = require_stage(run, stage)
    if not settings.asked.annotators:
        raise UsageError(f"stage {stage} names no annotators; set people.annotators")
    campaign = find_campaign(database, f"{settings.asked.campaign or stage}-")
    judges = judges_of(
        settings.asked,
        world_seed=settings.prompts[0].world_seed,
        guidelines=campaign.guidelines,
        seed=campaign.settings.seed,
        logs=run / "labels",
    )

    for judge in judges:
        try:
            yield (
                judge.name,
                work_through(
                    database, campaign, judge, should_stop=lambda: stop.asked, limit=limit
                ),
            )
        except BudgetSpentError as spent:
            give_back(database, campaign, judge)
            yield f"{judge.name} ({spent})", 0
    stop.raise_if_asked()
