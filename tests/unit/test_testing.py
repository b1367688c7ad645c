"""What Ackline gives to the tests of those who publish: a fake publisher, and the fixture that brings it."""

from __future__ import annotations

import asyncio
import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field, SecretStr

from ackline.infra.properties import Properties
from ackline.producer import (
    InvalidMessage,
    MessageTooLarge,
    Nacked,
    Publisher,
    PublisherClosed,
    PublishError,
    PublishTimeout,
    Receipt,
    message,
)
from ackline.producer.message import _contracts
from ackline.producer.testing import FakePublisher, Sent
from tests.documented import write_files
from tests.waiting import until

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _no_contract_outlives_its_test() -> Iterator[None]:
    before = dict(_contracts)
    for type_, model in (("unit.placed", Placed), ("unit.paid", Paid)):
        message(type_, track=type_ == "unit.paid")(model)
    yield
    _contracts.clear()
    _contracts.update(before)


class Placed(BaseModel):
    number: int


class Paid(BaseModel):
    number: int


# --- the same as the real one ---------------------------------------------------------------------------


def _public(cls: type) -> dict[str, Any]:
    """What a class has for everybody: its own and inherited, dunders of context managers included."""
    found = inspect.getmembers_static(cls)
    return {
        name: member
        for name, member in found
        if not name.startswith("_") or name in ("__init__", "__enter__", "__exit__", "__aenter__", "__aexit__")
        if not (inspect.isclass(member) or member in object.__dict__.values())
    }


def _signature(member: Any) -> str:
    function: Any = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
    signature = inspect.signature(function)
    parameters = [f"{p.kind.name} {p.name}: {p.annotation} = {p.default}" for p in signature.parameters.values()]
    return f"{inspect.iscoroutinefunction(function)} {parameters} -> {signature.return_annotation}"


def test_the_fake_has_all_that_the_publisher_has_and_nothing_of_it_is_inherited() -> None:
    for name, member in _public(Publisher).items():
        assert name in vars(FakePublisher), f"FakePublisher.{name} would be the real one"
        fake = vars(FakePublisher)[name]
        assert type(fake) is type(member), name
        if name != "__init__":
            assert _signature(fake) == _signature(member), name


def test_the_fake_is_made_as_the_publisher_is_but_needs_no_address() -> None:
    real, fake = (dict(inspect.signature(cls).parameters) for cls in (Publisher, FakePublisher))
    assert fake.pop("url").default == "amqp://nowhere"
    assert real.pop("url").default is inspect.Parameter.empty
    assert fake == real


# --- what was published ---------------------------------------------------------------------------------


def test_messages_are_kept_in_order_and_found_by_model_or_type() -> None:
    with FakePublisher() as fake:
        first = fake.publish(Placed(number=1), correlation_id="c", headers={"x": 1})
        fake.submit(Paid(number=2)).result()
        assert asyncio.run(fake.apublish(Placed(number=3), message_id="m-3")) == Receipt("m-3", "unit.placed")
    assert [published.message for published in fake.published] == [
        Placed(number=1),
        Paid(number=2),
        Placed(number=3),
    ]
    assert fake.of(Placed) == fake.of("unit.placed") == [Placed(number=1), Placed(number=3)]
    one = fake.published[0]
    assert one == (Placed(number=1), first.message_id, "unit.placed", b'{"number":1}', "c", {"x": 1}, False)


def test_tracking_is_as_the_contract_says_unless_the_call_says_otherwise() -> None:
    fake = FakePublisher()
    for instance in (Placed(number=1), Paid(number=1)):
        for track in (None, True, False):
            fake.publish(instance, track=track)
    assert [published.track for published in fake.published] == [False, True, False, True, True, False]


def test_a_misspelt_type_is_no_empty_list() -> None:
    with pytest.raises(InvalidMessage, match=r"no message type 'unit.place'\. Did you mean unit.placed"):
        FakePublisher().of("unit.place")
    with pytest.raises(InvalidMessage, match="BaseModel is no message"):
        FakePublisher().of(BaseModel)


def test_what_is_ready_made_is_kept_as_it_is() -> None:
    fake = FakePublisher()
    properties = Properties(message_id="m")
    assert fake.send("an.exchange", "key", properties, b"1").result() is None

    async def asend() -> None:
        await fake.asend("an.exchange", "key", properties, b"2")

    asyncio.run(asend())
    assert fake.sent == [Sent("an.exchange", "key", properties, b"1"), Sent("an.exchange", "key", properties, b"2")]
    assert fake.published == []


def test_any_number_of_threads_may_publish() -> None:
    fake = FakePublisher()
    with ThreadPoolExecutor(8) as threads:
        ids = set(threads.map(lambda number: fake.publish(Placed(number=number)).message_id, range(400)))
    assert ids == {published.message_id for published in fake.published}
    assert len(ids) == 400


# --- what is refused ------------------------------------------------------------------------------------


class Unregistered(BaseModel):
    pass


def _read_by_another_name() -> BaseModel:
    @message("unit.odd")
    class Odd(BaseModel):
        number: int = Field(validation_alias="n")

    return Odd.model_validate({"n": 1})


def _mutated() -> BaseModel:
    instance = Placed(number=1)
    instance.number = "many"  # type: ignore[assignment]
    return instance


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (Unregistered, InvalidMessage, "Unregistered is no message"),
        (lambda: Placed.model_construct(number=object()), InvalidMessage, "cannot be written as JSON"),
        (_mutated, InvalidMessage, "its own contract does not accept its JSON .number: Input should be"),
        (_read_by_another_name, InvalidMessage, "No consumer could read this unit.odd: .* .n: Field required"),
    ],
)
def test_what_no_consumer_could_read_is_refused(
    make: Callable[[], BaseModel], error: type[PublishError], said: str
) -> None:
    fake = FakePublisher()
    for publish in (fake.publish, fake.submit, lambda instance: asyncio.run(fake.apublish(instance))):
        with pytest.raises(error, match=said):
            publish(make())
    assert fake.published == []


def test_what_is_too_large_is_refused() -> None:
    @message("unit.large")
    class Large(BaseModel):
        text: str

    fake = FakePublisher()
    frame = 16 * 1024 * 1024 - len('{"text":""}')
    fake.publish(Large(text="x" * frame))
    too_large: Callable[[], object]
    for too_large in (
        lambda: fake.publish(Large(text="x" * (frame + 1))),
        lambda: fake.publish(Placed(number=1), headers={"x": "x" * 140_000}),
        lambda: fake.publish(Placed(number=1), correlation_id="x" * 256),
        lambda: fake.publish(Placed(number=1), headers={"x": object()}),
    ):
        with pytest.raises(MessageTooLarge):
            too_large()
    assert len(fake.published) == 1


def test_what_a_consumer_reads_is_what_is_kept() -> None:
    @message("unit.secret")
    class Secret(BaseModel):
        password: SecretStr

    fake = FakePublisher()
    fake.publish(Secret(password=SecretStr("s3cret")))
    [read] = fake.of(Secret)
    assert read.password.get_secret_value() == "**********", "the secret never left, and a test sees it"


# --- what a test may make happen ------------------------------------------------------------------------


def test_the_next_ones_fail_as_told_each_with_its_own_id_and_then_it_goes_on() -> None:
    fake = FakePublisher()
    fake.fail_next(Nacked("The queue is full"), times=2)
    with pytest.raises(Nacked, match=r"^The queue is full$") as first:
        fake.publish(Placed(number=1), message_id="m-1")
    second = fake.submit(Placed(number=2), message_id="m-2").exception()
    assert isinstance(second, Nacked)
    assert (first.value.message_id, second.message_id) == ("m-1", "m-2")
    fake.publish(Placed(number=3))
    assert fake.of(Placed) == [Placed(number=3)]


def test_held_messages_are_confirmed_when_the_test_says_so_in_their_order() -> None:
    fake = FakePublisher()
    fake.hold()
    futures = [fake.submit(Placed(number=number)) for number in range(3)]
    assert not any(future.done() for future in futures)
    assert not futures[0].cancel()
    assert fake.published == []
    assert [held.body for held in fake.held] == [b'{"number":0}', b'{"number":1}', b'{"number":2}']
    assert fake.problem is not None
    fake.confirm(1)
    assert [future.done() for future in futures] == [True, False, False]
    assert not fake.submit(Placed(number=3)).done()
    fake.confirm()
    assert futures[2].result().type == "unit.placed"
    assert fake.of(Placed) == [Placed(number=number) for number in range(4)]
    assert fake.submit(Placed(number=4)).done()
    assert fake.problem is None


def test_a_held_publish_times_out_and_was_not_published() -> None:
    fake = FakePublisher()
    fake.hold()
    for publish in (fake.publish, lambda *given, **more: asyncio.run(fake.apublish(*given, **more))):
        with pytest.raises(PublishTimeout) as caught:
            publish(Placed(number=1), message_id="m-1", timeout=0.01)
        assert caught.value.message_id == "m-1"
    fake.confirm()
    assert fake.published == []


def test_a_publish_that_is_held_returns_when_another_thread_confirms() -> None:
    fake = FakePublisher()
    fake.hold()
    with ThreadPoolExecutor(1) as thread:
        publishing = thread.submit(fake.publish, Placed(number=1), timeout=120)
        until(lambda: fake.held, what="the publish in the other thread")
        fake.confirm()
        assert publishing.result(120).type == "unit.placed"


def test_deadlines_pass_when_the_test_says_so() -> None:
    fake = FakePublisher()
    fake.hold()
    future = fake.submit(Placed(number=1))
    fake.expire()
    with pytest.raises(PublishTimeout):
        future.result(0)
    assert fake.held == []


def test_what_is_published_after_it_was_closed_fails_and_so_does_what_was_held() -> None:
    fake = FakePublisher()
    fake.hold()
    future = fake.submit(Placed(number=1))
    asyncio.run(fake.aclose())
    assert fake.closed
    for late in (future, fake.submit(Placed(number=2))):
        with pytest.raises(PublisherClosed):
            late.result(0)


def test_nothing_is_needed_to_connect() -> None:
    with FakePublisher.connect(name="x") as fake:
        fake.start()
        fake.wait_until_connected(0)
        assert fake.problem is None

    async def in_asyncio() -> None:
        async with FakePublisher() as asynchronous:
            await asynchronous.apublish(Placed(number=1))
        assert asynchronous.closed

    asyncio.run(in_asyncio())


# --- the fixture ----------------------------------------------------------------------------------------


def _pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """pytest in a folder that knows nothing of this project."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "ACKLINE_"))}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "error", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_the_documented_tests_pass(tmp_path: Path) -> None:
    write_files("publishing.md", "Testing your service", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    done = _pytest(tmp_path, "-q")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_pytest_starts_without_anything_heavy_and_closes_the_fixture_after_each_test(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_it.py").write_text(
        "import sys\n"
        "at_start = set(sys.modules)\n"
        "seen = []\n"
        "def test_it_starts_light():\n"
        "    assert 'ackline.infra.pytest_plugin' in at_start\n"
        "    assert not {'pika', 'pydantic', 'fastapi', 'kombu', 'ackline.producer'} & at_start\n"
        "def test_it_is_given(ackline_publisher):\n"
        "    seen.append(ackline_publisher)\n"
        "def test_it_was_closed(ackline_publisher):\n"
        "    assert seen[0].closed and seen[0] is not ackline_publisher and not ackline_publisher.closed\n"
    )
    done = _pytest(tmp_path, "-q")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
