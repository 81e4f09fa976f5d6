"""librdkafka's log: to `logging`, and few lines of it."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterable

from cqrs_sync.retry import LogThrottle, suppressed_suffix

logger = logging.getLogger("cqrs_sync.integrations.confluent.librdkafka")

#: Kinds of lines that are kept in mind.
_KINDS = 200
#: What differs between lines of one kind: numbers, and how often librdkafka itself has not said it.
_VARYING = re.compile(r"\d+| \(after .*")


class Lines:
    """
    What librdkafka takes for a logger.

    While no broker answers it says so ten times a second. The first of such lines is
    passed on, the next one half a minute later, with how many there were in between.
    What `debug` asks for is passed on as it is. Secrets are censored.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        self._secrets = [secret for secret in secrets if secret]
        self._lock = threading.Lock()
        self._kinds: dict[str, LogThrottle] = {}

    def log(self, level: int, template: str, *arguments: object) -> None:
        """Be called by confluent-kafka, in the thread that polls."""
        if not logger.isEnabledFor(level):
            return
        text = template % arguments
        for secret in self._secrets:
            text = text.replace(secret, "***")
        unsaid = 0 if level <= logging.DEBUG else self._unsaid(_VARYING.sub("#", text))
        if unsaid is not None:
            logger.log(level, "%s%s", text, suppressed_suffix(unsaid))

    def _unsaid(self, kind: str) -> int | None:
        """Return how many lines of this kind were held back, None where this one is to be held back too."""
        with self._lock:
            if kind not in self._kinds and len(self._kinds) >= _KINDS:
                self._kinds.clear()
            return self._kinds.setdefault(kind, LogThrottle()).due()
