"""Build a handler: anything with `resolve(type)` will do, punq out of the box."""

from __future__ import annotations

from typing import Protocol, TypeVar

T = TypeVar("T")


class Container(Protocol):
    """What the library asks of a dependency injection container."""

    def resolve(self, service: type[T], /) -> T:
        """Build the service, or hand out the instance its scope asks for; safe from any thread."""
