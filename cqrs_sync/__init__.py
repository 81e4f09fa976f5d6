"""
Synchronous CQRS and events.

A command reaches its handler, the handler's events reach theirs on a thread pool,
and what other services must know leaves through Kafka or RabbitMQ: no event loop,
nothing lost.
"""

from cqrs_sync.bootstrap import bootstrap
from cqrs_sync.broker import IncomingMessage, MessageBroker, OutgoingMessage
from cqrs_sync.container import Container
from cqrs_sync.containers.punq import PunqContainer
from cqrs_sync.context import annotate, carried, raise_event, time_left
from cqrs_sync.dispatch.dispatcher import EventDispatcher, RequestDispatcher
from cqrs_sync.emitter import EventEmitter
from cqrs_sync.errors import (
    AlreadyBound,
    AlreadyUsed,
    BrokerNotConfigured,
    BrokerUnavailable,
    Closed,
    ConfigurationError,
    CqrsError,
    DeadlineExceeded,
    DeliveryError,
    EventCycle,
    EventNotSerializable,
    EventsFailed,
    EventTooLarge,
    Failure,
    Fatal,
    HandlerNotBuilt,
    HandlerNotFound,
    HandlerOverran,
    HandlerReused,
    InboxNotInstalled,
    InboxUnavailable,
    InvalidBinding,
    InvalidMessage,
    MalformedMessage,
    MessageRejected,
    NotInTransaction,
    OutboxNotInstalled,
    OutboxUnavailable,
    PublishFailed,
    Retryable,
    SerializationError,
    TransactionLost,
    UnknownMessageType,
)
from cqrs_sync.failures import Collect, FailFast, Log
from cqrs_sync.handlers import EventHandler, RequestHandler
from cqrs_sync.inbox import Inbox, Receipt
from cqrs_sync.mediator import EventMediator, RequestMediator
from cqrs_sync.messages import Command, DomainEvent, Event, NotificationEvent, Query, Request, Response, notification
from cqrs_sync.middleware import (
    LoggingMiddleware,
    Middleware,
    MiddlewareChain,
    RetryMiddleware,
    TimingMiddleware,
    ValidationMiddleware,
)
from cqrs_sync.outbox import Outbox
from cqrs_sync.registry import EventMap, Phase, RequestMap
from cqrs_sync.relay import Relay
from cqrs_sync.retry import OnDeadLetter, RetryPolicies, RetryPolicy
from cqrs_sync.serializer import JsonSerializer, Serializer
from cqrs_sync.threads.pool import SameThread, ThreadPool
from cqrs_sync.transactions import NoTransactions, Transactions

__all__ = [
    "AlreadyBound",
    "AlreadyUsed",
    "BrokerNotConfigured",
    "BrokerUnavailable",
    "Closed",
    "Collect",
    "Command",
    "ConfigurationError",
    "Container",
    "CqrsError",
    "DeadlineExceeded",
    "DeliveryError",
    "DomainEvent",
    "Event",
    "EventCycle",
    "EventDispatcher",
    "EventEmitter",
    "EventHandler",
    "EventMap",
    "EventMediator",
    "EventNotSerializable",
    "EventTooLarge",
    "EventsFailed",
    "FailFast",
    "Failure",
    "Fatal",
    "HandlerNotBuilt",
    "HandlerNotFound",
    "HandlerOverran",
    "HandlerReused",
    "Inbox",
    "InboxNotInstalled",
    "InboxUnavailable",
    "IncomingMessage",
    "InvalidBinding",
    "InvalidMessage",
    "JsonSerializer",
    "Log",
    "LoggingMiddleware",
    "MalformedMessage",
    "MessageBroker",
    "MessageRejected",
    "Middleware",
    "MiddlewareChain",
    "NoTransactions",
    "NotInTransaction",
    "NotificationEvent",
    "OnDeadLetter",
    "Outbox",
    "OutboxNotInstalled",
    "OutboxUnavailable",
    "OutgoingMessage",
    "Phase",
    "PublishFailed",
    "PunqContainer",
    "Query",
    "Receipt",
    "Relay",
    "Request",
    "RequestDispatcher",
    "RequestHandler",
    "RequestMap",
    "RequestMediator",
    "Response",
    "RetryMiddleware",
    "RetryPolicies",
    "RetryPolicy",
    "Retryable",
    "SameThread",
    "SerializationError",
    "Serializer",
    "ThreadPool",
    "TimingMiddleware",
    "TransactionLost",
    "Transactions",
    "UnknownMessageType",
    "ValidationMiddleware",
    "annotate",
    "bootstrap",
    "carried",
    "notification",
    "raise_event",
    "time_left",
]
