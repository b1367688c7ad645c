"""The active relay is killed in the middle of its work: what was committed is published in row order, and no more."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Column, Engine, Integer, MetaData, Table, create_engine, insert, select
from sqlalchemy.orm import Session

from ackline.infra.settings import Settings
from ackline.producer import outbox
from tests.amqp import Client
from tests.relaying import QUEUE, Recorded, active, declare_queue, numbers
from tests.roles import RoleProcess
from tests.waiting import until

TRANSACTIONS = 1_000
KILLS = 10 if os.environ.get("ACKLINE_TEST_LONG") else 4

#: What the service itself keeps in each transaction.
service = MetaData()
orders = Table("orders", service, Column("number", Integer, primary_key=True))


class RolledBack(Exception):
    """The service changed its mind."""


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_relay_killed_again_and_again_publishes_what_was_committed_in_order_and_nothing_else(
    ackline_settings: Settings,
    kind: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    say: Callable[[str], None],
) -> None:
    url = request.getfixturevalue("postgresql_url") if kind == "postgresql" else f"sqlite:///{tmp_path / 'service.db'}"
    engine = create_engine(url, connect_args={"timeout": 90} if kind == "sqlite" else {})
    service.create_all(engine)
    declare_queue(ackline_settings.broker)
    relays = [RoleProcess(ackline_settings, "relay", "--database-url", url) for _ in range(2)]
    tried = iter(range(TRANSACTIONS))
    committed: list[int] = []
    took_over: list[float] = []

    def run_transactions(count: int) -> None:
        """So many transactions one after the other, every other one rolled back at its end."""
        for _, number in zip(range(count), tried, strict=False):
            try:
                with Session(engine) as session, session.begin():
                    session.execute(insert(orders).values(number=number))
                    outbox.add(session, Recorded(number=number))
                    if number % 2:
                        raise RolledBack
                committed.append(number)
            except RolledBack:
                pass

    try:
        for relay in relays:
            relay.start()
        with Client(ackline_settings.broker) as client:
            arrived: list[int] = []
            for _ in range(KILLS):
                run_transactions(TRANSACTIONS // KILLS // 2)
                # It is at work on this slice, of which as much again is still to come.
                until(lambda: client.ready(QUEUE), what="the first messages of a slice")
                found = active(engine)
                (victim,) = [relay for relay in relays if relay.pid == found]
                (standby,) = [relay for relay in relays if relay is not victim]
                victim.kill()
                killed_at = time.monotonic()
                run_transactions(TRANSACTIONS // KILLS - TRANSACTIONS // KILLS // 2)
                until(lambda: active(engine) == standby.pid, what="the standby to take over")  # noqa: B023
                took_over.append(time.monotonic() - killed_at)
                until(lambda: not _waiting(engine), what="the standby to publish what waits")
                arrived += numbers(client)
                victim.start()
        with engine.connect() as connection:
            assert list(connection.scalars(select(orders.c.number).order_by(orders.c.number))) == committed
    finally:
        for relay in relays:
            relay.kill()
        engine.dispose()

    assert len(committed) == TRANSACTIONS // 2
    assert list(dict.fromkeys(arrived)) == committed, "each at least once, in row order, and no other"
    say(
        f"{kind}: {KILLS} kills, {len(committed)} committed, {len(arrived) - len(committed)} duplicates; "
        f"taken over after {min(took_over):.1f} to {max(took_over):.1f} s"
    )


def _waiting(engine: Engine) -> bool:
    with engine.connect() as connection:
        return outbox.is_backlogged(connection)
