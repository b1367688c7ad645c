"""A paged API on loopback."""

from __future__ import annotations

import json
from urllib.parse import parse_qs, urlsplit

from tests.receiver import Answering, Answers, Received


def items(count: int) -> list[dict[str, str]]:
    """So many, each with an id."""
    return [{"id": f"p-{number:05}", "name": f"Product {number}"} for number in range(count)]


def paged(count: int) -> Answers:
    """Answers with pages of `items(count)`; the cursor is the number of the next one."""
    everything = items(count)

    def answer(request: Received) -> Answering:
        first, limit = place(request)
        after = first + limit
        page = {
            "items": everything[first:after],
            "next": str(after) if after < count else None,
            "total": count,
            "version": 7,
        }
        return Answering(200, (("Content-Type", "application/json"),), json.dumps(page).encode())

    return answer


def place(request: Received) -> tuple[int, int]:
    """Where the page begins that *request* asks for, and how many items it has at most."""
    asked = parse_qs(urlsplit(request.path).query)
    return int(asked.get("cursor", ["0"])[0]), int(asked["limit"][0])
