"""Servers that answer with anything: one sentence that names the address, in time, without the key.

A server here plays a script to each connection, once it was asked, or `NOW`: bytes are sent, a
number is waited for so many seconds, `RESET` ends the connection rudely. Then it hangs up.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
import socket
import socketserver
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import repeat
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from data import http_json
from data.errors import LabelError, RewardError, RolloutError, UsageError
from data.http_json import UnansweredError, ask_json
from data.labels.annotators.calls import Calls
from pipeline.generation.vllm_server import Served, VllmServer
from reward.computed.http_server import Endpoint

KEY = "sk-secret-0123456789"
TIMEOUT, HASTY = 20.0, 0.2
STALL = 3.0
RESET, NOW = "reset", "now"
Script = tuple[Any, ...]
Ask = Callable[..., object]


class Server(socketserver.ThreadingTCPServer):
    """Plays its script to every connection once a request has come."""

    daemon_threads, block_on_close, allow_reuse_address = True, False, True
    request_queue_size = 128

    def __init__(self, script: Script, context: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), socketserver.BaseRequestHandler)
        self.script, self.context = script, context
        self.asked: list[bytes] = []
        self.over = threading.Event()
        self.url = f"http{'s' if context else ''}://127.0.0.1:{self.server_address[1]}"
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self.thread.start()

    def finish_request(self, request: Any, client_address: Any) -> None:
        with suppress(OSError), self._wrapped(request) as request:
            self._play(request)
            # Hung up with bytes unread, it would be a reset, and the client could lose the answer.
            request.shutdown(socket.SHUT_WR)
            request.settimeout(STALL)
            while request.recv(65536):
                pass

    def _wrapped(self, request: socket.socket) -> socket.socket:
        return self.context.wrap_socket(request, server_side=True) if self.context else request

    def _play(self, request: Any) -> None:
        for place, step in enumerate(self.script):
            if place == 0 and step != NOW:
                self.asked.append(_request(request))
            if step == RESET:
                request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                request.close()
                return
            for part in step if isinstance(step, repeat) else [step]:
                if isinstance(part, float) and self.over.wait(part):
                    return
                if isinstance(part, bytes):
                    request.sendall(part)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hung up."""

    def close(self) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()
        self.thread.join()


def _request(connection: socket.socket) -> bytes:
    """Return the head of a request, its body taken too."""
    said = b""
    while b"\r\n\r\n" not in said:
        part = connection.recv(65536)
        if not part:
            raise ConnectionError
        said += part
    head, _, body = said.partition(b"\r\n\r\n")
    length = int((re.findall(rb"(?i)content-length: (\d+)", head) or [b"0"])[0])
    while len(body) < length:
        body += connection.recv(65536)
    return head


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    started: list[Server] = []

    def start(*script: Any, context: ssl.SSLContext | None = None) -> Server:
        started.append(Server(script, context))
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.fixture
def clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Ask]:
    """Return the three clients, each as what asks an address once."""
    monkeypatch.setenv("A_KEY", KEY)
    served = Served("policy", 64, {"vocab_size": 100}, "processed_logprobs")

    def judge(url: str, timeout: float = TIMEOUT) -> object:
        calls = Calls(
            url, "m", log=tmp_path / "calls.jsonl", key_variable="A_KEY", timeout=timeout, retries=0
        )
        return calls.ask([{"role": "user", "content": "A or B?"}])

    def reward(url: str, timeout: float = TIMEOUT) -> object:
        address = f"{url}/score?key={KEY}"
        return Endpoint(address, timeout=timeout, retries=0).score(["p"], ["r"])

    def vllm(url: str, timeout: float = TIMEOUT) -> object:
        return VllmServer(url, timeout).complete(
            served, [1, 2], max_new_tokens=4, temperature=1.0, end_ids=[9], seed=0
        )

    return {"judge": judge, "reward": reward, "vllm": vllm}


ERRORS = {"judge": LabelError, "reward": RewardError, "vllm": RolloutError}


def told(client: str, ask: Ask, server: Server, timeout: float = TIMEOUT) -> str:
    """Return what a client says of a server, the promise of bad answers being kept."""
    with pytest.raises(ERRORS[client]) as caught:
        ask(server.url, timeout)
    text = str(caught.value)
    assert server.url in text and "url" in text, text
    assert text.isprintable() and len(text) < 1200, text
    assert "; " in text, f"no way out: {text}"
    assert len(server.asked) <= 1, "asked again, or sent on"
    error: BaseException | None = caught.value if client != "vllm" else None  # it has no key
    while error is not None:  # all that a log would show
        assert KEY not in str(error) and KEY[:9] not in str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return text


def answer(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body


def chunked(*parts: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"".join(parts)


ECHO = f"no such key: {KEY}\x1b[31m\r\n".encode() * 3
JSON, ROW = b'{"a": 1}', '{"prompt": "p", "response": "r"}\n'
SCRIPTS: dict[str, tuple[Script, str]] = {
    "hangs up": ((b"",), "RemoteDisconnected|reset"),
    "reset at once": ((NOW, RESET), "reset|[Bb]roken|RemoteDisconnected"),
    "reset in the head": ((b"HTTP/1.1 200 OK\r\nCon", RESET), "reset|status 200|IncompleteRead"),
    "reset in the body": (
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", RESET),
        "reset|Incom",
    ),
    "silent": ((STALL,), "0.2 seconds"),
    "head that stalls": ((b"HTTP/1.1 200 OK\r\nContent-", STALL), "0.2 seconds"),
    "body that stalls": ((b"HTTP/1.1 200 OK\r\n\r\n{", STALL), "0.2 seconds"),
    "head that drips": ((b"HTTP/1.1 200 OK\r\nX: ", "drip"), "0.2 seconds"),
    "body that drips": ((b"HTTP/1.1 200 OK\r\n\r\n1", "drip"), "0.2 seconds"),
    "cut body": ((b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{",), "IncompleteRead"),
    "cut chunk": ((chunked(b"50\r\n{}"),), "IncompleteRead"),
    "no chunk": ((chunked(b"zz\r\n{}"),), "no answer|gave no|no vLLM"),
    "negative chunk": ((chunked(b"-5\r\n{}\r\n"),), "no answer|gave no|no vLLM"),
    "endless chunk line": ((chunked(b"1" * 70_000),), "."),
    "no http": ((b"SSH-2.0-OpenSSH_9.2 " + KEY.encode() + b"\r\n\r\n",), "BadStatusLine"),
    "bytes": ((bytes(range(256)) * 20 + b"\r\n\r\n",), "BadStatusLine"),
    "http 0.9": ((b"<html>hello</html>",), "BadStatusLine"),
    "http 9.9": ((b"HTTP/9.9 200 OK\r\nContent-Length: 2\r\n\r\n{}",), "."),
    "no status": ((b"HTTP/1.1 abc OK\r\n\r\n",), "abc"),
    "status 0": ((b"HTTP/1.1 000 Zero\r\n\r\n",), "BadStatusLine"),
    "status 99999": ((b"HTTP/1.1 99999 Much\r\n\r\n",), "BadStatusLine"),
    "long status line": ((b"HTTP/1.1 200 " + b"O" * 70_000 + b"\r\n\r\n",), "LineTooLong"),
    "continue for ever": ((repeat(b"HTTP/1.1 100 Continue\r\n\r\n", 10**9),), "0.2 s|more than"),
    "10,000 headers": ((answer(JSON, "200 OK", *(f"X{n}: 1" for n in range(10_000))),), "headers"),
    "long header": ((answer(JSON, "200 OK", "X: " + "x" * 1_000_000),), "LineTooLong"),
    "two lengths": ((answer(JSON, "200 OK", "Content-Length: 5, 6"),), "contradict"),
    "gzip that is none": ((answer(JSON, "200 OK", "Content-Encoding: gzip"),), "incorrect header"),
    "cut gzip": (
        (answer(gzip.compress(b"[" * 999)[:15], "200 OK", "Content-Encoding: gzip"),),
        ".",
    ),
    "empty": ((answer(b""),), "''"),
    "status 204": ((b"HTTP/1.1 204 No Content\r\n\r\n",), "''"),
    "status 206": ((answer(b'{"sco', "206 Partial Content"),), "sco"),
    "html": (
        (answer(b"<!DOCTYPE html>\n<h1>Hi</h1>", "200 OK", "Content-Type: text/html"),),
        "DOC",
    ),
    "key in html": ((answer(b"<p>" + ECHO),), r"\*\*\*|sk-"),
    "key in json": ((answer(json.dumps({"error": KEY * 3}).encode()),), "."),
    "key cut in two": ((answer(b"x" * 70 + KEY.encode() * 9),), r"xxx\*|sk-"),
    "other charset": (
        (answer(b'{"a": "\xe9"}', "200 OK", "Content-Type: x; charset=utf-99"),),
        "a",
    ),
    "deep": ((answer(b"[" * 200_000),), r"\[\["),
    "digits": ((answer(b'{"scores": [' + b"9" * 5000 + b"]}"),), "999"),
    "a key twice": ((answer(b'{"scores": [1], "scores": [2], "choices": [], "choices": 1}'),), "."),
    "text": ((answer(b'"ok"'),), "."),
    "null": ((answer(b"null"),), "."),
    "number": ((answer(b"1e999"),), "."),
    "list": ((answer(b"[]"),), "."),
    "other object": ((answer(JSON),), "."),
    "status 300": ((answer(b"", "300 Multiple Choices", "Location: http://h/"),), "status 300"),
    "redirect": ((answer(b"", "307 Temporary", "Location: http://127.0.0.1:9/x"),), "sends on to"),
    "redirect elsewhere": ((answer(b"", "302 Found", f"Location: http://evil/{KEY}"),), "evil"),
    "redirect to a file": ((answer(b"", "301 Moved", "Location: file:///etc/passwd"),), "file:"),
    "redirect to no host": ((answer(b"", "301 Moved", "Location: http://["),), r"sends on to http"),
    "redirect to much": ((answer(b"", "308 X", "Location: /" + "x" * 60_000),), "it has now"),
    "redirect to bytes": ((answer(b"", "303 X", "Location: \x1b[2J\xff\x00"),), "sends on"),
    "redirect nowhere": ((answer(b"", "302 Found"),), "status 302"),
    "redirect for ever": (
        (b"HTTP/1.1 301 M\r\nLocation: /a\r\n\r\n", repeat(b"x" * 65536, 10**6)),
        "sends on to /a",
    ),
    "status 999": ((answer(b"", "999 Denied"),), "status 999"),
    "status 101": ((b"HTTP/1.1 101 Switching Protocols\r\n\r\n",), "status 101"),
    "status 103": ((b"HTTP/1.1 103 Early Hints\r\n\r\n",), "RemoteDisconnected"),
    "hints for ever": ((repeat(b"HTTP/1.1 103 X\r\nA: b\r\n\r\n", 10**9),), "0.2 s|more than"),
    "long reason": ((answer(b"", "500 " + "Oh " * 20_000),), "status 500 Oh Oh"),
    "key in the reason": ((answer(b"", f"401 No {KEY}"),), r"status 401 No (\*+|sk-)"),
    "status 401": ((answer(ECHO, "401 Unauthorized"),), "status 401"),
    "status 403": ((answer(b"<html>\x00\xff" * 9999, "403 Forbidden"),), "status 403"),
    "status 404": ((answer(b"", "404 Not Found"),), "status 404"),
    "status 413": ((answer(b"too large", "413 Payload Too Large"),), "status 413"),
    "status 429": ((answer(b"", "429 Slow", "Retry-After: nan"),), "status 429"),
    "status 500": ((answer(bytes(range(256)) * 99, "500 Oops"),), "status 500"),
    "status 503": ((answer(ECHO, "503 Busy", "Retry-After: -9"),), "status 503"),
    "error that stalls": ((b"HTTP/1.1 401 No\r\nContent-Length: 9\r\n\r\nn", STALL), "status 401"),
    "error that is cut": ((b"HTTP/1.1 500 X\r\nContent-Length: 9\r\n\r\nn",), "status 500"),
    "error for ever": ((b"HTTP/1.1 500 X\r\n\r\n", repeat(b"x" * 65536, 10**6)), "status 500"),
    "broken header": ((b"HTTP/1.1 200 OK\r\n: " + KEY.encode() + b"\r\nX\r\n\r\n<",), "."),
}


def _patience(case: str) -> float:
    script, expected = SCRIPTS[case]
    return HASTY if "0.2 s" in expected else 2 * HASTY if STALL in script else TIMEOUT


def _steps(case: str) -> list[Any]:
    drip = [step for _ in range(100) for step in (b"1", 0.02)]
    return [part for step in SCRIPTS[case][0] for part in (drip if step == "drip" else [step])]


@pytest.mark.parametrize("case", list(SCRIPTS))
def test_any_answer_that_is_none_ends_the_command(
    serve: Callable[..., Server],
    rlhf: Callable[..., Any],
    assert_refused: Callable[..., None],
    case: str,
) -> None:
    server = serve(*_steps(case))
    options = [
        "--option",
        f"timeout={_patience(case)}",
        "--option",
        "retries=0",
        "--out",
        "out.jsonl",
    ]
    address = f"{server.url}/?key={KEY}"
    result = rlhf(["score", address, "in.jsonl", *options], {"in.jsonl": ROW})
    assert_refused(result, "the reward server at url", server.url)
    assert KEY not in result.out + result.err and "\x1b" not in result.err


@pytest.mark.parametrize("client", ["judge", "vllm"])
@pytest.mark.parametrize("case", list(SCRIPTS))
def test_any_answer_that_is_none_is_one_sentence(
    serve: Callable[..., Server],
    clients: dict[str, Ask],
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    case: str,
    client: str,
) -> None:
    text = told(client, clients[client], serve(*_steps(case)), _patience(case))
    assert re.search(SCRIPTS[case][1], text), text
    assert capfd.readouterr() == ("", "")
    log = tmp_path / "calls.jsonl"
    assert not log.exists() or KEY not in log.read_text()


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ("[]", "gave 0 scores for 1 responses"),
        ("[1, 2]", "gave 2 scores for 1 responses"),
        ("[[1]]", "gave [1] for response 0"),
        ('{"0": 1}', "gave a dict, not a list"),
        ('"1"', "gave a str, not a list"),
        ("1", "gave a int, not a list"),
        ("null", "gave a NoneType, not a list"),
        ("[null]", "gave None for response 0"),
        ('["1.0"]', "gave '1.0' for response 0"),
        ("[true]", "gave true or false"),
        ("[{}]", "gave {} for response 0"),
        ("[NaN]", "not finite"),
        ("[-Infinity]", "not finite"),
        ("[1e999]", "not finite"),
        ("[1" + "0" * 4000 + "]", "gave 1000"),
        ("[" * 900 + "]" * 900, "gave [[[["),
    ],
)
def test_scores_that_are_none(
    serve: Callable[..., Server], clients: dict[str, Ask], scores: str, expected: str
) -> None:
    server = serve(answer(f'{{"scores": {scores}}}'.encode()))
    with pytest.raises(RewardError, match=re.escape(expected)) as caught:
        clients["reward"](server.url)
    assert server.url in str(caught.value) and KEY not in str(caught.value)


@pytest.mark.parametrize(
    "said",
    [
        '{"choices": {}}',
        '{"choices": [[]]}',
        '{"choices": [{"message": []}]}',
        '{"choices": [{"message": {"content": ["A"]}}]}',
        '{"choices": "A", "error": {"message": "KEY"}}',
        '{"choices": [{"message": {"content": 1}}], "usage": []}',
        '{"error": "\\u0073k-secret-0123456789"}',
    ],
)
def test_completions_that_are_none(
    serve: Callable[..., Server], clients: dict[str, Ask], said: str
) -> None:
    text = told("judge", clients["judge"], serve(answer(said.replace("KEY", KEY).encode())))
    assert "no chat completion of the OpenAI form; its url is the base address" in text


@pytest.mark.parametrize("before", ["100 Continue", "102 Processing", "103 Early Hints"])
def test_what_comes_before_an_answer_is_passed_over(
    serve: Callable[..., Server], clients: dict[str, Ask], before: str
) -> None:
    hint = f"HTTP/1.1 {before}\r\nLink: <x>\r\n\r\n".encode()
    server = serve(hint * 2 + answer(b'{"scores": [1]}'))
    assert clients["reward"](server.url) == [1.0]


ODD_KEY = "sk+secret/0123456789=="
SPELLINGS = {
    "plain": ODD_KEY,
    "in an address": quote(ODD_KEY, safe=""),
    "in an address, in small letters": quote(ODD_KEY, safe="").lower(),
    "in JSON": ODD_KEY.replace("/", "\\/"),
    "in JSON in JSON": ODD_KEY.replace("/", "\\\\/").replace("+", "\\\\u002b"),
    "in ASCII JSON": ODD_KEY.replace("+", "\\u002B"),
    "in HTML": ODD_KEY.replace("/", "&#47;").replace("+", "&#x2B;").replace("=", "&#x3d;"),
}


@pytest.mark.parametrize("start", [0, 7, 14])
@pytest.mark.parametrize("spelling", ["plain", "in an address", "in JSON"])
def test_a_part_of_a_key_that_comes_back_is_not_told(
    serve: Callable[..., Server], start: int, spelling: str
) -> None:
    part = ODD_KEY[start : start + 8]
    said = {"in an address": quote(part, safe=""), "in JSON": part.replace("/", "\\/")}
    url = serve(answer(f"no key {said.get(spelling, part)}... here".encode(), "401 No")).url
    with pytest.raises(RewardError, match=r"no key \*{8}\.\.\. here"):
        Endpoint(f"{url}/?key={quote(ODD_KEY)}", timeout=5, retries=0).score(["p"], ["r"])


@pytest.mark.parametrize("client", ["judge", "reward"])
@pytest.mark.parametrize("status", ["200 OK", "401 No", "500 Oops"])
@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_a_key_that_comes_back_in_other_letters_is_not_told(
    serve: Callable[..., Server],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    client: str,
    status: str,
    spelling: str,
) -> None:
    monkeypatch.setenv("A_KEY", ODD_KEY)
    url = serve(answer(f"no such key: {spelling}".encode(), status)).url
    with pytest.raises((LabelError, RewardError), match=r"no such key: \*{22}\W") as caught:
        if client == "judge":
            calls = Calls(url, "m", log=tmp_path / "log", key_variable="A_KEY", retries=0)
            calls.ask([{"role": "user", "content": "A or B?"}])
        else:
            Endpoint(f"{url}/?key={quote(ODD_KEY)}", timeout=5, retries=0).score(["p"], ["r"])
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "usage",
    ["[]", "1", '{"total_tokens": true}', '{"total_tokens": 1e400}', "null", "{}"]
    + [f'{{"total_tokens": {tokens}}}' for tokens in ("-1", '"9"', "1" + "0" * 4000)],
)
def test_tokens_that_nobody_took_are_estimated_and_a_key_sent_back_is_not_logged(
    serve: Callable[..., Server], clients: dict[str, Ask], tmp_path: Path, usage: str
) -> None:
    said = f'{{"choices": [{{"message": {{"content": "{KEY} [[A]]"}}}}], "usage": {usage}}}'
    assert clients["judge"](serve(answer(said.encode())).url) == "*" * len(KEY) + " [[A]]"
    entry = json.loads((tmp_path / "calls.jsonl").read_text())
    assert KEY not in json.dumps(entry) and 0 < entry["tokens"] < 100


@pytest.mark.parametrize(
    ("tokens", "logprobs", "expected"),
    [
        ("[]", "[]", "gave 0 tokens"),
        ("[1, 2, 3, 4, 5]", "[-1, -1, -1, -1, -1]", "gave 5 tokens .* where 4"),
        ("[1]", "[]", "with 0 log-probabilities"),
        ("[1]", "[NaN]", "gave nan for a token's log-"),
        ("[1]", "[-1e999]", "gave -inf for a token's log-"),
        ("[1]", "[null]", "gave None for a token's log-"),
        ("[1]", "[true]", "gave True for a token's log-"),
        ("[1]", "[1" + "0" * 4000 + "]", "gave 10000"),
        ("[100]", "[-1]", "gave 100 for a token's id"),
        ("[-1]", "[-1]", "gave -1 for a token's id"),
        ("[true]", "[-1]", "gave True for a token's id"),
        ("[1.5]", "[-1]", "gave 1.5 for a token's id"),
        ("[[1]]", "[-1]", "for a token's id"),
        ("[1" + "0" * 4000 + "]", "[-1]", "gave 10000"),
        ('"12"', "[-1, -1]", "without token ids"),
        ("{}", "[]", "without token ids"),
        ("[1]", '{"0": 1}', "without token ids"),
        ("null", "null", "without token ids"),
    ],
)
def test_tokens_that_are_none(
    serve: Callable[..., Server], clients: dict[str, Ask], tokens: str, logprobs: str, expected: str
) -> None:
    choice = f'{{"token_ids": {tokens}, "logprobs": {{"token_logprobs": {logprobs}}}}}'
    text = told("vllm", clients["vllm"], serve(answer(f'{{"choices": [{choice}]}}'.encode())))
    assert re.search(expected, text), text


@pytest.mark.parametrize("said", ["[]", "1", '{"success": 1}', '{"success": [true]}', "null"])
@pytest.mark.parametrize("asked", ["describe", "load"])
def test_a_vllm_server_that_is_none(serve: Callable[..., Server], said: str, asked: str) -> None:
    server = serve(answer(said.encode()))
    client = VllmServer(server.url, 5)
    with pytest.raises(RolloutError, match=r"says of itself|could not forget") as caught:
        client.describe() if asked == "describe" else client.load(Path("weights"))
    assert server.url in str(caught.value)


@pytest.mark.parametrize("key", ["a b", "a\nb", "a\x00b".replace("\x00", "\x7f"), "clé", " ", "…"])
def test_a_key_that_can_not_be_sent_is_told_by_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("A_KEY", key)
    with pytest.raises(UsageError, match="environment variable A_KEY ") as caught:
        Calls("http://127.0.0.1:9/v1", "m", log=tmp_path / "log", key_variable="A_KEY")
    assert key not in str(caught.value).replace("A_KEY ", "") or key == " "


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a certificate of localhost, with its key, that it signed itself."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    file = tmp_path_factory.mktemp("tls") / "own.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    made += ["-nodes", "-days", "2", "-keyout", str(file), "-out", f"{file}.crt", *subject]
    subprocess.run(made, check=True, capture_output=True)
    file.write_bytes(file.read_bytes() + Path(f"{file}.crt").read_bytes())
    return file


@pytest.mark.parametrize("trusted", [False, True], ids=["signed by itself", "of another host"])
def test_a_certificate_that_is_not_the_servers_is_refused_at_once(
    serve: Callable[..., Server],
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
    trusted: bool,
) -> None:
    if trusted:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", f"{certificate}.crt")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = serve(answer(b'{"scores": [1]}'), context=context)
    expected = "mismatch" if trusted else "self.signed"
    with pytest.raises(RewardError, match=rf"refused: its certificate .*{expected}"):
        Endpoint(server.url, timeout=5, retries=5).score(["p"], ["r"])
    if trusted:
        there = server.url.replace("127.0.0.1", "localhost")
        assert Endpoint(there, timeout=5, retries=0).score(["p"], ["r"]) == [1.0]


@pytest.mark.parametrize("bundle", ["none.pem", "junk.pem"])
def test_a_file_of_certificates_that_is_none_is_refused_at_once(
    serve: Callable[..., Server],
    certificate: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bundle: str,
) -> None:
    (tmp_path / "junk.pem").write_text("junk")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / bundle))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = serve(answer(b'{"scores": [1]}'), context=context)
    with pytest.raises(RewardError, match="refused: REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE"):
        Endpoint(server.url, timeout=5, retries=5).score(["p"], ["r"])


def test_tls_where_there_is_none_is_refused_at_once(serve: Callable[..., Server]) -> None:
    plain = serve(NOW, b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(RewardError, match=r"refused: it does not speak TLS.*http://"):
        Endpoint(plain.url.replace("http:", "https:"), timeout=5, retries=5).score(["p"], ["r"])


def test_no_tls_where_the_server_wants_it_is_told(
    serve: Callable[..., Server], certificate: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    url = serve(b"", context=context).url.replace("https:", "http:")
    with pytest.raises(RewardError, match=rf"{url} gave no scores in 1 tries"):
        Endpoint(url, timeout=5, retries=0).score(["p"], ["r"])


def test_tries_that_are_left_behind_end_soon(serve: Callable[..., Server]) -> None:
    drip = [step for _ in range(200) for step in (b"1", 0.01)]
    server = serve(b"HTTP/1.1 200 OK\r\nX: ", *drip)
    for _ in range(20):
        with pytest.raises(UnansweredError, match="timed out"):
            ask_json(server.url, timeout=0.03)
    left = sum(thread.name == "http" for thread in threading.enumerate())
    assert left <= 5, f"{left} of 20 tries still read"


def test_what_has_no_end_is_not_kept(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_json, "MOST_BYTES", 10**6)
    more, trailers = repeat(b"7" * 65536, 10**6), chunked(b"5\r\n12345\r\n0\r\n")
    lines = repeat(b"a: 1\r\n" * 5000, 10**6)
    going_on = repeat(b"HTTP/1.1 100 Continue\r\n\r\n" * 2000, 10**6)
    for script in ((b"HTTP/1.1 200 OK\r\n\r\n", more), (trailers, lines), (going_on,)):
        with pytest.raises(http_json.WrongAnswerError, match="more than 1,000,000 bytes"):
            ask_json(serve(*script).url, timeout=5)


def test_a_server_that_fails_is_asked_so_often_and_no_more(
    serve: Callable[..., Server], waits: list[float], tmp_path: Path
) -> None:
    server = serve(answer(b"", "503 Busy", "Retry-After: 99999"))
    calls = Calls(server.url, "m", log=tmp_path / "log", timeout=5, retries=12)
    for text in "abc":
        with pytest.raises(LabelError, match="no answer in 13 tries"):
            calls.ask([{"role": "user", "content": text}])
    assert len(server.asked) == 13 and waits == [60.0] * 12


def test_many_tries_are_a_minute_apart_at_most(
    waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_json._Try, "made", _no_answer)
    with pytest.raises(UnansweredError):
        ask_json("http://127.0.0.1:9", timeout=5, retries=2000)
    assert waits[:8] == [1, 2, 4, 8, 16, 32, 60, 60] and max(waits) == 60


def _no_answer(self: object) -> None:
    raise UnansweredError("none")


BAD = {
    "nothing": "",
    "no scheme": "127.0.0.1:8000",
    "a name": "localhost",
    "a file": "file:///etc/passwd",
    "ftp": "ftp://h/x",
    "a scheme in it": "xhttp://h/",
    "javascript": "javascript:alert(1)",
    "no host": "http://",
    "no host but a path": "http:///x",
    "no host but a port": "http://:80/",
    "a user": "http://user:pass-word-1@h/",
    "a user alone": "http://user@h/",
    "port 99999": "http://h:99999/",
    "port 0": "http://h:0/",
    "port -1": "http://h:-1/",
    "port x": "http://h:x/",
    "a space": "http://h/a b",
    "a space before": " http://h/",
    "a line end": "http://h/\n",
    "a tab": "http://h/\ta",
    "escape": "http://h/\x1b[2J",
    "a reversed text": "http://h/\u202ea",
    "letters of Unicode": "http://m\u00fcnchen.example/",
    "digits of Unicode": "http://\uff11\uff12\uff17.0.0.1/",
    "a full stop of Unicode": "http://h\u3002example/",
    "a zone": "http://[fe80::1%25eth0]/",
    "half a bracket": "http://[::1/",
    "no IPv6": "http://[hello]/",
    "empty labels": "http://a..b/",
    "a long label": f"http://{'a' * 64}.example/",
    "a backslash": "http://h\\\\@evil/",
    "5,000 characters": "http://h/" + "a" * 5000,
}


@pytest.mark.parametrize("case", list(BAD))
def test_an_address_that_is_none_is_refused_with_the_recipe(
    rlhf: Callable[..., Any], assert_refused: Callable[..., None], case: str
) -> None:
    given = {"url": BAD[case]}
    judge = {"kind": "judge", "model": "m", **given}
    stages = {
        "rank": {"kind": "rankings", "labeler": "people", "people": {"annotators": [judge]}},
        "ppo": {"kind": "ppo", "policy": "./p", "reward": [given], "rollout": given},
    }
    recipe = json.dumps({"name": "r", "stages": stages})
    result = rlhf(["validate", "r.yaml"], {"r.yaml": recipe})
    fields = ("rank.people.annotators.0.url", "ppo.reward.0.url", "ppo.rollout.url")
    assert_refused(result, *(f"stages.{field}: " for field in fields), lines=8)
    assert "pass-word-1" not in result.err


@pytest.mark.parametrize("case", [*list(BAD)[5::4], "a user", "ftp"])
def test_an_address_that_is_none_is_refused_by_score(
    rlhf: Callable[..., Any], assert_refused: Callable[..., None], case: str
) -> None:
    given = BAD[case] if "://" in BAD[case] else f"http://{BAD[case]} x"
    assert_refused(rlhf(["score", given, "in", "--out", "o"], {"in": ROW}), "server's url '")


@pytest.mark.parametrize(
    "option",
    [
        "retries=-1",
        "retries=1.5",
        "retries=99999999999",
        "retries=x",
        "retries=null",
        "timeout=0",
        "timeout=.nan",
        "timeout=1e300",
        "timeout=[1]",
        "timeout=true",
        "timeout=",
        "weight=2",
        "url=http://x",
        "a=b",
    ],
)
def test_an_option_of_a_server_that_makes_no_sense(
    rlhf: Callable[..., Any], assert_refused: Callable[..., None], option: str
) -> None:
    args = ["score", "http://127.0.0.1:9/", "in", "--out", "o", "--option", option]
    assert_refused(rlhf(args, {"in": ROW}), option.partition("=")[0], "timeout and retries")


def test_validate_asks_no_server(
    rlhf: Callable[..., Any], serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(NOW, RESET)
    monkeypatch.setattr(socket, "getaddrinfo", _asked)
    monkeypatch.setattr(socket.socket, "connect", _asked)
    judge = {"kind": "judge", "model": "m", "url": server.url, "key_variable": "A_KEY"}
    people = {"labeler": "people", "people": {"annotators": [judge]}}
    term = {"url": server.url}
    settings = [f"stages.ppo.reward={json.dumps([term])}", f"stages.ppo.rollout.url={server.url}"]
    settings += ["stages.ppo.rollout.engine=vllm"]
    settings += [f"stages.rankings.{key}={json.dumps(value)}" for key, value in people.items()]
    args = [part for setting in settings for part in ("--set", setting)]
    result = rlhf(["validate", "quickstart", *args])
    assert (result.code, server.asked) == (0, []), result


def _asked(*_: object, **__: object) -> None:
    raise AssertionError("the network was asked")
