"""
What `send` costs beside the least it could cost, and beside other libraries.

The floor is what a program without any library would do for the same work: make the
request, look its handler up in a dict, construct it, call it, then the same for each event.

    python -m tests.benchmarks.dispatch [rounds]
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from typing import Any

import attrs

import cqrs_sync as cqrs
from tests.benchmarks.figures import Figure, ratio, rounds_of, seconds, table


@attrs.frozen
class Ping(cqrs.Command[int]):
    """Asks for `events` events."""

    events: int


@attrs.frozen
class Pinged(cqrs.DomainEvent):
    """One of them."""

    number: int


class PingHandler(cqrs.RequestHandler[Ping, int]):
    """Raises what is asked for."""

    def __init__(self) -> None:
        """Take nothing."""

    def handle(self, request: Ping) -> int:
        """Raise the events."""
        for number in range(request.events):
            self.raise_event(Pinged(number))
        return request.events


class PingedHandler(cqrs.EventHandler[Pinged]):
    """Does nothing."""

    def __init__(self) -> None:
        """Take nothing."""

    def handle(self, event: Pinged) -> None:
        """Do nothing."""


class _FloorPingHandler:
    def __init__(self) -> None:
        self.events: list[Pinged] = []

    def handle(self, request: Ping) -> int:
        for number in range(request.events):
            self.events.append(Pinged(number))
        return request.events


class _FloorPingedHandler:
    def __init__(self) -> None:
        pass

    def handle(self, event: Pinged) -> None:
        pass


_FLOOR_REQUESTS: dict[type, Any] = {Ping: _FloorPingHandler}
_FLOOR_EVENTS: dict[type, list[Any]] = {Pinged: [_FloorPingedHandler]}


def floor(request: Ping) -> int:
    """Dispatch by hand."""
    handler = _FLOOR_REQUESTS[type(request)]()
    response: int = handler.handle(request)
    for event in handler.events:
        for event_handler in _FLOOR_EVENTS[type(event)]:
            event_handler().handle(event)
    return response


def mediator(threads: Any, *, middlewares: int = 0, types: int = 0) -> cqrs.Mediator:
    """Wire the library as its users do, with punq, and bind `types` further requests and events."""
    requests, events = cqrs.RequestMap(), cqrs.EventMap()
    requests.bind(PingHandler)
    events.bind(PingedHandler)
    for number in range(types):
        requests.bind(type(f"Other{number}", (cqrs.Command,), {}), lambda request: None)
        events.bind(type(f"Othered{number}", (cqrs.DomainEvent,), {}), lambda event: None)
    chain = [lambda message, call_next: call_next(message) for _ in range(middlewares)]
    return cqrs.bootstrap(requests, events, threads=threads, middleware=chain)


def run(rounds: int = 15) -> list[Figure]:
    """Measure everything, in one process and the same rounds."""
    same, pool = mediator(cqrs.SameThread()), mediator(16)
    middle = mediator(cqrs.SameThread(), middlewares=2)
    contenders: dict[str, Callable[[], float]] = {}
    for count in (0, 3, 10):
        for name, send, times in (
            ("floor", floor, 3000),
            ("same", same.send, 2000),
            ("pool", pool.send, 300),
            ("middle", middle.send, 2000),
        ):
            contenders[f"{name} {count}"] = lambda send=send, times=times, count=count: seconds(  # type: ignore[misc]
                lambda: send(Ping(count)), times
            )
    for types in (10, 10_000):
        many = mediator(cqrs.SameThread(), types=types)
        contenders[f"types {types}"] = lambda many=many: seconds(lambda: many.send(Ping(1)), 2000)  # type: ignore[misc]
    contenders |= _peers()
    with pool:
        pool.send(Ping(64))
        measured = rounds_of(contenders, rounds)
    return [
        Figure("send, no events, of the floor", ratio(measured, "same 0", "floor 0"), 2.5),
        Figure("send, 3 events, SameThread, of the floor", ratio(measured, "same 3", "floor 3"), 2.5),
        Figure("send, 10 events, SameThread, of the floor", ratio(measured, "same 10", "floor 10"), 2.5),
        Figure("send, 3 events, pool of 16, of the floor", ratio(measured, "pool 3", "floor 3"), 25),
        Figure("send, 10 events, pool of 16, of the floor", ratio(measured, "pool 10", "floor 10"), 25),
        Figure("send with two middlewares, of without", ratio(measured, "middle 0", "same 0"), 2),
        Figure("10,000 bound types, of 10", ratio(measured, "types 10000", "types 10"), 1.15),
        Figure("mediatr 1.3, of ours", ratio(measured, "mediatr", "same 0"), 1, at_most=False),
        Figure("python-cqrs 5.3 awaited, of ours", ratio(measured, "python-cqrs", "same 0"), 8, at_most=False),
        Figure("asyncio.run of python-cqrs, of ours", ratio(measured, "asyncio.run", "same 0"), 100, at_most=False),
    ]


def _peers() -> dict[str, Callable[[], float]]:
    """Return what other libraries take to bring a request without events to its handler."""
    import cqrs as peer  # noqa: PLC0415 -- only here is it wanted
    import di  # noqa: PLC0415
    import mediatr  # noqa: PLC0415
    from cqrs.bootstrap import requests as bootstrap  # noqa: PLC0415

    class PeerPing(peer.Request):  # type: ignore[misc, name-defined]
        pass

    class PeerPingHandler(peer.RequestHandler[PeerPing, None]):  # type: ignore[misc, name-defined]
        @property
        def events(self) -> list[Any]:
            return []

        async def handle(self, request: PeerPing) -> None:
            pass

    class MediatrPing:
        pass

    @mediatr.Mediator.handler
    class MediatrPingHandler:
        def handle(self, request: MediatrPing) -> None:
            pass

    logging.getLogger("cqrs").setLevel(logging.CRITICAL)
    container = di.Container()
    theirs = bootstrap.bootstrap(
        di_container=container, commands_mapper=lambda requests: requests.bind(PeerPing, PeerPingHandler)
    )
    mediatr_mediator = mediatr.Mediator()

    async def awaited() -> float:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        for _ in range(200):
            await theirs.send(PeerPing())
        return (loop.time() - begin) / 200

    return {
        "mediatr": lambda: seconds(lambda: mediatr_mediator.send(MediatrPing()), 2000),
        "python-cqrs": lambda: asyncio.run(awaited()),
        "asyncio.run": lambda: seconds(lambda: asyncio.run(theirs.send(PeerPing())), 50),
    }


if __name__ == "__main__":
    print(table(run(int(sys.argv[1]) if len(sys.argv) > 1 else 15)))
