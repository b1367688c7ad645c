"""Ordered consumers against a real broker: the messages of a key one at a time and in order, whatever happens."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from ackline.consumers import Context, Reject, consumer, fixed, registered
from ackline.consumers.breaker import Breaker
from ackline.consumers.consumer import Consumer, _consumers
from ackline.consumers.ordered import Order
from ackline.consumers.runner import Item
from ackline.consumers.shard import Shard
from ackline.infra.errors import ConfigurationError
from ackline.infra.names import DEAD, MESSAGES, OUTCOMES, RETRY_TIERS, RETURN
from ackline.infra.wire import KEY, REASON
from ackline.producer import Publisher, message
from tests.amqp import Client, Taken
from tests.broker import Vhost
from tests.documented import load, write_files
from tests.ordered import Placed
from tests.waiting import until
from tests.working import consumer_of, working

#: Seconds that a handler waits for the test; then it fails.
PATIENCE = 90.0
ATTEMPTS = fixed(attempts=3, delay="1s")


class Seen:
    """What handlers have seen: the numbers of each key in order, and whether two of a key ever ran at once."""

    def __init__(self) -> None:
        self.numbers: dict[str, list[int]] = defaultdict(list)
        self.overlaps: list[str] = []
        self._running: set[str] = set()
        self._lock = threading.Lock()

    def handling(self, placed: Placed, does: Callable[[], None] = lambda: None) -> None:
        """Note it, and do what it does."""
        key = placed.order_id
        with self._lock:
            if key in self._running:
                self.overlaps.append(key)
            self._running.add(key)
            self.numbers[key].append(placed.number)
        try:
            does()
        finally:
            with self._lock:
                self._running.discard(key)

    @property
    def count(self) -> int:
        return sum(map(len, self.numbers.values()))


def ordered(handler: Callable[..., Any], *, shards: int = 1) -> Consumer:
    return consumer_of("billing", handler, Placed, retry=ATTEMPTS, order=Order("order_id", shards))


def publish(publisher: Publisher, *placed: Placed, **options: Any) -> None:
    for future in [publisher.submit(each, timeout=PATIENCE, **options) for each in placed]:
        future.result(PATIENCE)


def numbered(key: str, count: int, first: int = 1) -> list[Placed]:
    return [Placed(order_id=key, number=number) for number in range(first, first + count)]


def dead_letter(client: Client) -> Taken:
    return until(lambda: client.take(DEAD), what="a dead letter")


# --- order ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True])
def test_messages_of_a_key_are_handled_one_at_a_time_and_in_order(
    vhost: Vhost, publisher: Publisher, is_async: bool
) -> None:
    seen = Seen()

    def bill(placed: Placed) -> None:
        seen.handling(placed)

    async def abill(placed: Placed) -> None:
        seen.handling(placed)

    with working(vhost.amqp_url, ordered(abill if is_async else bill, shards=3)):
        keys = [f"A-{number}" for number in range(12)]
        publish(publisher, *(Placed(order_id=key, number=number) for number in range(1, 51) for key in keys))
        until(lambda: seen.count == 600, what="all of them to be handled")
    assert seen.numbers == {key: list(range(1, 51)) for key in keys}
    assert seen.overlaps == []


def test_other_keys_of_the_shard_go_on_while_one_takes_its_time(vhost: Vhost, publisher: Publisher) -> None:
    seen, others_done = Seen(), threading.Event()

    def bill(placed: Placed) -> None:
        def does() -> None:
            if placed == Placed(order_id="slow", number=1):
                assert others_done.wait(PATIENCE), "the other keys wait behind this one"

        seen.handling(placed, does)
        if len(seen.numbers["quick"]) == 20:
            others_done.set()

    with working(vhost.amqp_url, ordered(bill), concurrency=3):
        publish(publisher, *numbered("slow", 5), *numbered("quick", 20))
        until(lambda: seen.count == 25, what="all of them to be handled")
    assert seen.numbers == {"slow": list(range(1, 6)), "quick": list(range(1, 21))}
    assert seen.overlaps == []


def test_messages_without_a_key_share_one_lane(vhost: Vhost, client: Client) -> None:
    seen = Seen()

    def bill(placed: Placed) -> None:
        seen.handling(placed)

    with working(vhost.amqp_url, ordered(bill, shards=3)):
        for number in range(1, 31):
            client.publish(
                MESSAGES, "test.ordered.placed", Placed(order_id="any", number=number).model_dump_json().encode()
            )
        until(lambda: seen.count == 30, what="all of them to be handled")
    assert seen.numbers == {"any": list(range(1, 31))}
    assert seen.overlaps == []


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_failed_message_is_tried_again_before_the_next_of_its_key_while_other_keys_go_on(
    vhost: Vhost, publisher: Publisher, client: Client
) -> None:
    tries: dict[str, list[tuple[int, int]]] = defaultdict(list)
    published: set[str] = set()

    def bill(placed: Placed, ctx: Context) -> None:
        tries[placed.order_id].append((placed.number, ctx.attempt))
        published.add(str(ctx.id))
        if placed.order_id == "A" and placed.number == 2 and ctx.attempt < 3:
            raise ConnectionError("not now")

    with working(vhost.amqp_url, ordered(bill)):
        publish(publisher, *numbered("A", 4), *numbered("B", 4))
        until(lambda: len(tries["A"]) == 6 and len(tries["B"]) == 4, what="all of them to be handled")
    assert tries["A"] == [(1, 1), (2, 1), (2, 2), (2, 3), (3, 1), (4, 1)]
    assert tries["B"] == [(number, 1) for number in (1, 2, 3, 4)]
    assert len(published) == 8, "a try in place is of the same message"
    assert client.ready("billing.1") == 0


def test_a_message_that_failed_too_often_goes_to_review_flagged_and_its_key_goes_on(
    vhost: Vhost, publisher: Publisher, client: Client
) -> None:
    seen = Seen()

    def bill(placed: Placed) -> None:
        def does() -> None:
            if placed.number == 1:
                raise ValueError("no such order")
            if placed.number == 2:
                raise Reject("too late")

        seen.handling(placed, does)

    with working(vhost.amqp_url, ordered(bill)):
        publish(publisher, *numbered("A", 3))
        first, second = dead_letter(client), dead_letter(client)
        until(lambda: seen.numbers["A"][-1] == 3, what="the key to go on")
    assert seen.numbers == {"A": [1, 1, 1, 2, 3]}
    flag = " (ordered by order_id = A: later messages of this key go on)"
    assert first.headers[REASON] == f"failed after 3 attempts: ValueError: no such order{flag}"
    assert second.headers[REASON] == f"too late{flag}"
    assert [entry.headers[KEY] for entry in (first, second)] == ["A", "A"]
    assert all(client.ready(tier) == 0 for tier, _ in RETRY_TIERS)


def test_tries_in_place_end_by_half_of_the_brokers_patience(vhost: Vhost, publisher: Publisher, client: Client) -> None:
    def bill(placed: Placed) -> None:
        raise ValueError("no such order")

    # A half of it is less than the tier of 5 s.
    patient = consumer_of("billing", bill, Placed, retry=fixed(attempts=9, delay="5s"), order=Order("order_id", 1))
    with working(vhost.amqp_url, patient, consumer_timeout=9.0):
        publish(publisher, *numbered("A", 1))
        reason = dead_letter(client).headers[REASON]
    assert reason.startswith("given up after attempt 1, for the next one would be later than 4.5s after the delivery")


def test_a_redriven_message_is_handled_by_its_shard(vhost: Vhost, publisher: Publisher, client: Client) -> None:
    seen, mended = Seen(), threading.Event()

    def bill(placed: Placed) -> None:
        seen.handling(placed)
        if not mended.is_set():
            raise Reject("broken")

    with working(vhost.amqp_url, ordered(bill, shards=3)):
        publish(publisher, *numbered("A", 1))
        dead = dead_letter(client)
        mended.set()
        again = {name: value for name, value in dead.headers.items() if not name.startswith("x-")}
        client.publish(RETURN, "billing", dead.body, headers=again, message_id="m-1", type="test.ordered.placed")
        until(lambda: seen.count == 2, what="it to be handled")
    assert client.take(DEAD) is None


def test_what_happens_to_a_tracked_message_is_reported(vhost: Vhost, publisher: Publisher, client: Client) -> None:
    def bill(placed: Placed, ctx: Context) -> None:
        if ctx.attempt == 1:
            raise ConnectionError("not now")

    with working(vhost.amqp_url, ordered(bill)):
        publish(publisher, *numbered("A", 1), track=True)
        reports = [until(lambda: ended(client), what="a report") for _ in range(2)]
    assert reports == ["retried.billing", "handled.billing"]


def ended(client: Client) -> str | None:
    """The next report of an end; that a handler runs is reported too, on a machine on which it takes its time."""
    report = client.take(OUTCOMES)
    return None if report is None or report.routing_key.startswith("started.") else report.routing_key


def held(placed: Placed, number: int, begun: threading.Event, ends: threading.Event) -> None:
    """The message of that number sets *begun*, and is handled until *ends* is set."""
    if placed.number == number:
        begun.set()
        assert ends.wait(PATIENCE)


# --- coming and going -------------------------------------------------------------------------------------------------


def test_a_worker_that_stops_returns_what_it_holds_in_order(vhost: Vhost, publisher: Publisher, client: Client) -> None:
    seen, begun, ends = Seen(), threading.Event(), threading.Event()

    def bill(placed: Placed) -> None:
        seen.handling(placed, lambda: held(placed, 1, begun, ends))

    with working(vhost.amqp_url, ordered(bill), grace_seconds=PATIENCE) as first:
        publish(publisher, *numbered("A", 300))
        assert begun.wait(PATIENCE)
        first.stop()
        ends.set()
    left = 300 - len(seen.numbers["A"])
    until(lambda: client.ready("billing.1") == left, what="what it has given back")
    with working(vhost.amqp_url, ordered(bill)):
        until(lambda: seen.numbers["A"][-1] == 300, what="the rest to be handled")
    assert seen.numbers == {"A": list(range(1, 301))}
    assert seen.overlaps == []


def test_a_handler_that_returns_after_its_shard_was_given_back_leaves_the_key_to_who_has_it(
    vhost: Vhost, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer goes out before the handler's thread is done with it; the two can be far apart."""
    seen, begun, ends, voided = Seen(), threading.Event(), threading.Event(), threading.Event()
    returned, void = Shard._has_returned, Shard.voided

    def late(shard: Shard, item: Item) -> None:
        if ends.is_set():
            assert voided.wait(PATIENCE)
        returned(shard, item)

    def noted(shard: Shard) -> None:
        void(shard)
        voided.set()

    monkeypatch.setattr(Shard, "_has_returned", late)
    monkeypatch.setattr(Shard, "voided", noted)

    def bill(placed: Placed) -> None:
        seen.handling(placed, lambda: held(placed, 1, begun, ends))

    with working(vhost.amqp_url, ordered(bill), grace_seconds=PATIENCE) as first:
        publish(publisher, *numbered("A", 30))
        assert begun.wait(PATIENCE)
        first.stop()
        ends.set()
    assert voided.is_set()
    with working(vhost.amqp_url, ordered(bill)):
        until(lambda: seen.numbers["A"][-1] == 30, what="the rest to be handled")
    assert seen.numbers == {"A": list(range(1, 31))}
    assert seen.overlaps == []


def test_a_worker_that_waits_takes_over_in_order(vhost: Vhost, publisher: Publisher) -> None:
    seen, begun, ends = Seen(), threading.Event(), threading.Event()

    def bill(placed: Placed) -> None:
        seen.handling(placed, lambda: held(placed, 3, begun, ends))

    one, other = ordered(bill), ordered(bill)
    with working(vhost.amqp_url, one, grace_seconds=PATIENCE) as first, working(vhost.amqp_url, other):
        publish(publisher, *numbered("A", 300))
        assert begun.wait(PATIENCE)
        first.stop()  # the one that has it, or will not take over
        ends.set()
        until(lambda: seen.count >= 300, what="all of them to be handled")
    assert seen.numbers == {"A": list(range(1, 301))}
    assert seen.overlaps == []


def test_after_a_lost_connection_a_key_waits_for_the_handler_that_still_runs(
    vhost: Vhost, publisher: Publisher, client: Client
) -> None:
    seen, begun, ends = Seen(), threading.Event(), threading.Event()

    def bill(placed: Placed) -> None:
        def does() -> None:
            if placed == Placed(order_id="A", number=1):
                begun.set()
                assert ends.wait(PATIENCE)

        seen.handling(placed, does)

    with working(vhost.amqp_url, ordered(bill)):
        publish(publisher, *numbered("A", 3))
        assert begun.wait(PATIENCE)
        with vhost.api() as api:

            def close() -> bool:
                mine = [
                    found["name"]
                    for found in api.get(f"/api/vhosts/{vhost.path}/connections").json()
                    if "worker consumes" in str(found.get("user_provided_name"))
                ]
                for name in mine:
                    api.delete(f"/api/connections/{quote(name, safe='')}")
                return bool(mine)

            until(close, what="the connection to be listed, and closed")
        publish(publisher, *numbered("B", 3))
        until(lambda: len(seen.numbers["B"]) == 3, what="the worker to be back")
        ends.set()
        until(lambda: seen.numbers["A"][-1] == 3, what="the key to go on")
    assert seen.numbers["A"] == [1, 1, 2, 3], "handled again, after it has ended"
    assert seen.overlaps == []


def test_a_pause_begins_nothing_and_keeps_the_order(vhost: Vhost, publisher: Publisher) -> None:
    seen, begun, ends = Seen(), threading.Event(), threading.Event()

    def bill(placed: Placed) -> None:
        seen.handling(placed, lambda: held(placed, 1, begun, ends))

    with working(vhost.amqp_url, ordered(bill)) as worker:
        publish(publisher, *numbered("A", 30))
        assert begun.wait(PATIENCE)
        worker.limit("billing", "pause", 0)
        on_io = threading.Event()
        worker.link.call(on_io.set)
        assert on_io.wait(PATIENCE)
        ends.set()
        publish(publisher, *numbered("A", 30, first=31))
        assert seen.numbers == {"A": [1]}
        worker.limit("billing", "pause", None)
        until(lambda: seen.count == 60, what="all of them to be handled")
    assert seen.numbers == {"A": list(range(1, 61))}
    assert seen.overlaps == []


def test_an_idle_worker_that_is_paused_leaves_messages_in_their_queue(
    vhost: Vhost, publisher: Publisher, client: Client
) -> None:
    seen = Seen()

    def bill(placed: Placed) -> None:
        seen.handling(placed)

    with working(vhost.amqp_url, ordered(bill)) as worker:
        worker.limit("billing", "pause", 0)
        until(lambda: client.consumers("billing.1") == 0, what="the worker to let go of the queue")
        publish(publisher, *numbered("A", 3))
        until(lambda: client.ready("billing.1") == 3, what="them to wait in the queue")
        worker.limit("billing", "pause", None)
        until(lambda: seen.count == 3, what="all of them to be handled")
    assert seen.numbers == {"A": [1, 2, 3]}


# --- beside breaker, rate and inbox -----------------------------------------------------------------------------------


def test_while_a_circuit_is_open_the_order_is_kept_and_no_attempt_is_used_up(
    vhost: Vhost, publisher: Publisher, client: Client
) -> None:
    tries: dict[int, int] = {}
    handled: list[int] = []
    failed, repaired = threading.Event(), threading.Event()

    def bill(placed: Placed, ctx: Context) -> None:
        tries[placed.number] = ctx.attempt
        if placed.number > 5 and not repaired.is_set():
            if len(handled) == 5 and ctx.attempt == 2:
                failed.set()
            raise ConnectionError("down")
        handled.append(placed.number)

    breaking = consumer_of(
        "billing",
        bill,
        Placed,
        retry=ATTEMPTS,
        order=Order("order_id", 1),
        breaker=Breaker(on=(ConnectionError,), failures=2, probe="200ms"),
    )
    with working(vhost.amqp_url, breaking):
        publish(publisher, *numbered("A", 40))
        assert failed.wait(PATIENCE)  # the second failure in a row, which opens it
        repaired.set()
        until(lambda: len(handled) == 40, what="all of them to be handled")
    assert handled == list(range(1, 41))
    assert tries == dict.fromkeys(range(1, 41), 1) | {6: 2}
    assert client.take(DEAD) is None


def test_an_ordered_consumer_keeps_its_rate_and_its_order(vhost: Vhost, publisher: Publisher) -> None:
    seen = Seen()
    times: list[float] = []

    def bill(placed: Placed) -> None:
        seen.handling(placed)
        times.append(time.monotonic())

    limited = consumer_of("billing", bill, Placed, order=Order("order_id", 2), rate=20.0)
    with working(vhost.amqp_url, limited):
        began = time.monotonic()
        publish(publisher, *numbered("A", 25))
        until(lambda: len(times) == 25, what="all of them to be handled")
    assert seen.numbers == {"A": list(range(1, 26))}
    # They are of one shard, which has half of the rate: 10 at once, and 10 a second.
    assert times[-1] - began >= 1.4


@pytest.mark.usefixtures("own_registry")
def test_the_documented_order(
    vhost: Vhost, tmp_path: Path, publisher: Publisher, capsys: pytest.CaptureFixture[str]
) -> None:
    write_files("handlers.md", "Order", tmp_path)
    load(tmp_path / "stock.py")
    stock = registered()["stock"]
    moved: Any = stock.types["stock.moved"]
    with working(vhost.amqp_url, stock):
        for by in range(1, 31):
            publisher.publish(moved(article_id=f"A-{by % 3}", by=by))
        printed: list[str] = []

        def count() -> int:
            printed.extend(capsys.readouterr().out.splitlines())
            return len(printed)

        until(lambda: count() == 30, what="all of them to be handled")
    for key in ("A-0", "A-1", "A-2"):
        numbers = [int(line.split()[1]) for line in printed if line.startswith(f"{key} ")]
        assert numbers == sorted(numbers)
        assert len(numbers) == 10


# --- what is refused --------------------------------------------------------------------------------------------------


@message("test.ordered.keyless")
class Keyless(Placed):
    """An order whose contract names no key."""


def handles(model: Any) -> Callable[..., None]:
    def handler(placed: Any) -> None: ...

    handler.__annotations__ = {"placed": model, "return": None}
    return handler


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        (Keyless, {"ordered_by": "order_id"}, r"have no key: write @message\('test.ordered.keyless', key='order_id'\)"),
        (Placed, {"ordered_by": "number"}, r"have the key 'order_id': write @message"),
        (Placed, {"ordered_by": "order_id", "shards": 0}, r"has 0 shards; it can have 1 to 64"),
        (Placed, {"ordered_by": "order_id", "shards": 65}, r"has 65 shards; it can have 1 to 64"),
        (Placed, {"shards": 4}, r"say by what it is ordered"),
        (list[Placed], {"ordered_by": "order_id"}, r"takes one message at a time"),
    ],
)
def test_an_order_that_cannot_be_kept_is_refused_in_a_sentence(model: Any, options: dict[str, Any], says: str) -> None:
    before = dict(_consumers)
    with pytest.raises(ConfigurationError, match=says):
        consumer("test-ordered-refused", **options)(handles(model))
    assert _consumers == before
