"""The label server: requests, connections and addresses that mean ill, a database that is gone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sqlite3
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import uvicorn

from data.errors import StoreDownError, UsageError
from data.labels.campaign.accounts import Accounts
from data.labels.campaign.campaigns import Campaigns
from data.labels.records import CampaignSettings, NewTask
from data.labels.store.database import Database, open_database
from data.labels.web.app import create_app
from data.labels.web.connections import Protocol, Sparing
from data.labels.web.front import Front
from data.labels.web.security import HEADERS
from data.labels.web.server import UVICORN, Server, bound
from data.labels.web.sessions import cookie_name

TLS = Path(__file__).parent / "tls"
HOST = (b"host", b"localhost")
ORIGIN = (b"origin", b"http://localhost")
SHORT = 0.3


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    opened = open_database(str(tmp_path_factory.mktemp("labels") / "labels.sqlite"))
    campaign = Campaigns(opened).create("c", CampaignSettings(mode="rank", overlap=0.0), "Be kind.")
    Campaigns(opened).add_tasks(campaign.id, [NewTask("t", "Why?", ["So.", "Thus."])])
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def app(database: Database) -> Any:
    return create_app(database, allowed_hosts=["localhost", "127.0.0.1"])


@pytest.fixture(scope="module")
def ann(database: Database, app: Any) -> dict[str, str]:
    """The headers of somebody who is signed in, as our script sends them."""
    return signed_in(database, app, "annotator", "ann")


@pytest.fixture(scope="module")
def root(database: Database, app: Any) -> dict[str, str]:
    return signed_in(database, app, "admin", "root")


def signed_in(database: Database, app: Any, role: Any, name: str) -> dict[str, str]:
    _, token, csrf = Accounts(database).accept(Accounts(database).invite(role, name, 1, "test")[1])
    return {
        "cookie": f"{cookie_name(app.state.site)}={token}",
        "x-csrf-token": csrf,
        "accept": "application/json",
    }


class Answer:
    def __init__(self, messages: list[Any]) -> None:
        self.status = messages[0]["status"]
        self.headers = {name.decode(): value.decode() for name, value in messages[0]["headers"]}
        self.body = b"".join(one.get("body", b"") for one in messages[1:])

    def is_guarded(self) -> bool:
        return all(self.headers.get(name) == value for name, value in HEADERS.items())


def ask(
    app: Any,
    method: str = "GET",
    path: bytes = b"/help",
    *,
    query: bytes = b"",
    headers: Sequence[tuple[bytes, bytes]] = (HOST, ORIGIN),
    body: bytes = b"",
    scheme: str = "http",
) -> Answer:
    """Send a request straight to the application, with bytes that no HTTP library would send."""
    from urllib.parse import unquote

    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method,
        "scheme": scheme, "path": unquote(path.decode("latin-1")), "raw_path": path,
        "query_string": query, "root_path": "", "headers": list(headers),
        "client": ("127.0.0.1", 9), "server": ("localhost", 80), "state": {},
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    return Answer(sent)


def raw(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [HOST, ORIGIN, *((name.encode(), value.encode()) for name, value in headers.items())]


NO_TEXT = {"nul": b"\0", "%00": b"%00", "surrogate": b"\xed\xa0\x80", "%surrogate": b"%ED%bf%BF"}


@pytest.mark.parametrize("text", NO_TEXT.values(), ids=NO_TEXT)
@pytest.mark.parametrize(
    "place",
    ["/%s", "/invite/%s", "/t/a%s", "/c/%s/next", "/admin/campaigns/%s", "/static/1/%s", "/login?"],
)
def test_no_text_in_an_address(app: Any, place: str, text: bytes) -> None:
    path, asked, _ = place.encode().partition(b"?")
    answer = ask(app, path=path.replace(b"%s", text), query=b"a=" + text if asked else b"")
    assert answer.status == 400 and answer.is_guarded()


@pytest.mark.parametrize("text", [*NO_TEXT.values(), rb"\000"], ids=[*NO_TEXT, "octal"])
@pytest.mark.parametrize("name", [b"cookie", b"x-csrf-token", b"accept", b"referer"])
def test_no_text_in_a_header(app: Any, name: bytes, text: bytes) -> None:
    answer = ask(app, headers=[HOST, (name, b'a="' + text + b'"')])
    assert answer.status == 400 and answer.is_guarded()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"name=a%00b&password=x", 400),
        (b"name=%ED%A0%80&password=x", 400),
        (b"name=a&password=%FF%FE", 400),
        (b"name=\xed\xa0\x80", 400),
        (b"\0", 400),
        (b"name\0=a", 400),
        (b"&".join([b"a=b"] * 260), 400),
        (b"x" * 70_000, 413),
    ],
)
def test_no_text_in_a_form(app: Any, body: bytes, status: int) -> None:
    answer = ask(app, "POST", b"/login", body=body)
    assert answer.status == status and answer.is_guarded()


@pytest.mark.parametrize("field", ["comment", "key", "flags"])
def test_nul_in_a_sheet(app: Any, ann: dict[str, str], database: Database, field: str) -> None:
    nul = '["a\\u0000"]' if field == "flags" else '"a\\u0000"'
    flags = f"[{nul}, []]" if field == "flags" else "[[], []]"
    more = "" if field == "flags" else f', "{field}": {nul}'
    body = f'{{"tiers": [1, 2], "ratings": [null, null], "flags": {flags}{more}}}'
    answer = ask(app, "POST", own_task(app, ann) + b"/draft", headers=raw(ann), body=body.encode())
    assert answer.status == 400 and answer.is_guarded()


def own_task(app: Any, ann: dict[str, str]) -> bytes:
    """Return where the task of somebody is, whose guidelines are accepted."""
    (campaign,) = app.state.site.store.list()
    me = next(one.id for one in app.state.site.accounts.list() if one.name == "ann")
    given = app.state.site.queue.next(me, campaign.id)
    assert given is not None
    return f"/t/{given.id}".encode()


@pytest.mark.parametrize(
    "origin",
    [
        b"http://[", b"http://]", b"http://[::1", b"http://[v1.x]", b"http://localhost:x",
        b"http://localhost:99999999", b"//localhost", b"http:", b"\xff\xfe", b"http://local host",
        b"http://localhost@evil", b"http://localhost/..", b"null", b"",
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", [b"origin", b"referer"])
def test_a_broken_origin(app: Any, name: bytes, origin: bytes) -> None:
    answer = ask(app, "POST", b"/login", headers=[HOST, (name, origin)])
    assert answer.status == 403 and answer.is_guarded()


@pytest.mark.parametrize(
    "host",
    [b"[", b"]", b"[::1", b"localhost:x", b"localhost:", b"localhost:1:2", b"localhost/x", b"",
     b"a@localhost", b"localhost:123456", b"\xff"],
)  # fmt: skip
def test_a_broken_host(app: Any, host: bytes) -> None:
    answer = ask(app, headers=[(b"host", host)])
    assert answer.status == 400 and answer.is_guarded()


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", b"/none", [], 404),
        ("GET", b"//", [], 404),
        ("GET", b"/login" * 8000, [], 431),
        ("GET", b"/help", [(b"x", b"y" * 40_000)], 431),
        ("GET", b"/help", [(b"x", b"")] * 40_000, 431),
        ("PUT", b"/help", [], 405),
        ("POST", b"/help", [], 405),
        ("GET", b"/logout", [], 405),
        ("POST", b"/login", [(b"content-length", b"9" * 5000)], 413),
        ("POST", b"/login", [(b"content-length", b"-1")], 400),
        ("POST", b"/login", [(b"content-length", b"1e9")], 400),
        ("POST", b"/login", [(b"content-length", "٣".encode())], 400),
        ("POST", b"/login", [(b"content-length", b"3"), (b"transfer-encoding", b"chunked")], 400),
        ("POST", b"/invite/" + b"a" * 65, [], 404),
    ],
)
def test_every_refusal_is_guarded(
    app: Any, method: str, path: bytes, headers: list[tuple[bytes, bytes]], status: int
) -> None:
    answer = ask(app, method, path, headers=[HOST, ORIGIN, *headers])
    assert answer.status == status and answer.is_guarded()


def test_a_fault_of_ours_is_guarded(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.state.site.accounts, "login", lambda *_: 1 / 0)
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"name=a&password=b", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/login", "raw_path": b"/login", "scheme": "http",
        "query_string": b"", "root_path": "", "headers": [HOST, ORIGIN], "client": ("::1", 1),
        "server": ("localhost", 80), "http_version": "1.1",
    }  # fmt: skip
    with pytest.raises(ZeroDivisionError):  # the log has its traceback
        asyncio.run(app(scope, receive, send))
    answer = Answer(sent)
    assert answer.status == 500 and answer.is_guarded() and b"draft is kept" in answer.body


@pytest.mark.parametrize("scheme", ["http", "https", "javascript"])
@pytest.mark.parametrize("https", [False, True])
def test_a_proxy_that_tells_another_scheme_leads_nobody_off_https(
    database: Database, scheme: str, https: bool
) -> None:
    app = create_app(database, allowed_hosts=["localhost"], secure=https)
    told = ask(app, path=b"/invite/token/", scheme=scheme)
    assert told.headers["location"] == f"http{'s' * https}://localhost/invite/token"


# The database.


@contextlib.contextmanager
def held(database: Database) -> Iterator[None]:
    """Hold the lock of the file as another process does."""
    other = sqlite3.connect(database.engine.url.database or "", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


@contextlib.contextmanager
def full(database: Database) -> Iterator[None]:
    """Let the file grow no more."""

    def stop(connection: sa.Connection) -> None:
        raise sa.exc.OperationalError("", None, sqlite3.OperationalError("disk I/O error"))

    sa.event.listen(database.engine, "commit", stop)
    try:
        yield
    finally:
        sa.event.remove(database.engine, "commit", stop)


@contextlib.contextmanager
def read_only(database: Database) -> Iterator[None]:
    """Let the server be a standby, as PostgreSQL tells of it."""

    def stop(connection: sa.Connection) -> None:
        raise sa.exc.InternalError("", None, sqlite3.InternalError("in a read-only transaction"))

    sa.event.listen(database.engine, "commit", stop)
    try:
        yield
    finally:
        sa.event.remove(database.engine, "commit", stop)


@contextlib.contextmanager
def taken(database: Database) -> Iterator[None]:
    """Let another thread of this process write for long."""
    with database._writer:
        yield


@contextlib.contextmanager
def dropped(database: Database) -> Iterator[None]:
    """Let somebody take tables away, that of sessions among them."""
    tables = ("sessions", "labels", "assignments")
    with database.write() as connection:
        for name in tables:
            connection.exec_driver_sql(f"ALTER TABLE {name} RENAME TO gone_{name}")
    try:
        yield
    finally:
        with database.write() as connection:
            for name in tables:
                connection.exec_driver_sql(f"ALTER TABLE gone_{name} RENAME TO {name}")


@pytest.fixture
def impatient(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.labels.store.database._BUSY_SECONDS", 0.1)
    database.engine.dispose()

    @sa.event.listens_for(database.engine, "connect")
    def soon(raw_connection: Any, _record: Any) -> None:
        raw_connection.execute("PRAGMA busy_timeout = 100")


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("gone", [held, full, read_only, taken, dropped])
@pytest.mark.parametrize("page", ["draft", "submit", "skip", "logout", "account", "admin/invites"])
def test_a_database_that_is_gone_is_told(
    app: Any, ann: dict[str, str], root: dict[str, str], database: Database, gone: Any, page: str
) -> None:
    site_page = page in ("logout", "account", "admin/invites")
    path = f"/{page}".encode() if site_page else own_task(app, ann) + b"/" + page.encode()
    key = b'"key": "kkkkkkkkkkkkkkkkkkkk"'
    body = b'{%s, "tiers": [1, 2], "ratings": [null, null], "flags": [[], []]}' % key
    by_script = page in ("draft", "submit")
    who = root if page.startswith("admin") else ann
    headers = who if by_script else {k: v for k, v in who.items() if k != "accept"}
    password = b"a lovely bunch of coconuts"
    form = b"reason=other&name=Bob&password=%s&again=%s" % (password, password)
    with gone(database):
        answer = ask(app, "POST", path, headers=raw(headers), body=body if by_script else form)
    assert answer.status == 503 and answer.is_guarded(), answer.body
    assert answer.headers["retry-after"] == "5"
    assert b"draft is kept" in answer.body
    assert (b"<html" in answer.body) != by_script
    assert b"sqlite" not in answer.body


def test_what_was_stored_is_not_in_the_text_of_an_error(database: Database) -> None:
    with pytest.raises(StoreDownError) as caught, database.look() as connection:
        connection.execute(sa.text("SELECT :hash FROM nothing"), {"hash": "$argon2id$"})
    assert "nothing" in str(caught.value.__cause__) and "argon" not in str(caught.value.__cause__)


@pytest.mark.usefixtures("impatient")
def test_health_answers_beside_a_held_lock(
    app: Any, ann: dict[str, str], database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every thread waits and more requests come than there are threads: each gets its answer."""
    monkeypatch.setattr("data.labels.web.sessions._THREAD_SECONDS", 0.2)
    path, codes = own_task(app, ann) + b"/skip", []

    def write() -> None:
        codes.append(ask(app, "POST", path, headers=raw(ann), body=b"reason=other").status)

    with held(database):
        threads = [threading.Thread(target=write) for _ in range(60)]
        for one in threads:
            one.start()
        while len(codes) < 30:
            assert ask(app, path=b"/health").body == b'{"status":"ok"}'
        for one in threads:
            one.join(10)
    assert set(codes) <= {503, 429} and codes.count(503) >= 16


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("junk", UsageError),
        ("pipe", UsageError),
        ("folder", UsageError),
        ("junk/labels.sqlite", ValueError),
        ("n" * 5000, ValueError),
        ("a\0b", UsageError),
        ("\udcff", UsageError),
        (" ", UsageError),
        ("://", UsageError),
        ("postgresql://u:secret@h:port/x", UsageError),
        ("postgresql://u:secret@127.0.0.1:1/x", StoreDownError),
        ("postgresql://u:secret@127.0.0.1:99999/x", StoreDownError),
        ("postgresql://u:secret@127.0.0.1:1/x?nope=1", UsageError),
        ("http://x/y", UsageError),
    ],
)
def test_what_is_no_label_database(tmp_path: Path, url: str, kind: type[Exception]) -> None:
    (tmp_path / "junk").write_text("x" * 5000)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with contextlib.chdir(tmp_path), pytest.raises(kind) as told:
        open_database(url)
    assert "\n" not in str(told.value) and "secret" not in str(told.value)


# Connections.


@contextlib.contextmanager
def serving(app: Any, *, most: int = 512, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Serve on this machine, and give the port."""
    with bound("127.0.0.1", 0) as listening:
        listening.most = most
        server = Server(uvicorn.Config(app, **UVICORN), tls=tls)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = server.force_exit = True
            thread.join()


@pytest.fixture(scope="module")
def port(app: Any) -> Iterator[int]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Protocol, "request_seconds", SHORT)
        with serving(app) as served:
            yield served


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port))


def answer(connection: socket.socket, sent: bytes = b"") -> bytes:
    """Send, and return all that comes until the server closes."""
    parts = []
    with contextlib.suppress(ConnectionError):
        connection.sendall(sent)
        while part := connection.recv(65536):
            parts.append(part)
    connection.close()
    return b"".join(parts)


def is_healthy(port: int) -> bool:
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    return answer(connect(port), request).endswith(b'{"status":"ok"}')


@pytest.mark.parametrize(
    "sent",
    [
        b"\0\0\0\0\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /help HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        b"GET /help HTTP/1.1\r\n\r\n",
        b"GET /help HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n",
        b"GET /help HTTP/1.1\r\nHost localhost\r\n\r\n",
        b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: localhost\r\n",
        b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5, 6\r\n\r\n",
        b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + b"9" * 40 + b"\r\n\r\n",
        b"POST /login HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: zip\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
)  # fmt: skip
def test_what_is_no_http(port: int, sent: bytes) -> None:
    told = answer(connect(port), sent)
    assert told.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 501 ")), told
    assert b"content-security-policy: default-src 'none'" in told.lower()
    assert is_healthy(port)


HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
MANY = 200


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [b"G"],
        [b"\r\n", b"\r\n", b"\r\n", b"\r\n"],
        [bytes([letter]) for letter in b"GET /health HTTP/1.1\r\n"],
        [b"GET /health HTTP/1.1\r\n", *[b"X: y\r\n"] * MANY],
        [b"POST /login HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\n"
         b"Content-Length: 900\r\n\r\n", *[b"x"] * MANY],
        [b"POST /login HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\n"
         b"Transfer-Encoding: chunked\r\n\r\n", *[b"1\r\nx\r\n"] * MANY],
        [b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nG", *[b"E"] * MANY],
        [b"PUT / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90000\r\n\r\n", *[b"x"] * MANY],
        [HEALTH + b"POST /login HTTP/1.1\r\nHost: localhost\r\n"],
        [HEALTH + b"POST /login HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\n"
         b"Content-Length: 900\r\n\r\nname="],
        [HEALTH * 3 + b"POST /login HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\n"
         b"Transfer-Encoding: chunked\r\n\r\n5\r\nn"],
    ],
    ids=["nothing", "a-byte", "lines", "bytes", "headers", "body", "chunks", "second", "unread",
         "pipelined-head", "pipelined-body", "pipelined-chunk"],
)  # fmt: skip
def test_a_request_that_does_not_come_ends(port: int, parts: list[bytes]) -> None:
    connection, closed, left = connect(port), threading.Event(), iter(parts)

    def drip() -> None:
        with contextlib.suppress(OSError):
            for part in left:
                connection.sendall(part)
                if closed.wait(SHORT / 4):
                    return

    thread = threading.Thread(target=drip)
    thread.start()
    answer(connection)
    closed.set()
    thread.join()
    assert len(parts) < MANY or next(left, None), "it was read to its end"
    assert is_healthy(port)


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n"])
def test_a_handshake_that_does_not_come_ends(
    app: Any, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(Protocol, "request_seconds", SHORT)
    tls = Front(certificate=TLS / "certificate.pem", key=TLS / "key.pem").tls
    with serving(app, tls=tls) as port:
        assert b"HTTP" not in answer(connect(port), sent)


def test_an_answer_that_is_not_read_ends(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Protocol, "answer_seconds", SHORT)
    with serving(app) as port:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", port))
        connection.settimeout(0.2)
        request = b"GET /help HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with pytest.raises(ConnectionError):
            while True:
                with contextlib.suppress(TimeoutError):
                    connection.sendall(request * 50)
        connection.close()


@pytest.mark.parametrize("sent", [b"", b"GET /help HTTP/1.1\r\nHost: localhost\r\n"])
@pytest.mark.parametrize("https", [False, True])
def test_idle_connections_leave_room(app: Any, sent: bytes, https: bool) -> None:
    tls = Front(certificate=TLS / "certificate.pem", key=TLS / "key.pem").tls if https else None
    with serving(app, most=50, tls=tls) as port, contextlib.ExitStack() as stack:
        idle = []
        for number in range(300):
            idle.append(stack.enter_context(connect(port)))
            if number % 30 == 0:
                time.sleep(0.01)  # else the system's queue of 64 is full, and it waits a second
        for one in idle:
            with contextlib.suppress(ConnectionError):
                one.sendall(sent)
        with connect(port) as plain:
            trusting = ssl.create_default_context(cafile=TLS / "certificate.pem")
            client = trusting.wrap_socket(plain, server_hostname="localhost") if https else plain
            client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
            client.close()


def test_who_waits_for_an_answer_keeps_its_place(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    taken, go_on = threading.Semaphore(0), threading.Event()

    def slow(*_: Any) -> None:
        taken.release()
        go_on.wait(100)

    monkeypatch.setattr(app.state.site.accounts, "session", slow)
    with serving(app, most=3) as port, contextlib.ExitStack() as stack:
        request = b"GET /help HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        cookie = f"Cookie: {cookie_name(app.state.site)}=x\r\n\r\n".encode()
        waiting = [stack.enter_context(connect(port)) for _ in range(3)]
        for one in waiting:
            one.sendall(request + cookie)
        for _ in waiting:
            taken.acquire()
        assert answer(stack.enter_context(connect(port)), request + b"\r\n") == b""
        go_on.set()
        for one in waiting:
            assert one.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_the_log_is_bounded() -> None:
    sparing = Sparing()
    record = logging.LogRecord("uvicorn.error", logging.WARNING, "", 1, "Invalid", (), None)
    assert sum(sparing.filter(record) for _ in range(10_000)) == 20


# What is typed.

PAIR = ["--certificate", "c.pem", "--key", "k.pem"]
_PEM = {name.stem: name.read_text() for name in TLS.glob("*.pem")}
CERTIFICATE, KEY = _PEM["certificate"], _PEM["key"]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"c.pem": CERTIFICATE}, ["k.pem", "not there"]),
        ({"k.pem": KEY}, ["c.pem", "not there"]),
        ({"c.pem": CERTIFICATE, "k.pem": _PEM["other-key"]}, ["k.pem", "another certificate"]),
        ({"c.pem": CERTIFICATE, "k.pem": _PEM["encrypted-key"]}, ["k.pem", "encrypted"]),
        ({"c.pem": _PEM["expired"], "k.pem": KEY}, ["c.pem", "has expired"]),
        ({"c.pem": _PEM["future"], "k.pem": KEY}, ["c.pem", "not valid yet"]),
        ({"c.pem": "", "k.pem": KEY}, ["c.pem", "PEM"]),
        ({"c.pem": b"\xff\0\xfe" * 100, "k.pem": KEY}, ["c.pem", "PEM"]),
        ({"c.pem": CERTIFICATE, "k.pem": "junk"}, ["k.pem", "PEM"]),
        ({"c.pem": CERTIFICATE, "k.pem": CERTIFICATE}, ["k.pem", "PEM"]),
        ({"c.pem": KEY, "k.pem": KEY}, ["c.pem", "PEM"]),
        ({"c.pem": CERTIFICATE[:300], "k.pem": KEY}, ["c.pem", "can't be used"]),
        ({"c.pem": CERTIFICATE, "k.pem": KEY.replace("M", "!", 9)}, ["k.pem", "can't be used"]),
        ({"c.pem": CERTIFICATE.replace("M", "N"), "k.pem": KEY}, ["c.pem", "can't be used"]),
        ({"c.pem/x": "", "k.pem": KEY}, ["c.pem", "no file"]),
        ({"c.pem": os.mkfifo, "k.pem": KEY}, ["c.pem", "no file"]),
        ({"c.pem": CERTIFICATE, "k.pem": os.mkfifo}, ["k.pem", "no file"]),
        ({"c.pem": lambda path: path.symlink_to(path), "k.pem": KEY}, ["c.pem"]),
        ({"c.pem": CERTIFICATE + "x" * 2**21, "k.pem": KEY}, ["c.pem", "PEM"]),
    ],
)  # fmt: skip
def test_a_certificate_that_is_none(
    rlhf: Callable[..., Any], assert_refused: Callable[..., None], files: Any, words: list[str]
) -> None:
    result = rlhf(["label", "serve", "run", "--port", "0", *PAIR], {"run/x": "", **files})
    assert_refused(result, *words)
    assert "invite" not in result.out


@pytest.mark.parametrize("url", ["https://[2001:0DB8::0001]:8443/", "https://[2001:db8:0::1]"])
def test_an_address_is_known_by_how_browsers_write_it(url: str) -> None:
    assert "[2001:db8::1]" in Front(behind_proxy=True, url=url).names


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", ""], ["host", "empty"]),
        (["--host", " "], ["host", "empty"]),
        (["--host", "0.0.0.0"], ["0.0.0.0", "over the network"]),
        (["--host", "0"], ["over the network"]),
        (["--host", "::"], ["over the network"]),
        (["--host", "::ffff:0.0.0.0"], ["over the network"]),
        (["--host", "256.1.1.1"], ["256.1.1.1"]),
        (["--host", "127.0.0.1:80"], ["127.0.0.1:80"]),
        (["--host", "[::1]"], ["[::1]"]),
        (["--host", "http://127.0.0.1"], ["http://127.0.0.1"]),
        (["--host", "x" * 300], ["host"]),
        (["--host", "a..b"], ["a..b"]),
        (["--host", "\udcff"], ["host"]),
        (["--port", "-1"], ["--port"]),
        (["--port", "65536"], ["--port"]),
        (["--port", "http"], ["--port"]),
        (["--port", "1e3"], ["--port"]),
        (["--behind-proxy"], ["--url"]),
        (["--behind-proxy", "--allowed-host", "*.example.org"], ["--url"]),
        (["--behind-proxy", "--url", "http://example.org"], ["http://example.org", "https"]),
        (["--behind-proxy", "--url", "https://example.org", "--host", "0.0.0.0"],
         ["0.0.0.0", "proxy"]),
        (["--behind-proxy", "--url", "https://example.org", "--host", "::"], ["::", "proxy"]),
        (["--url", "https://localhost"], ["https://localhost", "certificate"]),
        (["--url", ""], ["address"]),
        (["--url", "localhost"], ["localhost", "https://"]),
        (["--url", "http://localhost/labels"], ["path"]),
        (["--url", "http://localhost:99999"], ["99999"]),
        (["--url", "http://localhost:0"], [":0"]),
        (["--url", "http://u:p@localhost"], ["address"]),
        (["--url", "http://[::1"], ["address"]),
        (["--url", "http://[:::1]"], ["address"]),
        (["--url", "http://[::]"], ["address"]),
        (["--url", "http://[127.0.0.1]"], ["address"]),
        (["--url", "http://0.0.0.0:80"], ["0.0.0.0"]),
        (["--url", "http://127.0.0"], ["127.0.0"]),
        (["--url", "http://999.0.0.1"], ["999.0.0.1"]),
        (["--url", "http://" + "a." * 150 + "org"], ["address"]),
        (["--allowed-host", "[:::1]"], ["--allowed-host"]),
        (["--allowed-host", "*.0.0.1"], ["--allowed-host"]),
        (["--url", "http://local host"], ["address"]),
        (["--url", "http://lócalhost"], ["address"]),
        (["--url", "ftp://localhost"], ["ftp"]),
        (["--url", "javascript:alert(1)"], ["address"]),
        (["--url", "http://" + "a" * 100_000], ["address"]),
        (["--allowed-host", "https://example.org"], ["--allowed-host"]),
        (["--allowed-host", "example.org:80"], ["--allowed-host"]),
        (["--allowed-host", ""], ["--allowed-host"]),
        (["--allowed-host", "*"], ["--allowed-host"]),
        (["--key", "k.pem"], ["k.pem", "--certificate"]),
        (["--database", "junk"], ["junk", "not a database"]),
        (["--database", "run"], ["run"]),
        (["--database", ""], ["label database"]),
    ],
)  # fmt: skip
def test_an_address_that_is_none(
    rlhf: Callable[..., Any],
    assert_refused: Callable[..., None],
    arguments: list[str],
    words: list[str],
) -> None:
    files = {"run/x": "", "k.pem": KEY, "junk": "x" * 5000}
    assert_refused(rlhf(["label", "serve", "run", *arguments], files), *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["A", "--hours", "nan"], ["nan"]),
        (["A", "--hours", "inf"], ["inf"]),
        (["A", "--hours", "-1"], ["-1"]),
        (["A", "--hours", "0"], ["0.0"]),
        (["A", ""], ["''"]),
        (["A", "x" * 101], ["100"]),
        (["A\u202eB"], ["U+202E"]),
        (["A", "--address", "example.org"], ["example.org"]),
        (["A", "--address", "https://example.org/x?y"], ["path"]),
    ],
)
def test_an_invite_that_is_none(
    rlhf: Callable[..., Any],
    assert_refused: Callable[..., None],
    arguments: list[str],
    words: list[str],
) -> None:
    result = rlhf(["label", "invite", "run", *arguments], {"run/x": ""})
    assert_refused(result, *words)
    assert not result.out


@pytest.mark.parametrize(
    "told",
    ["", "{", "[]", '{"address": 1}',
     '{"address": "x", "pid": -1}', '{"address": "x", "pid": 1e99}',
     '{"address": "x", "pid": 99999999999999999999}', b"\xff", os.mkfifo],
)  # fmt: skip
def test_an_address_file_that_is_none(rlhf: Callable[..., Any], told: Any) -> None:
    result = rlhf(["label", "invite", "run", "A"], {"run/labels/server.json": told})
    assert result.code == 0 and result.out.startswith("A\t/invite/")


def test_the_link_is_that_of_the_proxy() -> None:
    proxied = Front(behind_proxy=True, url="https://labels.example.org:8443/")
    assert proxied.address(1) == "https://labels.example.org:8443"
    assert "labels.example.org" in proxied.names
    named = Front(behind_proxy=True, allowed_hosts=["labels.example.org"])
    assert named.address(1) == "https://labels.example.org"
    assert Front().address(8470) == "http://127.0.0.1:8470"
    assert Front(host="::1").address(1) == "http://[::1]:1"


def test_pages_come_by_https(app: Any) -> None:
    tls = Front(certificate=TLS / "certificate.pem", key=TLS / "key.pem").tls
    with serving(app, tls=tls) as port:
        trusting = ssl.create_default_context(cafile=TLS / "certificate.pem")
        with trusting.wrap_socket(connect(port), server_hostname="localhost") as client:
            client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
