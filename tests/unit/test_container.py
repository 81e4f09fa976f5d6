"""Promises of PunqContainer: punq's rules without its defects, and errors that say what to do."""

import abc
import functools
import inspect
import sys
import threading
from typing import ForwardRef, Protocol

import attrs
import punq
import pytest

from cqrs_sync.containers import compiled
from cqrs_sync.containers.punq import PunqContainer
from cqrs_sync.errors import HandlerNotBuilt, InvalidBinding
from cqrs_sync.testing.contracts.container import BrokenHandler
from cqrs_sync.testing.waiting import in_threads


class Database:
    def __init__(self):
        pass


class Meetings:
    def __init__(self, database: Database):
        self.database = database


class JoinMeetingHandler:
    def __init__(self, meetings: Meetings):
        self.meetings = meetings


class Rooms:
    def __init__(self, meetings: Meetings, database: Database):
        self.meetings = meetings
        self.database = database


class Traced(punq.Container):
    """Resolves in its own way, so that nothing of it may be compiled."""

    def resolve(self, service_key, **kwargs):
        return super().resolve(service_key, **kwargs)


@pytest.fixture(params=[punq.Container, Traced], ids=["compiled", "left-to-punq"])
def container(request):
    return PunqContainer(request.param())


def resolved(container, service):
    """Resolve as often as it takes: the first plan may build singletons, the second one is kept."""
    return [container.resolve(service) for _ in range(4)]


# Handlers


def test_a_handler_needs_no_registration(container):
    """
    A class that is not registered is instantiated each time, and stays unregistered.
    """
    container.register(Database).register(Meetings)
    handlers = resolved(container, JoinMeetingHandler)

    assert [JoinMeetingHandler] * 4 == [type(handler) for handler in handlers]
    assert 4 == len({id(handler) for handler in handlers})
    with pytest.raises(punq.MissingDependencyError):
        container.punq.resolve(JoinMeetingHandler)


def test_a_handler_may_be_registered_later(container):
    """
    A handler that was instantiated is resolved as soon as it is registered.
    """
    container.register(Database).register(Meetings)
    resolved(container, JoinMeetingHandler)
    container.register(JoinMeetingHandler, scope=punq.Scope.singleton)

    assert 1 == len({id(handler) for handler in resolved(container, JoinMeetingHandler)})


def test_an_implementation_is_never_replaced_by_its_service(container):
    """
    Where the registered implementation misses something, the service itself is not instantiated in its stead.
    """

    class Replica(Database):
        def __init__(self, leader: Meetings):
            pass

    container.register(Database, Replica)

    with pytest.raises(HandlerNotBuilt, match="Meetings"):
        container.resolve(Database)


def test_an_attrs_handler_is_built(container):
    """
    A handler whose constructor attrs has written is built like any other.
    """

    @attrs.frozen
    class Handler:
        meetings: Meetings
        retries: int = 3

    container.register(Database).register(Meetings)

    assert [3] * 4 == [handler.retries for handler in resolved(container, Handler)]
    assert isinstance(container.resolve(Handler).meetings, Meetings)


def test_an_annotation_means_what_it_means_where_it_is_written():
    """
    Another class of the same name, registered for another part of the program, is not injected.
    """
    orders, billing = ({"__name__": name} for name in ("orders", "billing"))
    for module in (orders, billing):
        exec(SAME_NAMES, module)  # noqa: S102 -- two modules of our own
    container = PunqContainer().register(orders["Repository"]).register(billing["Repository"])

    for module in (orders, billing):
        handlers = resolved(container, module["Handler"])
        assert {module["Repository"]} == {type(handler.repository) for handler in handlers}


SAME_NAMES = """
class Repository:
    pass

class Handler:
    def __init__(self, repository: 'Repository'):
        self.repository = repository
"""


# Scopes


def test_transient_means_one_instance_per_resolve(container):
    """
    Within one resolve a transient service is shared, as in punq; the next one has its own.
    """
    container.register(Database).register(Meetings)
    rooms = resolved(container, Rooms)

    assert [True] * 4 == [room.database is room.meetings.database for room in rooms]
    assert 4 == len({id(room.database) for room in rooms})


def test_what_is_registered_without_cache_is_new_at_each_place(container):
    """
    `cache=False` makes an instance per place where it is injected.
    """
    container.register(Database, cache=False).register(Meetings)

    assert [False] * 4 == [room.database is room.meetings.database for room in resolved(container, Rooms)]


def test_a_singleton_is_built_once(container):
    """
    Each resolve and each dependent gets the same singleton.
    """
    container.register(Database, scope=punq.Scope.singleton).register(Meetings)
    rooms = resolved(container, Rooms)

    assert {id(container.resolve(Database))} == {id(room.database) for room in rooms}
    assert {id(container.resolve(Database))} == {id(room.meetings.database) for room in rooms}


def test_a_singleton_registered_before_the_plan_is_made_is_built_once(container):
    """
    After the first resolve, a service may become a singleton.
    """
    container.register(Database).register(Meetings)
    container.resolve(JoinMeetingHandler)
    container.register(Database, scope=punq.Scope.singleton)

    assert 1 == len({id(handler.meetings.database) for handler in resolved(container, JoinMeetingHandler)})


def test_a_singleton_in_a_list_is_not_built_again():
    """
    Where punq builds singletons anew for each `list[T]`, this hands out the ones there are.
    """
    container = PunqContainer().register(Database, scope=punq.Scope.singleton)
    lists = resolved(container, list[Database])

    assert {id(container.resolve(Database))} == {id(each) for databases in lists for each in databases}


def test_a_constructor_may_wait_for_another_singleton():
    """
    A singleton whose constructor waits for a thread that builds another singleton does not hang.
    """
    container = PunqContainer().register(Database, scope=punq.Scope.singleton)

    class Pool:
        def __init__(self):
            self.databases = in_threads(lambda: container.resolve(Database), timeout=5)

    container.register(Pool, scope=punq.Scope.singleton)

    assert [container.resolve(Database)] == container.resolve(Pool).databases


def test_a_singleton_that_could_not_be_built_is_tried_again():
    """
    A constructor that raised leaves nothing behind: no lock, no half-built singleton.
    """
    errors = [ConnectionError("no database"), ConnectionError("still none")]

    class Connection:
        def __init__(self):
            if errors:
                raise errors.pop(0)

    container = PunqContainer().register(Connection, scope=punq.Scope.singleton)
    for _ in range(2):
        with pytest.raises(ConnectionError):
            container.resolve(Connection)

    assert 1 == len({id(each) for each in in_threads(*[lambda: container.resolve(Connection)] * 8)})


def test_a_lock_lasts_no_longer_than_the_construction(container):
    """
    Singletons leave no locks behind, whether they could be built or not.
    """
    container.register(Database, scope=punq.Scope.singleton).register(
        Meetings, BrokenHandler, scope=punq.Scope.singleton
    )
    container.resolve(Database)
    with pytest.raises(ConnectionRefusedError):
        container.resolve(Meetings)

    assert {} == dict(compiled.locks._building)


# Registrations


def test_instances_arguments_and_defaults(container):
    """
    An instance is handed out as it is, registered arguments win over defaults, defaults over nothing.
    """

    class Handler:
        def __init__(self, database: Database, url: str = "here", *, retries: int = 3):
            self.seen = (database, url, retries)

    database = Database()
    container.register(Database, instance=database).register(Handler, url="there")

    assert [(database, "there", 3)] * 4 == [handler.seen for handler in resolved(container, Handler)]


def test_factories_are_called_with_what_they_were_registered_with(container):
    """
    punq passes a function nothing but its registered arguments.
    """
    container.register(Database, lambda name: ("database", name), name="one").register(Meetings)

    assert [("database", "one")] * 4 == [handler.database for handler in resolved(container, Meetings)]


def test_a_decorated_factory_is_called_as_itself(container):
    """
    What a factory wraps does not say what the factory takes.
    """

    @functools.wraps(clock_in)
    def utc():
        return clock_in("UTC")

    container.register(Clock, utc)

    assert ["UTC"] * 4 == resolved(container, Clock)


@pytest.mark.parametrize("name", ["class", "with space", "x=1); raise SystemExit(", "given_0", "ﬁ", "made_0", "True"])
def test_arguments_of_any_name_are_passed(container, name):
    """
    The name of a registered argument is data: it is passed as it is and never becomes code.
    """

    class Settings:
        def __init__(self, **values):
            self.values = values

    container.register(Settings, **{name: 1})

    assert [{name: 1}] * 4 == [settings.values for settings in resolved(container, Settings)]


def test_a_list_holds_every_registration(container):
    """
    `list[T]` gets one of each registration, in order, fresh where they are transient.
    """

    class Dashboard:
        def __init__(self, databases: list[Database]):
            self.databases = databases

    class Replica(Database):
        pass

    container.register(Database).register(Database, Replica)
    dashboards = resolved(container, Dashboard)

    assert [[Database, Replica]] * 4 == [[type(each) for each in dashboard.databases] for dashboard in dashboards]
    assert 8 == len({id(each) for dashboard in dashboards for each in dashboard.databases})


def test_a_service_that_asks_for_itself_gets_the_one_before(container):
    """
    A decorator is registered under the name of what it decorates.
    """

    class Caching(Database):
        def __init__(self, inner: Database):
            self.inner = inner

    container.register(Database).register(Database, Caching)

    assert [(Caching, Database)] * 4 == [(type(each), type(each.inner)) for each in resolved(container, Database)]


def test_forward_references_are_followed(container):
    """
    Annotations that are strings find classes by name, and services registered under a name.
    """

    class Handler:
        def __init__(self, later: "Later", url: "Url"):  # noqa: F821 -- a name, not a class
            self.seen = (type(later), url)

    class Later:
        def __init__(self):
            pass

    container.register(Later).register("Url", instance="amqp://")
    handlers = resolved(container, Handler)
    container.register("Url", instance="kafka://")

    assert [(Later, "amqp://")] * 4 == [handler.seen for handler in handlers]
    assert [(Later, "kafka://")] * 4 == [handler.seen for handler in resolved(container, Handler)]


def test_a_forward_reference_of_another_module_is_followed(container):
    """
    A name finds the class that is registered under it, from any class that refers to it, also if registered later.
    """
    reference = ForwardRef("Url", module="elsewhere")
    container.register("Url", instance="amqp://")
    before = resolved(container, reference)
    container.register("Url", instance="kafka://")

    assert ["amqp://"] * 4 == before
    assert ["kafka://"] * 4 == resolved(container, reference)


class Replacement(Database):
    pass


@pytest.mark.parametrize(
    "register",
    [
        lambda parent, child: child.register(Database, Replacement),
        lambda parent, child: child.register(Database, instance=Replacement()),
        lambda parent, child: child.punq.register(Database, Replacement),
        lambda parent, child: child.punq.registrations.register(Database, Replacement),
        lambda parent, child: parent.register(Database, Replacement),
        lambda parent, child: parent.registrations.register(Database, Replacement),
    ],
)
def test_a_later_registration_counts(register):
    """
    Whoever registers anew, wherever and however, is heard at the next resolve.
    """
    parent = punq.Container()
    parent.register(Database).register(Meetings)
    child = PunqContainer(parent.child())
    before = resolved(child, JoinMeetingHandler)
    register(parent, child)

    assert {Database} == {type(handler.meetings.database) for handler in before}
    assert {Replacement} == {type(handler.meetings.database) for handler in resolved(child, JoinMeetingHandler)}


def test_a_child_adds_to_its_parent(container):
    """
    A child sees its parent's registrations, its own first; the parent sees none of the child's.
    """
    container.register(Database, scope=punq.Scope.singleton).register(Meetings)
    child = PunqContainer(container.punq.child()).register(Meetings, instance="the child's")

    assert ["the child's"] * 4 == [handler.meetings for handler in resolved(child, JoinMeetingHandler)]
    assert {Meetings} == {type(handler.meetings) for handler in resolved(container, JoinMeetingHandler)}
    assert container.resolve(Database) is child.resolve(Database)


def test_a_request_never_sees_the_instance_of_another_request():
    """
    punq confuses instances of children that are gone with those of later ones; this does not.
    """
    application = punq.Container().register(Database)

    class Handler:
        def __init__(self, user: str):
            self.user = user

    def user_of(number):
        # Other code may still use punq itself, and leave singletons behind that punq confuses later.
        application.child().register(str, instance="another").resolve(str)
        return PunqContainer(application.child().register(str, instance=f"user {number}")).resolve(Handler).user

    assert [f"user {number}" for number in range(100)] == [user_of(number) for number in range(100)]


def test_a_request_never_sees_the_singleton_of_another_request():
    """
    The same for singletons that a child builds.
    """
    application = punq.Container()

    class User:
        def __init__(self, number):
            self.number = number

    def user_of(number):
        child = application.child().register(User, scope=punq.Scope.singleton, number=number)
        return PunqContainer(child).resolve(User).number

    assert list(range(100)) == [user_of(number) for number in range(100)]


@pytest.fixture
def hurried_threads():
    """Let threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("hurried_threads")
@pytest.mark.parametrize("enlarge", [PunqContainer.register, PunqContainer.resolve])
def test_threads_may_register_while_others_resolve(enlarge):
    """
    Many threads may register at the same time, and resolve new services and names.
    """
    container = PunqContainer().register("Url", instance="amqp://")
    for number in range(300):
        container.register(f"{number}", instance=number)

    class Handler:
        def __init__(self, url: "Url"):  # noqa: F821 -- as above
            self.url = url

    def enlarge_and_resolve():
        for _ in range(60):
            enlarge(container, type("Service", (), {"__init__": lambda self: None}))
            assert "amqp://" == PunqContainer(container.punq).resolve(Handler).url

    in_threads(*[enlarge_and_resolve] * 8)


# Plans


def test_a_planned_service_is_not_inspected_again(monkeypatch):
    """
    A plan repeats the calls without punq's costly look at signatures.
    """
    container = PunqContainer().register(Database).register(Meetings)
    resolved(container, JoinMeetingHandler)

    monkeypatch.setattr(inspect, "getfullargspec", None)
    monkeypatch.setattr(inspect, "signature", None)

    assert isinstance(container.resolve(JoinMeetingHandler), JoinMeetingHandler)


def test_containers_that_need_punq_itself_are_left_to_it():
    """
    `auto_register` still registers, and overridden methods are still called.
    """
    asked = []

    class Listening(punq.Container):
        def resolve(self, service_key, **kwargs):
            asked.append(service_key)
            return super().resolve(service_key, **kwargs)

    automatic = PunqContainer(punq.Container(auto_register=True))
    resolved(PunqContainer(Listening().register(Database)), Database)

    assert {Meetings} == {type(handler.meetings) for handler in resolved(automatic, JoinMeetingHandler)}
    assert [Database] * 4 == asked


def rename_the_scopes(monkeypatch, container):
    registry = container.registrations

    class Renamed:
        def __getattr__(self, name):
            if name == "_Registry__registrations":
                raise AttributeError(name)
            return getattr(registry, name)

    monkeypatch.setattr(container, "registrations", Renamed())


def another_version(monkeypatch, container):
    monkeypatch.setattr(punq, "__version__", "1.0.0")


def no_version(monkeypatch, container):
    monkeypatch.delattr(punq, "__version__")


def singletons_of_another_type(monkeypatch, container):
    monkeypatch.setattr(container, "_singletons", type("Singletons", (dict,), {})())


@pytest.mark.parametrize("change", [rename_the_scopes, another_version, no_version, singletons_of_another_type])
def test_an_unknown_punq_is_left_to_itself(monkeypatch, change):
    """
    Where punq is not as known inside, all works through its public interface.
    """
    container = PunqContainer().register(Database, scope=punq.Scope.singleton).register(Meetings)
    known = compiled.is_supported(container.punq)
    change(monkeypatch, container.punq)
    handlers = resolved(container, JoinMeetingHandler)

    assert (True, False) == (known, compiled.is_supported(container.punq))
    assert 4 == len({id(handler) for handler in handlers})
    assert {id(container.resolve(Database))} == {id(handler.meetings.database) for handler in handlers}
    with pytest.raises(HandlerNotBuilt, match=r"Calendar cannot be built: .*Rooms"):
        container.resolve(Calendar)


# Errors


class Calendar:
    def __init__(self, rooms: Rooms):
        self.rooms = rooms


class Storage(abc.ABC):
    @abc.abstractmethod
    def store(self): ...


class Clock(Protocol):
    def now(self): ...


class Unannotated:
    def __init__(self, storage, clock=None):
        pass


class NeedsUnannotated:
    def __init__(self, unannotated: Unannotated):
        pass


class NeedsClock:
    def __init__(self, clock: Clock):
        pass


class NeedsNumber:
    def __init__(self, timeout: float):
        pass


class Unresolvable:
    def __init__(self, nowhere: "Nowhere"):  # noqa: F821 -- that is the point
        pass


class Misspelt:
    def __init__(self, container: "punq.Nowhere"):
        pass


class Chicken:
    def __init__(self, egg: "Egg"):
        pass


class Egg:
    def __init__(self, chicken: Chicken):
        pass


class Endless:
    def __init__(self, endless: "Endless"):
        pass


def clock_in(zone="CET"):
    return zone


def clock_of(owner):
    return owner


WRONG_WIRINGS = [
    (
        JoinMeetingHandler,
        [],
        (
            "JoinMeetingHandler cannot be built: its dependency Meetings is not registered; "
            "container.register(Meetings, ...)"
        ),
    ),
    (
        JoinMeetingHandler,
        [(Meetings,)],
        (
            "JoinMeetingHandler cannot be built: its dependency Database (JoinMeetingHandler -> Meetings -> Database) "
            "is not registered; container.register(Database, ...)"
        ),
    ),
    (
        NeedsNumber,
        [],
        (
            "NeedsNumber cannot be built: its dependency float is not registered; "
            "container.register(NeedsNumber, ...) with a value for it"
        ),
    ),
    ("Url", [], "'Url' cannot be built: it is not registered; container.register('Url', ...)"),
    (
        Storage,
        [],
        "Storage cannot be built: Storage is abstract; container.register(Storage, ...) with a concrete class",
    ),
    (
        NeedsClock,
        [(Clock,)],
        (
            "NeedsClock cannot be built: Clock (NeedsClock -> Clock) is abstract; "
            "container.register(Clock, ...) with a concrete class"
        ),
    ),
    (
        Unannotated,
        [],
        (
            "Unannotated cannot be built: Unannotated takes storage, which its __init__ does not annotate; "
            "annotate it, or container.register(Unannotated, storage=...)"
        ),
    ),
    (
        NeedsUnannotated,
        [(Unannotated,)],
        (
            "NeedsUnannotated cannot be built: Unannotated (NeedsUnannotated -> Unannotated) takes storage, "
            "which its __init__ does not annotate; annotate it, or container.register(Unannotated, storage=...)"
        ),
    ),
    (
        NeedsClock,
        [(Clock, clock_of)],
        (
            "NeedsClock cannot be built: punq passes no arguments to a function, and clock_of (NeedsClock -> Clock) "
            "takes owner; container.register(Clock, clock_of, owner=...)"
        ),
    ),
    (
        Database,
        [(Database, dict)],
        (
            "Database cannot be built: punq cannot read the signature of dict; "
            "container.register(Database, instance=...)"
        ),
    ),
    (
        Unresolvable,
        [],
        (
            "Unresolvable cannot be built: punq cannot read an annotation of its constructor: "
            "name 'Nowhere' is not defined; import the name in that module, or container.register(Unresolvable, ...)"
        ),
    ),
    (
        Misspelt,
        [],
        (
            "Misspelt cannot be built: punq cannot read an annotation of its constructor: "
            "module 'punq' has no attribute 'Nowhere'; import the name in that module, "
            "or container.register(Misspelt, ...)"
        ),
    ),
    (
        Chicken,
        [(Egg,), (Chicken,)],
        (
            "Chicken cannot be built: its dependencies form a circle, Chicken -> Egg -> Chicken; "
            "let one of them get the other when it is used"
        ),
    ),
]


@pytest.mark.parametrize(("service", "registrations", "message"), WRONG_WIRINGS)
def test_a_wrong_wiring_says_what_to_change(service, registrations, message):
    """
    The error names what was asked for, what is at fault, the way there, and the way out. If punq has raised one, that
    is its cause.
    """
    container = PunqContainer()
    for registration in registrations:
        container.register(*registration)

    for _ in range(3):
        with pytest.raises(HandlerNotBuilt) as caught:
            container.resolve(service)
        assert message == str(caught.value)
        assert (caught.value.__cause__ is None) is any(
            words in message for words in ("abstract", "takes", "cannot read the signature")
        )


class Deep:
    def __init__(self):
        deeper(30, list)


def deeper(levels, action):
    return deeper(levels - 1, action) if levels else action()


@pytest.mark.parametrize("service", [Database, Deep])
def test_a_service_without_cache_that_asks_for_itself_is_a_circle(service):
    """
    What punq runs into the recursion limit with is named, wherever the stack ends: in punq or in a constructor.
    """

    class Sideways:
        def __init__(self, first: service, endless: Endless):
            pass

    for padding in range(10):
        container = PunqContainer().register(Endless, Sideways, cache=False).register(service, cache=False)
        with pytest.raises(HandlerNotBuilt, match="circle, Endless -> Endless;"):
            deeper(padding, lambda container=container: container.resolve(Endless))


def test_a_list_that_leads_back_is_a_circle():
    """
    The same for a service that asks for a list of what asks for it.
    """

    class Menu:
        def __init__(self, entries: "list[Entry]"):
            pass

    class Entry:
        def __init__(self, menu: Menu):
            pass

    container = PunqContainer().register(Entry, instance=None).register(Menu).register(Entry)

    with pytest.raises(
        HandlerNotBuilt, match=r"circle, (list\[Entry\] -> Menu -> list\[Entry\]|Menu -> list\[Entry\] -> Menu);"
    ):
        container.resolve(Menu)


def test_explaining_leaves_nothing_behind():
    """
    The search for a missing dependency builds no singleton and leaves no trace.
    """
    container = PunqContainer().register(Meetings, scope=punq.Scope.singleton)
    for _ in range(2):
        with pytest.raises(HandlerNotBuilt):
            container.resolve(JoinMeetingHandler)
    container.register(Unannotated, scope=punq.Scope.singleton)
    with pytest.raises(HandlerNotBuilt):
        container.resolve(NeedsUnannotated)

    assert {} == container.punq._singletons


@pytest.mark.parametrize(("wrong", "message"), [(Storage, "abstract"), (Unannotated, "annotate"), (Rooms, "Meetings")])
def test_a_wiring_that_goes_wrong_before_the_plan_is_made_says_so(wrong, message):
    """
    After the first resolve, a registration may make the service impossible to build.
    """
    container = PunqContainer().register(Database)
    container.resolve(Database)
    container.register(Database, wrong)

    for _ in range(3):
        with pytest.raises(HandlerNotBuilt, match=message):
            container.resolve(Database)


def test_what_was_missing_may_be_registered(container):
    """
    An error is not remembered.
    """
    container.register(Meetings)
    with pytest.raises(HandlerNotBuilt):
        container.resolve(JoinMeetingHandler)
    container.register(Database)

    assert [JoinMeetingHandler] * 4 == [type(handler) for handler in resolved(container, JoinMeetingHandler)]


class Failing:
    def __init__(self, error: Exception):
        raise error


class NeedsFailing:
    def __init__(self, failing: Failing, unannotated: Unannotated):
        pass


@pytest.mark.parametrize(
    "error",
    [ValueError("no"), TypeError("no"), RecursionError("no"), KeyError("no")],
)
def test_an_error_of_a_constructor_is_let_through(container, error):
    """
    It is no mistake in the wiring, whatever its type; a single note tells for whom it was called.
    """
    container.register(Exception, instance=error).register(Failing).register(Unannotated, storage=1)

    for _ in range(3):
        with pytest.raises(type(error)) as caught:
            container.resolve(NeedsFailing)
        assert error is caught.value
    assert ["raised while NeedsFailing was being built"] == error.__notes__


def test_an_error_of_punq_in_a_constructor_is_the_constructors():
    """
    A constructor that asks a punq container itself lets out what that raises.
    """

    class Locating:
        def __init__(self):
            punq.Container().resolve(Database)

    with pytest.raises(punq.MissingDependencyError, match="Database") as caught:
        PunqContainer().resolve(Locating)

    assert ["raised while Locating was being built"] == caught.value.__notes__


def test_an_error_of_a_planned_constructor_is_let_through(container):
    """
    The same once it has been built: the error arrives as it is, with one note.
    """
    error, failing = ValueError("no"), threading.Event()

    class Handler:
        def __init__(self, database: Database):
            if failing.is_set():
                raise error

    container.register(Database)
    resolved(container, Handler)
    failing.set()

    for _ in range(3):
        with pytest.raises(ValueError, match="no"):
            container.resolve(Handler)
    assert ["raised while Handler was being built"] == error.__notes__


def test_a_wrong_wiring_is_found_before_any_constructor_is_called():
    """
    Nothing is built that would be thrown away.
    """
    built = []

    class First:
        def __init__(self):
            built.append(self)

    class NeedsBoth:
        def __init__(self, first: First, unannotated: Unannotated):
            pass

    container = PunqContainer().register(First).register(Unannotated)
    for _ in range(3):
        with pytest.raises(HandlerNotBuilt, match="Unannotated"):
            container.resolve(NeedsBoth)

    assert [] == built


def test_an_abstract_class_that_makes_its_subclass_is_built(container):
    """
    Its `__new__` does so.
    """

    class Opened(abc.ABC):
        def __new__(cls):
            return object.__new__(File)

        @abc.abstractmethod
        def read(self): ...

    class File(Opened):
        def __init__(self):
            pass

        def read(self): ...

    container.register(Opened)

    assert [File] * 4 == [type(each) for each in resolved(container, Opened)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((Database, 1), "Database cannot be registered: Expected a callable factory"),
        (("Url",), "'Url' cannot be registered: The service 'Url' can't be registered as its own implementation"),
        ((Unresolvable,), "Unresolvable cannot be registered: name 'Nowhere' is not defined"),
    ],
)
def test_a_wrong_registration_is_refused(arguments, message):
    """
    What punq refuses to register is an InvalidBinding that names it.
    """
    with pytest.raises(InvalidBinding, match=message) as caught:
        PunqContainer().register(*arguments)

    assert isinstance(caught.value.__cause__, punq.InvalidRegistrationException | punq.InvalidForwardReferenceException)
