"""
D1: A request has one handler. Binding a second is an error when it is bound; sending an
unbound request raises, names it, and suggests near names.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from typing import Generic, TypeVar

import pytest
from attrs import frozen

import cqrs_sync as cqrs

Req = TypeVar("Req", bound=cqrs.Request)


@frozen
class JoinMeeting(cqrs.Command[str]):
    user_id: str = "ada"


@frozen
class JoinMeetingLate(JoinMeeting):
    """A kind of JoinMeeting, and yet another request."""


@frozen
class LeaveMeeting(cqrs.Command[str]):
    user_id: str = "ada"


@frozen
class UserJoined(cqrs.DomainEvent):
    user_id: str = "ada"


class JoinMeetingHandler(cqrs.RequestHandler[JoinMeeting, str]):
    def handle(self, request):
        return f"{request.user_id} joined"


class UserJoinedHandler(cqrs.EventHandler[UserJoined]):
    def handle(self, event):
        pass


class Answers(cqrs.RequestHandler[Req, str], Generic[Req]):
    def handle(self, request):
        return f"answered {type(request).__name__}"


class AnswersJoinMeeting(Answers[JoinMeeting]):
    pass


def join(request: JoinMeeting) -> str:
    return f"{request.user_id} joined"


class Desk:
    def join(self, request: JoinMeeting) -> str:
        return f"{request.user_id} joined at the desk"

    def __call__(self, request: JoinMeeting) -> str:
        return f"{request.user_id} joined by call"


@pytest.fixture
def requests():
    return cqrs.RequestMap()


@pytest.fixture
def mediator(requests):
    with cqrs.bootstrap(requests, threads=cqrs.SameThread()) as mediator:
        yield mediator


# One handler


def test_d1_a_request_reaches_the_handler_that_is_bound_to_it(requests, mediator):
    """
    Of several handlers, the one bound to the request's type answers.
    """
    requests.bind(LeaveMeeting, lambda request: f"{request.user_id} left")
    requests.bind(JoinMeeting, JoinMeetingHandler)

    assert "ada joined" == mediator.send(JoinMeeting("ada"))
    assert "ada left" == mediator.send(LeaveMeeting("ada"))


def test_d1_a_second_handler_is_refused_when_it_is_bound(requests, mediator):
    """
    The error names the request and both handlers, and the first one stays.
    """
    requests.bind(JoinMeetingHandler)

    with pytest.raises(cqrs.AlreadyBound, match=r"^JoinMeeting is bound to JoinMeetingHandler: .* to join as well$"):
        requests.bind(join)

    assert [JoinMeetingHandler] == [binding.handler for binding in requests]
    assert "ada joined" == mediator.send(JoinMeeting("ada"))


def test_d1_the_same_handler_is_not_bound_twice_either(requests):
    """
    A module that is set up twice is found out.
    """
    requests.bind(JoinMeetingHandler)

    with pytest.raises(cqrs.AlreadyBound):
        requests.bind(JoinMeeting, JoinMeetingHandler)


def test_d1_of_many_threads_that_bind_at_once_one_succeeds(requests):
    """
    Sixteen threads bind a handler each to the same request: one is bound, fifteen are refused.
    """
    together = Barrier(16)

    def bind(number):
        together.wait(10)
        try:
            requests.bind(JoinMeeting, lambda request: f"handler {number}")
        except cqrs.AlreadyBound:
            return False
        return True

    with ThreadPoolExecutor(16) as callers:
        bound = list(callers.map(bind, range(16), timeout=30))

    assert (1, 1) == (sum(bound), len(requests))


def test_d1_one_handler_may_answer_several_requests(requests, mediator):
    """
    It is the request that has one handler, not the other way round.
    """
    requests.bind(JoinMeeting, Answers)
    requests.bind(LeaveMeeting, Answers)

    assert "answered JoinMeeting" == mediator.send(JoinMeeting())
    assert "answered LeaveMeeting" == mediator.send(LeaveMeeting())


def test_d1_a_handler_of_a_base_class_may_be_bound_to_its_subclasses(requests, mediator):
    """
    It takes what is sent to it, so it can answer.
    """
    requests.bind(JoinMeetingLate, JoinMeetingHandler)

    assert "bob joined" == mediator.send(JoinMeetingLate("bob"))


# Unbound requests


def test_d1_sending_an_unbound_request_names_it(mediator):
    """
    The error says what was sent and what to do.
    """
    with pytest.raises(cqrs.HandlerNotFound, match=r"no handler is bound to JoinMeeting: call requests\.bind"):
        mediator.send(JoinMeeting())


def test_d1_sending_an_unbound_request_suggests_near_names(requests, mediator):
    """
    A neighbour with almost the same name is mostly what was meant; others are not shown.
    """
    requests.bind(JoinMeetingHandler)
    requests.bind(LeaveMeeting, lambda request: "left")

    with pytest.raises(cqrs.HandlerNotFound, match=r"JoinMeetingLate.*; similar requests are bound: JoinMeeting$"):
        mediator.send(JoinMeetingLate())


def test_d1_a_subclass_of_a_bound_request_is_another_request(requests, mediator):
    """
    A command is never answered by a handler that knows only a part of it.
    """
    requests.bind(JoinMeetingHandler)

    with pytest.raises(cqrs.HandlerNotFound):
        mediator.send(JoinMeetingLate())


def test_d1_a_request_may_be_bound_after_it_was_sent_in_vain(requests, mediator):
    """
    That nothing was bound is not remembered.
    """
    with pytest.raises(cqrs.HandlerNotFound):
        mediator.send(JoinMeeting())
    requests.bind(JoinMeetingHandler)

    assert "ada joined" == mediator.send(JoinMeeting())


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        (UserJoined(), r"is an event, which is not sent: write `mediator\.publish"),
        ("JoinMeeting", "is not a request: subclass Command or Query"),
        (JoinMeeting, "a class was sent, not a request: send an instance of it"),
        (None, "is not a request: subclass Command or Query"),
    ],
)
def test_d1_only_requests_are_sent(mediator, thing, words):
    """
    An event, a string or the class itself is told from a request that is not bound.
    """
    with pytest.raises(cqrs.HandlerNotFound, match=words):
        mediator.send(thing)


# Binding, in whatever way


def answer_of(*arguments):
    requests = cqrs.RequestMap()
    requests.bind(*arguments)
    with cqrs.bootstrap(requests, threads=cqrs.SameThread()) as mediator:
        return mediator.send(JoinMeeting("ada"))


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ([JoinMeetingHandler], "ada joined"),
        ([JoinMeeting, JoinMeetingHandler], "ada joined"),
        ([AnswersJoinMeeting], "answered JoinMeeting"),
        ([join], "ada joined"),
        ([JoinMeeting, join], "ada joined"),
        ([JoinMeeting, lambda request: f"{request.user_id} in short"], "ada in short"),
        ([JoinMeeting, partial(join)], "ada joined"),
        ([Desk().join], "ada joined at the desk"),
        ([JoinMeeting, Desk()], "ada joined by call"),
    ],
    ids=[
        "class alone",
        "request and class",
        "class of a generic class",
        "function alone",
        "request and function",
        "lambda",
        "partial",
        "method",
        "callable object",
    ],
)
def test_d1_the_request_is_given_or_read_from_the_handler(arguments, answer):
    """
    Classes say it in `RequestHandler[JoinMeeting, str]`, functions in their first parameter's annotation.
    """
    assert answer == answer_of(*arguments)


def test_d1_binding_decorates(requests, mediator):
    """
    `bind` returns what it was given: a class or a function can be used as if it were not bound.
    """

    @requests.bind
    class Handler(cqrs.RequestHandler[JoinMeeting, str]):
        def handle(self, request):
            return "by class"

    @requests.bind
    def leave(request: LeaveMeeting) -> str:
        return "by function"

    assert "by class" == Handler().handle(JoinMeeting()) == mediator.send(JoinMeeting())
    assert "by function" == leave(LeaveMeeting()) == mediator.send(LeaveMeeting())


def test_d1_binding_decorates_with_the_request_given(requests, mediator):
    """
    Where the handler does not say it, or says a base class.
    """

    @requests.bind(JoinMeeting)
    def unannotated(request):
        return f"{request.user_id} by hand"

    @requests.bind(JoinMeetingLate)
    class Late(JoinMeetingHandler):
        pass

    assert "ada by hand" == unannotated(JoinMeeting()) == mediator.send(JoinMeeting())
    assert "bob joined" == Late().handle(JoinMeetingLate("bob")) == mediator.send(JoinMeetingLate("bob"))


# Wrong bindings


class Plain:
    def handle(self, request: JoinMeeting) -> str:
        return "looks like a handler"


class Unfinished(cqrs.RequestHandler[JoinMeeting, str]):
    pass


class Misspelt(cqrs.RequestHandler[JoinMeeting, str]):
    def handel(self, request):
        return "never called"


class Asynchronous(cqrs.RequestHandler[JoinMeeting, str]):
    async def handle(self, request):
        return "never awaited"


async def join_some_time(request: JoinMeeting) -> str:
    return "never awaited"


def unannotated(request):
    return "for whom?"


def annotated_otherwise(request: UserJoined) -> None:
    pass


def misspelt(request: JoinMeting) -> str:  # noqa: F821
    return "never called"


class OtherAnswers(cqrs.RequestHandler[str, str]):
    def handle(self, request):
        return "never called"


def takes_nothing() -> str:
    return "for nobody"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([Plain], "Plain is not a RequestHandler: bind a subclass of RequestHandler, or a function"),
        ([JoinMeeting, UserJoinedHandler], "UserJoinedHandler is an? EventHandler: bind a subclass of RequestHandler"),
        ([Unfinished], "Unfinished does not implement handle: define it"),
        ([Misspelt], "Misspelt does not implement handle: define it"),
        ([LeaveMeeting, JoinMeetingHandler], "JoinMeetingHandler handles JoinMeeting, .* bound to LeaveMeeting"),
        ([LeaveMeeting, join], "join handles JoinMeeting, so it cannot be bound to LeaveMeeting"),
        ([Asynchronous], r"Asynchronous\.handle is a coroutine function: this library is synchronous"),
        ([join_some_time], "join_some_time is a coroutine function: this library is synchronous"),
        ([JoinMeetingHandler()], "an instance of JoinMeetingHandler cannot be bound: bind the class"),
        ([JoinMeeting, "JoinMeetingHandler"], "'JoinMeetingHandler' is neither a RequestHandler class nor a function"),
        ([JoinMeeting, None], "None is neither a RequestHandler class nor a function"),
        ([takes_nothing], "takes_nothing takes no argument: it must take the request"),
        ([unannotated], r"unannotated does not say which request it handles: .* call bind\(<Request>, unannotated\)"),
        (
            [annotated_otherwise],
            "annotates its first parameter with UserJoined, which is not a Request class: annotate",
        ),
        ([misspelt], "misspelt annotates its first parameter with 'JoinMeting', which its module does not define"),
        (
            [OtherAnswers],
            r"OtherAnswers is a RequestHandler of str, which is not a Request class: RequestHandler\[<Req",
        ),
        ([Answers], r"Answers does not say which request it handles: write RequestHandler\[<Request>, \.\.\.\]"),
        ([UserJoined, join], "UserJoined cannot be bound: it is not a Request"),
        ([str, join], "str cannot be bound: it is not a Request"),
        (["JoinMeeting", join], "'JoinMeeting' cannot be bound: it is not a Request"),
        ([JoinMeeting(), join], "JoinMeeting.* cannot be bound: it is not a Request"),
        ([join, JoinMeeting], "the request comes before its handler: write JoinMeeting, join"),
    ],
)
def test_d1_a_wrong_binding_is_refused_when_it_is_bound(requests, arguments, words):
    """
    In words that say what to change; nothing is bound by it.
    """
    with pytest.raises(cqrs.InvalidBinding, match=words):
        requests.bind(*arguments)

    assert [] == list(requests)


@pytest.mark.parametrize("arguments", [[], [JoinMeeting, JoinMeetingHandler, join]])
def test_d1_bind_takes_a_handler_or_a_request_and_a_handler(requests, arguments):
    """
    Any other number of arguments is a slip of the pen.
    """
    with pytest.raises(TypeError, match=f"not {len(arguments)} arguments"):
        requests.bind(*arguments)
