"""Syncs of a paged API: each page is stored once, whatever breaks off in between."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Connection, Engine, MetaData, Table, Text, insert, select

from ackline.consumers import Ack, Park, Reject, Retry, fixed, registered
from ackline.consumers.handlers import paged_sync
from ackline.consumers.handlers.paged_sync import Fetch, Page, pages, syncs
from ackline.consumers.testing import Outcome, arun, run
from ackline.infra import database, wire
from ackline.infra.ports import LOOPBACK
from ackline.producer.message import type_of
from tests.paged import items, paged, place
from tests.receiver import Answering, Received, Receiver

COUNT, LIMIT = 45, 10
RETRY = fixed(attempts=3, delay="42s")
metadata = MetaData()
#: No constraint: an item that is stored twice is two rows.
stored = Table("stored", metadata, Column("id", Text), Column("name", Text))


class Shop:
    """A database, and the source that is synced into it."""

    def __init__(self, url: str, engine: Engine) -> None:
        self.url = url
        self._engine = engine
        #: The cursor before which storing fails.
        self.refuses: str | None = None

    def ids(self) -> list[str]:
        with self._engine.connect() as connection:
            return list(connection.execute(select(stored.c.id).order_by(stored.c.id)).scalars())

    def sync(self, fetch: Fetch, message_id: str = "m-1", **given: Any) -> Outcome:
        """What follows from a message that wants everything."""
        contract = syncs("source", fetch, self.store, retry=RETRY, database_url=self.url)
        return run(registered()["sync-source"], contract(), message_id=message_id, **given)

    def store(self, connection: Connection, page: list[dict[str, str]]) -> None:
        connection.execute(insert(stored), page)
        if page[0]["id"] == self.refuses:
            raise ValueError("this page cannot be stored")


@pytest.fixture
def shop(tmp_path: Path, own_registry: None) -> Iterator[Shop]:
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    engine = database.connect(url)
    metadata.create_all(engine)
    yield Shop(url, engine)
    engine.dispose()


def fetched(api: Receiver) -> Fetch:
    return pages(f"http://{LOOPBACK}:{api.port}/items", headers={"X-Key": "k"}, limit=LIMIT)


def asked(api: Receiver) -> list[int]:
    """Where the pages began that were asked for."""
    return [place(request)[0] for request in api.received]


def everything(times: int = 1) -> list[str]:
    return sorted([item["id"] for item in items(COUNT)] * times)


def fails_once(at: int, failure: Answering) -> Callable[[Received], Answering]:
    """The API, of which the page at *at* is answered with *failure* at first."""
    answers, failed = paged(COUNT), list[int]()

    def answer(request: Received) -> Answering:
        if place(request)[0] == at and not failed:
            failed.append(at)
            return failure
        return answers(request)

    return answer


def test_all_pages_are_stored_and_the_status_says_how_far_it_is(shop: Shop) -> None:
    with Receiver(paged(COUNT)) as api:
        outcome = shop.sync(fetched(api))
    assert outcome.decision == Ack()
    assert shop.ids() == everything()
    assert asked(api) == [0, 10, 20, 30, 40]
    assert {request.headers["X-Key"] for request in api.received} == {"k"}
    assert outcome.progress[0] == (10 / 45, "1 pages, 10 items")
    assert outcome.progress[-1] == (1.0, "5 pages, 45 items")


def test_the_same_message_again_asks_for_nothing_and_another_one_begins_anew(shop: Shop) -> None:
    with Receiver(paged(COUNT)) as api:
        for message_id in ("m-1", "m-1", "m-2"):
            assert shop.sync(fetched(api), message_id).decision == Ack()
    assert asked(api) == [0, 10, 20, 30, 40] * 2
    assert shop.ids() == everything(times=2)


def test_a_failure_after_some_pages_costs_no_attempt_and_the_next_try_goes_on_from_there(shop: Shop) -> None:
    with Receiver(fails_once(20, Answering(503))) as api:
        assert shop.sync(fetched(api)).decision == Park(5.0)
        assert shop.ids() == everything()[:20]
        assert shop.sync(fetched(api)).decision == Ack()
    assert asked(api) == [0, 10, 20, 20, 30, 40]
    assert shop.ids() == everything()


def test_the_api_says_when_to_go_on(shop: Shop) -> None:
    with Receiver(fails_once(20, Answering(429, (("Retry-After", "33"),)))) as api:
        assert shop.sync(fetched(api)).decision == Park(33.0)


def test_a_try_without_any_page_is_an_attempt(shop: Shop) -> None:
    with Receiver(lambda request: Answering(503)) as api:
        assert shop.sync(fetched(api)).decision == Retry(42.0)
        assert isinstance(shop.sync(fetched(api), attempt=3).decision, Reject)


def test_a_page_that_cannot_be_stored_leaves_nothing_and_is_an_attempt_when_it_is_the_first_of_a_try(
    shop: Shop,
) -> None:
    shop.refuses = "p-00020"
    with Receiver(paged(COUNT)) as api:
        assert shop.sync(fetched(api)).decision == Park(5.0)
        outcome = shop.sync(fetched(api))
        assert outcome.decision == Retry(42.0)
        assert isinstance(outcome.error, ValueError)
        assert shop.ids() == everything()[:20]
        shop.refuses = None
        assert shop.sync(fetched(api)).decision == Ack()
    assert shop.ids() == everything()


def test_a_worker_that_stops_breaks_off_between_two_pages(shop: Shop) -> None:
    with Receiver(paged(COUNT)) as api:
        assert shop.sync(fetched(api), stopping=True).decision == Park(1.0)
    assert api.received == []


def test_a_long_sync_makes_room_for_others_after_a_page_at_least(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paged_sync, "SLICE_SECONDS", 0.0)
    with Receiver(paged(COUNT)) as api:
        decisions = [shop.sync(fetched(api)).decision for _ in range(5)]
    assert decisions == [Park(1.0)] * 4 + [Ack()]
    assert asked(api) == [0, 10, 20, 30, 40]
    assert shop.ids() == everything()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"<html>", "no JSON: <html>"),
        (b"[]", "what is no page: "),
        (json.dumps({"items": []}).encode(), "what is no page: next: Field required"),
        (json.dumps({"items": {}, "next": None}).encode(), "what is no page: items: "),
    ],
)
def test_what_is_no_page_goes_to_review(shop: Shop, body: bytes, reason: str) -> None:
    with Receiver(lambda request: Answering(200, body=body)) as api:
        decision = shop.sync(fetched(api)).decision
    assert isinstance(decision, Reject)
    assert reason in decision.reason


def test_pages_that_never_end_are_noticed(shop: Shop) -> None:
    page = json.dumps({"items": items(1), "next": 7}).encode()
    with Receiver(lambda request: Answering(200, body=page)) as api:
        decision = shop.sync(fetched(api)).decision
    assert decision == Reject("page 2 of source says that one follows which was there before")


@pytest.mark.parametrize(("before", "circle"), [(0, 2), (3, 5), (9, 7)])
def test_pages_that_go_round_in_a_circle_are_noticed(shop: Shop, before: int, circle: int) -> None:
    async def fetch(cursor: str | None) -> Page:
        number = int(cursor or 0) + 1
        return Page(items=items(1), next=str(before + 1 if number == before + circle else number))

    decision = shop.sync(fetch).decision
    assert isinstance(decision, Reject)
    assert "says that one follows which was there before" in decision.reason


def test_an_empty_cursor_ends_a_sync_as_none_does(shop: Shop) -> None:
    with Receiver(lambda request: Answering(200, body=json.dumps({"items": items(1), "next": ""}).encode())) as api:
        assert shop.sync(fetched(api)).decision == Ack()
    assert len(api.received) == 1


def test_a_message_without_an_id_is_published_with_one(shop: Shop) -> None:
    with Receiver(paged(COUNT)) as api:
        outcome = shop.sync(fetched(api), message_id="")
    assert outcome.decision == Ack()
    assert [type_of(published) for published in outcome.published] == ["sync.source"]
    assert api.received == []


def interrupted(shop: Shop, api: Receiver, message_id: str) -> tuple[Fetch, list[Outcome]]:
    """A fetch that has another delivery do its sync while the second page is on its way, and what came of that."""
    fetch, outcomes = fetched(api), list[Outcome]()

    async def second_page_is_slow(cursor: str | None) -> Page:
        page = await fetch(cursor)
        if cursor == "10":
            contract = syncs("source", fetch, shop.store, retry=RETRY, database_url=shop.url)
            outcomes.append(await arun(registered()["sync-source"], contract(), message_id=message_id))
        return page

    return second_page_is_slow, outcomes


def test_of_two_deliveries_of_a_message_at_once_one_stores_each_page_and_the_other_comes_back(shop: Shop) -> None:
    with Receiver(paged(COUNT)) as api:
        fetch, outcomes = interrupted(shop, api, "m-1")
        assert shop.sync(fetch, "m-1").decision == Park(15.0)
        assert [outcome.decision for outcome in outcomes] == [Ack()]
        assert shop.sync(fetch, "m-1").decision == Ack()
    assert shop.ids() == everything()


def test_a_later_message_begins_anew_and_ends_the_run_of_the_earlier_one(shop: Shop) -> None:
    with Receiver(paged(COUNT)) as api:
        fetch, outcomes = interrupted(shop, api, "m-2")
        assert shop.sync(fetch, "m-1").decision == Ack()
        assert [outcome.decision for outcome in outcomes] == [Ack()]
    assert shop.ids() == sorted(everything() + everything()[:10])


def test_of_two_that_make_room_for_each_other_the_earlier_one_gives_way(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paged_sync, "SLICE_SECONDS", 0.0)
    with Receiver(paged(COUNT)) as api:
        assert [shop.sync(fetched(api), id_).decision for id_ in ("m-1", "m-2")] == [Park(1.0)] * 2
        assert shop.sync(fetched(api), "m-1").decision == Ack()
        assert [shop.sync(fetched(api), "m-2").decision for _ in range(4)] == [Park(1.0)] * 3 + [Ack()]
        assert asked(api) == [0, 0, 10, 20, 30, 40]
        assert shop.sync(fetched(api), "m-1").decision == Ack()
        assert len(api.received) == 6


def test_a_redrive_of_the_earlier_one_begins_once_more(shop: Shop) -> None:
    with Receiver(paged(COUNT)) as api:
        for id_ in ("m-1", "m-2"):
            shop.sync(fetched(api), id_)
        shop.sync(fetched(api), "m-1", headers={wire.REDRIVE: "r-1"})
    assert asked(api) == [0, 10, 20, 30, 40] * 3
