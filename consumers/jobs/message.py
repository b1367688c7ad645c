"""A delivery as Celery takes it: a message of protocol 2, with the headers that can be believed."""

from __future__ import annotations

import bz2
import hashlib
import lzma
import zlib
from collections.abc import Callable
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Annotated, Any

from celery.utils.time import maybe_iso8601, maybe_make_aware
from kombu.exceptions import KombuError
from kombu.message import Message
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ackline.consumers.decision import InvalidBody
from ackline.consumers.delivery import Delivery
from ackline.consumers.handling import Settlement
from ackline.infra import wire
from ackline.infra.names import RETURN
from ackline.infra.table import text

_CONTENT_TYPE = "application/json"

#: Header of a job that another worker ran when it was delivered, and that was parked: how often it was delivered.
DELIVERIES = "ackline-deliveries"

#: Bytes that come out of a compressed body at most: as many as RabbitMQ takes of any other. From 100 KB come as many
#: gigabytes as one likes, which would end the worker at every delivery.
MAX_UNPACKED = 128 << 20
#: How a publisher may compress, by the names that Celery has for it.
_UNPACKERS: dict[str, Callable[[], Any]] = {
    **dict.fromkeys(("application/x-gzip", "gzip", "zlib"), zlib.decompressobj),
    **dict.fromkeys(("application/x-bz2", "bzip2", "bzip"), bz2.BZ2Decompressor),
    **dict.fromkeys(("application/x-lzma", "lzma", "xz"), lzma.LZMADecompressor),
}

#: The options in the body of a job. Celery would put others over the headers, ours among them.
_OPTIONS = {"callbacks", "errbacks", "chain", "chord"}

_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Headers(BaseModel):
    """Headers that Celery believes: of another type some of them end its worker, at every redelivery."""

    model_config = ConfigDict(strict=True)

    #: As long as a message id can be, which it is.
    id: Annotated[str, Field(min_length=1, max_length=255)]
    shadow: str | None = None
    root_id: str | None = None
    parent_id: str | None = None
    group: str | None = None
    argsrepr: str | None = None
    kwargsrepr: str | None = None
    timelimit: Annotated[list[_Seconds | None], Field(min_length=2, max_length=2)] | None = None
    stamped_headers: list[str] | None = None
    stamps: dict[str, Any] | None = None


class JobMessage(Message):  # type: ignore[misc]
    """A delivery of a job. It is answered by `settle`, once, whatever Celery calls that."""

    def __init__(
        self, delivery: Delivery, queue: str, worker: str, settle: Callable[[JobMessage, Settlement], None]
    ) -> None:
        """queue: whose delivery it is. worker: who runs it, `host:pid`. settle: does what becomes of it."""
        properties = delivery.properties
        #: The present delivery of it: another one, when the first was lost while the job ran.
        self.delivery = delivery
        self.queue = queue
        self.worker = worker
        #: When its process began with it (monotonic time); None before that, and of what is not run.
        self.began: float | None = None
        #: Whether its process has published this same try once more.
        self.goes_on = False
        self.settle = settle
        self.trail = wire.trail(properties, delivery.exchange, delivery.routing_key, consumer=queue)
        headers = _headers(delivery, self.trail)
        body, self._fault = _unpacked(delivery.body, headers.pop("compression", None))
        super().__init__(
            body=body,
            content_type=text(properties.content_type or b""),
            content_encoding=text(properties.content_encoding or b"utf-8"),
            delivery_info={
                "exchange": delivery.exchange,
                "routing_key": queue,
                "redelivered": delivery.redelivered,
            },
            properties={"correlation_id": text(properties.correlation_id or b""), "priority": properties.priority},
            headers=headers,
            accept={_CONTENT_TYPE},
        )

    @property
    def task_id(self) -> str:
        """The id of the job; empty of what has none."""
        return str(self.headers.get("id") or "")

    @property
    def came_before(self) -> bool:
        """Whether it was delivered before, so that somebody may have begun with it."""
        return self.delivery.redelivered or DELIVERIES in self.headers

    @property
    def deliveries(self) -> int:
        """How often it was delivered for this try, but for asking whether another worker still runs it."""
        earlier = self.headers.get(DELIVERIES)
        count = self.delivery.properties.headers.number("x-delivery-count") or 0
        return count + (earlier if isinstance(earlier, int) else 1)

    @cached_property
    def try_(self) -> str:
        """Names this try of this job. Not by the id alone: it may be used again, by a redrive or another submission."""
        told = (self.trail.redrive, self.headers.get("submitted_at"), self.headers["task"])
        digest = hashlib.sha256(repr(told).encode("utf-8", "surrogatepass") + self.body).hexdigest()
        return f"{self.task_id} {self.trail.attempt} {digest}"

    def check(self) -> None:
        """Raise `InvalidBody`, with a reason for a person, where it is no job that Celery could run."""
        for name in ("task", "id"):
            if not isinstance(self.headers.get(name), str):
                raise InvalidBody(f"it is no job: its headers lack {name!r}, which Celery's protocol 2 wants")
        try:
            _Headers.model_validate(self.headers)
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
            raise InvalidBody(f"its header {fault['loc'][0]!r} is none of Celery's: {fault['msg']}") from None
        if self.content_type != _CONTENT_TYPE:
            raise InvalidBody(f"its body is {self.content_type or 'of no known type'}, and a job is {_CONTENT_TYPE}")
        if self._fault is not None:
            raise InvalidBody(f"its body cannot be unpacked: {self._fault}")
        try:
            args, kwargs, embed = self.payload
            whole = isinstance(args, list) and isinstance(kwargs, dict) and isinstance(embed, dict)
        except (KombuError, UnicodeError, LookupError) as error:
            raise InvalidBody(f"its body is not JSON: {error}") from None
        except (ValueError, TypeError):
            whole = False
        if not whole:
            raise InvalidBody("its body is not [args, kwargs, options], as Celery's protocol 2 wants")
        if not embed.keys() <= _OPTIONS:
            raise InvalidBody(f"its body has options that are none of Celery's: {sorted(embed.keys() - _OPTIONS)}")

    def time(self, name: str, zone: Any) -> datetime | None:
        """The time in the header *name*; None when it has none. Raises `InvalidBody` when it is no time."""
        value = self.headers.get(name)
        if value is None:
            return None
        try:
            found: datetime = maybe_make_aware(maybe_iso8601(value), zone)
            return found
        except (ValueError, TypeError, AttributeError, OverflowError) as error:
            raise InvalidBody(f"its {name} {value!r} is no time: {error}") from None


def _unpacked(body: bytes, compression: Any) -> tuple[bytes, str | None]:
    """What is in *body*, and why that cannot be had; None when it can."""
    if not compression:
        return body, None
    try:
        unpacker = _UNPACKERS[compression]()
    except (KeyError, TypeError):
        return body, f"{compression!r} is none of {', '.join(_UNPACKERS)}"
    try:
        found: bytes = unpacker.decompress(body, MAX_UNPACKED + 1)
    except (zlib.error, lzma.LZMAError, OSError, MemoryError) as error:
        return body, f"it is no {compression}: {error}"
    if len(found) > MAX_UNPACKED:
        return body, f"there is more than {MAX_UNPACKED >> 20} MiB in it"
    if not unpacker.eof:
        return body, "it is cut off"
    return found, None


def _headers(delivery: Delivery, trail: wire.Trail) -> dict[str, Any]:
    """The headers as Celery and the job see them. Of ours there are only those that Ackline wrote."""
    headers = delivery.properties.headers
    told = (headers if delivery.exchange == RETURN else headers.select(_is_believed)).decoded()
    told["retries"] = trail.attempt - 1
    if trail.redrive is not None and trail.attempt == 1:  # it begins anew: its times were those of the first run
        told["eta"] = told["expires"] = None
    return told


@lru_cache(maxsize=1024)
def _is_believed(name: bytes) -> bool:
    """Whether a header of that name is the publisher's, wherever it was published."""
    return wire.travels(name) or name == wire.TRACK.encode()
