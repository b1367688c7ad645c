"""Watching messages: one look for all of them, whoever watches, and whatever the database does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection

import pytest

from ackline.infra.database import DatabaseUnavailable
from ackline.producer.gateway import watching as watching_module
from ackline.producer.gateway.watching import Watcher, Watching
from ackline.producer.status import Asked, State, Status

#: Seconds after which a test gives up.
NEVER = 60.0


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching_module, "LOOK_SECONDS", 0.001)


class Messages:
    """What a database would say of messages; counts the looks at it."""

    def __init__(self) -> None:
        self.states: dict[str, State] = {}
        self.looks: list[set[Asked]] = []
        self.fails: Exception | None = None
        self.watching = Watching(self.look)

    def look(self, asked: Collection[Asked]) -> dict[Asked, Status]:
        self.looks.append(set(asked))
        if self.fails is not None:
            raise self.fails
        return {one: status(one[0], self.states[one[0]]) for one in asked if one[0] in self.states}

    def watch(self, message_id: str) -> Watcher[Status]:
        return self.watching.add((message_id, "test"), status(message_id, State.WAITING))

    async def told(self, watcher: Watcher[Status], into: list[str]) -> None:
        """Watch to the end; the states go *into* a list."""
        async for found in self.watching.changes(watcher):
            into.append("quiet" if found is None else found.state)
        self.watching.remove(watcher)


def status(message_id: str, state: State) -> Status:
    return Status(id=message_id, type="test", state=state, is_final=state is State.HANDLED)


def run(scene: Callable[[Messages], Awaitable[None]]) -> Messages:
    """Play *scene* on an event loop."""
    messages = Messages()

    async def play() -> None:
        async with asyncio.timeout(NEVER):
            await scene(messages)

    asyncio.run(play())
    return messages


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_each_change_is_told_once_and_the_final_one_is_the_last() -> None:
    told: list[str] = []

    async def scene(messages: Messages) -> None:
        watcher = messages.watch("m-1")
        watch = asyncio.create_task(messages.told(watcher, told))
        await until(lambda: len(messages.looks) > 2)
        messages.states["m-1"] = State.BEING_HANDLED
        await until(lambda: told[-1] == State.BEING_HANDLED)
        looks = len(messages.looks)
        await until(lambda: len(messages.looks) > looks + 2)
        messages.states["m-1"] = State.HANDLED
        await watch

    run(scene)
    assert told == ["waiting", "being handled", "handled"]


def test_what_is_final_already_is_told_and_needs_no_look() -> None:
    told: list[str] = []

    async def scene(messages: Messages) -> None:
        watcher = messages.watching.add(("m-1", "test"), status("m-1", State.HANDLED))
        await messages.told(watcher, told)

    run(scene)
    assert told == ["handled"]


def test_one_look_is_for_all_and_nobody_looks_when_nobody_watches() -> None:
    async def scene(messages: Messages) -> None:
        watchers = [messages.watch(f"m-{n % 2}") for n in range(6)]
        await until(lambda: bool(messages.looks))
        assert messages.looks[0] == {("m-0", "test"), ("m-1", "test")}
        for watcher in watchers:
            messages.watching.remove(watcher)
        await until(lambda: len(asyncio.all_tasks()) == 1)  # this one
        looks = len(messages.looks)
        messages.watch("m-2")
        await until(lambda: len(messages.looks) > looks)
        assert messages.looks[-1] == {("m-2", "test")}
        messages.watching.close()

    run(scene)


@pytest.mark.parametrize("error", [DatabaseUnavailable("It is away."), ValueError("a bug")])
def test_watchers_stay_while_looks_fail_and_it_is_said_once(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []

    async def scene(messages: Messages) -> None:
        messages.fails = error
        watch = asyncio.create_task(messages.told(messages.watch("m-1"), told))
        await until(lambda: len(messages.looks) > 3)
        messages.fails = None
        messages.states["m-1"] = State.HANDLED
        await watch

    run(scene)
    assert told == ["waiting", "handled"]
    assert caplog.text.count("watched messages show no changes") == 1


def test_a_watcher_hears_when_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching_module, "QUIET_SECONDS", 0.001)
    told: list[str] = []

    async def scene(messages: Messages) -> None:
        watch = asyncio.create_task(messages.told(messages.watch("m-1"), told))
        await until(lambda: told.count("quiet") > 2)
        messages.states["m-1"] = State.HANDLED
        await watch

    run(scene)
    assert (told[0], told[1], told[-1]) == ("waiting", "quiet", "handled")


def test_all_streams_end_when_the_gateway_stops_and_later_ones_too() -> None:
    told: list[str] = []

    async def scene(messages: Messages) -> None:
        watches = [asyncio.create_task(messages.told(messages.watch(f"m-{n}"), told)) for n in range(3)]
        await until(lambda: len(told) == 3)
        messages.watching.close()
        await asyncio.gather(*watches)
        await messages.told(messages.watch("m-late"), told)

    run(scene)
    assert told == ["waiting"] * 4


def test_there_is_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching_module, "MAX_WATCHERS", 2)

    async def scene(messages: Messages) -> None:
        first, _ = messages.watch("m-1"), messages.watch("m-1")
        assert messages.watching.is_full
        messages.watching.remove(first)
        assert not messages.watching.is_full
        messages.watching.close()

    run(scene)
