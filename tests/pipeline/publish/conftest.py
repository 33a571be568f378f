"""Finished stages to publish, and a hub on this machine that keeps what it is sent."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.contract.artifacts import publish

Build = Callable[..., Any]


@pytest.fixture
def make_stage() -> Callable[..., Path]:
    """Return what makes a folder a finished stage: make_stage(folder, kind, parents, **settings).

    Its manifest has the settings, and it stands in no run.
    """

    def build(
        folder: Path, kind: str, parents: dict[str, str] | None = None, **settings: Any
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "stage.log").write_text("done\n")
        publish(
            folder, stage=folder.name, kind=kind, key="key", parents=parents or {}, seed=0,
            inputs={"settings": {"kind": kind, **settings}}, beside={}, device="cpu", seconds=1.0,
            metrics={},
        )  # fmt: skip
        return folder

    return build


@pytest.fixture
def code_of() -> Callable[[Path], str]:
    """Return what gives the lines of Python of the card in a folder."""

    def read(folder: Path) -> str:
        found = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
        assert found is not None
        return found[1]

    return read


@dataclass
class Hub:
    """A hub of one repository that does not check whose token it is.

    Attributes:
        url: where it listens.
        files: what the repository holds; None where it is not there.
        seen: method, path and token of each request.
        refuses: status of the answer to a commit, 0 for none.
        private: whether the repository was made so.
    """

    url: str = ""
    files: dict[str, bytes] | None = None
    seen: list[tuple[str, str, str]] = field(default_factory=list)
    refuses: int = 0
    private: bool | None = None
    stored: dict[str, bytes] = field(default_factory=dict)

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        """Return status and answer."""
        if "/tree/" in path:
            if self.files is None:
                return 404, {"error": "Repository not found"}
            listed = [{"type": "file", "path": p, "size": 1, "oid": "x"} for p in self.files]
            return 200, listed
        if path == "/api/repos/create":
            self.private = json.loads(body)["visibility"] == "private"
            self.files = {".gitattributes": b""} if self.files is None else self.files
            return 200, {"url": f"{self.url}/org/name"}
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            return 200, {"files": [_mode(file["path"]) for file in files]}
        if path.endswith("/objects/batch"):
            objects = json.loads(body)["objects"]
            return 200, {"transfer": "basic", "objects": [self._place(one) for one in objects]}
        if path.startswith("/put/"):
            self.stored[path.removeprefix("/put/")] = body
        if "/commit/" in path:
            return self._commit(body)
        return 200, {}

    def _place(self, one: dict[str, Any]) -> dict[str, Any]:
        href = f"{self.url}/put/{one['oid']}"
        return {"oid": one["oid"], "size": one["size"], "actions": {"upload": {"href": href}}}

    def _commit(self, body: bytes) -> tuple[int, Any]:
        if self.refuses:
            return self.refuses, {"error": "you are not allowed to do this"}
        assert self.files is not None
        for line in body.splitlines():
            row = json.loads(line)
            value = row["value"]
            if row["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif row["key"] == "lfsFile":
                self.files[value["path"]] = self.stored[value["oid"]]
            elif row["key"] == "deletedFile":
                del self.files[value["path"]]
        return 200, {"commitUrl": f"{self.url}/org/name/commit/abc", "commitOid": "abc"}


def _mode(path: str) -> dict[str, Any]:
    mode = "lfs" if path.endswith(".safetensors") else "regular"
    return {"path": path, "uploadMode": mode, "shouldIgnore": False}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine that the libraries take for theirs, and a token for it."""
    from data import network

    made = Hub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

        def do(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            made.seen.append((self.command, self.path, self.headers.get("authorization") or ""))
            status, content = made.answer(self.path, body)
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text)

        do_GET = do_POST = do_PUT = do_HEAD = do

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", made.url)
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", made.url)
    monkeypatch.setattr(network, "_last", network._Look())
    monkeypatch.setenv("HF_TOKEN", "hf_a_secret")
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
