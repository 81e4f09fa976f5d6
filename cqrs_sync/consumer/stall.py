"""Detect that something makes no progress, by looking at it again and again."""

from __future__ import annotations

import threading
import time

#: If more seconds than this, or this share of the patience, pass between two looks, the process may not have run.
_DOUBTFUL, _SHARE = 1.0, 0.1


class StallDetector:
    """
    Measures for how long a value has not changed. Any thread may look.

    After a long time without a call the process was probably suspended, so the count restarts, once per value.
    Further long gaps count a little, so that a handler that holds the GIL is still detected.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._looked_at = time.monotonic()
        self._seen: object = None
        self._seconds = 0.0
        self._has_restarted = False

    def look(self, seen: object, patience: float) -> float:
        """Return for how many seconds the value has been `seen`. Look at least ten times within `patience` seconds."""
        doubtful = max(_DOUBTFUL, patience * _SHARE)
        with self._lock:
            now = time.monotonic()
            passed, self._looked_at = now - self._looked_at, now
            if seen != self._seen:
                self._seen, self._seconds, self._has_restarted = seen, 0.0, False
            elif passed <= doubtful:
                self._seconds += passed
            elif self._has_restarted:
                self._seconds += doubtful
            else:
                self._seconds, self._has_restarted = 0.0, True
            return self._seconds
