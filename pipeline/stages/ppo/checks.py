"""What a PPO stage refuses before it loads anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from data.errors import HandOverError
from pipeline.contract.settings import is_external
from pipeline.stages.checks import (
    require_caller,
    require_corpus,
    require_prompts,
    require_reference,
    require_texts,
    start_warnings,
)
from pipeline.stages.ppo.sources import carried_sources
from pipeline.stages.reward_terms import check_rewards, length_warnings, model_references

if TYPE_CHECKING:
    from pipeline.contract.handover import HandOver
    from pipeline.contract.heads import Head
    from pipeline.stages.ppo.settings import PpoSettings


def check(settings: PpoSettings, hand: HandOver) -> None:
    """Refuse checkpoints that do not fit each other, and prompts that do not fit the context.

    Raises:
        HandOverError: naming both.
    """
    trust = settings.trust_remote_code
    hand.require_tokenizer_for(settings.policy, settings.tokenizer)
    pair = hand.encoder_decoder(settings.policy)
    why = "a policy is a causal language model or an encoder-decoder that writes"
    hand.require_writer(settings.policy, "policy", why, encoder_decoder=True)
    head: Head = "seq2seq" if pair else "causal"
    hand.require_class(settings.policy, "policy", head, way_out="name another policy", trust=trust)
    check_start(settings, hand.processes, encoder_decoder=pair)
    if pair:
        _check_halves(settings, hand)
    else:
        hand.require_fits_context(settings.policy, *_row(settings))
    require_prompts(hand, settings.prompts, openings=settings.prefix_tokens is not None)
    require_caller(hand, settings.policy, settings.tools)
    require_corpus(hand, settings.retrieve)
    require_texts(hand, "pretraining_sources", settings.pretraining_sources)
    require_reference(hand, settings.policy, settings.reference, encoder_decoder=pair)
    if settings.pretraining is not None:
        carried_sources(settings, hand)
    if settings.ptx_coefficient > 0:
        hand.require_fits_context(
            settings.policy, settings.pretraining_row_tokens, "pretraining_row_tokens"
        )
    if settings.value_start is not None:
        hand.require_same_tokenizer(settings.policy, settings.value_start)
        hand.require_reward_head(settings.value_start)
    openings = settings.prefix_tokens is not None
    require_prompts(
        hand, settings.evaluation_prompts, openings=openings, setting="evaluation_prompts"
    )
    check_rewards(settings.terms | settings.evaluation_terms, hand)
    _check_value(settings, hand)
    for term in settings.terms.values():
        if term.model is not None:
            _check_trunk(settings, term.model, hand)


def warnings(settings: PpoSettings, hand: HandOver) -> list[str]:
    """Return what does not stop the stage, and its reader had better know."""
    return [
        *start_warnings(settings.policy, hand),
        *length_warnings(settings.terms, hand),
        *settings.judged_by_reward,
    ]


def _row(settings: PpoSettings) -> tuple[int, str]:
    """Return the tokens of the longest prompt with its response, and their settings."""
    tokens = settings.max_prompt_tokens + settings.max_new_tokens
    return tokens, "max_prompt_tokens + max_new_tokens"


def _check_halves(settings: PpoSettings, hand: HandOver) -> None:
    """Refuse what one of the halves of an encoder-decoder has no room for."""
    hand.require_fits_context(settings.policy, settings.max_prompt_tokens, "max_prompt_tokens")
    # The decoder is given a token before the response.
    hand.require_fits_context(settings.policy, settings.max_new_tokens + 1, "max_new_tokens + 1")
    if settings.value_start is not None:
        hand.require_fits_context(settings.value_start, *_row(settings))


def _check_value(settings: PpoSettings, hand: HandOver) -> None:
    """Refuse a separate value model of an architecture that has no class for it."""
    if settings.value != "separate":
        return
    way_out = "set value: shared, a head on the policy's trunk"
    if settings.value_start is not None:
        hand.require_class(settings.value_start, "value_start", "token", way_out=way_out)
        return
    if hand.encoder_decoder(settings.policy):
        return  # a head on the decoder needs no class
    models = [m for item in settings.terms.items() for m in model_references(*item).values()]
    if not models or not _may_become_value_model(models[0], settings.policy, hand):
        # Then the policy's checkpoint is what the value model starts from, as `_value_source` says.
        hand.require_class(settings.policy, "policy", "token", way_out=way_out)


def _may_become_value_model(reward: str, policy: str, hand: HandOver) -> bool:
    reward_facts, own = hand.facts(hand.origin(reward)), hand.facts(hand.origin(policy))
    if reward_facts is None:
        return True
    if reward_facts.lacks("token") or reward_facts.lacks("causal"):
        return False
    return own is None or own.vocabulary == reward_facts.vocabulary


def _check_trunk(settings: PpoSettings, reward: str, hand: HandOver) -> None:
    """Refuse a reward model whose adapter is trained on another trunk than the policy's."""
    trained = hand.settings(reward)
    if settings.trunk == "separate" or getattr(trained, "lora", None) is None:
        return
    base: str = getattr(trained, "model", "")
    if base != settings.policy and not is_external(base) and not is_external(settings.policy):
        raise HandOverError(
            f"stage {hand.name}: trunk: shared needs one checkpoint, but the policy starts from "
            f"{settings.policy} and the adapter of {reward} from {base}; start both from one"
        )


def check_start(settings: PpoSettings, processes: int, *, encoder_decoder: bool) -> None:
    """Refuse a batch that processes and minibatches can't share, and what the policy can't do.

    Raises:
        HandOverError: with the number that it must be a multiple of, or what to set instead.
    """
    share = processes * settings.minibatches
    if settings.batch_size % share:
        raise HandOverError(
            f"batch_size {settings.batch_size} does not divide by {processes} processes times "
            f"{settings.minibatches} minibatches; choose a multiple of {share}"
        )
    for setting, given, instead in (
        ("trunk: shared", settings.trunk == "shared", "trunk: separate"),
        ("rollout.engine: vllm", settings.rollout.engine == "vllm", "rollout.engine: own"),
        ("ptx_coefficient", settings.ptx_coefficient > 0, "ptx_coefficient: 0"),
    ):
        if encoder_decoder and given:
            raise HandOverError(
                f"{setting} is for causal policies, and policy {settings.policy} is an "
                f"encoder-decoder; set {instead}"
            )
