"""The table of the inbox."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import migrations, models, router

from cqrs_sync.integrations.django import fields

_TABLES = {
    "postgresql": """CREATE TABLE "cqrs_inbox" (
    "id" character varying(255) NOT NULL,
    "handler" character varying(255) NOT NULL,
    "attempts" integer NOT NULL,
    "result" bytea NULL,
    "created_at" timestamp with time zone NOT NULL,
    PRIMARY KEY ("id", "handler")
)""",
    "mysql": """CREATE TABLE `cqrs_inbox` (
    `id` varchar(255) COLLATE `utf8mb4_bin` NOT NULL,
    `handler` varchar(255) COLLATE `utf8mb4_bin` NOT NULL,
    `attempts` integer NOT NULL,
    `result` longblob NULL,
    `created_at` datetime(6) NOT NULL,
    PRIMARY KEY (`id`, `handler`)
) ENGINE InnoDB CHARACTER SET utf8mb4 COLLATE utf8mb4_bin""",
    "sqlite": """CREATE TABLE "cqrs_inbox" (
    "id" varchar(255) NOT NULL,
    "handler" varchar(255) NOT NULL,
    "attempts" integer NOT NULL,
    "result" BLOB NULL,
    "created_at" datetime NOT NULL,
    PRIMARY KEY ("id", "handler")
)""",
}


class CreateInbox(migrations.CreateModel):
    """Create the table with a primary key of two columns, which no model of Django before 5.2 can ask for."""

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Create table and index."""
        table = _TABLES.get(schema_editor.connection.vendor)
        # On a kind of database that no inbox is for, there is none.
        if table is not None and self._is_for(app_label, schema_editor):
            schema_editor.execute(table)
            schema_editor.execute("CREATE INDEX cqrs_inbox_created ON cqrs_inbox (created_at)")

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Drop both."""
        if schema_editor.connection.vendor in _TABLES and self._is_for(app_label, schema_editor):
            schema_editor.execute("DROP TABLE cqrs_inbox")

    def _is_for(self, app_label: str, schema_editor: Any) -> bool:
        return bool(router.allow_migrate(schema_editor.connection.alias, app_label, model_name="receipt"))


class Migration(migrations.Migration):
    """Create the table."""

    dependencies: ClassVar[list[Any]] = [("cqrs_sync", "0001_initial")]

    operations: ClassVar[list[Any]] = [
        CreateInbox(
            name="Receipt",
            fields=[
                ("id", fields.ExactCharField(editable=False, max_length=255, primary_key=True, serialize=False)),
                ("handler", fields.ExactCharField(blank=True, max_length=255)),
                ("attempts", models.IntegerField()),
                ("result", models.BinaryField(null=True)),
                ("created_at", models.DateTimeField()),
            ],
            options={
                "verbose_name": "receipt of the inbox",
                "verbose_name_plural": "receipts of the inbox",
                "db_table": "cqrs_inbox",
                "default_permissions": ("view",),
            },
        ),
    ]
