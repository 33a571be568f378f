"""Puts a run of PPO together from checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from data.errors import ModelError
from pipeline.contract.settings import Lora
from pipeline.models.compile import compile_layers, refuse_sharded
from pipeline.models.load import (
    eos_ids,
    halve_products,
    load_config,
    load_policy,
    load_tokenizer,
    load_value_model,
    require_distinct_pad,
)
from pipeline.models.seq2seq import is_encoder_decoder
from pipeline.models.trials import require_causal, require_policy
from pipeline.models.unused_ids import leave_out_unused, unused_ids
from pipeline.rl.learner import Average, Learner
from pipeline.rl.policy import POLICY, Policy, ValueModel, ValueReader
from pipeline.rl.ppo.loop import Ppo
from pipeline.rl.ppo.optimize import Optimization
from pipeline.rl.ppo.shared_forward import SharedForward
from pipeline.rl.pretraining_mix import PretrainingRows
from pipeline.rl.processes import World
from pipeline.rl.prompts import Order, PreparedPrompt
from pipeline.rl.rewards import RewardSum, Term
from pipeline.rl.rollout.engines import make_engine
from pipeline.rl.settings import Hyperparameters
from pipeline.rl.trunk import TrunkReward, make_trunk, with_rewards
from reward.learned.model import RewardModel
from reward.learned.on_trunk import TrunkScoring
from reward.network.short_attention import use_short_attention
from reward.scorer import Scorer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from reward.network.lora import Trunk


def build_ppo(
    *,
    policy_source: str | Path,
    reference_source: str | Path | None,
    value_source: str | Path | None,
    scorers: Sequence[Term[Scorer | TrunkReward]],
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[PreparedPrompt],
    pretraining: Sequence[Sequence[int]] | None,
    hyper: Hyperparameters,
    world: World,
    end_ids: Sequence[int] = (),
    trust_remote_code: bool = False,
    lora: Lora | None = None,
    scratch: Path | None = None,
    read_values: bool = False,
    say: Callable[[str], None] | None = None,
) -> Ppo:
    """Load the models and put a run together.

    Args:
        policy_source: checkpoint the policy starts from.
        reference_source: checkpoint of the reference; None is the policy's start.
        value_source: checkpoint of a separate value model; None puts a head on the policy's trunk.
        scorers: rewards with their weights; adapters of reward models only on a shared trunk.
        tokenizer: the policy's.
        prompts: what is answered.
        pretraining: rows of token ids for PPO-ptx, None without.
        hyper: the settings.
        world: the processes.
        end_ids: tokens that end a response beside the model's own.
        trust_remote_code: run code that the policy's checkpoint carries.
        lora: adapter that makes the policy on a trunk that all share; None keeps models apart.
        scratch: folder for the weights on their way to a server, where the settings name none.
        read_values: read values off the hidden states of the first reward that is on the trunk.
        say: told what the user should know of how the policy is sampled from.

    Raises:
        ModelError: a model can't be loaded or can't do its part.
    """
    pad_id = require_distinct_pad(tokenizer, policy_source)
    model, trunk = _start(policy_source, tokenizer, lora, hyper, world, trust=trust_remote_code)
    reference = _reference(model, reference_source, trunk, hyper, world, trust=trust_remote_code)
    rewards = with_rewards(trunk, scorers, world=world)
    reader, read_head = (_reader(rewards), _zero_head(model)) if read_values else (None, None)
    policy = _policy(model, trunk, hyper, world, with_head=not (value_source or read_values))
    run = _optimization(policy, read_head or value_source, pretraining, hyper, world)
    ends = [*eos_ids(tokenizer, model), *(() if hyper.end_after else end_ids)]
    return Ppo(
        hyper=hyper, world=world, tokenizer=tokenizer, prompts=prompts, pad_id=pad_id,
        engine=make_engine(
            run.policy, trunk, tokenizer, ends, pad_id, hyper, world, policy_source, scratch, say
        ),
        rewards=RewardSum(rewards), optimization=run, reference=reference, reader=reader,
        reference_is_start=reference_source is None,
        later_end_ids=end_ids if hyper.end_after else (),
    )  # fmt: skip


def _start(
    source: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    lora: Lora | None,
    hyper: Hyperparameters,
    world: World,
    *,
    trust: bool,
) -> tuple[PreTrainedModel, Trunk | None]:
    """Load the policy's start, and make a trunk of it if the policy is an adapter."""
    refuse_sharded(hyper.compile and world.sharded)
    model = load_policy(source, trust_remote_code=trust)
    require_policy(model, source)
    leave_out_unused(model, tokenizer)
    return model, None if lora is None else _trunk(model, lora, source, world)


def _policy(
    model: PreTrainedModel,
    trunk: Trunk | None,
    hyper: Hyperparameters,
    world: World,
    *,
    with_head: bool,
) -> Policy:
    head = _zero_head(model) if with_head else None
    _hasten(model, hyper, world)
    return Policy(model, head, trunk, None if trunk is None else POLICY)


def fits_as_value_model(source: str | Path, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Tell why a reward model can't become the value model, None when it can."""
    other = load_tokenizer(source)
    if other.get_vocab() != tokenizer.get_vocab():
        return "it has another tokenizer than the policy"
    try:
        require_causal(load_value_model(source), source)
    except ModelError as error:
        return str(error)
    return None


def _trunk(model: PreTrainedModel, lora: Lora, source: str | Path, world: World) -> Trunk:
    if world.sharded:
        raise ModelError(
            "trunk: shared holds one model a process and can't be sharded; launch with "
            "ddp.yaml or set trunk: separate"
        )
    return make_trunk(model, lora, base=source, seed=world.seed)


def _optimization(
    policy: Policy,
    value: nn.Linear | str | Path | None,
    pretraining: Sequence[Sequence[int]] | None,
    hyper: Hyperparameters,
    world: World,
) -> Optimization:
    learner = Learner.of(
        policy,
        learning_rate=hyper.learning_rate,
        hyper=hyper,
        world=world,
        head_rate=None if policy.trunk is None else hyper.value_learning_rate,
    )
    language = None
    if pretraining is not None:
        order = Order(len(pretraining), seed=world.seed, purpose="pretraining")
        language = PretrainingRows(pretraining, order)
    average = None if hyper.ema_decay is None else Average(policy, decay=hyper.ema_decay)
    value_learner = _value_learner(value, hyper, world)
    return Optimization(learner, value_learner, average, language, hyper, world)


def _reference(
    model: PreTrainedModel,
    source: str | Path | None,
    trunk: Trunk | None,
    hyper: Hyperparameters,
    world: World,
    *,
    trust: bool,
) -> Policy:
    """Return the frozen reference: the bare trunk, another checkpoint, or the policy's copy."""
    if trunk is not None:
        return Policy(model, None, trunk, None)
    reference = copy.deepcopy(model) if source is None else _fitting(model, source, trust=trust)
    if hyper.compile:  # as the policy is, or they would differ by rounding from the start
        compile_layers(reference, world.device)
    frozen = Policy(reference.to(world.device)).requires_grad_(False).eval()
    if world.bf16 and not world.sharded:
        halve_products(frozen)
    return world.place(frozen)


def _fitting(model: PreTrainedModel, source: str | Path, *, trust: bool) -> PreTrainedModel:
    """Load a reference that reads as the policy does, with as many embeddings."""
    reference = load_policy(source, trust_remote_code=trust)
    if is_encoder_decoder(reference) != is_encoder_decoder(model):
        raise ModelError(
            f"the policy is a {type(model).__name__} and the reference {source} a "
            f"{type(reference).__name__}: one of them alone is an encoder-decoder; name a "
            "reference of the policy's kind"
        )
    sizes = [m.get_input_embeddings().num_embeddings for m in (model, reference)]
    if sizes[0] != sizes[1]:
        raise ModelError(
            f"the policy has an embedding of {sizes[0]} tokens and the reference {source} one of "
            f"{sizes[1]}; the reference must have the policy's tokenizer"
        )
    reference.unused_ids = unused_ids(model)
    return reference


def _zero_head(model: PreTrainedModel) -> nn.Linear:
    """Return a value head that starts at 0, so that it moves nothing at first.

    On the states of a reward model, too: its own head, which was trained on whole responses, says
    so little of a part that values from there foretold less than none would (explained variance
    -2.1 on the quickstart, and still below 0 after twelve updates; from 0 it was .3 after two).
    """
    width = model.get_input_embeddings().embedding_dim
    head = nn.Linear(width, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def _reader(rewards: Sequence[Term[Scorer]]) -> SharedForward:
    """Return what gives the hidden states that values are read off.

    Raises:
        ModelError: no reward is attached to the trunk.
    """
    for place, term in enumerate(rewards):
        scorer = term.scorer
        if isinstance(scorer, RewardModel) and isinstance(scorer.module, TrunkScoring):
            return SharedForward(scorer, scorer.module, place)
    raise ModelError(
        "value: reward reads values off the adapter of a reward model, and no reward has one; "
        "train it with `lora` from the policy's checkpoint, or set value: shared"
    )


def _value_learner(
    source: nn.Linear | str | Path | None, hyper: Hyperparameters, world: World
) -> Learner | None:
    """Return the value model that a checkpoint or a head makes; None without either."""
    if source is None:
        return None
    rate = hyper.value_learning_rate or hyper.learning_rate
    if isinstance(source, nn.Linear):
        module: nn.Module = ValueReader(source)
    else:
        module = ValueModel(*_value_start(source))
        _hasten(module.model, hyper, world)
    return Learner.of(module, learning_rate=rate, hyper=hyper, world=world)


def _value_start(source: str | Path) -> tuple[PreTrainedModel, nn.Linear | None]:
    """Load what a separate value model starts from, and the head on an encoder-decoder.

    transformers has no class of those with a head at each token that the decoder writes.
    """
    if not load_config(source, what="value model").is_encoder_decoder:
        model = load_value_model(source)
        require_causal(model, source)
        return model, None
    model = load_policy(source)
    own = model.get_output_embeddings()
    if own is not None and own.weight is not model.get_input_embeddings().weight:
        own.requires_grad_(False)  # nothing reads it, so that it has no gradient
    return model, _zero_head(model)


def _hasten(model: PreTrainedModel, hyper: Hyperparameters, world: World) -> None:
    """Prepare a model for training passes: memory and time, never the result."""
    _checkpoint_activations(model, when=hyper.gradient_checkpointing)
    use_short_attention(model, world.device)
    if hyper.compile:
        compile_layers(model, world.device)


def _checkpoint_activations(model: PreTrainedModel, *, when: bool) -> None:
    """Compute activations again in the backward pass; transformers does so in train mode alone.

    Those modules alone that make use of it: routers of experts may draw at random in train mode,
    and the ratio of PPO would not be 1.
    """
    if when:
        model.activation_checkpointing_enable({"use_reentrant": False})
        for module in model.modules():
            module.training = bool(getattr(module, "gradient_checkpointing", False))
