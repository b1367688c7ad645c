"""`ackline doctor`: whether everything that Ackline stands on is there, and what to do about what is not.

It changes nothing, and goes on after a fault, so that one run names them all.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import smtplib
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import click
import httpx

from ackline.infra.errors import AcklineError
from ackline.infra.link import Link, address
from ackline.infra.management import Management, ManagementRefused, ManagementUnreachable
from ackline.infra.settings import Settings, settings
from ackline.infra.topology import CONSISTENT_HASH, ConsumerQueue, Topology
from ackline.infra.topology_commands import consumer_queues, topology_for
from ackline.infra.topology_diff import diff
from ackline.infra.wire import SLOT

#: Seconds that a server may take for an answer.
ANSWER_SECONDS = 5.0
#: Bytes that the data folder should have free; SQLite needs room for its log, and mails and broker data grow.
ROOM = 200 * 1024 * 1024
#: At-least-once dead-lettering and `reject-publish` by quorum queues came with it.
OLDEST_BROKER = (3, 10)


class State(StrEnum):
    """What became of a check. Only a fault makes the command end with 1."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check says, in a sentence."""

    check: str
    state: State
    says: str


Said = Iterator[tuple[State, str]]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON, when all checks are done.")
def doctor(as_json: bool) -> None:
    """Check settings, data folder, broker, topology, database, mail server, and the ports of gateway and desk.

    One line for each check says `ok`, or what is wrong and what to do about it. Ends with 1 when something is wrong.
    """
    findings = []
    for finding in examine():
        findings.append(finding)
        if not as_json:
            print(f"{finding.state:<8} {finding.check:<12} {finding.says}", flush=True)
    healthy = all(finding.state != State.FAULT for finding in findings)
    if as_json:
        print(json.dumps({"ok": healthy, "findings": [asdict(finding) for finding in findings]}, indent=2))
    sys.exit(0 if healthy else 1)


def examine() -> Iterator[Finding]:
    """Run the checks on the settings of this process, and say what each finds as soon as it has. Never raises."""
    try:
        configured = settings()
    except AcklineError as error:
        yield Finding("settings", State.FAULT, str(error))
        return
    yield Finding("settings", State.OK, "They can be read.")
    yield from _findings("data folder", lambda: data_folder(configured.data_dir))
    yield from _broker_findings(configured)
    yield from _findings("database", lambda: database(configured.database))
    if configured.smtp_url is not None:
        url = configured.smtp_url
        yield from _findings("mail server", lambda: mail_server(url))
    yield from _findings("gateway", lambda: port_of("gateway", configured.gateway_host, configured.gateway_port))
    yield from _findings("desk", lambda: port_of("desk", configured.desk_host, configured.desk_port))


def _findings(check: str, run: Callable[[], Iterable[tuple[State, str]]]) -> Iterator[Finding]:
    """What *run* says, and as a fault the sentence of what it raises."""
    try:
        for state, says in run():
            yield Finding(check, state, says)
    except AcklineError as error:
        yield Finding(check, State.FAULT, str(error))
    except Exception as error:
        yield Finding(check, State.FAULT, f"This check failed itself ({type(error).__name__}: {error}).")


def _broker_findings(configured: Settings) -> Iterator[Finding]:
    consumers: list[ConsumerQueue] = []
    yield from _findings("application", lambda: application(consumers))
    answers = list(_findings("broker", lambda: broker(configured.broker)))
    yield from answers
    if any(finding.state == State.FAULT for finding in answers):
        return
    with Management(configured, timeout=ANSWER_SECONDS) as management:
        try:
            overview = management.get("overview")
        except ManagementUnreachable as error:
            yield Finding("management", State.FAULT, str(error))
            says = "Not checked: the management API is needed for it."
            yield from (Finding(check, State.SKIPPED, says) for check in ("permissions", "topology", "alarms"))
            return
        yield Finding("management", State.OK, f"The management API answers at {management.url}.")
        wanted = topology_for(overview, consumers)
        yield from _findings("permissions", lambda: permissions(configured.broker, wanted, management))
        yield from _findings("topology", lambda: declared(wanted, management))
        yield from _findings("order", lambda: order(wanted, consumers))
        yield from _findings("alarms", lambda: alarms(management))
        yield from _findings("features", lambda: features(management))


def data_folder(folder: Path) -> Said:
    """Whether files can be written to *folder*, or it can be created."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        yield State.FAULT, f"{there} is a file: move it away, or name another folder with ACKLINE_DATA_DIR."
        return
    try:
        with tempfile.TemporaryFile(dir=there) as probe:
            probe.write(bytes(65536))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            yield State.FAULT, f"{folder} is full: free space, or name another folder with ACKLINE_DATA_DIR."
        else:
            yield State.FAULT, f"{folder} cannot be written ({error.strerror}): its owner must allow it to this user."
        return
    free = shutil.disk_usage(there).free
    if free < ROOM:
        yield State.WARNING, f"{folder} has {_size(free)} free, which is soon full: free space."
    elif not folder.exists():
        yield State.OK, f"{folder} does not exist yet and can be created, with {_size(free)} free."
    else:
        yield State.OK, f"{folder} can be written and has {_size(free)} free."


def application(consumers: list[ConsumerQueue]) -> Said:
    """Whether the modules of ACKLINE_APP can be imported; appends their consumers to *consumers*."""
    modules = ", ".join(settings().app)
    try:
        consumers += consumer_queues()
    except AcklineError:
        raise
    except Exception as error:  # of the user's module
        yield State.FAULT, f"ACKLINE_APP ({modules}) cannot be imported: {type(error).__name__}: {error}."
        return
    names = ", ".join(sorted(consumer.name for consumer in consumers))
    yield State.OK, f"{modules}: {f'consumers {names}' if names else 'no consumers'}."


def broker(url: str) -> Said:
    """Whether the broker takes a connection, and is of a version that Ackline works with."""
    versions: list[str] = []

    def on_up(connection: Any) -> None:
        versions.append(str((connection.server_properties or {}).get("version", "0")))

    link = Link(url, "ackline doctor", on_up=on_up)
    link.start()
    try:
        link.wait_up(ANSWER_SECONDS)
    finally:
        link.stop()
    where = address(url)
    version = versions[0] if versions else "0"
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST_BROKER:
        oldest = ".".join(map(str, OLDEST_BROKER))
        yield (
            State.FAULT,
            f"RabbitMQ {version} at {where} is too old to keep the promise: upgrade to {oldest} or later.",
        )
    elif numbers < (4,):
        yield State.WARNING, f"RabbitMQ {version} at {where} answers, but is out of support: upgrade to 4.x."
    else:
        yield State.OK, f"RabbitMQ {version} answers at {where}."


def permissions(url: str, wanted: Topology, management: Management) -> Said:
    """Whether the user may configure, write and read all of the topology, where it may look that up."""
    user = unquote(urlsplit(url).username or "guest")
    try:
        held = management.get(f"permissions/{{vhost}}/{quote(user, safe='')}")
    except ManagementRefused:
        yield (
            State.SKIPPED,
            f"Not known: only an administrator may look up permissions, and the user {user!r} is none.",
        )
        return
    names = [entity.name for entity in (*wanted.exchanges, *wanted.queues)]
    faults = {right: refused for right in ("configure", "write", "read") if (refused := _refused(held[right], names))}
    mend = f"rabbitmqctl set_permissions -p '{management.vhost}' '{user}' '.*' '.*' '.*'"
    for right, refused in faults.items():
        others = f" and {len(refused) - 1} more" if len(refused) > 1 else ""
        yield State.FAULT, f"The user {user!r} may not {right} {refused[0]!r}{others}; to permit it: {mend}."
    if not faults:
        yield State.OK, f"The user {user!r} may configure, write and read all of it on vhost {management.vhost!r}."


def _refused(pattern: str, names: list[str]) -> list[str]:
    """The *names* that RabbitMQ refuses to a user with that *pattern*; an empty one permits nothing."""
    try:
        allowed = re.compile(pattern or "^$")
    except re.error:  # RabbitMQ's expressions are PCRE; one that Python does not know is not judged
        return []
    return [name for name in names if not allowed.search(name)]


def declared(wanted: Topology, management: Management) -> Said:
    """Each difference between the topology and the live broker."""
    differences = diff(wanted, management)
    entities = len(wanted.exchanges) + len(wanted.queues)
    if len(differences) == entities and all("is missing" in difference for difference in differences):
        yield State.FAULT, "Nothing of it exists yet: `ackline topology apply` creates it, and so does any role."
        return
    for difference in differences:
        yield State.FAULT, f"{difference[0].upper()}{difference[1:]}."
    if not differences:
        yield State.OK, f"{len(wanted.exchanges)} exchanges and {len(wanted.queues)} queues are as declared."


def order(wanted: Topology, consumers: Iterable[ConsumerQueue]) -> Said:
    """Whether the keys of foreign clients can be spread over the shards of the ordered consumers, if there are any."""
    ordered = [consumer for consumer in consumers if consumer.shards]
    if not ordered:
        return
    if any(exchange.type == CONSISTENT_HASH for exchange in wanted.exchanges):
        names = ", ".join(consumer.name for consumer in ordered)
        yield State.OK, f"Ordered consumers: {names}. The broker hashes the keys of messages without a slot."
        return
    yield (
        State.WARNING,
        (
            f"The plugin rabbitmq_consistent_hash_exchange is off: messages without the header {SLOT} all go to "
            f"{ordered[0].queues[0]!r}. To spread them: rabbitmq-plugins enable rabbitmq_consistent_hash_exchange; "
            f"then, while none of them waits, delete the exchange {ordered[0].foreign!r} and apply the topology again."
        ),
    )


def alarms(management: Management) -> Said:
    """Alarms and room of each node of the broker, where the user may look them up."""
    try:
        nodes = management.get("nodes")
    except ManagementRefused:
        yield State.SKIPPED, "Not known: give the user the tag `monitoring` to see alarms and free disk."
        return
    for node in nodes:
        yield from _node(node)


def _node(node: dict[str, Any]) -> Said:
    name = node["name"]
    if not node.get("running"):
        yield State.FAULT, f"The node {name} does not run: start it, for queues may have lost their quorum."
        return
    free, limit = node.get("disk_free"), node.get("disk_free_limit")
    room = f"{_size(free)} disk free" if isinstance(free, int) else "unknown disk space"
    faults = list(_node_faults(node, room))
    yield from ((State.FAULT, fault) for fault in faults)
    if not faults and isinstance(free, int) and isinstance(limit, int) and free < max(2 * limit, ROOM):
        yield State.WARNING, f"The node {name} has {room} and blocks publishing below {_size(limit)}: free space."
    elif not faults:
        yield State.OK, f"None on {name}; {room}."


def _node_faults(node: dict[str, Any], room: str) -> Iterator[str]:
    name = node["name"]
    if node.get("mem_alarm"):
        yield (
            f"The node {name} has a memory alarm ({_size(node['mem_used'])} used) and blocks publishing: "
            "drain its queues, or give it more memory."
        )
    if node.get("disk_free_alarm"):
        yield f"The node {name} has a disk alarm ({room}) and blocks publishing: free space there."
    if node.get("partitions"):
        yield f"The node {name} is separated from {', '.join(node['partitions'])}: mend the network between them."


def features(management: Management) -> Said:
    """Feature flags that are off, and deprecated features that are used, where the broker tells."""
    try:
        flags = management.get("feature-flags")
    except ManagementUnreachable:
        yield State.SKIPPED, "Not known: the broker does not tell its feature flags to this user."
        return
    off = [flag["name"] for flag in flags if flag["state"] == "disabled" and flag["stability"] != "experimental"]
    try:
        used = [feature["name"] for feature in management.get("deprecated-features/used")]
    except ManagementUnreachable:  # before 3.13
        used = []
    if "quorum_queue" in off:
        yield State.FAULT, "Quorum queues are off: rabbitmqctl enable_feature_flag quorum_queue."
    elif off:
        yield State.WARNING, f"Off are {', '.join(off)}; before an upgrade: rabbitmqctl enable_feature_flag all."
    if used:
        yield State.WARNING, f"Somebody on this broker uses {', '.join(used)}, which a coming RabbitMQ drops."
    if not off and not used:
        yield State.OK, "Every stable feature flag is on, and no deprecated feature is used."


def database(url: str) -> Said:
    """Whether the database answers and its tables are those of this Ackline."""
    try:
        from alembic.migration import MigrationContext
        from alembic.script import ScriptDirectory

        from ackline.infra import database as databases
    except ModuleNotFoundError as error:
        yield State.SKIPPED, f"Not checked: {error.name} is not installed here; pip install 'ackline[dlq]' brings it."
        return
    engine = databases.connect(url)
    never = "`ackline reviewer` and `ackline up` create them: start one."
    try:
        where = str(engine.url.database) if engine.dialect.name == "sqlite" else engine.url.render_as_string()
        if engine.dialect.name == "sqlite" and not Path(where).exists():
            yield State.FAULT, f"{where} and its tables do not exist yet; {never}"
            return
        with databases.reading(engine) as connection:
            found = set(MigrationContext.configure(connection).get_current_heads())
            scripts = ScriptDirectory.from_config(databases.migrations(connection))
            newest, known = set(scripts.get_heads()), {script.revision for script in scripts.walk_revisions()}
    finally:
        engine.dispose()
    if not found:
        yield State.FAULT, f"{where} has no tables yet; {never}"
    elif not found <= known:
        yield State.FAULT, f"{where} is of a newer Ackline (version {', '.join(sorted(found))}): upgrade this one."
    elif found != newest:
        yield (
            State.FAULT,
            f"{where} is of an older Ackline (version {', '.join(sorted(found))}): `ackline reviewer` upgrades it.",
        )
    else:
        yield State.OK, f"{where} answers, and its tables are up to date."


def mail_server(url: str) -> Said:
    """Whether the mail server greets, and takes the user and password if it has some."""
    parts = urlsplit(url)
    kind = {"smtp": smtplib.SMTP, "smtps": smtplib.SMTP_SSL}.get(parts.scheme)
    try:
        where = f"{parts.hostname}:{parts.port or (465 if parts.scheme == 'smtps' else 25)}"
    except ValueError:
        kind = None
    if kind is None or not parts.hostname:
        yield State.FAULT, "ACKLINE_SMTP_URL cannot be used: it must read smtp[s]://[user:password@]host:port."
        return
    try:
        with kind(parts.hostname, parts.port or 0, timeout=ANSWER_SECONDS) as server:
            server.ehlo_or_helo_if_needed()
            if parts.username:
                server.login(unquote(parts.username), unquote(parts.password or ""))
    except smtplib.SMTPAuthenticationError:
        yield State.FAULT, f"{where} refuses the user {unquote(parts.username or '')!r}: correct ACKLINE_SMTP_URL."
    except smtplib.SMTPNotSupportedError:
        yield State.FAULT, f"{where} takes no user and password: leave them out of ACKLINE_SMTP_URL."
    except (smtplib.SMTPException, OSError) as error:
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        yield State.FAULT, f"{where} does not answer as a mail server ({said}): start it, or correct ACKLINE_SMTP_URL."
    else:
        yield State.OK, f"{where} answers."


def port_of(role: str, host: str, port: int) -> Said:
    """Whether the gateway, or the desk, runs on its port, or could."""
    where = f"{f'[{host}]' if ':' in host else host}:{port}"
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE and _serves(role, f"http://{where}"):
            yield State.OK, f"A {role} answers at {where}."
        else:
            why = str(error.strerror).partition(" (")[0]  # Python adds the address, which is there already
            yield State.FAULT, f"A {role} cannot listen on {where} ({why}): choose ACKLINE_{role.upper()}_PORT."
    else:
        yield State.OK, f"None runs at {where}; the port is free."


def _serves(role: str, url: str) -> bool:
    try:
        with httpx.Client(timeout=ANSWER_SECONDS, trust_env=False) as client:
            return bool(client.get(f"{url}/openapi.json").json()["info"]["title"] == f"Ackline {role}")
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return False


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
