"""The sender of callbacks: finds those whose message is final, calls, and notes what came of it.

One thread does everything with the database; the calls run in lanes, one for each host. A callback in a lane is in the
database as it was before, and changed only after the answer. When a sender dies in between, the next one calls again,
under the same `Webhook-Id`: at least once, never not at all. Two senders on one database lose nothing, and call twice.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from dataclasses import replace
from datetime import timedelta
from functools import cached_property
from importlib.metadata import version
from urllib.parse import urlsplit

from sqlalchemy import Engine

from ackline.infra import database
from ackline.infra.errors import AcklineError
from ackline.infra.outage import Outage
from ackline.infra.settings import Settings
from ackline.infra.tables import CallbackState
from ackline.infra.wire import now
from ackline.producer import callbacks, webhook
from ackline.producer.callbacks import Callback, Verdict
from ackline.producer.lanes import Lanes
from ackline.producer.outbound import Outbound
from ackline.producer.status import Status, expected, statuses

log = logging.getLogger(__name__)

#: Calls at once, and to one host; those that wait for their host beside them.
CALLS, CALLS_PER_HOST, WAITING_PER_HOST = 32, 4, 100
#: Callbacks that are in a lane at most, and that one look reads.
MOST_HELD, BATCH = 1000, 500
#: Seconds between looks for callbacks whose time has come, and between two when there were more than one look reads:
#: the thread shares a process with the relay, which must not wait for it, however many messages are not final.
LOOK_SECONDS, NEXT_LOOK_SECONDS = 0.5, 0.2
#: Seconds between rounds of cleaning up, and rows that one transaction deletes at most.
CLEAN_SECONDS, CLEAN_BATCH = 60.0, 1000


class CallbackSender:
    """Runs until it is told to stop."""

    def __init__(
        self, engine: Engine, settings: Settings, stopping: threading.Event, *, outbound: Outbound | None = None
    ) -> None:
        """engine: Ackline's own database, whose tables are up to date. stopping: ends `run`. outbound: what calls; by
        default what `ACKLINE_CALLBACK_HOSTS` allows."""
        self._engine = engine
        self._settings = settings
        self._stopping = stopping
        self._outbound = outbound or Outbound(settings.callback_hosts)
        self._outage = Outage("calling back", stopping)
        self._lanes: Lanes[tuple[Callback, bytes]] = Lanes(
            self._call, threads=CALLS, threads_per_lane=CALLS_PER_HOST, waiting=WAITING_PER_HOST
        )
        self._headers = {"Content-Type": "application/json", "User-Agent": f"ackline/{version('ackline')}"}
        self._clean_at = self._look_at = 0.0
        #: By message id: in a lane, and answered but not yet noted.
        self._held: set[str] = set()
        self._answered: queue.SimpleQueue[tuple[str, Verdict]] = queue.SimpleQueue()
        self._unnoted: dict[str, Verdict] = {}

    def run(self) -> None:
        """Call until it is told to stop; then wait for the answers that are due, as long as a role may take to stop.

        Raises nothing: what stands in the way is logged and waited for, a setting that cannot be used included.
        """
        while not self._stopping.is_set():
            try:
                self._settle()
                self._clean()
                if len(self._held) < MOST_HELD and time.monotonic() >= self._look_at:
                    more = self._look()
                    self._look_at = time.monotonic() + (NEXT_LOOK_SECONDS if more else LOOK_SECONDS)
            except Exception as error:
                self._outage.wait(error)
                continue
            self._outage.over()
            self._wait_for_answers(min(max(self._look_at - time.monotonic(), 0.05), LOOK_SECONDS))
        self._finish()

    @cached_property
    def _key(self) -> bytes:
        return webhook.key(self._settings, self._engine)

    @cached_property
    def _consumers(self) -> dict[str, list[str]]:
        # Imports the application: only once somebody is owed a call.
        return expected(self._settings)

    def _finish(self) -> None:
        self._lanes.close()
        deadline = time.monotonic() + self._settings.grace_seconds
        while not self._lanes.is_idle and time.monotonic() < deadline:
            self._wait_for_answers(0.05)
        self._wait_for_answers(0.0)
        try:
            self._settle()
        except Exception as error:
            log.warning("%d callbacks will be repeated, for their answers are not noted: %s", len(self._unnoted), error)

    # --- the database -------------------------------------------------------------------------------------------------

    def _clean(self) -> None:
        """Delete a batch of what was finished long ago, now and then."""
        if time.monotonic() < self._clean_at:
            return
        before = now() - timedelta(days=self._settings.status_keep_days)
        with database.writing(self._engine) as connection:
            if callbacks.clean(connection, before, CLEAN_BATCH) < CLEAN_BATCH:
                self._clean_at = time.monotonic() + CLEAN_SECONDS

    def _look(self) -> bool:
        """Take up callbacks whose time has come. Whether there may be more of them now."""
        with database.reading(self._engine) as connection:
            rows = callbacks.due(connection, but=self._held, limit=BATCH)
        if not rows:
            return False
        with database.reading(self._engine) as connection:
            unknown = [(row.message_id, row.type) for row in rows if row.body is None]
            known = statuses(connection, unknown, consumers=self._consumers)
        later: list[Callback] = []
        hopeless: dict[str, Verdict] = {}
        for found in rows:
            status = known.get((found.message_id, found.type))
            row = found if status is None else _with_status(found, status)
            if row.body is not None:
                if not self._take_up(row):
                    later.append(row)
            elif status is None and (verdict := callbacks.give_up(row, now())) is not None:
                hopeless[row.message_id] = verdict
            else:
                later.append(row)
        if later or hopeless:
            with database.writing(self._engine) as connection:
                callbacks.put_off(connection, later)
                callbacks.settle(connection, hopeless)
        return len(rows) == BATCH

    def _take_up(self, row: Callback) -> bool:
        """Put a callback into its lane; False when that is full."""
        taken = self._lanes.put(urlsplit(row.url).netloc.lower(), (row, self._key))
        if taken:
            self._held.add(row.message_id)
        return taken

    def _wait_for_answers(self, seconds: float) -> None:
        """Collect what has been answered; wait up to *seconds* for the first."""
        try:
            while True:
                message_id, verdict = self._answered.get(timeout=seconds) if seconds else self._answered.get_nowait()
                self._unnoted[message_id] = verdict
                seconds = 0.0
        except queue.Empty:
            pass

    def _settle(self) -> None:
        """Note what was answered."""
        if not self._unnoted:
            return
        with database.writing(self._engine) as connection:
            callbacks.settle(connection, self._unnoted)
        self._held.difference_update(self._unnoted)
        self._unnoted.clear()

    # --- the calls, on the threads of the lanes -----------------------------------------------------------------------

    def _call(self, taken_up: tuple[Callback, bytes]) -> None:
        row, key = taken_up
        webhook_id = webhook.identifier(row.message_id)
        body = (row.body or "").encode()
        signed = webhook.headers(key, webhook_id, body, int(time.time()))
        try:
            outcome = self._outbound.post(row.url, body, self._headers | signed)
        except AcklineError as error:
            verdict = callbacks.decide(row, error, now())
        except Exception as error:  # a fault of ours must not end the lane, nor be tried for ever
            log.exception("the callback of %s failed", webhook_id)
            verdict = callbacks.decide(row, AcklineError(f"{type(error).__name__}: {error}"), now())
        else:
            verdict = callbacks.decide(row, outcome, now())
        if verdict.state == CallbackState.FAILED:
            log.warning(
                "the callback of %s is given up after %d attempts: %s", webhook_id, verdict.attempts, verdict.error
            )
        self._answered.put((row.message_id, verdict))


def _with_status(row: Callback, status: Status) -> Callback:
    """*row* with what the status of its message says: what to tell if it is final, else when it is due."""
    if status.is_final:
        return replace(row, body=status.model_dump_json())
    return replace(row, created_at=max(row.created_at, status.due_at or row.created_at))
