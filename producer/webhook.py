"""Signatures of callbacks, after Standard Webhooks 1.0 (https://www.standardwebhooks.com), which has libraries for
most languages: `Webhook-Signature: v1,<base64 of HMAC-SHA256(key, "id.timestamp.body")>`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from urllib.parse import quote

from sqlalchemy import Engine

from ackline.infra.errors import ConfigurationError
from ackline.infra.secrets import secret
from ackline.infra.settings import Settings

_PREFIX = "whsec_"
#: Bytes of a key, as the specification has them.
_SHORTEST, _LONGEST = 24, 64


def key(settings: Settings, engine: Engine) -> bytes:
    """What callbacks are signed with: `ACKLINE_CALLBACK_SECRET`, else the database's own.

    Raises `ConfigurationError`, `DatabaseUnavailable`.
    """
    configured = settings.callback_secret
    if configured is None:
        return secret(engine, "callbacks")
    try:
        found = base64.b64decode(configured.removeprefix(_PREFIX), validate=True)
    except ValueError:  # no base64, or no ASCII
        found = b""
    if not configured.startswith(_PREFIX) or not _SHORTEST <= len(found) <= _LONGEST:
        raise ConfigurationError(
            f"ACKLINE_CALLBACK_SECRET cannot be used: it must read {_PREFIX} and the base64 of {_SHORTEST} to "
            f'{_LONGEST} random bytes, such as: echo "{_PREFIX}$(openssl rand -base64 32)".'
        )
    return found


def shown(signing_key: bytes) -> str:
    """*signing_key* as receivers are given it."""
    return _PREFIX + base64.b64encode(signing_key).decode()


def identifier(message_id: str) -> str:
    """The `Webhook-Id` of a message, the same at every attempt: its id, with all but letters, digits, `-`, `_` and `~`
    percent-encoded, so that no id that a client chose can end the header, or move the dots of what is signed."""
    return quote(message_id, safe="").replace(".", "%2E")


def headers(signing_key: bytes, webhook_id: str, body: bytes, timestamp: int) -> dict[str, str]:
    """The headers that sign *body*. timestamp: of the attempt, in Unix seconds."""
    signed = f"{webhook_id}.{timestamp}.".encode() + body
    signature = base64.b64encode(hmac.digest(signing_key, signed, hashlib.sha256)).decode()
    return {
        "Webhook-Id": webhook_id,
        "Webhook-Timestamp": str(timestamp),
        "Webhook-Signature": f"v1,{signature}",
    }
