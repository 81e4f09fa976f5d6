"""What one call of `publish` waits for."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.errors import BrokerUnavailable, DeliveryError, MessageRejected
from cqrs_sync.integrations.rabbitmq.frames import Encoder, LargeMessage

_WAITING, _SENT, _RETURNED, _CONFIRMED, _FAILED = range(5)


class Batch:
    """
    Messages that are sent together, and what has become of each.

    One latch for all of them: a future per message would cost more than encoding it.
    The caller makes it and waits for it; everything between is the I/O thread's.
    """

    __slots__ = ("_done", "_errors", "_left", "_states", "abandoned", "encoded", "messages", "size")

    def __init__(self, messages: Sequence[OutgoingMessage], encoder: Encoder) -> None:
        self.messages = messages
        #: Bytes of all bodies.
        self.size = sum(len(message.body) for message in messages)
        #: None where a message cannot be encoded: it has failed.
        self.encoded: list[bytes | LargeMessage | None] = []
        #: Whether the caller has gone: what is not sent yet must not be sent any more.
        self.abandoned = False
        self._states = bytearray(len(messages))
        self._left = len(messages)
        self._errors: dict[int, DeliveryError] = {}
        self._done = threading.Lock()
        self._done.acquire()
        for index, message in enumerate(messages):
            try:
                self.encoded.append(encoder.encode(message))
            except MessageRejected as error:
                self.encoded.append(None)
                self.fail(index, error)

    def sent(self, index: int) -> None:
        """Take note that this message is on its way: from now on nobody knows whether it arrived."""
        self._states[index] = _SENT

    def returned(self, index: int, error: DeliveryError) -> None:
        """Take note that the broker gave this message back; its confirm is still to come."""
        self._states[index] = _RETURNED
        self._errors[index] = error

    def awaits_return(self, index: int, message_id: str, topic: str) -> bool:
        """Tell whether this message, which is under way, is the one that was given back."""
        message = self.messages[index]
        return self._states[index] == _SENT and message.id == message_id and message.topic == topic

    def was_returned(self, index: int) -> bool:
        """Tell whether the broker gave this message back."""
        return self._states[index] == _RETURNED

    def confirm(self, index: int) -> None:
        """Take note that the broker has answered for this message."""
        self._states[index] = _FAILED if self._states[index] == _RETURNED else _CONFIRMED
        self._settled()

    def fail(self, index: int, error: DeliveryError) -> None:
        """Take note that this message will not be confirmed."""
        self._states[index] = _FAILED
        self._errors[index] = error
        self._settled()

    def fail_rest(self, error: DeliveryError) -> None:
        """Take note that nothing that is still open will be confirmed."""
        for index, state in enumerate(self._states):
            if state < _CONFIRMED:
                self.fail(index, self._errors.get(index, error))

    def wait(self, until: float) -> bool:
        """Wait at most until `until` for every message to be settled; tell whether they are."""
        return self._left == 0 or self._done.acquire(timeout=max(0.0, until - time.monotonic()))

    def failures(self, trouble: str) -> list[tuple[OutgoingMessage, DeliveryError]]:
        """Pair each message that is not confirmed with the reason; `trouble` is why open ones are open."""
        # The I/O thread may go on while we read: what counts is this moment.
        states = bytes(self._states)
        if states.count(_CONFIRMED) == len(states):
            return []
        return [
            (self.messages[index], self._errors.get(index) or _open(state, trouble))
            for index, state in enumerate(states)
            if state != _CONFIRMED
        ]

    def _settled(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._done.release()


def _open(state: int, trouble: str) -> DeliveryError:
    if state == _WAITING:
        return BrokerUnavailable(f"not sent in time: {trouble}")
    return BrokerUnavailable(f"not confirmed in time, whether it arrived is unknown: {trouble}")
