"""What an event loop calls in a thread: docs/how-to/async-views.md."""

from __future__ import annotations

import asyncio  # noqa: TID251 -- callers that have an event loop are what this is about
import threading
from contextvars import ContextVar

import anyio.to_thread
import pytest
from asgiref.sync import sync_to_async
from attrs import frozen

import cqrs_sync as cqrs

tenant = ContextVar("tenant")


@frozen
class Join(cqrs.Command[str]):
    user_id: str


@frozen
class Joined(cqrs.DomainEvent):
    user_id: str


@pytest.fixture
def meeting():
    """A mediator; `seen` is what its handlers saw, and from which threads."""
    requests, events = cqrs.RequestMap(), cqrs.EventMap()

    @requests.bind
    def join(request: Join) -> str:
        cqrs.raise_event(Joined(request.user_id))
        return threading.current_thread().name

    @events.bind
    def welcome(event: Joined) -> None:
        seen.append((tenant.get(), cqrs.current_attributes()["tenant"], threading.current_thread().name))

    seen = []
    with cqrs.bootstrap(requests, events, threads=2) as mediator:
        mediator.seen = seen
        yield mediator


WAYS = {
    "sync_to_async": lambda function, *arguments: sync_to_async(function)(*arguments),
    "to_thread": asyncio.to_thread,
    "anyio": anyio.to_thread.run_sync,
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_context_variables_reach_the_handlers(meeting, way):
    """Those of the caller, in the thread that sends and on the pool."""

    async def view():
        tenant.set("acme")
        with cqrs.message_attributes(tenant="acme"):
            return await way(lambda: meeting.send(Join("ada"), timeout=10))

    sender = asyncio.run(view())
    ((seen, attribute, thread),) = meeting.seen

    assert (seen, attribute) == ("acme", "acme")
    assert threading.current_thread().name not in {sender, thread}


def test_a_view_that_is_cancelled_does_not_cancel_its_command(meeting):
    """Nothing stops a thread."""
    begun, go, sent = threading.Event(), threading.Event(), threading.Event()

    def send():
        begun.set()
        go.wait(10)
        meeting.send(Join("ada"), timeout=10)
        sent.set()

    async def leave():
        tenant.set("acme")
        with cqrs.message_attributes(tenant="acme"):
            view = asyncio.create_task(sync_to_async(send)())
            # A view that has not begun is cancelled with what it would have sent.
            assert await asyncio.to_thread(begun.wait, 10)
        view.cancel()
        with pytest.raises(asyncio.CancelledError):
            await view
        assert meeting.seen == []
        go.set()

    asyncio.run(leave())

    assert sent.wait(10)
    assert len(meeting.seen) == 1
