"""For how long something stands still, told by those who look at it again and again."""

from __future__ import annotations

import threading
import time

#: Between two looks so many seconds may pass, or this share of the patience, until it is doubtful whether anything ran.
_DOUBTFUL, _SHARE = 1.0, 0.1


class StallDetector:
    """
    Tells for how long something has not changed; any thread may look.

    A process that was stopped, or whose machine slept, goes on with clocks that are far ahead, and nothing of it could
    run meanwhile. So where nobody has looked for long, the time begins anew: once, until something changes.
    Each further time a little counts, for it may be what is looked at that keeps others from looking, such as a
    handler that does not let go of the interpreter: that is found out in the end.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._looked_at = time.monotonic()
        self._seen: object = None
        self._seconds = 0.0
        self._has_begun_anew = False

    def look(self, seen: object, patience: float) -> float:
        """Return for how many seconds it is what is `seen` now; who has `patience` looks ten times in it, or more."""
        doubtful = max(_DOUBTFUL, patience * _SHARE)
        with self._lock:
            now = time.monotonic()
            passed, self._looked_at = now - self._looked_at, now
            if seen != self._seen:
                self._seen, self._seconds, self._has_begun_anew = seen, 0.0, False
            elif passed <= doubtful:
                self._seconds += passed
            elif self._has_begun_anew:
                self._seconds += doubtful
            else:
                self._seconds, self._has_begun_anew = 0.0, True
            return self._seconds
