"""
Synchronous CQRS and events.

A command reaches its handler, the handler's events reach theirs on a thread pool,
and what other services must know leaves through Kafka or RabbitMQ: no event loop,
nothing lost.
"""

# ruff: noqa: I001, RUF022 -- grouped by what they are for, not by module

import importlib
import typing

# What applications write
from cqrs_sync.messages import Command, DomainEvent, Event, NotificationEvent, Query, Request, Response, notification
from cqrs_sync.handlers import EventHandler, RequestHandler
from cqrs_sync.registry import EventMap, Phase, RequestMap
from cqrs_sync.context import correlation_id, current_attributes, message_attributes, raise_event, time_left

# Wiring
from cqrs_sync.bootstrap import bootstrap
from cqrs_sync.mediator import Mediator
from cqrs_sync.containers.punq import PunqContainer
from cqrs_sync.threads.pool import SameThread, ThreadPool
from cqrs_sync.middleware import (
    LoggingMiddleware,
    MiddlewareChain,
    RetryMiddleware,
    TimingMiddleware,
    ValidationMiddleware,
)

# Failures and retry
from cqrs_sync.failures import CollectFailures, FailFast, LogFailures
from cqrs_sync.errors import Failure
from cqrs_sync.retry import OnDeadLetter, RetryPolicies, RetryPolicy

# Outbox and inbox
from cqrs_sync.inbox import Inbox, Receipt

# Brokers and consumers
from cqrs_sync.broker import (
    Delivery,
    Group,
    IncomingMessage,
    MessageBroker,
    OutgoingMessage,
    ReceivingBroker,
    Subscription,
)

# For your own parts: sockets, and what they are given
from cqrs_sync.container import Container
from cqrs_sync.dispatch.dispatcher import EventDispatcher, RequestDispatcher
from cqrs_sync.emitter import EventEmitter
from cqrs_sync.failures import FailurePolicy
from cqrs_sync.middleware import CallNext, Middleware
from cqrs_sync.serializer import JsonSerializer, Serializer
from cqrs_sync.threads.executor import Executor
from cqrs_sync.transactions import NoTransactions, Transactions

# Errors
from cqrs_sync.errors import (
    AlreadyBound,
    BrokerNotConfigured,
    BrokerUnavailable,
    ClosedError,
    ConfigurationError,
    CqrsError,
    DeadlineExceeded,
    DeliveryError,
    EventCycle,
    EventNotSerializable,
    EventsFailed,
    EventTooLarge,
    HandlerNotBuilt,
    HandlerNotFound,
    HandlerOverran,
    HandlerReused,
    IdempotencyKeyConflict,
    InboxNotInstalled,
    InboxUnavailable,
    InvalidBinding,
    InvalidMessage,
    MalformedMessage,
    MessageRejected,
    NotInTransaction,
    OutboxNotInstalled,
    OutboxUnavailable,
    PermanentError,
    PublishFailed,
    RaisedOutsideHandler,
    SerializationError,
    TemporaryError,
    TransactionLost,
    UnknownMessageType,
)

if typing.TYPE_CHECKING:
    from cqrs_sync.consumer import Consumer, OnUnknownType
    from cqrs_sync.outbox import OnNoTransaction, Outbox, PublishedBy
    from cqrs_sync.relay import Relay

__all__ = [
    # What applications write
    "Command",
    "correlation_id",
    "current_attributes",
    "DomainEvent",
    "Event",
    "EventHandler",
    "EventMap",
    "message_attributes",
    "notification",
    "NotificationEvent",
    "Phase",
    "Query",
    "raise_event",
    "Request",
    "RequestHandler",
    "RequestMap",
    "Response",
    "time_left",
    # Wiring
    "bootstrap",
    "LoggingMiddleware",
    "Mediator",
    "MiddlewareChain",
    "PunqContainer",
    "RetryMiddleware",
    "SameThread",
    "ThreadPool",
    "TimingMiddleware",
    "ValidationMiddleware",
    # Failures and retry
    "CollectFailures",
    "FailFast",
    "Failure",
    "LogFailures",
    "OnDeadLetter",
    "RetryPolicies",
    "RetryPolicy",
    # Outbox and inbox
    "Inbox",
    "OnNoTransaction",
    "Outbox",
    "PublishedBy",
    "Receipt",
    "Relay",
    # Brokers and consumers
    "Consumer",
    "Delivery",
    "Group",
    "IncomingMessage",
    "MessageBroker",
    "OnUnknownType",
    "OutgoingMessage",
    "ReceivingBroker",
    "Subscription",
    # For your own parts: sockets, and what they are given
    "CallNext",
    "Container",
    "EventDispatcher",
    "EventEmitter",
    "Executor",
    "FailurePolicy",
    "JsonSerializer",
    "Middleware",
    "NoTransactions",
    "RequestDispatcher",
    "Serializer",
    "Transactions",
    # Errors
    "AlreadyBound",
    "BrokerNotConfigured",
    "BrokerUnavailable",
    "ClosedError",
    "ConfigurationError",
    "CqrsError",
    "DeadlineExceeded",
    "DeliveryError",
    "EventCycle",
    "EventNotSerializable",
    "EventsFailed",
    "EventTooLarge",
    "HandlerNotBuilt",
    "HandlerNotFound",
    "HandlerOverran",
    "HandlerReused",
    "IdempotencyKeyConflict",
    "InboxNotInstalled",
    "InboxUnavailable",
    "InvalidBinding",
    "InvalidMessage",
    "MalformedMessage",
    "MessageRejected",
    "NotInTransaction",
    "OutboxNotInstalled",
    "OutboxUnavailable",
    "PermanentError",
    "PublishFailed",
    "RaisedOutsideHandler",
    "SerializationError",
    "TemporaryError",
    "TransactionLost",
    "UnknownMessageType",
]

#: Imported at their first use: without an outbox and a consumer, `import cqrs_sync` takes a tenth less.
_LATER = {
    "OnNoTransaction": "cqrs_sync.outbox",
    "Outbox": "cqrs_sync.outbox",
    "PublishedBy": "cqrs_sync.outbox",
    "Relay": "cqrs_sync.relay",
    "Consumer": "cqrs_sync.consumer",
    "OnUnknownType": "cqrs_sync.consumer",
}

if not typing.TYPE_CHECKING:
    # Type checkers would take any name for one of this module.

    def __getattr__(name: str) -> typing.Any:
        if name not in _LATER:
            from cqrs_sync.keywords import unknown_name  # noqa: PLC0415 -- needed for this error only

            raise unknown_name(__name__, name, __all__)
        value = globals()[name] = getattr(importlib.import_module(_LATER[name]), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *_LATER})
