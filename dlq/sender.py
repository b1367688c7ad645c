"""The reviewer's second thread: it publishes redrives, and knows of each whether the broker has it."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future, wait

from ackline.dlq.redrive import Claim
from ackline.dlq.store import Store
from ackline.infra.names import RETURN
from ackline.infra.outage import Outage
from ackline.producer.errors import ForkedError, Nacked, PublisherClosed, PublishTimeout
from ackline.producer.publisher import Publisher

log = logging.getLogger(__name__)

#: Seconds between looks for new redrives.
POLL_SECONDS = 0.3
#: Items published at once; their payloads are in memory.
BATCH = 100
#: Seconds to wait for a confirm.
CONFIRM_SECONDS = 5.0
#: Seconds for which a claimed item is ours. More than it takes to publish it and to note that; after a crash it is how
#: long the item waits until it is published again.
CLAIM_SECONDS = 15.0
#: Seconds before an item that the broker did not take is published again.
AGAIN_SECONDS = 2.0

#: The broker may take it the next time, or may even have it: publish it again. Anything else is for a person.
_AGAIN = (PublishTimeout, Nacked, PublisherClosed, ForkedError)


class Sender:
    """Publishes the redrive items of *store* with *publisher*, until it is stopped."""

    def __init__(self, store: Store, publisher: Publisher) -> None:
        self._store = store
        self._publisher = publisher
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
        while not self._stopping.is_set():
            try:
                claims = self._store.claim(BATCH, CLAIM_SECONDS)
                outage.over()
            except Exception as error:
                outage.wait(error)
                continue
            if claims:
                self._send(claims, outage)
            else:
                self._stopping.wait(POLL_SECONDS)

    def _send(self, claims: list[Claim], outage: Outage) -> None:
        """Publish *claims*, and note what became of each."""
        futures = {claim.item_id: self._publish(claim) for claim in claims}
        wait(futures.values(), CONFIRM_SECONDS + 1.0)
        sent, again, never = [], {}, {}
        for item_id, future in futures.items():
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
                self._store.settle(sent, again, never, again_in=AGAIN_SECONDS)
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
