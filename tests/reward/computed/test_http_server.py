"""Rewards from a real server on this machine."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from data.errors import RewardError
from data.records import Message
from reward.computed.http_server import Endpoint
from reward.scorer import Scorer

CHAT: list[Message] = [{"role": "user", "content": "hi é"}]
Answer = tuple[int, dict[str, str], bytes]
Serve = Callable[..., "Server"]


class Server:
    """Answers with the given answers, then with each response's length."""

    def __init__(self, *answers: Answer) -> None:
        self.answers, self.requests = list(answers), []  # type: ignore[var-annotated]
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                content = json.loads(body)
                outer.requests.append(content)
                scores = [len(text) for text in content["responses"]]
                status, headers, answer = (
                    outer.answers.pop(0)
                    if outer.answers
                    else (200, {}, json.dumps({"scores": scores}).encode())
                )
                if status == 0:  # hang up without a word
                    self.close_connection = True
                    return
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *arguments: Any) -> None:
                """Say nothing."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/score"
        self.thread = threading.Thread(target=self.http.serve_forever)
        self.thread.start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def serve() -> Iterator[Serve]:
    started: list[Server] = []

    def start(*answers: Answer) -> Server:
        started.append(Server(*answers))
        return started[-1]

    yield start
    for server in started:
        server.close()


pytestmark = pytest.mark.usefixtures("waits")


def test_a_server_scores_in_batches(serve: Serve) -> None:
    server = serve()
    scorer = Endpoint(server.url, batch_size=2)
    assert isinstance(scorer, Scorer)
    assert scorer.score([CHAT, "b", "c"], ["one", "", "três"]) == [3.0, 0.0, 4.0]
    assert server.requests == [
        {"prompts": [CHAT, "b"], "responses": ["one", ""]},
        {"prompts": ["c"], "responses": ["três"]},
    ]
    assert scorer.score([], []) == []


def test_a_server_that_fails_twice_is_asked_again(serve: Serve, waits: list[float]) -> None:
    server = serve((503, {"Retry-After": "7"}, b"busy"), (0, {}, b""))
    assert Endpoint(server.url).score(["a"], ["four"]) == [4.0]
    assert waits == [7.0, 2.0] and len(server.requests) == 3


def test_waits_double_and_end(serve: Serve, waits: list[float]) -> None:
    server = serve(*[(500, {}, b"out of memory")] * 8)
    with pytest.raises(RewardError, match=r"no scores in 8 tries.*status 500.*out of memory"):
        Endpoint(server.url, retries=7).score(["a"], ["b"])
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0]
    assert Endpoint(server.url).score(["a"], ["b"]) == [1.0]  # it is back


def test_a_dead_server_is_told_with_the_way_out() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
    with pytest.raises(RewardError, match=r"in 2 tries.*refused; look at the server"):
        Endpoint(url, retries=1).score(["a"], ["b"])


def test_a_server_that_does_not_answer_in_time_counts_as_failed(waits: list[float]) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(RewardError, match=r"in 2 tries.*timed out"):
            Endpoint(url, retries=1, timeout=0.2).score(["a"], ["b"])
    assert waits == [1.0]


@pytest.mark.parametrize(
    ("status", "answer", "expected"),
    [
        (404, b"", r"refused: status 404 Not Found; it takes POST"),
        (422, b'{"detail": "no field texts"}', r"status 422 .*no field texts"),
        (200, b"<html>", r"answered '<html>' where"),
        (200, b'{"score": [1]}', r"where \{\"scores\""),
        (200, b"[1.0]", r"where \{\"scores\""),
        (200, b'{"scores": [1, 2]}', r"gave 2 scores for 1 responses"),
        (200, b'{"scores": [null]}', r"gave None for response 0"),
        (200, b'{"scores": [NaN]}', r"not finite"),
        (200, b'{"scores": [true]}', r"url http.* gave true or false"),
        (200, b'{"scores": [1' + b"0" * 400 + b"]}", r"url http.* gave 1000"),
        (200, b'{"scores": ' + b"[" * 900 + b"]" * 900 + b"}", r"gave \[\[.* for response 0"),
        (200, b'{"score": ' + b"[" * 900 + b"]" * 900 + b"}", r"url http.* answered \{'score'"),
        (200, b"[" * 100_000, r"url http.* answered '\[\["),
        (307, b"", r"url http.* refused: status 307"),
    ],
)
def test_what_no_retry_mends_is_an_error_at_once(
    serve: Serve, waits: list[float], status: int, answer: bytes, expected: str
) -> None:
    server = serve((status, {}, answer))
    with pytest.raises(RewardError, match=expected):
        Endpoint(server.url).score(["a"], ["b"])
    assert waits == [] and len(server.requests) == 1
