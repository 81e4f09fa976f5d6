"""The tables of the outbox and the inbox. `cqrs_sync.sql` writes them; models only define and read them."""

from __future__ import annotations

from django.db import models

from cqrs_sync.integrations.django.fields import ExactCharField, ExactTextField
from cqrs_sync.outbox import LONGEST


class Message(models.Model):
    """A message: final bytes, inserted in the business transaction and never changed."""

    id = ExactCharField(primary_key=True, max_length=LONGEST, editable=False)
    topic = ExactCharField(max_length=LONGEST, blank=True)
    type = ExactCharField(max_length=LONGEST)
    partition_key = ExactCharField(max_length=LONGEST, null=True, blank=True)  # NULL is not the empty string
    content_type = ExactCharField(max_length=LONGEST)
    payload = models.BinaryField()
    headers = ExactTextField()
    created_at = models.DateTimeField()

    class Meta:
        db_table = "cqrs_message"
        default_permissions = ("view",)
        permissions = (("view_payload", "Can view the payloads of messages"),)
        indexes = (models.Index(fields=["created_at"], name="cqrs_message_created"),)

    def __str__(self) -> str:
        return f"{self.type} {self.id}"


class Delivery(models.Model):
    """A delivery that is not done: publish a message to its topic, or run one durable handler with it."""

    message = models.ForeignKey(
        Message,
        on_delete=models.DO_NOTHING,
        related_name="deliveries",
        # Neither a constraint nor an index: both cost work for each message, and no query uses them.
        db_constraint=False,
        db_index=False,
    )
    kind = ExactCharField(max_length=7)
    target = ExactCharField(max_length=LONGEST)
    lane = models.BigIntegerField(null=True)
    size = models.IntegerField()
    status = ExactCharField(max_length=7)
    attempts = models.IntegerField()
    due_at = models.DateTimeField()
    token = ExactCharField(max_length=32, null=True)  # NULL is not the empty string
    reason = ExactCharField(max_length=LONGEST, blank=True)
    last_error = ExactTextField(blank=True)

    class Meta:
        db_table = "cqrs_delivery"
        verbose_name_plural = "deliveries"
        default_permissions = ("view",)
        permissions = (
            ("replay_delivery", "Can replay dead deliveries"),
            ("discard_delivery", "Can discard dead deliveries"),
        )
        indexes = (
            models.Index(fields=["kind", "status", "id"], name="cqrs_delivery_queue"),
            models.Index(fields=["lane", "status", "id"], name="cqrs_delivery_lane"),
        )

    def __str__(self) -> str:
        return f"{self.message_id} for {self.target}"


class Receipt(models.Model):
    """A receipt: this handler has handled this key."""

    # The primary key is id and handler. Models cannot say that before Django 5.2, so the migration does.
    id = ExactCharField(primary_key=True, max_length=LONGEST, editable=False)
    handler = ExactCharField(max_length=LONGEST, blank=True)
    attempts = models.IntegerField()
    result = models.BinaryField(null=True)
    created_at = models.DateTimeField()

    class Meta:
        # Managed, so that Django's flush empties it after a test.
        db_table = "cqrs_inbox"
        verbose_name = "receipt of the inbox"
        verbose_name_plural = "receipts of the inbox"
        default_permissions = ("view",)

    def __str__(self) -> str:
        return f"{self.id} for {self.handler}"
