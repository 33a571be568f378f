"""JSON from servers on this machine that behave badly, each in its own way."""

from __future__ import annotations

import gzip
import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data import http_json
from data.http_json import RefusedError, UnansweredError, WrongAnswerError, ask_json

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
Answer = bytes | Callable[[Any], None]
Serve = Callable[..., "Server"]


class Server(socketserver.ThreadingTCPServer):
    """Gives each connection the next answer as it is, and keeps what it was sent."""

    daemon_threads, allow_reuse_address = True, True

    def __init__(self, *answers: Answer) -> None:
        super().__init__(("127.0.0.1", 0), socketserver.StreamRequestHandler)
        self.answers, self.asked = list(answers), list[bytes]()
        self.over = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self.thread.start()

    def finish_request(self, request: Any, client_address: Any) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += request.recv(65536)
        self.asked.append(head)
        answer = self.answers.pop(0)
        answer(request) if callable(answer) else request.sendall(answer)

    def drip(self, start: bytes) -> Callable[[Any], None]:
        """Return an answer that goes on a byte at a time."""

        def answer(request: Any) -> None:
            request.sendall(start)
            while not self.over.wait(0.02):
                request.sendall(b"1")

        return answer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hung up."""

    def close(self) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()
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


def answer(body: bytes, head: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    "cut",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno number\r\n{}",
        b"\x00\x01\x02\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
    ],
)
def test_an_answer_that_is_cut_or_garbled_is_asked_for_again(
    serve: Serve, waits: list[float], cut: bytes
) -> None:
    server = serve(cut, OK)
    assert ask_json(server.url, b"[1]", timeout=30, retries=1) == {}
    assert waits == [1.0] and len(server.asked) == 2


@pytest.mark.parametrize("start", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n\r\n[", b""])
def test_a_server_that_drips_is_given_up_in_time(serve: Serve, start: bytes) -> None:
    server = serve()
    server.answers = [server.drip(start)]
    with pytest.raises(UnansweredError, match=r"no whole answer in 0\.2 seconds") as caught:
        ask_json(server.url, timeout=0.2)
    assert caught.value.slow


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary"])
def test_no_redirect_is_followed_and_no_key_travels(serve: Serve, status: str) -> None:
    other = serve(OK)
    server = serve(answer(b"", f"{status}\r\nLocation: {other.url}"))
    with pytest.raises(RefusedError, match=rf"status {status}, it sends on to {other.url}"):
        ask_json(server.url, b"{}", headers={"Authorization": "Bearer k"}, timeout=30, retries=3)
    assert other.asked == [] and len(server.asked) == 1


def test_a_netrc_does_not_take_the_place_of_the_key(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login other password mine\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server = serve(OK)
    ask_json(server.url, b"{}", headers={"Authorization": "Bearer k"}, timeout=30)
    assert b"Authorization: Bearer k\r\n" in server.asked[0]


@pytest.mark.parametrize("key", ["secret\n", "secret…"])
def test_a_key_that_no_header_can_hold_is_told_without_it(key: str) -> None:
    with pytest.raises(RefusedError, match="no request can be made") as caught:
        ask_json("http://127.0.0.1:1/", b"{}", headers={"Authorization": key}, timeout=1)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ("7", 7.0),
        ("0", 1.0),
        ("9" * 30, 60.0),
        ("9" * 5000, 1.0),
        ("-5", 1.0),
        ("soon", 1.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 1.0),
        ("Wed, 21 Oct 99999 07:28:00 GMT", 1.0),
        ("Sun, 21 Oct 2096 07:28:00 GMT", 60.0),
    ],
)
def test_a_server_says_when_to_ask_again(
    serve: Serve, waits: list[float], after: str, expected: float
) -> None:
    server = serve(answer(b"busy", f"429 Too Many\r\nRetry-After: {after}"), OK)
    assert ask_json(server.url, b"{}", timeout=30, retries=1) == {}
    assert waits == [expected]


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b"", "''"),
        (b"<html>", "'<html>'"),
        (b"\xff\xfe\xfa", "'\ufffd"),
        (b"[" * 100_000, r"'\[\[\["),
        (b"1" * 5000, "'1111"),
        (b"[" + b" " * 2000 + b"]", "more than 1,000 bytes"),
    ],
)
def test_what_is_no_json_is_told_in_short(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, body: bytes, shown: str
) -> None:
    if "more" in shown:
        monkeypatch.setattr(http_json, "MOST_BYTES", 1000)
    with pytest.raises(WrongAnswerError, match=f"^{shown}") as caught:
        ask_json(serve(answer(body)).url, timeout=30, retries=3)
    assert len(str(caught.value)) < 200


def test_what_is_packed_counts_by_what_is_in_it(serve: Serve) -> None:
    packed = gzip.compress(json.dumps([0] * 1000).encode())
    bomb = gzip.compress(b" " * (http_json.MOST_BYTES + 1))
    gzipped = "200 OK\r\nContent-Encoding: gzip"
    server = serve(answer(packed, gzipped), answer(bomb, gzipped))
    assert ask_json(server.url, timeout=30) == [0] * 1000
    with pytest.raises(WrongAnswerError, match="more than"):
        ask_json(server.url, timeout=30)


def test_a_proxy_is_gone_by_unless_there_shall_be_none(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, proxy = serve(OK), serve(OK)
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    monkeypatch.setenv("NO_PROXY", "")
    ask_json(server.url, timeout=30)
    ask_json(server.url, timeout=30, proxies=False)
    assert (len(proxy.asked), len(server.asked)) == (1, 1)
