"""`ackline up`: all of Ackline on one machine, with a broker, SQLite and a mail sink, until Ctrl-C."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path

import click

from ackline.infra import screen
from ackline.infra.broker import launch
from ackline.infra.data_folder import claim
from ackline.infra.errors import AcklineError
from ackline.infra.names import is_job_queue
from ackline.infra.ports import LOOPBACK, free_port, is_free
from ackline.infra.private_file import write_private
from ackline.infra.running_broker import Broker
from ackline.infra.settings import UP_FILE, Settings, settings
from ackline.infra.sink import mail_folder
from ackline.infra.supervisor import Role, Supervisor
from ackline.infra.topology_commands import consumer_queues

#: Seconds that a role of `ackline up` waits for what runs when it stops; all of it stops within 15.
_GRACE_SECONDS = 3.0


@click.command()
@click.option("--demo", is_flag=True, help="Send some hundred mails, of which some fail: something to work through.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where everything is kept. [ACKLINE_DATA_DIR]")
@click.option(
    "--port", type=click.IntRange(0, 65535), help="Port of the gateway; 0: a free one. [ACKLINE_GATEWAY_PORT]"
)
@click.option("--desk-port", type=click.IntRange(0, 65535), help="Port of the desk; 0: a free one. [ACKLINE_DESK_PORT]")
@click.option(
    "--with-flower", is_flag=True, help="Flower too, a page of the workers of jobs. Port: ACKLINE_FLOWER_PORT."
)
def up(demo: bool, data_dir: Path | None, port: int | None, desk_port: int | None, with_flower: bool) -> None:
    """Run all of Ackline on this machine: a broker, the roles, a mail sink. Ctrl-C stops all of it."""
    if data_dir is not None:
        os.environ["ACKLINE_DATA_DIR"] = str(data_dir)
    if port is not None:
        os.environ["ACKLINE_GATEWAY_PORT"] = str(port)
    if desk_port is not None:
        os.environ["ACKLINE_DESK_PORT"] = str(desk_port)
    folder = settings().data_dir.absolute()
    prefix = "" if data_dir is None else f"ACKLINE_DATA_DIR={shlex.quote(str(folder))} "
    try:
        with _signals(), claim(folder):
            (folder / UP_FILE).unlink(missing_ok=True)  # of one that was killed: its broker is gone
            settings.cache_clear()
            _run(settings(), demo=demo, with_flower=with_flower, prefix=prefix)
    except _Stopped:
        _say("Stopped. Everything is kept in " + str(folder))


def _run(configured: Settings, *, demo: bool, with_flower: bool, prefix: str) -> None:
    """Start everything, show where it is, keep it running. Ends by `_Stopped`, or by the error that ended it."""
    gateway_port = _port("gateway", configured.gateway_port, "--port")
    desk_port = _port("desk", configured.desk_port, "--desk-port", gateway_port)
    ports = {"gateway_port": gateway_port, "desk_port": desk_port}
    if with_flower:
        ports["flower_port"] = _port("flower", configured.flower_port, None, gateway_port, desk_port)
    with launch(configured, data_dir=configured.data_dir, say=_say) as broker:
        running = _with_addresses(configured, broker, ports)
        supervisor = Supervisor(
            _roles(running, own_sink=configured.smtp_url is None, with_flower=with_flower),
            log_folder=running.data_dir / "logs",
            say=_say,
            broker=broker,
        )
        with _ending(supervisor), _told_to_others(running):
            supervisor.start()
            gateway = f"http://{_reachable(running.gateway_host)}:{running.gateway_port}"
            desk = f"http://{_reachable(running.desk_host)}:{running.desk_port}"
            flower = f"http://{_reachable(running.flower_host)}:{running.flower_port}" if with_flower else None
            consumers = [queue.name for queue in consumer_queues(running)]
            screen.show(running, broker, gateway=gateway, desk=desk, consumers=consumers, flower=flower, prefix=prefix)
            if demo:
                _feed(running)
            supervisor.watch()


def _port(role: str, port: int, option: str | None, *besides: int) -> int:
    """The port that *role* will have, not *besides*. Raises `AcklineError` when another program listens there."""
    if port == 0:
        return free_port(besides=besides)
    if port in besides or not is_free(port):
        ways = f"ACKLINE_{role.upper()}_PORT" + (f" or {option}" if option else "")
        raise AcklineError(
            f"Port {port}, which the {role} needs, is taken by another program: "
            f"stop that, or choose another port with {ways}."
        )
    return port


def _with_addresses(configured: Settings, broker: Broker, ports: dict[str, int]) -> Settings:
    """The settings with everything that has become known: what each role is told."""
    smtp_url = configured.smtp_url
    if smtp_url is None:
        from ackline.infra.sink_server import settle_port  # needs aiosmtpd, which only this case needs

        smtp_url = f"smtp://{LOOPBACK}:{settle_port(mail_folder(configured))}"
    return configured.model_copy(
        update={
            "amqp_url": broker.amqp_url,
            "management_url": broker.management_url,
            "data_dir": configured.data_dir.absolute(),
            "database_url": configured.database,
            "smtp_url": smtp_url,
            "grace_seconds": min(configured.grace_seconds, _GRACE_SECONDS),
        }
        | ports
    )


def _roles(running: Settings, *, own_sink: bool, with_flower: bool) -> list[Role]:
    """What runs, in the order of starting: the reviewer first, since it brings the database's tables up to date."""
    told = {
        "ACKLINE_AMQP_URL": running.broker,
        "ACKLINE_DATA_DIR": str(running.data_dir),
        "ACKLINE_DATABASE_URL": running.database,
        "ACKLINE_SMTP_URL": running.smtp_url or "",
        "ACKLINE_GATEWAY_PORT": str(running.gateway_port),
        "ACKLINE_DESK_PORT": str(running.desk_port),
        "ACKLINE_FLOWER_PORT": str(running.flower_port),
        "ACKLINE_GRACE_SECONDS": str(running.grace_seconds),
        "PYTHONUNBUFFERED": "1",  # so that a log is complete when its role dies
    }
    if running.management_url is not None:
        told["ACKLINE_MANAGEMENT_URL"] = running.management_url

    def role(name: str, *arguments: str, ready_url: str | None = None) -> Role:
        return Role(name, (sys.executable, "-m", "ackline.infra", name, *arguments), told, ready_url)

    roles = [role("reviewer"), role("relay")]
    are_jobs = [is_job_queue(queue.name) for queue in consumer_queues(running)]
    if not (are_jobs and all(are_jobs)):  # of an application that has neither, the worker says so
        roles.append(role("worker"))
    if any(are_jobs):
        roles.append(role("jobs"))
    # Schedules of jobs may be added while all of this runs.
    if any(are_jobs) or any(point.load()(running) for point in entry_points(group="ackline.schedules")):
        roles.append(role("beat"))
    if own_sink:
        sink_port = str(running.smtp_url).rpartition(":")[2]
        roles.insert(0, role("sink", "run", "--port", sink_port))
    gateway = f"http://{_reachable(running.gateway_host)}:{running.gateway_port}/readyz"
    desk = f"http://{_reachable(running.desk_host)}:{running.desk_port}/readyz"
    roles += [role("gateway", ready_url=gateway), role("desk", ready_url=desk)]
    if with_flower:
        roles.append(role("flower"))
    return roles


def _reachable(host: str) -> str:
    """Where a client on this machine reaches a server that listens on *host*."""
    return LOOPBACK if host in ("0.0.0.0", "::") else host  # noqa: S104


def _feed(running: Settings) -> None:
    """Let the demonstration send its messages, beside what runs. It is above this package: found by its name."""
    found = entry_points(group="ackline.demo")
    if not found:
        raise AcklineError("This installation has no demonstration (entry point ackline.demo).")
    feed: Callable[[Settings, Callable[[str], None]], None] = next(iter(found)).load()

    def run() -> None:
        try:
            feed(running, _say)
        except AcklineError as error:
            _say(f"The demonstration ended early: {error}")

    threading.Thread(target=run, name="demo", daemon=True).start()


@contextlib.contextmanager
def _ending(supervisor: Supervisor) -> Iterator[None]:
    """Stop everything when the block ends, however it does."""
    try:
        yield
    finally:
        _say("Stopping; this takes up to 15 seconds.")
        supervisor.stop()


@contextlib.contextmanager
def _told_to_others(running: Settings) -> Iterator[None]:
    """Let `ackline dlq list` in another terminal find this broker, and the application, while the block runs."""
    file = running.data_dir / UP_FILE
    told = {
        "amqp_url": running.amqp_url,
        "management_url": running.management_url,
        "smtp_url": running.smtp_url,
        "app": running.app,
    }
    write_private(file, json.dumps(told, indent=2))
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


class _Stopped(BaseException):
    """Somebody asked to stop. Not an `Exception`: nothing on the way may take it for a failure."""


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Raise `_Stopped` in the block at the first Ctrl-C or SIGTERM; later ones do not disturb the stopping."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def on_signal(number: int, frame: object) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise _Stopped

    before = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(sentence: str) -> None:
    """Tell whoever watches. A terminal or a pipe that is gone must not keep anything from being stopped."""
    with contextlib.suppress(OSError):
        print(sentence, flush=True)
