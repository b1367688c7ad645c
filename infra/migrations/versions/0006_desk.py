"""The desk: groups of failures, edits, notes, redrives that are planned, people, approvals, and actions as a chain.

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

#: SQLite counts rows by itself only in a column that is called INTEGER.
_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

#: Tables that nothing may be changed in afterwards.
_APPEND_ONLY = ("actions", "action_items")
_MOVES = (
    "in review -> redriving",
    "in review -> discarded",
    "in review -> handled",
    "redriving -> in review",
    "redriving -> handled",
    "discarded -> in review",
)
_ALLOWED = ", ".join(f"'{move}'" for move in _MOVES)
_ORIGINAL = ("message_id", "body_sha256", "payload", "properties")
#: (name, event, table, condition of what is forbidden, what is said of it)
_GUARDS = [
    ("begin", "INSERT", "dead_letters", "NEW.state <> 'in review'", "a dead letter begins in review"),
    (
        "transition",
        "UPDATE OF state",
        "dead_letters",
        f"OLD.state <> NEW.state AND (OLD.state || ' -> ' || NEW.state) NOT IN ({_ALLOWED})",
        "a dead letter does not change its state like that",
    ),
    (
        "original",
        f"UPDATE OF {', '.join(_ORIGINAL)}",
        "dead_letters",
        " OR ".join(f"OLD.{name} <> NEW.{name}" for name in _ORIGINAL),
        "a dead letter stays as it came",
    ),
    (
        "kept",
        "DELETE",
        "dead_letters",
        "OLD.state NOT IN ('handled', 'discarded')",
        "a dead letter is kept until it is handled or discarded",
    ),
    ("version", "UPDATE", "edits", "1 = 1", "an edit is not changed: there is a next one"),
    (
        "kept",
        "DELETE",
        "edits",
        "EXISTS (SELECT 1 FROM dead_letters WHERE id = OLD.dead_letter_id)",
        "an edit is kept as long as its dead letter",
    ),
    (
        "asked",
        "UPDATE OF action, request, summary, diff, rule, requested_at, requested_by, requested_role, expires_at",
        "approvals",
        "1 = 1",
        "what was asked for stays as it was",
    ),
    (
        "decided",
        "UPDATE OF state, decided_by",
        "approvals",
        "OLD.state NOT IN ('waiting', 'approved')",
        "what was decided stays decided",
    ),
    ("kept", "DELETE", "approvals", "1 = 1", "what was asked for is on record for good"),
    *(
        (f"only_{event.lower()}", event, table, "1 = 1", "what was done is on record for good")
        for table in _APPEND_ONLY
        for event in ("UPDATE", "DELETE")
    ),
]
#: What PostgreSQL's full-text index holds: words of letters and digits, as FTS5 cuts them. What separates them is
#: listed here, for what a letter is depends on the database's locale: in "C" only those of ASCII are.
_WORDS = (
    "to_tsvector('simple', regexp_replace(error_message || ' ' || reason, "
    r"'[\x01-/:-@[-`{-\x7f\u0080-\u00bf\u2000-\u206f]+', ' ', 'g'))"
)


def upgrade() -> None:
    # What was redriven is reviewed again, and what was done is not in the chain: nothing before it was released.
    op.execute("UPDATE dead_letters SET state = 'in review', redrive_item_id = NULL WHERE state = 'redriving'")
    for table in ("redrive_items", "redrives", "actions"):
        op.drop_table(table)
    _create_tables()
    if op.get_bind().dialect.name == "sqlite":
        _guard_sqlite()
        _index_sqlite()
    else:
        _guard_postgresql()
        op.execute(f"CREATE INDEX ix_dead_letters_text ON dead_letters USING gin ({_WORDS})")


def _guard_sqlite() -> None:
    for name, event, table, condition, said in _GUARDS:
        op.execute(
            f"CREATE TRIGGER {table}_{name} BEFORE {event} ON {table} WHEN {condition} "
            f"BEGIN SELECT RAISE(ABORT, '{said}'); END"
        )


def _guard_postgresql() -> None:
    op.execute(
        "CREATE FUNCTION ackline_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION '%', TG_ARGV[0] USING ERRCODE = 'check_violation'; END $$"
    )
    op.execute(
        "CREATE FUNCTION ackline_refuse_edit() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN IF EXISTS (SELECT 1 FROM dead_letters WHERE id = OLD.dead_letter_id) THEN "
        "RAISE EXCEPTION '%', TG_ARGV[0] USING ERRCODE = 'check_violation'; END IF; RETURN OLD; END $$"
    )
    for name, event, table, condition, said in _GUARDS:
        # A condition of PostgreSQL's triggers has no subqueries.
        asks = condition.startswith("EXISTS")
        when = "" if asks else f"WHEN ({condition})"
        op.execute(
            f"CREATE TRIGGER {table}_{name} BEFORE {event} ON {table} FOR EACH ROW {when} "
            f"EXECUTE FUNCTION ackline_refuse{'_edit' * asks}('{said}')"
        )


def _index_sqlite() -> None:
    op.execute(
        "CREATE VIRTUAL TABLE dead_letter_text USING fts5"
        "(error_message, reason, content='dead_letters', content_rowid='id', tokenize='unicode61 remove_diacritics 0')"
    )
    op.execute("INSERT INTO dead_letter_text(dead_letter_text) VALUES ('rebuild')")
    into = "INSERT INTO dead_letter_text(rowid, error_message, reason) VALUES (NEW.id, NEW.error_message, NEW.reason);"
    out_of = (
        "INSERT INTO dead_letter_text(dead_letter_text, rowid, error_message, reason) "
        "VALUES ('delete', OLD.id, OLD.error_message, OLD.reason);"
    )
    for name, event, statements in (
        ("in", "INSERT", into),
        ("out", "DELETE", out_of),
        ("again", "UPDATE OF error_message, reason", out_of + into),
    ):
        op.execute(f"CREATE TRIGGER dead_letter_text_{name} AFTER {event} ON dead_letters BEGIN {statements} END")


def downgrade() -> None:
    raise NotImplementedError("What the desk keeps has no place in the tables before.")


def _create_tables() -> None:
    op.create_table(
        "accepted",
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("message_id", name=op.f("pk_accepted")),
    )
    op.create_index(op.f("ix_accepted_at"), "accepted", ["at"], unique=False)

    op.create_table(
        "actions",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("hash", sa.LargeBinary(length=32), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_actions")),
    )
    op.create_table(
        "alerts",
        sa.Column("id", _ID, nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("error", sa.Text()),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.CheckConstraint("kind IN ('new', 'reopened')", name=op.f("ck_alerts_kind")),
        sa.CheckConstraint("state IN ('waiting', 'delivered', 'failed')", name=op.f("ck_alerts_state")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alerts")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_alerts_untold",
        "alerts",
        ["next_at"],
        unique=False,
        sqlite_where=sa.text("state IN ('waiting')"),
        postgresql_where=sa.text("state IN ('waiting')"),
    )

    op.create_table(
        "approvals",
        sa.Column("id", _ID, nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("summary", sa.Text(), nullable=False),
        sa.Column("diff", sa.JSON(), nullable=False),
        sa.Column("rule", sa.Text(), nullable=False),
        sa.Column("requested_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("requested_by", sa.Text(), nullable=False),
        sa.Column("requested_role", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True)),
        sa.Column("decided_by", sa.Text()),
        sa.Column("decision_reason", sa.Text()),
        sa.Column("result", sa.JSON()),
        sa.CheckConstraint("(state = 'waiting') = (decided_at IS NULL)", name=op.f("ck_approvals_decided")),
        sa.CheckConstraint(
            "state IN ('waiting', 'approved', 'refused', 'withdrawn', 'expired', 'done', 'failed')",
            name=op.f("ck_approvals_state"),
        ),
        sa.CheckConstraint(
            "state NOT IN ('approved', 'done', 'failed') "
            "OR (decided_by IS NOT NULL AND lower(decided_by) <> lower(requested_by))",
            name=op.f("ck_approvals_four_eyes"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_approvals")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_approvals_state_id"), "approvals", ["state", "id"], unique=False)

    op.create_table(
        "fingerprint_counts",
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "state IN ('in review', 'redriving', 'handled', 'discarded')", name=op.f("ck_fingerprint_counts_state")
        ),
        sa.PrimaryKeyConstraint("fingerprint", "state", name=op.f("pk_fingerprint_counts")),
    )
    op.create_table(
        "fingerprint_rates",
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("bucket", sa.DateTime(timezone=True), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("fingerprint", "bucket", name=op.f("pk_fingerprint_rates")),
    )
    op.create_index(op.f("ix_fingerprint_rates_bucket"), "fingerprint_rates", ["bucket"], unique=False)

    op.create_table(
        "fingerprints",
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("consumer", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("error_type", sa.Text(), nullable=False),
        sa.Column("frame", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("first_seen", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_seen", sa.DateTime(timezone=True), nullable=False),
        sa.Column("arrivals", sa.BigInteger(), nullable=False),
        sa.Column("sample_id", _ID, nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("status_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("status_by", sa.Text(), nullable=False),
        sa.Column("resolved_in", sa.Text()),
        sa.Column("reopened", sa.Integer(), nullable=False),
        sa.Column("owner", sa.Text()),
        sa.Column("note", sa.Text()),
        sa.Column("runbook", sa.Text()),
        sa.CheckConstraint("status IN ('open', 'acknowledged', 'resolved')", name=op.f("ck_fingerprints_status")),
        sa.PrimaryKeyConstraint("fingerprint", name=op.f("pk_fingerprints")),
    )
    op.create_index(
        op.f("ix_fingerprints_last_seen_fingerprint"), "fingerprints", ["last_seen", "fingerprint"], unique=False
    )

    op.create_table(
        "people",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("disabled_at", sa.DateTime(timezone=True)),
        sa.CheckConstraint("role IN ('viewer', 'operator', 'approver', 'admin')", name=op.f("ck_people_role")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_people")),
    )
    op.create_table(
        "redrives",
        sa.Column("id", _ID, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("selection", sa.JSON(), nullable=False),
        sa.Column("newest_id", _ID, nullable=False),
        sa.Column("planned_to", _ID, nullable=False),
        sa.Column("consumer", sa.Text()),
        sa.Column("patch", sa.JSON()),
        sa.Column("options", sa.JSON(), nullable=False),
        sa.Column("planned_at", sa.DateTime(timezone=True)),
        sa.Column("plan", sa.JSON()),
        sa.Column("rate", sa.Float()),
        sa.Column("canary", sa.Boolean(), nullable=False),
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("run_from", sa.BigInteger(), nullable=False),
        sa.Column("stage", sa.Integer(), nullable=False),
        sa.Column("paced_at", sa.DateTime(timezone=True)),
        sa.Column("paced_from", sa.BigInteger(), nullable=False),
        sa.Column("sent", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True)),
        sa.Column("started_by", sa.Text()),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.Column("why", sa.Text()),
        sa.Column("counts", sa.JSON()),
        sa.CheckConstraint(
            "(state IN ('done', 'cancelled')) = (finished_at IS NOT NULL)", name=op.f("ck_redrives_finished")
        ),
        sa.CheckConstraint(
            "state IN ('planning', 'planned', 'running', 'paused', 'stopped', 'cancelled', 'done')",
            name=op.f("ck_redrives_state"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_redrives")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_redrives_unfinished",
        "redrives",
        ["id"],
        unique=False,
        sqlite_where=sa.text("state IN ('planning', 'running')"),
        postgresql_where=sa.text("state IN ('planning', 'running')"),
    )

    op.create_table(
        "action_items",
        sa.Column("action_id", sa.BigInteger(), nullable=False),
        sa.Column("dead_letter_id", _ID, nullable=False),
        sa.Column("state_before", sa.Text(), nullable=False),
        sa.Column("state_after", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["action_id"], ["actions.id"], name=op.f("fk_action_items_action_id")),
        sa.PrimaryKeyConstraint("action_id", "dead_letter_id", name=op.f("pk_action_items")),
    )
    op.create_index(op.f("ix_action_items_dead_letter_id"), "action_items", ["dead_letter_id"], unique=False)

    op.create_table(
        "api_tokens",
        sa.Column("id", _ID, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("person", sa.Text(), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("token_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True)),
        sa.Column("revoked_at", sa.DateTime(timezone=True)),
        sa.CheckConstraint("role IN ('viewer', 'operator', 'approver', 'admin')", name=op.f("ck_api_tokens_role")),
        sa.ForeignKeyConstraint(["person"], ["people.name"], name=op.f("fk_api_tokens_person")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_tokens")),
        sa.UniqueConstraint("person", "name", name=op.f("uq_api_tokens_person_name")),
        sa.UniqueConstraint("token_sha256", name=op.f("uq_api_tokens_token_sha256")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_api_tokens_person"), "api_tokens", ["person"], unique=False)

    op.create_table(
        "edits",
        sa.Column("dead_letter_id", _ID, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("properties", sa.LargeBinary(), nullable=False),
        sa.Column("diff", sa.JSON(), nullable=False),
        sa.Column("checked", sa.Boolean(), nullable=False),
        sa.CheckConstraint("version > 0", name=op.f("ck_edits_version")),
        sa.ForeignKeyConstraint(
            ["dead_letter_id"], ["dead_letters.id"], name=op.f("fk_edits_dead_letter_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("dead_letter_id", "version", name=op.f("pk_edits")),
    )
    op.create_table(
        "notes",
        sa.Column("id", _ID, nullable=False),
        sa.Column("dead_letter_id", _ID, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["dead_letter_id"], ["dead_letters.id"], name=op.f("fk_notes_dead_letter_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_notes")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_notes_dead_letter_id"), "notes", ["dead_letter_id"], unique=False)

    op.create_table(
        "redrive_items",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("redrive_id", _ID, nullable=False),
        sa.Column("dead_letter_id", _ID, nullable=False),
        sa.Column("consumer", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("body_sha256", sa.LargeBinary(length=32)),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("run", sa.Integer(), server_default="0", nullable=False),
        sa.Column("error", sa.Text()),
        sa.Column("claimed_until", sa.DateTime(timezone=True)),
        sa.Column("issued_at", sa.DateTime(timezone=True)),
        sa.Column("confirmed_at", sa.DateTime(timezone=True)),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.CheckConstraint("consumer <> '' OR state = 'ineligible'", name=op.f("ck_redrive_items_consumer")),
        sa.CheckConstraint(
            "state IN ('planned', 'ineligible', 'skipped', 'waiting', 'issued', 'confirmed', "
            "'handled', 'failed', 'not sent', 'superseded')",
            name=op.f("ck_redrive_items_state"),
        ),
        sa.ForeignKeyConstraint(["redrive_id"], ["redrives.id"], name=op.f("fk_redrive_items_redrive_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_redrive_items")),
        sa.UniqueConstraint("redrive_id", "dead_letter_id", name=op.f("uq_redrive_items_redrive_id_dead_letter_id")),
    )
    op.create_index(op.f("ix_redrive_items_dead_letter_id"), "redrive_items", ["dead_letter_id"], unique=False)
    op.create_index(
        "ix_redrive_items_planned",
        "redrive_items",
        ["redrive_id", "dead_letter_id"],
        unique=False,
        sqlite_where=sa.text("state IN ('planned')"),
        postgresql_where=sa.text("state IN ('planned')"),
    )
    op.create_index(op.f("ix_redrive_items_redrive_id_state"), "redrive_items", ["redrive_id", "state"], unique=False)
    op.create_index(
        "ix_redrive_items_unsent",
        "redrive_items",
        ["id"],
        unique=False,
        sqlite_where=sa.text("state IN ('waiting', 'issued')"),
        postgresql_where=sa.text("state IN ('waiting', 'issued')"),
    )
    op.create_index(
        "uq_redrive_items_open",
        "redrive_items",
        ["dead_letter_id"],
        unique=True,
        sqlite_where=sa.text("state IN ('waiting', 'issued', 'confirmed')"),
        postgresql_where=sa.text("state IN ('waiting', 'issued', 'confirmed')"),
    )

    op.create_table(
        "search_paths",
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("since", _ID, nullable=False),
        sa.PrimaryKeyConstraint("path", name=op.f("pk_search_paths")),
    )
    op.create_table(
        "search_values",
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("dead_letter_id", _ID, nullable=False),
        sa.ForeignKeyConstraint(
            ["dead_letter_id"], ["dead_letters.id"], name=op.f("fk_search_values_dead_letter_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("path", "value", "dead_letter_id", name=op.f("pk_search_values")),
    )
    op.create_index(op.f("ix_search_values_dead_letter_id"), "search_values", ["dead_letter_id"], unique=False)

    op.create_table(
        "sessions",
        sa.Column("token_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("person", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["person"], ["people.name"], name=op.f("fk_sessions_person")),
        sa.PrimaryKeyConstraint("token_sha256", name=op.f("pk_sessions")),
    )
    op.create_index(op.f("ix_sessions_expires_at"), "sessions", ["expires_at"], unique=False)
    op.create_index(op.f("ix_sessions_person"), "sessions", ["person"], unique=False)

    op.add_column("dead_letters", sa.Column("ordering_key", sa.Text()))
    op.add_column("dead_letters", sa.Column("fingerprint", sa.Text(), server_default=sa.text("''"), nullable=False))
    op.add_column("dead_letters", sa.Column("version", sa.Integer(), server_default="0", nullable=False))
    op.create_index(op.f("ix_dead_letters_correlation_id"), "dead_letters", ["correlation_id"], unique=False)
    op.create_index(
        op.f("ix_dead_letters_fingerprint_state_id"), "dead_letters", ["fingerprint", "state", "id"], unique=False
    )
    op.create_index(op.f("ix_dead_letters_received_at"), "dead_letters", ["received_at"], unique=False)
    for at in ("handled_at", "discarded_at"):
        there = sa.text(f"{at} IS NOT NULL")
        op.create_index(f"ix_dead_letters_{at}", "dead_letters", [at], sqlite_where=there, postgresql_where=there)

    op.add_column("deliveries", sa.Column("ordering_key", sa.Text()))
    op.create_index(
        "ix_deliveries_ordering_key",
        "deliveries",
        ["consumer", "ordering_key", "message_id"],
        unique=False,
        sqlite_where=sa.text("ordering_key IS NOT NULL"),
        postgresql_where=sa.text("ordering_key IS NOT NULL"),
    )
