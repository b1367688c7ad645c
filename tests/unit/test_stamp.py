"""The properties of published messages are the bytes that `Properties` would write."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from ackline.infra.properties import PERSISTENT, Properties
from ackline.producer.message import Contract
from ackline.producer.stamp import Stamp


@pytest.mark.parametrize("correlation_id", [None, "", "c-1 é"])
@pytest.mark.parametrize("headers", [None, {}, {"traceparent": "00-1-2-01", "number": 2**62}])
def test_properties_are_written_as_the_wire_format_has_them(
    correlation_id: str | None, headers: dict[str, Any] | None
) -> None:
    contract = Contract("order.placed", "1", track=False, model=BaseModel)
    raw = Stamp(contract, "shop").properties("m-1", correlation_id, headers)
    found = Properties.from_wire(raw)
    again = Properties(
        content_type="application/json",
        delivery_mode=PERSISTENT,
        message_id="m-1",
        timestamp=found.timestamp,
        type="order.placed",
        app_id="shop",
        correlation_id=correlation_id,
        headers=headers,
    )
    assert raw == again.wire
    assert found.decoded() == again.decoded()
