"""The front door: a mediator wired as Django wants it, and the one that the settings name."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.utils import module_loading
from django.utils.module_loading import import_string

from cqrs_sync.bootstrap import bootstrap as bootstrap_core
from cqrs_sync.broker import MessageBroker
from cqrs_sync.consumer import Consumer
from cqrs_sync.errors import describe_with_location
from cqrs_sync.integrations.django.stores import DjangoInbox, DjangoOutbox
from cqrs_sync.integrations.django.transactions import Atomic, DjangoTransactions, old_connections_closed
from cqrs_sync.mediator import RequestMediator
from cqrs_sync.messages import Command
from cqrs_sync.middleware import Middleware, MiddlewareChain
from cqrs_sync.registry import EventMap, RequestMap
from cqrs_sync.threads.pool import Executor, ThreadPool

T = TypeVar("T")

#: What `CQRS_SYNC` may say.
KEYS = ("MEDIATOR", "CONSUMER", "GROUP")


def bootstrap(
    requests: RequestMap | None = None,
    events: EventMap | None = None,
    *,
    using: str = "default",
    outbox: DjangoOutbox | bool = True,
    inbox: DjangoInbox | bool = False,
    atomic: type | tuple[type, ...] = Command,
    broker: MessageBroker | None = None,
    threads: Executor | int | None = None,
    middleware: MiddlewareChain | Iterable[Middleware] = (),
    **options: Any,
) -> RequestMediator:
    """
    Make a mediator for Django: nothing that belongs together is wired apart.

    - `using` is the database that commands write to.
    - `atomic` are the messages whose handlers get a transaction on it, or a savepoint in that of the request:
      commands. Add `Event` where event handlers raise events; `()` where you open transactions yourself.
    - `outbox` keeps events in that database, with the app `cqrs_sync.integrations.django` installed and migrated; False
      where notification events may be lost with the process, and nothing is durable.
    - `inbox` remembers there what was done, for received messages and `send(..., once=key)`.
    - `threads` is where event handlers run; a pool made here closes old connections as Django does.
    - `middleware` is around the transaction. Everything else is as for `cqrs_sync.bootstrap`.

    Nothing is started and no model is loaded by it: it may be called at import, in any app.
    """
    # A copy: what is added belongs to this mediator, and not to others with the same chain.
    chain = middleware.copy() if isinstance(middleware, MiddlewareChain) else MiddlewareChain(middleware)
    if atomic:
        chain.add(Atomic(using), *(atomic if isinstance(atomic, tuple) else (atomic,)))
    if threads is None or isinstance(threads, int):
        threads = ThreadPool(threads, around=old_connections_closed)
    kept = DjangoOutbox(using) if outbox is True else outbox or None
    known = DjangoInbox(using) if inbox is True else inbox or None
    _check_place("outbox", kept, using, "events are kept in the transaction they are raised in")
    _check_place("inbox", known, using, "what was done is noted in the transaction it is done in")
    transactions = DjangoTransactions(using) if kept is None else None
    return bootstrap_core(
        requests,
        events,
        broker=broker,
        outbox=kept,
        inbox=known,
        threads=threads,
        transactions=transactions,
        middleware=chain,
        **options,
    )


def _check_place(what: str, part: DjangoOutbox | DjangoInbox | None, using: str, why: str) -> None:
    if part is not None and part.using != using:
        raise ImproperlyConfigured(
            f"the {what} is in the database {part.using!r} and the transactions are on {using!r}: "
            f"{why}, give both the same database"
        )


def mediator_of_settings(consumer: Consumer | None = None) -> RequestMediator:
    """
    Return the mediator that `CQRS_SYNC = {"MEDIATOR": "package.module.name"}` names, or what such a function returns.

    Where only a consumer is named, it is that one's: give the `consumer`, where it is made already. Raises
    ImproperlyConfigured where there is none, or where it cannot be made.
    """
    path = _setting("MEDIATOR")
    if path is None and (consumer := consumer or consumer_of_settings()) is not None:
        return consumer.mediator
    if not isinstance(path, str) or not path:
        raise ImproperlyConfigured('say where the mediator is: CQRS_SYNC = {"MEDIATOR": "shop.mediator.mediator"}')
    return _named("MEDIATOR", path, RequestMediator)


def consumer_of_settings() -> Consumer | None:
    """
    Return the consumer that `CQRS_SYNC = {"CONSUMER": "package.module.name"}` names, or what such a function returns.

    None where it names none. Raises ImproperlyConfigured for what is no consumer, or cannot be made.
    """
    path = _setting("CONSUMER")
    return None if not path else _named("CONSUMER", str(path), Consumer)


def unknown_keys() -> list[object]:
    """Return the keys of `CQRS_SYNC` that nobody looks at."""
    return [key for key in _chosen() if key not in KEYS]


def _setting(name: str) -> object:
    return _chosen().get(name)


def _chosen() -> Mapping[object, object]:
    chosen = getattr(settings, "CQRS_SYNC", None)
    return chosen if isinstance(chosen, Mapping) else {}


def _named(setting: str, path: str, kind: type[T]) -> T:
    words = f'CQRS_SYNC["{setting}"] names {path!r}'
    try:
        found = import_string(path)
    except Exception as error:
        raise ImproperlyConfigured(f"{words}, which cannot be imported: {_why(error)}") from error
    try:
        made = found() if callable(found) and not isinstance(found, kind) else found
    except Exception as error:
        raise ImproperlyConfigured(
            f"{words}: calling it without arguments failed: {describe_with_location(error)}"
        ) from error
    if not isinstance(made, kind):
        # Not its repr, which may hold anything.
        raise ImproperlyConfigured(
            f"{words}: a {kind.__qualname__}, or a function that returns one, is wanted, this is of the type "
            f"{type(made).__qualname__}"
        )
    return made


def _why(error: Exception) -> str:
    """Say why something could not be imported; where the path itself leads nowhere, no line of code is at fault."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    own = [name for name in files if not name.startswith("<frozen ")]
    of_the_path = isinstance(error, ImportError) and own[-1] in (module_loading.__file__, importlib.__file__)
    return str(error) if of_the_path else describe_with_location(error)


def inbox_of(mediator: RequestMediator) -> DjangoInbox | None:
    """Return the inbox of a mediator, if it is in a database of Django's."""
    inbox = mediator.wiring.inbox
    return inbox if isinstance(inbox, DjangoInbox) else None


def group_of_settings() -> str | None:
    """Return the group that `CQRS_SYNC = {"GROUP": "shop"}` names, if it does."""
    name = _setting("GROUP")
    return None if name is None else str(name)


def outbox_of(mediator: RequestMediator) -> DjangoOutbox | None:
    """Return the outbox of a mediator, if it is in a database of Django's."""
    outbox = mediator.wiring.outbox
    return outbox if isinstance(outbox, DjangoOutbox) else None
