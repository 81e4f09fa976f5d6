"""The adapter for punq: its rules, any thread, and errors that say what to do."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any, Final, Self, TypeVar, get_args, get_origin

import punq

from cqrs_sync.containers.compiled import Builder, Plan, PlanRecorder, is_supported, locks, make_plan
from cqrs_sync.errors import HandlerNotBuilt, InvalidBinding
from cqrs_sync.lifecycle import reset_in_child

T = TypeVar("T")

_PUNQ_ERRORS: Final = (punq.MissingDependencyException, punq.InvalidForwardReferenceException)


class PunqContainer:
    """
    Resolves from a `punq.Container`, quickly and from any thread.

    punq's rules hold. A class that is not registered is instantiated, so handlers need no registration. punq builds
    a service the first time. From then on a plan does the same, until a registration changes that the plan was made
    from: through this object, through `punq`, or in a parent of it. A singleton is built once, for any number of
    threads and of `list[T]` it is in.

    A container with `auto_register`, or a subclass with a resolution of its own, is left to punq itself, one thread
    at a time.
    """

    def __init__(self, container: punq.Container | None = None) -> None:
        #: The container to resolve from. What is registered there counts here.
        self.punq = punq.Container() if container is None else container
        self._plans: dict[Any, Plan] = {}
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
            HandlerNotBuilt: a dependency is missing, or the constructor does not say what it needs.
        """
        try:
            plan = self._plans[service]
        except KeyError:
            plan = partial(self._resolve_first, service)
        instance: T = plan()
        return instance

    def _resolve_first(self, service: Any) -> Any:
        """Let punq build it. A container that serves one message pays for no plan: the second call makes it."""
        try:
            instance = _build(self.punq, service)
        except Exception as error:
            reason = _explain(self.punq, service, error)
            if reason is not None:
                raise HandlerNotBuilt(f"{_name(service)} cannot be built: {reason}") from error
            _add_note(service, error)
            raise
        self._plans[service] = partial(self._resolve_second, service)
        return instance

    def _resolve_second(self, service: Any) -> Any:
        again, failed = partial(self._resolve_first, service), partial(_add_note, service)
        plan = make_plan(_Examiner(self.punq), service, again, failed) if is_supported(self.punq) else None
        if plan is None:
            return again()
        self._plans[service] = plan
        return plan()


def _build(container: punq.Container, service: Any) -> Any:
    """Let punq build it. A class that is not registered is instantiated."""
    if is_supported(container):
        return Builder(container).request(service)
    with locks.of(container):
        try:
            return container.resolve(service)
        except punq.MissingDependencyException as error:
            # Only punq's text tells whether the service itself is missing, or one of its dependencies.
            if not isinstance(service, type) or not str(error).endswith(f" {service}"):
                raise
            return container.instantiate(service)


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


def _explain(container: punq.Container, service: Any, error: Exception) -> str | None:
    """Say what is wrong with the registrations, and the way out; None if a constructor raised the error itself."""
    if isinstance(error, TypeError) and not _raised_by_punq(error):
        return None
    if isinstance(error, (*_PUNQ_ERRORS, RecursionError, TypeError)) and is_supported(container):
        return _diagnose(container, service)
    return str(error) if isinstance(error, _PUNQ_ERRORS) else None


def _raised_by_punq(error: Exception) -> bool:
    """Tell whether the call of a constructor raised it, not its body."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__") in {"punq", "inspect", "typing"}


def _diagnose(container: punq.Container, service: Any) -> str | None:
    examiner = _Examiner(container)
    try:
        examiner.request(service)
    except punq.MissingDependencyException:
        return _circle(examiner.path) or _missing(examiner.path)
    except punq.InvalidForwardReferenceException as error:
        return f"punq cannot read an annotation of its constructor: {error}; import the name in that module"
    except Exception:  # noqa: BLE001 -- the error that this explains is raised anyway
        return examiner.problem or _endless(examiner.path)
    return examiner.problem


class _Examiner(PlanRecorder):
    """Finds the first call that cannot succeed. Then there is no plan."""

    problem: str | None = None

    def call(self, registration: Any, arguments: dict[str, Any]) -> Any:
        if self.problem is None:
            self.problem = _check_call(registration.service, registration.builder, arguments, self.path)
            self.is_settled = self.is_settled and self.problem is None
        return super().call(registration, arguments)


def _check_call(service: Any, builder: Any, arguments: dict[str, Any], path: list[Any]) -> str | None:
    """Say why this call cannot succeed, if so."""
    name = _name(builder) + (f" ({_join_path(path)})" if len(path) > 1 else "")
    if inspect.isabstract(builder) or getattr(builder, "_is_protocol", False) is True:
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
    return f"{subject} is not registered; container.register({missing}, ...)"


def _join_path(path: list[Any]) -> str:
    return " -> ".join(map(_name, path))
