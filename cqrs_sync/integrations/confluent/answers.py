"""What became of the messages that were sent in one go."""

from __future__ import annotations

import threading
import time
from typing import Any

from confluent_kafka import KafkaError


class Answers:
    """Collects delivery reports, whichever thread brings them, under the numbers of their messages."""

    def __init__(self) -> None:
        #: None is a confirmation.
        self.known: dict[int, KafkaError | None] = {}
        self._awaited: int | None = None
        self._complete = threading.Event()

    def take(self, index: int, error: KafkaError | None, _message: Any) -> None:
        """Be called with a delivery report; the message in it costs nothing more."""
        self.known[index] = error
        if len(self.known) == self._awaited:
            self._complete.set()

    def wait(self, count: int, until: float) -> None:
        """Wait for so many answers, or until then."""
        self._awaited = count
        if len(self.known) < count:
            self._complete.wait(max(0.0, until - time.monotonic()))
