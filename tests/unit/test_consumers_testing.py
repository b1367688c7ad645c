"""`run`: what a test of a handler sees, without a broker."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field, SecretStr
from sqlalchemy import Engine, create_engine, text

from ackline.consumers import (
    Ack,
    AlreadyHandled,
    Breaker,
    Context,
    Park,
    Reject,
    Retry,
    RetryLater,
    TimeLimitExceeded,
    consumer,
    exponential,
    fixed,
    registered,
    use,
)
from ackline.consumers.consumer import Consumer, _consumers, matches
from ackline.consumers.inbox import claim, inbox
from ackline.consumers.middleware import _everywhere
from ackline.consumers.testing import Outcome, arun, run
from ackline.infra.errors import ConfigurationError
from ackline.producer import InvalidMessage, message
from ackline.producer.message import _contracts


class Placed(BaseModel):
    number: int = 1


class Paid(BaseModel):
    number: int = 1


class Token(BaseModel):
    token: SecretStr


class Renamed(BaseModel):
    number: int = Field(validation_alias="n")


class Bare(BaseModel):
    """No message."""


CONTRACTS: dict[str, type[BaseModel]] = {"placed": Placed, "paid": Paid, "token": Token, "renamed": Renamed}


@pytest.fixture(autouse=True)
def _nothing_outlives_its_test() -> Iterator[None]:
    before, consumers, everywhere = dict(_contracts), dict(_consumers), list(_everywhere)
    for type_, model in CONTRACTS.items():
        message(f"unit.handler.{type_}")(model)
    yield
    for registry, saved in ((_contracts, before), (_consumers, consumers)):
        registry.clear()
        registry.update(saved)  # type: ignore[arg-type]
    _everywhere[:] = everywhere


def handling(**options: Any) -> Callable[[Callable[..., Any]], Consumer]:
    """`@consumer` that returns the consumer."""

    def register(handler: Callable[..., Any]) -> Consumer:
        consumer("unit-testing", **options)(handler)
        return registered()["unit-testing"]

    return register


def raising(error: BaseException, **options: Any) -> Consumer:
    def handler(placed: Placed) -> None:
        raise error

    return handling(**options)(handler)


# --- the decision -------------------------------------------------------------------------------------------


def test_a_handler_that_returns_has_its_message_acked() -> None:
    seen: list[Placed] = []

    @consumer("unit-testing")
    def handler(placed: Placed) -> None:
        seen.append(placed)

    assert run(handler, Placed(number=7)) == Outcome(Ack(), None, [], [], [])
    assert seen == [Placed(number=7)]


@pytest.mark.parametrize(
    ("error", "attempt", "decision"),
    [
        (ConnectionError("away"), 1, Retry(1.0)),
        (ConnectionError("away"), 2, Retry(2.0)),
        (ConnectionError("away"), 3, Reject("failed after 3 attempts: ConnectionError: away")),
        (KeyError("x"), 1, Reject("not retried: KeyError: 'x'")),
        (Reject("no such account"), 1, Reject("no such account")),
        (RetryLater("5m"), 1, Retry(300.0)),
        (Park("1m"), 3, Park(60.0)),
        (AlreadyHandled(), 1, Ack()),
        (SystemExit(3), 1, Reject("not retried: SystemExit: 3")),
    ],
)
def test_the_decision_is_the_policys_and_the_error_is_kept(
    error: BaseException, attempt: int, decision: object
) -> None:
    policy = exponential(attempts=3, first="1s", jitter=True, retry_on=ConnectionError)
    outcome = run(raising(error, retry=policy), Placed(), attempt=attempt)
    assert (outcome.decision, outcome.error) == (decision, error)


def test_a_message_that_has_failed_for_too_long_is_given_up() -> None:
    impatient = raising(ValueError("no"), retry=fixed(attempts=9, delay="5m", give_up_after="1h"))
    assert run(impatient, Placed(), failing_for="54m").decision == Retry(300.0)
    given_up = run(impatient, Placed(), attempt=4, failing_for="56m").decision
    assert isinstance(given_up, Reject)
    assert "given up after 4 attempts" in given_up.reason


def test_ctrl_c_ends_the_tests_and_is_no_failure_of_the_handler() -> None:
    with pytest.raises(KeyboardInterrupt):
        run(raising(KeyboardInterrupt()), Placed())


def test_secrets_are_masked_in_the_reason_as_people_will_read_it() -> None:
    @consumer("unit-testing")
    def handler(token: Token) -> None:
        raise Reject(f"refused: {token.token.get_secret_value()}")

    assert run(handler, b'{"token": "s3cret"}').decision == Reject("refused: **********")


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_an_error_without_a_text_is_decided_on_as_in_a_worker() -> None:
    outcome = run(raising(Unspeakable(), retry=fixed(attempts=1)), Placed())
    assert isinstance(outcome.decision, Reject)
    assert "Unspeakable" in outcome.decision.reason
    assert isinstance(outcome.error, Unspeakable)


# --- the message ----------------------------------------------------------------------------------------------


def test_the_message_is_read_from_json_as_on_its_way() -> None:
    @consumer("unit-testing")
    def handler(renamed: Renamed) -> None: ...

    decision = run(handler, Renamed.model_validate({"n": 1})).decision
    assert decision == Reject("the body is no unit.handler.renamed: n: Field required")


def test_a_body_that_is_no_message_goes_to_review_unseen() -> None:
    @consumer("unit-testing")
    def handler(placed: Placed) -> None:
        raise AssertionError("the handler saw it")

    outcome = run(handler, b'{"number": "many"}')
    assert isinstance(outcome.decision, Reject)
    assert outcome.decision.reason.startswith("the body is no unit.handler.placed: number: ")
    said = "unit-testing does not take messages of type 'unit.handler.paid'; it takes unit.handler.placed"
    assert run(handler, Paid()).decision == Reject(said)


def test_a_union_and_bytes_are_taken_as_their_types_say() -> None:
    seen: list[object] = []

    @consumer("unit-testing")
    def either(one: Placed | Paid, ctx: Context) -> None:
        seen.append((one, ctx.type))

    run(either, Paid(number=2))
    run(either, b'{"number": 3}', message_type="unit.handler.placed")
    with pytest.raises(ConfigurationError, match=r"message_type=…: one of unit\.handler\.paid, unit\.handler\.placed"):
        run(either, b"{}")

    @consumer("unit-testing-bytes", types=["unit.scan"])
    def bare(body: bytes, ctx: Context) -> None:
        seen.append((body, ctx.type))

    run(bare, b"\xff")
    run(bare, Placed(number=4))
    assert seen == [
        (Paid(number=2), "unit.handler.paid"),
        (Placed(number=3), "unit.handler.placed"),
        (b"\xff", "unit.scan"),
        (b'{"number":4}', "unit.handler.placed"),
    ]


@pytest.mark.parametrize("key", ["*", "unit.*", "#", "unit.scan.#"])
def test_of_what_type_bytes_are_is_asked_where_a_pattern_takes_several(key: str) -> None:
    @consumer("unit-testing", types=[key])
    def bare(body: bytes) -> None: ...

    with pytest.raises(ConfigurationError, match="Say of what type"):
        run(bare, b"")
    assert run(bare, b"", message_type="unit.scan").decision == Ack()


def test_the_context_is_that_of_the_message() -> None:
    found: list[Context] = []

    @consumer("unit-testing")
    def handler(placed: Placed, ctx: Context) -> None:
        found.append(ctx)

    run(handler, Placed(), message_id="m-1", correlation_id="c-1", headers={"x": 1}, attempt=3, stopping=True)
    run(handler, Placed())
    run(handler, Placed(), message_id="")
    first, second, third = found
    assert (first.id, first.correlation_id, first.headers, first.attempt) == ("m-1", "c-1", {"x": 1}, 3)
    assert (first.raw, first.type, first.consumer) == (b'{"number":1}', "unit.handler.placed", "unit-testing")
    assert (first.stopping, second.stopping) == (True, False)
    assert second.id not in (None, "m-1")
    assert third.id is None


# --- what the handler does beside -----------------------------------------------------------------------------


def test_what_it_publishes_tells_and_logs_is_seen() -> None:
    @consumer("unit-testing")
    def handler(placed: Placed, ctx: Context) -> None:
        ctx.log.debug("number %d", placed.number)
        logging.getLogger("elsewhere").warning("not its own")
        ctx.progress(0.5, "half")
        ctx.progress(2)
        ctx.publish(Paid(number=placed.number))
        if placed.number == 13:
            raise ConnectionError

    handled = run(handler, Placed(number=1))
    assert (handled.published, handled.progress) == ([Paid(number=1)], [(0.5, "half"), (1.0, "")])
    assert handled.logs == ["number 1"]
    failed = run(handler, Placed(number=13))
    assert (failed.decision, failed.published) == (Retry(1.0), [])
    assert logging.getLogger("ackline.handler").level == logging.NOTSET


def test_what_it_publishes_and_nobody_could_read_is_said() -> None:
    @consumer("unit-testing")
    def handler(placed: Placed, ctx: Context) -> None:
        ctx.publish(Renamed.model_validate({"n": 1}))

    with pytest.raises(InvalidMessage, match=r"No consumer could read this unit\.handler\.renamed"):
        run(handler, Placed())


def test_middleware_is_around_it_everywhere_and_its_own() -> None:
    entered: list[str] = []

    def named(name: str) -> Callable[[Context], Any]:
        @contextmanager
        def middleware(ctx: Context) -> Iterator[None]:
            entered.append(name)
            yield

        return middleware

    @contextmanager
    def forgiving(ctx: Context) -> Iterator[None]:
        try:
            yield
        except KeyError:
            entered.append("forgiven")

    use(named("everywhere"))
    assert run(raising(KeyError(), middleware=[named("own"), forgiving]), Placed()).decision == Ack()
    assert entered == ["everywhere", "own", "forgiven"]


def test_a_time_limit_holds() -> None:
    @handling(time_limit=0.05, retry=fixed(attempts=1))
    def endless(placed: Placed) -> None:
        while True:
            time.sleep(0.001)

    outcome = run(endless, Placed())
    assert isinstance(outcome.error, TimeLimitExceeded)
    assert isinstance(outcome.decision, Reject)


def test_a_breaker_and_a_rate_take_no_part() -> None:
    limited = raising(ConnectionError(), breaker=Breaker(on=(ConnectionError,), failures=1), rate="10/h")
    assert [run(limited, Placed()).decision for _ in range(3)] == [Retry(1.0)] * 3


# --- async ------------------------------------------------------------------------------------------------------


def test_an_async_handler_runs_on_a_loop_of_its_own_or_on_the_tests() -> None:
    entered: list[asyncio.AbstractEventLoop] = []

    @asynccontextmanager
    async def middleware(ctx: Context) -> AsyncIterator[None]:
        entered.append(asyncio.get_running_loop())
        yield

    @handling(middleware=[middleware])
    async def handler(placed: Placed, ctx: Context) -> None:
        await asyncio.sleep(0)
        ctx.publish(Paid(number=placed.number))
        if placed.number == 13:
            raise Reject("unlucky")

    assert run(handler, Placed(number=2)).published == [Paid(number=2)]
    assert run(handler, Placed(number=13)).decision == Reject("unlucky")

    async def in_a_test() -> None:
        assert (await arun(handler, Placed(number=3))).published == [Paid(number=3)]
        assert entered[-1] is asyncio.get_running_loop()
        with pytest.raises(ConfigurationError, match=r"await arun\(…\) instead"):
            run(handler, Placed())

    asyncio.run(in_a_test())
    assert len(entered) == 3


def test_a_plain_handler_is_not_awaited() -> None:
    with pytest.raises(ConfigurationError, match="is a plain function"):
        asyncio.run(arun(raising(KeyError()), Placed()))


def test_a_test_that_is_cancelled_while_a_handler_waits_is_cancelled() -> None:
    async def in_a_test() -> None:
        begun = asyncio.Event()

        @handling()
        async def handler(placed: Placed) -> None:
            begun.set()
            await asyncio.Event().wait()

        task = asyncio.ensure_future(arun(handler, Placed()))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(in_a_test())


# --- batches ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True])
def test_a_batch_has_an_outcome_for_each_message(is_async: bool) -> None:
    def write(batch: list[Placed], contexts: list[Context]) -> list[BaseException | None]:
        for placed, ctx in zip(batch, contexts, strict=True):
            ctx.log.info("number %d", placed.number)
            ctx.publish(Paid(number=placed.number))
        return [Reject("unlucky") if placed.number == 13 else None for placed in batch]

    async def awrite(batch: list[Placed], contexts: list[Context]) -> list[BaseException | None]:
        return write(batch, contexts)

    outcomes = run(handling()(awrite if is_async else write), [Placed(number=1), b"no", Placed(number=13)])
    assert [outcome.decision for outcome in outcomes] == [
        Ack(),
        Reject("the body is not JSON: expected ident at line 1 column 2"),
        Reject("unlucky"),
    ]
    assert [outcome.published for outcome in outcomes] == [[Paid(number=1)], [], []]
    assert [outcome.logs for outcome in outcomes] == [["number 1"], [], ["number 13"]]


def test_a_batch_handler_that_raises_is_called_for_each_alone() -> None:
    calls: list[int] = []

    @handling()
    def write(batch: list[Placed]) -> None:
        calls.append(len(batch))
        if any(placed.number == 13 for placed in batch):
            raise ConnectionError

    outcomes = run(write, [Placed(number=number) for number in (1, 13, 2)])
    assert [outcome.decision for outcome in outcomes] == [Ack(), Retry(1.0), Ack()]
    assert calls == [3, 1, 1, 1]


# --- inbox ------------------------------------------------------------------------------------------------------


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'test.db'}"


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    found = create_engine(url)
    with found.begin() as connection:
        connection.execute(text("CREATE TABLE payments (number INTEGER)"))
    yield found
    found.dispose()


def _numbers(engine: Engine) -> list[int]:
    with engine.connect() as connection:
        return list(connection.execute(text("SELECT number FROM payments")).scalars())


def _paying(*, is_async: bool = False) -> Consumer:
    insert = text("INSERT INTO payments VALUES (:number)")

    def conclude(placed: Placed, ctx: Context) -> None:
        ctx.publish(Paid(number=placed.number))
        if placed.number == 13:
            raise Reject("unlucky")

    def pay(placed: Placed, ctx: Context) -> None:
        ctx.session.execute(insert, placed.model_dump())
        conclude(placed, ctx)

    async def apay(placed: Placed, ctx: Context) -> None:
        await ctx.session.execute(insert, placed.model_dump())
        conclude(placed, ctx)

    return handling(inbox=inbox())(apay if is_async else pay)


@pytest.mark.parametrize("is_async", [False, True])
def test_an_inbox_is_real(url: str, engine: Engine, is_async: bool) -> None:
    paying = _paying(is_async=is_async)
    first, again = [run(paying, Placed(number=7), message_id="m-1", database_url=url) for _ in range(2)]
    assert first == Outcome(Ack(), None, [Paid(number=7)], [], [])
    assert again == Outcome(Ack(), None, [], [], []), "the broker has what it published"
    assert run(paying, Placed(number=8), message_id="m-1", database_url=url).decision == Reject(
        "a message with the same id, but another body, has been handled already"
    )
    failed = run(paying, Placed(number=13), database_url=url)
    assert (failed.decision, failed.published) == (Reject("unlucky"), [])
    assert _numbers(engine) == [7]


def test_a_claim_is_real(url: str) -> None:
    calls: list[int] = []

    @handling(inbox=claim("10m"))
    def pay(placed: Placed) -> None:
        calls.append(placed.number)
        if calls == [7]:
            raise ConnectionError

    tries = [run(pay, Placed(number=7), message_id="m-1", database_url=url).decision for _ in range(3)]
    assert (tries, calls) == ([Retry(1.0), Ack(), Ack()], [7, 7])


def test_the_database_that_is_configured_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=r"has an inbox: .* database_url='sqlite:///…'"):
        run(_paying(), Placed())
    assert list(tmp_path.iterdir()) == []


# --- what is refused --------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_said() -> None:
    def nobody(placed: Placed) -> None: ...

    with pytest.raises(ConfigurationError, match="nobody is no handler: decorate it"):
        run(nobody, Placed())
    consumer("unit-testing")(nobody)
    consumer("unit-testing-too")(nobody)
    with pytest.raises(ConfigurationError, match=r"is the handler of unit-testing, unit-testing-too: give registered"):
        run(nobody, Placed())
    one = registered()["unit-testing-too"]
    with pytest.raises(ConfigurationError, match="takes one message at a time"):
        run(one, [Placed()])
    with pytest.raises(InvalidMessage, match="Bare is no message"):
        run(one, Bare())

    @consumer("unit-testing-batch")
    def write(batch: list[Placed]) -> None: ...

    with pytest.raises(ConfigurationError, match="takes a list of messages"):
        run(write, Placed())
    with pytest.raises(ConfigurationError, match="leave message_id away"):
        run(write, [Placed()], message_id="m-1")


@pytest.mark.parametrize(
    ("key", "takes", "leaves"),
    [
        ("order.placed", ["order.placed"], ["order.paid", "order", "order.placed.late", "orderxplaced"]),
        ("order.*", ["order.placed"], ["order", "order.placed.late", "my.order.placed"]),
        ("*.placed", ["order.placed"], ["placed", "my.order.placed"]),
        ("order.#", ["order", "order.placed", "order.placed.late"], ["orders.placed"]),
        ("#.late", ["late", "order.placed.late"], ["order.latest"]),
        ("#", ["order", "order.placed"], []),
    ],
)
def test_patterns_match_as_in_a_topic_exchange(key: str, takes: list[str], leaves: list[str]) -> None:
    assert [type_ for type_ in takes + leaves if matches(key, type_)] == takes
