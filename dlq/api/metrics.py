"""`GET /metrics`: what waits on the desk, for Prometheus.

| metric | is |
| --- | --- |
| `ackline_dead_letters{state}` | dead letters in that state |
| `ackline_desk_database_up` | 1 when the database answers |
"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, ProcessCollector, generate_latest

from ackline.dlq.api.access import signed_in
from ackline.dlq.api.service import Served
from ackline.dlq.rights import Actor, Role
from ackline.dlq.selection import Selection
from ackline.infra.database import DatabaseUnavailable

router = APIRouter()

#: Who counts.
_ITSELF = Actor("ackline desk", Role.VIEWER)


@router.get("/metrics", include_in_schema=False)
def metrics(request: Request, served: Served) -> Response:
    """Prometheus' text format. It needs a token where the desk has people, unless ACKLINE_METRICS_OPEN is true."""
    registry = CollectorRegistry()
    letters = Gauge("ackline_dead_letters", "Dead letters in that state.", ("state",), registry=registry)
    up = Gauge("ackline_desk_database_up", "Whether the database answers.", registry=registry)
    ProcessCollector(registry=registry)
    try:
        if not served.settings.metrics_open:
            signed_in(request, served)
        for state, count in served.desk.letters.counts(_ITSELF, Selection()).items():
            letters.labels(state).set(count)
        up.set(1)
    except DatabaseUnavailable:
        up.set(0)
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
