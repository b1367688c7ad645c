"""HTTP to an address that a client named, so that the client gains nothing that it could not do itself (no SSRF).

What keeps it so:

- *One reading.* A URL is taken apart here, once, and strictly; what goes over the wire is put together from those
  parts. No second parser reads the URL, which might see another host in it.
- *An allow-list.* The host must be one that the operator named (`ACKLINE_CALLBACK_HOSTS`); see `ackline.infra.hosts`.
- *One resolution.* A name is resolved once. Every address that it has must be public, or allowed itself, and the
  connection goes to one of these very addresses: a name that changes its mind in between (DNS rebinding) is not asked
  again. The `Host` header, and the name in the certificate, are those of the URL.
- *No detours.* No redirect is followed, no proxy of the environment is used.
- *An end.* One deadline for all of it, however slowly the other side drips. Of the answer nothing is read but its head.

```
AcklineError
├── NotAllowed  the address is not one that may be called
└── NoAnswer    nobody answered there
```
"""

from __future__ import annotations

import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Any

import httpcore

from ackline.infra.errors import AcklineError
from ackline.infra.hosts import Address, AllowedHosts, is_public, parse_host

#: Characters of a URL at most.
MAX_URL = 2048
#: Seconds for one address to take the connection, and for all of a call.
CONNECT_SECONDS, CALL_SECONDS = 5.0, 15.0

_PORTS = {"http": 80, "https": 443}
#: RFC 3986: what may stand in a path and a query.
_TARGET = re.compile(r"[A-Za-z0-9._~:/?@!$&'()*+,;=%\[\]-]*")
_AUTHORITY = re.compile(r"(\[[^\[\]]*\]|[^\[\]:]+)(?::([0-9]{1,5}))?")
_CHUNK = 16 * 1024

Resolve = Callable[[str], Sequence[str]]
"""Gives the addresses of a name; raises OSError when it has none."""


class NotAllowed(AcklineError):
    """An address that is not to be called. The sentence is fit for the client that named it."""


class NoAnswer(AcklineError):
    """A call that got no answer: whether the other side received it is unknown."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. retry_after: the header `Retry-After`, as it came."""

    status: int
    retry_after: str | None


@dataclass(frozen=True, slots=True)
class _Target:
    """A URL in its parts. host: as `parse_host` gives it; path: with the query, as it goes over the wire."""

    scheme: str
    host: Address | str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """The `Host` header."""
        host = f"[{self.host}]" if isinstance(self.host, IPv6Address) else str(self.host)
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def check(url: str, allowed: Iterable[str]) -> None:
    """Raise `NotAllowed` unless *url* may be called, as far as that can be known without resolving its name.

    allowed: the entries of `ACKLINE_CALLBACK_HOSTS`.
    """
    _allowed_target(url, AllowedHosts(allowed))


def addresses_of(name: str) -> list[str]:
    """The addresses that this machine's resolver has for *name*. Raises OSError."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Outbound:
    """Calls addresses that clients named. Safe on any number of threads."""

    def __init__(
        self, allowed: Iterable[str], *, resolve: Resolve = addresses_of, tls: ssl.SSLContext | None = None
    ) -> None:
        """allowed: the entries of `ACKLINE_CALLBACK_HOSTS`. tls: which certificates count; else those that the system
        trusts."""
        self._allowed = AllowedHosts(allowed)
        self._resolve = resolve
        self._tls = tls or ssl.create_default_context()

    def post(self, url: str, body: bytes, headers: Mapping[str, str], *, seconds: float = CALL_SECONDS) -> Answer:
        """POST *body*, and return the answer, of whatever status. *headers* are beside `Host` and `Content-Length`.

        seconds: for all of it. Raises `NotAllowed`, `NoAnswer`.
        """
        deadline = time.monotonic() + seconds
        target = _allowed_target(url, self._allowed)
        try:
            addresses = self._addresses(target, seconds)
            return self._post(target, addresses, body, headers, deadline)
        except (TimeoutError, httpcore.TimeoutException):
            raise NoAnswer(f"{target.authority} did not answer within {seconds:g} s.") from None
        except (OSError, httpcore.NetworkError, httpcore.ProtocolError) as error:
            raise NoAnswer(f"{target.authority} gave no answer: {_said(error)}.") from None

    def _addresses(self, target: _Target, seconds: float) -> list[Address]:
        """Where *target* is, every address fit to be called."""
        if not isinstance(target.host, str):
            return [target.host]  # it is an entry itself
        try:
            answered = _within(seconds, self._resolve, target.host)
            addresses = [ip_address(answer) for answer in answered]
        except TimeoutError:
            raise
        except (OSError, UnicodeError) as error:
            raise NoAnswer(f"The address of {target.host} cannot be found: {_said(error)}.") from None
        if not addresses:
            raise NoAnswer(f"The address of {target.host} cannot be found: it has none.")
        for address in addresses:
            if not is_public(address) and not self._allowed.has_address(address):
                raise NotAllowed(
                    f"{target.host} has the address {address}, which is not public: ACKLINE_CALLBACK_HOSTS must name "
                    "that address, or its network, too."
                )
        return addresses

    def _post(
        self, target: _Target, addresses: list[Address], body: bytes, headers: Mapping[str, str], deadline: float
    ) -> Answer:
        host = str(target.host).encode()
        request = httpcore.Request(
            b"POST",
            httpcore.URL(scheme=target.scheme.encode(), host=host, port=target.port, target=target.path.encode()),
            headers=[
                ("Host", target.authority),
                ("Content-Length", str(len(body))),
                ("Connection", "close"),
                *headers.items(),
            ],
            content=body,
        )
        with httpcore.HTTPConnection(
            httpcore.Origin(target.scheme.encode(), host, target.port),
            ssl_context=self._tls,
            network_backend=_Pinned(addresses, deadline),
        ) as connection:
            answer = connection.handle_request(request)
            retry_after = [value for name, value in answer.headers if name.lower() == b"retry-after"]
            return Answer(answer.status, retry_after[0].decode("latin-1") if retry_after else None)


def _allowed_target(url: str, allowed: AllowedHosts) -> _Target:
    """The parts of *url*, whose host is allowed. Raises `NotAllowed`."""
    if not allowed:
        raise NotAllowed(
            "Callbacks are off here: ACKLINE_CALLBACK_HOSTS must name the hosts that may be called, "
            "such as hooks.example.com."
        )
    try:
        target = _parse(url)
    except ValueError as error:
        raise NotAllowed(f"The address to call back {error}.") from None
    if isinstance(target.host, str):
        if not allowed.has_name(target.host):
            raise NotAllowed(f"The host {target.host} may not be called: ACKLINE_CALLBACK_HOSTS does not name it.")
    elif not allowed.has_address(target.host):
        raise NotAllowed(
            f"The address {target.host} may not be called: ACKLINE_CALLBACK_HOSTS names neither it nor its network."
        )
    return target


def _parse(url: str) -> _Target:
    """The parts of *url*. Raises `ValueError`, with the rest of a sentence."""
    if len(url) > MAX_URL:
        raise ValueError(f"has more than {MAX_URL:,} characters")
    if any(char.isspace() or not char.isprintable() for char in url):
        raise ValueError("holds a space or a control character")
    scheme, separator, rest = url.partition("://")
    if not separator or (scheme := scheme.lower()) not in _PORTS:
        raise ValueError("must begin with https:// or http://")
    if "#" in rest:
        raise ValueError("must not have a fragment (#)")
    end = re.search(r"[/?\\]|$", rest)
    authority, path = (rest[: end.start()], rest[end.start() :]) if end else (rest, "")
    if "@" in authority:
        raise ValueError("must not hold a user or a password: the signature shows who calls")
    found = _AUTHORITY.fullmatch(authority)
    if found is None:
        raise ValueError("has no host, or a port that is no number")
    if _TARGET.fullmatch(path) is None or re.search(r"%(?![0-9A-Fa-f]{2})", path):
        raise ValueError("has a character in its path or query that must be percent-encoded")
    try:
        host = parse_host(found[1])
    except ValueError as error:
        raise ValueError(f"has a host that {error}") from None
    port = int(found[2] or _PORTS[scheme])
    if not (port in _PORTS.values() or 1024 <= port <= 65535):
        raise ValueError(f"has the port {port}: it must be 80, 443, or 1024 to 65535")
    return _Target(scheme, host, port, path if path.startswith("/") else f"/{path}")


class _Pinned(httpcore.SyncBackend):
    """Connects to *addresses*, whatever the name says by now. Everything on the connection ends at *deadline*."""

    def __init__(self, addresses: Iterable[Address], deadline: float) -> None:
        self._addresses = addresses
        self._deadline = deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        refused: Exception | None = None
        for address in self._addresses:
            seconds = min(CONNECT_SECONDS, _left(self._deadline))
            try:
                stream = super().connect_tcp(str(address), port, seconds, local_address, socket_options)
                return _Bounded(stream, self._deadline)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                refused = error
        assert refused is not None  # noqa: S101
        raise refused


class _Bounded(httpcore.NetworkStream):
    """A stream whose every operation ends at *deadline*: the timeouts of httpcore begin anew with each byte."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _CHUNK):
            self._stream.write(buffer[start : start + _CHUNK], _left(self._deadline))

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        try:
            stream = self._stream.start_tls(ssl_context, server_hostname, _left(self._deadline))
        except BaseException:
            self.close()
            raise
        return _Bounded(stream, self._deadline)

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(deadline: float) -> float:
    """Seconds until *deadline*. Raises TimeoutError when it is over."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _within(seconds: float, resolve: Resolve, name: str) -> Sequence[str]:
    """What *resolve* says of *name*. Raises TimeoutError after *seconds*: a resolver itself knows no deadline."""
    answer: Future[Sequence[str]] = Future()

    def ask() -> None:
        try:
            answer.set_result(resolve(name))
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=ask, name=f"resolve {name}", daemon=True).start()
    return answer.result(seconds)


def _said(error: Exception) -> str:
    """What an error says, without the numbers that OpenSSL and the system put around it."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return re.sub(r"^\[[^\]]*\] | \(_ssl\.c:\d+\)$", "", said).rstrip(".") or type(error).__name__
