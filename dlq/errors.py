"""What an operator is told when something cannot be had or done.

```
AcklineError
├── NotFound                nothing has that id or name
│   └── NoSuchDeadLetter    no dead letter has
├── AmbiguousMessageId      several dead letters have that message id
├── Refused                 its state, or the pipeline's, does not allow it
├── Invalid                 what was said cannot be used: each fault is named
├── NotSignedIn             nobody knows who asks
│   └── Throttled           too many tried to sign in under that name
├── Forbidden               the role of who asks does not allow it
└── NeedsApproval           it waits for a second person
```
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ackline.infra.errors import AcklineError


class NotFound(AcklineError):
    """Nothing has that id or name."""


class NoSuchDeadLetter(NotFound):
    """Nothing has that id or message id."""


class AmbiguousMessageId(AcklineError):
    """Several dead letters have that message id: one must be named by its own id."""


class Refused(AcklineError):
    """What was asked for is not possible in the state that things are in, or with the consumers that there are."""


class Fault(NamedTuple):
    """What is wrong, and where: `Fault("payload.total", "must be a number")`. Holds no value of a secret field."""

    path: str
    message: str


class Invalid(AcklineError):
    """What was said cannot be used, for each of `faults`; none when the message says it all."""

    def __init__(self, message: str, faults: Sequence[Fault] = ()) -> None:
        super().__init__(message)
        self.faults = tuple(faults)


class NotSignedIn(AcklineError):
    """Nobody knows who asks: no such name with that password."""


class Throttled(NotSignedIn):
    """Too many tried to sign in under that name: not before `retry_after` seconds are over."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Forbidden(AcklineError):
    """The acting person's role does not allow it."""


class NeedsApproval(AcklineError):
    """It waits for a second person as request `approval`, because of `rule`."""

    exit_code = 4

    def __init__(self, approval: int, rule: str) -> None:
        super().__init__(
            f"This waits for a second person, as request {approval}: {rule}. "
            f"`ackline approvals approve {approval}` by somebody else carries it out."
        )
        self.approval = approval
        self.rule = rule
