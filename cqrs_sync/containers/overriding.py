"""A container in which some services are others, for tests: `Mediator.override` uses it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

import punq

from cqrs_sync.container import Container
from cqrs_sync.containers.compiled import SingletonBuilder, is_supported, registrations_of
from cqrs_sync.containers.punq import PunqContainer
from cqrs_sync.errors import HandlerNotBuilt

T = TypeVar("T")


class OverridingContainer:
    """
    Resolves as another container does, but passes given instances wherever a constructor asks for their types.

    It builds anew what needs one of them, singletons too, and keeps these apart. Of a container that is not punq it
    builds itself what stands between a handler and an instance, by the annotations of constructors.
    """

    def __init__(self, container: Container, instances: Mapping[Any, Any]) -> None:
        self._container = container
        self._instances = instances
        self._view = (
            _OverridingView(container.punq, instances)
            if isinstance(container, PunqContainer) and is_supported(container.punq)
            else None
        )

    def resolve(self, service: type[T], /) -> T:
        """Build the service. Raises HandlerNotBuilt, and what a constructor raises."""
        if service in self._instances:
            return cast("T", self._instances[service])
        if self._view is None:
            return cast("T", self._build(service) if self._needs(service) else self._container.resolve(service))
        try:
            return cast("T", self._view.request(service))
        except (punq.MissingDependencyException, punq.InvalidForwardReferenceException) as error:
            raise HandlerNotBuilt(f"{getattr(service, '__qualname__', service)} cannot be built: {error}") from error

    def asked_for(self, handlers: Iterable[Any]) -> set[Any]:
        """Return all types that these handlers ask for, and their dependencies."""
        found: set[Any] = set()
        for handler in handlers:
            known = found.copy()
            self._collect(handler, found)
            found -= {handler} - known
        return found

    def _needs(self, service: Any) -> bool:
        return any(each in self._instances for each in self.asked_for([service]))

    def _build(self, service: Any) -> Any:
        return service(**{name: self.resolve(each) for name, each in parameters_of(service).items()})

    def _collect(self, service: Any, found: set[Any]) -> None:
        if service in found:
            return
        found.add(service)
        registered = None if self._view is None else self._view.needs_of(service)
        for each in (parameters_of(service) if registered is None else registered).values():
            self._collect(each, found)


class _OverridingView(SingletonBuilder):
    """Runs punq's code on the registrations of another container, with other instances."""

    def __init__(self, container: punq.Container, instances: Mapping[Any, Any]) -> None:
        super().__init__(container)
        self._instances = instances
        self._registered = registrations_of(container)
        affected = {
            id(registration): registration
            for registrations in self._registered.values()
            for registration in registrations
            if any(self._reaches(need, set()) for need in _needs(registration).values())
        }
        self._singletons = _Singletons(self._singletons, affected)

    def needs_of(self, service: Any) -> Mapping[str, Any] | None:
        """Return what a registered service asks for, None if it is not registered."""
        registrations = self._registered.get(service)
        return _needs(registrations[-1]) if registrations else None

    def _resolve_impl(self, service_key: Any, *rest: Any, **named_rest: Any) -> Any:
        if service_key in self._instances:
            return self._instances[service_key]
        return super()._resolve_impl(service_key, *rest, **named_rest)

    def resolve_all(self, service: type[Any], **kwargs: Any) -> Any:
        """Return the instance in place of all that is registered."""
        return [self._instances[service]] if service in self._instances else super().resolve_all(service, **kwargs)

    def _reaches(self, service: Any, seen: set[Any]) -> bool:
        if service in self._instances:
            return True
        if service in seen:
            return False
        seen.add(service)
        services = get_args(service) if get_origin(service) is list else (service,)
        return any(
            self._reaches(need, seen)
            for each in services
            for registration in self._registered.get(each, ())
            for need in (each, *_needs(registration).values())
        )


class _Singletons(dict[int, Any]):
    """Singletons by the id of their registration: those that need another instance here are kept apart."""

    def __init__(self, shared: dict[int, Any], affected: Mapping[int, Any]) -> None:
        super().__init__()
        self._shared = shared
        # Keeps the registrations alive: others could get their ids.
        self._affected = affected

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) if key in self._affected else key in self._shared

    def __getitem__(self, key: int) -> Any:
        return super().__getitem__(key) if key in self._affected else self._shared[key]

    def __setitem__(self, key: int, value: Any) -> None:
        if key in self._affected:
            super().__setitem__(key, value)
        else:
            self._shared[key] = value


def _needs(registration: Any) -> dict[str, Any]:
    given = {*registration.args, "return"}
    return {name: need for name, need in registration.needs.items() if name not in given}


def parameters_of(thing: Any) -> dict[str, Any]:
    """Return the types that a constructor asks for, or a function after its message. Without annotations: none."""
    is_class = isinstance(thing, type)
    if not is_class and not inspect.isroutine(thing):
        return {}
    function: Callable[..., Any] = cast("Any", thing).__init__ if is_class else thing
    try:
        hints = get_type_hints(function)
        parameters = list(inspect.signature(function).parameters.values())[1:]
    except Exception:  # noqa: BLE001 -- a constructor in C, or a name that is not there
        return {}
    wanted = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        each.name: hints[each.name]
        for each in parameters
        if each.name in hints and each.kind in wanted and each.default is each.empty
    }
