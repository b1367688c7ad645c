"""How far a handler is.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("deliveries", sa.Column("progress", sa.Float()))
    op.add_column("deliveries", sa.Column("progress_text", sa.Text()))


def downgrade() -> None:
    op.drop_column("deliveries", "progress_text")
    op.drop_column("deliveries", "progress")
