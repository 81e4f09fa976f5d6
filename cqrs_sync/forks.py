"""What a forked child must make anew: threads and locks of the parent do not work in it."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Resettable(Protocol):
    """Something with threads, locks or sockets."""

    def reset_in_child(self) -> None:
        """
        Forget what the parent had, without touching it.

        Inherited sockets belong to the parent: closing them politely would speak
        on its connection. Runs in the child before anything else does.
        """


_resettables: weakref.WeakSet[Resettable] = weakref.WeakSet()
_registered = False


def reset_in_child(resettable: Resettable, /) -> None:
    """Call `resettable.reset_in_child()` in every child forked from now on, as long as it lives."""
    global _registered  # noqa: PLW0603 -- the interpreter keeps one list of hooks, so do we
    _resettables.add(resettable)
    if not _registered and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_reset_all)
        _registered = True


def _reset_all() -> None:
    for resettable in list(_resettables):
        resettable.reset_in_child()
