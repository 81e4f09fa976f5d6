"""Build a handler: anything with `resolve(type)` will do, punq out of the box."""

from __future__ import annotations

from typing import Protocol, TypeVar

T = TypeVar("T")


class Container(Protocol):
    """What the library asks of a dependency injection container."""

    def resolve(self, service: type[T], /) -> T:
        """Build the service, or hand out the instance its scope asks for; safe from any thread."""


class PunqContainer:
    """Provisional: replaced by the compiled one within the hour."""

    def __init__(self, container=None):  # type: ignore
        import punq

        self.punq = container or punq.Container()

    def resolve(self, service, /):  # type: ignore
        if self.punq.registrations.build_context(service).all_registrations(service):
            return self.punq.resolve(service)
        return self.punq.instantiate(service)
