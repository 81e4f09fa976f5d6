"""
What punq does for a service, found out once and compiled into straight-line Python.

punq inspects every constructor again at each resolve, which is nearly all of its
time. None of its algorithm is written a second time here: a `Recorder` is a punq
container that runs it and notes each call of a constructor instead of making it.
A plan is those calls, after one look at whether the registrations are still those
it was made from.

All this leans on private parts of punq. Where they are not as known, `understood`
says so, and everything is left to punq itself.
"""

from __future__ import annotations

import inspect
import keyword
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, lru_cache
from types import CodeType
from typing import Any, Final, ForwardRef, get_type_hints
from weakref import WeakValueDictionary

import punq

_SCOPES: Final = "_Registry__registrations"
_RESOLVING: Final = ("resolve", "resolve_all", "instantiate", "_resolve_impl", "_build_impl", "_should_auto_register")

_PLAN: Final = """\
def plan():
    if watched != seen:
        return again()
    try:
{steps}
        return {result}
    except Exception as error:
        failed(error)
        raise
"""


def understood(container: punq.Container) -> bool:
    """Tell whether this container resolves as this module knows it: the version, and each part that is used here."""
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


def compiled(
    recorder: Recorder, service: Any, again: Callable[[], Any], failed: Callable[[Exception], object]
) -> Callable[[], Any] | None:
    """
    Compile what punq does for a service that it has built before.

    The plan calls `again` where a registration has changed, and `failed` with what a
    constructor raised. None where there can be no plan.
    """
    try:
        result = recorder.value(recorder.request(service))
    except Exception:  # noqa: BLE001 -- what stops the recorder stops punq as well, which says so itself
        return None
    if not recorder.settled:
        return None
    registrations = recorder.registrations
    namespace = {"watched": registrations.watched, "seen": registrations.seen, "again": again, "failed": failed}
    namespace |= recorder.names
    steps = "\n".join(f"        {step}" for step in recorder.steps)
    exec(_code(_PLAN.format(steps=steps, result=result)), namespace)  # noqa: S102 -- its names are generated
    plan: Callable[[], Any] = namespace["plan"]
    return plan


@lru_cache(maxsize=1024)
def _code(source: str) -> CodeType:
    """Compile once what many services have in common: the shape of their dependencies."""
    return compile(source, "<container plan>", "exec")


class Locks:
    """A lock for each singleton under construction, and one for reading registrations."""

    def __init__(self) -> None:
        self.reset_in_child()

    def reset_in_child(self) -> None:
        """Begin with new ones: the threads that held the old ones do not exist in the child."""
        self.reading = threading.RLock()
        # A lock is there as long as a thread holds it or waits for it.
        self._building: WeakValueDictionary[int, threading.RLock] = WeakValueDictionary()

    def of(self, thing: object) -> threading.RLock:
        """Give every thread the same lock; reentrant, because a constructor may resolve something itself."""
        with self.reading:
            return self._building.setdefault(id(thing), threading.RLock())


#: One set for all containers: a child container shares the singletons of its parent.
locks: Final = Locks()


@cache
def _instance_code() -> CodeType | None:
    """Return the code of what punq wraps around an instance; a container registers itself as one."""
    context = punq.Container().registrations.build_context(punq.Container)
    return getattr(context.target(punq.Container).impls[-1].builder, "__code__", None)


def _is_instance(registration: Any) -> bool:
    return getattr(registration.builder, "__code__", registration) is _instance_code()


class _Registrations:
    """punq's registry, read by one thread at a time, remembering what was read."""

    def __init__(self, registry: Any) -> None:
        self._registry = registry
        self._keys: set[Any] = set()
        #: The registry's own lists, which only ever grow, and what was in them.
        self.watched: list[list[Any]] = []
        self.seen: list[list[Any]] = []

    def build_context(self, key: Any, existing: Any = None) -> Any:
        """Do what punq does, without its way of keeping instances."""
        if existing is not None and key in existing.targets:
            return existing
        # Reading adds empty lists to a dictionary that punq iterates over for forward references.
        with locks.reading:
            self._watch(key)
            context = self._registry.build_context(key, existing)
        target = context.target(key)
        # punq finds a singleton by the id of its registration. The registrations of a child container that
        # is gone leave their ids to others: one request would be served with the instances of another.
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
        # punq prefers a registered class of the same name, from whichever module, to the one in sight.
        try:
            return get_type_hints(service.__init__)
        except NameError:
            needs: dict[str, Any] = self._registry._get_needs_for_ctor(service)
            return needs
        except Exception as error:
            raise punq.InvalidForwardReferenceError(str(error)) from error


class View(punq.Container):
    """The registrations and singletons of a container, resolved by punq's code with a difference."""

    registrations: Any

    def __init__(self, container: punq.Container) -> None:
        # Not punq's constructor: that registers what it makes as the Container.
        self.registrations = _Registrations(container.registrations)
        self._singletons = container._singletons
        self._auto_register = False

    def request(self, service: Any) -> Any:
        """Resolve what is registered, instantiate a class that is not."""
        if isinstance(service, type) and not self.registrations.build_context(service).target(service).impls:
            return self.instantiate(service)
        return self.resolve(service)

    def _reuse(self, registration: Any, instance: Any, context: Any) -> Any:
        if registration.cache:
            context[registration.service] = instance
        return instance


class _Made(str):
    """What a step of the plan makes: the name it has there."""

    __slots__ = ()


class Recorder(View):
    """Runs punq's algorithm and notes what it would call; builds nothing."""

    def __init__(self, container: punq.Container) -> None:
        super().__init__(container)
        self.steps: list[str] = []
        self.names: dict[str, Any] = {}
        #: Whether a plan may be made: one would build each time what singletons are not built yet.
        self.settled = True
        #: The services under construction; where one is missing, the way to it.
        self.path: list[Any] = []

    def value(self, result: Any) -> str:
        """Name a value in the plan: what a step makes, or what was there before."""
        if type(result) is _Made:
            return result
        name = f"given_{len(self.names)}"
        self.names[name] = result
        return name

    def instantiate(self, service_key: type[Any], **kwargs: Any) -> Any:
        """Note how a class would be built that nobody registered."""
        self.path.append(service_key)
        return super().instantiate(service_key, **kwargs)

    def resolve_all(self, service: type[Any], **kwargs: Any) -> Any:
        """Note how the list would be made."""
        return self._step(f"[{', '.join(map(self.value, super().resolve_all(service, **kwargs)))}]")

    def _resolve_impl(self, service_key: Any, *rest: Any, **named_rest: Any) -> Any:
        self.path.append(service_key)
        result = super()._resolve_impl(service_key, *rest, **named_rest)
        self.path.pop()
        return result

    def _build_impl(self, registration: Any, resolution_args: dict[str, Any], context: Any) -> Any:
        if _is_instance(registration):
            return self._reuse(registration, registration.builder(), context)
        if registration.scope is punq.Scope.singleton:
            if id(registration) in self._singletons:
                return self._reuse(registration, self._singletons[id(registration)], context)
            self.settled = False
        noted = registration._replace(builder=self._noting(registration), scope=punq.Scope.transient)
        return super()._build_impl(noted, resolution_args, context)

    def _noting(self, registration: Any) -> Callable[..., _Made]:
        """Make a stand-in for the builder: punq reads the same signature from it, but calling it adds a step."""

        def builder(**arguments: Any) -> _Made:
            return self.call(registration, arguments)

        with suppress(TypeError, ValueError):
            signature = inspect.signature(registration.builder, follow_wrapped=False)
            builder.__signature__ = signature  # type: ignore[attr-defined]
        return builder

    def call(self, registration: Any, arguments: dict[str, Any]) -> _Made:
        """Add the step that calls the builder of a registration."""
        return self._step(f"{self.value(registration.builder)}({self._passed(arguments)})")

    def _passed(self, arguments: dict[str, Any]) -> str:
        # A registration may name arguments with any string; only what cannot be code is written as code.
        if all(name.isascii() and name.isidentifier() and not keyword.iskeyword(name) for name in arguments):
            return ", ".join(f"{name}={self.value(value)}" for name, value in arguments.items())
        return f"**{{{', '.join(f'{self.value(name)}: {self.value(value)}' for name, value in arguments.items())}}}"

    def _step(self, expression: str) -> _Made:
        made = _Made(f"made_{len(self.steps)}")
        self.steps.append(f"{made} = {expression}")
        return made
