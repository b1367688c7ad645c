"""What `ackline up` shows when all runs: where everything is, what to try, how to stop."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from ackline.infra.names import is_job_queue
from ackline.infra.running_broker import Broker, credentials
from ackline.infra.settings import Settings

#: The consumer of what is on the screen to try, in the application that `ackline up` has when nothing else is said.
EMAIL = "email"


def show(
    of: Settings,
    broker: Broker,
    *,
    gateway: str,
    desk: str,
    consumers: Collection[str],
    flower: str | None = None,
    prefix: str = "",
) -> None:
    """Print the screen on standard output: with colours on a terminal, plain text elsewhere.

    *gateway*, *desk* and *flower* are addresses, *consumers* the queues of the application, *prefix* is what commands
    in another terminal need before them.
    """
    console = Console(highlight=False, soft_wrap=True)
    console.print()
    console.print(Text("Ackline is running.", style="bold green"))
    console.print()
    for name, value, note in _places(of, broker, gateway, desk, flower):
        console.print(Text.assemble(f"  {name:<15}", (value, "bold"), f"   {note}" if note else ""))
    console.print()
    for title, commands in _tries(gateway, prefix + command(), consumers):
        console.print(f"  {title}")
        for line in commands:
            console.print(Text(f"    {line}", style="cyan"))
        console.print()
    console.print(f"  Broker: {broker.description}", markup=False)
    console.print("  Ctrl-C stops all of it. What is in the queues and in the database is found at the next start.")
    console.print()


def command() -> str:
    """How this user calls `ackline`: by its path when it is not on PATH, as after `make up`."""
    if shutil.which("ackline") is not None:
        return "ackline"
    called = Path(sys.argv[0])
    return str(called) if called.name == "ackline" else "python -m ackline.infra"


def _places(
    of: Settings, broker: Broker, gateway: str, desk: str, flower: str | None
) -> Sequence[tuple[str, str, str]]:
    mail = of.data_dir / "mail"
    user, password = credentials(broker.amqp_url)
    sign_in = f"user {user}, password {password}" if broker.can_stop else "sign in as in ACKLINE_AMQP_URL"
    amqp = broker.amqp_url if broker.can_stop else "as ACKLINE_AMQP_URL says"
    return [
        ("Gateway", gateway, f"try it out: {gateway}/docs"),
        ("Desk", desk, f"dead letters over HTTP: {desk}/docs"),
        ("Management UI", broker.management_url or "unknown", sign_in),
        *([("Flower", flower, "workers of jobs; sign in as to the management UI")] if flower else []),
        ("AMQP", amqp, ""),
        ("Mails", str(mail), "what email.send sent, one file each")
        if mail.is_dir()
        else ("Mails", "ACKLINE_SMTP_URL", ""),
        ("Logs", str(of.data_dir / "logs"), ""),
    ]


def _tries(gateway: str, ackline: str, consumers: Collection[str]) -> Iterator[tuple[str, Sequence[str]]]:
    if any(map(is_job_queue, consumers)):
        yield (
            "See the jobs that there are, and submit one:",
            [
                f"{ackline} jobs list",
                f"{ackline} jobs run NAME KEY=VALUE...",
            ],
        )
    if EMAIL not in consumers:
        yield "See what waits for review:", [f"{ackline} dlq list"]
        return
    body = '{"to":"ada@example.test","subject":"Hello","body":"Hi"}'
    yield (
        "Send a message:",
        [
            f"curl -X POST {gateway}/v1/messages/email.send -H 'content-type: application/json' \\",
            f"  -d '{body}'",
        ],
    )
    yield (
        "Make the next ones fail, and see what waits for review:",
        [
            f"{ackline} sink refuse ada@example.test --code 550",
            f"{ackline} dlq list",
        ],
    )
