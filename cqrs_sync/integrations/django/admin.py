"""The admin: look at what waits, replay or discard what is dead, change nothing else."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.db.models import QuerySet
from django.http import HttpRequest

from cqrs_sync.integrations.django.models import Delivery, Message
from cqrs_sync.integrations.django.outbox import DjangoOutbox
from cqrs_sync.outbox import Selection

#: Characters of a payload that are shown.
_SHOWN = 10_000


class _ReadOnly(admin.ModelAdmin):
    """Rows are written by the library, in transactions that the admin knows nothing of."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        del request
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        del request, obj
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        del request, obj
        return False


@admin.register(Message)
class MessageAdmin(_ReadOnly):
    """Messages; their payloads only for those who may see them."""

    list_display = ("id", "type", "topic", "partition_key", "created_at")
    list_filter = ("topic", "type")
    search_fields = ("=id", "=partition_key")
    ordering = ("-created_at",)
    show_full_result_count = False

    def get_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        """Leave the payload out for those who may not see it."""
        del obj
        fields = ["id", "type", "topic", "partition_key", "content_type", "headers", "created_at"]
        return [*fields, "shown_payload"] if request.user.has_perm("cqrs_sync.view_payload") else fields

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        """All of them."""
        return self.get_fields(request, obj)

    @admin.display(description="payload")
    def shown_payload(self, message: Message) -> str:
        """Return the payload as text; Django escapes it."""
        return bytes(message.payload)[:_SHOWN].decode("utf-8", "backslashreplace")


@admin.register(Delivery)
class DeliveryAdmin(_ReadOnly):
    """Deliveries that are not made yet; the dead ones can be replayed or discarded."""

    list_display = ("id", "message_id", "target", "status", "attempts", "due_at", "reason")
    list_filter = ("status", "kind", "target", "reason")
    search_fields = ("=message__id",)
    ordering = ("id",)
    show_full_result_count = False
    actions = ("replay", "discard")
    fields = ("id", "message", "kind", "target", "status", "attempts", "due_at", "reason", "last_error")
    readonly_fields = fields

    def has_replay_permission(self, request: HttpRequest) -> bool:
        """Tell who may use the action."""
        return bool(request.user.has_perm("cqrs_sync.replay_delivery"))

    def has_discard_permission(self, request: HttpRequest) -> bool:
        """Tell who may use the action."""
        return bool(request.user.has_perm("cqrs_sync.discard_delivery"))

    @admin.action(description="Replay dead deliveries", permissions=["replay"])
    def replay(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> None:
        """Let what is dead be tried again, with its attempts forgotten."""
        self._change(request, queryset, "replay", "replayed")

    @admin.action(description="Discard dead deliveries", permissions=["discard"])
    def discard(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> None:
        """Delete what is dead; what waits behind it goes on."""
        self._change(request, queryset, "discard", "discarded")

    def _change(self, request: HttpRequest, queryset: QuerySet[Delivery], what: str, done: str) -> None:
        dead = list(queryset.filter(status="dead").select_related("message"))
        outbox = DjangoOutbox(queryset.db)
        count = 0
        for start in range(0, len(dead), 500):
            some = dead[start : start + 500]
            numbers = tuple(each.pk for each in some)
            count += getattr(outbox, what)(Selection(numbers=numbers), limit=len(numbers))
        kind = ContentType.objects.get_for_model(Delivery)
        LogEntry.objects.bulk_create(
            LogEntry(
                user_id=request.user.pk,
                content_type=kind,
                object_id=str(each.pk),
                object_repr=str(each)[:200],
                action_flag=CHANGE,
                change_message=done,
            )
            for each in dead
        )
        self.message_user(request, f"{count} deliveries were {done}.", messages.SUCCESS)
