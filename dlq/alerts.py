"""One call for each kind of failure that is new, or returned after it was resolved: never one for each message.

The row of an alert is written with the failure itself (`ackline.dlq.arrivals`), in one transaction, so none is
forgotten. The `AlertSender` of a reviewer calls `ACKLINE_ALERT_URL` until that answers 2xx: at least once, and again
after longer and longer pauses, up to a bound. Where several reviewers run, one of them has an alert at a time.

```
waiting ──► delivered      the receiver answered 2xx
      '───► failed         ten attempts in 23 hours, or 410 Gone
```

What is told is what a group is: its consumer, the error's type, the place, and the message with placeholders for all
that differs. No payload, and nothing of one message.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, Literal
from urllib.parse import urlsplit

from sqlalchemy import Connection, Engine, delete, exists, select, update

from ackline.infra.database import reading, writing
from ackline.infra.errors import AcklineError, ConfigurationError
from ackline.infra.outage import Outage
from ackline.infra.retry_after import retry_after
from ackline.infra.settings import Settings
from ackline.infra.tables import IS_UNTOLD, AlertState, alerts, fingerprints
from ackline.infra.wire import cut, now
from ackline.producer import webhook
from ackline.producer.callbacks import LONGEST_RETRY_AFTER, PAUSES
from ackline.producer.outbound import CALL_SECONDS, Answer, NotAllowed, Outbound, check

log = logging.getLogger(__name__)

#: Seconds between two looks for alerts, and between two calls: Slack takes one a second.
LOOK_SECONDS, NEXT_CALL_SECONDS = 2.0, 1.0
#: Seconds for which an alert that is being told is this sender's: longer than a call takes.
CLAIM_SECONDS = 2 * CALL_SECONDS
#: How long an alert that is finished is kept.
KEPT = timedelta(days=30)
#: Bytes of what an alert quotes of an error.
_MAX_QUOTED = 500
_SLACK_HOST = "hooks.slack.com"


@dataclass(frozen=True, slots=True)
class Alert:
    """Somebody is to be told that a kind of failure is *new*, or *reopened*."""

    id: int
    fingerprint: str
    kind: str
    at: datetime
    attempts: int
    consumer: str
    type: str
    error_type: str
    frame: str
    message: str
    arrivals: int
    owner: str | None
    runbook: str | None
    resolved_in: str | None


_OF_ALERT = tuple(alerts.c[name] for name in ("id", "fingerprint", "kind", "at", "attempts"))
_OF_GROUP = tuple(
    fingerprints.c[name]
    for name in ("consumer", "type", "error_type", "frame", "message", "arrivals", "owner", "runbook", "resolved_in")
)


def claim(connection: Connection) -> Alert | None:
    """The alert that is due for longest, which nobody else gets for `CLAIM_SECONDS`; None when there is none."""
    query = select(*_OF_ALERT, *_OF_GROUP).join_from(
        alerts, fingerprints, alerts.c.fingerprint == fingerprints.c.fingerprint
    )
    at = now()
    due = query.where(IS_UNTOLD, alerts.c.next_at <= at).order_by(alerts.c.next_at, alerts.c.id).limit(1)
    row = connection.execute(due.with_for_update(of=alerts, skip_locked=True)).one_or_none()
    if row is None:
        return None
    taken = update(alerts).where(alerts.c.id == row.id)
    connection.execute(taken.values(next_at=at + timedelta(seconds=CLAIM_SECONDS)))
    return Alert(*row)


def settle(connection: Connection, alert: Alert, outcome: Answer | AcklineError) -> AlertState:
    """Note what came of an attempt to tell, and when the next is due."""
    at = now()
    attempts = alert.attempts + 1
    values: dict[str, Any] = {"attempts": attempts, "next_at": at}
    if isinstance(outcome, Answer) and 200 <= outcome.status < 300:
        values |= {"state": AlertState.DELIVERED, "error": None, "finished_at": at}
    else:
        status, wait = (outcome.status, outcome.retry_after) if isinstance(outcome, Answer) else (None, None)
        values["error"] = str(outcome) if status is None else f"It answered {status}."
        if status == HTTPStatus.GONE or attempts > len(PAUSES):
            values |= {"state": AlertState.FAILED, "finished_at": at}
        else:
            pause = max(PAUSES[attempts - 1], min(retry_after(wait, at), LONGEST_RETRY_AFTER))
            values |= {"state": AlertState.WAITING, "next_at": at + timedelta(seconds=pause)}
    connection.execute(update(alerts).where(alerts.c.id == alert.id, IS_UNTOLD).values(values))
    state: AlertState = values["state"]
    return state


def are_old(connection: Connection, before: datetime) -> bool:
    """Whether there are alerts that were finished *before*."""
    return bool(connection.scalar(select(exists().where(alerts.c.finished_at < before))))


def forget(connection: Connection, before: datetime, limit: int) -> int:
    """Delete up to *limit* alerts that were finished *before*. Returns how many."""
    old = select(alerts.c.id).where(alerts.c.finished_at < before).limit(limit)
    return connection.execute(delete(alerts).where(alerts.c.id.in_(old))).rowcount


# --- what is told -----------------------------------------------------------------------------------------------------


def told(alert: Alert) -> dict[str, Any]:
    """An alert as JSON, for receivers that are programs."""
    shown: dict[str, Any] = {name: getattr(alert, name) for name in Alert.__dataclass_fields__ if name != "attempts"}
    return shown | {"event": f"group.{alert.kind}", "at": alert.at.isoformat(), "text": sentence(alert)}


def sentence(alert: Alert) -> str:
    """An alert as a person reads it."""
    whose = alert.consumer or f"{alert.type} (nobody consumes it)"
    what = ": ".join(filter(None, (alert.error_type, alert.message)))
    where = f" in {alert.frame}" if alert.frame else ""
    since = f" after it was resolved in {alert.resolved_in}" if alert.resolved_in else ""
    news = "A new failure" if alert.kind == "new" else f"A failure is back{since}"
    lines = [
        f"{news} of {whose}{where}: {cut(what, _MAX_QUOTED)}",
        f"{alert.arrivals:,} so far. Group {alert.fingerprint}" + (f", of {alert.owner}" if alert.owner else ""),
    ]
    return "\n".join(lines + ([f"Runbook: {alert.runbook}"] if alert.runbook else []))


def slack_text(text: str) -> str:
    """*text* as Slack shows it word for word: `&`, `<` and `>` are its control characters."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


# --- who tells --------------------------------------------------------------------------------------------------------


class AlertSender:
    """Tells of failures that are new or returned, on a thread of its own, until it is stopped."""

    def __init__(self, engine: Engine, settings: Settings, url: str, *, outbound: Outbound | None = None) -> None:
        """url: `ACKLINE_ALERT_URL`. outbound: what calls; by default what may call the host of *url* at its public
        addresses, and at others if `ACKLINE_CALLBACK_HOSTS` names these.

        Raises `ConfigurationError` for a *url* that cannot be called.
        """
        self._engine = engine
        self._outbound = outbound or _outbound(settings, url)
        self._settings = settings
        self._url = url
        self._slack = _is_slack(settings.alert_format, url)
        self._stopping = threading.Event()
        self._outage = Outage("telling of failures", self._stopping)
        self._thread = threading.Thread(target=self._run, name="reviewer-alerts", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """End, within *timeout* seconds. What is then being told may be told again by the next reviewer."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                there_was_one = self._tell_one()
            except Exception as error:
                self._outage.wait(error)
                continue
            self._outage.over()
            self._stopping.wait(NEXT_CALL_SECONDS if there_was_one else LOOK_SECONDS)

    def _tell_one(self) -> bool:
        with reading(self._engine) as connection:  # mostly there is none, and then nobody has to wait for a writer
            if connection.scalar(select(alerts.c.id).where(IS_UNTOLD, alerts.c.next_at <= now()).limit(1)) is None:
                return False
        with writing(self._engine) as connection:
            alert = claim(connection)
        if alert is None:
            return False
        outcome = self._call(alert)
        with writing(self._engine) as connection:
            state = settle(connection, alert, outcome)
        if state is not AlertState.DELIVERED:
            said = "and is given up" if state is AlertState.FAILED else "and is tried again"
            log.warning("an alert of group %s did not arrive %s: %s", alert.fingerprint, said, outcome)
        return True

    def _call(self, alert: Alert) -> Answer | AcklineError:
        content = {"text": slack_text(sentence(alert))} if self._slack else told(alert)
        body = json.dumps(content, ensure_ascii=False, default=str).encode()
        headers = {"Content-Type": "application/json", "User-Agent": f"ackline/{version('ackline')}"}
        if not self._slack:
            headers |= webhook.headers(self._key, f"alert-{alert.id}", body, int(time.time()))
        try:
            return self._outbound.post(self._url, body, headers)
        except AcklineError as error:
            return error

    @cached_property
    def _key(self) -> bytes:
        return webhook.key(self._settings, self._engine)


def _outbound(settings: Settings, url: str) -> Outbound:
    try:
        allowed = [*settings.callback_hosts, urlsplit(url).hostname or ""]
        check(url, allowed)
    except (ValueError, NotAllowed) as error:
        raise ConfigurationError(f"ACKLINE_ALERT_URL cannot be used: {error}") from None
    return Outbound(allowed)


def _is_slack(form: Literal["slack", "json"] | None, url: str) -> bool:
    return form == "slack" or (form is None and urlsplit(url).hostname == _SLACK_HOST)
