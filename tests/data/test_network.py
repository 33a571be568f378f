"""One look at the hub before the libraries try for long, against servers on this machine."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Callable, Iterator

import datasets
import pytest
from huggingface_hub import constants

from data import network
from data.errors import ModelError, SourceError
from data.network import hub_trouble
from data.sources.read import read
from data.sources.source import Source


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return what makes a port of this machine the hub, with a network that is allowed."""
    monkeypatch.setattr(network, "_last", network._Look())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)

    def at(port: int) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")

    return at


@pytest.fixture
def silent() -> Iterator[int]:
    """Return the port of a server that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(8)
        yield server.getsockname()[1]


@pytest.fixture
def answering() -> Iterator[int]:
    """Return the port of a server that answers, if only that it has no such thing."""
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def test_a_hub_that_answers_is_used(hub: Callable[[int], None], answering: int) -> None:
    hub(answering)
    assert hub_trouble() is None
    assert not constants.HF_HUB_OFFLINE


def test_a_hub_that_is_silent_is_left_alone(
    hub: Callable[[int], None], silent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "SECONDS", 0.2)
    hub(silent)
    assert str(hub_trouble()).startswith(f"http://127.0.0.1:{silent} ")
    assert constants.HF_HUB_OFFLINE and datasets.config.HF_HUB_OFFLINE


def test_what_the_user_set_stays(hub: Callable[[int], None], answering: int) -> None:
    hub(answering)
    constants.HF_HUB_OFFLINE = True
    assert hub_trouble() == "HF_HUB_OFFLINE is set"
    assert constants.HF_HUB_OFFLINE


def test_a_hub_that_is_back_is_used_again(
    hub: Callable[[int], None], answering: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub(free_port())
    assert "can't be reached" in str(hub_trouble())
    hub(answering)
    # Believed for a minute, so that not every checkpoint costs two seconds.
    assert "can't be reached" in str(hub_trouble())
    monkeypatch.setattr(network, "_AGAIN", -1.0)
    assert hub_trouble() is None
    assert not constants.HF_HUB_OFFLINE and not datasets.config.HF_HUB_OFFLINE


def test_models_tokenizers_and_data_sets_tell_it_in_one_sentence(
    hub: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.models.load import load_config, load_tokenizer

    looks: list[str] = []
    look = network._look

    def counted(place: str) -> str | None:
        looks.append(place)
        return look(place)

    monkeypatch.setattr(network, "_look", counted)
    hub(free_port())
    for load in (load_config, load_tokenizer):
        with pytest.raises(ModelError, match=r"the cache alone was used \(http"):
            load("nobody/nothing")
    with pytest.raises(SourceError, match=r"the cache alone was used \(http"):
        list(read(Source(hub="nobody/nothing")))
    assert len(looks) == 1
