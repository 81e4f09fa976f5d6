"""What a forked child must not touch: the sockets and the epoll descriptor of its parent."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from cqrs_sync.lifecycle import reset_in_child


class Descriptors:
    """
    Remembers what one Kafka client watches; given to kafka-python as its `selector`.

    A child has a copy of each socket: while it lives, the broker does not hear of its
    parent's death. And it shares the parent's epoll descriptor: wherever its copy of the
    client is collected, generators in it take the parent's sockets off the watch list. So
    it puts /dev/null in the place of each descriptor before anything else runs.
    """

    def __init__(self, kind: Callable[[], selectors.BaseSelector] = selectors.DefaultSelector) -> None:
        self._kind = kind
        self._selectors: list[selectors.BaseSelector] = []
        #: Every socket that was ever watched: one that nobody waits for is not, at the moment of a fork.
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        reset_in_child(self)

    def __call__(self) -> selectors.BaseSelector:
        """Make a selector and remember it."""
        selector = self._kind()
        self._selectors.append(selector)
        register = selector.register

        def remember(fileobj: Any, *rest: Any, **named: Any) -> Any:
            if isinstance(fileobj, socket.socket):
                self._sockets.add(fileobj)
            return register(fileobj, *rest, **named)

        selector.register = remember  # type: ignore[method-assign]
        return selector

    def reset_in_child(self) -> None:
        """Let go of everything without a word on any connection."""
        nothing = os.open(os.devnull, os.O_RDWR)
        try:
            for descriptor in self._open():
                with contextlib.suppress(OSError):
                    os.dup2(nothing, descriptor, inheritable=False)
        finally:
            os.close(nothing)

    def _open(self) -> Iterator[int]:
        yield from {watched.fileno() for watched in list(self._sockets)} - {-1}
        for selector in self._selectors:
            # A closed selector has no map.
            for key in list((selector.get_map() or {}).values()):
                # A socket that is closed already: its number may be somebody else's by now.
                if getattr(key.fileobj, "fileno", lambda key=key: key.fd)() == key.fd:
                    yield key.fd
            fileno = getattr(selector, "fileno", None)
            if fileno is not None:
                with contextlib.suppress(ValueError):
                    yield fileno()
