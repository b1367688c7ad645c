"""Names and tiers that everything shares with the broker."""

from __future__ import annotations

from ackline.infra import names
from ackline.infra.names import RETRY_TIERS, retry_tier


def test_a_delay_is_rounded_up_to_the_next_tier() -> None:
    for delay, tier in (
        (0.0, "ackline.retry.1s"),
        (0.3, "ackline.retry.1s"),
        (1.0, "ackline.retry.1s"),
        (1.001, "ackline.retry.5s"),
        (15, "ackline.retry.15s"),
        (16, "ackline.retry.1m"),
        (61, "ackline.retry.5m"),
        (301, "ackline.retry.15m"),
        (901, "ackline.retry.1h"),
        (3600, "ackline.retry.1h"),
    ):
        assert retry_tier(delay)[0] == tier, delay


def test_a_delay_beyond_the_longest_tier_waits_there_and_is_parked_again() -> None:
    assert retry_tier(3601) == retry_tier(10**9) == ("ackline.retry.1h", 3600)


def test_the_name_of_a_tier_says_its_delay() -> None:
    seconds = {"s": 1, "m": 60, "h": 3600}
    for name, delay in RETRY_TIERS:
        said = name.removeprefix("ackline.retry.")
        assert int(said[:-1]) * seconds[said[-1]] == delay
    assert [delay for _, delay in RETRY_TIERS] == sorted(delay for _, delay in RETRY_TIERS)


def test_every_name_that_the_broker_shows_begins_so_that_no_consumer_can_have_it() -> None:
    shared = [names.MESSAGES, names.UNROUTED, names.RETURN, names.DEAD, names.OUTCOMES, *(n for n, _ in RETRY_TIERS)]
    assert all(name.startswith(names.RESERVED_PREFIX) for name in shared)
    assert len(set(shared)) == len(shared)
