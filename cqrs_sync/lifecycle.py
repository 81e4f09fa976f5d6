"""Hooks for the life of the process: make threads and sockets anew in a forked child, close them at exit."""

from __future__ import annotations

import atexit
import logging
import os
import weakref
from typing import Protocol

logger: logging.Logger = logging.getLogger(__name__)


class Resettable(Protocol):
    """Something with threads, locks or sockets."""

    def reset_in_child(self) -> None:
        """
        Forget what the parent had, without using it.

        Inherited sockets belong to the parent: to close them properly would send something on its connection.
        This runs in the child before all other code.
        """


class Closable(Protocol):
    """Something that must be closed before the interpreter exits."""

    def close_at_exit(self) -> None:
        """Close within a time limit."""


_resettables: weakref.WeakSet[Resettable] = weakref.WeakSet()
_registered = False
_closables: weakref.WeakSet[Closable] = weakref.WeakSet()
_closed_first: weakref.WeakSet[Closable] = weakref.WeakSet()
_closing_at_exit = False


def reset_in_child(resettable: Resettable, /) -> None:
    """Call `resettable.reset_in_child()` in each child that is forked from now on, as long as the object lives."""
    global _registered  # noqa: PLW0603 -- the interpreter has one list of hooks, and so does this module
    _resettables.add(resettable)
    if not _registered and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_reset_all)
        _registered = True


def close_at_exit(closable: Closable, /, *, first: bool = False) -> None:
    """Call `closable.close_at_exit()` at exit if the object still lives; `first` if it needs others to close."""
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
