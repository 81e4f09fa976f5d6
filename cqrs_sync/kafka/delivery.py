"""One received record."""

from __future__ import annotations

from collections.abc import Callable

from cqrs_sync.broker import IncomingMessage
from cqrs_sync.kafka.holding import Holding


class RecordDelivery:
    """One record of a partition; `settle` is told once, with the delivery and whether it is done."""

    __slots__ = ("_settle", "holding", "message", "offset", "redeliveries")

    def __init__(
        self,
        message: IncomingMessage,
        holding: Holding,
        offset: int,
        redeliveries: int,
        settle: Callable[[RecordDelivery, bool], None],
    ) -> None:
        self.message = message
        #: The partition it came from, while that was ours.
        self.holding = holding
        self.offset = offset
        #: Kafka does not count: 1 where somebody may have had it in hand before.
        self.redeliveries = redeliveries
        self._settle: Callable[[RecordDelivery, bool], None] | None = settle

    @property
    def origin(self) -> str:
        """Its topic, partition and offset: `meetings[3]@1042`."""
        return f"{self.holding.origin}@{self.offset}"

    @property
    def lapsed(self) -> bool:
        """Whether it was settled, or its partition is somebody else's by now."""
        return self._settle is None or self.holding.lapsed

    def ack(self) -> None:
        """It is done: never deliver it again."""
        settle = self._settle
        if settle is not None:
            self._settle = None
            settle(self, True)

    def nack(self) -> None:
        """It is not done: deliver it again."""
        settle = self._settle
        if settle is not None:
            self._settle = None
            settle(self, False)
