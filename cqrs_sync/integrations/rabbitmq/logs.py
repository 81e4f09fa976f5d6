"""
Fewer log lines of pika.

During an outage pika logs seven ERROR lines for each attempt to connect. The caller of `publish` gets one error with
the reason instead, and relays and consumers log the outage once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Thread(threading.local):
    #: How many `quiet_pika` blocks the thread is in.
    depth = 0


_here = _Thread()


@contextmanager
def quiet_pika() -> Iterator[None]:
    """
    Leave out pika's lines below CRITICAL that this thread logs in the block, unless its logger is enabled for DEBUG.

    Other connections that the application makes with pika log as before.
    """
    for name in list(logging.root.manager.loggerDict):
        if name == "pika" or name.startswith("pika."):
            # Adding it again does nothing.
            logging.getLogger(name).addFilter(_is_wanted)
    _here.depth += 1
    try:
        yield
    finally:
        _here.depth -= 1


def _is_wanted(record: logging.LogRecord) -> bool:
    # pika looks up addresses in a thread of its own, and then reports the error to the connection's thread.
    is_quiet = _here.depth > 0 or record.funcName == "_resolve"
    return (
        not is_quiet or record.levelno >= logging.CRITICAL or logging.getLogger(record.name).isEnabledFor(logging.DEBUG)
    )
