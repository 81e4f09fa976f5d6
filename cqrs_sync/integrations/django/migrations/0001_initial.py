"""The two tables of the outbox."""

from __future__ import annotations

from typing import Any, ClassVar

import django.db.models.deletion
from django.db import migrations, models


def compare_by_characters(apps: Any, schema_editor: Any) -> None:
    """Let MariaDB and MySQL tell `a` from `A` and `ä`, as the other databases do."""
    if schema_editor.connection.vendor == "mysql":
        for table in ("cqrs_message", "cqrs_delivery"):
            schema_editor.execute(f"ALTER TABLE {table} CONVERT TO CHARACTER SET utf8mb4 COLLATE utf8mb4_bin")


class Migration(migrations.Migration):
    """Create the tables."""

    initial = True

    dependencies: ClassVar[list[Any]] = []

    operations: ClassVar[list[Any]] = [
        migrations.CreateModel(
            name="Message",
            fields=[
                ("id", models.CharField(editable=False, max_length=255, primary_key=True, serialize=False)),
                ("topic", models.CharField(blank=True, max_length=255)),
                ("type", models.CharField(max_length=255)),
                ("partition_key", models.CharField(blank=True, max_length=255, null=True)),
                ("content_type", models.CharField(max_length=255)),
                ("payload", models.BinaryField()),
                ("headers", models.TextField()),
                ("created_at", models.DateTimeField()),
            ],
            options={
                "db_table": "cqrs_message",
                "permissions": (("view_payload", "Can view the payloads of messages"),),
                "default_permissions": ("view",),
                "indexes": [models.Index(fields=["created_at"], name="cqrs_message_created")],
            },
        ),
        migrations.CreateModel(
            name="Delivery",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("kind", models.CharField(max_length=7)),
                ("target", models.CharField(max_length=255)),
                ("lane", models.BigIntegerField(null=True)),
                ("size", models.IntegerField()),
                ("status", models.CharField(max_length=7)),
                ("attempts", models.IntegerField()),
                ("due_at", models.DateTimeField()),
                ("token", models.CharField(max_length=32, null=True)),
                ("reason", models.CharField(blank=True, max_length=255)),
                ("last_error", models.TextField(blank=True)),
                (
                    "message",
                    models.ForeignKey(
                        db_constraint=False,
                        db_index=False,
                        on_delete=django.db.models.deletion.DO_NOTHING,
                        related_name="deliveries",
                        to="cqrs_sync.message",
                    ),
                ),
            ],
            options={
                "verbose_name_plural": "deliveries",
                "db_table": "cqrs_delivery",
                "permissions": (
                    ("replay_delivery", "Can replay dead deliveries"),
                    ("discard_delivery", "Can discard dead deliveries"),
                ),
                "default_permissions": ("view",),
                "indexes": [
                    models.Index(fields=["kind", "status", "id"], name="cqrs_delivery_queue"),
                    models.Index(fields=["lane", "status", "id"], name="cqrs_delivery_lane"),
                ],
            },
        ),
        migrations.RunPython(compare_by_characters, migrations.RunPython.noop, atomic=False),
    ]
