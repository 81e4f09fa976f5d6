"""
D2: The handler runs in the caller's thread; its response is returned as it is; type checkers
infer it from the request: `reveal_type(mediator.send(GetOrder(1)))`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from attrs import frozen

import cqrs_sync as cqrs
from tests.source import ROOT


@frozen
class GetOrder(cqrs.Query[object]):
    number: int = 1


@frozen
class OrderSeen(cqrs.DomainEvent):
    number: int = 1


class Order(cqrs.Response):
    """A response that compares equal to nothing, itself included."""

    def __eq__(self, other):
        return False

    __hash__ = object.__hash__


@pytest.fixture
def requests():
    return cqrs.RequestMap()


@pytest.fixture
def events():
    return cqrs.EventMap()


@pytest.fixture
def mediator(requests, events, threads):
    return cqrs.bootstrap(requests, events, threads=threads)


def test_d2_the_handler_runs_in_the_callers_thread(requests, events, mediator):
    """
    Whatever its events run on; the caller may be any thread.
    """

    def answer(request):
        cqrs.raise_event(OrderSeen())
        return threading.get_ident()

    requests.bind(GetOrder, answer)
    events.bind(OrderSeen, lambda event: None)

    def sent_from_here():
        return threading.get_ident() == mediator.send(GetOrder())

    with ThreadPoolExecutor(4) as callers:
        elsewhere = [caller.result(30) for caller in [callers.submit(sent_from_here) for _ in range(8)]]
    assert [True] * 9 == [sent_from_here(), *elsewhere]


def test_d2_a_nested_send_runs_in_the_thread_of_its_handler(requests, events, mediator):
    """
    An event handler that sends is the caller of what it sends.
    """
    seen = []

    def on_order_seen(event):
        seen.append((threading.get_ident(), mediator.send(GetOrder(2))))

    def answer(request):
        if request.number == 1:
            cqrs.raise_event(OrderSeen())
        return threading.get_ident()

    requests.bind(GetOrder, answer)
    events.bind(OrderSeen, on_order_seen)
    mediator.send(GetOrder(1))

    [(handler, nested)] = seen
    assert handler == nested


@pytest.mark.parametrize(
    "response",
    [None, False, 0, "", [], Order(), {"order": 1}, ValueError("as a value"), (n for n in range(3)), NotImplemented],
    ids=lambda response: type(response).__name__,
)
@pytest.mark.parametrize("raises", [False, True], ids=["no events", "with an event"])
def test_d2_the_response_is_returned_as_it_is(requests, events, mediator, response, raises):
    """
    The very object: not copied, not converted, not looked into, not called.
    """

    def answer(request):
        if raises:
            cqrs.raise_event(OrderSeen())
        return response

    requests.bind(GetOrder, answer)
    events.bind(OrderSeen, lambda event: None)

    assert mediator.send(GetOrder()) is response


def test_d2_what_the_handler_raises_is_raised_as_it_is(requests, mediator):
    """
    The very exception, neither wrapped nor in a group.
    """
    error = LookupError("no such order")

    def answer(request):
        raise error

    requests.bind(GetOrder, answer)

    with pytest.raises(LookupError) as caught:
        mediator.send(GetOrder())

    assert caught.value is error
    assert (None, []) == (error.__cause__, getattr(error, "__notes__", []))


def test_d2_the_handler_is_given_the_very_request(requests, mediator):
    """
    What was sent is what is handled.
    """
    requests.bind(GetOrder, lambda request: request)
    request = GetOrder()

    assert mediator.send(request) is request


PROGRAM = """
import cqrs_sync as cqrs

class GetOrder(cqrs.Query[int]):
    def __init__(self, number: int) -> None: ...

def view(mediator: cqrs.Mediator) -> None:
    reveal_type(mediator.send(GetOrder(1)))
    mediator.send("GetOrder")
"""


def test_d2_type_checkers_infer_the_response(tmp_path):
    """
    `reveal_type` says what the request says, and what is no request is refused; more in tests/typing.
    """
    pytest.importorskip("mypy")
    (tmp_path / "view.py").write_text(PROGRAM)
    options = ["--strict", "--config-file=", f"--cache-dir={tmp_path}", "--follow-imports=silent"]
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", *options, str(tmp_path / "view.py")],
        env=os.environ | {"MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    revealed, refused, _ = checked.stdout.splitlines()

    assert re.search(r'8: note: Revealed type is "(builtins\.)?int"', revealed)
    assert '9: error: Argument 1 to "send" of "Mediator" has incompatible type "str"' in refused
