"""What an operator is told when a dead letter cannot be had or changed.

```
AcklineError
├── NoSuchDeadLetter    nothing has that id
├── AmbiguousMessageId  several dead letters have that message id
├── Refused             its state, or the pipeline's, does not allow it
└── Forbidden           the role of who asks does not allow it
```
"""

from ackline.infra.errors import AcklineError


class NoSuchDeadLetter(AcklineError):
    """Nothing has that id or message id."""


class AmbiguousMessageId(AcklineError):
    """Several dead letters have that message id: one must be named by its own id."""


class Refused(AcklineError):
    """What was asked for is not possible in the dead letter's state, or with the consumers that there are."""


class Forbidden(AcklineError):
    """The acting person's role does not allow it."""
