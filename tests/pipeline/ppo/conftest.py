"""A tiny run of PPO, without the stage around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from data.records import Prompt


class ShareOf:
    """Scores a text by the share of its characters that are wanted."""

    name = "share"

    def __init__(self, wanted: str) -> None:
        self.wanted = wanted

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        return [sum(c in self.wanted for c in text) / max(1, len(text)) for text in responses]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A model this small is slower on two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_ppo(tmp_path: Path, tiny_tokenizer: Any, save_policy: Any) -> Callable[..., Any]:
    """Return a builder of runs: make_ppo(value="separate", scorer=ShareOf("e"), **settings).

    `lora` puts policy and reference on one trunk, with the value head.
    """
    from pipeline.ppo.assemble import assemble
    from pipeline.ppo.prompts import PreparedPrompt
    from pipeline.ppo.ranks import Ranks, make_accelerator
    from pipeline.ppo.settings import Hyperparameters

    tokenizer = tiny_tokenizer()
    folder = save_policy(tokenizer, tmp_path / "start")

    def build(
        *,
        value: str = "separate",
        lora: Any = None,
        scorer: Any = None,
        pretraining: list[list[int]] | None = None,
        policy: Path = folder,
        **changes: Any,
    ) -> Any:
        settings: dict[str, Any] = {
            "episodes": 8,
            "batch_size": 8,
            "epochs": 1,
            "max_new_tokens": 6,
            "temperature": 1.0,
            "learning_rate": 1e-2,
            **changes,
        }
        return assemble(
            policy_source=policy,
            reference_source=None,
            value_source=policy if value == "separate" and lora is None else None,
            scorers=[(scorer or ShareOf("e"), 1.0)],
            lora=lora,
            tokenizer=tokenizer,
            prompts=[PreparedPrompt("?", [60 + i] * (1 + i % 4)) for i in range(10)],
            pretraining=pretraining,
            hyper=Hyperparameters(**settings),
            ranks=Ranks(make_accelerator(bf16=False), 0),
        )

    return build


@pytest.fixture
def learn(make_ppo: Callable[..., Any]) -> Callable[..., list[float]]:
    """Return what trains a policy to say what is rewarded: the scores of learn(**settings)."""
    from pipeline.ppo.loop import run_update

    def run(**settings: Any) -> list[float]:
        ppo = make_ppo(
            episodes=40 * 32,
            batch_size=32,
            epochs=2,
            max_new_tokens=8,
            learning_rate=2e-2,
            kl_coefficient=0.01,
            end_rule="none",
            **settings,
        )
        return [run_update(ppo).metrics["objective/scores"] for _ in range(40)]

    return run
