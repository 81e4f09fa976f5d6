"""One module per extra; the core imports none of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import Enum

from cqrs_sync.middleware import Middleware, MiddlewareChain


class Default(Enum):
    """The default of an argument for which None means "none"."""

    #: Made by `bootstrap`, in the database of the transactions.
    IN_DATABASE = "in the database"


def with_transactions(
    middleware: MiddlewareChain | Iterable[Middleware], atomic: Middleware, messages: type | tuple[type, ...]
) -> MiddlewareChain:
    """
    Return a chain that ends with a middleware for transactions, around the handlers of these messages.

    A copy, so that other mediators with the same chain do not get these transactions.
    """
    chain = middleware.copy() if isinstance(middleware, MiddlewareChain) else MiddlewareChain(middleware)
    if messages:
        chain.add(atomic, *(messages if isinstance(messages, tuple) else (messages,)))
    return chain


@contextmanager
def requires_extra(extra: str) -> Iterator[None]:
    """Say which extra to install where an optional dependency is missing."""
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"cqrs_sync.integrations.{extra} needs what is not installed: run `pip install 'cqrs-sync[{extra}]'`"
        ) from error
