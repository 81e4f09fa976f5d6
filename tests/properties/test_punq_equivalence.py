"""PunqContainer resolves as punq does: both run the same random programs, and what they build is compared."""

import inspect
from collections.abc import Iterable
from functools import partial
from itertools import product
from typing import Any

import attrs
import punq
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from cqrs_sync.containers.punq import PunqContainer
from cqrs_sync.errors import HandlerNotBuilt

SERVICES = 5
#: Services that are asked for as `list[T]`: singletons are not among them, as punq would build those again.
LISTED = {3, 4}


class Built:
    """What every generated service is: it keeps what it was given."""

    def __init__(self, **parts: Any):
        self.parts = parts


KEYS = [type(f"Service{number}", (), {}) for number in range(SERVICES)]


# What is drawn: descriptions of classes, registrations and programs


@attrs.frozen
class Parameter:
    wants: int | None  # a service; None is a plain value without annotation
    listed: bool
    default: bool
    keyword_only: bool
    registered: bool  # given as an argument of the registration


@attrs.frozen
class Register:
    container: int
    service: int
    kind: str
    singleton: bool
    cache: bool
    parameters: list[Parameter]


@attrs.frozen
class Child:
    parent: int


@attrs.frozen
class Resolve:
    container: int
    service: int | None  # None is a handler that is not registered
    listed: bool
    handler: list[Parameter]


def one_of_each(kind: type, *choices: Iterable[Any]) -> list[Any]:
    """All combinations: drawing one at once is much quicker than drawing its parts."""
    return [kind(*chosen) for chosen in product(*choices)]


FLAG = [False, True]
SELDOM = [False, False, False, True]
CONTAINERS = range(3)


def parameters(wants: list[int]) -> st.SearchStrategy[list[Parameter]]:
    services = one_of_each(Parameter, wants, FLAG, SELDOM, FLAG, SELDOM)
    values = one_of_each(Parameter, [None], [False], [True] * 9 + [False], FLAG, SELDOM)
    return st.lists(st.sampled_from(services * (3 if wants else 0) + values), min_size=1 if wants else 0, max_size=3)


def registrations(service: int, *, cache: bool) -> st.SearchStrategy[Register]:
    """
    Draw a registration of a service that mostly wants later ones.

    Those that lead back make decorators, circles and errors. What would make punq run into the
    recursion limit is left out: it takes long, and has a test of its own.
    """
    later = [*range(service + 1, SERVICES)]
    back = [*(LISTED if service in LISTED else range(SERVICES))] if cache else []
    kinds = ["class"] * 20 + ["instance"] * 3 + ["function"] * 3 + ["function that asks for something"]
    scopes = [False] if service in LISTED else FLAG
    heads = one_of_each(partial(partial, Register), CONTAINERS, [service], kinds, scopes, [cache])
    return st.builds(lambda head, tail: head(tail), st.sampled_from(heads), parameters(later * 4 + back))


def any_registration(services: Iterable[int]) -> st.SearchStrategy[Register]:
    return st.one_of([registrations(service, cache=not seldom) for service in services for seldom in SELDOM])


resolves = st.builds(
    lambda head, tail: head(tail),
    st.sampled_from(one_of_each(partial(partial, Resolve), CONTAINERS, [None, *range(SERVICES)], FLAG)),
    parameters([*range(SERVICES)]),
)
children = st.sampled_from(one_of_each(Child, CONTAINERS))
programs = st.builds(
    lambda first, rest: [*first, *rest],
    st.tuples(*(any_registration([service]) for service in range(SERVICES))),
    st.lists(st.one_of(any_registration(range(SERVICES)), resolves, resolves, children), min_size=4, max_size=14),
)


# What is made from it, the same for both sides


def wanted(parameter: Parameter, *, lists: bool) -> Any:
    listed = lists and parameter.listed and parameter.wants in LISTED
    return list[KEYS[parameter.wants]] if listed else KEYS[parameter.wants]


def signature_of(wants: list[Parameter], *, bound: bool) -> inspect.Signature:
    positional, keyword_only = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    taken = [] if bound else [inspect.Parameter("self", positional)]
    for number, parameter in enumerate(wants):
        kind = keyword_only if parameter.keyword_only else positional
        default = f"default {number}" if parameter.default else inspect.Parameter.empty
        taken.append(inspect.Parameter(f"p{number}", kind, default=default))
    order = sorted(taken, key=lambda each: (each.kind, each.name != "self", each.default is not each.empty))
    return inspect.Signature(order)


def class_with(wants: list[Parameter], *, lists: bool = True) -> type[Built]:
    def __init__(self: Built, **parts: Any) -> None:  # noqa: N807 -- it becomes the method below
        callable_with.bind(**parts)
        Built.__init__(self, **parts)

    callable_with = signature_of(wants, bound=True)
    __init__.__signature__ = signature_of(wants, bound=False)
    __init__.__annotations__ = {
        f"p{n}": wanted(each, lists=lists) for n, each in enumerate(wants) if each.wants is not None
    }
    return type("Generated", (Built,), {"__init__": __init__})


def function_with(wants: list[Parameter]) -> Any:
    signature = signature_of(wants, bound=True)

    def make(**parts: Any) -> Built:
        signature.bind(**parts)
        return Built(**parts)

    make.__signature__ = signature
    return make


def registered(step: Register) -> tuple[Any, dict[str, Any]]:
    """The arguments that both containers are given to register the same."""
    arguments = {f"p{n}": f"registered {n}" for n, each in enumerate(step.parameters) if each.registered}
    options = {"scope": punq.Scope(int(step.singleton)), "cache": step.cache}
    if step.kind == "class":
        return class_with(step.parameters, lists=step.service not in LISTED), arguments | options
    # punq passes nothing to a function: what it asks for is missing.
    modest = [attrs.evolve(each, default=True) for each in step.parameters]
    return function_with(modest if step.kind == "function" else step.parameters), arguments | options


# Both sides run it


class Worlds:
    """The same containers twice: those of punq, and ours."""

    def __init__(self) -> None:
        self.punq = [punq.Container()]
        self.ours = [PunqContainer()]
        self.pairs: dict[int, Any] = {}
        self.asked: dict[tuple[int, Any], bool] = {}

    def run(self, step: Register | Child | Resolve) -> None:
        if isinstance(step, Child):
            here = step.parent % len(self.punq)
            self.punq.append(self.punq[here].child())
            self.ours.append(PunqContainer(self.ours[here].punq.child()))
        elif isinstance(step, Register):
            self.register(step, step.container % len(self.punq))
            for (container, asked), instantiate in self.asked.items():
                self.both(container, asked, instantiate=instantiate)
        else:
            self.resolve(step, step.container % len(self.punq))

    def register(self, step: Register, here: int) -> None:
        key = KEYS[step.service]
        if step.kind == "instance":
            self.punq[here].register(key, instance=Built())
            self.ours[here].register(key, instance=Built())
            return
        builder, arguments = registered(step)
        self.punq[here].register(key, builder, **arguments)
        self.ours[here].register(key, builder, **arguments)

    def resolve(self, step: Resolve, here: int) -> None:
        service = class_with(step.handler) if step.service is None else KEYS[step.service]
        if step.listed and step.service in LISTED:
            service = list[service]
        self.asked[here, service] = step.service is None
        # The first may build singletons, the second makes a plan, the third follows it.
        outcomes = [self.both(here, service, instantiate=step.service is None) for _ in range(3)]

        if all(outcomes):
            assert service in self.ours[here].plans

    def both(self, here: int, service: Any, *, instantiate: bool) -> bool:
        """Resolve on both sides and compare; tell whether it could be built."""
        ask = self.punq[here].instantiate if instantiate or self.unknown(here, service) else self.punq[here].resolve
        built = self.punq[here]._singletons.copy()
        theirs, ours = outcome(ask, service), outcome(self.ours[here].resolve, service)
        if isinstance(theirs, Exception):
            # punq keeps singletons that it built on the way to the error. Here, wrong registrations build nothing.
            self.punq[here]._singletons.clear()
            self.punq[here]._singletons.update(built)
            assert isinstance(ours, HandlerNotBuilt)
            if isinstance(theirs, punq.MissingDependencyError):
                assert isinstance(ours.__cause__, punq.MissingDependencyError)
                assert str(theirs) == str(ours.__cause__)
            return False
        assert not isinstance(ours, Exception), ours
        self.compare(theirs, ours)
        return True

    def unknown(self, here: int, service: Any) -> bool:
        context = self.punq[here].registrations.build_context(service)
        return isinstance(service, type) and not context.target(service).impls

    def compare(self, theirs: Any, ours: Any) -> None:
        """Assert same structure and same identities, within a graph and with all that were built before."""
        if isinstance(theirs, list):
            assert len(theirs) == len(ours)
            for one, other in zip(theirs, ours, strict=True):
                self.compare(one, other)
        elif isinstance(theirs, Built):
            if id(theirs) in self.pairs or id(ours) in self.pairs:
                assert self.pairs.get(id(theirs)) is ours
                assert self.pairs.get(id(ours)) is theirs
                return
            self.pairs |= {id(theirs): ours, id(ours): theirs}
            assert type(theirs) is type(ours)
            assert theirs.parts.keys() == ours.parts.keys()
            for name, part in theirs.parts.items():
                self.compare(part, ours.parts[name])
        elif isinstance(theirs, punq.Container):
            assert theirs in self.punq
        else:
            assert theirs == ours


def outcome(ask: Any, service: Any) -> Any:
    try:
        return ask(service)
    except Exception as error:  # noqa: BLE001 -- compared
        return error


# Shrinking takes minutes, more than a test may: add Phase.shrink to look into a failure.
@settings(max_examples=500, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(program=programs)
def test_what_is_built_is_what_punq_builds(program):
    """
    On random containers, structure, identity and errors are those of punq, before and after a plan is made.
    """
    worlds = Worlds()
    for step in program:
        worlds.run(step)
    for container in range(len(worlds.punq)):
        for service in range(SERVICES):
            worlds.run(Resolve(container, service, listed=False, handler=[]))
