"""Detect that something makes no progress, by asking for its state again and again."""

from __future__ import annotations

import threading
import time

#: If more seconds than this, or this share of the stall, pass between two calls, the process may not have run.
_DOUBTFUL, _SHARE = 1.0, 0.1


class StallDetector:
    """
    Measures for how long a value has not changed. Any thread may call it.

    After a long time without a call the process was probably suspended, so the count restarts, once per value.
    Further long gaps count a little, so that a handler that holds the GIL is still detected.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._called_at = time.monotonic()
        self._value: object = None
        self._seconds = 0.0
        self._has_restarted = False

    def seconds_unchanged(self, value: object, stall: float) -> float:
        """Return for how many seconds it has had this value. Call it at least ten times within `stall` seconds."""
        doubtful = max(_DOUBTFUL, stall * _SHARE)
        with self._lock:
            now = time.monotonic()
            passed, self._called_at = now - self._called_at, now
            if value != self._value:
                self._value, self._seconds, self._has_restarted = value, 0.0, False
            elif passed <= doubtful:
                self._seconds += passed
            elif self._has_restarted:
                self._seconds += doubtful
            else:
                self._seconds, self._has_restarted = 0.0, True
            return self._seconds
