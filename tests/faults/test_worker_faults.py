"""Everything that can happen to workers, one fault after the other, in the middle of their work: nothing is lost."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from ackline.infra.link import address
from ackline.infra.management import Management
from ackline.infra.names import DEAD, UNROUTED
from ackline.infra.running_broker import Broker
from ackline.infra.settings import Settings
from ackline.infra.topology import ConsumerQueue, declare
from ackline.infra.wire import uuid7
from ackline.producer import Publisher, PublishError
from tests import tallied
from tests.broker import own, settings_for
from tests.depths import depths
from tests.proxy import Proxy
from tests.rabbitmqctl import rabbitmqctl
from tests.roles import RoleProcess, role
from tests.tallied import ASYNC, CONSUMERS, ECHO, PLAIN, Tallied
from tests.waiting import until

LONG = bool(os.environ.get("ACKLINE_TEST_LONG"))
#: Messages are sent slice by slice, and when a quarter of a slice is handled comes a fault.
MESSAGES, FAULTS = (50_000, 25) if LONG else (4_200, 6)
SLICE = MESSAGES // FAULTS
WORKERS, PROCESSES = (2, 2) if LONG else (1, 2)
#: Consumers of all processes.
EVERYBODY = WORKERS * PROCESSES * len(CONSUMERS)
#: Seconds for which a process is stopped at least; and then until the broker has given it up.
STOPPED = 90.0 if LONG else 0.0
#: Seconds between heartbeats, fewer in the short form, so that a silence is noticed soon.
HEARTBEAT = 15 if LONG else 5
DEADLINE = 600.0
#: RabbitMQ gives a message up that was delivered so often.
DELIVERY_LIMIT = 20

pytestmark = [pytest.mark.faults, pytest.mark.broker, pytest.mark.timeout(3600 if LONG else 900)]


class Network(Protocol):
    """What is between the workers and the broker."""

    #: The broker's, for who is behind it.
    url: str

    def cut(self) -> None:
        """Let nothing through, and tell nobody."""

    def mend(self) -> None:
        """Let everything through again."""


class LostPackets:
    """Drops all packets of the broker's port, in a network namespace of this thread and what it starts."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._port = address(url).rpartition(":")[2]

    def cut(self) -> None:
        """See `Network`."""
        self._rules("-I")

    def mend(self) -> None:
        """See `Network`."""
        self._rules("-D")

    def _rules(self, change: str) -> None:
        for side in ("--dport", "--sport"):
            command = ["iptables", "-w", change, "INPUT", "-i", "lo", "-p", "tcp", side, self._port, "-j", "DROP"]
            subprocess.run(command, check=True, capture_output=True)


@contextlib.contextmanager
def _own_network() -> Iterator[bool]:
    """Enter a network namespace in which packets can be lost; whether there is one, for root in the long form."""
    with contextlib.ExitStack() as stack:
        yield LONG and _entered(stack)


def _entered(stack: contextlib.ExitStack) -> bool:
    libc, new_network = ctypes.CDLL(None, use_errno=True), 0x40000000
    outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    stack.callback(os.close, outside)
    if libc.unshare(new_network) != 0:
        return False
    stack.callback(libc.setns, outside, new_network)
    commands = (["ip", "link", "set", "lo", "up"], ["iptables", "-w", "-L", "-n"])
    try:
        return all(subprocess.run(command, capture_output=True, check=False).returncode == 0 for command in commands)
    except FileNotFoundError:
        return False


class Faults:
    """Strikes the workers, or what they depend on. Each fault is over when its method returns."""

    def __init__(
        self,
        broker: Broker,
        settings: Settings,
        network: Network,
        workers: list[RoleProcess],
        chance: random.Random,
    ) -> None:
        self._broker = broker
        self._settings = settings
        self._network = network
        self._workers = workers
        self._chance = chance
        self._all: list[Callable[[], None]] = [
            self.process_killed,
            self.process_stopped,
            self.broker_killed,
            self.broker_restarted,
            self.connection_closed,
            self.network_cut,
        ]

    def of_all_kinds(self, count: int) -> list[Callable[[], None]]:
        """So many faults in a random order, each kind at least once."""
        chosen = self._all + self._chance.choices(self._all, k=count - len(self._all))
        self._chance.shuffle(chosen)
        return chosen

    def process_killed(self) -> None:
        os.kill(self._process(), signal.SIGKILL)

    def process_stopped(self) -> None:
        """As a virtual machine is that is moved, or a laptop that is closed."""
        until(lambda: self._consumers() == EVERYBODY, deadline=DEADLINE, what="every process to consume")
        pid = self._process()
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(STOPPED)
            until(lambda: self._consumers() < EVERYBODY, deadline=DEADLINE, what="the broker to give the process up")
        finally:
            os.kill(pid, signal.SIGCONT)

    def broker_killed(self) -> None:
        self._broker.kill()
        self._broker.start()

    def broker_restarted(self) -> None:
        self._broker.restart()

    def connection_closed(self) -> None:
        def of_workers() -> list[str]:
            listed = rabbitmqctl(self._broker, "-q", "list_connections", "pid", "client_properties")
            return re.findall(r"^(<\S+>)\s.*worker (?:consumes|publishes)", listed, re.MULTILINE)

        chosen = self._chance.choice(until(of_workers, what="the workers' connections"))
        rabbitmqctl(self._broker, "close_connection", chosen, "by a test")

    def network_cut(self) -> None:
        self._network.cut()
        try:
            until(lambda: self._consumers() == 0, deadline=DEADLINE, what="the broker to give all workers up")
        finally:
            self._network.mend()

    def _process(self) -> int:
        """One of the processes in which handlers run."""

        def running() -> list[int]:
            parent = str(self._chance.choice(self._workers).pid)
            listed = subprocess.run(["ps", "-o", "pid=", "--ppid", parent], capture_output=True, text=True, check=False)
            return [int(pid) for pid in listed.stdout.split()]

        return self._chance.choice(until(running, what="a worker process"))

    def _consumers(self) -> int:
        """How many the broker has, by its management API, which has a port of its own."""
        with Management(self._settings, timeout=60) as management:
            listed = management.get("queues/{vhost}")
        return sum(queue.get("consumers", 0) for queue in listed if queue["name"] in CONSUMERS)


def test_whatever_happens_to_the_workers_every_message_is_handled_and_none_is_a_dead_letter(
    tmp_path: Path, say: Callable[[str], None]
) -> None:
    seed = int(os.environ.get("ACKLINE_TEST_SEED", random.randrange(10**6)))
    chance = random.Random(seed)
    print(f"ACKLINE_TEST_SEED={seed}")
    struck: Counter[str] = Counter()
    in_the_middle = 0
    with contextlib.ExitStack() as stack:
        loses_packets = stack.enter_context(_own_network())
        broker = stack.enter_context(own(tmp_path / "broker"))
        url = broker.amqp_url
        network = LostPackets(url) if loses_packets else stack.enter_context(Proxy(url))
        types = {PLAIN: "test.tallied", ASYNC: "test.tallied", ECHO: "test.tallied.echo"}
        declare(url, [ConsumerQueue(name, (type_,)) for name, type_ in types.items()])
        environment = {tallied.FOLDER: str(tmp_path), tallied.HEARTBEAT: str(HEARTBEAT)}
        command = ("worker", "--processes", str(PROCESSES), "--concurrency", "2")
        workers = [
            stack.enter_context(role(_settings(network.url, broker, tmp_path / f"{n}"), *command, **environment))
            for n in range(WORKERS)
        ]
        publisher = stack.enter_context(Publisher(url))
        settings = _settings(url, broker, tmp_path / "management")
        faults = Faults(broker, settings, network, workers, chance)
        for number, strike in enumerate(faults.of_all_kinds(FAULTS)):
            before = number * SLICE
            _publish(publisher, range(before, before + SLICE))
            until(lambda: _least(tmp_path) > before + SLICE // 4, deadline=DEADLINE, what="some of the slice")  # noqa: B023
            in_the_middle += _least(tmp_path) < before + SLICE
            struck[strike.__name__] += 1
            strike()
        everything = tallied.expected(FAULTS * SLICE)
        for consumer, numbers in everything.items():
            until(
                lambda: tallied.handled(tmp_path, consumer).keys() == numbers,  # noqa: B023
                deadline=DEADLINE,
                what=f"every message handled by {consumer}",
            )
        until(lambda: set(depths(settings).values()) == {0}, what="empty queues")
        assert {DEAD, UNROUTED} <= depths(settings).keys()
        assert [worker.stop() for worker in workers] == [0] * WORKERS
        version = broker.description

    duplicates = {
        consumer: sum(tallied.handled(tmp_path, consumer).values()) - len(numbers)
        for consumer, numbers in everything.items()
    }
    highest = tallied.highest_count(tmp_path)
    kinds = ", ".join(f"{count} x {fault.replace('_', ' ')}" for fault, count in sorted(struck.items()))
    say(
        f"{version.split(' from')[0]} seed {seed}: {FAULTS * SLICE} messages; {kinds} "
        f"({'packets lost' if loses_packets else 'by a proxy'}), {in_the_middle} of {FAULTS} in the middle of a slice; "
        f"none lost, no dead letter; handled again: {duplicates}; highest x-delivery-count {highest}"
    )
    assert in_the_middle, "the faults came after the work; nothing was shown"
    assert highest < DELIVERY_LIMIT


def _settings(url: str, broker: Broker, folder: Path) -> Settings:
    return settings_for(url, broker.management_url, folder).model_copy(update={"app": (tallied.APP,)})


def _publish(publisher: Publisher, numbers: range) -> None:
    """Publish these until all are confirmed, each under an id of its own: a broker that comes back refuses some."""
    ids = {number: uuid7() for number in numbers}

    def confirmed() -> bool:
        futures = {
            number: publisher.submit(Tallied(number=number), message_id=ids[number], timeout=120) for number in ids
        }
        for number, future in futures.items():
            with contextlib.suppress(PublishError):
                future.result(200)
                del ids[number]
        return not ids

    until(confirmed, deadline=DEADLINE, what="every message to be confirmed")


def _least(folder: Path) -> int:
    """How many messages the slower of the consumers has handled."""
    return min(len(tallied.handled(folder, consumer)) for consumer in (PLAIN, ASYNC))
