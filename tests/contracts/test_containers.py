"""Every container keeps the promises of the socket: punq compiled, punq left to itself, and one written by hand."""

import threading

import punq
import pytest

from cqrs_sync.containers.punq import PunqContainer
from cqrs_sync.testing.contracts.container import (
    BrokenHandler,
    BuildableHandler,
    Clock,
    ContainerContract,
    ContainerFeatures,
    ForgottenHandler,
    Rooms,
    Shared,
)


def with_services(container):
    container.register(Clock, scope=punq.Scope.singleton)
    container.register(Shared, scope=punq.Scope.singleton)
    container.register(Rooms)
    return container


class TestPunqContainer(ContainerContract):
    @pytest.fixture
    def container(self):
        return with_services(PunqContainer())


class TestChildOfPunqContainer(ContainerContract):
    @pytest.fixture
    def container(self):
        return PunqContainer(with_services(punq.Container()).child())


class TestPunqContainerWithRegisteredHandlers(ContainerContract):
    @pytest.fixture
    def container(self):
        container = with_services(PunqContainer())
        for handler in (BrokenHandler, ForgottenHandler, BuildableHandler):
            container.register(handler)
        return container


class TestPunqLeftToItself(ContainerContract):
    """A subclass that resolves in its own way is not compiled."""

    class Traced(punq.Container):
        def resolve(self, service_key, **kwargs):
            return super().resolve(service_key, **kwargs)

    @pytest.fixture
    def container(self):
        return PunqContainer(with_services(self.Traced()))


class TestHandWrittenContainer(ContainerContract):
    """The socket asks for nothing that a dozen lines cannot give."""

    features = ContainerFeatures(names_what_is_missing=False, survives_a_fork_amid_construction=False)

    class ByHand:
        def __init__(self):
            self._lock = threading.RLock()
            self._singletons = {}
            self._factories = {
                Rooms: lambda: Rooms(self.resolve(Clock)),
                BuildableHandler: lambda: BuildableHandler(self.resolve(Rooms), self.resolve(Clock)),
                BrokenHandler: BrokenHandler,
            }

        def resolve(self, service):
            if service in self._factories:
                return self._factories[service]()
            if service not in {Clock, Shared}:
                raise LookupError(service)
            with self._lock:
                if service not in self._singletons:
                    self._singletons[service] = service()
                return self._singletons[service]

    @pytest.fixture
    def container(self):
        return self.ByHand()
