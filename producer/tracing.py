"""W3C trace context on its way out: from OpenTelemetry, where the service uses it."""

from __future__ import annotations

import sys
from typing import Any


def trace_headers() -> dict[str, str]:
    """`traceparent` and `tracestate` of the current span; nothing when there is none.

    OpenTelemetry is not needed: who has a current span has imported it, so it is looked for and never imported.
    """
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return {}
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    headers = {"traceparent": f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"}
    if context.trace_state:
        headers["tracestate"] = context.trace_state.to_header()
    return headers
