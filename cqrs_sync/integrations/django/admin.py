"""The admin: look at what waits, replay or discard what is dead, change nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.conf import settings
from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.db import router, transaction
from django.db.models import Count, QuerySet
from django.http import HttpRequest

from cqrs_sync.integrations.django.models import Delivery, Message, Receipt
from cqrs_sync.integrations.django.stores import DjangoOutbox
from cqrs_sync.integrations.django.wiring import inbox_of, mediator_of_settings, outbox_of
from cqrs_sync.outbox import Selection
from cqrs_sync.relay import Relay
from cqrs_sync.sql.statements import DEAD

#: Bytes of a payload that are shown.
_SHOWN = 10_000
#: Deliveries that one transaction changes.
_CHUNK = 500
#: Groups of errors that are offered, the largest first.
_GROUPS = 50


def _wired() -> tuple[DjangoOutbox, Relay | None]:
    """Return the outbox of the mediator that the settings name, and what delivers from it."""
    if getattr(settings, "CQRS_SYNC", None):
        mediator = mediator_of_settings()
        outbox = outbox_of(mediator)
        if outbox is not None:
            return outbox, mediator.relay
    return DjangoOutbox(router.db_for_write(Delivery)), None


class _ReadOnly(admin.ModelAdmin):
    """Rows are written by the library, in transactions that the admin knows nothing of."""

    show_full_result_count = False

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Look into the database that the outbox is in."""
        return super().get_queryset(request).using(_wired()[0].using)

    def lookup_allowed(self, lookup: str, value: Any, request: HttpRequest | None = None) -> bool:
        """Let nobody find out by the address of a page what payloads he may not see have in them."""
        # Django 4.2 gives no request.
        arguments = (value,) if request is None else (value, request)
        return not {"payload", "result"} & set(lookup.split("__")) and bool(super().lookup_allowed(lookup, *arguments))

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

    def get_queryset(self, request: HttpRequest) -> QuerySet[Message]:
        """Leave what is large where it is, until it is shown."""
        return super().get_queryset(request).defer("payload", "headers")

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
        payload = bytes(message.payload)
        shown = payload[:_SHOWN].decode("utf-8", "backslashreplace")
        return shown if len(payload) <= _SHOWN else f"{shown}… ({len(payload)} bytes)"


class ErrorGroups(admin.SimpleListFilter):
    """Dead deliveries that failed alike, with their number."""

    title = "dead by reason"
    parameter_name = "reason"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin) -> Sequence[tuple[str, str]]:
        """Return the largest groups."""
        dead = model_admin.get_queryset(request).filter(status=DEAD).order_by()
        groups = dead.values_list("reason").annotate(number=Count("pk")).order_by("-number", "reason")
        return [(reason, f"{reason} ({number})") for reason, number in groups[:_GROUPS]]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> QuerySet[Delivery]:
        """Show one of them."""
        del request
        return queryset if self.value() is None else queryset.filter(status=DEAD, reason=self.value())


@admin.register(Delivery)
class DeliveryAdmin(_ReadOnly):
    """Deliveries that are not made yet; the dead ones can be replayed or discarded."""

    list_display = ("id", "message_id", "target", "status", "attempts", "due_at", "reason")
    list_filter = ("status", ErrorGroups, "kind", "target")
    search_fields = ("=message__id",)
    ordering = ("id",)
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
        outbox, relay = _wired()
        dead = list(queryset.filter(status=DEAD).order_by("pk").values_list("pk", "message_id", "target"))
        count = 0
        for start in range(0, len(dead), _CHUNK):
            some = dead[start : start + _CHUNK]
            # Nothing is changed that is not written down: where that fails, this is rolled back.
            with transaction.atomic(using=outbox.using):
                count += getattr(outbox, what)(Selection(numbers=tuple(number for number, *_ in some)), limit=len(some))
                _write_down(request, some, done)
                if relay is not None:
                    transaction.on_commit(relay.wake, using=outbox.using, robust=True)
        level = messages.SUCCESS if count else messages.WARNING
        self.message_user(request, f"{count} dead deliveries were {done}.", level)


@admin.register(Receipt)
class ReceiptAdmin(_ReadOnly):
    """What was done, newest first; the list alone, since no single column names a row."""

    list_display = ("id", "handler", "attempts", "created_at")
    list_display_links = None
    search_fields = ("=id",)
    ordering = ("-created_at",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Receipt]:
        """Look into the database that the inbox is in, and leave answers there."""
        return super().get_queryset(request).using(_alias_of_inbox()).defer("result")

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> None:
        """Find none."""
        del request, object_id, from_field


def _alias_of_inbox() -> str:
    if getattr(settings, "CQRS_SYNC", None):
        inbox = inbox_of(mediator_of_settings())
        if inbox is not None:
            return inbox.using
    return str(router.db_for_write(Receipt))


def _write_down(request: HttpRequest, deliveries: Sequence[tuple[int, str, str]], done: str) -> None:
    kind = ContentType.objects.get_for_model(Delivery)
    LogEntry.objects.bulk_create(
        LogEntry(
            user_id=request.user.pk,
            content_type=kind,
            object_id=str(number),
            object_repr=f"{message_id} for {target}"[:200],
            action_flag=CHANGE,
            change_message=done,
        )
        for number, message_id, target in deliveries
    )
