"""What handles messages: `@consumer`, the retry decision, the worker."""

from ackline.consumers.consumer import consumer, registered
from ackline.consumers.context import Context
from ackline.consumers.decision import Ack, Failure, Reject, Retry, RetryLater, decide
from ackline.consumers.retry import RetryPolicy, exponential, fixed

__all__ = [
    "Ack",
    "Context",
    "Failure",
    "Reject",
    "Retry",
    "RetryLater",
    "RetryPolicy",
    "consumer",
    "decide",
    "exponential",
    "fixed",
    "registered",
]
