"""What tests of stages start from: demonstrations, reward models, and a server of rewards."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from data.records import chat
from pipeline.contract.context import StageContext
from pipeline.stages.sft.settings import SftSettings

QUESTIONS = [
    (f"What is {a} + {b}?", f"{a} + {b} is {a + b}." + " Indeed so." * (a % 4))
    for a in range(6)
    for b in range(6)
]
OTHER_TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[answer] {% endif %}"
)


class Server:
    """Scores a response by its capital letters; fails at the requests it is told to."""

    def __init__(self, *, fails_at: frozenset[int] = frozenset()) -> None:
        self.requests = 0
        self.fails_at: Any = fails_at
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests += 1
                if outer.requests in outer.fails_at:
                    self.send_error(503)
                    return
                scores = [sum(c.isupper() for c in text) for text in content["responses"]]
                answer = json.dumps({"scores": scores}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *arguments: Any) -> None:
                """Say nothing."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/"
        self.thread = threading.Thread(target=self.http.serve_forever)
        self.thread.start()


@pytest.fixture
def questions() -> list[tuple[str, str]]:
    """Return the 36 questions and answers of `sft_rows`."""
    return QUESTIONS


@pytest.fixture
def sft_rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for question, answer in QUESTIONS:
            file.write(json.dumps({"messages": chat(question, answer)}) + "\n")
    return path


@pytest.fixture
def sft_settings(sft_rows: Path) -> Callable[..., SftSettings]:
    def build(model: Path, **changes: Any) -> SftSettings:
        return SftSettings(
            **{
                "model": str(model),
                "train": [{"path": str(sft_rows)}],
                "heldout_share": 0.2,
                "batch_size": 4,
                "learning_rate": 1e-2,
                "log_every": 3,
                "save_every": 5,
                "epochs": 2,
                **changes,
            }
        )

    return build


@pytest.fixture
def policy(tiny_tokenizer: Any, save_policy: Any) -> Path:
    return save_policy(tiny_tokenizer())


@pytest.fixture
def server() -> Iterator[Server]:
    started = Server()
    yield started
    started.http.shutdown()
    started.http.server_close()
    started.thread.join()


@pytest.fixture
def reward_model(
    tiny_tokenizer: Callable[..., Any], tiny_policy: Callable[..., Any], tmp_path: Path
) -> Callable[..., Any]:
    """Return a builder of reward models with tokenizer, template and shape of their own."""

    def build(name: str, seed: int = 1, *, template: str | None = OTHER_TEMPLATE) -> Path:
        from transformers import LlamaForSequenceClassification

        tokenizer = tiny_tokenizer(vocab_size=290, texts=("the river and the mill",), chat=False)
        tokenizer.chat_template = template
        base = tmp_path / f"{name}-base"
        tiny_policy(tokenizer, seed=seed, hidden=24, layers=2).save_pretrained(base)
        scored = LlamaForSequenceClassification.from_pretrained(
            base, num_labels=1, pad_token_id=tokenizer.pad_token_id
        )
        torch.manual_seed(seed)
        torch.nn.init.normal_(scored.score.weight)
        scored.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / name

    return build


@pytest.fixture
def setting(
    tmp_path: Path,
    tiny_tokenizer: Callable[..., Any],
    save_policy: Callable[..., Any],
    make_context: Callable[..., Any],
) -> Callable[..., StageContext[Any]]:
    """Return a builder of contexts of a tiny run of PPO with a reward model."""
    from transformers import LlamaForSequenceClassification

    from pipeline.contract.settings import SourceSettings, references
    from pipeline.stages.ppo.settings import PpoSettings

    tokenizer = tiny_tokenizer()
    policy = save_policy(tokenizer)
    torch.manual_seed(1)
    reward_folder = tmp_path / "rm"
    scored = LlamaForSequenceClassification.from_pretrained(
        policy, num_labels=1, pad_token_id=tokenizer.pad_token_id
    )
    torch.nn.init.normal_(scored.score.weight)
    scored.save_pretrained(reward_folder)
    tokenizer.save_pretrained(reward_folder)
    prompts = tmp_path / "prompts.jsonl"
    asked = [f"What is {a} + {b}?" for a in range(4) for b in range(3)]
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in asked))

    def build(
        folder: str = "ppo", *, stop_after: int | None = None, **changes: Any
    ) -> StageContext[Any]:
        settings = PpoSettings(
            **{
                "policy": str(policy),
                "reward": str(reward_folder),
                "prompts": [SourceSettings(path=str(prompts))],
                "episodes": 32,
                "batch_size": 8,
                "epochs": 1,
                "minibatches": 2,
                "micro_batch_size": 4,
                "max_new_tokens": 6,
                "max_prompt_tokens": 40,
                "temperature": 1.0,
                "learning_rate": 1e-2,
                "save_every": 1,
                "sample_every": 2,
                "sample_count": 2,
                **changes,
            }
        )
        inputs = {path: target for path, (target, _) in references(settings).items()}
        return make_context(settings, inputs, tmp_path / folder, name="ppo", stop_after=stop_after)

    return build
