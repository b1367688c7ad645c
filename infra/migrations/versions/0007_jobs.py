"""Jobs: results, chords and groups, duplicates that are not submitted again. Schedules and their ticks.

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "job_chords",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("header", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("failed_at", sa.DateTime(timezone=True)),
        sa.Column("expires_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job_chords")),
    )
    op.create_index(op.f("ix_job_chords_expires_at"), "job_chords", ["expires_at"], unique=False)
    op.create_table(
        "job_chord_parts",
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("chord_id", sa.Text(), nullable=False),
        sa.Column("result", sa.Text()),
        sa.ForeignKeyConstraint(
            ["chord_id"], ["job_chords.id"], name=op.f("fk_job_chord_parts_chord_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("task_id", name=op.f("pk_job_chord_parts")),
    )
    op.create_index(op.f("ix_job_chord_parts_chord_id"), "job_chord_parts", ["chord_id"], unique=False)
    op.create_table(
        "job_results",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text()),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("result", sa.Text()),
        sa.Column("traceback", sa.Text()),
        sa.Column("children", sa.Text()),
        sa.Column("group_id", sa.Text()),
        sa.Column("parent_id", sa.Text()),
        sa.Column("worker", sa.Text()),
        sa.Column("submitted_at", sa.DateTime(timezone=True)),
        sa.Column("started_at", sa.DateTime(timezone=True)),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job_results")),
    )
    op.create_index(op.f("ix_job_results_expires_at"), "job_results", ["expires_at"], unique=False)
    op.create_table(
        "job_groups",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("result", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job_groups")),
    )
    op.create_index(op.f("ix_job_groups_expires_at"), "job_groups", ["expires_at"], unique=False)
    op.create_table(
        "unique_jobs",
        sa.Column("key", sa.LargeBinary(length=32), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_unique_jobs")),
    )
    op.create_index(op.f("ix_unique_jobs_expires_at"), "unique_jobs", ["expires_at"], unique=False)
    op.create_index(op.f("ix_unique_jobs_job_id"), "unique_jobs", ["job_id"], unique=False)
    op.create_table(
        "schedules",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("declared", sa.Boolean(), nullable=False),
        sa.Column("definition", sa.JSON(), nullable=False),
        sa.Column("covered_to", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_run_at", sa.DateTime(timezone=True)),
        sa.Column("last_id", sa.Text()),
        sa.Column("error", sa.Text()),
        sa.Column("paused_at", sa.DateTime(timezone=True)),
        sa.Column("paused_by", sa.Text()),
        sa.Column("pause_reason", sa.Text()),
        sa.CheckConstraint("origin IN ('application', 'file', 'command line')", name=op.f("ck_schedules_origin")),
        sa.CheckConstraint("(paused_at IS NULL) = (paused_by IS NULL)", name=op.f("ck_schedules_paused")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_schedules")),
    )
    op.create_table(
        "schedule_runs",
        sa.Column("schedule", sa.Text(), nullable=False),
        sa.Column("planned_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("schedule", "planned_at", name=op.f("pk_schedule_runs")),
    )
    op.create_index(op.f("ix_schedule_runs_at"), "schedule_runs", ["at"], unique=False)


def downgrade() -> None:
    op.drop_table("schedule_runs")
    op.drop_table("schedules")
    op.drop_table("unique_jobs")
    op.drop_table("job_groups")
    op.drop_table("job_results")
    op.drop_table("job_chord_parts")
    op.drop_table("job_chords")
