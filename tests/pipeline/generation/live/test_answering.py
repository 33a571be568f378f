"""Answers to several people at once: the same whoever else asks, evenly spread, all different."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from data.labels.live.conversations import Answers
from data.labels.live.protocol import Channel, connect, worker_file
from data.records import chat
from pipeline.generation.generate import Sampling
from pipeline.generation.live.answering import FULL, Answerer, Speaker
from pipeline.generation.live.service import AnswerService


@pytest.fixture(scope="module")
def speakers(tokenizer: Any) -> list[Speaker]:
    from transformers import LlamaConfig, LlamaForCausalLM

    made = []
    for seed, name in enumerate(("sft", "ppo")):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
            num_attention_heads=1, max_position_embeddings=96, initializer_range=0.2,
        )  # fmt: skip
        made.append(Speaker(name, LlamaForCausalLM(config).eval(), tokenizer))
    return made


def finish(answerer: Answerer) -> dict[str, Answers]:
    whole: dict[str, Answers] = {}
    while answerer.busy:
        told = answerer.step()
        whole |= {turn: said for turn, said in told.items() if isinstance(said, Answers)}
    return whole


def test_answers_follow_from_the_message_alone(speakers: list[Speaker]) -> None:
    sampling = Sampling(max_new_tokens=6)
    alone = Answerer(speakers, sampling)
    alone.ask("turn 1", chat("Hello"), 4)
    [first] = finish(alone).values()
    assert len(set(first.texts)) == 4 and first.tokens >= 4
    assert sorted(first.policies) == ["ppo", "ppo", "sft", "sft"]
    together = Answerer(speakers, sampling)
    for number in range(3):  # one by one and at once, as people come
        together.ask(f"other {number}", chat("What is it, after all?"), 2)
        together.step()
    together.ask("turn 1", chat("Hello"), 4)
    found = finish(together)
    assert found["turn 1"] == first and len(found) == 4


def test_the_odd_answer_is_anybodys(speakers: list[Speaker]) -> None:
    answerer = Answerer(speakers, Sampling(max_new_tokens=1))
    for number in range(12):
        answerer.ask(f"turn {number}", chat("Hello"), 3)
    names = {one.policies.count("sft") for one in finish(answerer).values() if len(one.texts) == 3}
    assert names == {1, 2}


def test_an_answer_that_says_the_same_is_sampled_again_and_left_out(
    speakers: list[Speaker],
) -> None:
    answerer = Answerer(speakers[:1], Sampling(max_new_tokens=3, temperature=0.0))
    answerer.ask("turn", chat("Hello"), 3)
    [said] = finish(answerer).values()
    assert len(said.texts) == 1 and said.policies == ["sft"]


def test_what_is_half_said_and_what_is_forgotten(speakers: list[Speaker]) -> None:
    answerer = Answerer(speakers, Sampling(max_new_tokens=40))
    answerer.ask("one", chat("Hello"), 4)
    answerer.ask("two", chat("Hi"), 4)
    first: dict[str, list[str] | Answers] = {}
    while len(first) < 2:  # of each its first word, once
        told = answerer.step(tell=False)
        assert not first.keys() & told.keys()
        first |= told
    assert all(isinstance(said, list) and any(said) for said in first.values())
    assert answerer.step().keys() == first.keys()
    answerer.forget({"one"})
    assert list(finish(answerer)) == ["two"]
    answerer.ask("one", chat("Hello"), 2)
    answerer.forget({"one"})
    assert not answerer.busy


def test_a_conversation_that_fills_the_context_is_over(speakers: list[Speaker]) -> None:
    refused = Answerer(speakers, Sampling(max_new_tokens=50)).ask("turn", chat("x" * 90), 2)
    assert refused is not None and refused.failure == FULL and not refused.texts


def test_the_service_answers_who_knows_the_token(speakers: list[Speaker], tmp_path: Path) -> None:
    file = worker_file(tmp_path)
    answerer = Answerer(speakers, Sampling(max_new_tokens=6))

    def ask(turn: str) -> dict[str, Any]:
        channel = connect(file)
        assert channel is not None
        channel.send({"ask": turn, "messages": chat("Hello"), "answers": 2})
        said: list[dict[str, Any]] = []
        while not said or "done" not in said[-1]:
            said += channel.receive()
        channel.close()
        assert said[0] == {"ready": True} and all(one["turn"] == turn for one in said[1:])
        return dict(said[-1]["done"])

    with AnswerService(answerer, file).running() as service:
        port = int(file.read_text().split('"port": ')[1].split(",")[0])
        stranger = Channel(socket.create_connection(("127.0.0.1", port)))
        stranger.send({"token": "guessed"})
        with pytest.raises(OSError, match="gone"):
            stranger.receive()
        stranger.close()
        gone = connect(file)
        assert gone is not None
        gone.send({"ask": "given up", "messages": chat("Hello"), "answers": 2})
        gone.close()
        first = ask("turn")
        assert ask("turn") == first and len(first["texts"]) == 2
        assert service.error is None and service.answered >= 2
        odd = connect(file)
        assert odd is not None
        odd.send({"ask": "turn"})  # no message at all
        time.sleep(0)
        odd.close()
        assert ask("another")["failure"] == ""
    assert not file.exists()
