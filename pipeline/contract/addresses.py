"""Settings of servers that are asked over HTTP, refused where no request can be made of them."""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from pipeline.contract.settings import NonNegativeInt, PositiveNumber

_LONGEST = 2000
"""Characters of an address; what many a server takes."""


def _address(url: str) -> str:
    if len(url) > _LONGEST:
        raise ValueError(f"an address has {_LONGEST:,} characters at most, this one {len(url):,}")
    if not url.isprintable() or " " in url:
        raise ValueError("an address has neither spaces nor control characters; write %20")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        host.encode("idna")
    except ValueError:  # of a port, of brackets, or of a host's labels
        raise ValueError("host or port are none; an address is http://HOST:PORT/PATH") from None
    if parts.scheme not in ("http", "https") or not host or port == 0:
        raise ValueError("an address is http://HOST:PORT/PATH, or https://")
    if "@" in parts.netloc:
        raise ValueError("an address has no user and no password in it; take them out")
    if not host.isascii() or "%" in host or "\\" in host:
        raise ValueError("the host is in plain ASCII; write a name of other letters as xn--...")
    return url


def shown_value(value: object) -> str:
    """Return the start of a value, without the password of an address."""
    return f"{re.sub(r'//[^@]*@', '//***@', repr(value)):.80}"


def _base(url: str) -> str:
    if "?" in url or "#" in url:
        raise ValueError("a path is added to this address; it can't have a ? or # in it")
    return _address(url)


Address = Annotated[str, AfterValidator(_address)]
"""Where requests are sent."""
BaseAddress = Annotated[str, AfterValidator(_base)]
"""What the paths of a server's routes are added to."""
Seconds = Annotated[PositiveNumber, Field(le=1_000_000)]
"""What a try may take; systems wait for 24 days at most."""
Retries = Annotated[NonNegativeInt, Field(le=1000)]
"""Further tries after the first; they are at most a minute apart."""
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
"""An environment variable, such as one that holds a service's key."""
