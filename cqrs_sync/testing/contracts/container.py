"""
The promises of a dependency injection container as a test class.

```python
class TestMyContainer(ContainerContract):
    @pytest.fixture
    def container(self):
        container = MyContainer()
        container.singleton(Clock)
        container.singleton(Shared)
        container.transient(Rooms)
        return container
```

Register the handlers below as well if the container needs that, but never `Unregistered`.
"""

from __future__ import annotations

import os
import threading

import attrs
import pytest

from cqrs_sync.container import Container
from cqrs_sync.testing.waiting import in_forked_child, in_threads


class Clock:
    """Registered as a singleton."""

    def __init__(self) -> None:
        pass


class Rooms:
    """Registered as transient."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock


class Shared:
    """Registered as a singleton; tests replace `on_build`."""

    def __init__(self) -> None:
        self.on_build()

    @staticmethod
    def on_build() -> None:
        """Do something while the instance is built."""


class Unregistered:
    """Registered nowhere, and cannot be built without help."""

    def __init__(self, name: str) -> None:
        self.name = name


class BuildableHandler:
    """Can be built."""

    def __init__(self, rooms: Rooms, clock: Clock) -> None:
        self.rooms = rooms
        self.clock = clock


class ForgottenHandler:
    """Cannot be built: what it depends on is registered nowhere."""

    def __init__(self, unknown: Unregistered) -> None:
        self.unknown = unknown


class BrokenHandler:
    """Cannot be built: its constructor raises."""

    def __init__(self) -> None:
        raise ConnectionRefusedError("no database")


@attrs.frozen
class ContainerFeatures:
    """What a container can do."""

    #: Its error for a missing dependency tells the handler and the dependency.
    names_what_is_missing: bool = True
    #: A child forked while another thread was building a singleton can build it.
    survives_a_fork_amid_construction: bool = True


class ContainerContract:
    """What every Container promises."""

    features: ContainerFeatures = ContainerFeatures()

    def test_a_handler_is_built_with_its_dependencies(self, container: Container) -> None:
        """A container passes to a constructor what its annotations ask for."""
        handler = container.resolve(BuildableHandler)

        assert BuildableHandler is type(handler)
        assert (Rooms, Clock) == (type(handler.rooms), type(handler.clock))

    def test_every_message_gets_a_fresh_handler(self, container: Container) -> None:
        """No two calls of `resolve` share a handler, or a dependency that is transient."""
        handlers = [container.resolve(BuildableHandler) for _ in range(5)]

        assert 5 == len({id(handler) for handler in handlers})
        assert 5 == len({id(handler.rooms) for handler in handlers})

    def test_a_singleton_is_the_same_everywhere(self, container: Container) -> None:
        """Each dependent gets the same instance, at any depth."""
        handlers = [container.resolve(BuildableHandler) for _ in range(3)]
        clocks = [handler.clock for handler in handlers] + [handler.rooms.clock for handler in handlers]

        assert {id(container.resolve(Clock))} == {id(clock) for clock in clocks}

    def test_racing_threads_build_a_singleton_once(self, container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
        """Sixteen threads that need a singleton for the first time at the same moment share it."""
        builds: list[None] = []
        crowded = threading.Event()

        def build() -> None:
            builds.append(None)
            if len(builds) > 1:
                crowded.set()
            # Other threads would enter during this wait.
            crowded.wait(0.2)

        monkeypatch.setattr(Shared, "on_build", staticmethod(build))
        shared = in_threads(*[lambda: container.resolve(Shared)] * 16)

        assert 1 == len(builds)
        assert 1 == len({id(instance) for instance in shared})

    def test_threads_do_not_share_handlers(self, container: Container) -> None:
        """Sixteen threads that resolve at the same time get handlers of their own."""
        batches = in_threads(*[lambda: [container.resolve(BuildableHandler) for _ in range(50)]] * 16)
        handlers = [handler for batch in batches for handler in batch]

        assert 800 == len({id(handler) for handler in handlers})
        assert {id(container.resolve(Clock))} == {id(handler.rooms.clock) for handler in handlers}

    def test_a_constructor_may_resolve(self, container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
        """A singleton that asks the container for something while it is built does not hang."""
        found: list[Clock] = []
        monkeypatch.setattr(Shared, "on_build", staticmethod(lambda: found.append(container.resolve(Clock))))

        in_threads(*[lambda: container.resolve(Shared)] * 2)

        assert [container.resolve(Clock)] == found

    def test_a_missing_dependency_is_named_with_its_handler(self, container: Container) -> None:
        """The error tells which handler cannot be built and what it misses."""
        with pytest.raises(Exception) as caught:  # noqa: PT011 -- each container has its own
            container.resolve(ForgottenHandler)

        if self.features.names_what_is_missing:
            assert "ForgottenHandler" in str(caught.value)
            assert "Unregistered" in str(caught.value)

    def test_what_a_constructor_raises_is_let_through(self, container: Container) -> None:
        """An error of a constructor is not an error in the wiring: it arrives as it was raised, each time."""
        for _ in range(3):
            with pytest.raises(ConnectionRefusedError, match="no database"):
                container.resolve(BrokenHandler)

    @pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
    def test_a_child_forked_amid_construction_builds(
        self, container: Container, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A lock that a thread of the parent held does not stop the child."""
        if not self.features.survives_a_fork_amid_construction:
            return
        parent, building, done = os.getpid(), threading.Event(), threading.Event()

        def build() -> None:
            if os.getpid() == parent:
                building.set()
                done.wait(30)

        monkeypatch.setattr(Shared, "on_build", staticmethod(build))
        thread = threading.Thread(target=container.resolve, args=(Shared,))
        thread.start()
        try:
            assert building.wait(10)
            assert 0 == in_forked_child(lambda: container.resolve(Shared), timeout=10)
        finally:
            done.set()
            thread.join(10)
