"""
Plans: what punq does for a service, recorded once and then repeated without punq.

**What it replaces.** `punq.Container.resolve` and `instantiate`, which inspect every constructor again at each call.
None of punq's algorithm is written a second time here: a `PlanRecorder` is a punq container that runs it and notes
each call of a constructor instead of making it. A plan is those calls, after one look at whether the registrations
are still those it was made from.

**What it gains.** A command takes 1.2 to 3.2 µs where punq alone takes 21 to 101 µs, for handlers that need nothing
up to three services (through `mediator.send`). A consumer whose handler needs those services handles 3.7 times as many
messages. Decision 0002 has the figures.

**When to throw it away.** If punq keeps what it finds out about constructors, or if handlers are so slow that the
figures do not matter. `PunqContainer` leaves everything to punq if `is_supported` says no, so it works without plans.
This module uses private parts of punq; `is_supported` checks each of them.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache, partial
from typing import Any, Final, ForwardRef, TypeAlias, get_type_hints
from weakref import WeakValueDictionary

import punq

_SCOPES: Final = "_Registry__registrations"
_RESOLVING: Final = ("resolve", "resolve_all", "instantiate", "_resolve_impl", "_build_impl", "_should_auto_register")

#: Builds a service.
Plan: TypeAlias = Callable[[], Any]
#: A call of a plan: the builder, its arguments, and those of them that are results of earlier calls, by position.
_Step: TypeAlias = tuple[Callable[..., Any], dict[str, Any], Sequence[tuple[str, int]]]


def is_supported(container: punq.Container) -> bool:
    """Tell whether this container resolves as this module expects: its version, and each private part used here."""
    try:
        return (
            punq.__version__.startswith("0.9.")
            and container._auto_register is False
            and type(container._singletons) is dict
            and type(container.registrations) is punq._Registry
            and type(getattr(container.registrations, _SCOPES)) is punq.RegistrationScope
            and all(getattr(container, name).__func__ is getattr(punq.Container, name) for name in _RESOLVING)
            and {"service", "scope", "builder", "cache"} <= {*punq._Registration._fields}
            and callable(punq._ResolutionContext)
            and callable(container.registrations._get_needs_for_ctor)
        )
    except AttributeError:
        return False


def make_plan(recorder: PlanRecorder, service: Any) -> Plan:
    """
    Record what punq does for a service.

    The plan may be used if `recorder.is_settled`, while what the recorder watches is as it has seen it.
    Raises what punq raises for wrong registrations.
    """
    result = recorder.request(service)
    # Otherwise the result is an instance, or a singleton that has been built.
    return _build_in_turn(recorder.steps, result.position) if type(result) is _Made else lambda: result


def _build_in_turn(steps: Sequence[_Step], result: int) -> Plan:
    """Return a function that makes the calls in their order, and returns what the one at `result` returned."""
    if len(steps) == 1:
        # Most handlers: their dependencies are instances or singletons.
        build, arguments, _ = steps[0]
        return partial(build, **arguments) if arguments else build

    def build_all() -> Any:
        made: list[Any] = []
        for build, arguments, needs in steps:
            if needs:
                passed = arguments.copy()
                for name, position in needs:
                    passed[name] = made[position]
                made.append(build(**passed))
            else:
                made.append(build(**arguments))
        return made[result]

    return build_all


class Locks:
    """A lock for each singleton that is being built, and one for reading registrations."""

    def __init__(self) -> None:
        self.reset_in_child()

    def reset_in_child(self) -> None:
        """Make new locks: the child does not have the threads that held the old ones."""
        self.reading: threading.RLock = threading.RLock()
        # A lock exists as long as a thread holds it or waits for it.
        self._building: WeakValueDictionary[int, threading.RLock] = WeakValueDictionary()

    def of(self, thing: object) -> threading.RLock:
        """Return the same lock to every thread. It is reentrant: a constructor may resolve something itself."""
        with self.reading:
            return self._building.setdefault(id(thing), threading.RLock())


#: One set for all containers: a child container shares the singletons of its parent.
locks: Final = Locks()


@cache
def _instance_code() -> Any:
    """Return the code of the function that punq wraps around an instance. A container registers itself as one."""
    context = punq.Container().registrations.build_context(punq.Container)
    return getattr(context.target(punq.Container).impls[-1].builder, "__code__", None)


def _is_instance(registration: Any) -> bool:
    return getattr(registration.builder, "__code__", registration) is _instance_code()


class _Registrations:
    """punq's registry. One thread reads it at a time, and it notes what was read."""

    def __init__(self, registry: Any) -> None:
        self._registry = registry
        self._keys: set[Any] = set()
        #: The registry's own lists, which only ever grow, and what was in them.
        self.watched: list[list[Any]] = []
        self.seen: list[list[Any]] = []

    def build_context(self, key: Any, existing: Any = None) -> Any:
        """Do what punq does, but leave instances out of its singletons."""
        if existing is not None and key in existing.targets:
            return existing
        # Reading adds empty lists to a dictionary that punq iterates over for forward references.
        with locks.reading:
            self._watch(key)
            context = self._registry.build_context(key, existing)
        target = context.target(key)
        # punq finds a singleton by the id of its registration. The ids of a child container's registrations are
        # used again once it is gone: one request would get the instances of another.
        target.impls = [
            registration._replace(scope=punq.Scope.transient) if _is_instance(registration) else registration
            for registration in target.impls
        ]
        return context

    def _watch(self, key: Any) -> None:
        if key in self._keys:
            return
        self._keys.add(key)
        # What is registered under a string is registered as a forward reference as well.
        names = [key, key.__forward_arg__] if isinstance(key, ForwardRef) else [key]
        for entries in self._entries():
            for name in names:
                self.watched.append(entries[name])
                self.seen.append(entries[name].copy())

    def _entries(self) -> Iterator[dict[Any, list[Any]]]:
        scope = getattr(self._registry, _SCOPES)
        while scope is not None:
            yield scope.entries
            scope = scope.parent

    def _get_needs_for_ctor(self, service: type[Any]) -> dict[str, Any]:
        # punq prefers a registered class of the same name, from any module, to the class that is in scope.
        try:
            return get_type_hints(service.__init__)
        except NameError:
            needs: dict[str, Any] = self._registry._get_needs_for_ctor(service)
            return needs
        except Exception as error:
            raise punq.InvalidForwardReferenceError(str(error)) from error


def registrations_of(container: punq.Container) -> dict[Any, list[Any]]:
    """Return the registrations of a container and its parents, by service; of several, punq resolves the last."""
    scopes, scope = [], getattr(container.registrations, _SCOPES)
    while scope is not None:
        scopes.append(scope)
        scope = scope.parent
    found: dict[Any, list[Any]] = {}
    with locks.reading:
        for each in reversed(scopes):
            for service, registrations in each.entries.items():
                found.setdefault(service, []).extend(registrations)
    return found


class _Made:
    """Stands for the result of a step while a plan is recorded."""

    __slots__ = ("position",)

    def __init__(self, position: int) -> None:
        self.position: int = position


class _View(punq.Container):
    """Runs punq's code on the registrations and singletons of another container."""

    registrations: Any

    def __init__(self, container: punq.Container) -> None:
        # Not punq's constructor: it would register this object as the Container.
        self.registrations = _Registrations(container.registrations)
        self._singletons = container._singletons
        self._auto_register = False

    def request(self, service: Any) -> Any:
        """Resolve a service as punq does, or instantiate a class that is not registered. Returns what is built."""
        if isinstance(service, type) and not self.registrations.build_context(service).target(service).impls:
            return self.instantiate(service)
        return self.resolve(service)

    def _reuse(self, registration: Any, instance: Any, context: Any) -> Any:
        if registration.cache:
            context[registration.service] = instance
        return instance


class SingletonBuilder(_View):
    """Lets punq build, each singleton once: not in each of two threads, and not again for each `list[T]`."""

    def _build_impl(self, registration: Any, resolution_args: dict[str, Any], context: Any) -> Any:
        if registration.scope is not punq.Scope.singleton:
            return super()._build_impl(registration, resolution_args, context)
        with locks.of(registration):
            if id(registration) in self._singletons:
                return self._reuse(registration, self._singletons[id(registration)], context)
            built = super()._build_impl(registration, resolution_args, context)
            # Keeps the registration alive: another one could get its id, by which punq knows the singleton.
            self._singletons[~id(registration)] = registration
            return built


class PlanRecorder(_View):
    """Notes the calls that punq would make. Builds nothing."""

    def __init__(self, container: punq.Container) -> None:
        super().__init__(container)
        self.steps: list[_Step] = []
        #: False if punq would build a singleton: a plan made after that passes the singleton on.
        self.is_settled: bool = True
        #: Singletons that punq would have by now, by the id of their registration.
        self._noted_singletons: dict[int, Any] = {}
        #: The services under construction. If one is missing, the path to it.
        self.path: list[Any] = []

    def instantiate(self, service_key: type[Any], **kwargs: Any) -> Any:
        """Note how punq builds a class that is not registered."""
        self.path.append(service_key)
        return super().instantiate(service_key, **kwargs)

    def resolve_all(self, service: type[Any], **kwargs: Any) -> Any:
        """Note how punq makes the list."""
        return self._add(
            _as_list, {str(number): each for number, each in enumerate(super().resolve_all(service, **kwargs))}
        )

    def _resolve_impl(self, service_key: Any, *rest: Any, **named_rest: Any) -> Any:
        self.path.append(service_key)
        result = super()._resolve_impl(service_key, *rest, **named_rest)
        self.path.pop()
        return result

    def _build_impl(self, registration: Any, resolution_args: dict[str, Any], context: Any) -> Any:
        if _is_instance(registration):
            return self._reuse(registration, registration.builder(), context)
        is_singleton, number = registration.scope is punq.Scope.singleton, id(registration)
        for known in (self._singletons, self._noted_singletons):
            if is_singleton and number in known:
                return self._reuse(registration, known[number], context)
        stand_in = registration._replace(builder=self._stand_in(registration), scope=punq.Scope.transient)
        result = super()._build_impl(stand_in, resolution_args, context)
        if is_singleton:
            self.is_settled = False
            self._noted_singletons[number] = result
        return result

    def _stand_in(self, registration: Any) -> Callable[..., _Made]:
        """Make a builder in which punq reads the same signature. To call it adds a step."""

        def builder(**arguments: Any) -> _Made:
            return self.call(registration, arguments)

        with suppress(TypeError, ValueError):
            signature = inspect.signature(registration.builder, follow_wrapped=False)
            builder.__signature__ = signature  # type: ignore[attr-defined]
        return builder

    def call(self, registration: Any, arguments: dict[str, Any]) -> _Made:
        """Add the step that calls the builder of a registration."""
        return self._add(registration.builder, arguments)

    def _add(self, build: Callable[..., Any], arguments: dict[str, Any]) -> _Made:
        needs = [(name, value.position) for name, value in arguments.items() if type(value) is _Made]
        self.steps.append((build, arguments, needs))
        return _Made(len(self.steps) - 1)


def _as_list(**items: Any) -> list[Any]:
    return [*items.values()]
