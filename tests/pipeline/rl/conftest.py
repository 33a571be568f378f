"""A tiny run of PPO, without the stage around it, and a server that samples for it."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from data.records import Prompt
from pipeline.generation.decoder import Decoder
from pipeline.generation.generate import Sampling, _draw
from pipeline.rl.processes import World
from pipeline.rl.rewards import Term


class ShareOf:
    """Scores a text by the share of its characters that are wanted, white space around it apart."""

    name = "share"

    def __init__(self, wanted: str) -> None:
        self.wanted = wanted

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        texts = [text.strip() for text in responses]
        return [sum(c in self.wanted for c in text) / max(1, len(text)) for text in texts]


@pytest.fixture
def make_ppo(tmp_path: Path, tiny_tokenizer: Any, save_policy: Any) -> Callable[..., Any]:
    """Return a builder of runs: make_ppo(value="separate", scorer=ShareOf("e"), **settings).

    `lora` puts policy and reference on one trunk, with the value head.
    """
    from pipeline.rl.ppo.build import build_ppo
    from pipeline.rl.processes import make_accelerator
    from pipeline.rl.prompts import PreparedPrompt
    from pipeline.rl.settings import Hyperparameters

    own = tiny_tokenizer()
    folder = save_policy(own, tmp_path / "start")

    def build(
        *,
        tokenizer: Any = own,
        value: str = "separate",
        lora: Any = None,
        scorer: Any = None,
        pretraining: list[list[int]] | None = None,
        policy: Path = folder,
        first: int = 60,
        read_values: bool = False,
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
        return build_ppo(
            policy_source=policy,
            reference_source=None,
            value_source=policy if value == "separate" and lora is None else None,
            scorers=[Term(scorer or ShareOf("e"))],
            lora=lora,
            read_values=read_values,
            tokenizer=tokenizer,
            prompts=[PreparedPrompt("?", [first + i] * (1 + i % 4)) for i in range(10)],
            pretraining=pretraining,
            hyper=Hyperparameters(**settings),
            world=World(make_accelerator(bf16=False), 0),
        )

    return build


@pytest.fixture
def experience_of() -> Callable[..., Any]:
    """Return what rolls out, scores and shapes as an update does: experience_of(ppo)."""
    from pipeline.rl.ppo.experience import make_experience
    from pipeline.rl.ppo.loop import _logprobs_and_values, _roll_out

    def build(ppo: Any) -> Any:
        episodes = _roll_out(ppo)
        scores = ppo.rewards.score(episodes, hyper=ppo.hyper, world=ppo.world)
        tokens, scored = _logprobs_and_values(ppo, episodes)
        return make_experience(
            tokens,
            scored,
            scores_B=scores.final_B,
            kl_coefficient=ppo.kl_coefficient,
            hyper=ppo.hyper,
            world=ppo.world,
        )

    return build


@pytest.fixture
def learn(make_ppo: Callable[..., Any]) -> Callable[..., list[float]]:
    """Return what trains a policy to say what is rewarded: the scores of learn(enough, **settings).

    It ends where the mean of five updates is more than `enough`, or after 40.
    """
    from pipeline.rl.ppo.loop import run_update

    def run(enough: float, **settings: Any) -> list[float]:
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
        scores: list[float] = []
        while len(scores) < 40 and sum(scores[-5:]) / 5 <= enough:
            scores.append(run_update(ppo).metrics["objective/scores"])
        return scores

    return run


BATCH, TOKENS = 8, 6
"""Episodes and longest response of a run that a fake server serves."""


def numbers(*, seed: int = 0, updates: int = 4) -> dict[int, torch.Tensor]:
    """Return the random numbers that the own sampler has for a response, by its seed."""
    found = {}
    for update in range(updates):
        generator = World(None, seed).generator("rollout", update)
        rows = torch.rand((BATCH, TOKENS), generator=generator, dtype=torch.float64)
        found.update({int(row[0] * 2**53): row for row in rows})
    return found


class FakeVllm:
    """A server of vLLM's routes in this process.

    `fails` maps a route to what happens there: a status, or a callable of the request that is
    waited for.
    """

    def __init__(self, policy: Path, *, port: int = 0, **told: Any) -> None:
        self.told = {
            "logprobs_mode": "processed_logprobs",
            "shape": json.loads((policy / "config.json").read_text()),
            **told,
        }
        self.model: Any = None
        self.numbers, self.off = numbers(), 0.0
        self.received: list[dict[str, torch.Tensor]] = []
        self.asked: list[dict[str, Any]] = []
        self.fails: dict[str, Any] = {}
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(None)

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                self.answer(json.loads(self.rfile.read(length)))

            def answer(self, body: Any) -> None:
                route = self.path.split("?")[0]
                failure = outer.fails.get(route)
                if callable(failure):
                    failure = failure(body)
                if failure is True:  # waited for until nobody listened any more
                    return
                if failure == "hang up":
                    return
                if failure is None:
                    status, content = 200, outer.answers(route, body)
                else:
                    status, content = failure, {"error": {"message": "no"}}
                told = json.dumps(content).encode()
                with contextlib.suppress(ConnectionError):  # the client may have given up
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(told)))
                    self.end_headers()
                    self.wfile.write(told)

            def log_message(self, *arguments: Any) -> None:
                """Say nothing."""

        self.http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()

    def answers(self, route: str, body: Any) -> Any:
        if route == "/v1/models":
            return {"data": [{"id": "policy", "max_model_len": 128}]}
        if route == "/reset_prefix_cache":
            return {"success": True}
        if route == "/collective_rpc":
            if body["method"] == "describe_policy":
                return {"results": [self.told]}
            assert body["method"] == "take_policy"
            return self.load(**body["kwargs"])
        assert route == "/v1/completions"
        with self.lock:
            return self.complete(body)

    def load(self, weights_path: str) -> Any:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(weights_path).eval()
        self.received.append({k: v.clone() for k, v in self.model.state_dict().items()})
        return {"results": [None]}

    def complete(self, body: dict[str, Any]) -> Any:
        self.asked.append(body)
        decoder = Decoder(
            self.model,
            [body["prompt"]],
            limits=[body["max_tokens"]],
            draw=partial(_draw, sampling=Sampling(TOKENS, body["temperature"])),
            uniforms_NT=self.numbers[body["seed"]][None],
            eos_token_ids=body["stop_token_ids"],
            pad_token_id=0,
            slots=1,
        )
        while not decoder.done:
            decoder.step()
        (sample,) = decoder.responses
        logprobs = [figure + self.off for figure in sample.logprobs]
        return {
            "choices": [{"token_ids": sample.token_ids, "logprobs": {"token_logprobs": logprobs}}]
        }

    def close(self) -> None:
        if self.thread.is_alive():
            self.http.shutdown()
            self.thread.join()
        self.http.server_close()


@pytest.fixture
def policy(tmp_path: Path, tiny_tokenizer: Any, save_policy: Callable[..., Any]) -> Path:
    folder: Path = save_policy(tiny_tokenizer(), tmp_path / "start")
    return folder


@pytest.fixture
def serve(policy: Path) -> Iterator[Callable[..., FakeVllm]]:
    started: list[FakeVllm] = []

    def start(folder: Path = policy, **told: Any) -> FakeVllm:
        started.append(FakeVllm(folder, **told))
        return started[-1]

    yield start
    for server in started:
        server.close()
