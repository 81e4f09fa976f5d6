"""Wait for what another thread or process does, never longer than a bound."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: Between two looks at a condition that cannot wake us up.
_PAUSE = 0.01


def eventually(condition: Callable[[], T], timeout: float = 30.0, pause: float = _PAUSE) -> T:
    """
    Call `condition` every `pause` seconds until it is true, and return what it returned.

    Raises:
        AssertionError: it was still false after `timeout` seconds; shows what it returned last.
    """
    deadline = time.monotonic() + timeout
    never = threading.Event()
    while not (seen := condition()):
        if time.monotonic() >= deadline:
            name = getattr(condition, "__qualname__", repr(condition))
            raise AssertionError(f"{name} still returned {seen!r} after {timeout:g} s")
        never.wait(pause)
    return seen
