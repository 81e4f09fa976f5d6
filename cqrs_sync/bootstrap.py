"""Put the parts of a mediator together: the only module that knows all of them."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Never

import punq

from cqrs_sync.broker import MessageBroker
from cqrs_sync.container import Container
from cqrs_sync.containers.punq import PunqContainer
from cqrs_sync.dispatch.dispatcher import EventDispatcher
from cqrs_sync.emitter import EventEmitter
from cqrs_sync.errors import ConfigurationError, check_above_zero
from cqrs_sync.failures import CollectFailures, FailurePolicy
from cqrs_sync.inbox import Inbox
from cqrs_sync.keywords import unknown_keywords
from cqrs_sync.mediator import Mediator
from cqrs_sync.middleware import Middleware, MiddlewareChain
from cqrs_sync.registry import EventMap, RequestMap
from cqrs_sync.retry import RetryPolicies, RetryPolicy
from cqrs_sync.serializer import JsonSerializer, Serializer
from cqrs_sync.threads.pool import Executor, ThreadPool
from cqrs_sync.transactions import NoTransactions, Transactions
from cqrs_sync.wiring import Wiring

if TYPE_CHECKING:
    from cqrs_sync.outbox import Outbox

#: Modules that functions import: each would make `import cqrs_sync` a tenth slower, as a rule.
_LATE_IMPORTS = ("concurrent.futures.thread", "decimal", "difflib", "hashlib")


def bootstrap(  # noqa: PLR0913 -- one call wires everything; all but two are keywords
    requests: RequestMap | None = None,
    events: EventMap | None = None,
    *,
    source: str | None = None,
    container: Container | punq.Container | None = None,
    broker: MessageBroker | None = None,
    outbox: Outbox | None = None,
    inbox: Inbox | None = None,
    retry: RetryPolicy | RetryPolicies | None = None,
    fast_path: bool = True,
    threads: Executor | int | None = None,
    transactions: Transactions | None = None,
    middleware: MiddlewareChain | Iterable[Middleware] = (),
    failure_policy: FailurePolicy | None = None,
    serializer: Serializer | None = None,
    max_depth: int = 16,
    **unknown: Never,
) -> Mediator:
    """
    Make a mediator.

    - `source` names this service on the wire, such as `"shop"`: receivers tell two messages apart by `source` and id.
      It is needed as soon as there is a `broker` or an `outbox`.
    - `container` builds handlers and their dependencies; without one, only handlers without dependencies.
    - `broker` publishes notification events; without one, raising them is an error.
    - `outbox` stores notification events, and those of durable handlers, in the transaction in which
      they were raised. The relay delivers them after its commit.
    - `inbox` stores receipts in the handler's own transaction: received messages and requests that are
      sent with a key have their effect once. It is in the same database as the outbox.
    - `retry` says when and how often a failed delivery of the outbox is attempted again: a `RetryPolicy` for all, or
      `RetryPolicies` by topic and durable handler. A target named there counts before the policy that
      `events.durable("name", retry=...)` was given, and that before the default.
    - `fast_path`: this process delivers what it has committed, at once. If False, only relays do.
    - `threads` runs event handlers: a number makes a `ThreadPool` of that size. By default the pool has a size
      that fits the machine; `SameThread()` runs them in the calling thread.
    - `transactions` says when a surrounding transaction commits. By default those of the outbox or the inbox;
      without these, there are none.
    - `middleware` wraps each request and each event handler, the first one outermost;
      a `MiddlewareChain` chooses by message type.
    - `failure_policy` decides what failed event handlers mean: `CollectFailures()`, `FailFast()`, `LogFailures()`.
    - `serializer` writes and reads messages, in place of `source`: `JsonSerializer(source="shop", structured=True)`.
    - `max_depth` is the length that a chain of follow-up events may have.

    It starts nothing. Closing the mediator closes `threads` and `broker`. Raises ConfigurationError for a part that
    does not fit, and if the `source` is missing.
    """
    if unknown:
        raise unknown_keywords(bootstrap, unknown)
    check_above_zero(max_depth=max_depth)
    # A child that is forked while another thread imports a module waits for that import without end.
    for name in _LATE_IMPORTS:
        import_module(name)
    broker, outbox = _able("broker", "publish", broker), _able("outbox", "claim", outbox)
    serializer = _serializer(source, serializer, leaves=_leaving(broker, outbox))
    chain = middleware if isinstance(middleware, MiddlewareChain) else MiddlewareChain(middleware)
    wiring = Wiring(
        request_map=_checked(requests, RequestMap, "requests"),
        event_map=_checked(events, EventMap, "events"),
        container=_resolver(container),
        broker=broker,
        emitter=EventEmitter(broker, serializer=serializer, middleware=chain),
        serializer=serializer,
        outbox=outbox,
        inbox=_able("inbox", "once", inbox),
        threads=_executor(threads),
        transactions=_transactions(transactions, outbox, inbox),
        middleware=chain,
        failure_policy=_able("failure_policy", "report", failure_policy) or CollectFailures(),
        retry=_checked(RetryPolicies(retry) if isinstance(retry, RetryPolicy) else retry, RetryPolicies, "retry"),
        fast_path=fast_path,
        max_depth=max_depth,
    )
    if outbox is None:
        return Mediator(wiring, EventDispatcher(wiring))
    from cqrs_sync.relay import Relay  # noqa: PLC0415 -- only an outbox needs it

    relay = Relay(wiring)
    return Mediator(wiring, relay.dispatcher, relay)


def _leaving(broker: MessageBroker | None, outbox: Outbox | None) -> str | None:
    """Name what takes messages out of this process, or keeps them for that."""
    return "a broker" if broker is not None else "an outbox" if outbox is not None else None


def _serializer(source: str | None, serializer: Serializer | None, *, leaves: str | None) -> Serializer:
    if source is not None and serializer is not None:
        raise ConfigurationError(
            "bootstrap takes a source or a serializer, not both: the serializer has its own source"
        )
    if serializer is not None:
        able: Serializer = _able("serializer", "dump", serializer)
        return able
    if source is None and leaves is not None:
        raise ConfigurationError(
            f'bootstrap was given {leaves}, and no name for this service on the wire: write bootstrap(source="shop"), '
            'or serializer=JsonSerializer(source="shop")'
        )
    # Without a broker and an outbox it only reads.
    return JsonSerializer(source="unnamed" if source is None else source)


def _resolver(container: Container | punq.Container | None) -> Container:
    if container is None or isinstance(container, punq.Container):
        return PunqContainer(container)
    resolver: Container = _able("container", "resolve", container)
    return resolver


def _executor(threads: Executor | int | None) -> Executor:
    if threads is None or isinstance(threads, int):
        return ThreadPool(threads)
    executor: Executor = _able("threads", "run", threads)
    return executor


def _transactions(transactions: Transactions | None, outbox: Outbox | None, inbox: Inbox | None) -> Transactions:
    if transactions is None and outbox is not None:
        transactions = outbox.transactions
    if transactions is None and inbox is not None:
        transactions = inbox.transactions
    known: Transactions | None = _able("transactions", "on_commit", transactions)
    return known or NoTransactions()


def _able(role: str, method: str, part: Any) -> Any:
    if part is not None and (isinstance(part, type) or not callable(getattr(part, method, None))):
        way_out = f": write {part.__name__}()" if isinstance(part, type) and hasattr(part, method) else ""
        raise ConfigurationError(f"{role} must be an object with the method {method}(...), not {part!r}{way_out}")
    return part


def _checked(value: Any, wanted: type, name: str) -> Any:
    if value is None:
        return wanted()
    if not isinstance(value, wanted):
        raise ConfigurationError(f"{name} must be a {wanted.__name__}, not {value!r}")
    return value
