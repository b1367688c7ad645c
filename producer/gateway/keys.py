"""Who calls: the API keys of a gateway."""

from __future__ import annotations

import hmac
from http import HTTPStatus
from typing import NamedTuple

from fastapi import Request

from ackline.producer.gateway.problems import Refusal


class Caller(NamedTuple):
    """Whose key a request has. name: of the key; empty when the gateway has no keys."""

    name: str


class Keys:
    """The keys that a gateway takes; none: it is open (and then listens on loopback only)."""

    def __init__(self, configured: tuple[str, ...]) -> None:
        self._configured = configured

    def caller(self, request: Request) -> Caller:
        """Whose request it is. Raises `Refusal`."""
        if not self._configured:
            return Caller("")
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        known = [hmac.compare_digest(given.strip().encode(), key.encode()) for key in self._configured]
        if scheme.lower() != "bearer" or not any(known):
            raise Refusal(
                HTTPStatus.UNAUTHORIZED,
                "This gateway wants a key: Authorization: Bearer KEY.",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return Caller("configured")
