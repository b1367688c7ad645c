"""A call of another service over HTTP, and what its answer means for the message that it is made for.

| the service | then |
| --- | --- |
| answers 2xx | its answer is returned |
| answers 5xx, 408 or 429, answers too late, or cannot be reached | `Unavailable`: the message is retried |
| answers 409 | `TryAgain`: the same request may still be under way there |
| answers 3xx, or any other 4xx | `Reject`: to review at once, with the beginning of what it says |

`Retry-After` (RFC 9110, 10.2.3) is obeyed where a retry follows. Whether a service that did not answer in time has done
what it was asked for is unknown, so a request that changes something carries an `Idempotency-Key`.

```
RetryLater
└── TryAgain         the service says that it may take the request later
    └── Unavailable  the service is down, or has too much to do: what a `Breaker` is for
```
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlsplit

from ackline.consumers import Context, Reject, RetryLater
from ackline.infra.errors import ConfigurationError
from ackline.infra.retry_after import retry_after
from ackline.infra.wire import now

if TYPE_CHECKING:  # only those who call anybody load it
    import httpx

#: Seconds for all of a call, from the name's resolution to the last byte of the answer.
SECONDS = 30.0
#: Bytes of an answer at most: a worker holds several at once.
MOST_BYTES = 16 * 1024 * 1024
#: How an answer may be compressed: once. From several times over, a kilobyte becomes as many gigabytes as one likes.
_ENCODINGS = ("identity", "gzip", "deflate")
_ASKED = {"Accept-Encoding": "gzip, deflate"}
#: Characters of an answer that a reason quotes: enough for what most services say is wrong.
_QUOTED = 300
#: Seconds of a `Retry-After` that are obeyed at most: beyond it a service is rather asked once too often.
_LONGEST_RETRY_AFTER = 3600.0


class TryAgain(RetryLater):
    """A service may take the request later. delay: seconds that it asked for; None: as the retry policy says."""

    def __init__(self, reason: str, delay: float | None = None) -> None:
        super().__init__(delay or 0.0, reason)
        self.delay = delay


class Unavailable(TryAgain):
    """A service cannot be reached, did not answer in time, failed, or has too much to do."""


class Answer(NamedTuple):
    """What a service answered with success."""

    status: int
    body: bytes

    def json(self) -> Any:
        """The body as JSON. Raises `Reject` when it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            raise Reject(f"the service answered {self.status}, with no JSON: {_beginning(self.body)}") from None


async def request(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    parameters: Mapping[str, str] | None = None,
    body: Any = None,
    seconds: float = SECONDS,
) -> Answer:
    """Call *url*, and return the answer if it is 2xx. No redirect is followed.

    parameters: of the query. body: sent as JSON; None: no body. seconds: for all of it, however slowly the other side
    drips. Each call has a connection of its own, so none meets one that the service has just closed.

    Raises `Unavailable`, `TryAgain` or `Reject`, as above; `Reject` for an answer beyond `MOST_BYTES`, or in an
    encoding that was not asked for; `ConfigurationError` for a header that HTTP cannot hold.
    """
    import httpx

    host = host_of(url)
    try:
        async with (
            asyncio.timeout(seconds),
            httpx.AsyncClient(headers=_ASKED, verify=_tls(), timeout=None) as client,  # noqa: S113 - the deadline does
            client.stream(method, url, headers=headers, params=parameters, json=body) as response,
        ):
            content = await _read(response)
    except TimeoutError:
        raise Unavailable(f"{host} did not answer within {seconds:g} s") from None
    except httpx.LocalProtocolError:  # which quotes the header, and so the token in it
        raise ConfigurationError(
            f"No request can be made to {host}: one of its headers, such as a token's, holds a line break or a control "
            "character."
        ) from None
    except httpx.RequestError as error:
        raise Unavailable(f"{host} gave no answer: {error or type(error).__name__}") from error
    if not response.is_success:
        raise _failure(host, response, content)
    if len(content) > MOST_BYTES:
        raise Reject(f"{host} answered with more than {MOST_BYTES:,} bytes")
    return Answer(response.status_code, content)


def idempotency_key(ctx: Context) -> dict[str, str]:
    """The header by which a service recognises a request that it has had: the message's id, the same at every try.

    What cannot stand in a header is percent-encoded. Empty for a message without an id.
    """
    return {} if ctx.id is None else {"Idempotency-Key": quote(ctx.id, safe="")}


def checked_address(url: str) -> str:
    """*url*, the address of a service, without a slash at its end. Raises `ConfigurationError` when it is none."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number
        usable = False
    if not usable or parts.query or parts.fragment:
        raise ConfigurationError(
            f"{url!r} is no address of a service: it reads https://host[:port][/path], without ? and #."
        )
    return url.rstrip("/")


def host_of(url: str) -> str:
    """Whom a reason names: host and port of *url*, without the password that may stand before them."""
    return urlsplit(url).netloc.rpartition("@")[2]


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    """Made once: it reads all certificates that are trusted."""
    import httpx

    return httpx.create_ssl_context()


async def _read(response: httpx.Response) -> bytes:
    """What was answered, up to a little more than `MOST_BYTES`; nothing of a failure that cannot be read."""
    encoding = response.headers.get("content-encoding", "").strip().lower() or "identity"
    if encoding not in _ENCODINGS:
        if response.is_success:
            raise Reject(f"the service answered in the encoding {encoding[:80]!r}, which was not asked for")
        return b""
    content = bytearray()
    async for piece in response.aiter_bytes():
        content += piece
        if len(content) > MOST_BYTES:
            break
    return bytes(content)


def _failure(host: str, response: httpx.Response, content: bytes) -> Exception:
    said = f"{host} answered {response.status_code} {response.reason_phrase}".rstrip()
    if response.has_redirect_location:
        return Reject(f"{said}, which leads to {response.headers['location']}: name that address")
    if content.strip():
        said += f": {_beginning(content)}"
    status = response.status_code
    if status >= 500 or status in (408, 429):
        return Unavailable(said, _asked_delay(response))
    # Of an Idempotency-Key whose first request has not ended (draft-ietf-httpapi-idempotency-key-header, 2.6).
    if status == 409:
        return TryAgain(said, _asked_delay(response))
    return Reject(said)


def _asked_delay(response: httpx.Response) -> float | None:
    """Seconds that `Retry-After` asks for; None when it says nothing."""
    asked = retry_after(response.headers.get("retry-after"), now())
    return min(asked, _LONGEST_RETRY_AFTER) or None


def _beginning(content: bytes) -> str:
    """The beginning of what a service said, on one line."""
    said = " ".join(content[: 4 * _QUOTED].decode("utf-8", "replace").split())
    return said if len(said) <= _QUOTED else f"{said[:_QUOTED]}…"
