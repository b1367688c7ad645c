"""`ackline contracts list | export`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from ackline.infra.app import load_app
from ackline.infra.errors import AcklineError
from ackline.infra.settings import settings
from ackline.infra.topology_commands import consumer_queues
from ackline.producer.asyncapi import asyncapi
from ackline.producer.message import contract_of
from ackline.producer.message import contracts as known_contracts
from ackline.producer.schema import bundle


@click.group()
def contracts() -> None:
    """List the application's message types, and export them as JSON Schema or AsyncAPI."""


@contracts.command("list")
def list_() -> None:
    """Print each message type with its version, its model, and the consumers that take it."""
    configured = settings()
    load_app(configured.app)
    consumers = consumer_queues(configured)
    known = [contract_of(model) for _, model in sorted(known_contracts().items())]
    width = max((len(contract.type) for contract in known), default=0)
    for contract in known:
        takers = ", ".join(sorted(consumer.name for consumer in consumers if contract.type in consumer.types))
        tracked = ", tracked" if contract.track else ""
        print(
            f"{contract.type:<{width}}  version {contract.version}{tracked}"
            f"  {contract.model.__module__}.{contract.model.__qualname__}  -> {takers or 'nobody'}"
        )


@contracts.command()
@click.option(
    "--format",
    "format_",
    type=click.Choice(["jsonschema", "asyncapi"]),
    default="jsonschema",
    show_default=True,
    help="One JSON Schema document with every type under $defs, or AsyncAPI 3.0.",
)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="A file; standard output otherwise.")
def export(format_: str, output: Path | None) -> None:
    """Write the contracts for people and tools that do not read Python. No credentials are written.

    A contract that has no JSON Schema is named on standard error; an AsyncAPI document has it without its payload.
    """
    configured = settings()
    load_app(configured.app)
    document, missing = asyncapi(configured, consumer_queues(configured)) if format_ == "asyncapi" else bundle()
    written = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    if output is None:
        print(written, end="")
    else:
        try:
            output.write_text(written, encoding="utf-8")
        except OSError as error:
            raise AcklineError(f"{output} cannot be written: {error.strerror}.") from None
    for problem in missing:
        print(f"ackline: {problem}", file=sys.stderr)
