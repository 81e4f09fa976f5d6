"""Wire it all: the only module that knows every part."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import punq

from cqrs_sync.broker import MessageBroker
from cqrs_sync.container import Container, PunqContainer
from cqrs_sync.dispatcher import EventDispatcher, RequestDispatcher
from cqrs_sync.emitter import EventEmitter
from cqrs_sync.errors import ConfigurationError
from cqrs_sync.failures import FailurePolicy
from cqrs_sync.mediator import EventMediator, RequestMediator
from cqrs_sync.middleware import Middleware, MiddlewareChain
from cqrs_sync.registry import EventMap, RequestMap
from cqrs_sync.serializer import JsonSerializer, Serializer
from cqrs_sync.threads import Executor, ThreadPool
from cqrs_sync.transactions import Transactions


def bootstrap(  # noqa: PLR0913 -- one call wires everything; all but two are keywords
    requests: RequestMap | None = None,
    events: EventMap | None = None,
    *,
    container: Container | punq.Container | None = None,
    broker: MessageBroker | None = None,
    threads: Executor | int | None = None,
    transactions: Transactions | None = None,
    middleware: MiddlewareChain | Iterable[Middleware] = (),
    failures: FailurePolicy | None = None,
    serializer: Serializer | None = None,
    max_depth: int = 16,
) -> RequestMediator:
    """
    Make a mediator.

    - `container` builds handlers and what they need; without one, those that need nothing.
    - `broker` is where notification events go; without one, raising them is an error.
    - `threads` is where event handlers run: a `ThreadPool` of a size fit for this
      machine, one of the size given, or `SameThread()`.
    - `transactions` tells when a surrounding transaction commits; none is assumed.
    - `middleware` wraps each request and each event handler, the first one outermost;
      a `MiddlewareChain` chooses by message type.
    - `failures` decides about failing event handlers: `Collect()`, `FailFast()`, `Log()`.
    - `serializer` writes and reads messages; `JsonSerializer(source="...")` tells who publishes.
    - `max_depth` is how many follow-ups long a chain of events may be.

    Nothing is started by it. Closing the mediator closes `threads` and `broker`.
    """
    requests = RequestMap() if requests is None else _checked(requests, RequestMap, "requests")
    events = EventMap() if events is None else _checked(events, EventMap, "events")
    chain = middleware if isinstance(middleware, MiddlewareChain) else MiddlewareChain(middleware)
    if container is None or isinstance(container, punq.Container):
        container = PunqContainer(container)
    resolver: Container = _able("container", "resolve", container)
    executor = ThreadPool(threads) if threads is None or isinstance(threads, int) else _able("threads", "run", threads)
    serializer = _able("serializer", "dump", serializer) or JsonSerializer()
    emitter = None
    if broker is not None:
        emitter = EventEmitter(_able("broker", "publish", broker), serializer=serializer, middleware=chain)
    dispatcher = EventDispatcher(
        events,
        resolver,
        emitter=emitter,
        threads=executor,
        transactions=_able("transactions", "on_commit", transactions),
        middleware=chain,
        failures=_able("failures", "settle", failures),
        max_depth=_above_zero("max_depth", max_depth),
    )
    return RequestMediator(
        RequestDispatcher(requests, resolver, dispatcher, middleware=chain),
        EventMediator(dispatcher, events, serializer=serializer, middleware=chain),
        close=_closing(executor, broker),
    )


def _closing(threads: Executor, broker: MessageBroker | None) -> Callable[[float], None]:
    def close(timeout: float) -> None:
        # Handlers publish: the threads go first.
        until = time.monotonic() + timeout
        threads.close(timeout)
        if broker is not None:
            broker.close(max(0.1, until - time.monotonic()))

    return close


def _able(role: str, method: str, part: Any) -> Any:
    if part is not None and (isinstance(part, type) or not callable(getattr(part, method, None))):
        raise ConfigurationError(f"{role} must be an object with the method {method}(...), not {part!r}")
    return part


def _above_zero(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{name} must be a whole number above 0, not {value!r}")
    return value


def _checked(value: Any, wanted: type, name: str) -> Any:
    if not isinstance(value, wanted):
        raise ConfigurationError(f"{name} must be a {wanted.__name__}, not {value!r}")
    return value
