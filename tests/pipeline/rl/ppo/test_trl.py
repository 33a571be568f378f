"""The maths and one whole update, side by side with TRL 1.12's.

TRL 1.12 is put into pytest's cache folder, alone and from the package index; everything else it
needs is what this project runs on, so that both compute with the same torch and transformers.
`trl_driver.py` runs it in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from data.records import Prompt
from pipeline.generation.generate import Sample
from pipeline.rl.maths.advantages import end_rule, moments, whitened
from pipeline.rl.maths.losses import policy_loss, token_scores, value_loss
from pipeline.rl.maths.masking import length_mask, masked_mean, truncate_after_end, value_mask
from pipeline.rl.ppo.experience import PolicyScores, Tokens, make_experience
from pipeline.rl.processes import World, make_accelerator
from pipeline.rl.rewards import Term
from pipeline.rl.settings import Hyperparameters

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

HERE = Path(__file__).parent
RECIPE = HERE.parents[3] / "recipes" / "base" / "trl.yaml"
TRL = "1.12.0"
PAD, END = 0, 2
PLAN = yaml.safe_load((HERE / "trl_plan.yaml").read_text(encoding="utf-8"))
NAMES: dict[str, str] = PLAN["names"]
SHAPINGS: dict[str, dict[str, Any]] = PLAN["shapings"]
UPDATES = ("plain", "other")


def ours(settings: dict[str, Any]) -> Hyperparameters:
    """Return the preset with settings of TRL put over it, under our names."""
    preset = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["stages"]["ppo"]
    found = {name: value for name, value in preset.items() if name not in ("kind", "value")}
    found |= {NAMES[name]: value for name, value in settings.items() if name in NAMES}
    if "per_device_train_batch_size" in settings:
        found |= {"micro_batch_size": found["batch_size"], "episodes": settings["total_episodes"]}
    if "temperature" in settings:
        found["temperature"] = settings["temperature"] + 1e-7
    penalty = settings["missing_eos_penalty"]
    found |= {"end_rule": "none"} if penalty is None else {"end_penalty": -penalty}
    return Hyperparameters(**found)


class Differences:
    """Compares, and keeps the largest difference of each quantity."""

    def __init__(self) -> None:
        self.largest: dict[str, float] = {}

    def agree(self, name: str, mine: Tensor, other: Tensor, *, within: float = 1e-5) -> None:
        assert mine.shape == other.shape, name
        apart = (mine.double() - other.double()).abs().max().item()
        self.largest[name] = max(self.largest.get(name, 0.0), apart)
        assert apart <= within, f"{name} differs from TRL's by {apart:.3g}"


@pytest.fixture(scope="module")
def differences(request: pytest.FixtureRequest) -> Iterator[Differences]:
    """Prints the largest differences when all tests have run."""
    found = Differences()
    yield found
    rows = [f"  {name:36} {apart:.2e}" for name, apart in found.largest.items()]
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\nlargest absolute differences from TRL {TRL}:", *rows, sep="\n")


@pytest.fixture(scope="module")
def trl_folder(request: pytest.FixtureRequest) -> Path:
    """Return a folder to put before the path, with TRL 1.12 alone in it."""
    folder = Path(request.config.cache.mkdir(f"trl-{TRL}"))
    if not (folder / f"trl-{TRL}.dist-info").is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        done = subprocess.run(
            [*command, "--target", str(folder), f"trl=={TRL}"], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"TRL {TRL} could not be installed: {done.stderr.strip()[-300:]}")
    return folder


@pytest.fixture(scope="module")
def run(trl_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with models and with what TRL computed on them."""
    folder = tmp_path_factory.mktemp("trl")
    environment = {
        **os.environ,
        "PYTHONPATH": str(trl_folder),
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "ACCELERATE_USE_CPU": "true",
    }
    done = subprocess.run(
        [sys.executable, *map(str, (HERE / "trl_driver.py", HERE / "trl_plan.yaml", folder))],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def part(found: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in found.items() if n.startswith(prefix)}


@pytest.mark.parametrize("case", range(PLAN["cases"]))
def test_helpers_are_trls(run: Path, differences: Differences, case: int) -> None:
    theirs = part(load_file(run / "functions.safetensors"), f"helpers.{case}.")
    values, mask, tokens = theirs["values"], theirs["mask"], theirs["tokens"]
    of = moments(values, mask)
    differences.agree("masked_mean", masked_mean(values, mask, count=mask.sum()), theirs["mean"])
    centred = (values - masked_mean(values, mask, count=mask.sum())).square()
    variance = masked_mean(centred, mask, count=mask.sum() - 1)
    differences.agree("masked_var", variance, theirs["variance"])
    for name, shift in (("whitened", True), ("whitened_kept", False)):
        # TRL leaves what does not count as it comes.
        differences.agree(
            f"masked_whiten, shift_mean={shift}",
            whitened(values, mask, of=of, shift_mean=shift),
            torch.where(mask, theirs[name], 0.0),
        )
    ends = truncate_after_end(
        tokens_BT=tokens, mask_BT=torch.ones_like(mask), end_ids=torch.tensor([END])
    )
    assert ends.lengths_B.tolist() == theirs["lengths"].tolist()
    scored = token_scores(
        logits_NV=theirs["logits"].flatten(0, 1),
        tokens_N=tokens.flatten(),
        temperature=1.0,
        entropy=False,
    )
    differences.agree("selective_log_softmax", scored.logprobs_N, theirs["logprobs"].flatten())


@pytest.mark.parametrize("place", SHAPINGS)
@pytest.mark.parametrize("case", range(PLAN["cases"]))
def test_rewards_advantages_and_losses_are_trls_on_random_inputs(
    run: Path, differences: Differences, place: str, case: int
) -> None:
    theirs = part(load_file(run / "functions.safetensors"), f"shaping.{place}.{case}.")
    hyper = ours(SHAPINGS[place])
    mask = length_mask(lengths_B=theirs["lengths"], size=7)
    tokens = Tokens(
        ids=[row.tolist() for row in theirs["responses"]],
        starts_B=torch.zeros(5, dtype=torch.long),
        mask_BT=mask,
        value_mask_BT=value_mask(mask_BT=mask, score_position=hyper.score_position),
        pad_id=PAD,
        device=mask.device,
    )
    scores = end_rule(
        scores_B=theirs["scores"],
        ended_B=theirs["ended"],
        rule=hyper.end_rule,
        penalty=hyper.end_penalty,
    )
    found = make_experience(
        tokens,
        PolicyScores(
            theirs["logprobs"],
            torch.zeros_like(theirs["logprobs"]),
            theirs["ref_logprobs"],
            theirs["values"],
            difference=0.0,
        ),
        scores_B=scores,
        kl_coefficient=hyper.kl_coefficient,
        hyper=hyper,
        world=World(SimpleNamespace(num_processes=1), 0),
    )
    differences.agree("scores after the end rule", scores, theirs["trl_scores"])
    differences.agree("KL", torch.where(mask, found.log_ratio_BT, 0.0), theirs["trl_kl"])
    if not hyper.whiten_rewards:  # TRL keeps them whitened, we before
        differences.agree("rewards", found.rewards_BT, theirs["trl_rewards"])
    differences.agree("returns", found.returns_BT, theirs["trl_returns"])
    differences.agree("advantages", found.advantages_BT, theirs["trl_advantages"])
    new_logprobs = theirs["new_logprobs"].requires_grad_()
    new_values = theirs["new_values"].requires_grad_()
    surrogate = policy_loss(
        logprobs_BT=new_logprobs,
        old_logprobs_BT=found.logprobs_BT,
        advantages_BT=found.advantages_BT,
        mask_BT=mask,
        clip=hyper.clip,
        count=mask.sum(),
    )
    regression = value_loss(
        values_BT=new_values,
        old_values_BT=found.values_BT,
        returns_BT=found.returns_BT,
        mask_BT=tokens.value_mask_BT,
        clip=hyper.value_clip,
        count=tokens.value_mask_BT.sum(),
    )
    loss = surrogate.loss + hyper.value_coefficient * regression.loss
    loss.backward()
    differences.agree("policy loss", surrogate.loss, theirs["trl_pg_loss"])
    differences.agree("value loss", regression.loss, theirs["trl_vf_loss"])
    differences.agree("share of clipped values", regression.clip_share, theirs["trl_vf_clipfrac"])
    differences.agree("loss", loss, theirs["trl_loss"])
    for name, leaf in (("logprobs", new_logprobs), ("values", new_values)):
        assert leaf.grad is not None
        differences.agree(f"gradient by {name}", leaf.grad, theirs[f"trl_{name}_gradient"])


class Update:
    """A run of ours on the tokens and weights of one of TRL's, not yet started."""

    def __init__(self, run: Path, name: str) -> None:
        from pipeline.models.load import load_tokenizer
        from pipeline.rl.ppo.build import build_ppo
        from pipeline.rl.prompts import PreparedPrompt

        self.theirs = load_file(run / f"{name}.safetensors")
        self.figures = json.loads((run / f"{name}.json").read_text(encoding="utf-8"))
        self.responses = self._responses()
        prompts = [[i for i in row.tolist() if i != PAD] for row in self.theirs["queries"]]
        self.ppo = build_ppo(
            policy_source=run / "policy",
            reference_source=run / "reference",
            value_source=run / "value",
            scorers=[Term(self)],
            tokenizer=load_tokenizer(run / "policy"),
            prompts=[PreparedPrompt(str(row), ids) for row, ids in enumerate(prompts)],
            pretraining=None,
            hyper=ours(SHAPINGS[name] | PLAN["updates"][name]["settings"]),
            world=World(make_accelerator(bf16=False), 0),
        )
        self.ppo.engine = self  # type: ignore[assignment]
        self.rows = {tuple(ids): row for row, ids in enumerate(prompts)}

    name = "TRL's scores"

    def _responses(self) -> list[Sample]:
        found = []
        for row, ids in enumerate(self.theirs["responses"]):
            length = int((~self.theirs["padding_mask"][row]).sum())
            tokens = ids[:length].tolist()
            logprobs = self.theirs["logprobs"][row, :length].tolist()
            found.append(Sample(tokens, tokens[-1] == END, logprobs))
        return found

    def sample(self, prompts: list[list[int]], *, generator: torch.Generator) -> list[Sample]:
        return [self.responses[self.rows[tuple(ids)]] for ids in prompts]

    def synchronize(self) -> None:
        """The engine has no weights."""

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        return [float(self.theirs["raw_scores"][int(str(row))]) for row in prompts]

    def experience(self) -> tuple[Any, Tensor]:
        """Return our experience, and the row that each episode has at TRL's."""
        from pipeline.rl.ppo.loop import _logprobs_and_values, _roll_out

        ppo = self.ppo
        episodes = _roll_out(ppo)
        scores = ppo.rewards.score(episodes, hyper=ppo.hyper, world=ppo.world)
        tokens, scored = _logprobs_and_values(ppo, episodes)
        found = make_experience(
            tokens,
            scored,
            scores_B=scores.final_B,
            kl_coefficient=ppo.kl_coefficient,
            hyper=ppo.hyper,
            world=ppo.world,
        )
        return found, torch.tensor([int(str(prompt.prompt)) for prompt in episodes.prompts])

    def modules(self) -> Iterator[tuple[str, Any]]:
        """Yield policy and value model under TRL's names."""
        yield "policy", self.ppo.policy.model
        yield "value_model", self.ppo.world.unwrapped(self.ppo.optimization.value.module).model


@pytest.fixture(params=UPDATES)
def update(request: pytest.FixtureRequest, run: Path) -> Callable[[], Update]:
    return lambda: Update(run, request.param)


def test_trls_roll_out_has_all_kinds_of_responses(update: Callable[[], Update]) -> None:
    # Ended with and without room for the score, and not ended; none with padding inside.
    found = update()
    width = found.theirs["responses"].shape[1]
    kinds = {(s.ended, len(s.token_ids) < width) for s in found.responses}
    assert {(True, True), (False, False)} <= kinds
    assert all(PAD not in sample.token_ids for sample in found.responses)


def test_experience_is_trls(update: Callable[[], Update], differences: Differences) -> None:
    mine = update()
    found, rows = mine.experience()
    theirs = {name: mine.theirs[name][rows] for name in mine.theirs if "." not in name}
    mask = found.tokens.mask_BT
    assert torch.equal(mask, ~theirs["padding_mask"])
    assert torch.equal(found.tokens.value_mask_BT, ~theirs["padding_mask_p1"])

    def agree(name: str, tensor: Tensor, other: Tensor) -> None:
        differences.agree(f"update: {name}", tensor, other)

    agree("logprobs", found.logprobs_BT, torch.where(mask, theirs["logprobs"], 0.0))
    reference = found.logprobs_BT - found.log_ratio_BT
    agree("reference's logprobs", reference, torch.where(mask, theirs["ref_logprobs"], 0.0))
    agree("values", found.values_BT, theirs["values"])
    if not mine.ppo.hyper.whiten_rewards:
        agree("rewards", found.rewards_BT, theirs["rewards"])
    agree("returns", found.returns_BT, theirs["returns"])
    agree("advantages", found.advantages_BT, theirs["advantages"])


def test_the_gradients_of_the_first_step_are_trls(
    update: Callable[[], Update], differences: Differences
) -> None:
    mine = update()
    found, _ = mine.experience()
    mine.ppo.optimization._minibatch_gradient(
        found, list(range(len(found.tokens.ids))), warming=False
    )
    for prefix, module in mine.modules():
        gradients = part(mine.theirs, f"gradient.{prefix}.")
        largest = max(gradient.abs().max().item() for gradient in gradients.values())
        assert largest > 1e-3  # there is something to agree on
        for name, parameter in module.named_parameters():
            differences.agree(f"update: gradients, {prefix}", parameter.grad, gradients.pop(name))
        assert not gradients


def test_the_losses_of_all_steps_and_the_weights_after_them_are_trls(
    update: Callable[[], Update], differences: Differences
) -> None:
    from pipeline.rl.ppo.loop import run_update

    mine = update()
    found, _ = mine.experience()
    steps = mine.ppo.optimization.run(found, update=0, check=True).steps
    assert len(steps) == len(mine.figures["losses"]) == 4
    # What clips clips, and TRL's max_grad_norm of 1, which it does not heed, would.
    assert steps[-1].clip_share > 0.05 and steps[-1].value_clip_share > 0.05
    for step, (policy, value) in zip(steps, mine.figures["losses"], strict=True):
        for name, loss, other in (
            ("policy losses of 4 steps", step.policy_loss, policy),
            ("value losses of 4 steps", step.value_loss, value),
        ):
            differences.agree(f"update: {name}", torch.tensor(loss), torch.tensor(other))
    whole = update()
    metrics = run_update(whole.ppo).metrics
    assert max(metrics["gradient_norm/policy"], metrics["gradient_norm/value"]) > 1.0
    for name in ("objective/kl", "objective/scores", "loss/policy_avg", "loss/value_avg"):
        other = torch.tensor(whole.figures["metrics"][name])
        differences.agree(f"update: {name}", torch.tensor(metrics[name]), other)
    for prefix, module in whole.modules():
        weights = part(whole.theirs, f"weight.{prefix}.")
        for name, parameter in module.named_parameters():
            differences.agree(
                f"update: weights after it, {prefix}", parameter.detach(), weights.pop(name)
            )
        assert not weights


def test_the_preset_has_trls_defaults(run: Path) -> None:
    defaults = json.loads((run / "defaults.json").read_text(encoding="utf-8"))
    hyper = ours({"missing_eos_penalty": 1.0})
    for name, our_name in NAMES.items():
        assert getattr(hyper, our_name) == defaults[name], name
    assert hyper.temperature == pytest.approx(defaults["temperature"] + 1e-7, abs=1e-12)


def test_trl_takes_steps_by_the_place_in_the_data_not_by_minibatches(run: Path) -> None:
    # Two micro-batches, two minibatches, three epochs, so that six steps are asked for.
    steps = {
        name: json.loads((run / f"{name}.json").read_text(encoding="utf-8"))["optimizer_steps"]
        for name in ("first_of_two", "last")
    }
    assert steps == {"first_of_two": 3, "last": 6}
