"""Status addresses that prove themselves: a message that was accepted has one, and costs no row for it.

The signature says that this gateway accepted a message of that id and type. So a status that is asked for before
anybody has reported anything is `waiting`, and not "unknown".
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from urllib.parse import quote


class Signer:
    """Signs and checks status addresses with one secret, which all gateways of a database share."""

    def __init__(self, secret: bytes) -> None:
        self._keyed = hmac.new(secret, digestmod=hashlib.sha256)

    def signature(self, message_id: str, message_type: str) -> str:
        """132 bits as 22 letters."""
        mac = self._keyed.copy()
        mac.update(f"{message_id}\n{message_type}".encode("utf-8", "surrogateescape"))
        return base64.urlsafe_b64encode(mac.digest())[:22].decode()

    def status_url(self, message_id: str, message_type: str) -> str:
        """Where the status of an accepted message is, as a path with its proof."""
        signature = self.signature(message_id, message_type)
        return f"/v1/messages/{quote(message_id, safe='')}?type={message_type}&signature={signature}"

    def proves(self, signature: str, message_id: str, message_type: str) -> bool:
        """Whether *signature* is the one of this message."""
        return hmac.compare_digest(signature.encode(), self.signature(message_id, message_type).encode())
