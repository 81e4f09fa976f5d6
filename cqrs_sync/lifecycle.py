"""What a process owes its threads and sockets: made anew in a forked child, closed when it leaves."""

from __future__ import annotations

import atexit
import logging
import os
import weakref
from typing import Protocol

logger = logging.getLogger(__name__)


class Resettable(Protocol):
    """Something with threads, locks or sockets."""

    def reset_in_child(self) -> None:
        """
        Forget what the parent had, without touching it.

        Inherited sockets belong to the parent: closing them politely would speak
        on its connection. Runs in the child before anything else does.
        """


class Closable(Protocol):
    """Something that must be let go of before the interpreter leaves."""

    def close_at_exit(self) -> None:
        """Close, within a time limit."""


_resettables: weakref.WeakSet[Resettable] = weakref.WeakSet()
_registered = False
_closables: weakref.WeakSet[Closable] = weakref.WeakSet()
_closed_first: weakref.WeakSet[Closable] = weakref.WeakSet()
_closing_at_exit = False


def reset_in_child(resettable: Resettable, /) -> None:
    """Call `resettable.reset_in_child()` in every child forked from now on, as long as it lives."""
    global _registered  # noqa: PLW0603 -- the interpreter keeps one list of hooks, so do we
    _resettables.add(resettable)
    if not _registered and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_reset_all)
        _registered = True


def close_at_exit(closable: Closable, /, *, first: bool = False) -> None:
    """Call `closable.close_at_exit()` when the interpreter leaves, if it still lives; `first` where it needs others."""
    global _closing_at_exit  # noqa: PLW0603 -- as above
    (_closed_first if first else _closables).add(closable)
    if not _closing_at_exit:
        atexit.register(_close_all)
        _closing_at_exit = True


def _reset_all() -> None:
    for resettable in list(_resettables):
        resettable.reset_in_child()


def _close_all() -> None:
    for closable in [*_closed_first, *_closables]:
        try:
            closable.close_at_exit()
        except Exception:
            logger.exception("%r could not be closed at exit", closable)
