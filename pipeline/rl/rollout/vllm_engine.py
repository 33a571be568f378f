"""Roll-outs by a vLLM server that holds a copy of the policy.

Before an update's first response the policy's weights go to the server, through a folder of
safetensors that both see, with an adapter merged and sharded weights gathered. They go then, and
not after the update before, so that all that can fail of the server fails where nothing of an
update has happened yet: the state of the last one is saved, and a run goes on from there.

What is exact, and what is not: each response has a seed that follows from the run's seed, the
update and the response's place in the global batch, whatever the number of processes. But vLLM
sums in an order that depends on which requests share a batch, so that log-probabilities may move
in their last digits from run to run, and now and then a token with them. A resumed run thus draws
with the same seeds from the same weights, but need not end bit for bit as the uninterrupted one.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from data.errors import RolloutError
from pipeline.generation.generate import Sample
from pipeline.generation.vllm_server import COMPARED, LOGPROBS_MODE, Served, VllmServer
from pipeline.models.load import save_model
from pipeline.models.unused_ids import unused_ids
from pipeline.rl.learner import Learner
from pipeline.rl.processes import World


@dataclass
class VllmEngine:
    """Samples by a server; a `RolloutEngine`.

    Attributes:
        server: where it is.
        policy: holds the causal model that is trained.
        max_new_tokens: longest response, its end included.
        temperature: divides the logits.
        end_ids: tokens that end a response.
        at_once: requests of this process under way at a time.
        folder: where weights go on their way to the server; emptied.
        world: the processes.
        weights: context in which the model has the policy's weights, such as a merged adapter's.
    """

    server: VllmServer
    policy: Learner
    max_new_tokens: int
    temperature: float
    end_ids: Sequence[int]
    at_once: int
    folder: Path
    world: World
    weights: Callable[[], AbstractContextManager[None]] = nullcontext
    _served: Served | None = field(default=None, init=False)
    _stale: bool = field(default=True, init=False)
    _sent: int = field(default=0, init=False)

    def sample(self, prompts: Sequence[list[int]], *, generator: torch.Generator) -> list[Sample]:
        """Return one response to each prompt.

        Raises:
            RolloutError: on all processes alike, where the server fails one of them.
        """
        if self._served is None:
            self._served = self.world.everywhere(self._connect, failure=RolloutError)
        if self._stale:
            self.world.everywhere(self._send, failure=RolloutError)
            self._stale = False
        seeds = self._seeds(len(prompts), generator)
        return self.world.everywhere(lambda: self._ask(prompts, seeds), failure=RolloutError)

    def synchronize(self) -> None:
        """Have the weights sent before the next response."""
        self._stale = True

    def _connect(self) -> Served:
        """Ask the server what it is, and refuse one with another model."""
        served = self.server.describe()
        if served.logprobs_mode != LOGPROBS_MODE:
            raise self.server.wrong(
                f"gives {served.logprobs_mode:.80} where the policy's under the temperature are "
                "needed"
            )
        own = self._configuration()
        for name in COMPARED:
            if name in own and name in served.shape and own[name] != served.shape[name]:
                raise self.server.wrong(
                    f"holds another model than the policy: {served.name:.80} has {name} "
                    f"{served.shape[name]}, the policy {own[name]}"
                )
        return served

    def _configuration(self) -> dict[str, Any]:
        config: Any = self.world.unwrapped(self.policy.module).model.config.get_text_config()
        settings: dict[str, Any] = config.to_dict()
        return settings

    def _send(self) -> None:
        """Write the policy's weights and have them loaded; called on every process."""
        with self.policy.full_module() as policy, self.weights():
            if self.world.rank != 0:
                return
            shutil.rmtree(self.folder, ignore_errors=True)
            self._sent += 1
            # A new folder each time, so that a server never reads half of what it read before.
            folder = self.folder.resolve() / f"weights-{self._sent:06d}"
            save_model(policy.model, None, folder)
        self.server.load(folder)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _seeds(self, count: int, generator: torch.Generator) -> list[int]:
        """Return a seed for each prompt, which depends on its place alone.

        Drawn as the own sampler draws its numbers, those of the processes before this one having
        been passed over.
        """
        uniforms_NT = torch.rand(
            (count, self.max_new_tokens), generator=generator, dtype=torch.float64
        )
        seeds: list[int] = (uniforms_NT[:, 0] * 2**53).long().tolist()
        return seeds

    def _ask(self, prompts: Sequence[list[int]], seeds: Sequence[int]) -> list[Sample]:
        served = self._served
        assert served is not None
        unused = unused_ids(self.world.unwrapped(self.policy.module).model)
        pool = ThreadPoolExecutor(max_workers=max(1, min(self.at_once, len(prompts))))
        try:
            asked = [
                pool.submit(
                    self.server.complete,
                    served,
                    prompt,
                    max_new_tokens=self.max_new_tokens,
                    temperature=self.temperature,
                    end_ids=self.end_ids,
                    seed=seed,
                    unused_ids=unused,
                )
                for prompt, seed in zip(prompts, seeds, strict=True)
            ]
            return [each.result() for each in asked]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
