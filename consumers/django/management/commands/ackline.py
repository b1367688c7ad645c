"""`manage.py ackline …`: Ackline's command line for this project."""

from __future__ import annotations

import os
import sys
from argparse import REMAINDER
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connections
from sqlalchemy import URL

from ackline.infra.cli import main

#: What works on an outbox; the project's is in its own database.
_OF_OUTBOX = ("relay", "outbox")
#: Of a connection's OPTIONS, besides those of TLS, what libpq needs to come to the same tables; others are Django's.
_LIBPQ = ("channel_binding", "options", "passfile", "service", "target_session_attrs")


class Command(BaseCommand):  # type: ignore[misc]
    """Runs `ackline` with the arguments."""

    help = "Ackline's command line for this project: worker, jobs, relay, topology, dlq, doctor, ..."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """Takes all of them."""
        parser.add_argument("arguments", nargs=REMAINDER, metavar="COMMAND ...", help="try: manage.py ackline help")

    def handle(self, *_: Any, arguments: list[str], **__: Any) -> None:
        """Run it, and end the process."""
        # The roles start further processes, which find the project as this one did.
        folder = str(Path(sys.argv[0]).absolute().parent)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
        if arguments[:1] == ["help"]:
            arguments = ["--help"]
        elif arguments and arguments[0] in _OF_OUTBOX and not any(map(_names_database, arguments)):
            arguments = [*arguments, "--database-url", _database_url()]
        sys.argv = ["ackline", *arguments]
        main()


def _names_database(argument: str) -> bool:
    return argument.partition("=")[0] == "--database-url"


def _database_url(using: str = "default") -> str:
    """Django's connection as SQLAlchemy writes it. Raises `CommandError` for one that can have no outbox."""
    told = connections[using].settings_dict
    vendor = connections[using].vendor
    if vendor == "sqlite":
        return f"sqlite:///{told['NAME']}"
    if vendor != "postgresql":
        raise CommandError(f"An outbox needs PostgreSQL or SQLite; {using!r} is {vendor}.")
    host = told["HOST"] or ""
    is_socket = host.startswith("/")  # the folder of one
    query = {name: str(value) for name, value in told["OPTIONS"].items() if name.startswith("ssl") or name in _LIBPQ}
    url = URL.create(
        "postgresql",
        username=told["USER"] or None,
        password=told["PASSWORD"] or None,
        host=None if is_socket else host or None,
        port=int(told["PORT"]) if told["PORT"] else None,
        database=told["NAME"],
        query=query | ({"host": host} if is_socket else {}),
    )
    return url.render_as_string(hide_password=False)
