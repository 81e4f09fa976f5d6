"""All parts of one mediator, as `bootstrap` put them together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import attrs

from cqrs_sync.broker import MessageBroker
from cqrs_sync.container import Container
from cqrs_sync.emitter import EventEmitter
from cqrs_sync.failures import FailurePolicy
from cqrs_sync.inbox import Inbox
from cqrs_sync.messages import Event
from cqrs_sync.middleware import MiddlewareChain
from cqrs_sync.registry import EventMap, RequestMap
from cqrs_sync.retry import RetryPolicies, RetryPolicy
from cqrs_sync.serializer import Serializer
from cqrs_sync.threads.executor import Executor
from cqrs_sync.transactions import Transactions

if TYPE_CHECKING:
    from cqrs_sync.outbox import Outbox


@attrs.frozen(kw_only=True, eq=False)
class Wiring:
    """
    The parts of one mediator. Only `bootstrap` makes it; `mediator.wiring` shows it.

    The mediator closes `threads` and `broker`. Nothing closes the other parts.
    """

    request_map: RequestMap
    event_map: EventMap
    container: Container
    #: None: this mediator cannot publish, except through a relay of another process.
    broker: MessageBroker | None
    emitter: EventEmitter
    serializer: Serializer
    outbox: Outbox | None
    inbox: Inbox | None
    threads: Executor
    transactions: Transactions
    middleware: MiddlewareChain
    failure_policy: FailurePolicy
    #: When and how often the relay attempts a failed delivery again.
    retry: RetryPolicies
    #: Whether this process delivers what it has committed to the outbox, without waiting for a relay.
    fast_path: bool
    max_depth: int
    #: For tests: called with events before their handlers run. Durable handlers then run after the commit, unstored.
    observer: Callable[[Sequence[Event]], object] | None = None

    def retry_of_handler(self, name: str) -> RetryPolicy:
        """Return the policy of a durable handler: what `retry` names comes before what `events.durable` was given."""
        return self.retry.targets.get(name) or self.event_map.retry_of(name) or self.retry.default
