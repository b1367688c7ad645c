"""`GET /metrics`: what the gateway counts, for Prometheus.

| metric | is |
| --- | --- |
| `ackline_gateway_requests_total{method,route,status}` | requests answered |
| `ackline_gateway_request_seconds{method,route}` | histogram: from a request's arrival until its answer began |
| `ackline_gateway_requests_in_flight` | requests under way, streams included |
| `ackline_gateway_messages_accepted_total{type,state}` | messages made durable, by `state`: see `acceptance` |
| `ackline_gateway_broker_up` | 1 when a message that is sent now would go straight to the broker |
| `ackline_gateway_database_up` | 1 when the database answers |
| `ackline_gateway_outbox_depth` | messages that wait in the database to be published now |

The depth is that of the database, which several gateways may share: take its `max`. A route is named by its template,
so that no client can make a new time series. What a request costs is counted in plain numbers on the event loop, which
prometheus-client reads when it is asked: its own counters take a lock each.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Awaitable, Iterator, Mapping
from itertools import accumulate
from time import perf_counter

from fastapi import APIRouter, FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Engine
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ackline.infra import database
from ackline.infra.database import DatabaseUnavailable
from ackline.producer import outbox
from ackline.producer.gateway.acceptance import State
from ackline.producer.gateway.service import Service, service

router = APIRouter()

#: Upper bounds of the histogram's buckets, in seconds.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
#: Seconds that a scrape waits for the database.
_DATABASE_SECONDS = 2.0
#: The route of what leads nowhere, and the method that HTTP does not know: both are the client's to choose.
_OTHER = "(other)"
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


class _Latency:
    """Durations, by bucket."""

    __slots__ = ("buckets", "seconds")

    def __init__(self) -> None:
        self.buckets = [0] * (len(BUCKETS) + 1)
        self.seconds = 0.0


class Requests:
    """What one gateway counts of its requests. Used on its event loop only, and read from anywhere."""

    def __init__(self) -> None:
        self.in_flight = 0
        #: By (method, route, status).
        self.answered: Counter[tuple[str, str, int]] = Counter()
        #: By (method, route).
        self.latency: defaultdict[tuple[str, str], _Latency] = defaultdict(_Latency)

    def count(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request that was answered after so many *seconds*."""
        method: str = scope["method"]
        if method not in _METHODS:
            method = _OTHER
        route: str = getattr(scope.get("route"), "path", _OTHER)
        self.answered[method, route, status] += 1
        latency = self.latency[method, route]
        latency.buckets[bisect_left(BUCKETS, seconds)] += 1
        latency.seconds += seconds


class CountRequests:
    """ASGI middleware that counts requests; 2 µs each."""

    def __init__(self, app: ASGIApp, requests: Requests) -> None:
        self._app = app
        self._requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        requests = self._requests
        began = perf_counter()
        has_begun = False

        def counted(message: Message) -> Awaitable[None]:
            nonlocal has_begun
            if not has_begun:
                has_begun = True
                requests.count(scope, message["status"], perf_counter() - began)
            return send(message)

        requests.in_flight += 1
        try:
            await self._app(scope, receive, counted)
        except Exception:
            if not has_begun:  # who is above this answers it
                requests.count(scope, 500, perf_counter() - began)
            raise
        finally:
            requests.in_flight -= 1


class _Sample(Collector):
    """The gateway at one moment, as prometheus-client wants it."""

    def __init__(
        self, requests: Requests, accepted: Mapping[tuple[str, State], int], broker_up: bool, depth: int | None
    ) -> None:
        self._requests = requests
        self._accepted = accepted
        self._broker_up = broker_up
        self._depth = depth

    def collect(self) -> Iterator[Metric]:
        """All metrics."""
        answered = CounterMetricFamily(
            "ackline_gateway_requests", "Requests answered.", labels=("method", "route", "status")
        )
        for (method, route, status), count in self._requests.answered.items():
            answered.add_metric((method, route, str(status)), count)
        yield answered
        seconds = HistogramMetricFamily(
            "ackline_gateway_request_seconds",
            "Seconds from the arrival of a request until its answer began.",
            labels=("method", "route"),
        )
        bounds = [*map(str, BUCKETS), "+Inf"]
        for (method, route), latency in self._requests.latency.items():
            cumulative = zip(bounds, accumulate(latency.buckets), strict=True)
            seconds.add_metric((method, route), list(cumulative), latency.seconds)
        yield seconds
        accepted = CounterMetricFamily(
            "ackline_gateway_messages_accepted",
            "Messages made durable: waiting in RabbitMQ, or accepted into the outbox.",
            labels=("type", "state"),
        )
        for labels, count in self._accepted.items():
            accepted.add_metric(labels, count)
        yield accepted
        for name, told, value in (
            ("requests_in_flight", "Requests under way, streams included.", self._requests.in_flight),
            ("broker_up", "Whether a message sent now would go straight to the broker.", self._broker_up),
            ("database_up", "Whether the database answers.", self._depth is not None),
            ("outbox_depth", "Messages that wait in the database to be published now.", self._depth),
        ):
            if value is not None:
                yield GaugeMetricFamily(f"ackline_gateway_{name}", told, value=value)


class Depth:
    """The depth of the outbox, asked for at most once at a time, however many ask and however slow the database is."""

    def __init__(self) -> None:
        self._looking: asyncio.Task[int | None] | None = None

    async def get(self, engine: Engine) -> int | None:
        """How many messages wait to be published now; None when the database does not answer in time."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(asyncio.to_thread(_depth, engine))
        await asyncio.wait([self._looking], timeout=_DATABASE_SECONDS)
        return self._looking.result() if self._looking.done() else None


def _depth(engine: Engine) -> int | None:
    try:
        with database.reading(engine) as connection:
            return outbox.depth(connection)
    except DatabaseUnavailable:
        return None


def install(app: FastAPI) -> None:
    """Let *app* count its requests, and tell of them at `/metrics`. Other middleware added before is counted too."""
    app.state.requests = Requests()
    app.state.outbox_depth = Depth()
    app.add_middleware(CountRequests, requests=app.state.requests)
    app.include_router(router)


@router.get("/metrics", include_in_schema=False)
async def metrics(request: Request) -> Response:
    """Prometheus' text format. It needs a key where messages do, unless ACKLINE_METRICS_OPEN is true."""
    served = service(request)
    if not served.settings.metrics_open:
        served.keys.caller(request)
    depth = await request.app.state.outbox_depth.get(served.engine)
    # On the loop: who counts runs here too, so nothing changes while it is read.
    return Response(_exposition(served, request.app.state.requests, depth), media_type=CONTENT_TYPE_LATEST)


def _exposition(served: Service, requests: Requests, depth: int | None) -> bytes:
    registry = CollectorRegistry()
    registry.register(_Sample(requests, served.acceptance.accepted, served.publisher.problem is None, depth))
    ProcessCollector(registry=registry)
    return generate_latest(registry)
