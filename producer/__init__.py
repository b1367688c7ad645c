"""What puts messages in: contracts and the publisher. Importing this brings pika and pydantic, and no more."""

from ackline.infra.link import BrokerRefused, BrokerUnreachable
from ackline.producer.errors import (
    ForkedError,
    InvalidMessage,
    MessageTooLarge,
    Nacked,
    NotPermitted,
    PublishBlocked,
    PublisherClosed,
    PublishError,
    PublishTimeout,
    Unroutable,
)
from ackline.producer.message import contracts, message
from ackline.producer.publisher import Publisher, Receipt

__all__ = [
    "BrokerRefused",
    "BrokerUnreachable",
    "ForkedError",
    "InvalidMessage",
    "MessageTooLarge",
    "Nacked",
    "NotPermitted",
    "PublishBlocked",
    "PublishError",
    "PublishTimeout",
    "Publisher",
    "PublisherClosed",
    "Receipt",
    "Unroutable",
    "contracts",
    "message",
]
