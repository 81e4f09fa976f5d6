"""
What a container takes to build a handler, and what a whole command takes with it, by the depth of the handler's
dependencies; punq takes turns with it.

    python -m tests.benchmarks.resolve [rounds]
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
import punq

import cqrs_sync as cqrs
from cqrs_sync.containers.punq import PunqContainer
from tests.benchmarks.figures import rounds_of, seconds


class Depth0:
    """Needs nothing."""

    def __init__(self) -> None:
        """Take nothing: where a class leaves this out, punq takes far longer."""


class Depth1:
    """Needs the one before."""

    def __init__(self, inner: Depth0) -> None:
        """Take it."""
        self.inner = inner


class Depth2:
    """Needs the one before."""

    def __init__(self, inner: Depth1) -> None:
        """Take it."""
        self.inner = inner


class Depth3:
    """Needs the one before."""

    def __init__(self, inner: Depth2) -> None:
        """Take it."""
        self.inner = inner


class Depth4:
    """Needs the one before."""

    def __init__(self, inner: Depth3) -> None:
        """Take it."""
        self.inner = inner


_CHAIN = (Depth0, Depth1, Depth2, Depth3, Depth4)


def run(rounds: int) -> list[tuple[str, float, float, float]]:
    """Measure; return name, microseconds, the bar and punq's microseconds for each depth."""
    contenders: dict[str, Callable[[], float]] = {}
    for depth, handler in enumerate(_CHAIN):
        container = punq.Container()
        for service in _CHAIN[:depth]:
            container.register(service)
        ours = PunqContainer(container)
        # Once for the plan, and then as often as the interpreter needs to specialise it.
        for _ in range(100):
            ours.resolve(handler)
        contenders[f"ours {depth}"] = partial(seconds, partial(ours.resolve, handler), 5000)
        contenders[f"punq {depth}"] = partial(seconds, partial(container.instantiate, handler), 50)
    measured = {name: statistics.median(times) * 1e6 for name, times in rounds_of(contenders, rounds).items()}
    return [
        (f"depth {depth}", measured[f"ours {depth}"], 1 + 0.5 * depth, measured[f"punq {depth}"])
        for depth in range(len(_CHAIN))
    ]


@attrs.frozen
class Ask(cqrs.Command[None]):
    """A command for a handler of each depth."""


def run_commands(rounds: int) -> list[tuple[str, float, float]]:
    """Measure `mediator.send`; return name, microseconds and those with punq alone for each depth."""
    contenders: dict[str, Callable[[], float]] = {}
    for depth, service in enumerate(_CHAIN[:-1]):

        class AskHandler(cqrs.RequestHandler[Ask, None]):
            def __init__(self, needed: service) -> None:  # type: ignore[valid-type]
                pass

            def handle(self, request: Ask) -> None:
                """Do nothing."""

        AskHandler.__init__.__annotations__["needed"] = service
        container = punq.Container()
        for each in (*_CHAIN[: depth + 1], AskHandler):
            container.register(each)
        for name, used, times in (("ours", PunqContainer(container), 2000), ("punq", container, 50)):
            requests = cqrs.RequestMap()
            requests.bind(Ask, AskHandler)
            mediator = cqrs.bootstrap(requests, container=_Plain(used), threads=cqrs.SameThread())
            contenders[f"{name} {depth}"] = partial(seconds, partial(mediator.send, Ask()), times)
    measured = {name: statistics.median(times) * 1e6 for name, times in rounds_of(contenders, rounds).items()}
    return [
        (f"command {depth + 1}", measured[f"ours {depth}"], measured[f"punq {depth}"])
        for depth in range(len(_CHAIN) - 1)
    ]


class _Plain:
    """Keeps `bootstrap` from giving a punq container plans."""

    def __init__(self, container: Any) -> None:
        self.resolve = container.resolve


if __name__ == "__main__":
    print(f"{'':8} {'ours':>8} {'bar':>8} {'punq':>8}   µs")
    for name, ours, bar, theirs in run(int(sys.argv[1]) if len(sys.argv) > 1 else 15):
        verdict = "reached" if ours <= bar else "missed"
        print(f"{name:8} {ours:8.2f} {bar:8.2f} {theirs:8.1f}   {verdict}, {theirs / ours:.0f} times as fast as punq")
    for name, ours, theirs in run_commands(int(sys.argv[1]) if len(sys.argv) > 1 else 15):
        print(f"{name:8} {ours:8.2f} {'':8} {theirs:8.1f}   {theirs / ours:.0f} times as fast as punq")
