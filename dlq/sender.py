"""The reviewer's second thread: it publishes redrives, and knows of each whether the broker has it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait

from sqlalchemy import Engine

from ackline.dlq import redrive
from ackline.dlq.contracts import Contracts
from ackline.dlq.queues import Queues
from ackline.dlq.redrive import Claim
from ackline.dlq.runner import Runner
from ackline.dlq.transition import transitions
from ackline.infra.database import writing
from ackline.infra.names import RETURN
from ackline.infra.outage import Outage
from ackline.producer.errors import ForkedError, Nacked, PublisherClosed, PublishTimeout
from ackline.producer.publisher import Publisher

log = logging.getLogger(__name__)

#: Seconds between looks for what is to be sent.
POLL_SECONDS = 0.3
#: Messages published at once, and bytes of payload; they are in memory.
BATCH, BATCH_BYTES = 500, 32 * 1024 * 1024
#: Seconds to wait for a confirm.
CONFIRM_SECONDS = 5.0
#: Seconds for which a claimed item is ours. More than it takes to publish it and to note that; after a crash it is how
#: long the item waits until it is published again.
CLAIM_SECONDS = 15.0
#: Seconds before an item that the broker did not take is published again.
AGAIN_SECONDS = 2.0

#: The broker may take it the next time, or may even have it: publish it again. Anything else is for a person.
_AGAIN = (PublishTimeout, Nacked, PublisherClosed, ForkedError)

#: The confirms of what has been published, by item.
_OnWay = dict[str, Future[None]]


class Sender:
    """Publishes what the redrives in the database behind *engine* are to send, until it is stopped."""

    def __init__(self, engine: Engine, url: str, contracts: Callable[[], Contracts]) -> None:
        """url: the broker. contracts: of the application; asked for when a redrive has a patch."""
        self._engine = engine
        self._publisher = Publisher(url, name="reviewer redrives")
        self._queues = Queues(url)
        self._runner = Runner(engine, self._queues, contracts)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reviewer-sender", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Finish what is on its way, and end, within *timeout* seconds.

        What is then not known to be sent stays issued, and is sent again by the next reviewer.
        """
        self._stopping.set()
        self._publisher.close(timeout)
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        outage = Outage("sending redrives", self._stopping)
        on_way: _OnWay = {}
        with self._queues:
            while not self._stopping.is_set():
                try:
                    claims = self._runner.claims(BATCH, BATCH_BYTES, CLAIM_SECONDS)
                    outage.over()
                except Exception as error:
                    outage.wait(error)
                    continue
                published = {claim.item_id: self._publish(claim) for claim in claims}
                # The batch before has been confirmed meanwhile.
                self._settle(on_way, outage)
                on_way = published
                if not on_way:
                    self._stopping.wait(POLL_SECONDS)
            self._settle(on_way, outage)

    def _settle(self, published: _OnWay, outage: Outage) -> None:
        """Note what became of these, as soon as that is known."""
        if not published:
            return
        wait(published.values(), CONFIRM_SECONDS + 1.0)
        sent, again, never = [], {}, {}
        for item_id, future in published.items():
            error = future.exception() if future.done() else PublishTimeout("No confirm in time.")
            if error is None:
                sent.append(item_id)
            elif isinstance(error, _AGAIN):
                again[item_id] = f"not sent yet: {error}"
            else:
                never[item_id] = f"could not be sent: {error}"
        for item_id, why in [*again.items(), *never.items()]:
            log.warning("redrive %s: %s", item_id, why)
        while True:
            try:
                with writing(self._engine) as connection, transitions(connection) as moves:
                    redrive.not_sent(connection, moves, never)
                    redrive.confirmed(connection, sent)
                    redrive.put_off(connection, again, AGAIN_SECONDS)
                outage.over()
                return
            except Exception as error:
                if self._stopping.is_set():
                    return  # they stay issued, and are published again
                outage.wait(error)

    def _publish(self, claim: Claim) -> Future[None]:
        try:
            return self._publisher.send(
                RETURN, claim.consumer, claim.properties, claim.payload, timeout=CONFIRM_SECONDS
            )
        except Exception as error:  # nothing about one message may hold up the others
            log.exception("redrive %s cannot be published", claim.item_id)
            failed: Future[None] = Future()
            failed.set_exception(error)
            return failed
