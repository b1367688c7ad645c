"""The topology: a function of the consumers and of the broker's version."""

from __future__ import annotations

from typing import Any

import pytest

from ackline.infra.errors import ConfigurationError
from ackline.infra.names import RETRY_TIERS
from ackline.infra.topology import Binding, ConsumerQueue, Topology, check_consumer_name, topology
from ackline.infra.wire import SLOT

BILLING = ConsumerQueue("billing", ("order.placed", "order.changed"))
MAIL = ConsumerQueue("mail", ("order.placed",))
ORDERED = ConsumerQueue("billing", ("order.placed",), shards=3)


def arguments(wanted: Topology) -> dict[str, dict[str, Any]]:
    """The arguments of each queue."""
    return {queue.name: queue.queue_arguments for queue in wanted.queues}


def kinds(wanted: Topology) -> dict[str, str]:
    return {exchange.name: exchange.type for exchange in wanted.exchanges}


def test_without_consumers_there_is_all_that_does_not_depend_on_them() -> None:
    wanted = topology()
    tiers = [name for name, _ in RETRY_TIERS]
    assert kinds(wanted) == {
        "ackline.messages": "topic",
        "ackline.tracked": "topic",
        "ackline.unrouted": "fanout",
        "ackline.return": "direct",
        "ackline.dead": "fanout",
        "ackline.outcomes": "topic",
        "ackline.control": "fanout",
        **dict.fromkeys(tiers, "fanout"),
    }
    own = ["ackline.dead", "ackline.outcomes", "ackline.accepted", "ackline.beat"]
    assert [queue.name for queue in wanted.queues] == ["ackline.unrouted", *tiers, *own]
    assert set(wanted.bindings()) == {
        Binding("ackline.unrouted", "ackline.unrouted", ""),
        Binding("ackline.dead", "ackline.dead", ""),
        Binding("ackline.outcomes", "ackline.outcomes", "#"),
        Binding("ackline.tracked", "ackline.accepted", "#"),
        Binding("ackline.tracked", "ackline.messages", "#", to_exchange=True),
        *(Binding(tier, tier, "") for tier in tiers),
    }


def test_each_consumer_adds_one_queue_of_its_name_bound_to_its_types_and_to_the_way_back() -> None:
    added = set(topology([BILLING, MAIL]).bindings()) - set(topology().bindings())
    assert added == {
        Binding("ackline.return", "billing", "billing"),
        Binding("ackline.messages", "billing", "order.placed"),
        Binding("ackline.messages", "billing", "order.changed"),
        Binding("ackline.return", "mail", "mail"),
        Binding("ackline.messages", "mail", "order.placed"),
    }
    assert topology([BILLING, MAIL]).exchanges == topology().exchanges


def test_the_queue_of_a_consumer_gives_up_what_kills_workers_to_review_at_least_once() -> None:
    assert arguments(topology([BILLING]))["billing"] == {
        "x-queue-type": "quorum",
        "x-delivery-limit": 20,
        "x-dead-letter-exchange": "ackline.dead",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


def test_a_retry_tier_holds_for_its_delay_and_returns_to_the_consumer() -> None:
    for name, seconds in RETRY_TIERS:
        assert arguments(topology())[name] == {
            "x-queue-type": "quorum",
            "x-delivery-limit": -1,
            "x-message-ttl": seconds * 1000,
            "x-dead-letter-exchange": "ackline.return",
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }


@pytest.mark.parametrize("version", ["3.10.8", "3.13.7", "4.0.1", "4.3.6", "5.0.0-beta.1", "odd"])
def test_every_queue_is_a_durable_quorum_queue_that_never_drops(version: str) -> None:
    for queue in topology([BILLING], broker_version=version).queues:
        assert (queue.durable, queue.auto_delete, queue.exclusive) == (True, False, False)
        given = queue.queue_arguments
        if queue.name == "ackline.beat":  # it holds no messages, and is consumed exclusively
            assert given == {"x-queue-type": "classic"}
            continue
        assert given["x-queue-type"] == "quorum"
        assert not {"x-max-length", "x-max-length-bytes", "x-expires"} & given.keys()
        if "x-dead-letter-exchange" in given:
            assert given["x-dead-letter-strategy"] == "at-least-once"
            assert given["x-overflow"] == "reject-publish"


@pytest.mark.parametrize(
    ("version", "unlimited"), [("3.10.8", False), ("3.13.7", False), ("4.0.1", True), ("4.3", True)]
)
def test_deliveries_are_unlimited_where_the_broker_has_a_limit_by_default_and_takes_minus_1(
    version: str, unlimited: bool
) -> None:
    given = arguments(topology([BILLING], broker_version=version))
    own = [name for name in given if name.startswith("ackline.") and name != "ackline.beat"]
    assert {given[name].get("x-delivery-limit") for name in own} == ({-1} if unlimited else {None})
    assert given["billing"]["x-delivery-limit"] == 20


def test_what_nobody_consumes_and_what_returns_to_nobody_is_kept() -> None:
    alternates = {
        exchange.name: (exchange.arguments or {}).get("alternate-exchange") for exchange in topology().exchanges
    }
    assert alternates["ackline.messages"] == alternates["ackline.return"] == "ackline.unrouted"
    unrouted = arguments(topology())["ackline.unrouted"]
    assert unrouted["x-dead-letter-exchange"] == "ackline.dead", "whatever its `expiration`, it is dead-lettered"


def test_a_copy_on_record_that_expires_is_no_dead_letter() -> None:
    assert not {name for name in arguments(topology())["ackline.accepted"] if name.startswith("x-dead-letter")}


def test_every_dead_letter_target_leads_somewhere_by_itself() -> None:
    wanted = topology([BILLING])
    leads = {e.name: e.type == "fanout" or "alternate-exchange" in (e.arguments or {}) for e in wanted.exchanges}
    targets = {given.get("x-dead-letter-exchange") for given in arguments(wanted).values()} - {None}
    assert targets == {"ackline.dead", "ackline.return"}
    assert all(leads[target] for target in targets)


def test_no_work_queue_dead_letters_into_a_cycle() -> None:
    targets = {
        name: given.get("x-dead-letter-exchange")
        for name, given in arguments(topology([BILLING, MAIL])).items()
        if not name.startswith("ackline.retry.")
    }
    assert set(targets.values()) == {"ackline.dead", None}
    assert targets["ackline.dead"] is None


@pytest.mark.parametrize(
    "wrong", ["", "ackline.dead", "ackline.", "amq.gen", "a\nb", "a\x00", "x" * 201, "é" * 101, "\u200b"]
)
def test_a_name_that_a_queue_should_not_have_is_refused_in_a_sentence(wrong: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be the name of a consumer: it names its queue"):
        check_consumer_name(wrong)
    with pytest.raises(ConfigurationError):
        topology([ConsumerQueue(wrong, ("a",))])


@pytest.mark.parametrize("right", ["billing", "order billing", "größe", "x" * 200, "a.b-c_d"])
def test_a_name_that_people_can_read_is_accepted(right: str) -> None:
    assert check_consumer_name(right) == right


def test_an_ordered_consumer_has_a_queue_for_each_shard_that_one_worker_takes_at_a_time() -> None:
    wanted = arguments(topology([ORDERED]))
    plain = arguments(topology([BILLING]))["billing"]
    assert [name for name in wanted if not name.startswith("ackline.")] == ["billing.1", "billing.2", "billing.3"]
    assert all(wanted[name] == plain | {"x-single-active-consumer": True} for name in ORDERED.queues)


def test_each_slot_leads_to_exactly_one_shard_and_the_shards_share_them_evenly() -> None:
    by_slot = [bound for bound in topology([ORDERED]).bindings() if bound.exchange == "billing"]
    assert sorted(bound.arguments[SLOT] for bound in by_slot) == list(range(64))
    assert all(bound.arguments["x-match"] == "all" for bound in by_slot)
    shares = [sum(bound.destination == queue for bound in by_slot) for queue in ORDERED.queues]
    assert shares == [22, 21, 21]


def test_what_has_no_slot_is_hashed_by_the_broker_or_goes_to_one_shard() -> None:
    def foreign(wanted: Topology) -> tuple[str, list[str]]:
        return kinds(wanted)["billing.foreign-3"], [
            bound.destination for bound in wanted.bindings() if bound.exchange == "billing.foreign-3"
        ]

    assert foreign(topology([ORDERED])) == ("x-consistent-hash", ["billing.1", "billing.2", "billing.3"])
    for unhashed in (None, ["billing"]):
        assert foreign(topology([ORDERED], unhashed=unhashed)) == ("fanout", ["billing.1"])


def test_the_ways_into_an_ordered_consumer_lead_to_its_exchange() -> None:
    assert set(topology([ORDERED]).links) - set(topology().links) == {
        Binding("ackline.return", "billing", "billing", to_exchange=True),
        Binding("ackline.messages", "billing", "order.placed", to_exchange=True),
    }


def test_two_consumers_with_one_queue_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"'billing' and 'billing\.2' would both have a queue 'billing\.2'"):
        topology([ORDERED, ConsumerQueue("billing.2", ("order.placed",))])
