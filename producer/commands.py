"""`ackline publish` and `ackline gateway`."""

from __future__ import annotations

import sys

import click
from pydantic import ValidationError

from ackline.infra.app import load_app
from ackline.infra.errors import AcklineError, ConfigurationError
from ackline.infra.link import BrokerRefused
from ackline.infra.logs import configure_logging
from ackline.infra.settings import settings
from ackline.infra.topology import TopologyNotPermitted, declare
from ackline.producer.errors import InvalidMessage
from ackline.producer.message import contracts, unknown
from ackline.producer.publisher import Publisher


@click.command()
@click.argument("message_type", metavar="TYPE")
@click.argument("payload", metavar="JSON")
@click.option("--id", "message_id", help="The id of an earlier try, to try again. A new one otherwise.")
@click.option("--timeout", type=click.FloatRange(0.1, 3600), default=10.0, show_default=True, help="Seconds.")
def publish(message_type: str, payload: str, message_id: str | None, timeout: float) -> None:
    """Publish a message of TYPE with the payload JSON (`-` reads it from standard input), and print its id.

    Ends with 0 only when RabbitMQ has confirmed it.
    """
    configured = settings()
    load_app(configured.app)
    model = contracts().get(message_type)
    if model is None:
        raise InvalidMessage(unknown(message_type))
    try:
        instance = model.model_validate_json(sys.stdin.buffer.read() if payload == "-" else payload)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'payload'}: {fault['msg']}"
            for fault in error.errors(include_url=False, include_input=False, include_context=False)
        )
        raise InvalidMessage(f"The payload is no {message_type}: {faults}.") from None
    with Publisher.connect(configured, name="ackline publish", timeout=timeout) as publisher:
        print(publisher.publish(instance, message_id=message_id, timeout=timeout).message_id)


@click.command()
@click.option("--host", help="Address to listen on. [ACKLINE_GATEWAY_HOST]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on. [ACKLINE_GATEWAY_PORT]")
def gateway(host: str | None, port: int | None) -> None:
    """Serve the HTTP door for upstream services."""
    from ackline.infra import database
    from ackline.producer.gateway import check_address, create_app
    from ackline.producer.gateway.server import listen, serve

    configure_logging()
    changes = {"gateway_host": host, "gateway_port": port}
    configured = settings().model_copy(update={name: value for name, value in changes.items() if value is not None})
    load_app(configured.app)
    database.upgrade(configured.database)
    check_address(configured)
    try:
        declare(configured.broker)
    except (BrokerRefused, ConfigurationError):
        raise
    except TopologyNotPermitted as error:
        print(f"ackline: {error} Going on with what exists.", file=sys.stderr)
    except AcklineError as error:
        print(f"ackline: {error} Answering 503 until it is there.", file=sys.stderr)
    listening = listen("gateway", configured.gateway_host, configured.gateway_port)
    serve(create_app(configured), listening, configured.grace_seconds)
