"""The tables of the outbox, beside the project's own."""

from __future__ import annotations

from typing import ClassVar

from django.db import migrations

from ackline.producer import django as outbox


def create(apps: object, editor: object) -> None:
    """On the database that is migrated."""
    outbox.create_tables(editor.connection.alias)  # type: ignore[attr-defined]


class Migration(migrations.Migration):  # type: ignore[misc]
    """Changes nothing where a migration of the project has made them."""

    operations: ClassVar = [migrations.RunPython(create, migrations.RunPython.noop)]
