"""Unknown keywords of a call and unknown names of the package: the error says which one may be meant."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

#: The words of other libraries, and those that people guess, by the keyword that they stand for here.
_WORDS = {
    "threads": "max_workers workers pool_size pool executor concurrency max_concurrent_event_handlers thread_pool",
    "idempotency_key": "once key idempotency idempotent idempotency_id dedup_key message_id",
    "scope": "tenant user tenant_id user_id namespace",
    "failure_policy": "failures on_error on_failure errors error_policy error_handler",
    "retry": "retries max_retries max_attempts attempts retrying retry_policy retry_policies backoff",
    "middleware": "middlewares behaviours behaviors pipeline plugins",
    "broker": "message_broker brokers url",
    "container": "di_container injector provider dependencies",
    "timeout": "deadline time_limit ttl expires seconds wait",
    "source": "service service_name app_name producer app",
    "requests": "commands queries handlers request_map commands_mapper queries_mapper request_handlers",
    "events": "event_map domain_events_mapper event_handlers",
    "max_depth": "depth max_recursion recursion_limit",
    "serializer": "encoder codec json converter",
    "fast_path": "relay autorelay deliver",
    "transactions": "transaction tx uow unit_of_work",
    "atomic": "transaction transactions tx",
    "using": "database db alias",
    "engine": "database db url bind",
    "phase": "when mode run stage",
    "name": "stable_name id alias",
}
#: What is no keyword, and how it is written instead.
_SENTENCES = {
    "inline": "write events.inline(...)",
    "durable": 'write events.durable("name", ...)',
    "after_commit": "write events.bind(...): handlers run after the commit by default",
    "on_commit": "write events.bind(...): handlers run after the commit by default",
    "phase": "write events.bind(..., phase=...)",
    "name": 'write events.durable("name", ...), or events.bind(..., name=...)',
    "retry": 'write events.durable("name", retry=...), or add a RetryMiddleware',
    "middleware": "write bootstrap(middleware=...): a MiddlewareChain chooses by message type",
    "correlation_id": "write `with cqrs.message_attributes(correlationid=...)` around the call",
    "headers": "write `with cqrs.message_attributes(...)` around the call",
    "delay": "retries and queues wait, calls do not: see RetryPolicy",
}
#: The same for the names of the package, by the words that people guess.
_NAMES = {
    "retry": "RetryPolicy TemporaryError",
    "retrylater": "TemporaryError",
    "transienterror": "TemporaryError",
    "retryableerror": "TemporaryError",
    "fatal": "PermanentError",
    "fatalerror": "PermanentError",
    "donotretry": "PermanentError",
    "eventhandlersfailed": "EventsFailed",
    "handlersfailed": "EventsFailed",
    "eventhandlererror": "EventsFailed",
    "requestmediator": "Mediator",
    "eventmediator": "Mediator",
    "bus": "Mediator",
    "messagebus": "Mediator",
    "closed": "ClosedError",
    "timeout": "DeadlineExceeded",
    "timeouterror": "DeadlineExceeded",
    "requesttimeout": "DeadlineExceeded",
    "duplicaterequest": "IdempotencyKeyConflict",
    "commandhandler": "RequestHandler",
    "queryhandler": "RequestHandler",
    "worker": "Consumer",
    "publish": "raise_event Mediator",
    "emit": "raise_event",
    "integrationevent": "NotificationEvent",
    "current_context": "correlation_id current_attributes",
}


def unknown_name(module: str, name: str, known: Collection[str]) -> AttributeError:
    """Make the error for a name that a module does not have: it names the ones that may be meant."""
    words = f"module {module!r} has no attribute {name!r}"
    if name.startswith("__"):
        return AttributeError(words)
    meant = _NAMES.get(name.lower(), "").split()
    if not meant:
        import difflib  # noqa: PLC0415 -- needed for this error only

        by_lower = {each.lower(): each for each in known}
        meant = [by_lower[each] for each in difflib.get_close_matches(name.lower(), by_lower, n=2, cutoff=0.7)]
    return AttributeError(f"{words}: did you mean {' or '.join(meant)}?" if meant else words)


def unknown_keywords(function: Callable[..., Any], unknown: Mapping[str, object]) -> TypeError:
    """Make the error for keywords that a function does not have: it names the ones that may be meant."""
    known = [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD) and parameter.name != "self"
    ]
    words = "; ".join(f"{name!r}: {_way_out(name, known)}" for name in unknown)
    return TypeError(f"{function.__qualname__}() got an unexpected keyword argument {words}")


def _way_out(name: str, known: list[str]) -> str:
    lower = name.lower()
    meant = [keyword for keyword, words in _WORDS.items() if keyword in known and lower in words.split()]
    if not meant and lower not in _SENTENCES:
        import difflib  # noqa: PLC0415 -- needed for this error only

        meant = difflib.get_close_matches(lower, known, n=2)
    if meant:
        return f"did you mean {' or '.join(f'{each}=' for each in meant)}?"
    if lower in _SENTENCES:
        return _SENTENCES[lower]
    return f"the keywords are {', '.join(known)}" if known else "it takes no keywords"
