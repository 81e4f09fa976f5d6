"""A mediator wired for SQLAlchemy: sessions, outbox, inbox and threads in one call."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, Never

import punq
from sqlalchemy import Engine, MetaData
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import QueuePool, StaticPool

from cqrs_sync.bootstrap import bootstrap as bootstrap_core
from cqrs_sync.broker import MessageBroker
from cqrs_sync.container import Container
from cqrs_sync.containers.punq import PunqContainer
from cqrs_sync.errors import ConfigurationError
from cqrs_sync.failures import FailurePolicy
from cqrs_sync.integrations import Default, with_transactions
from cqrs_sync.integrations.sqlalchemy.database import SQLAlchemyInbox, SQLAlchemyOutbox
from cqrs_sync.integrations.sqlalchemy.external_sessions import CurrentSession, ExternalSessions
from cqrs_sync.integrations.sqlalchemy.sessions import Sessions, begin_immediate
from cqrs_sync.integrations.sqlalchemy.tables import inbox_table, tables
from cqrs_sync.keywords import unknown_keywords
from cqrs_sync.mediator import Mediator
from cqrs_sync.messages import Event, Request
from cqrs_sync.middleware import Middleware, MiddlewareChain
from cqrs_sync.registry import EventMap, RequestMap
from cqrs_sync.retry import RetryPolicies, RetryPolicy
from cqrs_sync.serializer import Serializer
from cqrs_sync.threads.pool import Executor, SameThread, ThreadPool

logger: logging.Logger = logging.getLogger(__name__)

#: Connections beside those of handlers on the pool: the thread that sends a command, and two of the relay.
_SENDER, _RELAY = 1, 2


def bootstrap(  # noqa: PLR0913 -- as that of the core: all but two are keywords
    requests: RequestMap | None = None,
    events: EventMap | None = None,
    *,
    engine: Engine | None = None,
    metadata: MetaData | None = None,
    sessions: Sessions | ExternalSessions | sessionmaker[Any] | None = None,
    session: scoped_session[Any] | CurrentSession | None = None,
    around: Callable[[], AbstractContextManager[object]] | None = None,
    outbox: SQLAlchemyOutbox | Default | None = Default.IN_DATABASE,
    inbox: SQLAlchemyInbox | Default | None = Default.IN_DATABASE,
    atomic: type | tuple[type, ...] = (Request, Event),
    source: str | None = None,
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
    Make a mediator whose handlers ask for a `Session`, with outbox and inbox in the same database.

    - `source` names this service on the wire, such as `"shop"`. It is needed with an outbox or a broker.
    - `engine` connects to the database. On SQLite its transactions begin with `begin_immediate`.
    - `metadata` gets the tables of outbox and inbox, unless it has them: create them with `metadata.create_all(engine)`
      or a migration. Without it, they have their default names and are created elsewhere.
    - `sessions` is a `sessionmaker`, if sessions need options; or `Sessions`, if other code opens transactions, too.
    - `session` is the application's own, such as `db.session` of Flask-SQLAlchemy, or another `scoped_session`, and
      `around` gives each call of a handler on the pool one of its own: `app.app_context`. See `ExternalSessions`.
    - `outbox` and `inbox` are in this database; None leaves one out. Without an outbox, notification events can be lost
      with the process, and nothing is durable. Without an inbox, `send(..., idempotency_key=...)` is refused.
    - `atomic` names the messages whose handlers get a transaction, by default all. It begins at the first statement:
      a handler without one takes no connection. Inside of another one, a command is a savepoint.
    - `container` builds handlers; a punq container gets the `Session`, unless it has one. Register it in any other
      with `sessions.current`.
    - `threads` runs event handlers. By default there are as many threads as fit the machine and the engine's pool. A
      number for which the pool is too small is logged as a warning.
    - `middleware` is around the transaction. All other arguments are those of `cqrs_sync.bootstrap`.

    It connects to nothing and starts nothing. Raises ConfigurationError for arguments that do not fit together.
    """
    if unknown:
        raise unknown_keywords(bootstrap, unknown)
    if metadata is not None and not isinstance(metadata, MetaData):
        raise ConfigurationError(f"metadata must be a MetaData, such as Base.metadata, not {metadata!r:.100}")
    chosen = _sessions(engine, sessions, session, around)
    _prepare_sqlite(chosen, has_threads=not isinstance(threads, SameThread) or (fast_path and outbox is not None))
    if outbox is Default.IN_DATABASE:
        outbox = SQLAlchemyOutbox(chosen, tables=None if metadata is None else tables(metadata))
    if inbox is Default.IN_DATABASE:
        inbox = SQLAlchemyInbox(chosen, table=None if metadata is None else inbox_table(metadata))
    _check_same_sessions("outbox", outbox, chosen)
    _check_same_sessions("inbox", inbox, chosen)
    return bootstrap_core(
        requests,
        events,
        source=source,
        container=_with_session(container, chosen),
        broker=broker,
        outbox=outbox,
        inbox=inbox,
        retry=retry,
        fast_path=fast_path,
        threads=_threads(threads, chosen, has_relay=outbox is not None),
        transactions=chosen if outbox is None and inbox is None else None,
        middleware=with_transactions(middleware, chosen.atomic, atomic),
        failure_policy=failure_policy,
        serializer=serializer,
        max_depth=max_depth,
    )


def _sessions(
    engine: Engine | None,
    sessions: Sessions | ExternalSessions | sessionmaker[Any] | None,
    session: scoped_session[Any] | CurrentSession | None,
    around: Callable[[], AbstractContextManager[object]] | None,
) -> Sessions | ExternalSessions:
    """Return the sessions that the arguments describe. Raises ConfigurationError if they do not say where they are."""
    if session is not None and sessions is not None:
        raise ConfigurationError("give bootstrap either sessions, which it opens, or the application's own session")
    if around is not None and session is None:
        raise ConfigurationError("`around` goes with the application's own session: bootstrap(session=db.session, ...)")
    if session is not None:
        chosen: Sessions | ExternalSessions = ExternalSessions(session, engine=engine, around=around)
    elif isinstance(sessions, (Sessions, ExternalSessions)):
        if engine not in {None, sessions.engine}:
            raise ConfigurationError("the engine is not that of the sessions: leave it out")
        chosen = sessions
    elif sessions is None and engine is None:
        raise ConfigurationError(
            "bootstrap needs a database: engine=create_engine(...), sessions=sessionmaker(engine), "
            "or session=db.session with engine=db.engine"
        )
    else:
        _check_maker(sessions, engine)
        made = engine if sessions is None else sessions
        assert made is not None
        chosen = Sessions(made, engine=engine)
    if chosen.engine is None:
        raise ConfigurationError("these sessions do not say which database they are on: give bootstrap its engine, too")
    return chosen


def _check_maker(maker: sessionmaker[Any] | None, engine: Engine | None) -> None:
    """Raise ConfigurationError for a sessionmaker without an engine, or with another one."""
    if not isinstance(maker, sessionmaker):
        return
    bind = maker.kw.get("bind")
    if bind is None and not maker.kw.get("binds"):
        raise ConfigurationError("the sessionmaker has no engine: write sessions=sessionmaker(engine)")
    if engine is not None and bind not in {None, engine}:
        raise ConfigurationError("the engine is not that of the sessionmaker: leave it out")


def _prepare_sqlite(sessions: Sessions | ExternalSessions, *, has_threads: bool) -> None:
    engine = sessions.engine
    if engine is None or engine.dialect.name != "sqlite":
        return
    database = engine.url.database or ":memory:"
    if has_threads and (database in {":memory:", "file::memory:"} or isinstance(engine.pool, StaticPool)):
        raise ConfigurationError(
            "a SQLite database in memory, or with a StaticPool, has one connection, and threads have connections of "
            "their own: use a file, sqlite:///shop.db, or threads=SameThread(), fast_path=False in a test"
        )
    # An application that begins transactions with a listener of its own has chosen how.
    if not list(engine.dispatch.begin):
        begin_immediate(engine)


def _check_same_sessions(
    name: str, store: SQLAlchemyOutbox | SQLAlchemyInbox | None, sessions: Sessions | ExternalSessions
) -> None:
    if store is not None and not isinstance(store, (SQLAlchemyOutbox, SQLAlchemyInbox)):
        raise ConfigurationError(f"the {name} must be a SQLAlchemy{name.capitalize()}, or None for none, not {store!r}")
    if store is not None and store.sessions is not sessions:
        raise ConfigurationError(
            f"the {name} writes in the sessions of handlers: make them once, sessions = Sessions(engine), and give "
            f"them to {type(store).__name__}(sessions, ...) and to bootstrap(sessions=sessions)"
        )


def _with_session(
    container: Container | punq.Container | None, sessions: Sessions | ExternalSessions
) -> Container | punq.Container:
    """Register the session in a punq container that has none."""
    if container is None:
        container = PunqContainer()
    known = container.punq if isinstance(container, PunqContainer) else container
    if isinstance(known, punq.Container) and not _has_session(known):
        known.register(Session, factory=sessions.current)
    return container


def _has_session(container: punq.Container) -> bool:
    return bool(container.registrations.build_context(Session).target(Session).impls)


def _threads(threads: Executor | int | None, sessions: Sessions | ExternalSessions, *, has_relay: bool) -> Executor:
    """Return the pool. Its threads have sessions of their own, and the engine has connections for them."""
    limit = _connection_limit(sessions.engine)
    others = _SENDER + _RELAY * has_relay
    if threads is None:
        fitting = min(32, (os.cpu_count() or 1) + 4)
        threads = fitting if limit is None else max(1, min(fitting, limit - others))
    scope = sessions.scope if isinstance(sessions, ExternalSessions) else None
    executor = ThreadPool(threads, around=scope) if isinstance(threads, int) else threads
    if isinstance(executor, ThreadPool):
        if scope is not None and executor.around is None:
            raise ConfigurationError(
                "nothing ends the application's sessions in the threads of this pool: give bootstrap a number of "
                "threads; or make sessions = ExternalSessions(...), and ThreadPool(..., around=sessions.scope)"
            )
        needed = executor.max_workers + others
        if limit is not None and limit < needed:
            logger.warning(
                "the engine has at most %d connections, and %d threads may need %d at the same time: one for each, %d "
                "for the thread that sends%s. Those that get none fail after the pool's timeout: use "
                "create_engine(..., pool_size=%d, max_overflow=0), or threads=%d",
                limit,
                executor.max_workers,
                needed,
                _SENDER,
                f" and {_RELAY} for the relay" if has_relay else "",
                needed,
                max(1, limit - others),
            )
    return executor


def _connection_limit(engine: Engine | None) -> int | None:
    """Return how many connections the engine's pool makes at most, None if there is no limit."""
    pool = None if engine is None else engine.pool
    if not isinstance(pool, QueuePool):
        return None
    overflow = pool._max_overflow  # noqa: SLF001 -- there is no public way to ask
    return None if overflow < 0 or pool.size() == 0 else pool.size() + overflow
