"""Where the label server of a run can be reached: `RUN/labels/server.json` while it serves."""

from __future__ import annotations

import ipaddress
import json
import os
import re
from pathlib import Path

import psutil

from data.errors import ArtifactError, UsageError
from data.json_lines import read_json_object

_NAME = r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9])?\.)*[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9])?\.?"
_LONGEST = 253
"""Characters of a name."""
_SAME_MOMENT = 1.0
"""Seconds; a correction of the clock moves what the system tells of a process's beginning."""
HOST = rf"(?:{_NAME}|\[[0-9a-f:.]+\])"
URL = re.compile(rf"(https?)://({HOST})(?::(\d{{1,5}}))?/?", re.ASCII | re.IGNORECASE)


def server_file(run: Path) -> Path:
    """Return the file that the server keeps its address in."""
    return run / "labels" / "server.json"


def announcement(address: str) -> str:
    """Return what this process, which serves at an address, writes into `server_file`."""
    born = psutil.Process().create_time()
    return json.dumps({"address": address, "pid": os.getpid(), "born": born})


def read_address(run: Path) -> str | None:
    """Return the address of the server of a run, None when none is running."""
    try:
        written = read_json_object(server_file(run))
    except ArtifactError:
        return None
    address, process = written.get("address"), written.get("pid")
    # Not isinstance: `true` is an int to it, and would be the first process of all.
    if type(address) is not str or type(process) is not int:
        return None
    return address if _alive(process, written.get("born")) else None


def checked_url(url: str) -> str:
    """Return an address that links can begin with, without the slash at its end.

    Raises:
        UsageError: it is not a scheme, a host and perhaps a port.
    """
    parts = URL.fullmatch(url)
    if parts is None or not can_be_asked(parts[2]) or int(parts[3] or 1) not in range(1, 65536):
        raise UsageError(
            f"the address {url[:200]!r} is not one that links can begin with: write it as "
            "https://labels.example.org, with :PORT where it has one and no path"
        )
    return url.rstrip("/")


def can_be_asked(host: str) -> bool:
    """Tell whether a host, of the form `HOST`, is one: numbers alone make an address, or none."""
    number = host.strip("[]")
    if host == number and not host.rstrip(".").rpartition(".")[2].isdigit():
        return len(host) <= _LONGEST
    try:
        address = ipaddress.ip_address(number)
        return (address.version == 6) == (host != number) and not address.is_unspecified
    except ValueError:
        return False


def as_sent(host: str) -> str:
    """Return a host as browsers write it, who shorten addresses."""
    host = host.lower()
    return f"[{ipaddress.ip_address(host[1:-1])}]" if host.startswith("[") else host


def _alive(process: int, born: object) -> bool:
    """Tell whether a process is there; one that was killed could not remove its file.

    Its number may be another's by now, which was born at another moment.
    """
    if not 0 < process < 2**31:  # any other names groups of processes, or none
        return False
    try:
        since = psutil.Process(process).create_time()
    except psutil.NoSuchProcess:
        return False
    # Not told by servers of earlier versions.
    return born is None or (type(born) is float and abs(since - born) < _SAME_MOMENT)
