"""What Alembic runs for every migration: on the connection that `ackline.infra.database.upgrade` gives it."""

from typing import Any, Literal

from alembic import context

from ackline.infra.tables import UtcTime, inbox_metadata, metadata, outbox_metadata


def render(kind: str, item: Any, _autogenerate: Any) -> str | Literal[False]:
    """A migration stays as it was when the code moves on, so it names none of our types."""
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(item, UtcTime) else False


connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=[metadata, outbox_metadata, inbox_metadata],
    # The whole upgrade is one transaction, the caller's. SQLite can do that too; Alembic only assumes that it cannot.
    transactional_ddl=True,
    # SQLite cannot alter a constraint: Alembic then copies the table.
    render_as_batch=True,
    render_item=render,
)
with context.begin_transaction():
    context.run_migrations()
