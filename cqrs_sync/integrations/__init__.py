"""One module per extra; the core imports none of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum


class Default(Enum):
    """The default of an argument for which None means "none"."""

    #: Made by `bootstrap`, in the database of the transactions.
    IN_DATABASE = "in the database"


@contextmanager
def requires_extra(extra: str) -> Iterator[None]:
    """Say which extra to install where an optional dependency is missing."""
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"cqrs_sync.integrations.{extra} needs what is not installed: run `pip install 'cqrs-sync[{extra}]'`"
        ) from error
