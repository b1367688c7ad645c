"""The header `Retry-After`, by which a server says when to come again."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def retry_after(value: str | None, at: datetime) -> float:
    """Seconds that the header asks for (RFC 9110, 10.2.3: seconds, or a date); 0 when it says nothing."""
    if value is None:
        return 0.0
    if re.fullmatch(r"[0-9]{1,9}", value.strip()):
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return 0.0
    return max((date.replace(tzinfo=date.tzinfo or UTC) - at).total_seconds(), 0.0)
