"""The rewards that a recipe can name, and how they become what scores responses."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from data.errors import ArtifactError, HandOverError, RecipeError
from data.json_lines import read_json_object
from pipeline.contract.addresses import Address, Retries, Seconds
from pipeline.contract.settings import (
    NonNegative,
    Number,
    PositiveInt,
    PositiveNumber,
    Ref,
    SameResult,
    Settings,
    UserFunction,
    is_external,
)

if TYPE_CHECKING:
    from data.records import Prompt
    from pipeline.contract.context import StageContext
    from pipeline.contract.handover import HandOver
    from pipeline.rl.rewards import Term
    from reward.scorer import Scorer

ORIGINS = ("model", "models", "rule", "function", "url")


class RewardTerm(Settings):
    """One of several rewards: where it comes from, how it is shaped, and its weight."""

    model: Annotated[str | None, Ref("reward")] = None
    """Reward model: a reward stage, a path or a hub id."""
    models: Annotated[tuple[str, ...], Ref("reward")] = ()
    """Ensemble: reward models that judge together (Coste et al. 2023)."""
    combine: Literal["mean", "min", "mean_minus_std", "mean_minus_variance"] = "mean"
    """How `models` become one score; `min` is Coste et al.'s WCO, `mean_minus_variance` UWO."""
    coefficient: NonNegative = 1.0
    """Standard deviations, or variances, of the `models` that are taken off their mean."""
    rule: str | None = None
    """Rule: answer, length, length_penalty, regex, repetition or sentiment."""
    function: Annotated[str | None, UserFunction()] = None
    """Function of yours: its name in a Python file that `--plugin` gives."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the rule or function."""
    url: Address | None = None
    """HTTP server: takes POST of {"prompts": [], "responses": []}, and "ended" where it is known;
    answers {"scores": []}."""
    timeout: Annotated[Seconds, SameResult()] = 60.0
    """Seconds without a whole answer of the server after which a try has failed."""
    retries: Annotated[Retries, SameResult()] = 5
    """Further tries of a request, after 1, 2, 4 ... seconds, at most 60."""
    batch_size: Annotated[PositiveInt, SameResult()] = 64
    """Responses of one request to the server."""
    normalize: bool = False
    """Take off its running mean and divide by its running deviation."""
    clip: PositiveNumber | None = None
    """Clip it to plus and minus this, after normalisation; null never clips."""
    weight: Number = 1.0
    """It is multiplied by this before all are added up."""

    @model_validator(mode="after")
    def _one_origin(self) -> RewardTerm:
        given = self.changed_among(*ORIGINS)
        if len(given) != 1:
            raise ValueError(
                f"a reward names exactly one of {', '.join(ORIGINS)}; this one names "
                f"{' and '.join(given) or 'none'}"
            )
        for fields, origins in (
            (("options",), ("rule", "function")),
            (("combine", "coefficient"), ("models",)),
            (("timeout", "retries", "batch_size"), ("url",)),
        ):
            stray = self._stray(fields)
            if stray and given[0] not in origins:
                raise ValueError(
                    f"{' and '.join(stray)}: only for {' or '.join(origins)}, this reward is a "
                    f"{given[0]}"
                )
        if self.models and len(self.models) < 2:
            raise ValueError("models: an ensemble has two reward models or more; use model")
        return self

    def _stray(self, fields: Sequence[str]) -> list[str]:
        return [name for name in self.changed_among(*fields) if getattr(self, name) != {}]


Reward = str | tuple[RewardTerm, ...]
"""A reward model, or a list of rewards."""


def reward_terms(reward: Reward, *, field: str = "reward") -> dict[str, RewardTerm]:
    """Return the rewards by the path of what they come from, of an ensemble its first model."""
    if isinstance(reward, str):
        return {field: RewardTerm(model=reward)}
    terms = {}
    for place, term in enumerate(reward):
        (origin,) = term.changed_among(*ORIGINS)
        terms[f"{field}.{place}.{origin}{'.0' if term.models else ''}"] = term
    return terms


def model_references(path: str, term: RewardTerm) -> dict[str, str]:
    """Return the reward models of a term by the path of their reference."""
    if term.model is not None:
        return {path: term.model}
    stem = path.removesuffix(".0")
    return {f"{stem}.{place}": model for place, model in enumerate(term.models)}


def check_rewards(terms: Mapping[str, RewardTerm], hand: HandOver) -> None:
    """Refuse reward models without a head, and rules and functions that can't be had.

    Raises:
        HandOverError: names stage and reward.
    """
    for path, term in terms.items():
        for model in model_references(path, term).values():
            hand.require_reward_head(model)
        try:
            computed(term)
        except RecipeError as error:
            raise HandOverError(f"stage {hand.name}: {error}") from error


def length_warnings(terms: Mapping[str, RewardTerm], hand: HandOver) -> list[str]:
    """Return a line for each reward model that its stage found no better than a length rule."""
    references = [m for item in terms.items() for m in model_references(*item).values()]
    folders = {reference: hand.folder(reference) for reference in references}
    return [
        f"warning: {reference}: {told}; a policy trained against it may learn little but length"
        for reference, folder in folders.items()
        if folder is not None and (told := _quality_warning(folder)) is not None
    ]


def _quality_warning(model: Path) -> str | None:
    """Return the warning in the `quality.json` beside a stage's model; None of other folders."""
    if model.name != "model":
        return None
    with contextlib.suppress(ArtifactError):
        told = read_json_object(model.parent / "quality.json").get("warning")
        return told if isinstance(told, str) else None
    return None


def computed(term: RewardTerm) -> Scorer | None:
    """Return the scorer of a rule, a function or a server; None for reward models.

    Raises:
        RecipeError: there is no such rule or function, or it does not take its options.
    """
    if term.rule is not None:
        from reward.computed.rules import rule

        return rule(term.rule, **term.options)
    if term.function is not None:
        from reward.functions import function

        return function(term.function, **term.options)
    if term.url is not None:
        from reward.computed.http_server import Endpoint

        return Endpoint(
            term.url, timeout=term.timeout, retries=term.retries, batch_size=term.batch_size
        )
    return None


def load_terms(
    context: StageContext[Any],
    terms: Mapping[str, RewardTerm],
    *,
    prompt: Prompt,
    device: Any,
    batch_size: int,
    batch_tokens: int | None = None,
    trust_remote_code: bool = False,
) -> list[Term[Scorer]]:
    """Load what scores responses.

    Args:
        context: of the stage; its inputs are the reward models.
        terms: the rewards.
        prompt: one that will be asked; a reward model must be able to read it.
        device: where reward models compute.
        batch_size: texts of their forward passes.
        batch_tokens: tokens of those, padding included, instead of `batch_size`.
        trust_remote_code: run code that their checkpoints carry.

    Raises:
        ModelError: a reward model can't be loaded, or has no template for a chat.
    """
    from pipeline.rl.rewards import Term
    from reward.ensemble import Ensemble
    from reward.learned.model import RewardModel

    def load(path: str, reference: str) -> RewardModel:
        model = RewardModel.load(
            context.input(path),
            device=device,
            batch_size=batch_size,
            trust_remote_code=trust_remote_code,
        )
        model.name, model.batch_tokens = reported_name(reference), batch_tokens
        model.encoder.encode(prompt, "")
        return model

    loaded = []
    for path, term in terms.items():
        scorer = computed(term)
        if scorer is None:
            members = [load(*item) for item in model_references(path, term).items()]
            scorer = members[0] if term.model else Ensemble(members, term.combine, term.coefficient)
        loaded.append(Term(scorer, term.weight, term.clip, term.normalize))
    return loaded


def require_steady(terms: Mapping[str, RewardTerm], *, field: str = "reward") -> None:
    """Refuse rewards that would not judge the same response the same way twice.

    Raises:
        ValueError: a term is normalised.
    """
    if any(term.normalize for term in terms.values()):
        raise ValueError(
            f"{field}: `normalize` is for PPO; a judge's scores may not depend on what it scored "
            "before, set a `weight`"
        )


def load_judge(
    context: StageContext[Any],
    reward: Reward,
    *,
    prompt: Prompt,
    batch_size: int,
    trust_remote_code: bool = False,
) -> Scorer:
    """Load rewards as one scorer that judges: a reward model, or the weighted sum of a list.

    Args:
        context: of the stage; its inputs are the reward models.
        reward: as the stage's `reward` has it; its terms may not be normalised.
        prompt: one that will be asked; a reward model must be able to read it.
        batch_size: texts of a forward pass.
        trust_remote_code: run code that the checkpoints carry.

    Raises:
        ModelError: a reward model can't be loaded, or has no template for a chat.
    """
    from pipeline.models.load import pick_device
    from reward.ensemble import WeightedSum

    terms = load_terms(
        context,
        reward_terms(reward),
        prompt=prompt,
        device=pick_device(),
        batch_size=batch_size,
        trust_remote_code=trust_remote_code,
    )
    if isinstance(reward, str):
        return terms[0].scorer
    return WeightedSum([(term.scorer, term.weight, term.clip) for term in terms])


def reported_name(reference: str) -> str:
    """Return what reports call a reward model."""
    return Path(reference).name if is_external(reference) else reference
