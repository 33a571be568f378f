"""PPO ends at the optimum of its objective, on a task small enough to write down every response.

For responses of one to three tokens J(pi) = E[r] - b KL(pi || ref) is a finite sum, and its optimum
is pi* = ref exp(r / b) / Z with J(pi*) = b log Z (Ziegler et al. 2019, section 2). The loop trains,
what it ends at is computed exactly, and nothing is sampled in the comparison.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch

from data.records import Prompt
from pipeline.rl.health.doctor import ADVICE, OR_ELSE
from pipeline.rl.maths.kl import kl_estimate
from pipeline.rl.ppo.loop import run_update
from pipeline.rl.rewards import Term
from pipeline.stages.ppo.settings import PpoSettings

pytestmark = pytest.mark.first

PAD, END, WORDS, LONGEST = 0, 1, range(2, 6), 3
PROMPTS = ([2, 3], [5, 4, 4])
GAIN_LOST = 0.05
"""Share of the way from the start to the optimum that a run may leave."""

BRIEF = 20 * 256
"""Episodes that are enough to come so near with the settings as they stand."""

Responses = list[tuple[int, ...]]


def responses() -> Responses:
    """Return every response: it ends with its first end, or after the third token."""
    tokens = (PAD, END, *WORDS)
    found: Responses = []
    for size in range(1, LONGEST + 1):
        for ids in product(tokens, repeat=size):
            if END not in ids[:-1] and (ids[-1] == END or size == LONGEST):
                found.append(ids)
    return found


def text_of(ids: Sequence[int]) -> str:
    return " ".join(f"w{i}" for i in ids if i in WORDS)


class Table:
    """Scores a text by its words and by which follows which, in numbers drawn once a prompt."""

    name = "table"

    def __init__(self) -> None:
        drawn = torch.Generator().manual_seed(3)
        self.words = 2 * torch.randn(len(PROMPTS), 6, generator=drawn)
        self.pairs = torch.randn(len(PROMPTS), 6, 6, generator=drawn)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        return [self.of(int(str(p)), text) for p, text in zip(prompts, responses, strict=True)]

    def of(self, prompt: int, text: str) -> float:
        ids = [int(word[1:]) for word in text.split()]
        found = sum(float(self.words[prompt, i]) for i in ids)
        return found + sum(float(self.pairs[prompt, i, j]) for i, j in pairwise(ids))


class Task:
    """A policy over six tokens, and what it may come to.

    Attributes:
        reference: log-probabilities of every response to each prompt, before training.
        scores: of the same.
    """

    def __init__(self, folder: Path, *, value: Path | None = None, **settings: Any) -> None:
        from pipeline.models.load import load_tokenizer
        from pipeline.rl.ppo.build import build_ppo
        from pipeline.rl.processes import World, make_accelerator
        from pipeline.rl.prompts import PreparedPrompt
        from pipeline.rl.settings import Hyperparameters

        plain = {
            "episodes": 40 * 256, "batch_size": 256, "epochs": 4, "minibatches": 1,
            "micro_batch_size": 512, "generation_batch_size": 512,
            "max_new_tokens": LONGEST, "temperature": 1.0, "end_rule": "none",
            "learning_rate": 1e-2, "value_learning_rate": 1e-2, "bf16": False,
        }  # fmt: skip
        table = Table()
        self.ppo = build_ppo(
            policy_source=folder,
            reference_source=None,
            value_source=value or folder,
            scorers=[Term(table)],
            tokenizer=load_tokenizer(folder),
            prompts=[PreparedPrompt(str(row), list(ids)) for row, ids in enumerate(PROMPTS)],
            pretraining=None,
            hyper=Hyperparameters(**{**plain, **settings}),
            world=World(make_accelerator(bf16=False), 0),
        )
        self.responses = responses()
        texts = [text_of(ids) for ids in self.responses]
        rows = [[table.of(prompt, text) for text in texts] for prompt in range(len(PROMPTS))]
        self.scores = torch.tensor(rows, dtype=torch.float64)
        self.reference = self.logprobs()

    @torch.no_grad()
    def logprobs(self) -> torch.Tensor:
        """Return the log-probability of every response to each prompt under the policy now."""
        model, temperature = self.ppo.policy.model, self.ppo.hyper.temperature
        rows = torch.tensor([[*ids, *[PAD] * (LONGEST - len(ids))] for ids in self.responses])
        mask = torch.arange(LONGEST) < torch.tensor([[len(ids)] for ids in self.responses])
        found = []
        for prompt in PROMPTS:
            whole = torch.cat([torch.tensor([prompt]).expand(len(rows), -1), rows], dim=1)
            logits = model(whole).logits[:, len(prompt) - 1 : -1].double() / temperature
            each = logits.log_softmax(dim=-1).gather(2, rows[:, :, None])[:, :, 0]
            found.append(torch.where(mask, each, 0.0).sum(dim=1))
        return torch.stack(found)

    def objective(self, coefficient: float) -> float:
        """Return J of the policy now, the mean over prompts."""
        logprobs = self.logprobs()
        each = self.scores - coefficient * (logprobs - self.reference)
        return float((logprobs.exp() * each).sum(dim=1).mean())

    def optimum(self, coefficient: float) -> float:
        """Return J of the best policy there is."""
        weights = self.reference + self.scores / coefficient
        return float(coefficient * weights.logsumexp(dim=1).mean())

    def lost(self, coefficient: float) -> float:
        """Return the share of the gain over the start that the policy now leaves."""
        start = float((self.reference.exp() * self.scores).sum(dim=1).mean())
        best = self.optimum(coefficient)
        assert best - start > 1.0
        return (best - self.objective(coefficient)) / (best - start)

    def train(self) -> None:
        for _ in range(self.ppo.hyper.updates):
            run_update(self.ppo)


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., Path]:
    """Return what saves a policy over six tokens: start(seed)."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {"<pad>": PAD, "<eos>": END} | {f"w{i}": i for i in WORDS}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>"
    )
    shape = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 16,
        "initializer_range": 0.3, "tie_word_embeddings": False,
    }  # fmt: skip
    special = {"pad_token_id": PAD, "eos_token_id": END, "bos_token_id": None}

    def save(seed: int = 0) -> Path:
        folder = tmp_path / f"start-{seed}"
        torch.manual_seed(seed)
        LlamaForCausalLM(LlamaConfig(vocab_size=6, **shape, **special)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


def test_the_responses_are_all_there_are(start: Callable[..., Path]) -> None:
    task = Task(start())
    # One of one token, five of two, and 25 times six of three.
    assert len(task.responses) == 1 + 5 + 150
    assert task.reference.exp().sum(dim=1).tolist() == pytest.approx([1.0, 1.0])
    # The optimum by its own distribution: E[r] - b KL.
    best = task.reference + task.scores / 0.5
    best = best - best.logsumexp(dim=1, keepdim=True)
    each = task.scores - 0.5 * (best - task.reference)
    assert float((best.exp() * each).sum(dim=1).mean()) == pytest.approx(task.optimum(0.5))


@pytest.mark.parametrize("coefficient", [pytest.param(0.25, marks=pytest.mark.slow), 1.0])
def test_ppo_ends_at_the_optimum(start: Callable[..., Path], coefficient: float) -> None:
    task = Task(start(), kl_coefficient=coefficient, episodes=BRIEF)
    task.train()
    assert 0 <= task.lost(coefficient) < GAIN_LOST


@pytest.mark.slow
def test_another_penalty_than_the_log_ratio_leads_elsewhere(
    start: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(*, estimator: str, **both: torch.Tensor) -> torch.Tensor:
        return kl_estimate(**both, estimator="k3")

    monkeypatch.setattr("pipeline.rl.ppo.experience.kl_estimate", other)
    task = Task(start(), kl_coefficient=1.0, episodes=BRIEF)
    task.train()
    assert task.lost(1.0) > 4 * GAIN_LOST


KEEPS: dict[str, dict[str, Any]] = {
    "learning_rate": {"learning_rate": 6e-3},
    "early_stop_kl": {"early_stop_kl": 0.02},
    "epochs": {"epochs": 2, "episodes": 80 * 256},
    "minibatches": {"minibatches": 1},
    "batch_size": {"batch_size": 512, "episodes": 40 * 512},
    "top_k": {"top_k": 0},
    "top_p": {"top_p": 1.0},
    "value_learning_rate": {"value_learning_rate": 3e-2},
    "value_coefficient": {"value_coefficient": 1.0},
    "value_warmup_updates": {"value_warmup_updates": 4},
    "value_start": {},
}
"""Settings that the doctor names as leaving the optimum alone, as they are tried."""
MOVES = {
    "kl_coefficient", "adaptive_kl", "entropy_coefficient", "end_rule", "end_penalty", "policy",
}  # fmt: skip
"""Settings that change the objective; with another policy comes another reference."""
NAMES = set(PpoSettings.model_fields)


def named(text: str) -> set[str]:
    return set(re.findall(r"[a-z_]+", text)) & NAMES - {"reward", "max_new_tokens", "prompts"}


@pytest.mark.parametrize("alarm", ADVICE)
def test_advice_that_changes_the_objective_says_so(alarm: str) -> None:
    keeping, _, moving = ADVICE[alarm].remedy.partition(OR_ELSE)
    assert named(keeping) <= set(KEEPS) and named(moving) <= MOVES


def test_all_that_is_tried_is_advised() -> None:
    advised = set().union(*(named(advice.remedy) for advice in ADVICE.values()))
    assert advised == set(KEEPS) | MOVES


@pytest.mark.slow
@pytest.mark.parametrize("setting", KEEPS)
def test_advice_leaves_the_optimum_where_it_is(start: Callable[..., Path], setting: str) -> None:
    value = start(7) if setting == "value_start" else None
    task = Task(start(), kl_coefficient=1.0, value=value, **KEEPS[setting])
    task.train()
    assert 0 <= task.lost(1.0) < GAIN_LOST
