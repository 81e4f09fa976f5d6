"""A mediator wired for Django, and the one that the settings name."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Never, TypeVar

import punq
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.utils import module_loading
from django.utils.module_loading import import_string

from cqrs_sync.bootstrap import bootstrap as bootstrap_core
from cqrs_sync.broker import MessageBroker
from cqrs_sync.consumer import Consumer
from cqrs_sync.container import Container
from cqrs_sync.errors import describe_with_location
from cqrs_sync.failures import FailurePolicy
from cqrs_sync.integrations import Default, with_transactions
from cqrs_sync.integrations.django.database import DjangoInbox, DjangoOutbox
from cqrs_sync.integrations.django.transactions import Atomic, DjangoTransactions, old_connections_closed
from cqrs_sync.keywords import unknown_keywords
from cqrs_sync.mediator import Mediator
from cqrs_sync.messages import Command
from cqrs_sync.middleware import Middleware, MiddlewareChain
from cqrs_sync.registry import EventMap, RequestMap
from cqrs_sync.retry import RetryPolicies, RetryPolicy
from cqrs_sync.serializer import Serializer, is_source
from cqrs_sync.threads.pool import Executor, ThreadPool

T = TypeVar("T")

#: The keys of the setting `CQRS_SYNC`.
KEYS = ("SOURCE", "MEDIATOR", "CONSUMER", "GROUP")


def bootstrap(  # noqa: PLR0913 -- as that of the core: all but two are keywords
    requests: RequestMap | None = None,
    events: EventMap | None = None,
    *,
    source: str | None = None,
    using: str = "default",
    outbox: DjangoOutbox | Default | None = Default.IN_DATABASE,
    inbox: DjangoInbox | Default | None = Default.IN_DATABASE,
    atomic: type | tuple[type, ...] = Command,
    container: Container | punq.Container | None = None,
    broker: MessageBroker | None = None,
    retry: RetryPolicy | RetryPolicies | None = None,
    fast_path: bool = True,
    threads: Executor | int | None = None,
    middleware: MiddlewareChain | Iterable[Middleware] = (),
    failure_policy: FailurePolicy | None = None,
    serializer: Serializer | None = None,
    max_depth: int = 16,
    **unknown: Never,
) -> Mediator:
    """
    Make a mediator whose transactions, outbox and inbox are in one database of `settings.DATABASES`.

    - `source` names this service on the wire. By default it is that of the settings: `CQRS_SYNC = {"SOURCE": "shop"}`.
    - `using` is the alias of the database that commands write to.
    - `atomic` names the messages whose handlers get a transaction on it, or a savepoint in the request's transaction.
      The default is commands. Add `Event` if event handlers raise events; use `()` if you open transactions yourself.
    - `outbox` keeps events in that database, and `inbox` receipts. They need the app `cqrs_sync.integrations.django`,
      installed and migrated. None leaves one out: without an outbox notification events can be lost with the process,
      and nothing is durable; without an inbox `send(..., idempotency_key=...)` is refused.
    - `threads` runs event handlers; a pool made here closes old connections as Django does.
    - `middleware` is around the transaction. All other arguments are those of `cqrs_sync.bootstrap`.

    Raises ImproperlyConfigured without a source, if there is a broker or an outbox. This starts nothing and loads no
    model: call it at import, in any app.
    """
    if unknown:
        raise unknown_keywords(bootstrap, unknown)
    if threads is None or isinstance(threads, int):
        threads = ThreadPool(threads, around=old_connections_closed)
    chosen_outbox = DjangoOutbox(using) if outbox is Default.IN_DATABASE else outbox
    chosen_inbox = DjangoInbox(using) if inbox is Default.IN_DATABASE else inbox
    _check_same_database("outbox", chosen_outbox, using)
    _check_same_database("inbox", chosen_inbox, using)
    if source is None and serializer is None and (broker is not None or chosen_outbox is not None):
        source = source_of_settings()
    return bootstrap_core(
        requests,
        events,
        source=source,
        container=container,
        broker=broker,
        outbox=chosen_outbox,
        inbox=chosen_inbox,
        retry=retry,
        fast_path=fast_path,
        threads=threads,
        transactions=DjangoTransactions(using) if chosen_outbox is None else None,
        middleware=with_transactions(middleware, Atomic(using), atomic),
        failure_policy=failure_policy,
        serializer=serializer,
        max_depth=max_depth,
    )


def _check_same_database(name: str, store: DjangoOutbox | DjangoInbox | None, using: str) -> None:
    if isinstance(store, (DjangoOutbox, DjangoInbox)) and store.using != using:
        raise ImproperlyConfigured(
            f"the {name} is in the database {store.using!r} and the transactions are on {using!r}: the {name} writes "
            "in the handler's transaction, so give both the same database"
        )


class SourceMissing(ImproperlyConfigured):
    """The settings do not name this service on the wire, or not as a name that CloudEvents allow."""


def source_of_settings() -> str:
    """Return the source that `CQRS_SYNC = {"SOURCE": "shop"}` names. Raises SourceMissing, with the way out."""
    source = _settings().get("SOURCE")
    if source is None:
        raise SourceMissing(
            'the settings do not name this service on the wire: write CQRS_SYNC = {"SOURCE": "shop", ...}, '
            'or bootstrap(source="shop")'
        )
    if not isinstance(source, str) or not is_source(source):
        raise SourceMissing(
            f'CQRS_SYNC["SOURCE"] must be the name of this service, without spaces, such as "shop", not {source!r}'
        )
    return source


def mediator_of_settings(consumer: Consumer | None = None) -> Mediator:
    """
    Return the mediator that `CQRS_SYNC = {"MEDIATOR": "package.module.name"}` names, or what such a function returns.

    If the settings name only a consumer, this returns the consumer's mediator; pass the `consumer` if you have it.
    Raises ImproperlyConfigured if the settings name neither, or if it cannot be made.
    """
    path = _settings().get("MEDIATOR")
    if path is None and (consumer := consumer or consumer_of_settings()) is not None:
        return consumer.mediator
    if not isinstance(path, str) or not path:
        raise ImproperlyConfigured(
            'the settings do not name a mediator: CQRS_SYNC = {"MEDIATOR": "shop.mediator.mediator"}'
        )
    return _load("MEDIATOR", path, Mediator)


def consumer_of_settings() -> Consumer | None:
    """
    Return the consumer that `CQRS_SYNC = {"CONSUMER": "package.module.name"}` names, or what such a function returns.

    None if the settings name none. Raises ImproperlyConfigured if it is not a consumer, or cannot be made.
    """
    path = _settings().get("CONSUMER")
    return None if not path else _load("CONSUMER", str(path), Consumer)


def group_of_settings() -> str | None:
    """Return the group that `CQRS_SYNC = {"GROUP": "shop"}` names, None if it names none."""
    name = _settings().get("GROUP")
    return None if name is None else str(name)


def unknown_keys() -> list[object]:
    """Return the keys of `CQRS_SYNC` that have no meaning."""
    return [key for key in _settings() if key not in KEYS]


def outbox_of(mediator: Mediator) -> DjangoOutbox | None:
    """Return the outbox of a mediator if it is in a database of Django's."""
    outbox = mediator.wiring.outbox
    return outbox if isinstance(outbox, DjangoOutbox) else None


def inbox_of(mediator: Mediator) -> DjangoInbox | None:
    """Return the inbox of a mediator if it is in a database of Django's."""
    inbox = mediator.wiring.inbox
    return inbox if isinstance(inbox, DjangoInbox) else None


def _settings() -> Mapping[object, object]:
    chosen = getattr(settings, "CQRS_SYNC", None)
    return chosen if isinstance(chosen, Mapping) else {}


def _load(setting: str, path: str, kind: type[T]) -> T:
    """Import an object, or call the imported function. Raises ImproperlyConfigured if it has not the right type."""
    words = f'CQRS_SYNC["{setting}"] names {path!r}'
    try:
        found = import_string(path)
    except Exception as error:
        # A module that was not imported yet is no attribute of its package.
        _refuse_module(words, path, _module(path), setting, kind)
        raise ImproperlyConfigured(f"{words}, which cannot be imported: {_describe_import_error(error)}") from error
    _refuse_module(words, path, found, setting, kind)
    try:
        made = found() if callable(found) and not isinstance(found, kind) else found
    except Exception as error:
        raise ImproperlyConfigured(
            f"{words}: calling it without arguments failed: {describe_with_location(error)}"
        ) from error
    if not isinstance(made, kind):
        # Its type only: its repr could hold secrets.
        raise ImproperlyConfigured(
            f"{words}: it must be a {kind.__qualname__}, or a function that returns one, not of the type "
            f"{type(made).__qualname__}"
        )
    return made


def _module(path: str) -> object:
    """Import a module; returns None if that fails."""
    try:
        return importlib.import_module(path)
    except Exception:  # noqa: BLE001 -- the error of the caller says why
        return None


def _refuse_module(words: str, path: str, found: object, setting: str, kind: type) -> None:
    """Raise ImproperlyConfigured if this is a module, with the name in it that may be meant."""
    if isinstance(found, ModuleType):
        name = next((name for name, value in vars(found).items() if isinstance(value, kind)), setting.lower())
        raise ImproperlyConfigured(f"{words}, which is a module: did you mean '{path}.{name}'?") from None


def _describe_import_error(error: Exception) -> str:
    """Describe why the import failed. If the path itself is wrong, no line of the application's code is at fault."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    own = [name for name in files if not name.startswith("<frozen ")]
    is_wrong_path = isinstance(error, ImportError) and own[-1] in (module_loading.__file__, importlib.__file__)
    return str(error) if is_wrong_path else describe_with_location(error)
