"""The adapter for punq: its rules, any thread, and errors that say what to do."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Self, TypeVar, get_args, get_origin

import punq

from cqrs_sync.containers.compiled import Plan, PlanRecorder, SingletonBuilder, is_supported, locks, make_plan
from cqrs_sync.errors import HandlerNotBuilt, InvalidBinding
from cqrs_sync.lifecycle import reset_in_child

T = TypeVar("T")

_PUNQ_ERRORS: Final = (punq.MissingDependencyException, punq.InvalidForwardReferenceException)


class PunqContainer:
    """
    Resolves from a `punq.Container`, quickly and from any thread.

    punq's rules hold. A class that is not registered is instantiated, so handlers need no registration. A plan does
    what punq would do, until a registration changes that the plan was made from: through this object, through `punq`,
    or in a parent of it. Services that need a singleton which is not built yet are built by punq itself. A singleton
    is built once, for any number of threads and of `list[T]` it is in.

    A container with `auto_register`, or a subclass with a resolution of its own, is left to punq itself, one thread
    at a time.
    """

    def __init__(self, container: punq.Container | None = None) -> None:
        #: The container to resolve from. What is registered there counts here.
        self.punq: punq.Container = punq.Container() if container is None else container
        #: The plan of each service, made at its first use: what `resolve` calls.
        self.plans: _Plans = _Plans(self._plan)
        reset_in_child(locks)

    def register(
        self,
        service: Any,
        factory: Any = punq.empty,
        instance: Any = punq.empty,
        scope: punq.Scope = punq.Scope.transient,
        cache: bool = True,
        **kwargs: Any,
    ) -> Self:
        """
        Register a service, as `punq.Container.register` does.

        Raises:
            InvalidBinding: punq refuses it, or cannot read an annotation of the constructor.
        """
        try:
            with locks.reading:
                # Its overloads separate the three ways to register that its implementation accepts.
                self.punq.register(service, factory, instance, scope, cache, **kwargs)  # type: ignore[call-overload]
        except (*_PUNQ_ERRORS, punq.InvalidRegistrationException) as error:
            raise InvalidBinding(f"{_name(service)} cannot be registered: {error}") from error
        return self

    def resolve(self, service: type[T], /) -> T:
        """
        Build the service, or return its instance if it is a singleton.

        Lets through what a constructor raises, with a note that names the service.

        Raises:
            HandlerNotBuilt: a dependency is missing, or a constructor does not say what it needs. No constructor has
                been called then.
        """
        instance: T = self.plans[service]()
        return instance

    def _plan(self, service: Any) -> Plan:
        if not is_supported(self.punq):
            return partial(_resolve_by_punq, self.punq, service)
        recorder = _CheckedRecorder(self.punq)
        try:
            build = make_plan(recorder, service)
        except Exception as error:  # noqa: BLE001 -- no constructor has been called: the registrations are wrong
            cause = None if isinstance(error, _CallFails) else error
            raise HandlerNotBuilt(f"{_name(service)} cannot be built: {_explain(error, recorder.path)}") from cause
        if not recorder.is_settled:
            # Singletons may need each other in ways that only punq knows. From the next time on they are there.
            build = partial(SingletonBuilder(self.punq).request, service)
        watched, seen = recorder.registrations.watched, recorder.registrations.seen

        def plan() -> Any:
            if watched != seen:
                return self._plan(service)()
            try:
                return build()
            except Exception as error:
                _add_note(service, error)
                raise

        if recorder.is_settled:
            self.plans[service] = plan
        return plan


class _Plans(dict[Any, Plan]):
    """Plans by service. One that is not settled is made again each time."""

    def __init__(self, make: Callable[[Any], Plan]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, service: Any) -> Plan:
        return self._make(service)


def _resolve_by_punq(container: punq.Container, service: Any) -> Any:
    """Let punq build it, one thread at a time. A class that is not registered is instantiated."""
    try:
        with locks.of(container):
            try:
                return container.resolve(service)
            except punq.MissingDependencyException as error:
                # Only punq's text tells whether the service itself is missing, or one of its dependencies.
                if not isinstance(service, type) or not str(error).endswith(f" {service}"):
                    raise
                return container.instantiate(service)
    except _PUNQ_ERRORS as error:
        raise HandlerNotBuilt(f"{_name(service)} cannot be built: {error}") from error
    except Exception as error:
        _add_note(service, error)
        raise


def _add_note(service: Any, error: Exception) -> None:
    """Add a note that names the service whose constructor raised."""
    note = f"raised while {_name(service)} was being built"
    # A constructor may raise the same exception object each time.
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)


def _name(thing: Any) -> str:
    """Return the name that the code uses to register it."""
    if get_origin(thing) is not None and get_args(thing):
        return f"{_name(get_origin(thing))}[{', '.join(map(_name, get_args(thing)))}]"
    name: str = getattr(thing, "__qualname__", None) or repr(getattr(thing, "__forward_arg__", thing))
    return name.rpartition("<locals>.")[2]


class _CheckedRecorder(PlanRecorder):
    """Stops at the first call that cannot succeed."""

    def call(self, registration: Any, arguments: dict[str, Any]) -> Any:
        problem = _check_call(registration.service, registration.builder, arguments, self.path)
        if problem is not None:
            raise _CallFails(problem)
        return super().call(registration, arguments)


class _CallFails(Exception):
    """A call of a constructor that cannot succeed."""


def _explain(error: Exception, path: list[Any]) -> str:
    """Say what is wrong with the registrations, and the way out."""
    if isinstance(error, punq.MissingDependencyException):
        return _circle(path) or _missing(path)
    if isinstance(error, punq.InvalidForwardReferenceException):
        return (
            f"punq cannot read an annotation of its constructor: {error}; import the name in that module, "
            f"or container.register({_name(path[-1])}, ...){_hint(path[-1])}"
        )
    return (None if isinstance(error, _CallFails) else _endless(path)) or str(error)


def _check_call(service: Any, builder: Any, arguments: dict[str, Any], path: list[Any]) -> str | None:
    """Say why this call cannot succeed, if so."""
    name = _name(builder) + (f" ({_join_path(path)})" if len(path) > 1 else "")
    is_abstract = inspect.isabstract(builder) and builder.__new__ is object.__new__
    if is_abstract or getattr(builder, "_is_protocol", False) is True:
        return f"{name} is abstract; container.register({_name(service)}, ...) with a concrete class"
    try:
        missing = _missing_arguments(inspect.signature(builder, follow_wrapped=False), arguments)
    except (TypeError, ValueError):
        return f"punq cannot read the signature of {name}; container.register({_name(service)}, instance=...)"
    if not missing:
        return None
    names = ", ".join(missing)
    given = [_name(service)] + [_name(builder)] * (builder is not service) + [f"{each}=..." for each in missing]
    register = f"container.register({', '.join(given)})"
    if not isinstance(builder, type):
        return f"punq passes no arguments to a function, and {name} takes {names}; {register}"
    return f"{name} takes {names}, which its __init__ does not annotate; annotate it, or {register}"


def _missing_arguments(signature: inspect.Signature, arguments: dict[str, Any]) -> list[str]:
    """Name the required parameters without an argument."""
    optional = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    return [
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.default is parameter.empty and parameter.kind not in optional and parameter.name not in arguments
    ]


def _circle(path: list[Any]) -> str | None:
    *before, last = path
    if last not in before:
        return None
    start = len(before) - 1 - before[::-1].index(last)
    return f"its dependencies form a circle, {_join_path(path[start:])}; let one of them get the other when it is used"


def _endless(path: list[Any]) -> str | None:
    # Services without cache, and lists, recurse until the stack ends, at any place; `inspect` may hide the error.
    while path and path[-1] not in path[:-1]:
        path = path[:-1]
    return _circle(path) if path else None


def _missing(path: list[Any]) -> str:
    missing = _name(path[-1])
    subject = {1: "it", 2: f"its dependency {missing}"}.get(len(path), f"its dependency {missing} ({_join_path(path)})")
    if len(path) > 1 and getattr(path[-1], "__module__", None) == "builtins":
        return f"{subject} is not registered; container.register({_name(path[-2])}, ...) with a value for it"
    return f"{subject} is not registered; container.register({missing}, ...){_hint(path[-1])}"


def _hint(missing: Any) -> str:
    """Name the integration that registers a service."""
    is_session = (getattr(missing, "__module__", ""), _name(missing)) == ("sqlalchemy.orm.session", "Session")
    return ", or make the mediator with cqrs_sync.integrations.sqlalchemy.bootstrap" if is_session else ""


def _join_path(path: list[Any]) -> str:
    return " -> ".join(map(_name, path))
