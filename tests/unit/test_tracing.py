"""Trace context is taken from OpenTelemetry where a service uses it, and costs nothing where none does."""

from __future__ import annotations

import subprocess
import sys

from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from ackline.producer.tracing import trace_headers

SPAN = SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(1), trace_state=TraceState([("vendor", "x")]))


def test_the_current_span_is_sent_as_the_w3c_has_it() -> None:
    with trace.use_span(NonRecordingSpan(SPAN)):
        assert trace_headers() == {"traceparent": f"00-{'abc':0>32}-{'def':0>16}-01", "tracestate": "vendor=x"}


def test_without_a_current_span_nothing_is_sent() -> None:
    assert trace_headers() == {}


def test_importing_the_producer_does_not_import_opentelemetry() -> None:
    code = "import ackline.producer, sys; sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
