"""Handlers that write each message into PostgreSQL: one at a time, and in batches."""

from __future__ import annotations

import os
import threading
from typing import Any, cast

import psycopg

from ackline.consumers import Batch, consumer
from tests.benchmarks.consuming.meter import Meter, Placed

TABLE = "CREATE TABLE orders (order_id text PRIMARY KEY, customer text, total float8, express bool, note text)"
_INSERT = "INSERT INTO orders VALUES (%s, %s, %s, %s, %s)"
#: Messages of a batch.
SIZE = 500
_BATCH = Batch(size=SIZE)

meter = Meter()
_own = threading.local()


def _connection() -> psycopg.Connection[Any]:
    """This thread's."""
    if not hasattr(_own, "connection"):
        _own.connection = psycopg.connect(os.environ["BENCH_DATABASE"], autocommit=True)
    return cast(psycopg.Connection[Any], _own.connection)


def _row(order: Placed) -> tuple[Any, ...]:
    return order.order_id, order.customer, order.total, order.express, order.note


@consumer("bench-transaction")
def insert_in_transaction(order: Placed) -> None:
    """A transaction for each, as a session of SQLAlchemy or an inbox makes it: BEGIN, INSERT, COMMIT."""
    with _connection().transaction():
        _connection().execute(_INSERT, _row(order))
    meter.handled()


@consumer("bench-insert")
def insert(order: Placed) -> None:
    """A transaction for each: the statement is one by itself."""
    _connection().execute(_INSERT, _row(order))
    meter.handled()


@consumer("bench-executemany", batch=_BATCH)
def insert_many(orders: list[Placed]) -> None:
    """A transaction for all, in psycopg's pipeline."""
    with _connection().transaction(), _connection().cursor() as cursor:
        cursor.executemany(_INSERT, [_row(order) for order in orders])
    for _ in orders:
        meter.handled()


@consumer("bench-copy", batch=_BATCH)
def copy(orders: list[Placed]) -> None:
    """One statement for all."""
    with _connection().cursor() as cursor, cursor.copy("COPY orders FROM STDIN") as copying:
        for order in orders:
            copying.write_row(_row(order))
    for _ in orders:
        meter.handled()
