"""Where people reach the server: checked before anything is made or printed."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.errors import UsageError
from data.labels.web.address import HOST, URL, as_sent, can_be_asked, checked_url
from data.labels.web.security import LOOPBACK

DEFAULT_PORT = 8470
_PEM_CAP = 2**20
_ALLOWED = re.compile(rf"(?:\*\.)?{HOST}", re.ASCII | re.IGNORECASE)
_OUT_OF_DATE = {9: "is not valid yet", 10: "has expired"}
"""By OpenSSL's number of the reason why it trusts no certificate."""


@dataclass(frozen=True, kw_only=True)
class Front:
    """What the server listens on, and how it is reached from outside.

    Attributes:
        host: address of the interface; only this machine by default.
        port: 0 takes a free one.
        url: address that people reach it by, where that is another.
        allowed_hosts: further names under which browsers ask for it.
        certificate: PEM file, to serve https.
        key: PEM file of its key; None where the certificate's holds it.
        behind_proxy: whether a proxy on this machine takes https off.
        tls: what the certificate and its key make, None where https is not served here.

    Raises:
        UsageError: one of them can't be, or people would come over a network without https.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    url: str | None = None
    allowed_hosts: Sequence[str] = ()
    certificate: Path | None = None
    key: Path | None = None
    behind_proxy: bool = False
    tls: ssl.SSLContext | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._check_interface()
        for name in self.allowed_hosts:
            if not _ALLOWED.fullmatch(name) or not can_be_asked(name.removeprefix("*.")):
                raise UsageError(
                    f"--allowed-host {name[:200]!r} is no name as browsers ask for it: write it as "
                    "labels.example.org or *.example.org, without https:// and port"
                )
        scheme = "https" if self.secure else "http"
        if self.url is not None and not checked_url(self.url).lower().startswith(f"{scheme}://"):
            raise UsageError(
                f"--url {self.url} does not begin with {scheme}://, by which it is served; "
                "https needs a certificate and its key, or --behind-proxy"
            )
        if self.behind_proxy and self._public_name() is None:
            raise UsageError(
                "--behind-proxy needs --url, the https address that people reach the proxy by"
            )
        if self.key is not None and self.certificate is None:
            raise UsageError(f"the key {self.key} has no --certificate: give both, or none")
        if self.certificate is not None:
            object.__setattr__(self, "tls", load_tls(self.certificate, self.key))

    @property
    def secure(self) -> bool:
        """Whether browsers come by https, here or at the proxy."""
        return self.behind_proxy or self.certificate is not None

    @property
    def names(self) -> list[str]:
        """Hosts under which browsers may ask."""
        own = [f"[{self.host}]" if ":" in self.host else self.host]
        if self.url is not None:
            own.append(_split(self.url)[0])
        return [as_sent(name) for name in (*LOOPBACK, *self.allowed_hosts, *own)]

    def address(self, port: int) -> str:
        """Return what links begin with.

        Args:
            port: that it listens on.
        """
        if self.url is not None:
            return checked_url(self.url)
        scheme, name = "https" if self.secure else "http", self._public_name()
        if self.behind_proxy:
            return f"{scheme}://{name}"
        if name is None or not _ip(self.host, port).is_unspecified:
            name = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{name}:{port}"

    def _public_name(self) -> str | None:
        if self.url is not None:
            return _split(self.url)[0]
        return next((name for name in self.allowed_hosts if not name.startswith("*")), None)

    def _check_interface(self) -> None:
        interface = _ip(self.host, self.port)
        if self.certificate is not None or interface.is_loopback:
            return
        if not self.behind_proxy:
            raise UsageError(
                f"host {self.host} can be reached over the network, where invites and sessions "
                "would be read along: give a certificate and its key, or serve it behind a proxy "
                "with https"
            )
        if interface.is_unspecified:
            raise UsageError(
                f"host {self.host} is every interface, and people could go round the proxy "
                "without https: give the address that the proxy reaches, 127.0.0.1 if it runs here"
            )


def resolved(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    """Return what a socket binds to.

    Raises:
        UsageError: this machine has no such address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    why = "it is empty"
    if host.strip():
        try:
            addresses = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
            return family, addresses[0][4]
        except (OSError, ValueError) as error:  # a name with NUL, or with too long a part
            why = str(error.strerror) if isinstance(error, OSError) else "it is no name"
    raise UsageError(
        f"host {host[:200]!r} can't be served: {why}; give the address of an interface of this "
        "machine, as 127.0.0.1"
    )


def _ip(host: str, port: int) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    address = ipaddress.ip_address(str(resolved(host, port)[1][0]))
    return getattr(address, "ipv4_mapped", None) or address


def _split(url: str) -> tuple[str, str | None]:
    parts = URL.fullmatch(url)
    assert parts is not None
    return parts[2].lower(), parts[3]


def load_tls(certificate: Path, key: Path | None) -> ssl.SSLContext:
    """Return what serves https.

    Raises:
        UsageError: the files can't be read, don't belong together, or are out of date.
    """
    _require_pem(certificate, "-----BEGIN CERTIFICATE-----", "certificate")
    _require_pem(key or certificate, "PRIVATE KEY-----", "key")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)

    def password() -> str:
        raise UsageError(
            f"the key {key or certificate} is encrypted, and nobody is asked for its password: "
            "write it without one (openssl pkey -in KEY -out PLAIN)"
        )

    try:
        context.load_cert_chain(certificate, key, password)
        _check_dates(context, certificate)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise UsageError(
                f"the key {key or certificate} is that of another certificate than {certificate}: "
                "give the two that were made together"
            ) from error
        raise UsageError(
            f"the certificate {certificate} and the key {key or certificate} can't be used "
            f"({(error.reason or str(error)).lower().replace('_', ' ')}): give two PEM files that "
            "were made together"
        ) from error
    return context


def _require_pem(path: Path, mark: str, what: str) -> None:
    problem = None
    try:
        if not path.exists():
            problem = "is not there"
        elif not path.is_file():  # a pipe would be waited for
            problem = "is no file"
        elif path.stat().st_size > _PEM_CAP or mark.encode() not in path.read_bytes():
            problem = f"is no {what} in PEM form: it holds no line {mark}"
    except OSError as error:
        problem = f"can't be read ({error.strerror})"
    if problem is not None:
        raise UsageError(f"the {what} {str(path)[:200]} {problem}; name its PEM file")


def _check_dates(context: ssl.SSLContext, certificate: Path) -> None:
    """Let a client that trusts this certificate alone look at its dates, as a browser will."""
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    trusting.load_verify_locations(certificate)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client, server = trusting.wrap_bio(back, there), context.wrap_bio(there, back, server_side=True)
    try:
        for side in _turns(client, server):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in _OUT_OF_DATE:
            raise UsageError(
                f"the certificate {certificate} {_OUT_OF_DATE[error.verify_code]}: browsers would "
                "refuse it; give one that is valid today"
            ) from error


def _turns(client: ssl.SSLObject, server: ssl.SSLObject) -> Iterator[ssl.SSLObject]:
    for _ in range(3):
        yield client
        yield server
