"""Jobs that take longer than RabbitMQ's `consumer_timeout`, and those that lose their connection."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from sqlalchemy import func, select, update

from ackline.infra import database
from ackline.infra.database import DatabaseUnavailable
from ackline.infra.names import DEAD, JOBS
from ackline.infra.running_broker import Broker
from ackline.infra.settings import Settings
from ackline.infra.tables import inbox
from ackline.infra.wire import now
from tests.amqp import Client
from tests.broker import Vhost
from tests.connections import close, connections
from tests.jobs import Sending
from tests.patience import limit_deliveries
from tests.rabbitmqctl import rabbitmqctl
from tests.waiting import until


@contextmanager
def _sending(settings: Settings, notes: Path) -> Iterator[Sending]:
    service = Sending(settings, notes)
    try:
        yield service
    finally:
        service.close()


def test_a_job_may_take_longer_than_the_brokers_consumer_timeout(
    own_broker: Broker, own_broker_settings: Settings, tmp_path: Path
) -> None:
    """On 4.3 its subscription says how long a job may take; before that it is delivered again, and runs on."""
    limit_deliveries(own_broker, 2)
    with (
        _sending(own_broker_settings, tmp_path / "notes") as sending,
        Client(sending.settings.broker) as client,
        sending.worker(concurrency=1) as worker,
    ):
        sending.send("wait", "long")
        until(lambda: sending.seen == ["wait long"])
        # Who consumes without that argument shows when the broker would have lost its patience.
        client.declare_queue("other", **{"x-queue-type": "quorum"})
        client.publish("", "other", b"")
        client.hold("other")
        if own_broker.description.startswith("RabbitMQ 3."):
            until(lambda: "delivery acknowledgement on channel" in worker.log.read_text(), what="it to time out")
            limit_deliveries(own_broker, 1800)  # what follows may take as long as it does
        else:
            assert "PRECONDITION_FAILED" not in worker.log.read_text()
            assert "ended the subscription" not in worker.log.read_text()
        (tmp_path / "gate").touch()
        sending.wait_for("wait long", "done long")
        sending.send("add", 1, 1)
        until(lambda: "add 1 1" in sending.seen)
        assert worker.stop() == 0
        assert client.ready(JOBS) == client.ready(DEAD) == 0
        assert len(sending.seen) == 3
        if own_broker.description.startswith("RabbitMQ 3."):
            return

        def unacked() -> int:
            # RabbitMQ 4.3.6 sets no timer for a deadline when an earlier one, of a subscription that is over, comes to
            # its end: then it looks at its deadlines with the next command to the queue, such as this.
            rabbitmqctl(own_broker, "eval", f'rabbit_quorum_queue:reclaim_memory(<<"/">>, <<"{JOBS}">>).')
            listed = rabbitmqctl(own_broker, "list_queues", "--quiet", "name", "messages_unacknowledged")
            return int(dict(line.split() for line in listed.splitlines())[JOBS])

        # A job that takes longer than its worker told RabbitMQ 4.3, which then goes on with the channel.
        (tmp_path / "gate").unlink()
        with sending.worker(concurrency=1, ACKLINE_JOB_CONSUMER_TIMEOUT="2s") as impatient:
            sending.send("wait", "longer")
            until(lambda: "wait longer" in sending.seen)
            until(lambda: "timed out" in impatient.log.read_text(), what="it to time out")
            until(lambda: unacked() == 1, what="it to be delivered again")
            until(lambda: unacked() == 0, what="it to time out again, of which RabbitMQ tells us later")
            (tmp_path / "gate").touch()
            sending.send("add", 2, 2)
            until(lambda: "add 2 2" in sending.seen)
            assert impatient.stop() == 0
        assert sending.seen[3:] == ["wait longer", "done longer", "add 2 2"]
        assert client.ready(JOBS) == client.ready(DEAD) == 0


def test_a_long_job_that_is_delivered_to_another_worker_is_run_by_it_only_when_the_first_is_dead(
    ackline_settings: Settings, vhost: Vhost, client: Client, tmp_path: Path
) -> None:
    user = f"jobs-{uuid.uuid4().hex[:8]}"
    parts = urlsplit(vhost.amqp_url)
    url = urlunsplit(parts._replace(netloc=f"{user}:first@{parts.hostname}:{parts.port}"))
    engine = database.connect(ackline_settings.database)

    def claims() -> int:
        try:
            with database.reading(engine) as connection:
                return connection.scalar(select(func.count()).where(inbox.c.claimed_until.is_not(None))) or 0
        except DatabaseUnavailable:  # there are no tables before the first claim
            return 0

    def expire() -> None:
        """As they do by themselves, half a minute after their worker was killed."""
        with database.writing(engine) as connection:
            held = update(inbox).where(inbox.c.claimed_until.is_not(None))
            connection.execute(held.values(claimed_until=now() - timedelta(seconds=1)))

    with vhost.api() as api, _sending(ackline_settings, tmp_path / "notes") as sending:

        def password(value: str) -> None:
            api.put(f"/api/users/{user}", json={"password": value, "tags": ""}).raise_for_status()

        password("first")
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        api.put(f"/api/permissions/{vhost.path}/{user}", json=everything).raise_for_status()
        try:
            with sending.worker(concurrency=2, ACKLINE_AMQP_URL=url) as first:
                sending.send("wait", "long")
                sending.send("wait", "lost")
                until(lambda: len(sending.seen) == 2)
                until(lambda: claims() == 2, what="the jobs to be claimed")
                theirs = until(lambda: connections(vhost, "jobs consumes"), what="the connection to be listed")
                password("second")  # so that it does not get the delivery again
                with sending.worker(concurrency=2) as other:
                    close(vhost, theirs)
                    until(lambda: client.ready("ackline.retry.15s") == 2, what="the other worker to park the jobs")
                    (tmp_path / "gate long").touch()
                    until(lambda: claims() == 1, what="it to be known that one has ended")
                    processes = first.processes()
                    first.kill()  # before them, for it would say that they died
                    for process in processes:
                        with suppress(ProcessLookupError):  # one that runs nothing ends by itself
                            os.kill(process, signal.SIGKILL)
                    expire()
                    (tmp_path / "gate lost").touch()
                    sending.wait_for("wait long", "wait lost", "done long", "wait lost", "done lost")
                    sending.send("add", 1, 1)
                    until(lambda: "add 1 1" in sending.seen)
                    until(lambda: client.ready("ackline.retry.15s") == 0, what="the jobs to have come back")
                    assert other.stop() == 0
        finally:
            api.delete(f"/api/users/{user}")
            engine.dispose()
        assert client.ready(JOBS) == client.ready(DEAD) == 0
        assert len(sending.seen) == 6
