"""Build a handler: anything with `resolve(type)` will do, punq out of the box."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol, Self, TypeVar, get_args, get_origin

import punq

from cqrs_sync.containers.compiled import Recorder, View, compiled, locks, understood
from cqrs_sync.errors import HandlerNotBuilt, InvalidBinding
from cqrs_sync.lifecycle import reset_in_child

T = TypeVar("T")

_VENDOR_ERRORS: Final = (punq.MissingDependencyException, punq.InvalidForwardReferenceException)


class Container(Protocol):
    """What the library asks of a dependency injection container."""

    def resolve(self, service: type[T], /) -> T:
        """Build the service, or hand out the instance its scope asks for; safe from any thread."""


class PunqContainer:
    """
    A punq container that is quick and safe from any thread.

    It resolves by punq's rules, and a class that is not registered is instantiated:
    handlers need no registration. punq builds a service the first time, then a
    compiled plan does the same until a registration it was made from changes,
    wherever that was: here, in `punq`, or in a parent of it. A singleton is built
    once, whatever the number of threads and of `list[T]` it is in.

    A container with `auto_register`, or a subclass that resolves in its own way, is left
    to punq itself, one thread at a time: as right, but no quicker than punq.
    """

    def __init__(self, container: punq.Container | None = None) -> None:
        #: The container that is resolved from; what is registered there counts here.
        self.punq = punq.Container() if container is None else container
        self._plans: dict[Any, Callable[[], Any]] = {}
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
            InvalidBinding: punq refuses it, or an annotation of the constructor cannot be read.
        """
        try:
            with locks.reading:
                # Its overloads tell the three ways apart that its implementation takes.
                self.punq.register(service, factory, instance, scope, cache, **kwargs)  # type: ignore[call-overload]
        except (*_VENDOR_ERRORS, punq.InvalidRegistrationException) as error:
            raise InvalidBinding(f"{_named(service)} cannot be registered: {error}") from error
        return self

    def resolve(self, service: type[T], /) -> T:
        """
        Build the service, or hand out its instance where it is a singleton.

        What a constructor raises is let through, with a note that names the service.

        Raises:
            HandlerNotBuilt: a dependency is missing, or cannot be told from the constructor.
        """
        try:
            plan = self._plans[service]
        except KeyError:
            plan = partial(self._first, service)
        instance: T = plan()
        return instance

    def _first(self, service: Any) -> Any:
        """Let punq build it; the second time is early enough to make a plan."""
        try:
            instance = _built(self.punq, service)
        except Exception as error:
            reason = _explained(self.punq, service, error)
            if reason is not None:
                raise HandlerNotBuilt(f"{_named(service)} cannot be built: {reason}") from error
            _note(service, error)
            raise
        self._plans[service] = partial(self._second, service)
        return instance

    def _second(self, service: Any) -> Any:
        again, failed = partial(self._first, service), partial(_note, service)
        plan = compiled(_Examiner(self.punq), service, again, failed) if understood(self.punq) else None
        if plan is None:
            return again()
        self._plans[service] = plan
        return plan()


class _Builder(View):
    """punq, building a singleton once: not in each of two threads, and not again for each `list[T]`."""

    def _build_impl(self, registration: Any, resolution_args: dict[str, Any], context: Any) -> Any:
        if registration.scope is not punq.Scope.singleton:
            return super()._build_impl(registration, resolution_args, context)
        with locks.of(registration):
            if id(registration) in self._singletons:
                return self._reuse(registration, self._singletons[id(registration)], context)
            built = super()._build_impl(registration, resolution_args, context)
            # Keeps the registration alive: another could inherit its id, by which punq knows the singleton.
            self._singletons[~id(registration)] = registration
            return built


def _built(container: punq.Container, service: Any) -> Any:
    """Let punq build it; a class that is not registered is instantiated."""
    if understood(container):
        return _Builder(container).request(service)
    with locks.of(container):
        try:
            return container.resolve(service)
        except punq.MissingDependencyException as error:
            # Through its public interface punq only tells in words whether it misses the service itself.
            if not isinstance(service, type) or not str(error).endswith(f" {service}"):
                raise
            return container.instantiate(service)


def _note(service: Any, error: Exception) -> None:
    """Note on what a constructor raised for whom it was called."""
    note = f"raised while {_named(service)} was being built"
    # Someone may raise the same exception object each time.
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)


def _named(thing: Any) -> str:
    """Name it the way the code does that registers it."""
    if get_origin(thing) is not None and get_args(thing):
        return f"{_named(get_origin(thing))}[{', '.join(map(_named, get_args(thing)))}]"
    name: str = getattr(thing, "__qualname__", None) or repr(getattr(thing, "__forward_arg__", thing))
    return name.rpartition("<locals>.")[2]


def _explained(container: punq.Container, service: Any, error: Exception) -> str | None:
    """Say what is wrong with the registrations, and the way out; None where a constructor raised the error itself."""
    if isinstance(error, RecursionError) or (isinstance(error, TypeError) and _raised_by_punq(error)):
        return _trouble(container, service) if understood(container) else None
    if isinstance(error, _VENDOR_ERRORS):
        return _trouble(container, service) if understood(container) else str(error)
    return None


def _raised_by_punq(error: Exception) -> bool:
    """Tell whether it was raised by the call of a constructor, rather than in its body."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__") in {"punq", "inspect", "typing"}


def _trouble(container: punq.Container, service: Any) -> str | None:
    examiner = _Examiner(container)
    try:
        examiner.request(service)
    except punq.MissingDependencyException:
        return _circle(examiner.path) or _missing(examiner.path)
    except punq.InvalidForwardReferenceException as error:
        return f"an annotation of its constructor cannot be read, {error}; import what it names where it is written"
    except Exception:  # noqa: BLE001 -- the error that is being explained speaks for itself
        return examiner.doubt or _endless(examiner.path)
    return examiner.doubt


class _Examiner(Recorder):
    """Looks for the first call that cannot succeed; there can be no plan then."""

    doubt: str | None = None

    def call(self, registration: Any, arguments: dict[str, Any]) -> Any:
        if self.doubt is None:
            self.doubt = _doubt(registration.service, registration.builder, arguments, self.path)
            self.settled = self.settled and self.doubt is None
        return super().call(registration, arguments)


def _doubt(service: Any, builder: Any, arguments: dict[str, Any], path: list[Any]) -> str | None:
    """Say why this call cannot succeed."""
    name = _named(builder) + (f" ({_way(path)})" if len(path) > 1 else "")
    if inspect.isabstract(builder) or getattr(builder, "_is_protocol", False) is True:
        return f"{name} is abstract; container.register({_named(service)}, ...) with a class that is not"
    try:
        lacking = _lacking(inspect.signature(builder, follow_wrapped=False), arguments)
    except (TypeError, ValueError):
        return f"punq cannot read the signature of {name}; container.register({_named(service)}, instance=...)"
    if not lacking:
        return None
    names = ", ".join(lacking)
    given = [_named(service)] + [_named(builder)] * (builder is not service) + [f"{each}=..." for each in lacking]
    register = f"container.register({', '.join(given)})"
    if not isinstance(builder, type):
        return f"punq passes no arguments to a function, and {name} takes {names}; {register}"
    return f"{name} takes {names}, which its __init__ does not annotate; annotate it, or {register}"


def _lacking(signature: inspect.Signature, arguments: dict[str, Any]) -> list[str]:
    """Name the required parameters that get no argument."""
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
    return f"its dependencies form a circle, {_way(path[start:])}; let one of them get the other when it is used"


def _endless(path: list[Any]) -> str | None:
    # Services without cache, and lists, go round until the stack ends: anywhere, and `inspect` may hide that it did.
    while path and path[-1] not in path[:-1]:
        path = path[:-1]
    return _circle(path) if path else None


def _missing(path: list[Any]) -> str:
    missing = _named(path[-1])
    subject = {1: "it", 2: f"its dependency {missing}"}.get(len(path), f"its dependency {missing} ({_way(path)})")
    if len(path) > 1 and getattr(path[-1], "__module__", None) == "builtins":
        return f"{subject} is not registered; container.register({_named(path[-2])}, ...) with a value for it"
    return f"{subject} is not registered; container.register({missing}, ...)"


def _way(path: list[Any]) -> str:
    return " -> ".join(map(_named, path))
