"""A message made ready to be published later, and when that is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from pydantic import BaseModel

from ackline.infra.wire import now
from ackline.producer import InvalidMessage, MessageTooLarge, message
from ackline.producer.envelope import InvalidDueTime, due_time, enclose
from tests.relaying import Recorded


@message("test.always-tracked", track=True)
class Tracked(BaseModel):
    """A contract whose messages are tracked."""


class Foreign(BaseModel):
    """A model that is no contract."""


@pytest.mark.parametrize("delay", [60, 60.0, timedelta(minutes=1)])
def test_a_delay_counts_from_now(delay: float | timedelta) -> None:
    before = now()
    due = due_time(delay, None)
    assert due is not None
    assert before + timedelta(minutes=1) <= due <= now() + timedelta(minutes=1)


def test_a_time_is_kept_in_utc_however_far_ahead() -> None:
    tokyo = timezone(timedelta(hours=9))
    assert due_time(None, datetime(2090, 1, 1, 9, tzinfo=tokyo)) == datetime(2090, 1, 1, 0, tzinfo=UTC)
    assert due_time(None, datetime(9999, 12, 31, 23, 59, tzinfo=UTC)) == datetime(9999, 12, 31, 23, 59, tzinfo=UTC)


@pytest.mark.parametrize(
    ("delay", "deliver_at"),
    [
        (None, None),
        (0, None),
        (-5.0, None),
        (timedelta(days=-1), None),
        (None, datetime(1970, 1, 1, tzinfo=UTC)),
        (None, datetime.min.replace(tzinfo=UTC)),
    ],
)
def test_what_is_not_ahead_is_due_at_once(delay: float | timedelta | None, deliver_at: datetime | None) -> None:
    assert due_time(delay, deliver_at) is None


@pytest.mark.parametrize(
    ("delay", "deliver_at", "says"),
    [
        (1, datetime(2090, 1, 1, tzinfo=UTC), "give `delay` or `deliver_at`, not both"),
        (None, datetime(2090, 1, 1), "deliver_at=2090-01-01T00:00:00 has no time zone, so it names no moment: use an"),
        (1e12, None, "is no time of the calendar: the latest is in the year 9999"),
        (1e300, None, "is no time of the calendar"),
        (float("inf"), None, "is no time of the calendar"),
        (float("nan"), None, "is no time of the calendar"),
        (timedelta.max, None, "is no time of the calendar"),
        (None, datetime.max.replace(tzinfo=timezone(timedelta(hours=-9))), "is no time of the calendar"),
    ],
)
def test_what_names_no_moment_is_refused(
    delay: float | timedelta | None, deliver_at: datetime | None, says: str
) -> None:
    with pytest.raises(InvalidDueTime) as caught:
        due_time(delay, deliver_at)
    assert says in str(caught.value)
    assert str(caught.value).endswith(".")


def test_a_message_is_tracked_as_its_contract_says_or_as_it_is_told() -> None:
    assert enclose(Tracked()).properties.headers.decoded() == {"ackline-track": True}
    assert enclose(Tracked(), track=False).properties.headers.decoded() == {}
    assert enclose(Recorded(number=1)).properties.headers.decoded() == {}
    assert enclose(Recorded(number=1), track=True).properties.headers.decoded() == {"ackline-track": True}


def test_each_message_has_an_id_of_its_own() -> None:
    first, second = (enclose(Recorded(number=1)) for _ in range(2))
    assert first.message_id != second.message_id
    assert first.properties.message_id == first.message_id.encode()


def test_what_is_no_message_is_refused() -> None:
    with pytest.raises(InvalidMessage, match="Foreign is no message"):
        enclose(Foreign())


@pytest.mark.parametrize(
    "fields",
    [{"message_id": "x" * 256}, {"headers": {"a": "x" * 140_000}}, {"headers": {"a": object()}}, {"app_id": "x" * 256}],
    ids=["id", "headers", "header of no kind", "service"],
)
def test_what_no_broker_takes_is_refused_before_it_is_a_row(fields: dict[str, object]) -> None:
    with pytest.raises(MessageTooLarge, match=r"The message cannot be sent: .*\."):
        enclose(Recorded(number=1), **fields)  # type: ignore[arg-type]
