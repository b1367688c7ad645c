"""What can go wrong when a message is published.

```
AcklineError
└── PublishError            the message is not confirmed; `message_id` says which
    ├── InvalidMessage      it is no message: no contract, or the contract does not accept it
    ├── MessageTooLarge     it is larger than a frame, or than the broker takes
    ├── NotPermitted        the broker refuses it to this user
    ├── Unroutable          it was returned: the topology is broken
    ├── Nacked              the broker refused responsibility (a full queue, a lost quorum)
    ├── PublishTimeout      no confirm within the deadline: whether it arrived is unknown
    │   └── PublishBlocked  the same, while an alarm on the broker blocks publishing
    ├── PublisherClosed     the publisher was closed first
    └── ForkedError         it belonged to the parent of this process
```

After `PublishTimeout` publish again under the same `message_id`: consumers then know it for the same message.
"""

from __future__ import annotations

from ackline.infra.errors import AcklineError


class PublishError(AcklineError):
    """A message that is not confirmed."""

    def __init__(self, message: str, message_id: str | None = None) -> None:
        super().__init__(message)
        #: The id of the message, to publish it again under.
        self.message_id = message_id


class InvalidMessage(PublishError):
    """It is no message: its class has no contract, or the contract does not accept the data."""


class MessageTooLarge(PublishError):
    """Its headers do not fit into a frame, or its body is larger than the broker takes. It was not sent."""


class NotPermitted(PublishError):
    """The broker refuses it to this user: see `ackline doctor`."""


class Unroutable(PublishError):
    """The exchange is missing or routes it nowhere: `ackline topology apply` mends it."""


class Nacked(PublishError):
    """The broker refused responsibility for it: a queue is full, or has lost its quorum. It may be published again."""


class PublishTimeout(PublishError):
    """No confirm came within the deadline. It may have arrived: publish again under the same id."""


class PublishBlocked(PublishTimeout):
    """No confirm came within the deadline, while an alarm (memory or disk) on the broker blocks publishing."""


class PublisherClosed(PublishError):
    """The publisher was closed before the confirm came."""


class ForkedError(PublishError):
    """It was under way when this process was forked: its confirm belongs to the parent."""
