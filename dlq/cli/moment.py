"""A time as an option takes it: in ISO 8601, or how long ago."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click

from ackline.infra.durations import seconds
from ackline.infra.errors import ConfigurationError
from ackline.infra.wire import now


class Moment(click.ParamType[datetime]):
    """`2026-01-31T22:15`, in UTC unless it says otherwise, or `2h` ago."""

    name = "time"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        try:
            return now() - timedelta(seconds=seconds(value))
        except ConfigurationError:
            pass
        try:
            found = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is neither a time, 2026-01-31T22:15 (UTC), nor how long ago, 2h.", param, ctx)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
