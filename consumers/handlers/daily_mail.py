"""`mail.daily`: every morning at 08:00 in Shanghai a mail to those of `ACKLINE_DAILY_MAIL_TO`: what waits in review.

Each mail is a message of its own (`email.send`), whose id follows from the tick and the address: a job that runs twice,
because its worker was killed, sends each mail again under the same `Message-ID`. Another time, or another time zone, is
a schedule of the name `daily-mail` in `ackline.toml`. `pip install 'ackline[jobs]'`.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import func, select

from ackline.consumers import Reject, exponential
from ackline.consumers.handlers.email import SendEmail
from ackline.consumers.jobs import Job, job
from ackline.consumers.schedules import schedule
from ackline.infra.database import opened, reading
from ackline.infra.settings import settings
from ackline.infra.tables import DeadLetterState, dead_letters
from ackline.infra.wire import now, uuid8
from ackline.producer import Publisher


@job(name="mail.daily", bind=True, retry=exponential())
def daily_mail(self: Job) -> int:
    """Have the mails sent. Returns how many."""
    configured = settings()
    if not configured.daily_mail_to:
        raise Reject("ACKLINE_DAILY_MAIL_TO is not set: comma-separated addresses of those who get the daily mail")
    planned_at = getattr(self.request, "planned_at", None)  # none of a job that was sent by hand
    morning = now() if planned_at is None else datetime.fromisoformat(planned_at)
    waiting, new = _in_review(configured.database, since=morning - timedelta(days=1))
    subject = f"In review: {waiting}, of which {new} since yesterday"
    body = f"Good morning,\n\n{waiting} messages wait in review. {new} of them came in the last 24 hours.\n"
    with Publisher.connect(configured, name="daily mail") as publisher:
        for address in configured.daily_mail_to:
            publisher.publish(
                SendEmail(to=address, subject=subject, body=body), message_id=uuid8(f"{self.request.id} {address}")
            )
    return len(configured.daily_mail_to)


def _in_review(url: str, since: datetime) -> tuple[int, int]:
    """How many dead letters wait in review, and how many of these came since then."""
    in_review = select(func.count()).where(dead_letters.c.state == DeadLetterState.IN_REVIEW)
    with opened(url) as engine, reading(engine) as connection:
        waiting = connection.execute(in_review).scalar_one()
        return waiting, connection.execute(in_review.where(dead_letters.c.received_at >= since)).scalar_one()


schedule("daily-mail", "0 8 * * *", daily_mail, timezone="Asia/Shanghai", missed="run once", grace="1h")
