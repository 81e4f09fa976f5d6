"""The two tables of the outbox."""

from __future__ import annotations

from typing import Any, ClassVar

import django.db.models.deletion
from django.db import migrations, models

from cqrs_sync.integrations.django import fields


class Migration(migrations.Migration):
    """Create the tables."""

    initial = True

    dependencies: ClassVar[list[Any]] = []

    operations: ClassVar[list[Any]] = [
        migrations.CreateModel(
            name="Message",
            fields=[
                ("id", fields.ExactCharField(editable=False, max_length=255, primary_key=True, serialize=False)),
                ("topic", fields.ExactCharField(blank=True, max_length=255)),
                ("type", fields.ExactCharField(max_length=255)),
                ("partition_key", fields.ExactCharField(blank=True, max_length=255, null=True)),
                ("content_type", fields.ExactCharField(max_length=255)),
                ("payload", models.BinaryField()),
                ("headers", fields.ExactTextField()),
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
                ("kind", fields.ExactCharField(max_length=7)),
                ("target", fields.ExactCharField(max_length=255)),
                ("lane", models.BigIntegerField(null=True)),
                ("size", models.IntegerField()),
                ("status", fields.ExactCharField(max_length=7)),
                ("attempts", models.IntegerField()),
                ("due_at", models.DateTimeField()),
                ("token", fields.ExactCharField(max_length=32, null=True)),
                ("reason", fields.ExactCharField(blank=True, max_length=255)),
                ("last_error", fields.ExactTextField(blank=True)),
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
    ]
