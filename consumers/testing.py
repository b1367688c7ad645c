"""For the tests of those who write handlers: a handler on a message without a broker, and a worker on a real one.

```python
def test_a_bank_that_is_away_is_asked_again() -> None:
    outcome = run(charge, OrderPlaced(order_id="A-1", total=9.5))
    assert outcome.decision == Retry(1.0)


def test_an_order_is_charged(ackline_worker: StartWorker) -> None:
    with ackline_worker(charge) as worker:
        worker.publish(OrderPlaced(order_id="A-1", total=9.5))
        worker.wait_until_handled()
```

The fixture `ackline_worker` comes with the package: pytest finds it by its entry point.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeAlias, TypedDict, Unpack, overload
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import httpx
from pydantic import BaseModel

from ackline.consumers.batching import Opened, Results, aresults_of, results_of
from ackline.consumers.calling import way_of
from ackline.consumers.consumer import Consumer, registered
from ackline.consumers.context import Context
from ackline.consumers.context import log as handlers_log
from ackline.consumers.decision import Ack, Decision, Failure, Reject, decide
from ackline.consumers.delivery import Delivery
from ackline.consumers.handling import Outgoing, Report, mask_for, nameable, read
from ackline.consumers.stopping import Stopping
from ackline.consumers.worker import Worker
from ackline.infra.durations import seconds
from ackline.infra.errors import AcklineError, ConfigurationError
from ackline.infra.names import MESSAGES, OUTCOMES
from ackline.infra.properties import PERSISTENT, Properties
from ackline.infra.settings import process_name, settings
from ackline.infra.topology import declare
from ackline.infra.wire import TRACK, Trail, entrance, uuid7
from ackline.infra.wire import message_id as id_of
from ackline.producer.message import contract_of, contracts, encode, key_headers
from ackline.producer.publisher import Publisher
from ackline.producer.testing import as_read

#: A function with `@consumer`; or a `Consumer`, of one that has several: `registered()["billing"]`.
Handler: TypeAlias = Callable[..., Any] | Consumer


# --- one message, without a broker ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a worker does after one message."""

    #: `Ack()`, `Retry(delay)`, `Reject(reason)` or `Park(delay)`. The delay of a retry is the policy's, without jitter;
    #: a reason is as people will read it, secrets masked.
    decision: Decision
    #: What was raised by the handler, or by what is around it; None when nothing was.
    error: BaseException | None
    #: What the handler published, as consumers read it. Nothing of a message that is not acked: it is not sent.
    published: list[BaseModel]
    #: All that `ctx.progress` was told: how far, and the text.
    progress: list[tuple[float, str]]
    #: What the handler wrote to `ctx.log`, at any level.
    logs: list[str]


class Sent(TypedDict, total=False):
    """How a message comes."""

    #: A new one by default; "" for none. Not for a batch: each of its messages has its own.
    message_id: str
    #: Of a body in bytes. May be left away where only one type is taken.
    message_type: str
    correlation_id: str
    headers: Mapping[str, Any]


class Given(Sent, total=False):
    """How a message comes to its handler."""

    #: Number of this try, 1 by default.
    attempt: int
    #: Time since the first try failed, for `give_up_after`: "90m", or seconds.
    failing_for: str | float
    #: Whether the worker is about to stop.
    stopping: bool
    #: SQLAlchemy URL of the inbox, for a consumer that has one. Its table is created.
    database_url: str


@overload
def run(handler: Handler, message: BaseModel | bytes, /, **given: Unpack[Given]) -> Outcome: ...
@overload
def run(handler: Handler, message: Sequence[BaseModel | bytes], /, **given: Unpack[Given]) -> list[Outcome]: ...
def run(
    handler: Handler, message: BaseModel | bytes | Sequence[BaseModel | bytes], /, **given: Unpack[Given]
) -> Outcome | list[Outcome]:
    """Give *message* to a handler as a worker would, and return what the worker would do then. Needs no broker.

    The message becomes JSON, and is read by its contract; the handler has its time limit, its middleware and its inbox.
    An async one runs on a loop of its own (see `arun`). A batch handler takes a list, as one batch, and has a list of
    outcomes. What concerns several messages takes no part: order, rate and breaker.

    handler: a function with `@consumer`, or a `Consumer`. message: bytes are a body as it is. given: see `Given`.

    Raises `InvalidMessage` for what is no message, and for what was published and no consumer could read; and
    `ConfigurationError` when something does not fit the handler.
    """
    case = _Case(handler, message, given)
    if not case.consumer.is_async:
        return case.of(case.run())
    if _is_on_a_loop():
        raise ConfigurationError("run() needs a loop of its own, and one runs here: write await arun(…) instead.")
    return case.of(asyncio.run(case.arun()))


@overload
async def arun(handler: Handler, message: BaseModel | bytes, /, **given: Unpack[Given]) -> Outcome: ...
@overload
async def arun(handler: Handler, message: Sequence[BaseModel | bytes], /, **given: Unpack[Given]) -> list[Outcome]: ...
async def arun(
    handler: Handler, message: BaseModel | bytes | Sequence[BaseModel | bytes], /, **given: Unpack[Given]
) -> Outcome | list[Outcome]:
    """`run` for an async handler, on the loop of an async test."""
    case = _Case(handler, message, given)
    if not case.consumer.is_async:
        raise ConfigurationError(f"The handler of {case.consumer.name!r} is a plain function: use run().")
    return case.of(await case.arun())


class _Case:
    """One call of `run`."""

    def __init__(
        self, handler: Handler, message: BaseModel | bytes | Sequence[BaseModel | bytes], given: Given
    ) -> None:
        consumer = self.consumer = _with_inbox_at(given.get("database_url"), _consumer_of(handler))
        self._is_batch = not isinstance(message, BaseModel | bytes)
        messages = [message] if isinstance(message, BaseModel | bytes) else list(message)
        if self._is_batch != (consumer.batch is not None):
            takes = "a list of messages" if consumer.batch is not None else "one message at a time"
            raise ConfigurationError(f"The handler of {consumer.name!r} takes {takes}.")
        if self._is_batch and "message_id" in given:
            raise ConfigurationError("The messages of a batch have an id each: leave message_id away.")
        self._failing_for = seconds(given.get("failing_for", 0.0))
        self._trail = Trail(consumer=consumer.name, attempt=given.get("attempt", 1), track=True, exchange=MESSAGES)
        self._deliveries = [
            Delivery(MESSAGES, sent.type, Properties.from_wire(sent.properties.wire), sent.body)
            for sent in (_as_sent([consumer], one, given) for one in messages)
        ]
        self._errors: dict[Delivery, BaseException | None] = {}
        self._contexts: dict[Delivery, Context | None] = {}
        self._progress: dict[Delivery, list[tuple[float, str]]] = {one: [] for one in self._deliveries}
        self._lines: list[str] = []
        signal = Stopping()
        if given.get("stopping", False):
            signal.set()
        self._way = way_of(consumer, process_name(), stopping=signal, tell=self._told)

    def of(self, outcomes: list[Outcome]) -> Outcome | list[Outcome]:
        return outcomes if self._is_batch else outcomes[0]

    def run(self) -> list[Outcome]:
        box = self.consumer.inbox
        if box is not None:
            box.open(1)
        try:
            with _lines_of(handlers_log, self._lines):
                opened = self._open()
                if self._is_batch:
                    self._over(opened, results_of(self._way, opened) if opened else [])
                elif opened:
                    self._over(opened, [self._call(opened[0])])
            return [self._outcome(delivery) for delivery in self._deliveries]
        finally:
            if box is not None:
                box.close()

    async def arun(self) -> list[Outcome]:
        box = self.consumer.inbox
        if box is not None:
            await asyncio.to_thread(box.open, 1)
        try:
            with _lines_of(handlers_log, self._lines):
                opened = self._open()
                if self._is_batch:
                    self._over(opened, await aresults_of(self._way, opened) if opened else [])
                elif opened:
                    self._over(opened, [await self._acall(opened[0])])
            return [self._outcome(delivery) for delivery in self._deliveries]
        finally:
            if box is not None:  # it closes what belongs to this loop by this loop
                await asyncio.to_thread(box.close)

    def _open(self) -> list[Opened]:
        opened = []
        for place, delivery in enumerate(self._deliveries):
            trail = replace(self._trail, routing_key=delivery.routing_key)
            try:
                opened.append(Opened(place, delivery, trail, *read(self._way, delivery, trail)))
            except Reject as error:
                self._errors[delivery] = error
        return opened

    def _call(self, one: Opened) -> BaseException | None:
        try:
            self._way.call(one.message, one.context)
        except KeyboardInterrupt:  # whoever runs the tests means them, not the handler
            raise
        except BaseException as error:
            return error
        return None

    async def _acall(self, one: Opened) -> BaseException | None:
        try:
            await self._way.call(one.message, one.context)
        except (KeyboardInterrupt, asyncio.CancelledError):
            raise
        except BaseException as error:
            return error
        return None

    def _over(self, opened: list[Opened], results: Results) -> None:
        for one, error in zip(opened, results, strict=True):
            self._errors[one.delivery] = error
            self._contexts[one.delivery] = one.context

    def _told(self, delivery: Delivery, report: Callable[[], Report]) -> None:
        event = json.loads(report().event)
        self._progress[delivery].append((event["progress"], event["progress_text"]))

    def _outcome(self, delivery: Delivery) -> Outcome:
        error, context = self._errors[delivery], self._contexts.get(delivery)
        failure = None if error is None else Failure(nameable(error), self._trail.attempt, self._failing_for)
        decision = decide(failure, replace(self.consumer.retry, jitter=False))
        if isinstance(decision, Reject):
            decision = Reject(mask_for(self._way, delivery, self._trail)(decision.reason))
        published = []
        if isinstance(decision, Ack) and context is not None:
            for _, type_, properties, body in context.enlisted():
                published.append(as_read(contract_of(contracts()[type_]), body, id_of(properties)))
            if context.on_confirmed is not None:
                context.on_confirmed()
        prefix = f"[{context}] "
        logs = [line.removeprefix(prefix) for line in self._lines if line.startswith(prefix)]
        return Outcome(decision, error, published, self._progress[delivery], logs)


def _is_on_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


@contextmanager
def _lines_of(logger: logging.Logger, lines: list[str]) -> Iterator[None]:
    """Have what is written to *logger* in *lines*, whatever its level."""
    keeping = _Lines(lines)
    level = logger.level
    logger.addHandler(keeping)
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(keeping)


class _Lines(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage())


# --- what both have -------------------------------------------------------------------------------------------------


class _AsSent(NamedTuple):
    """A message as its publisher sends it."""

    type: str
    properties: Properties
    body: bytes


def _as_sent(consumers: Sequence[Consumer], message: BaseModel | bytes, given: Sent, *, track: bool = False) -> _AsSent:
    headers = dict(given.get("headers") or {})
    if isinstance(message, BaseModel):
        contract = contract_of(message)
        type_, body = contract.type, encode(message)
        headers |= key_headers(contract, message)
        track = track or contract.track
    else:
        type_, body = given.get("message_type") or _only_type_of(consumers), message
    if track:
        headers[TRACK] = True
    properties = Properties(
        content_type=b"application/json",
        delivery_mode=PERSISTENT,
        message_id=given.get("message_id", uuid7()) or None,
        timestamp=int(time.time()),
        type=type_,
        correlation_id=given.get("correlation_id"),
        headers=headers,
    )
    return _AsSent(type_, properties, body)


def _only_type_of(consumers: Sequence[Consumer]) -> str:
    types = {type_ for found in consumers for type_ in found.types}
    if len(types) != 1 or any("*" in type_ or "#" in type_ for type_ in types):
        raise ConfigurationError(f"Say of what type the bytes are, message_type=…: one of {', '.join(sorted(types))}.")
    return types.pop()


def _consumer_of(handler: Handler) -> Consumer:
    if isinstance(handler, Consumer):
        return handler
    found = [known for known in registered().values() if known.handler is handler]
    if len(found) == 1:
        return found[0]
    name = getattr(handler, "__qualname__", repr(handler))
    if not found:
        raise ConfigurationError(f"{name} is no handler: decorate it with @consumer('name').")
    names = ", ".join(known.name for known in found)
    raise ConfigurationError(f"{name} is the handler of {names}: give registered()['{found[0].name}'], or another.")


def _with_inbox_at(database_url: str | None, found: Consumer) -> Consumer:
    """*found*, with its inbox in that database; never in the one that is configured, which may be anybody's."""
    if found.inbox is None:
        return found
    if database_url is None:
        raise ConfigurationError(
            f"{found.name!r} has an inbox: say in which database of the test, database_url='sqlite:///…'."
        )
    return replace(found, inbox=found.inbox.at(database_url))


# --- a worker on a real broker --------------------------------------------------------------------------------------


class NotHandled(AssertionError):
    """A message that a test waits for went to review, or was not handled in time."""


class _Told(NamedTuple):
    """What the worker has reported last of a delivery."""

    event: str
    error: str | None


class RunningWorker:
    """A worker of a test, and what was published to it. Made by the fixture `ackline_worker`."""

    def __init__(self, url: str, consumers: Sequence[Consumer], concurrency: int) -> None:
        #: The broker's AMQP URL, with the vhost of this test.
        self.url = url
        self._consumers = consumers
        self._changed = threading.Condition()
        self._told: dict[tuple[str, str], _Told] = {}
        self._types: dict[tuple[str, str], str] = {}
        # An id may be published again.
        self._awaited = Counter[tuple[str, str]]()
        self._handled = Counter[tuple[str, str]]()
        self._failure: BaseException | None = None
        self._worker = _ReportingWorker(consumers, url=url, concurrency=concurrency, told=self._tell)
        self._publisher = Publisher(url)

    def publish(self, message: BaseModel | bytes, /, **sent: Unpack[Sent]) -> str:
        """Publish a message, tracked, and return its id when the broker has confirmed it. sent: see `Sent`.

        Raises what `Publisher.publish` raises, and `ConfigurationError` when no consumer of this worker takes it.
        """
        type_, properties, body = _as_sent(self._consumers, message, sent, track=True)
        takers = [found.name for found in self._consumers if found.takes(type_)]
        if not takers:
            raise ConfigurationError(f"None of {', '.join(found.name for found in self._consumers)} takes {type_}.")
        id_ = id_of(properties)
        if id_ is None:
            raise ConfigurationError("A message without an id cannot be waited for: leave message_id away.")
        self._types |= {(id_, taker): type_ for taker in takers}
        self._awaited.update((id_, taker) for taker in takers)
        self._publisher.send(entrance(properties), type_, properties, body).result()
        return id_

    def wait_until_handled(self, timeout: float = 30.0) -> None:
        """Wait until all consumers have handled all that `publish` was given, retries included.

        Not for what handlers have published. timeout: in seconds. Raises `NotHandled` when one went to review, or after
        the timeout; and what ended the worker.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._failure is not None or self._dead or not self._left, timeout)
        if self._failure is not None:
            raise self._failure
        if self._dead:
            raise NotHandled("In review: " + "; ".join(map(self._said, self._dead)))
        if self._left:
            raise NotHandled(f"Not handled within {timeout:g} s: " + "; ".join(map(self._said, self._left)))

    @contextmanager
    def running(self) -> Iterator[RunningWorker]:
        """The worker runs while the block does; what ended it before is raised at the end of the block."""
        declare(self.url, [found.queue for found in self._consumers])  # so that nothing is published to nobody
        thread = threading.Thread(target=self._run, name="worker")
        thread.start()
        try:
            with self._publisher:
                yield self
        finally:
            self._worker.stop()
            thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            self._worker.run()
        except BaseException as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _tell(self, events: list[dict[str, Any]]) -> None:
        with self._changed:
            for event in events:
                one = (event["message_id"], event["consumer"])
                told = _Told(event["event"], event.get("error"))
                self._handled[one] += told.event == "handled"
                if one not in self._told or self._told[one].event != "dead":
                    self._told[one] = told
            self._changed.notify_all()

    @property
    def _left(self) -> list[tuple[str, str]]:
        return [one for one, times in self._awaited.items() if self._handled[one] < times]

    @property
    def _dead(self) -> list[tuple[str, str]]:
        return [one for one in self._awaited if one in self._told and self._told[one].event == "dead"]

    def _said(self, one: tuple[str, str]) -> str:
        id_, taker = one
        told = self._told.get(one, _Told("not begun", None))
        return f"{self._types[one]} {id_} for {taker}: {told.error or told.event}"


class StartWorker(Protocol):
    """What the fixture `ackline_worker` is."""

    def __call__(
        self, *handlers: Handler, concurrency: int = 8, database_url: str | None = None
    ) -> AbstractContextManager[RunningWorker]:
        """A worker of the consumers of *handlers*, which runs while the block does.

        concurrency: handlers at once. database_url: of the inboxes, for consumers that have one.
        """


@contextmanager
def workers() -> Iterator[StartWorker]:
    """Workers in a vhost of their own, on the broker that is configured; the vhost is deleted afterwards.

    Never in the vhost that is configured: they would take what waits there for somebody else.

    Raises `ConfigurationError` when no broker is configured, and `AcklineError` when no vhost can be made.
    """
    with _fresh_vhost() as url:

        def start(
            *handlers: Handler, concurrency: int = 8, database_url: str | None = None
        ) -> AbstractContextManager[RunningWorker]:
            consumers = [_with_inbox_at(database_url, _consumer_of(handler)) for handler in handlers]
            return RunningWorker(url, consumers, concurrency).running()

        yield start


class _ReportingWorker(Worker):
    """Tells what it has reported of tracked messages, when the broker has it."""

    def __init__(
        self,
        consumers: Sequence[Consumer],
        *,
        url: str,
        concurrency: int,
        told: Callable[[list[dict[str, Any]]], None],
    ) -> None:
        self._tell = told
        super().__init__(consumers, url=url, concurrency=concurrency)

    def send(self, outgoing: Outgoing) -> Any:
        """See `Worker.send`."""
        future = super().send(outgoing)
        if outgoing.exchange == OUTCOMES:
            future.add_done_callback(partial(self._confirmed, outgoing.body))
        return future

    def _confirmed(self, body: bytes, future: Any) -> None:
        if future.exception() is None:
            self._tell(json.loads(body))


@contextmanager
def _fresh_vhost() -> Iterator[str]:
    """The AMQP URL of a vhost that exists while the block runs."""
    configured = settings()
    parts = urlsplit(configured.broker)
    user, password = unquote(parts.username or "guest"), unquote(parts.password or "guest")
    address = configured.management_url or f"http://{parts.hostname}:15672"
    name = f"ackline-test-{uuid.uuid4().hex[:12]}"
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    with httpx.Client(base_url=address, auth=(user, password), timeout=60.0, trust_env=False) as api:
        try:
            api.put(f"/api/vhosts/{name}").raise_for_status()
            api.put(f"/api/permissions/{name}/{quote(user, safe='')}", json=everything).raise_for_status()
        except httpx.HTTPError as error:
            raise AcklineError(
                f"No vhost for this test can be made by {address}: {error}. The user of ACKLINE_AMQP_URL needs the tag "
                "administrator; ACKLINE_MANAGEMENT_URL says where the management API is."
            ) from None
        try:
            yield urlunsplit(parts._replace(path=f"/{name}"))
        finally:
            with suppress(httpx.HTTPError):  # the broker may be gone
                api.delete(f"/api/vhosts/{name}")
