"""The admin: shows the outbox and the inbox, and replays or discards dead deliveries. It changes nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from django.conf import settings
from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.db import router, transaction
from django.db.models import Count, QuerySet
from django.http import HttpRequest

from cqrs_sync.integrations.django.database import DjangoOutbox
from cqrs_sync.integrations.django.models import Delivery, Message, Receipt
from cqrs_sync.integrations.django.wiring import inbox_of, mediator_of_settings, outbox_of
from cqrs_sync.mediator import Mediator
from cqrs_sync.outbox import DeadLetterSelection
from cqrs_sync.sql.outbox import DEAD

#: Bytes of a payload that the admin shows.
_SHOWN_BYTES = 10_000
#: Deliveries that one transaction changes.
_BATCH = 500
#: Reasons that the filter offers, the most frequent first.
_REASONS = 50


def _mediator() -> Mediator | None:
    return mediator_of_settings() if getattr(settings, "CQRS_SYNC", None) else None


def _outbox(mediator: Mediator | None) -> DjangoOutbox:
    outbox = None if mediator is None else outbox_of(mediator)
    return outbox or DjangoOutbox(router.db_for_write(Delivery))


class _ReadOnly(admin.ModelAdmin):
    """Allows no changes: the library writes the rows, in its own transactions."""

    show_full_result_count = False

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Query the database of the outbox."""
        return super().get_queryset(request).using(_outbox(_mediator()).using)

    def lookup_allowed(self, lookup: str, value: Any, request: HttpRequest) -> bool:
        """Refuse filters in the URL that would reveal the content of a payload or result."""
        secret = {"payload", "result"} & set(lookup.split("__"))
        return not secret and bool(super().lookup_allowed(lookup, value, request))

    def _refuse(self, request: HttpRequest, obj: Any = None) -> bool:
        del request, obj
        return False

    has_add_permission = has_change_permission = has_delete_permission = _refuse


@admin.register(Message)
class MessageAdmin(_ReadOnly):
    """Messages. Payloads need the permission `view_payload`."""

    list_display = ("id", "type", "topic", "partition_key", "created_at")
    list_filter = ("topic", "type")
    search_fields = ("=id", "=partition_key")
    ordering = ("-created_at",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Message]:
        """Leave out the large columns, which the list does not show."""
        return super().get_queryset(request).defer("payload", "headers")

    def get_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        """Show the payload to users with the permission `view_payload`."""
        del obj
        fields = ["id", "type", "topic", "partition_key", "content_type", "headers", "created_at"]
        return [*fields, "shown_payload"] if request.user.has_perm("cqrs_sync.view_payload") else fields

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        """Return all fields."""
        return self.get_fields(request, obj)

    @admin.display(description="payload")
    def shown_payload(self, message: Message) -> str:
        """Return the start of the payload as text; Django escapes it."""
        payload = bytes(message.payload)
        shown = payload[:_SHOWN_BYTES].decode("utf-8", "backslashreplace")
        return shown if len(payload) <= _SHOWN_BYTES else f"{shown}… ({len(payload)} bytes)"


class DeadReasonFilter(admin.SimpleListFilter):
    """Filters dead deliveries by reason, and shows how many have each."""

    title = "reason of dead deliveries"
    parameter_name = "reason"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin) -> Sequence[tuple[str, str]]:
        """Return the most frequent reasons."""
        dead = model_admin.get_queryset(request).filter(status=DEAD).order_by()
        groups = dead.values_list("reason").annotate(number=Count("pk")).order_by("-number", "reason")
        return [(reason, f"{reason} ({number})") for reason, number in groups[:_REASONS]]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> QuerySet[Delivery]:
        """Select the dead deliveries with the chosen reason."""
        del request
        return queryset if self.value() is None else queryset.filter(status=DEAD, reason=self.value())


@admin.register(Delivery)
class DeliveryAdmin(_ReadOnly):
    """Deliveries that are not done. Dead ones can be replayed or discarded."""

    list_display = ("id", "message_id", "target", "status", "attempts", "due_at", "reason")
    list_filter = ("status", DeadReasonFilter, "kind", "target")
    search_fields = ("=message__id",)
    ordering = ("id",)
    actions = ("replay", "discard")
    fields = ("id", "message", "kind", "target", "status", "attempts", "due_at", "reason", "last_error")
    readonly_fields = fields

    def has_replay_permission(self, request: HttpRequest) -> bool:
        """Tell whether the user may use the action."""
        return bool(request.user.has_perm("cqrs_sync.replay_delivery"))

    def has_discard_permission(self, request: HttpRequest) -> bool:
        """Tell whether the user may use the action."""
        return bool(request.user.has_perm("cqrs_sync.discard_delivery"))

    @admin.action(description="Replay dead deliveries", permissions=["replay"])
    def replay(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> None:
        """Deliver dead deliveries again, with no attempts counted."""
        self._change(request, queryset, DjangoOutbox.replay, "replayed")

    @admin.action(description="Discard dead deliveries", permissions=["discard"])
    def discard(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> None:
        """Delete dead deliveries. Those that wait behind them are delivered then."""
        self._change(request, queryset, DjangoOutbox.discard, "discarded")

    def _change(
        self, request: HttpRequest, queryset: QuerySet[Delivery], change: Callable[..., int], done: str
    ) -> None:
        mediator = _mediator()
        outbox = _outbox(mediator)
        relay = mediator.relay if mediator is not None and mediator.wiring.outbox is outbox else None
        dead = list(queryset.filter(status=DEAD).order_by("pk").values_list("pk", "message_id", "target"))
        count = 0
        for start in range(0, len(dead), _BATCH):
            some = dead[start : start + _BATCH]
            # The change and its log entries commit together.
            with transaction.atomic(using=outbox.using):
                count += change(
                    outbox, DeadLetterSelection(numbers=tuple(number for number, *_ in some)), limit=len(some)
                )
                _log_changes(request, some, done)
                if relay is not None:
                    transaction.on_commit(relay.wake, using=outbox.using, robust=True)
        level = messages.SUCCESS if count else messages.WARNING
        self.message_user(request, f"{count} dead {'delivery was' if count == 1 else 'deliveries were'} {done}.", level)


@admin.register(Receipt)
class ReceiptAdmin(_ReadOnly):
    """Receipts of the inbox, newest first. A list only: no single column identifies a row."""

    list_display = ("id", "handler", "attempts", "created_at")
    list_display_links = None
    search_fields = ("=id",)
    ordering = ("-created_at",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Receipt]:
        """Query the database of the inbox, without the kept results."""
        mediator = _mediator()
        inbox = None if mediator is None else inbox_of(mediator)
        alias = router.db_for_write(Receipt) if inbox is None else inbox.using
        return super().get_queryset(request).using(alias).defer("result")

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> None:
        """Find no object: rows have no page of their own."""
        del request, object_id, from_field


def _log_changes(request: HttpRequest, deliveries: Sequence[tuple[int, str, str]], done: str) -> None:
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
