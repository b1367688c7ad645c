"""Dead letters, redrives of them, and who did what to them."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_OPEN = sa.text("state IN ('waiting', 'issued', 'confirmed')")
_UNSENT = sa.text("state IN ('waiting', 'issued')")
#: SQLite counts rows by itself only in a column that is called INTEGER.
_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "dead_letters",
        sa.Column("id", _ID, nullable=False),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("consumer", sa.Text(), nullable=False),
        sa.Column("body_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("error_type", sa.Text(), nullable=False),
        sa.Column("error_message", sa.Text(), nullable=False),
        sa.Column("traceback", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("history", sa.JSON(), nullable=False),
        sa.Column("first_failed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("app_id", sa.Text()),
        sa.Column("correlation_id", sa.Text()),
        sa.Column("published_at", sa.DateTime(timezone=True)),
        sa.Column("exchange", sa.Text(), nullable=False),
        sa.Column("routing_key", sa.Text(), nullable=False),
        sa.Column("properties", sa.LargeBinary(), nullable=False),
        sa.Column("trusted", sa.Boolean(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("redrive_count", sa.Integer(), nullable=False),
        sa.Column("redrive_item_id", sa.Text()),
        sa.Column("send_error", sa.Text()),
        sa.Column("duplicates", sa.Integer(), nullable=False),
        sa.Column("flags", sa.JSON(), nullable=False),
        sa.Column("discarded_at", sa.DateTime(timezone=True)),
        sa.Column("discarded_by", sa.Text()),
        sa.Column("discard_reason", sa.Text()),
        sa.Column("handled_at", sa.DateTime(timezone=True)),
        sa.CheckConstraint(
            "(state = 'discarded') = "
            "(discarded_at IS NOT NULL AND discarded_by IS NOT NULL AND discard_reason IS NOT NULL)",
            name=op.f("ck_dead_letters_discarded"),
        ),
        sa.CheckConstraint("(state = 'handled') = (handled_at IS NOT NULL)", name=op.f("ck_dead_letters_handled")),
        sa.CheckConstraint(
            "(state = 'redriving') = (redrive_item_id IS NOT NULL)", name=op.f("ck_dead_letters_redriving")
        ),
        sa.CheckConstraint("source IN ('worker', 'broker', 'unrouted')", name=op.f("ck_dead_letters_source")),
        sa.CheckConstraint(
            "state IN ('in review', 'redriving', 'handled', 'discarded')", name=op.f("ck_dead_letters_state")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dead_letters")),
        sa.UniqueConstraint(
            "message_id", "consumer", "body_sha256", name=op.f("uq_dead_letters_message_id_consumer_body_sha256")
        ),
        sqlite_autoincrement=True,
    )
    op.create_index(
        op.f("ix_dead_letters_consumer_state_id"), "dead_letters", ["consumer", "state", "id"], unique=False
    )
    op.create_index(op.f("ix_dead_letters_state_id"), "dead_letters", ["state", "id"], unique=False)
    op.create_index(op.f("ix_dead_letters_type_state_id"), "dead_letters", ["type", "state", "id"], unique=False)
    op.create_table(
        "redrives",
        sa.Column("id", _ID, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_redrives")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "actions",
        sa.Column("id", _ID, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("dead_letter_id", _ID, nullable=False),
        sa.Column("state_before", sa.Text(), nullable=False),
        sa.Column("state_after", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["dead_letter_id"], ["dead_letters.id"], name=op.f("fk_actions_dead_letter_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_actions")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_actions_dead_letter_id"), "actions", ["dead_letter_id"], unique=False)
    op.create_table(
        "redrive_items",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("redrive_id", _ID, nullable=False),
        sa.Column("dead_letter_id", _ID, nullable=False),
        sa.Column("consumer", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("error", sa.Text()),
        sa.Column("claimed_until", sa.DateTime(timezone=True)),
        sa.Column("issued_at", sa.DateTime(timezone=True)),
        sa.Column("confirmed_at", sa.DateTime(timezone=True)),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.CheckConstraint("consumer <> ''", name=op.f("ck_redrive_items_consumer")),
        sa.CheckConstraint(
            "state IN ('waiting', 'issued', 'confirmed', 'handled', 'failed', 'not sent', 'superseded')",
            name=op.f("ck_redrive_items_state"),
        ),
        sa.ForeignKeyConstraint(["dead_letter_id"], ["dead_letters.id"], name=op.f("fk_redrive_items_dead_letter_id")),
        sa.ForeignKeyConstraint(["redrive_id"], ["redrives.id"], name=op.f("fk_redrive_items_redrive_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_redrive_items")),
    )
    op.create_index(op.f("ix_redrive_items_dead_letter_id"), "redrive_items", ["dead_letter_id"], unique=False)
    op.create_index(op.f("ix_redrive_items_redrive_id"), "redrive_items", ["redrive_id"], unique=False)
    op.create_index(
        "ix_redrive_items_unsent", "redrive_items", ["id"], unique=False, sqlite_where=_UNSENT, postgresql_where=_UNSENT
    )
    op.create_index(
        "uq_redrive_items_open",
        "redrive_items",
        ["dead_letter_id"],
        unique=True,
        sqlite_where=_OPEN,
        postgresql_where=_OPEN,
    )


def downgrade() -> None:
    for table in ("redrive_items", "actions", "redrives", "dead_letters"):
        op.drop_table(table)
