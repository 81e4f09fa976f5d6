"""
Synchronous CQRS and events.

A command reaches its handler, the handler's events reach theirs on a thread pool,
and what other services must know leaves through Kafka or RabbitMQ: no event loop,
nothing lost.
"""

from cqrs_sync.bootstrap import bootstrap
from cqrs_sync.broker import (
    Delivery,
    Group,
    IncomingMessage,
    MessageBroker,
    OutgoingMessage,
    ReceivingBroker,
    Subscription,
)
from cqrs_sync.consumer import Consumer, OnUnknownType
from cqrs_sync.container import Container
from cqrs_sync.containers.punq import PunqContainer
from cqrs_sync.context import current_attributes, message_attributes, raise_event, time_left
from cqrs_sync.dispatch.dispatcher import EventDispatcher, RequestDispatcher
from cqrs_sync.emitter import EventEmitter
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
    Failure,
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
    SerializationError,
    TemporaryError,
    TransactionLost,
    UnknownMessageType,
)
from cqrs_sync.failures import CollectFailures, FailFast, LogFailures
from cqrs_sync.handlers import EventHandler, RequestHandler
from cqrs_sync.inbox import Inbox, Receipt
from cqrs_sync.mediator import Mediator
from cqrs_sync.messages import Command, DomainEvent, Event, NotificationEvent, Query, Request, Response, notification
from cqrs_sync.middleware import (
    LoggingMiddleware,
    Middleware,
    MiddlewareChain,
    RetryMiddleware,
    TimingMiddleware,
    ValidationMiddleware,
)
from cqrs_sync.outbox import OnNoTransaction, Outbox, PublishedBy
from cqrs_sync.registry import EventMap, Phase, RequestMap
from cqrs_sync.relay import Relay
from cqrs_sync.retry import OnDeadLetter, RetryPolicies, RetryPolicy
from cqrs_sync.serializer import JsonSerializer, Serializer
from cqrs_sync.threads.pool import SameThread, ThreadPool
from cqrs_sync.transactions import NoTransactions, Transactions

__all__ = [
    "AlreadyBound",
    "BrokerNotConfigured",
    "BrokerUnavailable",
    "ClosedError",
    "CollectFailures",
    "Command",
    "ConfigurationError",
    "Consumer",
    "Container",
    "CqrsError",
    "DeadlineExceeded",
    "Delivery",
    "DeliveryError",
    "DomainEvent",
    "Event",
    "EventCycle",
    "EventDispatcher",
    "EventEmitter",
    "EventHandler",
    "EventMap",
    "EventNotSerializable",
    "EventTooLarge",
    "EventsFailed",
    "FailFast",
    "Failure",
    "Group",
    "HandlerNotBuilt",
    "HandlerNotFound",
    "HandlerOverran",
    "HandlerReused",
    "IdempotencyKeyConflict",
    "Inbox",
    "InboxNotInstalled",
    "InboxUnavailable",
    "IncomingMessage",
    "InvalidBinding",
    "InvalidMessage",
    "JsonSerializer",
    "LogFailures",
    "LoggingMiddleware",
    "MalformedMessage",
    "Mediator",
    "MessageBroker",
    "MessageRejected",
    "Middleware",
    "MiddlewareChain",
    "NoTransactions",
    "NotInTransaction",
    "NotificationEvent",
    "OnDeadLetter",
    "OnNoTransaction",
    "OnUnknownType",
    "Outbox",
    "OutboxNotInstalled",
    "OutboxUnavailable",
    "OutgoingMessage",
    "PermanentError",
    "Phase",
    "PublishFailed",
    "PublishedBy",
    "PunqContainer",
    "Query",
    "Receipt",
    "ReceivingBroker",
    "Relay",
    "Request",
    "RequestDispatcher",
    "RequestHandler",
    "RequestMap",
    "Response",
    "RetryMiddleware",
    "RetryPolicies",
    "RetryPolicy",
    "SameThread",
    "SerializationError",
    "Serializer",
    "Subscription",
    "TemporaryError",
    "ThreadPool",
    "TimingMiddleware",
    "TransactionLost",
    "Transactions",
    "UnknownMessageType",
    "ValidationMiddleware",
    "bootstrap",
    "current_attributes",
    "message_attributes",
    "notification",
    "raise_event",
    "time_left",
]
