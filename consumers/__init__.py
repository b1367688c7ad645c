"""What handles messages: `@consumer`, the retry decision, the worker."""

from ackline.consumers.batch import Batch
from ackline.consumers.breaker import Breaker
from ackline.consumers.consumer import consumer, registered
from ackline.consumers.context import Context
from ackline.consumers.decision import Ack, AlreadyHandled, Failure, Park, Reject, Retry, RetryLater, decide
from ackline.consumers.middleware import Middleware, use
from ackline.consumers.retry import RetryPolicy, exponential, fixed, schedule
from ackline.consumers.time_limit import TimeLimitExceeded

__all__ = [
    "Ack",
    "AlreadyHandled",
    "Batch",
    "Breaker",
    "Context",
    "Failure",
    "Middleware",
    "Park",
    "Reject",
    "Retry",
    "RetryLater",
    "RetryPolicy",
    "TimeLimitExceeded",
    "consumer",
    "decide",
    "exponential",
    "fixed",
    "registered",
    "schedule",
    "use",
]
