"""What the Tab key offers: names and numbers from the database, quickly, and in silence where that is not possible."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem
from sqlalchemy import Select, String, cast, literal, select

from ackline.infra import database
from ackline.infra.settings import settings
from ackline.infra.tables import DeadLetterState, dead_letters, fingerprints, redrives
from ackline.infra.terminal import line

#: What is offered at most.
MOST = 50

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _offers(query: Select[tuple[Any, Any]]) -> Complete:
    """Offers what *query* finds, pairs of a value and what it is about, if it begins with what was typed."""
    typed = cast(query.selected_columns[0], String)

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            configured = settings()
            if not configured.has_database:
                return []
            engine = database.connect(configured.database)
            with database.reading(engine) as connection:
                found = connection.execute(query.where(typed.startswith(incomplete, autoescape=True)).limit(MOST)).all()
            engine.dispose()
        except Exception:  # whoever types has not asked for an explanation
            return []
        return [CompletionItem(line(str(value)), help=line(about)[:60]) for value, about in found]

    return complete


def _letters(state: DeadLetterState) -> Complete:
    columns = dead_letters.c
    return _offers(select(columns.id, columns.type).where(columns.state == state).order_by(columns.id.desc()))


in_review, discarded = _letters(DeadLetterState.IN_REVIEW), _letters(DeadLetterState.DISCARDED)
groups = _offers(select(fingerprints.c.fingerprint, fingerprints.c.message).order_by(fingerprints.c.last_seen.desc()))
consumers = _offers(select(fingerprints.c.consumer, literal("")).distinct().order_by(fingerprints.c.consumer))
types = _offers(select(fingerprints.c.type, literal("")).distinct().order_by(fingerprints.c.type))
redrive_numbers = _offers(select(redrives.c.id, redrives.c.state).order_by(redrives.c.id.desc()))
