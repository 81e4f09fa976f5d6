"""End a process in time, also where a thread in it never does."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from cqrs_sync.threads.watchdog import stacks_of
from cqrs_sync.workers.signals import Signals

logger = logging.getLogger(__name__)

#: Seconds that last words may take: who reads them may be gone as well.
_LAST_WORDS = 1.0
#: Seconds between two looks at whether something is done.
_LOOK = 0.05


def leave(status: int, *, words: Callable[[], object] = lambda: None) -> None:
    """End this process now, with a status; nothing is waited for but `words`, and those for a second at most."""
    saying = threading.Thread(target=_say, args=(words,), name="cqrs-last-words", daemon=True)
    with suppress(RuntimeError):
        saying.start()
        saying.join(_LAST_WORDS)
    os._exit(status)


def _say(words: Callable[[], object]) -> None:
    with suppress(Exception):
        words()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()


def done_by(do: Callable[[], object], until: float, signals: Signals, *, words: Callable[[], object]) -> bool:
    """
    Do it in a thread of its own; True where that is done by a moment by `time.monotonic`.

    What is not is left alone. A signal meanwhile is the second one: it ends this process at once, after `words`.
    """
    doing = threading.Thread(target=do, name="cqrs-stop", daemon=True)
    doing.start()
    while doing.is_alive() and time.monotonic() < until:
        number = signals.wait(_LOOK)
        if number is not None:
            leave(128 + number, words=words)
    return not doing.is_alive()


class Deadline:
    """
    The moment by which this process has ended, by `time.monotonic`.

    Until `met` says that everything is done, it ends it there with status 1. After that it does so only
    where the interpreter is leaving and does not come to an end: a thread or a hook of the application's
    keeps it. Then the status is the one that was given.
    """

    def __init__(self, until: float, words: Callable[[], object]) -> None:
        """Call `words` before the process is ended."""
        self._until = until
        self._words = words
        self._status: int | None = None
        self._thread = threading.Thread(target=self._run, name="cqrs-deadline", daemon=True)

    def start(self) -> None:
        """Start to watch. Raises RuntimeError where the system gives no thread."""
        self._thread.start()

    def met(self, status: int) -> None:
        """Everything is done; only leaving is left."""
        self._status = status

    def _run(self) -> None:
        threading.Event().wait(max(0.0, self._until - time.monotonic()))
        if self._status is None:
            leave(1, words=self._words)
        elif not threading.main_thread().is_alive():
            leave(self._status, words=_tell_who_keeps_it)


def _tell_who_keeps_it() -> None:
    names = [thread.name for thread in threading.enumerate() if not thread.daemon and thread.is_alive()]
    main = threading.main_thread()
    # Daemon threads keep nobody: it is a hook, which runs in the main thread, or one of the others.
    stack = stacks_of([main.ident or 0])[main.ident or 0]
    logger.error(
        "everything is settled, but the process does not end: threads that keep it: %s; the main thread is at:\n%s",
        *(", ".join(names) or "none", stack),
    )
