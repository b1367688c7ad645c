"""RabbitMQ's management API, for reading what the broker has. Ackline never moves a message through it."""

from __future__ import annotations

from typing import Any, Self
from urllib.parse import quote, unquote, urlsplit

import httpx

from ackline.infra.errors import AcklineError
from ackline.infra.settings import Settings


class ManagementUnreachable(AcklineError):
    """The management API does not answer, or refuses the user."""


class ManagementRefused(ManagementUnreachable):
    """The management API refuses the user: wrong password, or a tag that does not permit this."""


class Management:
    """A client of the management API for one vhost. Use as a context manager."""

    def __init__(self, settings: Settings, *, timeout: float = 10.0) -> None:
        """The user, password and vhost are those of `ACKLINE_AMQP_URL`; timeout in seconds."""
        parts = urlsplit(settings.broker)
        self.url = (settings.management_url or f"http://{parts.hostname}:15672").rstrip("/")
        self.vhost = unquote(parts.path[1:]) or "/"
        self._user = unquote(parts.username or "guest")
        self._client = httpx.Client(
            base_url=self.url, auth=(self._user, unquote(parts.password or "guest")), timeout=timeout, trust_env=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._client.close()

    def get(self, path: str) -> Any:
        """The JSON at `/api/<path>`; `{vhost}` in *path* becomes the vhost.

        Raises `ManagementUnreachable`.
        """
        address = "/api/" + path.replace("{vhost}", quote(self.vhost, safe=""))
        try:
            answer = self._client.get(address)
        except httpx.HTTPError as error:
            raise ManagementUnreachable(
                f"The management API at {self.url} cannot be reached ({error}). "
                "Set ACKLINE_MANAGEMENT_URL, or enable it: rabbitmq-plugins enable rabbitmq_management."
            ) from None
        if answer.status_code in (401, 403):
            raise ManagementRefused(
                f"The management API at {self.url} refuses the user {self._user!r}: "
                "check the password, and give the user the tag `management` or `monitoring`."
            )
        if answer.is_error:
            raise ManagementUnreachable(f"The management API at {self.url} answered {answer.status_code} to {address}.")
        return answer.json()
