"""The demonstration of `ackline up --demo`: some hundred mails, of which some fail, each in one of the usual ways.

Most arrive. Some go to addresses that the mail server refuses for a while, and arrive after retries; some to addresses
that it refuses for ever, and end in review; some messages are not what their type says, and end there too.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

import pika

from ackline.consumers.handlers.email import SendEmail
from ackline.infra.names import MESSAGES
from ackline.infra.refusals import Refusal, Refusals
from ackline.infra.settings import Settings
from ackline.infra.sink import mail_folder
from ackline.producer import Publisher

#: Mails that arrive at once.
GOOD = 240

#: Addresses that are refused with 451 so many times before they are accepted: fewer than the handler's five tries.
BUSY = {"busy-once": 1, "busy-twice": 2}

#: Mails to each busy and each gone address.
PER_ADDRESS = 10

GONE = {"left-the-company": "5.1.1 No such mailbox here", "full-for-years": "5.2.2 Mailbox full"}

#: Bodies that no `email.send` has, by what is wrong with them.
MALFORMED: dict[str, bytes] = {
    "no JSON": b'{"to": "ada@example.test", "subject": "Hel',
    "a missing field": json.dumps({"to": "ada@example.test", "body": "no subject"}).encode(),
    "no mail address": json.dumps({"to": "ada at example", "subject": "Hello", "body": "Hi"}).encode(),
}

#: Messages of each malformed kind.
PER_KIND = 5

#: A type that nobody consumes.
UNKNOWN_TYPE = "invoice.printed"

#: Seconds to wait for the broker's confirms, all together.
_CONFIRM_SECONDS = 60.0


def feed(settings: Settings, say: Callable[[str], None]) -> None:
    """Send the demonstration's messages to the broker of *settings*; returns when RabbitMQ has confirmed them.

    *say* is told, in sentences, what was sent and what to look at. Raises `AcklineError` when it cannot be sent.
    """
    refuse_some(Refusals(mail_folder(settings)))
    mails = _mails()
    with Publisher.connect(settings, name="ackline demo") as publisher:
        for future in [publisher.submit(mail) for mail in mails]:
            future.result(_CONFIRM_SECONDS)
    malformed = _publish_malformed(settings.broker)
    say(
        f"The demonstration has sent {len(mails)} mails and {malformed} malformed messages. "
        f"{PER_ADDRESS * len(BUSY)} mails arrive after retries; {PER_ADDRESS * len(GONE)} are refused for ever and "
        "wait for review with the malformed ones."
    )


def refuse_some(rules: Refusals) -> None:
    """Tell the mail sink whom to refuse. A rule counts deliveries, so one for ten mails counts ten times."""
    busy = [
        Refusal(f"{name}@example.test", 451, "4.2.1 Mailbox busy, try again later", times * PER_ADDRESS)
        for name, times in BUSY.items()
    ]
    gone = [Refusal(f"{name}@example.test", 550, text) for name, text in GONE.items()]
    rules.refuse(*busy, *gone)


def _mails() -> list[SendEmail]:
    good = [
        SendEmail(
            to=f"customer-{number:03}@example.test", subject=f"Your order {1000 + number}", body="It is on its way."
        )
        for number in range(GOOD)
    ]
    trouble = [
        SendEmail(to=f"{name}@example.test", subject=f"Reminder {number + 1}", body="Please have a look.")
        for name in (*BUSY, *GONE)
        for number in range(PER_ADDRESS)
    ]
    return good + trouble


def _publish_malformed(url: str) -> int:
    """Publish, as a foreign client would, what `Publisher` refuses to; returns how many."""
    bodies = [("email.send", body) for body in MALFORMED.values() for _ in range(PER_KIND)]
    bodies += [(UNKNOWN_TYPE, b'{"invoice": 17}')] * PER_KIND
    properties_of: Any = pika.BasicProperties  # has no types
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        channel = connection.channel()
        channel.confirm_delivery()
        for message_type, body in bodies:
            properties = properties_of(
                message_id=str(uuid.uuid4()),
                type=message_type,
                app_id="demo",
                content_type="application/json",
                delivery_mode=2,
            )
            channel.basic_publish(MESSAGES, message_type, body, properties, mandatory=True)
    finally:
        connection.close()
    return len(bodies)
