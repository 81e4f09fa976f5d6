"""The container socket: builds handlers and what they need."""

from __future__ import annotations

from typing import Protocol, TypeVar

T = TypeVar("T")


class Container(Protocol):
    """
    What the library asks of a dependency injection container.

    `cqrs_sync.testing.contracts.container` tests these promises.
    """

    def resolve(self, service: type[T], /) -> T:
        """
        Build the service, or return the instance that its scope asks for.

        Any thread may call this, several at the same time. What it raises comes out of `send`.
        """
