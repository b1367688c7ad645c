"""The broker's connections, as an operator sees and closes them."""

from __future__ import annotations

from urllib.parse import quote

import httpx

from tests.broker import Vhost


def connections(vhost: Vhost, prefix: str = "") -> list[str]:
    """The broker's names of the connections that were given a name with that prefix."""
    with vhost.api() as api:
        listed = api.get(f"/api/vhosts/{vhost.path}/connections").raise_for_status().json()
    return [
        connection["name"]
        for connection in listed
        if str(connection.get("client_properties", {}).get("connection_name")).startswith(prefix)
    ]


def close(vhost: Vhost, names: list[str], *, missing_ok: bool = False) -> None:
    """Close connections, by the broker's names of them. missing_ok: they may have ended meanwhile."""
    with vhost.api() as api:
        for name in names:
            answer = api.delete(f"/api/connections/{quote(name, safe='')}")
            if not (missing_ok and answer.status_code == httpx.codes.NOT_FOUND):
                answer.raise_for_status()
