"""`sync.<source>`: everything that a paged API has, brought into a database; begun again where it was broken off.

One message is a whole sync. Its handler gets page after page; each page's items and the place of the next page commit
in one transaction. Whoever handles the message next, after a kill or a failure, goes on from the last page that did.

```
             first page                                      last page
   no run ─────────────► at page 1 ──► at page 2 ──► … ───────────────► finished ──► (another message: a new run)
```

**Why not a message for each page.** Then a status, a dead letter, a redrive would be about one page; and after a crash
between a page's publish and its ack two deliveries would each go on to the end. A single message has one status with
its progress, and is in review as a whole. What is long about it is broken up: after `SLICE_SECONDS`, or when the worker
stops, the message is parked for a second, which costs no attempt, and goes on in whichever worker is free.

**Failures.** Only a try without any page counts as an attempt. One that has brought pages is parked, so a sync of ten
thousand pages may meet ten thousand hiccups, but not five in a row at the same page.

**Two at once**, after a lost connection or because somebody asks for a second sync: a page is written only by who finds
the place as it left it. A later message begins anew and so ends the run of an earlier one, whose items it brings too;
the earlier one gives way whenever it comes back, or two that make room for each other would never end. Only a redrive
of it begins once more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from ackline.consumers import Context, Park, Reject, RetryLater, RetryPolicy, consumer, exponential
from ackline.consumers.handlers.http_request import SECONDS, checked_address, host_of, request
from ackline.infra.settings import settings
from ackline.infra.wire import REDRIVE
from ackline.producer import message

if TYPE_CHECKING:  # only those who write load it
    from sqlalchemy import Connection, Engine, Table

#: Seconds after which a sync makes room for other messages, and for a worker's restart. Far below the broker's
#: `consumer_timeout`.
SLICE_SECONDS = 120.0
_RETRY = exponential(attempts=5, first="5s", cap="15m", jitter=True)
#: Runs of a source that are remembered as ended by a later one.
_FORMER_RUNS = 100


class Page(BaseModel):
    """A page of an API."""

    model_config = ConfigDict(frozen=True, coerce_numbers_to_str=True)

    items: list[Any]
    #: Cursor of the next page; None, or empty: this is the last one. Never left away: an API that names it otherwise is
    #: noticed.
    next: str | None
    #: How many items there are in all, if that is known.
    total: int | None = None


#: Gets the page at a cursor; None: the first one.
Fetch: TypeAlias = Callable[[str | None], Awaitable[Page]]
#: Writes items in the transaction of the sync's place: all of them, or none.
Store: TypeAlias = Callable[["Connection", list[Any]], None]


class SyncRequest(BaseModel):
    """Bring everything that a source has."""

    model_config = ConfigDict(extra="forbid")


def pages(url: str, *, headers: Mapping[str, str] | None = None, limit: int = 500, seconds: float = SECONDS) -> Fetch:
    """Get pages of an API that answers `GET url?limit=…&cursor=…` with `{"items": […], "next": "…" or null, "total"?}`.

    headers: of every request, such as `Authorization`. seconds: for one page. Raises `ConfigurationError` for what is
    no address.
    """
    address = checked_address(url)

    async def fetch(cursor: str | None) -> Page:
        parameters = {"limit": str(limit)} | ({} if cursor is None else {"cursor": cursor})
        answer = await request("GET", address, headers=headers, parameters=parameters, seconds=seconds)
        try:
            return Page.model_validate(answer.json())
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, fault["loc"]))
            raise Reject(f"{host_of(address)} answered what is no page: {where}: {fault['msg']}") from None

    return fetch


def syncs(
    source: str, fetch: Fetch, store: Store, *, retry: RetryPolicy | None = None, database_url: str | None = None
) -> type[SyncRequest]:
    """Have each message of the type `sync.<source>` bring all pages, by a consumer `sync-<source>`.

    Returns the contract, whose messages are tracked: their status says how far the sync is.

    fetch: gets a page, such as `pages(url)`. It may be asked for the same page again. store: writes a page's items on
    the connection that it is given; it must be able to write an item that is there already, from the sync before.
    retry: of tries that brought no page. database_url: SQLAlchemy URL of the database that *store* writes to;
    `ACKLINE_INBOX_DATABASE_URL` when not given, and Ackline's own without that. The table `ackline_sync`, which holds
    the places, is created there.

    Raises `ConfigurationError` for a name that is taken.
    """
    contract = create_model(f"Sync{source.title()}", __base__=SyncRequest, __doc__=f"Bring everything of {source}.")
    places = _Places(source, store, database_url)

    async def sync(wanted: Any, ctx: Context) -> None:
        if ctx.id is None:  # a foreign client's: nothing would tell its deliveries from other messages
            ctx.publish(wanted)
            return
        until = time.monotonic() + SLICE_SECONDS
        begun = place = await asyncio.to_thread(places.begin, ctx.id, is_wanted_again=REDRIVE in ctx.headers)
        mark = None if begun is None else begun.cursor
        try:
            while place is not None and not place.is_finished:
                if ctx.stopping or (place != begun and time.monotonic() >= until):
                    raise Park("1s", "goes on in another slice")
                page = await fetch(place.cursor)
                if page.next and page.next in (place.cursor, mark):
                    raise Reject(f"page {place.page + 1} of {source} says that one follows which was there before")
                place = await asyncio.to_thread(places.advance, place, page)
                if place is not None:
                    # Brent's way to find a circle, however long it is, with one cursor in mind.
                    if place.page & (place.page - 1) == 0:
                        mark = place.cursor
                    done = place.items / page.total if page.total else 0.0
                    ctx.progress(done, f"{place.page} pages, {place.items} items")
        except (Park, Reject):
            raise
        except Exception as error:
            if place == begun:
                raise
            ctx.log.warning("goes on later, since it has brought pages: %r", error)
            asked = error.delay if isinstance(error, RetryLater) else None
            raise Park(asked or "5s") from error

    sync.__annotations__["wanted"] = message(f"sync.{source}", track=True)(contract)
    consumer(f"sync-{source}", retry=retry or _RETRY)(sync)
    return contract


class _Place(NamedTuple):
    """Where a run is. run: the id of its message; page, items: how many are stored; cursor: of the next page."""

    run: str
    page: int = 0
    items: int = 0
    cursor: str | None = None
    is_finished: bool = False


class _Places:
    """The row of one source, in the database of its items."""

    def __init__(self, source: str, store: Store, database_url: str | None) -> None:
        self._source = source
        self._store = store
        self._url = database_url

    @cached_property
    def _engine(self) -> Engine:
        from sqlalchemy import NullPool

        from ackline.infra import database
        from ackline.infra.tables import create_missing

        # A connection for each page costs little beside the page, and none is held while a sync waits, or is over.
        engine = database.connect(self._url or settings().inbox_database, poolclass=NullPool)
        create_missing(engine, self._table.metadata)
        return engine

    @cached_property
    def _table(self) -> Table:
        from sqlalchemy import JSON, Boolean, Column, Integer, MetaData, Table, Text

        return Table(
            "ackline_sync",
            MetaData(),
            Column("source", Text, primary_key=True),
            Column("run", Text, nullable=False),
            Column("page", Integer, nullable=False),
            Column("items", Integer, nullable=False),
            Column("cursor", Text),
            Column("is_finished", Boolean, nullable=False),
            Column("former_runs", JSON, nullable=False),
        )

    def begin(self, run: str, *, is_wanted_again: bool) -> _Place | None:
        """Where *run* is: at its beginning, when it is new.

        None when a later run has taken over, unless it *is_wanted_again*. Raises `DatabaseUnavailable`.
        """
        from ackline.infra.database import writing

        with writing(self._engine) as connection:
            there = self._there(connection)
            if there is not None and there.run == run:
                return there
            former = [] if there is None else [*self._former_runs(connection), there.run]
            if run in former and not is_wanted_again:
                return None
            begun = _Place(run)
            self._write(connection, begun, is_there=there is not None, former_runs=former[-_FORMER_RUNS:])
            return begun

    def advance(self, place: _Place, page: Page) -> _Place | None:
        """Write a page that was got at *place*, and the place after it, which is returned: both, or neither.

        None when a later run has taken over. Raises `Park` when another delivery of this run was quicker,
        `DatabaseUnavailable`, and what *store* raises.
        """
        from ackline.infra.database import writing

        after = _Place(place.run, place.page + 1, place.items + len(page.items), page.next, not page.next)
        with writing(self._engine) as connection:
            there = self._there(connection)
            if there == place:
                self._store(connection, page.items)
                self._write(connection, after, is_there=True)
                return after
        if there is not None and there.run == place.run:
            raise Park("15s", "another delivery of this message is at work")
        return None

    def _there(self, connection: Connection) -> _Place | None:
        """The place as it is, and will be until this transaction ends."""
        from sqlalchemy import select

        columns = [self._table.c[name] for name in _Place._fields]
        query = select(*columns).where(self._table.c.source == self._source).with_for_update()
        found = connection.execute(query).one_or_none()
        return None if found is None else _Place(*found)

    def _former_runs(self, connection: Connection) -> list[str]:
        """The runs that later ones have ended."""
        from sqlalchemy import select

        former = self._table.c.former_runs
        return list(connection.execute(select(former).where(self._table.c.source == self._source)).scalar_one())

    def _write(self, connection: Connection, place: _Place, *, is_there: bool, **more: Any) -> None:
        from sqlalchemy import insert, update

        row = {"source": self._source, **place._asdict(), **more}
        if is_there:
            connection.execute(update(self._table).where(self._table.c.source == self._source).values(row))
        else:  # of two first ones one is refused, and comes again
            connection.execute(insert(self._table).values(row))
